"""Patches: an erasure as one small safetensors file that turns the stock base into the erased pipeline, and back.

A patch holds, for each changed tensor, the new values of the weights that changed and their places (one byte a gap
where few changed, one bit a weight otherwise), and the base's hash in each precision that people load it in.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..files import atomic_save, read_safetensors, weights_hash
from ..saliency.packing import decode_mask, encode_mask

PATCH_FORMAT = "erase.patch/1"
PATCH_FILE = "erase-patch.safetensors"
PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Patch:
    """The changed weights of one component of a pipeline."""

    component: str
    """Which part of the pipeline: `unet`, `transformer` or `text_encoder`."""
    masks: dict[str, Tensor]
    """Parameter name → bool tensor, True where the weight changed."""
    values: dict[str, Tensor]
    """Parameter name → the new values at those places, in flat order."""
    metadata: dict[str, str]
    """What it erases, and the hash of the base that it fits."""


@dataclass
class _Applied:
    path: str
    places: dict[str, Tensor]
    originals: dict[str, Tensor]


_applied: "WeakKeyDictionary[nn.Module, _Applied]" = WeakKeyDictionary()


def bits_differ(a: Tensor, b: Tensor) -> Tensor:
    """Where two tensors of equal dtype differ in any bit (NaN and −0 included); bool of their shape."""
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return a.contiguous().view(kind) != b.contiguous().view(kind)


def make_patch(
    base: Mapping[str, Tensor], erased: Mapping[str, Tensor], component: str, metadata: Mapping[str, str]
) -> Patch:
    """The difference between two sets of float32 weights; ValueError when there is none."""
    masks = {name: bits_differ(base[name], weight) for name, weight in erased.items()}
    masks = {name: mask for name, mask in masks.items() if bool(mask.any())}
    if not masks:
        raise ValueError("The erased weights equal the base's: nothing was erased, so there is no patch to write.")
    hashes = {f"base_{name}": weights_hash(base.items(), dtype) for name, dtype in PRECISIONS.items()}
    values = {name: erased[name][mask] for name, mask in masks.items()}
    return Patch(component, masks, values, dict(metadata) | hashes)


def save_patch(patch: Patch, path: Path) -> None:
    """Write a patch; the file is whole or absent."""
    tensors, kinds = {}, {}
    for name, mask in patch.masks.items():
        kinds[name], tensors[f"places/{name}"] = encode_mask(mask)
        tensors[f"values/{name}"] = patch.values[name]
    layout = {name: [kinds[name], list(mask.shape)] for name, mask in patch.masks.items()}
    header = {"format": PATCH_FORMAT, "component": patch.component, "layout": json.dumps(layout)}
    atomic_save(tensors, path, dict(patch.metadata) | header)


def load_patch(path: str | Path) -> Patch:
    """Read a patch; FileNotFoundError or ValueError for anything but a whole one."""
    tensors, metadata = read_safetensors(path)
    if metadata.get("format") != PATCH_FORMAT:
        raise ValueError(
            f"{path} is not an erase patch (format {metadata.get('format')!r}, expected {PATCH_FORMAT!r})."
        )
    layout = json.loads(metadata.pop("layout"))
    masks = {name: decode_mask(kind, tensors[f"places/{name}"], shape) for name, (kind, shape) in layout.items()}
    return Patch(metadata["component"], masks, {name: tensors[f"values/{name}"] for name in layout}, metadata)


@torch.no_grad()
def apply_patch(pipe: Any, path: str | Path, strength: float = 1.0) -> None:
    """Turn a base pipeline into the erased one in place: w ← w_base + strength · (w_erased − w_base) where it changed.

    Args:
        pipe: a diffusers pipeline of the very base that the patch was made from, in float32, float16 or bfloat16.
        path: the patch file.
        strength: 1 gives the erased weights bit for bit, 0 the base's; between and beyond interpolate.

    Calling it again, with the same or another patch, starts from the base's weights; `remove_patch` gives them back.
    Raises ValueError when the pipeline is not that base.
    """
    patch = load_patch(path)
    module = getattr(pipe, patch.component, None)
    if module is None:
        raise ValueError(f"{path} patches a pipeline's {patch.component}; {type(pipe).__name__} has none.")
    remove_patch(pipe, patch.component)
    _check_base(module, patch, path)
    parameters = dict(module.named_parameters())
    originals = {name: parameters[name][mask.to(parameters[name].device)] for name, mask in patch.masks.items()}
    for name, values in patch.values.items():
        old, weight = originals[name], parameters[name]
        new = values.to(weight)
        if strength != 1.0:
            new = (old.float() + strength * (new.float() - old.float())).to(weight)
        weight[patch.masks[name].to(weight.device)] = old if strength == 0 else new
    _applied[module] = _Applied(str(path), patch.masks, originals)


@torch.no_grad()
def remove_patch(pipe: Any, component: str | None = None) -> None:
    """Give the base's weights back, bit for bit; nothing happens to a pipeline without a patch."""
    for name in [component] if component else ["unet", "transformer", "text_encoder"]:
        module = getattr(pipe, name, None)
        applied = _applied.pop(module, None) if module is not None else None
        if module is None or applied is None:
            continue
        parameters = dict(module.named_parameters())
        for key, values in applied.originals.items():
            parameters[key][applied.places[key].to(parameters[key].device)] = values.to(parameters[key])


def _check_base(module: nn.Module, patch: Patch, path: str | Path) -> None:
    dtype = next(module.parameters()).dtype
    name = str(dtype).removeprefix("torch.")
    if name not in PRECISIONS:
        raise ValueError(f"Patches apply to {', '.join(PRECISIONS)} weights; this pipeline is in {name}.")
    found, expected = weights_hash(module, dtype), patch.metadata[f"base_{name}"]
    if found != expected:
        raise ValueError(
            f"{path} was made for another base: it expects {patch.metadata.get('model', 'weights')} with "
            f"sha256 {expected[:12]}… in {name}, this {patch.component} has {found[:12]}…. Load that base, unmodified."
        )
