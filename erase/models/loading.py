"""Model families: one adapter each around a stock diffusers pipeline, all behind the `Denoiser` contract."""

import difflib
from pathlib import Path

import diffusers
import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError, safe_open

from ..files import pipeline_files
from ..methods import METHODS, Scope
from ..runtime.progress import quiet_loading
from .base import Conditioning, Denoiser
from .folder import ADVICE, check_weight_files, hub_reason, local_folder, near_models, read_index
from .mmdit import SD3Denoiser
from .unet import SDXLDenoiser, TextEncoderDenoiser, UNetDenoiser

__all__ = ["FAMILIES", "Conditioning", "Denoiser", "find_model", "load_denoiser", "resolve_model"]

FAMILIES: dict[str, type[Denoiser]] = {
    "StableDiffusionPipeline": UNetDenoiser,
    "StableDiffusionXLPipeline": SDXLDenoiser,
    "StableDiffusion3Pipeline": SD3Denoiser,
}

TEXT_ENCODERS: dict[str, type[Denoiser]] = {"StableDiffusionPipeline": TextEncoderDenoiser}
"""Families whose text encoder can be trained instead of the denoiser."""


def resolve_model(
    name: str,
    revision: str | None = None,
    variant: str | None = None,
    scope: Scope = "full",
    method: str | None = None,
) -> Path:
    """A local diffusers folder for `canvas`, a folder or a hub id (downloaded, safetensors only).

    Raises ValueError when its family has no adapter, or none that serves the scope and the method.
    """
    folder = find_model(name, revision, variant)
    check_method_serves(family(folder, scope), method)
    check_weights(folder)
    return folder


def find_model(name: str, revision: str | None = None, variant: str | None = None, on_top: bool = False) -> Path:
    """The local folder of `canvas`, a folder or a hub id (downloaded, safetensors only), whatever the pipeline.

    `on_top`: whether the command also takes --patch and --unet_weights. ValueError says what `name` is instead, or what
    weights it lacks.
    """
    folder = local_folder(name, on_top) or _download(name, revision, variant)
    check_weight_files(folder, variant)
    return folder


def check_weights(folder: Path) -> None:
    """Refuse truncated or unreadable safetensors by their headers alone, before anything is loaded."""
    for path in pipeline_files(folder):
        if path.suffix == ".safetensors":
            try:
                with safe_open(folder / path, "pt"):
                    pass
            except SafetensorError as error:
                raise ValueError(
                    f"The weight file {folder / path} is truncated or unreadable ({error}); copy or download it again."
                ) from error


def _download(name: str, revision: str | None, variant: str | None) -> Path:
    try:
        return Path(DiffusionPipeline.download(name, revision=revision, variant=variant, use_safetensors=True))
    except (OSError, ValueError) as error:
        why = hub_reason(error, revision)
        raise ValueError(f"Cannot find the model {name!r}: {why}.{near_models(name)} {ADVICE}") from error


def pipeline_type(folder: Path) -> type[DiffusionPipeline]:
    """The class of diffusers that a folder's model_index.json names; ValueError where there is no such pipeline."""
    index = read_index(folder)
    name, found = index["_class_name"], getattr(diffusers, index["_class_name"], None)
    if isinstance(found, type) and issubclass(found, DiffusionPipeline):
        return found
    near = difflib.get_close_matches(name, (other for other in dir(diffusers) if other.endswith("Pipeline")), n=2)
    hint = f" It has {' and '.join(near)}." if near else ""
    raise ValueError(
        f"{folder} is a {name!r}, which diffusers {diffusers.__version__} does not have (the folder was written with "
        f"{index.get('_diffusers_version', 'an unknown version')}).{hint} Install a diffusers that has it, or give "
        "another model."
    )


def family(folder: Path, scope: Scope = "full") -> type[Denoiser]:
    """The adapter for the pipeline in `folder`, by the class that its model_index.json names, and for the scope."""
    name = pipeline_type(folder).__name__
    if name not in FAMILIES:
        raise ValueError(f"{folder} is a {name}, which has no adapter here; supported: {', '.join(FAMILIES)}.")
    adapters = [table[name] for table in (FAMILIES, TEXT_ENCODERS) if name in table]
    found = next((adapter for adapter in adapters if scope in adapter.scopes), None)
    if found is None:
        able = [key for table in (FAMILIES, TEXT_ENCODERS) for key, adapter in table.items() if scope in adapter.scopes]
        raise ValueError(
            f"{folder} is a {name}, which --scope {scope} cannot serve; it serves "
            f"{', '.join(scope for adapter in adapters for scope in adapter.scopes)}. Models that have that scope: "
            f"{', '.join(able)}."
        )
    return found


def check_method_serves(adapter: type[Denoiser], method: str | None) -> None:
    """ValueError when the method works on layers that the family does not have."""
    if method and METHODS[method].needs_cross_attention and not adapter.cross_attention:
        able = [name for name, other in FAMILIES.items() if other.cross_attention]
        raise ValueError(
            f"{method} works on cross-attention layers, which {adapter.__name__.removesuffix('Denoiser')} with its "
            f"joint attention does not have; they are in {', '.join(able)}. Methods that need none: "
            f"{', '.join(n for n, m in METHODS.items() if m.kind != 'inference' and not m.needs_cross_attention)}."
        )


def load_denoiser(
    name: str,
    *,
    resolution: int | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
    variant: str | None = None,
    scope: Scope = "full",
) -> Denoiser:
    """Load a pipeline by hub id, folder or `canvas` and wrap it in the adapter of its family and scope."""
    folder = resolve_model(name, revision, variant, scope)
    adapter = family(folder, scope)
    try:
        with quiet_loading():
            pipeline = DiffusionPipeline.from_pretrained(
                folder, dtype=dtype, variant=variant, use_safetensors=True, **adapter.load_kwargs
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"Cannot load the pipeline in {folder}: {error}") from error
    return adapter(pipeline.to(device), resolution)
