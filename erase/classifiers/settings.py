"""What `erase classify` knows without torch: its methods by name, and the settings of training and forgetting."""

from dataclasses import dataclass
from typing import Literal, get_args

from ..suggest import need_mask, need_name

MaskName = Literal["salient", "random", "none"]
ScoreName = Literal["gradient", "fisher", "snip"]
DATASETS = ("digits", "breast-cancer", "wine", "canvas-pictures")
"""Data sets that need no download."""
NETWORKS = ("mlp", "cnn", "resnet18")
"""Built-in networks; `nets.ARCHITECTURES` makes them."""
ORIGINAL = "original"
"""The model before it forgets."""
REFERENCE = "retrain"
FLOOR = "retrain-2"
"""A second retraining with other seeds: its gap to the first is the noise's."""


@dataclass(frozen=True)
class Described:
    """A method in a line."""

    summary: str
    """What it does."""
    source: str
    """Where it was published: an arXiv id, or the project's name; empty for a reference."""
    mask: MaskName = "none"
    """Its mask, unless another is asked for."""


DESCRIPTIONS: dict[str, Described] = {
    "retrain": Described("trains new weights on the retain set: the reference", ""),
    "ft": Described("continues training on the retain set", "1911.04933"),
    "ga": Described("raises the loss on the forget set", "2109.13398"),
    "rl": Described("trains on the forget set with wrong labels, then on the retain set", "2310.12508"),
    "salun": Described("rl on the salient weights only", "2310.12508", "salient"),
    "salun-soft": Described("rl; sets small weight changes to zero", "2310.12508"),
    "iu": Described("one Newton step away from the forget set", "1703.04730, 2106.15093"),
    "boundary-expand": Described("trains the forget set towards an extra class, then drops it", "2303.11570"),
    "boundary-shrink": Described("trains each forgotten example towards its nearest wrong class", "2303.11570"),
    "l1-sparse": Described("continues training on the retain set with an L1 penalty on the weights", "2304.04934"),
    "salun-smoothed": Described(
        "trains salient weights towards what a model that never saw the examples predicts", "this package", "salient"
    ),
    FLOOR: Described("retrain with other seeds: its gap is the effect of chance", ""),
}


def own_mask(method: str) -> MaskName:
    """The mask that a method has unless another is asked for; some are what they are by theirs."""
    return DESCRIPTIONS[method].mask


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How the model that forgets was trained, and how it is retrained."""

    epochs: int = 182
    """Passes over the training set (the paper's, for CIFAR)."""
    learning_rate: float = 0.1
    """The first step's; it falls to 0 along a half cosine."""
    momentum: float = 0.9
    """Of SGD, in [0, 1)."""
    weight_decay: float = 5e-4
    """Of SGD."""
    batch_size: int = 256
    """Examples a step."""


@dataclass(frozen=True, kw_only=True)
class ForgetSettings:
    """The settings of all methods; each method reads those that it needs."""

    learning_rate: float = 0.01
    """Of SGD; constant over the run."""
    epochs: float = 10
    """Passes over the forget set, and over the retain set where a method reads it; of 1.5, the second is half a one."""
    batch_size: int = 256
    """Examples a step."""
    momentum: float = 0.9
    """Of SGD, in [0, 1)."""
    weight_decay: float = 5e-4
    """Of SGD."""
    mask: str = "none"
    """Which weights may change: salient (SalUn's), random (as many), none (all may), or a mask file."""
    density: float = 0.5
    """Share of the weights that a mask lets change, in (0, 1]."""
    mask_score: ScoreName = "gradient"
    """Saliency of a weight: |Σ gradients|, Σ |gradient| of a batch, or |weight × Σ gradients|."""
    mask_examples: int | None = None
    """Forgotten examples, drawn at random, that saliency is measured on; None: all."""
    frozen_layers: int = 0
    """How many of the first layers stay as they are whatever the mask: a step is quicker without their gradients."""
    soft_quantile: float = 0.5
    """salun-soft: the quantile of |change| that is thresholded away at first; it falls to 0 over the run."""
    l1: float = 5e-4
    """l1-sparse: α in α (1 − e/E) ‖θ‖₁."""
    step_length: float = 0.1
    """iu: α, how far along H⁻¹ ∇ the weights go."""
    damping: float = 0.01
    """iu: λ, what is added to the Fisher matrix's diagonal, above 0."""
    fisher_examples: int = 100
    """iu: retained examples that the Fisher matrix is made of; memory is examples × classes × weights × 4 bytes."""
    fgsm: float = 0.1
    """boundary-shrink: ε of the step that finds the nearest wrong class, in units of the network's inputs."""
    noise: float = 0.4
    """salun-smoothed: σ of the surroundings that the targets are averaged over, in units of the network's inputs."""
    copies: int = 8
    """salun-smoothed: noisy copies of each example that its target is the mean of."""
    mistaken: float = 0.1
    """salun-smoothed: share of the forget set that is named wrongly, in [0, 1]: the test error; 1 for a whole class."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "epochs", "batch_size", "damping", "fisher_examples", "fgsm", "step_length",
                     "noise", "copies", "mask_examples"):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be above 0, got {value}.")
        if not 0 < self.density <= 1 or not 0 <= self.mistaken <= 1:
            raise ValueError(
                f"density must be a share in (0, 1] and mistaken one in [0, 1]; got {self.density}, {self.mistaken}."
            )
        if not 0 <= self.momentum < 1 or not 0 <= self.soft_quantile <= 1:
            raise ValueError(f"Expected momentum in [0, 1) and soft_quantile in [0, 1]; got {self}.")
        if self.weight_decay < 0 or self.l1 < 0 or self.frozen_layers < 0:
            raise ValueError(f"weight_decay, l1 and frozen_layers must be at least 0; got {self}.")
        need_name("mask_score", self.mask_score, get_args(ScoreName))
        need_mask(self.mask)
