"""Any text-to-image model as a stock diffusers pipeline: a folder, a hub id or the canvas, with an erasure or guard."""

import hashlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..export.patch import apply_patch
from ..files import file_sha256, folder_hash, read_safetensors
from ..models.folder import run_settings
from ..models.loading import check_weights, find_model, pipeline_type
from ..models.schedulers import set_scheduler
from ..models.single_file import PICKLES
from ..runtime.progress import OnStep, quiet_loading, step_callback
from .guard_names import check_guard
from .guards import GuardedPipeline, check_guidance, check_pipeline, guard_identity
from .prompts import PromptRow

# Not for measurements. A checker paints pictures black, and a black picture is not an erased one; the watermark is put
# on by those machines alone that have the package for it.
OFF = {"safety_checker": None, "requires_safety_checker": False, "add_watermarker": False}
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
NEEDED = {"prompt", "height", "width", "num_inference_steps", "guidance_scale", "generator", "output_type"}
"""Arguments of a text-to-image pipeline's call."""


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A model to draw with: a base and, if any, the erasure that goes on top of it."""

    pretrained_model_name_or_path: str
    """A diffusers folder, a hub id, or `canvas`."""
    revision: str | None = None
    """Hub revision."""
    variant: str | None = None
    """Weight variant of the files, such as fp16; of a run's folder the run's own where None is given."""
    patch: Path | None = None
    """erase-patch.safetensors made from this base."""
    unet_weights: Path | None = None
    """State dict of some of the denoiser's weights in .safetensors, as ESD and its relatives publish them."""
    guard: str | None = None
    """How to steer away from `guard_concept` while drawing: a name of `guards.GUARDS`."""
    guard_concept: str | None = None
    """The guard's concept in words: "a cat", or several phrases with commas."""
    name: str | None = None
    """What reports call it."""

    def __post_init__(self) -> None:
        if self.variant is None:
            object.__setattr__(self, "variant", run_settings(self.pretrained_model_name_or_path).get("variant"))

    @property
    def label(self) -> str:
        """`name`, or the model and what is on top of it."""
        top = self.patch or self.unet_weights
        guard = [f"{self.guard} ({self.guard_concept})"] if self.guard else []
        return self.name or " + ".join([self.pretrained_model_name_or_path, *([top.name] if top else []), *guard])

    def check(self) -> Path:
        """The local folder of the base (downloaded if need be), after everything has been found to be readable."""
        check_guard(self.guard, self.guard_concept)
        if self.patch and self.unet_weights:
            raise ValueError("Give a patch or unet_weights, not both: one would undo the other.")
        if self.unet_weights and self.unet_weights.suffix in PICKLES:
            raise ValueError(_PICKLED.format(path=self.unet_weights))
        for path in filter(None, (self.patch, self.unet_weights)):
            _check_header(path)
        folder = find_model(self.pretrained_model_name_or_path, self.revision, self.variant, on_top=True)
        found = pipeline_class(folder)
        if self.guard:
            check_pipeline(self.guard, found, folder)
        check_weights(folder)
        return folder

    def check_rows(self, rows: Sequence[PromptRow]) -> None:
        """ValueError for rows that cannot be drawn under the guard."""
        check_guard(self.guard, self.guard_concept)
        for row in rows if self.guard else ():
            check_guidance(str(self.guard), row.guidance_scale, f"row {row.id!r}")

    def sha256(self) -> str:
        """What the pictures depend on: the base's files, what is on top and the guard; equal for equal content."""
        return self._sha256(self.check())

    def describe(self) -> dict[str, str]:
        """Name, sha256 and pipeline class, for reports."""
        return dict(self._described)

    @cached_property
    def _described(self) -> dict[str, str]:
        """Hashed once: a full-size model is gigabytes, and drawing and provenance both ask."""
        folder = self.check()
        return {"name": self.label, "sha256": self._sha256(folder), "class": pipeline_class(folder).__name__}

    def _sha256(self, folder: Path) -> str:
        parts = [folder_hash(folder, self.variant)]
        for kind, path in (("patch", self.patch), ("unet_weights", self.unet_weights)):
            if path:
                parts.append(f"{kind} {file_sha256(path)}")
        if self.guard and self.guard_concept:
            parts.append(f"guard {guard_identity(self.guard, self.guard_concept)}")
        return parts[0] if len(parts) == 1 else hashlib.sha256("\n".join(parts).encode()).hexdigest()


