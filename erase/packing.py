"""Compact encodings of boolean masks, and safetensors files that are whole or absent."""

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

MaskKind = Literal["bits", "gaps"]
ESCAPE = 255


def pack_bits(mask: Tensor) -> Tensor:
    """One bit a weight: byte i holds weights 8i..8i+7, the first in the lowest bit.

    mask: bool, any shape with n elements. Returns uint8 (ceil(n / 8),) on the CPU, unused high bits zero.
    """
    return torch.from_numpy(np.packbits(_flat(mask), bitorder="little"))


def unpack_bits(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """Inverse of `pack_bits`: bool of `shape`. Raises ValueError when the number of bytes does not fit the shape."""
    n = prod(shape)
    code = _bytes(packed)
    if code.size != (n + 7) // 8:
        raise ValueError(
            f"A packed mask of shape {tuple(shape)} takes {(n + 7) // 8} bytes, got {code.size}: "
            "the file is damaged or belongs to another model. Make the mask again."
        )
    return torch.from_numpy(np.unpackbits(code, count=n, bitorder="little").view(np.bool_)).reshape(tuple(shape))


def encode_gaps(mask: Tensor) -> Tensor:
    """One byte for each set position: the number of clear positions before it, 255 meaning "skip 255 and go on".

    A gap g is written as g // 255 escapes and then g % 255 (0..254), so at density d the code takes about
    1 + 1 / (255 d) bytes a set position. mask: bool, any shape. Returns uint8 (m,) on the CPU, empty for an empty mask.
    """
    positions = np.flatnonzero(_flat(mask))
    gaps = np.diff(positions, prepend=-1) - 1
    ends = np.cumsum(gaps // ESCAPE + 1) - 1
    code = np.full(int(ends[-1]) + 1 if ends.size else 0, ESCAPE, dtype=np.uint8)
    code[ends] = gaps % ESCAPE
    return torch.from_numpy(code)


def decode_gaps(code: Tensor, shape: Sequence[int]) -> Tensor:
    """Inverse of `encode_gaps`: bool of `shape`. Raises ValueError on a code that is cut off or runs too far."""
    steps = _bytes(code)
    if steps.size and steps[-1] == ESCAPE:
        raise ValueError(
            "A gap code ends in an escape byte (255), so its end is missing. Make or download the file again."
        )
    ends = steps != ESCAPE
    positions = (np.cumsum(steps.astype(np.int64) + ends) - 1)[ends]
    flat = np.zeros(prod(shape), dtype=np.bool_)
    if positions.size and positions[-1] >= flat.size:
        raise ValueError(
            f"A gap code reaches position {positions[-1]}, but shape {tuple(shape)} has {flat.size} weights: the"
            "  file is damaged or belongs to another model."
        )
    flat[positions] = True
    return torch.from_numpy(flat).reshape(tuple(shape))


def encode_mask(mask: Tensor) -> tuple[MaskKind, Tensor]:
    """The smaller of the two encodings and its name. mask: bool, any shape; returns uint8 (m,) on the CPU."""
    # A gap code has at least one byte for each set position: past one in eight the bits are never the larger.
    if 8 * int(mask.sum()) < mask.numel():
        gaps = encode_gaps(mask)
        if gaps.numel() < (mask.numel() + 7) // 8:
            return "gaps", gaps
    return "bits", pack_bits(mask)


def decode_mask(kind: str, code: Tensor, shape: Sequence[int]) -> Tensor:
    """Inverse of `encode_mask`. Raises ValueError on an unknown kind and on a code that does not fit the shape."""
    decoders = {"bits": unpack_bits, "gaps": decode_gaps}
    if kind not in decoders:
        raise ValueError(
            f"Unknown mask encoding {kind!r}: expected one of {sorted(decoders)}. Is the file from a newer version?"
        )
    return decoders[kind](code, shape)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary name beside `path`, renamed to `path` when the block succeeds and removed when it fails.

    A reader sees the old file or the new one, never a part. Missing folders are made. The suffix is kept.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.tmp{target.suffix}")
    try:
        yield temporary
        with open(temporary, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def atomic_save(tensors: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file that is whole or absent. Raises OSError (ENOSPC included) with nothing left behind."""
    try:
        with atomic_path(path) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, dict(metadata or {}))
    except SafetensorError as error:
        # safetensors wraps the operating system's error and keeps its number only in the text.
        full = f"os error {errno.ENOSPC}" in str(error)
        advice = "the disk is full: free some space and save again" if full else "check that the folder can be written"
        raise OSError(
            errno.ENOSPC if full else errno.EIO, f"cannot be written ({error}); {advice}", str(path)
        ) from error


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file, on the CPU.

    Raises FileNotFoundError when it is missing, ValueError when it is cut off, damaged or cannot be read.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"{path} does not exist. Check the path, or make the file first.")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is not a whole safetensors file ({error}). It may have been cut off while it was copied: "
            "make or download it again."
        ) from error


def _flat(mask: Tensor) -> np.ndarray:
    """The mask's elements in order as a numpy bool vector; ValueError for any other dtype."""
    if mask.dtype != torch.bool:
        raise ValueError(f"A mask has dtype torch.bool, got {mask.dtype}. Compare with a threshold first.")
    return mask.detach().cpu().reshape(-1).numpy()


def _bytes(code: Tensor) -> np.ndarray:
    """The code as a numpy uint8 vector; ValueError for any other dtype or rank."""
    if code.dtype != torch.uint8 or code.ndim != 1:
        raise ValueError(f"A mask code is a uint8 vector, got {code.dtype} of shape {tuple(code.shape)}.")
    return code.detach().cpu().numpy()
