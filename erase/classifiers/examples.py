"""Labelled examples in memory, and the ways in which a user may hand them over."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True, kw_only=True)
class Normalization:
    """How a picture's bytes become a network's inputs: (x / 255 − mean) / std, channel by channel."""

    mean: tuple[float, ...]
    """Mean of each channel, in 0–1."""
    std: tuple[float, ...]
    """Standard deviation of each channel, above 0."""

    def __call__(self, pictures: Tensor) -> Tensor:
        """(B, C, H, W) uint8 → float32."""
        mean, std = (torch.tensor(values, device=pictures.device)[:, None, None] for values in (self.mean, self.std))
        return (pictures.float() / 255 - mean) / std


@dataclass(frozen=True, kw_only=True)
class Examples:
    """N inputs with their classes; pictures may stay bytes until a batch is drawn."""

    inputs: Tensor
    """(N, …) float32 as the network reads them, or (N, C, H, W) uint8 together with `normalization`."""
    labels: Tensor
    """(N,) int64, 0 … classes − 1."""
    normalization: Normalization | None = None
    """Of uint8 inputs."""
    padding: int = 0
    """Training pictures are moved by up to so many pixels and mirrored; 0 leaves them as they are."""

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.labels):
            raise ValueError(f"{len(self.inputs)} inputs and {len(self.labels)} labels do not go together.")
        if self.inputs.is_floating_point() and not torch.isfinite(self.inputs).all():
            rows = (~torch.isfinite(self.inputs).flatten(1).all(1)).nonzero().flatten()
            raise ValueError(
                f"{len(rows)} of {len(self.inputs)} inputs hold NaN or infinity, the first at row {int(rows[0])}: "
                "mend or drop them."
            )
        if (self.inputs.dtype == torch.uint8) != (self.normalization is not None):
            raise ValueError("uint8 inputs need a normalization, and only they.")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Tensor) -> "Examples":
        """The given rows, by index or bool."""
        return replace(self, inputs=self.inputs[rows], labels=self.labels[rows])

    def relabelled(self, labels: Tensor) -> "Examples":
        """The same inputs with other labels."""
        return replace(self, labels=labels)

    def batch(self, rows: Tensor, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
        """Inputs of some rows as the network reads them; with a generator, moved and mirrored as in training."""
        inputs = self.inputs[rows].to(device)
        if generator is not None and self.padding:
            inputs = moved(inputs, self.padding, generator)
        return inputs if self.normalization is None else self.normalization(inputs)


def moved(pictures: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Each picture (B, C, H, W) shifted by up to `padding` pixels into black, and mirrored or not."""
    count, _, height, width = pictures.shape
    wide = pad(pictures, [padding] * 4)
    top, left = torch.randint(2 * padding + 1, (2, count), generator=generator)
    mirrored = torch.rand(count, generator=generator) < 0.5
    across = torch.arange(width).repeat(count, 1)
    across = torch.where(mirrored[:, None], across.flip(1), across) + left[:, None]
    down = torch.arange(height) + top[:, None]
    rows = torch.arange(count)[:, None, None]
    picked = wide.permute(0, 2, 3, 1)[rows, down[:, :, None], across[:, None, :]]
    return picked.permute(0, 3, 1, 2)


def from_arrays(inputs: Any, labels: Any, name: str) -> Examples:
    """Examples from arrays or tensors; uint8 pictures become 0–1."""
    inputs, labels = _tensor(inputs, f"inputs of the {name} set"), _tensor(labels, f"labels of the {name} set")
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
        raise ValueError(
            f"The labels of the {name} set must be one whole number each, got {tuple(labels.shape)} of {labels.dtype}."
        )
    if inputs.dtype == torch.uint8 and inputs.ndim == 4:
        channels = inputs.shape[1]
        if channels not in (1, 3):
            raise ValueError(
                f"Pictures of the {name} set must be (N, C, H, W) with 1 or 3 channels, got {tuple(inputs.shape)}."
            )
        unit = Normalization(mean=(0.0,) * channels, std=(1.0,) * channels)
        return Examples(inputs=inputs, labels=labels.long(), normalization=unit)
    return Examples(inputs=inputs.float(), labels=labels.long())


def _tensor(values: Any, what: str) -> Tensor:
    """On the CPU, without a graph; ValueError for text, and for objects or rows of different lengths."""
    if isinstance(values, Tensor):
        return values.detach().cpu()
    array = np.asarray(values)
    if array.dtype.kind not in "biufc":
        first = array.flat[0] if array.size else array.dtype
        raise ValueError(
            f"The {what} must be numbers, got {first!r:.60}. A class is the number of its logit, 0 for the first: "
            "map names with {name: number}; make arrays of pictures or text before."
        )
    return torch.as_tensor(array)


def as_array(values: Any) -> np.ndarray:
    return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)


def check_split(forget: Examples, retain: Examples, num_classes: int, *, overlap: bool = True) -> None:
    """ValueError unless there is something to forget and to keep, of the model's classes, and nothing is both.

    overlap: whether to look for examples that are in both; a set that was split by rows may hold true duplicates.
    """
    for name, examples in (("forget", forget), ("retain", retain)):
        if not len(examples):
            raise ValueError(f"The {name} set is empty; there must be something to forget and something to keep.")
        low, high = int(examples.labels.min()), int(examples.labels.max())
        if low < 0 or high >= num_classes:
            raise ValueError(
                f"The {name} set has labels {low} … {high}, but the model has {num_classes} classes (0 … "
                f"{num_classes - 1}): the logits do not match the labels."
            )
    if forget.inputs.shape[1:] != retain.inputs.shape[1:]:
        shapes = tuple(forget.inputs.shape[1:]), tuple(retain.inputs.shape[1:])
        raise ValueError(f"Inputs to forget are {shapes[0]} and those to keep {shapes[1]}: they must be alike.")
    both = len(_keys(forget) & _keys(retain)) if overlap else 0
    if both:
        raise ValueError(
            f"{both} examples are in the forget set and in the retain set: what is to be forgotten would be trained "
            "on. Take them out of the retain set."
        )


def _keys(examples: Examples) -> set[bytes]:
    """Each example by its own bytes, its label included."""
    rows = np.ascontiguousarray(examples.inputs.flatten(1).numpy())
    return {row.tobytes() + int(label).to_bytes(8, "little") for row, label in zip(rows, examples.labels)}


def forget_rows(labels: Tensor, *, fraction: float | None, label: int | None, indices: Sequence[int] | None, seed: int):
    """Bool (N,): a random share, a whole class, or the given rows; exactly one of the three must be named."""
    if sum(choice is not None for choice in (fraction, label, indices)) != 1:
        raise ValueError(
            f"Say what to forget in one way: forget_fraction ({fraction}), forget_class ({label}) or forget_indices."
        )
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    if fraction is not None:
        if not 0 < fraction < 1:
            raise ValueError(f"forget_fraction must be a share in (0, 1), got {fraction}; 0.1 is a tenth.")
        count = max(1, round(fraction * len(labels)))
        chosen[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[:count]] = True
    elif label is not None:
        chosen = labels == label
        if not chosen.any():
            raise ValueError(f"There is no example of class {label}; the classes are {sorted(set(labels.tolist()))}.")
    else:
        rows = torch.as_tensor(list(indices or ()), dtype=torch.long)
        if not len(rows) or int(rows.min()) < 0 or int(rows.max()) >= len(labels):
            raise ValueError(f"forget_indices must name rows 0 … {len(labels) - 1} of the training set, got {rows}.")
        chosen[rows] = True
    return chosen
