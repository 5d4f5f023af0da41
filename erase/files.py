"""Files and folders: hashes that identify a model, and JSON that is whole or absent."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .packing import atomic_path

WEIGHT_SUFFIXES = (".safetensors",)


def write_json(path: Path, value: Any) -> None:
    """Write JSON under a temporary name, then rename."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text under a temporary name, then rename."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def folder_hash(folder: Path) -> str:
    """sha256 over the names and bytes of a pipeline folder's weights and configs: what its pictures depend on."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix in (*WEIGHT_SUFFIXES, ".json", ".txt", ".model"):
            digest.update(path.relative_to(folder).as_posix().encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def weights_hash(weights: nn.Module | Iterable[tuple[str, Tensor]], dtype: torch.dtype = torch.float32) -> str:
    """sha256 over the names, shapes and bytes of weights cast to `dtype`."""
    named = sorted(weights.named_parameters()) if isinstance(weights, nn.Module) else sorted(weights)
    digest = hashlib.sha256()
    for name, tensor in named:
        digest.update(f"{name}:{tuple(tensor.shape)}".encode())
        raw = tensor.detach().to("cpu", dtype).contiguous().view(torch.uint8)
        digest.update(memoryview(raw.reshape(-1).numpy()))
    return digest.hexdigest()
