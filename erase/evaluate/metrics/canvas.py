"""The canvas's own judge: which object and style a picture shows, and whether it is a proper picture.

Coherent: no farther from real pictures than 99.5 % of real pictures of its class are, and not garbage. FD-canvas is a
Fréchet distance on the canvas's own encoder: not FID. It is bootstrapped over object × style combinations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from ... import canvas
from ...canvas import OBJECTS, STYLES
from ...canvas.nets import GARBAGE, PictureNet, to_unit_range
from ...draw.answers import Answers, Scorer
from ...draw.records import Record
from ...files import file_sha256
from ..config import EvaluateConfig
from ..protocols import Protocol
from ..scoring import Metric, Scored, Summary
from ..statistics import Interval, frechet_bootstrap
from . import classes

NEIGHBOURS = 5
SIDE = canvas.RESOLUTION


@dataclass(frozen=True, kw_only=True)
class CanvasReference:
    """What the package knows about good pictures, in the features of the canvas's encoder."""

    bank: Tensor
    """(M, l) layouts of real pictures after their round trip through the autoencoder."""
    thresholds: Tensor
    """(objects, styles): what 99.5 % of other real pictures of each class keep of a distance to the bank."""
    base_features: Tensor
    """(K, d) features of the base model's own pictures, drawn at seeds of their own."""
    base_labels: Tensor
    """(K, 2) their object and style."""


def load_reference() -> CanvasReference:
    """The shipped reference, in float32."""
    tensors = load_file(canvas.REFERENCE_FILE)
    return CanvasReference(
        bank=tensors["bank"].float(),
        thresholds=tensors["thresholds"],
        base_features=tensors["base_features"].float(),
        base_labels=tensors["base_labels"].long(),
    )


class CanvasScorer(Scorer):
    """The judge's object, style and garbage, the distance to real pictures, and the encoder's features."""

    name = "canvas"
    dimensions = 64

    def fingerprint(self) -> dict[str, Any]:
        files = (
            canvas.REFERENCE_FILE,
            *(f / "diffusion_pytorch_model.safetensors" for f in (canvas.JUDGE_DIR, canvas.ENCODER_DIR)),
        )
        return {path.parent.name: file_sha256(path) for path in files}

    @cached_property
    def reference(self) -> CanvasReference:
        return load_reference()

    @cached_property
    def judge(self) -> PictureNet:
        return PictureNet.from_pretrained(canvas.JUDGE_DIR, dtype=torch.float32).eval()

    @cached_property
    def encoder(self) -> PictureNet:
        return PictureNet.from_pretrained(canvas.ENCODER_DIR, dtype=torch.float32).eval()

    def score(self, pictures: Sequence[np.ndarray], records: Sequence[Record]) -> Answers:
        """Judge pictures of 64 × 64; another size is an error."""
        for picture, record in zip(pictures, records):
            if picture.shape != (SIDE, SIDE, 3):
                height, width = picture.shape[:2]
                raise ValueError(f"The canvas's judge needs {SIDE} × {SIDE} pictures; {record['file']} has {width} × "
                                 f"{height}. Generate them with the canvas, without --height and --width.")  # fmt: skip
        x = torch.from_numpy(np.stack(pictures))
        features, layouts = self.encode(x)
        objects, confidences, styles = self.classify(x)
        distances = distance_to_bank(layouts, self.reference.bank)
        rows = zip(objects.tolist(), confidences.tolist(), styles.tolist(), distances.tolist())
        return Answers([self._columns(*row) for row in rows], features.numpy())

    def _columns(self, obj: int, confidence: float, style: int, distance: float) -> Record:
        return {
            "judged_object": classes.GARBAGE if obj == GARBAGE else OBJECTS[obj],
            "judged_style": STYLES[style],
            "object_confidence": round(confidence, 5),
            "distance": round(distance, 5),
            "coherent": obj != GARBAGE and distance <= self.reference.thresholds[obj, style].item(),
            "garbage": obj == GARBAGE,
        }

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, d) and layouts (N, l) of uint8 pictures (N, 64, 64, 3) from the canvas's second network.

        Features tell classes apart and serve the Fréchet distance; layouts tell pictures apart and serve coherence.
        """
        batches = [to_unit_range(batch) for batch in pictures.split(250)]
        return torch.cat([self.encoder.encode(x) for x in batches]), torch.cat(
            [self.encoder.layout(x) for x in batches]
        )

    @torch.no_grad()
    def classify(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Object class (N,), its probability (N,) and style class (N,) of uint8 pictures (N, 64, 64, 3)."""
        answers = [self.judge(to_unit_range(batch)) for batch in pictures.split(250)]
        confidence, objects = torch.cat([answer[0] for answer in answers]).softmax(1).max(1)
        return objects, confidence, torch.cat([answer[1] for answer in answers]).argmax(1)


def distance_to_bank(layouts: Tensor, bank: Tensor) -> Tensor:
    """Mean distance (N,) of layouts (N, l) to their five nearest in the bank (M, l), axes in units of the bank's sd."""
    scale = bank.std(0) + 1e-6
    layouts, bank = layouts / scale, bank / scale
    exact = "donot_use_mm_for_euclid_dist"
    near = [torch.cdist(part, bank, compute_mode=exact).topk(NEIGHBOURS, largest=False) for part in layouts.split(250)]
    return torch.cat([found.values for found in near]).mean(1)


class CanvasMetric(Metric):
    """UA, IRA, CRA, coherence and FD-canvas."""

    name = "canvas"

    def __init__(self) -> None:
        self.scorer = CanvasScorer()

    def scorers(self) -> list[Scorer]:
        return [self.scorer]

    def check(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Whether every row says which object and style was asked for, and whether it is a target."""
        needed = ("role", "domains", "object", "style")
        if lacking := next((record for record in records if not record.keys() >= set(needed)), None):
            raise ValueError(f"The canvas's metrics need the columns {', '.join(needed)}; {lacking['file']} has only "
                             f"{', '.join(sorted(lacking))}. Give a folder of `erase generate` or `erase evaluate`, or "
                             "--concept, whose rows name the pictures.")  # fmt: skip

    def summarize(self, scored: Scored, base: Scored | None = None) -> Summary:
        counted = classes.class_summary(scored.records)
        distance = fd_canvas(scored.records, scored.features[self.scorer.name], self.scorer.reference)
        return replace(counted, figures=counted.figures | {"fd_canvas": distance})


def fd_canvas(records: Sequence[Record], features: np.ndarray, reference: CanvasReference) -> Interval:
    """Fréchet distance of the retained pictures to the base model's, over the same combinations and other seeds."""
    kept = [row for row, record in enumerate(records) if record["role"] == "retain"]
    clusters = [f"{records[row]['object']}, {records[row]['style']}" for row in kept]
    named = [f"{OBJECTS[o]}, {STYLES[s]}" for o, s in reference.base_labels.tolist()]
    same = [row for row, name in enumerate(named) if name in set(clusters)]
    base = reference.base_features.numpy()[same]
    return frechet_bootstrap(features[kept], clusters, base, [named[row] for row in same])


def build(config: EvaluateConfig, protocol: Protocol) -> Metric:
    """The canvas's own figures; its judge ships with the package, so no flag is needed."""
    return CanvasMetric()
