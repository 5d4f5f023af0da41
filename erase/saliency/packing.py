"""Compact encodings of boolean masks: one bit a weight, or one byte a gap where few weights are set."""

from collections.abc import Sequence
from math import prod
from typing import Literal

import numpy as np
import torch
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
