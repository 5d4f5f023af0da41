"""Every setting of a run, as one frozen dataclass that the command line, YAML files and Python share.

Precedence, lowest first: the class's defaults (SalUn's NSFW setting), the method's preset (configs/methods/), the
base's own presets (`canvas` has one for all methods and one for each), `--config`, the flags.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_type_hints

import tyro
import yaml

from .concepts.concept import ConceptType
from .layout import shipped
from .methods import METHODS, Scope, check_method
from .suggest import did_you_mean

CANVAS = "canvas"
CANVAS_METHOD = "recommended"
"""Elsewhere the default is SalUn as published: nothing here has been measured on a model of full size."""
CONFIGS_DIR = shipped("configs")


if TYPE_CHECKING:
    MethodName = str
else:
    MethodName = Literal[tuple(METHODS)]  # the parser of flags reads the names from the type
"""A key of `METHODS`."""

AT_LEAST_ONE = (
    "num_concept_images",
    "num_retain_images",
    "trajectory_points",
    "edit_rounds",
    "data_num_inference_steps",
    "data_batch_size",
    "train_batch_size",
    "max_train_steps",
    "gradient_accumulation_steps",
    "checkpointing_steps",
)


@dataclass(frozen=True, kw_only=True)
class EraseConfig:
    """Erase concepts from a text-to-image model and export a standard diffusers pipeline.

    Example: accelerate launch erase.py --concept nudity

    Try it:  accelerate launch erase.py --pretrained_model_name_or_path canvas --concept cat
    """

    concept: tyro.conf.UseAppendAction[tuple[str, ...]]
    """What to erase: a preset (nudity, violence, van-gogh, imagenette/church, canvas/cat), a YAML file, or plain words
    together with --concept_type. Repeat the flag to erase several concepts in one run."""
    concept_type: ConceptType | None = None
    """Read --concept as plain words that name an object, a style or a person."""
    pretrained_model_name_or_path: str = "CompVis/stable-diffusion-v1-4"
    """Base model: a hub id, a local diffusers folder, or `canvas`, the small model that ships with this package."""
    revision: str | None = None
    """Hub revision of the base model."""
    variant: str | None = None
    """Weight variant of the base model's files, such as fp16."""
    output_dir: Path = Path("erased")
    """Where the erased pipeline, patch, mask, manifest and proof are written."""
    overwrite_output_dir: bool = False
    """Replace the earlier run in --output_dir once the new one is complete. Your own files there are kept."""
    seed: int = 0
    """Random seed of the run."""

    method: MethodName = "salun"
    """Erasure method; `erase methods` says in a line what each does and which of them train, edit in closed form within
    seconds, or change no weights. Each has a page in docs/methods and its published settings in configs/methods."""
    scope: Scope = "full"
    """Which weights may change: those of the whole denoiser, of some of its layers, or of the text encoder. The mask
    selects among these weights, and --density is a share of them."""
    mask: str = "salient"
    """Which of the weights in scope may change. salient: those with the largest gradients of the forgetting loss (for
    closed-form methods, of the error that the edit minimizes). random: a random choice of the same density, as a
    control. none: all of them. Or the path of a mask file."""
    density: float = 0.5
    """Share of the weights in scope that the mask allows to change, in (0, 1]; for closed-form methods, share of the
    weights that the method edits. With a lower density, raise --learning_rate in inverse proportion to the share of
    the score that is printed with the mask."""
    mask_score: Literal["gradient", "fisher", "snip", "pursuit"] = "gradient"
    """How the saliency of a weight is measured. gradient: |sum of gradients|. fisher: sum over batches of |gradient|.
    snip: |weight x sum of gradients|. pursuit (closed-form methods only): select weights in rounds, and solve for the
    weights selected so far before each new round."""
    mask_guidance_scale: float = 7.5
    """s in the forgetting loss's (1+s) f(c) - s f(empty); 7.5 is a guidance_scale of 8.5 in diffusers' convention."""
    target: Literal["current", "frozen"] = "current"
    """Which model predicts the forget target from the anchor prompt: the model in training (current, as in the paper)
    or the base model (frozen)."""
    retain_target: Literal["data", "frozen"] = "data"
    """Training target for retained pictures: their own noise (data, as in the paper) or the base model's prediction
    (frozen)."""
    alpha: float = 0.1
    """Weight of the retain loss; 0 trains without retained pictures."""
    balance: Literal["sum", "bilevel", "project"] = "sum"
    """How the gradients of the two losses are combined. sum: forget + alpha x retain. bilevel: EraseDiff's retain +
    lambda x forget. project: sum, after removing the part of the forget gradient that would raise the retain loss."""
    bilevel_eta: float = 1.0
    """For --balance bilevel: eta in lambda = max(0, eta - cos(retain gradient, forget gradient))."""
    retain_prompt_dropout: float = 0.0
    """Share of retain rows trained with an empty prompt, in [0, 1]; preserves the unconditional branch of guidance."""
    anchor_image_fraction: float = 0.0
    """Share of each forget batch that uses pictures of the anchor instead of the concept, in [0, 1]."""
    forget_x: Literal["pictures", "trajectories"] = "pictures"
    """Inputs of the forget rows: pictures with added noise, or partly denoised latents from the base model."""
    trajectory_points: int = 10
    """Latents kept from each trajectory, at randomly chosen steps."""
    trajectory_guidance_scale: float = 3.0
    """Guidance scale of the trajectories."""
    negative_guidance: float = 1.0
    """eta in the target of ESD and LECO, f(empty) - eta (f(concept) - f(empty))."""
    lora_rank: int = 0
    """Train a low-rank adapter of this rank and merge it into the weights at the end; 0 trains the weights."""
    soft_quantile: float = 0.5
    """For salun-soft: quantile of |change| below which changes are set to zero; it falls to 0 over the run."""

    edit_tokens: Literal["all", "last"] = "all"
    """For closed-form methods: which tokens of the forget prompt are mapped to tokens of the anchor prompt. all: every
    token in which the two prompts differ, and the end of the text. last: only the last of these."""
    edit_regularization: float = 0.5
    """For closed-form methods: lambda, the penalty on changing the weights."""
    erase_weight: float = 1.0
    """For closed-form methods: weight of the concept's tokens."""
    preserve_weight: float = 1.0
    """For recommended, uce and rece: weight of the retained tokens."""
    edit_rounds: int = 3
    """For rece: number of rounds after the first edit."""
    edit_mu: float = 0.1
    """For rece: mu, the penalty on the size of a derived embedding."""
    edit_null_threshold: float = 0.1
    """For speed: a direction may change if the retained tokens have less than this share of their mean energy in it."""
    edit_augmentations: int = 10
    """For speed: noisy copies of each retained token that are also preserved; the noise lies in the direction that the
    layer amplifies least."""
    edit_empty_centers: int = 3
    """For speed: the edit preserves exactly the first token of the empty prompt and this many cluster centres of its
    other tokens; 0 preserves all of them."""

    num_concept_images: int = 800
    """Training pictures of the concept that the base model generates."""
    num_anchor_images: int = 0
    """Training pictures of the anchor; needed when --anchor_image_fraction is above 0."""
    num_retain_images: int = 800
    """Training pictures of other concepts, which the model must retain."""
    concept_data_dir: Path | None = None
    """Folder of pictures of the concept to use instead of generated ones. Each needs a caption (0.txt beside 0.png, or
    metadata.jsonl) that is one of the concept's forget prompts."""
    concept_data_prompt: str | None = None
    """Prompt of all pictures in --concept_data_dir, if they have no captions."""
    retain_data_dir: Path | None = None
    """Folder of retained pictures to use instead of generated ones. Each needs a caption, in any words."""
    retain_data_prompt: str | None = None
    """Prompt of all pictures in --retain_data_dir, if they have no captions."""
    data_num_inference_steps: int = 50
    """Denoising steps when generating training pictures."""
    data_guidance_scale: float = 7.5
    """Guidance scale when generating training pictures."""
    data_solver: Literal["default", "ddim", "dpm++"] = "default"
    """Solver when generating training pictures; default is the base model's own."""
    data_batch_size: int = 8
    """Training pictures generated at once."""
    data_cache_dir: Path = Path("~/.cache/diffusers-erase")
    """Folder where runs on the same base share training pictures and prompt encodings."""
    resolution: int | None = None
    """Width and height of training pictures in pixels; by default the model's own."""

    train_batch_size: int = 8
    """Forget rows per device and step; there are as many retain rows."""
    max_train_steps: int = 100
    """Optimiser steps."""
    learning_rate: float = 1e-5
    """Peak learning rate."""
    lr_scheduler: Literal["constant", "constant_with_warmup", "linear", "cosine"] = "constant"
    """Learning rate schedule."""
    lr_warmup_steps: int = 0
    """Steps of linear warm-up."""
    adam_beta1: float = 0.9
    """Decay rate of Adam's first moment."""
    adam_beta2: float = 0.999
    """Decay rate of Adam's second moment."""
    adam_weight_decay: float = 0.0
    """Decoupled weight decay, applied to salient weights only."""
    adam_epsilon: float = 1e-8
    """Adam's epsilon."""
    max_grad_norm: float = 0.0
    """Gradient norm over the salient weights above which gradients are scaled down; 0 turns clipping off."""
    gradient_accumulation_steps: int = 1
    """Batches per optimiser step."""
    gradient_checkpointing: bool = False
    """Save memory in the backward pass at the cost of time."""
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = "auto"
    """Compute precision. auto: what `accelerate launch` was configured with (fp16 or bf16), else bf16 if the hardware
    supports it natively, else no. Weights stay float32."""
    allow_tf32: bool = False
    """Allow TF32 matmuls on Ampere and newer GPUs."""
    checkpointing_steps: int = 25
    """Steps between checkpoints (output_dir/checkpoint-{step}); one more is written after the last step, and one on
    Ctrl-C or SIGTERM."""
    checkpoints_total_limit: int | None = 1
    """How many checkpoints to keep."""
    resume_from_checkpoint: str | None = None
    """Resume the run in --output_dir from the stage it reached: latest, or the name of a checkpoint."""
    report_to: str | None = None
    """Experiment tracker: tensorboard or wandb."""
    logging_dir: str = "logs"
    """Folder inside output_dir for the tracker's logs."""

    save_patch: bool = True
    """Also write erase-patch.safetensors, which holds only the changed weights."""
    proof: bool = True
    """Score the base and the erased model after training (canvas only): metrics.json, records and grid.png."""
    num_target_images: int = 200
    """Minimum number of pictures of the erased concept to score."""
    num_kept_images: int = 500
    """Minimum number of retained pictures to score."""

    def __post_init__(self) -> None:
        for field in ("concept",):
            value = getattr(self, field)
            object.__setattr__(self, field, (value,) if isinstance(value, str) else tuple(value))
        for field in ("output_dir", "data_cache_dir", "concept_data_dir", "retain_data_dir"):
            value = getattr(self, field)
            object.__setattr__(self, field, None if value is None else Path(value).expanduser())
        _check(self)

    @classmethod
    def load(cls, config: str | Path | None = None, **overrides: Any) -> "EraseConfig":
        """The class's defaults, the base's preset, `config` (a YAML path or a shipped name), then `overrides`."""
        return cls(**_typed(layered(config, overrides)))

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as YAML and JSON hold them."""
        return plain_values(self)


def public_name(model: str) -> str:
    """What files that are passed on call a model: a hub id or `canvas` as it is, a local folder by its name alone."""
    path = Path(model).expanduser()
    return path.resolve().name if path.exists() else model


def plain_values(config: Any) -> dict[str, Any]:
    """A config dataclass's fields as YAML and JSON hold them: paths as strings, tuples as lists."""
    plain = dataclasses.asdict(config)
    return {key: str(v) if isinstance(v, Path) else list(v) if isinstance(v, tuple) else v for key, v in plain.items()}


