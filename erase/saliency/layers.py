"""Layers of a network by name, and how many of their weights are salient."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class LayerDensity:
    """How many weights of a parameter, or of a block, are salient."""

    name: str
    salient: int
    total: int

    @property
    def density(self) -> float:
        """Share of salient weights, 0..1."""
        return self.salient / self.total if self.total else 0.0


def block_of(name: str) -> str:
    """Leading part of a parameter's name: two parts when the second is a number, else one."""
    parts = name.split(".")
    return ".".join(parts[:2]) if len(parts) > 1 and parts[1].isdigit() else parts[0]


def grouped(layers: Iterable[tuple[str, LayerDensity]]) -> list[LayerDensity]:
    """Sums of the layers under each key, in order of first appearance."""
    sums: dict[str, LayerDensity] = {}
    for key, layer in layers:
        old = sums.get(key, LayerDensity(key, 0, 0))
        sums[key] = LayerDensity(key, old.salient + layer.salient, old.total + layer.total)
    return list(sums.values())


def kind_of(name: str) -> str:
    """`norm`, `attention`, `conv` or `other`, by the names that diffusers and torchvision give their layers."""
    words = {"norm": ("norm", "bn"), "attention": ("attn",), "conv": ("conv",)}
    return next((kind for kind, marks in words.items() if any(mark in name for mark in marks)), "other")
