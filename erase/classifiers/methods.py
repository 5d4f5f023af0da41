"""Ways to make a classifier forget: those that SalUn's paper compares (arXiv 2310.12508, section 5), and one more.

Each is a function of a `ForgetJob`: it changes the job's model in place and returns it. All of them honour the mask:
what it leaves out keeps its bits.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from ..saliency.mask import SaliencyMask
from ..saliency.scores import saliency_scores
from ..trained.optim import MaskedSGD, proximal_quantile, proximal_step
from .boundary import expanded, narrowed, nearest_wrong_labels
from .examples import Examples
from .influence import influence
from .nets import fresh, logits_of
from .settings import ForgetSettings, MaskName, TrainSettings
from .smoothing import smoothed_targets
from .training import LabelledBatch, batches, descend, share_of, train


@dataclass(kw_only=True)
class ForgetJob:
    """One model that forgets."""

    model: nn.Module
    """Trained; changed in place."""
    forget: Examples
    """What it is to forget."""
    retain: Examples
    """What it is to keep."""
    num_classes: int
    """Its logits."""
    settings: ForgetSettings
    """The method's."""
    training: TrainSettings = field(default_factory=TrainSettings)
    """How it was trained: for `retrain`."""
    seed: int = 0
    """Of everything random."""
    masks: Mapping[str, Tensor] | None = None
    """Name → bool, which weights may change; None for all."""

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)
        self.device = next(self.model.parameters()).device

    def optimizer(self) -> MaskedSGD:
        """SGD as the settings say, of the model and its mask."""
        s = self.settings
        return MaskedSGD(self.model.named_parameters(), self.masks, s.learning_rate, s.momentum, s.weight_decay)

    def shares(self) -> list[float]:
        """How much of the data each pass reads: 1, and of the last one what is left of the epochs."""
        whole, left = divmod(self.settings.epochs, 1)
        return [1.0] * int(whole) + [left] * (left > 0)

    def passes(self, examples: Examples, share: float = 1.0) -> Iterator[LabelledBatch]:
        """One pass over a share of the examples in random order."""
        return batches(examples, self.settings.batch_size, self.generator, self.device, share)

    def steps(self, examples: Examples, share: float | None = None) -> int:
        """Batches of one pass over a share of the examples, or of all passes."""
        shares = self.shares() if share is None else [share]
        return sum(math.ceil(share_of(len(examples), part) / self.settings.batch_size) for part in shares)

    def trained_on(self, examples: Examples, loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy) -> nn.Module:
        """The model after all epochs of descent on one set, in eval mode."""
        optimizer = self.optimizer()
        for share in self.shares():
            descend(self.model.train(), optimizer, self.passes(examples, share), loss)
        return self.model.eval()


def retrain(job: ForgetJob) -> nn.Module:
    """Cross-entropy on the retain set from new weights: the reference that the others approximate."""
    if job.masks is not None:
        raise ValueError("retrain starts from new weights, which a mask cannot hold; leave the mask out.")
    return train(fresh(job.model, job.seed), job.retain, job.training, job.seed)


def fine_tune(job: ForgetJob) -> nn.Module:
    """FT: cross-entropy on the retain set; what is not rehearsed fades (Golatkar et al., arXiv 1911.04933)."""
    return job.trained_on(job.retain)


def gradient_ascent(job: ForgetJob) -> nn.Module:
    """GA: up the cross-entropy on the forget set (Thudi et al., arXiv 2109.13398)."""
    return job.trained_on(job.forget, lambda logits, labels: -cross_entropy(logits, labels))


def random_label(job: ForgetJob, after: Callable[[], object] | None = None) -> nn.Module:
    """RL: cross-entropy to labels y' ≠ y, drawn anew each epoch, on the forget set; then to its own on the retain set.

    With a salient mask this is SalUn (arXiv 2310.12508, eq. 5 and 6).
    """
    optimizer = job.optimizer()
    for share in job.shares():
        job.model.train()
        wrong = job.forget.relabelled(other_labels(job.forget.labels, job.num_classes, job.generator))
        descend(job.model, optimizer, job.passes(wrong, share), after=after)
        descend(job.model, optimizer, job.passes(job.retain, share), after=after)
    return job.model.eval()


def other_labels(labels: Tensor, num_classes: int, generator: torch.Generator) -> Tensor:
    """For each label one of the others, all with the same chance."""
    shift = torch.randint(1, num_classes, labels.shape, generator=generator)
    return (labels + shift) % num_classes


def soft_random_label(job: ForgetJob) -> nn.Module:
    """SalUn-soft: RL whose small changes are thresholded away after each step, fewer and fewer of them."""
    base = {name: p.detach().clone() for name, p in job.model.named_parameters()}
    total, done = job.steps(job.forget) + job.steps(job.retain), 0

    def shrink() -> None:
        nonlocal done
        done += 1
        named = dict(job.model.named_parameters())
        proximal_step(named, base, proximal_quantile(done, total, job.settings.soft_quantile), job.masks)

    return random_label(job, after=shrink)


def l1_sparse(job: ForgetJob) -> nn.Module:
    """FT with α(1 − e/E)‖θ‖₁ on top: sparse weights forget more readily (Jia et al., arXiv 2304.04934)."""
    optimizer = job.optimizer()
    for epoch, share in enumerate(job.shares()):
        weight = job.settings.l1 * (1 - epoch / job.settings.epochs)

        def loss(logits: Tensor, labels: Tensor, weight: float = weight) -> Tensor:
            norm = sum(p.abs().sum() for p in job.model.parameters() if p.requires_grad)
            return cross_entropy(logits, labels) + weight * norm

        descend(job.model.train(), optimizer, job.passes(job.retain, share), loss)
    return job.model.eval()