def layered(config: str | Path | None, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Merge the base model's preset, a YAML config and the user's own values, later ones on top."""
    chosen = read_config(config) if config is not None else {}
    merged = chosen | dict(overrides)
    on_canvas = merged.get("pretrained_model_name_or_path") == CANVAS
    method = merged.get("method", CANVAS_METHOD if on_canvas else EraseConfig.method)
    names = [f"methods/{method}", *([CANVAS, f"{CANVAS}/{method}"] if on_canvas else [])]
    values: dict[str, Any] = {}
    for path in (CONFIGS_DIR / f"{name}.yaml" for name in names):
        values |= read_config(path) if path.is_file() else {}
    return values | merged


def read_config(config: str | Path, kind: type = EraseConfig) -> dict[str, Any]:
    """Read a YAML config of the class `kind`, by path or by the name of a shipped one; unknown keys are errors."""
    path = Path(config).expanduser()
    if kind is EraseConfig and not path.suffix and not path.is_file():
        path = CONFIGS_DIR / f"{config}.yaml"
    if not path.is_file():
        shipped = ", ".join(sorted(p.stem for p in CONFIGS_DIR.glob("*.yaml")))
        choices = f", or one of the shipped ones: {shipped}" if kind is EraseConfig else ""
        raise ValueError(f"No config {str(config)!r}. Give a YAML file{choices}.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold `key: value` lines, got {type(values).__name__}.")
    for key in values:
        _known(str(key), path, kind)
    return values


def _known(key: str, source: object, kind: type = EraseConfig) -> None:
    names = [field.name for field in dataclasses.fields(kind)]
    if key not in names:
        hint = did_you_mean(key, names) or " The keys are the command's flags: see its --help."
        raise ValueError(f"{source}: unknown key {key!r}.{hint}")


def to_argv(values: Mapping[str, Any]) -> list[str]:
    """Config values as command-line tokens, so that types, choices and errors take the same path as flags do."""
    tokens: list[str] = []
    for key, value in values.items():
        if isinstance(value, bool):
            tokens.append(f"--{key}" if value else f"--no_{key}")
        elif isinstance(value, list | tuple):
            tokens += [token for item in value for token in (f"--{key}", str(item))]
        else:
            tokens += [f"--{key}", str(value)]
    return tokens


def _typed(values: Mapping[str, Any]) -> dict[str, Any]:
    """YAML's `1e-5` is a string and `1` may be meant as a float: convert by the field's type or say what is wrong."""
    hints = get_type_hints(EraseConfig)
    typed = {}
    for key, value in values.items():
        _known(key, "EraseConfig")
        if hints[key] is float and isinstance(value, str | int) and not isinstance(value, bool):
            try:
                value = float(value)
            except ValueError:
                raise ValueError(f"{key} must be a number, got {value!r}.") from None
        typed[key] = value
    return typed


def _check(config: EraseConfig) -> None:
    """Refuse what cannot work, before anything is loaded."""
    hints = get_type_hints(EraseConfig)
    for field, hint in hints.items():
        value, choices = getattr(config, field), tuple(METHODS) if hint is MethodName else get_args(hint)
        if choices and all(isinstance(c, str) for c in choices) and value not in choices:
            raise ValueError(f"{field} must be one of {', '.join(choices)}; got {value!r}.")
        if hint in (int, float, bool) and not _is(value, hint):
            raise ValueError(f"{field} must be {hint.__name__}, got {value!r}.")
    if not config.concept:
        raise ValueError("No concept given. Say what must go, for example --concept nudity.")
    check_method(config.method, config.scope, config.lora_rank, config.mask)
    if not 0 < config.density <= 1:
        raise ValueError(
            f"density must be in (0, 1], got {config.density}; 0.5 is the paper's, 0.1 a tenth of the weights."
        )
    for field in ("anchor_image_fraction", "retain_prompt_dropout", "soft_quantile"):
        if not 0 <= getattr(config, field) <= 1:
            raise ValueError(f"{field} must be in [0, 1], got {getattr(config, field)}.")
    if config.anchor_image_fraction > 0 and config.num_anchor_images < 1:
        raise ValueError("anchor_image_fraction is above 0, so num_anchor_images must be at least 1; got 0.")
    if config.mask_score == "pursuit" and METHODS[config.method].kind != "closed-form":
        raise ValueError(
            f"mask_score pursuit solves for the weights as it chooses them, which only closed forms (recommended, uce, "
            f"rece) can; {config.method} takes gradient, fisher or snip."
        )
    objective = METHODS[config.method].objective
    if objective == "attention" and config.gradient_checkpointing:
        raise ValueError(
            f"{config.method} reads attention maps, which gradient_checkpointing throws away; turn it off."
        )
    if objective == "ascent" and config.forget_x == "trajectories":
        raise ValueError(f"{config.method} raises a training loss, which only pictures have: use --forget_x pictures.")
    if config.alpha < 0:
        raise ValueError(f"alpha must not be negative, got {config.alpha}.")
    if config.balance != "sum" and config.alpha == 0:
        raise ValueError(f"balance {config.balance} weighs forgetting against retaining; alpha 0 retains nothing.")
    if config.learning_rate <= 0:
        raise ValueError(f"learning_rate must be positive, got {config.learning_rate}.")
    for field in AT_LEAST_ONE:
        if getattr(config, field) < 1:
            raise ValueError(f"{field} must be at least 1, got {getattr(config, field)}.")


def _is(value: Any, kind: type) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
