"""LPIPS (arXiv 1801.03924): how far two pictures are apart in the eyes of a network, version 0.1 on AlexNet.

    d(x, y) = Σ_layers mean_places Σ_channels w · (x̂ − ŷ)²,  x̂ and ŷ of unit length over the channels of a place

One .safetensors file holds all weights, under these names:

    features.N.weight, features.N.bias   N = 0, 3, 6, 8, 10: AlexNet's convolutions, as torchvision numbers them
    linK.weight                          K = 0 … 4: (1, C, 1, 1), w of the layers, as the authors' alex.pth (there
                                         linK.model.1.weight)
"""

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...data.pictures import read_picture
from ...draw.answers import Answers, Scorer
from ...draw.records import Record, hashed_records
from ...files import file_sha256, read_safetensors
from .encoders import default_device

LAYERS = {0: (4, 2), 3: (1, 2), 6: (1, 1), 8: (1, 1), 10: (1, 1)}
"""AlexNet's convolutions: number → (stride, padding)."""
POOLED_BEFORE = (3, 6)
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Mean and spread of ImageNet's channels when pixels lie in [−1, 1]."""
SMALLEST_SIDE = 31
"""Pixels that the pooling of AlexNet needs."""
SOURCES = (
    "torchvision's alexnet-owt-7be5be79.pth and weights/v0.1/alex.pth of github.com/richzhang/PerceptualSimilarity"
)


def alexnet_layers(pixels: Tensor, weights: dict[str, Tensor]) -> list[Tensor]:
    """The five ReLU layers (B, C, h, w) of pixels (B, 3, H, W) in [−1, 1]."""
    x = (pixels - pixels.new_tensor(SHIFT).view(3, 1, 1)) / pixels.new_tensor(SCALE).view(3, 1, 1)
    layers = []
    for number, (stride, padding) in LAYERS.items():
        if number in POOLED_BEFORE:
            x = F.max_pool2d(x, 3, stride=2)
        x = F.relu(
            F.conv2d(x, weights[f"features.{number}.weight"], weights[f"features.{number}.bias"], stride, padding)
        )
        layers.append(x)
    return layers


def lpips(x: Tensor, y: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """Distances (B,) of pictures x and y, each (B, 3, H, W) in [−1, 1]."""
    total = x.new_zeros(len(x))
    for k, (a, b) in enumerate(zip(alexnet_layers(x, weights), alexnet_layers(y, weights))):
        unit_a, unit_b = (z / (z.norm(dim=1, keepdim=True) + 1e-10) for z in (a, b))
        total += ((unit_a - unit_b).square() * weights[f"lin{k}.weight"]).sum(1).mean((1, 2))
    return total


class LpipsScorer(Scorer):
    """Column `lpips`: the distance of each picture to the base model's picture of the same row."""

    name: ClassVar[str] = "lpips"

    def __init__(self, weights: Path | None, base: Path | None = None, device: torch.device | None = None):
        """`base`: the folder of the base model's pictures; without it, only the weights can be checked."""
        self.weights, self.base, self.device = weights, base, device or default_device()

    def fingerprint(self) -> dict[str, Any]:
        return {"network": "LPIPS 0.1, AlexNet", "sha256": self._sha256}

    def question(self, record: Record) -> Record:
        return super().question(record) | {"base_sha256": self._base_records[record["id"]]["sha256"]}

    @cached_property
    def _sha256(self) -> str:
        if self.weights is None or not self.weights.is_file():
            found = "no path was given" if self.weights is None else f"{self.weights} does not exist"
            raise ValueError(
                f"LPIPS needs a .safetensors file of its weights: {found}. Make it from {SOURCES} (its names are in "
                "erase/evaluate/metrics/lpips.py) and give it with --lpips_weights."
            )
        return file_sha256(self.weights)

    @cached_property
    def network(self) -> dict[str, Tensor]:
        """The weights by name. ValueError when one is missing."""
        assert self._sha256 and self.weights is not None
        weights = read_safetensors(self.weights)[0]
        wanted = {f"features.{n}.{kind}" for n in LAYERS for kind in ("weight", "bias")}
        wanted |= {f"lin{k}.weight" for k in range(len(LAYERS))}
        if missing := sorted(wanted - set(weights)):
            raise ValueError(f"{self.weights} lacks {', '.join(missing)}; it must hold {', '.join(sorted(wanted))}.")
        return {name: weights[name].float().to(self.device) for name in wanted}

    @cached_property
    def _base_records(self) -> dict[str, Record]:
        assert self.base is not None
        return {record["id"]: record for record in hashed_records(self.base)}

    @torch.no_grad()
    def score(self, pictures: Sequence[np.ndarray], records: Sequence[Record]) -> Answers:
        return Answers([{"lpips": self._distance(p, record)} for p, record in zip(pictures, records)])

    def _distance(self, picture: np.ndarray, record: Record) -> float:
        assert self.base is not None
        other = read_picture(self.base / self._base_records[record["id"]]["file"])
        if picture.shape != other.shape or min(picture.shape[:2]) < SMALLEST_SIDE:
            raise ValueError(
                f"LPIPS compares pictures of one size, {SMALLEST_SIDE} pixels or more; picture {record['id']!r} is "
                f"{picture.shape[1]}×{picture.shape[0]}, the base's {other.shape[1]}×{other.shape[0]}."
            )
        x, y = (torch.from_numpy(p.copy()).permute(2, 0, 1)[None].to(self.device) / 127.5 - 1 for p in (picture, other))
        distance = lpips(x, y, self.network).item()
        if not math.isfinite(distance):
            raise ValueError(
                f"LPIPS of picture {record['id']!r} is {distance}: are the weights in {self.weights} whole?"
            )
        return distance