_PICKLED = """{path} is a pickle, which can run any code when it is loaded, so it is not read here. \
Where you trust it, convert it once:
  python -c "import sys, torch, safetensors.torch as s; s.save_file({{k: v.contiguous().clone() for k, v in \
torch.load(sys.argv[1], map_location='cpu', weights_only=True).items()}}, sys.argv[2])" {path} {path}.safetensors"""


def pipeline_class(folder: Path) -> type[DiffusionPipeline]:
    """The diffusers class that model_index.json names; ValueError unless it draws pictures from prompts alone."""
    found = pipeline_type(folder)
    parameters = inspect.signature(found.__call__).parameters
    if not parameters.keys() >= NEEDED or {"mask_image", "num_frames"} & parameters.keys():
        raise ValueError(
            f"{folder} is a {found.__name__}, which is no text-to-image pipeline; give one that generates from prompts."
        )
    return found


def open_pipeline(
    source: ModelSource,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    scheduler: str = "default",
) -> Any:
    """A stock pipeline with erasure and guard applied, on `device`, its progress bar and safety checker off.

    ValueError when a file is missing, damaged, or made for another model.
    """
    folder = source.check()
    wanted = inspect.signature(pipeline_class(folder).__init__).parameters
    off = {name: value for name, value in OFF.items() if name in wanted}
    try:
        with quiet_loading():
            pipe: Any = DiffusionPipeline.from_pretrained(
                folder, dtype=dtype, variant=source.variant, use_safetensors=True, **off
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"Cannot load the pipeline in {folder}: {error}") from error
    if source.patch:
        apply_patch(pipe, source.patch)
    if source.unet_weights:
        load_denoiser_weights(pipe, source.unet_weights)
    set_scheduler(pipe, scheduler)
    pipe.set_progress_bar_config(disable=True)
    pipe.to(device)
    for convolutional in (getattr(pipe, "unet", None), getattr(pipe, "vae", None)):
        if convolutional is not None:
            convolutional.to(memory_format=torch.channels_last)
    if source.guard and source.guard_concept:
        return GuardedPipeline(pipe, denoiser_of(pipe)[1], source.guard, source.guard_concept)
    return pipe


def denoiser_of(pipe: Any) -> tuple[str, nn.Module]:
    """`unet` or `transformer`, and the module."""
    for name in ("unet", "transformer"):
        if isinstance(module := getattr(pipe, name, None), nn.Module):
            return name, module
    raise ValueError(f"{type(pipe).__name__} has neither a unet nor a transformer to put weights into.")


def load_denoiser_weights(pipe: Any, path: Path) -> None:
    """Put a partial state dict into the pipeline's denoiser; names may carry `unet.` or `transformer.` in front."""
    component, module = denoiser_of(pipe)
    given, own = read_safetensors(path)[0], module.state_dict()
    renamed = {name if name in own else name.removeprefix(f"{component}."): name for name in given}
    if not given or len(renamed) < len(given):
        raise ValueError(f"{path} holds {'no weights' if not given else 'weights twice, with and without prefix'}.")
    odd = [new for new, old in renamed.items() if new not in own or own[new].shape != given[old].shape]
    if odd:
        shown = [_explain(new, given[renamed[new]], own) for new in odd[:5]]
        shown += [f"… and {len(odd) - 5} more"] * (len(odd) > 5)
        raise ValueError(
            f"{path} does not fit this {type(pipe).__name__}'s {component} in {len(odd)} of {len(given)} weights.\n  "
            + "\n  ".join(shown)
            + "\nGive weights made for this base, under diffusers' names."
        )
    module.load_state_dict({new: given[old] for new, old in renamed.items()}, strict=False)


