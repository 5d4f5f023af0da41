"""The settings of `erase classify`, and those that it chooses for a data set by itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
import yaml

from ..config import CONFIGS_DIR
from ..suggest import need_either, need_mask, need_name, refuse_near
from .settings import DATASETS, DESCRIPTIONS, NETWORKS, ForgetSettings, ScoreName, TrainSettings, own_mask

OVERRIDES = ("learning_rate", "epochs", "batch_size", "mask", "density", "mask_score")
TRAIN_OVERRIDES = ("epochs", "learning_rate", "batch_size")
MANY = 0.3
"""From this share on, a random forget set is set up as for 50 %, below as for 10 %."""


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig:
    """Make an image classifier forget some of its training data, and compare methods.

    Example: erase classify --dataset digits --forget_fraction 0.1 --methods retrain,salun,ft --seeds 3

    The table is the one in SalUn's paper: unlearning accuracy (UA), accuracy on retained data (RA) and on test data
    (TA), success of membership inference (MIA), run time, and the mean gap to the retrained model.
    """

    dataset: str
    """digits, breast-cancer, wine (scikit-learn's), canvas-pictures, an .npz (x_train, y_train, x_test, y_test), a
    folder (CIFAR's binary files, a hub data set's parquet files, or train/CLASS/PICTURE and test/CLASS/PICTURE), or a
    hub id."""
    label_column: str | None = None
    """Column with the class labels, for a hub data set that has several, such as fine_label."""
    model: str | None = None
    """mlp, cnn or resnet18, which the command trains first; or a trained classifier (a transformers model or one that
    this package saved), by folder or hub id. Default: the model in configs/classify for the data set, else resnet18."""
    forget_fraction: float | None = None
    """Forget a random share of the training set, in (0, 1); each seed chooses a different one."""
    forget_class: str | None = None
    """Forget a class, by name or number."""
    forget_indices: Path | None = None
    """Forget these rows of the training set: a text file with one row number per line."""
    methods: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Methods, separated by commas: retrain, ft, ga, rl, salun, salun-soft, iu, boundary-expand, boundary-shrink,
    l1-sparse, salun-smoothed. The gap needs retrain; retrain-2 is a second retraining, whose gap shows the effect of
    chance. Default: retrain,salun."""
    seeds: int = 1
    """Number of runs of each method, with seeds --seed, --seed + 1, and so on."""
    seed: int = 0
    """First random seed, of the model's weights, the forget set and everything else."""
    processes: int = 1
    """Number of seeds that run at once, each on one core."""

    mask: str | None = None
    """Which weights may change: salient, random, none (all of them) or a mask file. Default: salient for salun and
    salun-smoothed, none for the others; retrain never uses a mask."""
    density: float | None = None
    """Share of the weights that a mask allows to change, in (0, 1]."""
    mask_score: ScoreName | None = None
    """How the saliency of a weight is measured: gradient, fisher or snip."""
    learning_rate: float | None = None
    """Learning rate of all methods, instead of the data set's own setting for each."""
    epochs: float | None = None
    """Epochs of all methods, instead of the data set's own setting for each."""
    batch_size: int | None = None
    """Batch size of all methods, instead of the data set's own."""
    train_epochs: int | None = None
    """Epochs of training and retraining."""
    train_learning_rate: float | None = None
    """Learning rate of training and retraining."""
    train_batch_size: int | None = None
    """Batch size of training and retraining."""

    output_dir: Path = Path("forgotten")
    """Folder for the table, plot, rows, masks and the models of the first seed."""
    overwrite_output_dir: bool = False
    """Replace the run in --output_dir; without this flag, repeating the command resumes it."""
    save_models: bool = True
    """Save the models of the first seed."""

    def __post_init__(self) -> None:
        for name in ("output_dir", "forget_indices"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else Path(value).expanduser())
        given = (self.methods,) if isinstance(self.methods, str) else self.methods
        names = dict.fromkeys(name.strip() for part in given or ("retrain,salun",) for name in part.split(","))
        object.__setattr__(self, "methods", tuple(name for name in names if name))
        _check(self)

    @property
    def setting(self) -> str:
        """random-10 and its like, class, or given."""
        if self.forget_fraction is not None:
            return f"random-{100 * self.forget_fraction:g}"
        return "class" if self.forget_class is not None else "given"

    def architecture(self) -> str:
        """--model, or the data set's own."""
        return self.model or preset(self.dataset)["model"]

    def training(self) -> TrainSettings:
        """How the model is trained and retrained."""
        given = {name: getattr(self, f"train_{name}") for name in TRAIN_OVERRIDES}
        return TrainSettings(**preset(self.dataset)["training"] | _named(given))

    def settings_of(self, method: str) -> ForgetSettings:
        """A method's settings: the published ones, the data set's own, then the flags."""
        return method_settings(self.dataset, self.setting, method, {name: getattr(self, name) for name in OVERRIDES})


def method_settings(dataset: str, setting: str, method: str, given: Mapping[str, Any] | None = None) -> ForgetSettings:
    """What configs/classify has for a method, a data set and a kind of forget set; `given` on top, None being unset."""
    own = preset(dataset)
    kind = setting if setting in own else "random-50" if _share_of(setting) >= MANY else "random-10"
    values: dict[str, Any] = {"batch_size": own["training"]["batch_size"], "mask": own_mask(method)}
    values |= own["methods"].get(method, {}) | own.get(kind, {}).get(method, {}) | _named(given or {})
    if method.startswith("retrain"):
        values["mask"] = "none"
    return ForgetSettings(**values)


def preset(dataset: str) -> dict[str, Any]:
    """configs/classify/default.yaml with the data set's own file on top, where there is one."""
    values = yaml.safe_load((CONFIGS_DIR / "classify" / "default.yaml").read_text(encoding="utf-8"))
    own = CONFIGS_DIR / "classify" / f"{dataset}.yaml"
    is_own = "/" not in dataset and own.is_file()
    return values | (yaml.safe_load(own.read_text(encoding="utf-8")) if is_own else {})


def _share_of(setting: str) -> float:
    return float(setting.removeprefix("random-")) / 100 if setting.startswith("random-") else 0.0


def _named(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _check(config: ClassifyConfig) -> None:
    """Refuse what cannot work before anything is loaded."""
    if not config.methods:
        raise ValueError(f"No method given; there are {', '.join(DESCRIPTIONS)}.")
    for method in config.methods:
        need_name("method", method, DESCRIPTIONS)
    named = {name: getattr(config, name) for name in ("forget_fraction", "forget_class", "forget_indices")}
    if sum(value is not None for value in named.values()) != 1:
        given = ", ".join(f"--{name} {value}" for name, value in named.items() if value is not None) or "none of them"
        raise ValueError(f"Say what to forget with exactly one of --{', --'.join(named)}; got {given}.")
    if config.forget_fraction is not None and not 0 < config.forget_fraction < 1:
        raise ValueError(f"forget_fraction must be a share in (0, 1), got {config.forget_fraction}; 0.1 is a tenth.")
    if config.forget_indices is not None and not config.forget_indices.is_file():
        raise ValueError(f"forget_indices: there is no file {config.forget_indices}.")
    for name in ("seeds", "processes"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}.")
    refuse_near("--dataset", config.dataset, DATASETS)
    refuse_near("--model", config.model, NETWORKS)
    need_mask(config.mask)
    if Path(config.dataset).suffix == ".npz" or Path(config.dataset).is_absolute():
        need_either("--dataset", Path(config.dataset))
    for method in config.methods:
        config.settings_of(method)