@torch.no_grad()
def influence_unlearning(job: ForgetJob) -> nn.Module:
    """IU: one Newton step away from the forget set, θ + α H⁻¹ Σ ∇ℓ_f / N (arXiv 1703.04730, 2106.15093)."""
    s, model = job.settings, job.model.eval()
    rows = torch.randperm(len(job.retain), generator=job.generator)[: s.fisher_examples]
    moves = influence(model, job.forget, job.retain[rows], len(job.retain), s.damping)
    for name, parameter in model.named_parameters():
        move = s.step_length * moves[name]
        parameter.add_(move if job.masks is None else move * job.masks[name].to(move.device))
    return model


def boundary_expand(job: ForgetJob) -> nn.Module:
    """BE: the forget set is trained towards an extra class, which is dropped afterwards (arXiv 2303.11570)."""
    model, masks = expanded(job.model, job.num_classes, job.masks, job.seed)
    extra = job.forget.relabelled(torch.full_like(job.forget.labels, job.num_classes))
    return narrowed(replace(job, model=model, masks=masks).trained_on(extra), job.num_classes).eval()


def boundary_shrink(job: ForgetJob) -> nn.Module:
    """BS: each forgotten example is trained towards the wrong class nearest to it (arXiv 2303.11570)."""
    nearest = nearest_wrong_labels(job.model, job.forget, job.settings.fgsm)
    return job.trained_on(job.forget.relabelled(nearest))


def smoothed(job: ForgetJob) -> nn.Module:
    """SalUn towards what a model that never saw the forget set would say (`smoothing.py`), retained examples beside.

    Each batch of the retain set takes its share of the forget set along, so that neither undoes the other, and the
    learning rate falls to 0 along a half cosine.
    """
    s, optimizer = job.settings, job.optimizer()
    targets = smoothed_targets(job.model, job.forget, s.noise, s.copies, s.mistaken, job.generator)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, job.steps(job.retain))
    for share in job.shares():
        descend(job.model.train(), optimizer, _beside(job, targets, share), after=schedule.step)
    return job.model.eval()


def _beside(job: ForgetJob, targets: Tensor, share: float) -> Iterator[LabelledBatch]:
    """Batches of a share of the retain set with as great a share of the forgotten ones and their targets after them."""
    order = torch.randperm(len(job.forget), generator=job.generator)[: share_of(len(job.forget), share)]
    parts = order.tensor_split(job.steps(job.retain, share))
    for (inputs, labels), rows in zip(job.passes(job.retain, share), parts, strict=True):
        own = one_hot(labels, job.num_classes).to(targets.dtype)
        forgotten = job.forget.batch(rows, job.device, job.generator)
        yield torch.cat([inputs, forgotten]), torch.cat([own, targets[rows].to(job.device)])


METHODS: dict[str, Callable[[ForgetJob], nn.Module]] = {
    "retrain": retrain,
    "ft": fine_tune,
    "ga": gradient_ascent,
    "rl": random_label,
    "salun": random_label,
    "salun-soft": soft_random_label,
    "iu": influence_unlearning,
    "boundary-expand": boundary_expand,
    "boundary-shrink": boundary_shrink,
    "l1-sparse": l1_sparse,
    "salun-smoothed": smoothed,
}
SALIENCY_BATCH = 256


def make_mask(job: ForgetJob) -> SaliencyMask | None:
    """The mask that the settings name: saliency is the gradient of −cross-entropy on the forget set (eq. 4)."""
    s, names = job.settings, _open_parameters(job.model, job.settings.frozen_layers)
    scope = names.__contains__
    if s.mask == "none":
        return SaliencyMask.full(job.model, scope) if s.frozen_layers else None
    if s.mask not in get_args(MaskName):
        mask = SaliencyMask.load(s.mask)
        mask.check(job.model)
        # Only where something is frozen: what two masks disagree on, such as the score, leaves the metadata.
        return mask & SaliencyMask.full(job.model, scope) if s.frozen_layers else mask
    if s.mask == "random":
        return SaliencyMask.random(job.model, density=s.density, seed=job.seed, scope=scope)
    scores = saliency_scores(job.model, _forgetting_losses(job), s.mask_score, names)
    metadata = {"score": s.mask_score, "seed": str(job.seed)}
    return SaliencyMask.from_scores(scores, density=s.density, metadata=metadata).covering(job.model)


def _open_parameters(model: nn.Module, frozen_layers: int) -> set[str]:
    """Names of the parameters behind the first `frozen_layers` modules that have some of their own."""
    layer_of = {name: name.rpartition(".")[0] for name, _ in model.named_parameters()}
    layers = list(dict.fromkeys(layer_of.values()))
    if frozen_layers >= len(layers):
        raise ValueError(f"frozen_layers is {frozen_layers}, but the model has {len(layers)} layers: leave some open.")
    return {name for name, layer in layer_of.items() if layer in layers[frozen_layers:]}


def _forgetting_losses(job: ForgetJob) -> Iterator[Callable[[], Tensor]]:
    """−CE on the forgotten examples that count, a batch at a time; their sum is the mean over these."""
    order = torch.arange(len(job.forget))
    if job.settings.mask_examples is not None:
        order = torch.randperm(len(job.forget), generator=job.generator)[: job.settings.mask_examples]
    for rows in order.split(max(SALIENCY_BATCH, job.settings.batch_size)):

        def loss(rows: Tensor = rows) -> Tensor:
            logits = logits_of(job.model, job.forget.batch(rows, job.device))
            labels = job.forget.labels[rows].to(job.device)
            return -cross_entropy(logits, labels, reduction="sum") / len(order)

        yield loss