def _explain(name: str, weight: Tensor, own: dict[str, Tensor]) -> str:
    if name in own:
        return f"{name}: {tuple(weight.shape)} where the base has {tuple(own[name].shape)}"
    near = get_close_matches(name, own, n=1, cutoff=0.6)
    return f"{name}: no such weight" + (f"; did you mean {near[0]}?" if near else "")


def _check_header(path: Path) -> None:
    """Refuse a missing or truncated safetensors file by its header alone."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist; check the path.")
    try:
        with safe_open(path, "pt"):
            pass
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}); copy or make it again.") from error


BROKEN_IN_A_ROW = 8
"""So many pictures without a finite one, and it is the model that is broken, not a prompt."""


class Artist:
    """A model that is opened when a picture is to be drawn, and given up when it draws nothing but NaN."""

    def __init__(self, source: ModelSource, device: torch.device, scheduler: str, mixed_precision: str, expected: int):
        self._load = partial(open_pipeline, source, device, scheduler=scheduler)
        self.autocast, self.expected = AUTOCAST.get(mixed_precision), expected
        self._pipe: Any = None
        self._broken = 0

    def open(self) -> Any:
        """The pipeline, loaded once."""
        if self._pipe is None:
            self._pipe = self._load()
        return self._pipe

    def draw(self, rows: Sequence[PromptRow], on_step: OnStep | None = None) -> tuple[np.ndarray, np.ndarray]:
        """As `draw`; FloatingPointError when all the last pictures were NaN, ValueError for too little memory."""
        pipe = self.open()
        try:
            pictures, finite = draw(pipe, rows, self.autocast, on_step)
        except torch.OutOfMemoryError as error:
            raise ValueError(
                f"The device's memory does not suffice for {len(rows)} pictures at once; give a smaller --batch_size "
                "(and --overwrite_output_dir: other batches are another run)."
            ) from error
        except ValueError as error:
            raise ValueError(f"The pipeline refuses {rows[0].id!r} and the rows like it: {error}") from error
        for row, is_finite in zip(rows, finite):
            self._broken = 0 if is_finite else self._broken + 1
            if self._broken >= min(BROKEN_IN_A_ROW, self.expected):
                raise FloatingPointError(
                    f"The model generated {self._broken} pictures of NaN or infinity in a row, up to {row.id!r} "
                    f"({row.prompt!r:.60}). Check its weights, or generate with --mixed_precision no."
                )
        return pictures, finite


def draw(
    pipe: Any, rows: Sequence[PromptRow], autocast: torch.dtype | None = None, on_step: OnStep | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """uint8 pictures (B, H, W, 3) of rows with equal settings, and whether each was finite (B,) before the rounding.

    A row's noise comes from a generator of its own, on the CPU: the same whatever the batch and the device. `on_step`
    hears which share of the steps is done, of pipelines that tell.
    """
    stock = getattr(pipe, "pipe", pipe)  # the pipeline that a guard stands before
    tells = "callback_on_step_end" in inspect.signature(type(stock).__call__).parameters
    first = rows[0]
    size = {name: pixels for name in ("height", "width") if (pixels := getattr(first, name)) is not None}
    with torch.no_grad(), torch.autocast(pipe.device.type, autocast, enabled=autocast is not None):
        drawn = pipe(
            prompt=[row.prompt for row in rows],
            num_inference_steps=first.num_inference_steps,
            guidance_scale=first.guidance_scale,
            generator=[torch.Generator().manual_seed(row.seed) for row in rows],
            output_type="np",
            **size,
            **(step_callback(on_step) if tells else {}),
        ).images
    finite = np.isfinite(drawn).all(axis=(1, 2, 3))
    return (np.nan_to_num(drawn) * 255).round().astype(np.uint8), finite
