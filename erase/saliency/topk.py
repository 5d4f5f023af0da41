"""The exact k largest of many scores, without sorting them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

CHUNK = 2**22
"""Weights that top-k looks at in one go: bounds its temporaries to a few tens of MB."""
_BITS = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


@dataclass(frozen=True)
class Cut:
    """Where a ranking is cut to keep k scores: every score above `value`, and k - above of the `ties` equal to it."""

    value: float
    above: int
    ties: int


def kth_largest(scores: Mapping[str, Tensor], k: int, all_reduce: Callable[[Tensor], Tensor] | None = None) -> Cut:
    """The exact k-th largest of all scores together, without sorting: a radix select on the bits of the floats.

    Non-negative floats order as their bit patterns do, so one histogram of 65,536 bins finds 16 bits of the answer: one
    pass for 16-bit floats, two for float32, four for float64; mixed dtypes are compared in the widest.
    scores: ≥ 0 (infinity allowed), any shapes and devices; k in 1..n. Extra memory: the histogram and one chunk.
    all_reduce: sums a histogram over processes that each hold a part of the scores, in the same dtypes.
    Raises ValueError for negative or NaN scores, other dtypes, or k out of range.
    """
    for name, score in scores.items():
        if score.dtype not in _BITS:
            raise ValueError(f"Scores must be float16, bfloat16, float32 or float64; {name!r} is {score.dtype}.")
        if score.numel() and not score.min() >= 0:
            raise ValueError(
                f"Scores must be non-negative numbers; {name!r} has a smallest score of {score.min().item()}."
            )
    dtype = _widest(scores)
    total, prefix, above, ties = 0, 0, 0, 0
    for shift in range(dtype.itemsize * 8 - 16, -1, -16):
        counts = _histogram(scores, dtype, prefix, shift)
        counts = all_reduce(counts) if all_reduce else counts
        total = total or int(counts.sum())
        if not 1 <= k <= total:
            raise ValueError(f"Cannot choose the {k} largest of {total} scores: expected 1 ≤ k ≤ {total}.")
        at_least = counts.flip(0).cumsum(0).flip(0)
        digit = int((at_least >= k - above).sum()) - 1
        ties = int(counts[digit])
        above += int(at_least[digit]) - ties
        prefix = prefix << 16 | digit
    return Cut(torch.tensor(prefix, dtype=_BITS[dtype]).view(dtype).item(), above, ties)


def top_k(scores: Mapping[str, Tensor], k: int) -> dict[str, Tensor]:
    """The k largest scores of all, as bool on the CPU; ties go to the earlier tensor, then the lower flat index."""
    cut, dtype = kth_largest(scores, k), _widest(scores)
    wanted = k - cut.above
    masks = {}
    for name, score in scores.items():
        parts = []
        for chunk in _chunks(score):
            wide = chunk.to(dtype)
            part, tie = wide > cut.value, wide == cut.value
            if wanted < cut.ties:  # only some ties are in: the first ones
                tie[tie.nonzero()[wanted:]] = False
                wanted -= int(tie.sum())
            parts.append((part | tie).cpu())
        masks[name] = torch.cat(parts).reshape(score.shape)
    return masks


def _histogram(scores: Mapping[str, Tensor], dtype: torch.dtype, prefix: int, shift: int) -> Tensor:
    """Counts (65536,) int64 of bits shift..shift+15 among the scores whose higher bits equal `prefix`."""
    counts: Tensor | None = None
    for score in scores.values():
        for chunk in _chunks(score):
            bits = chunk.to(dtype).abs().view(_BITS[dtype])  # abs: negative zero is zero
            if shift < dtype.itemsize * 8 - 16:
                bits = bits[bits >> (shift + 16) == prefix] >> shift & 0xFFFF
            else:
                bits = bits >> shift
            part = torch.bincount(bits, minlength=65536)
            counts = part if counts is None else counts.add_(part.to(counts.device))
    return torch.zeros(65536, dtype=torch.int64) if counts is None else counts


def _widest(scores: Mapping[str, Tensor]) -> torch.dtype:
    """The narrowest float dtype that holds every score exactly."""
    dtypes = [score.dtype for score in scores.values()]
    return reduce(torch.promote_types, dtypes) if dtypes else torch.float32


def _chunks(tensor: Tensor) -> Iterator[Tensor]:
    """The elements in flat order, at most about CHUNK at a time and without copying the whole of a strided tensor."""
    if tensor.is_contiguous():
        yield from tensor.view(-1).split(CHUNK)
    else:
        rows = max(1, CHUNK * len(tensor) // tensor.numel())
        yield from (part.reshape(-1) for part in tensor.split(rows))
