"""How far a model's pictures are from real ones, or from the base model's: FID, KID, CMMD, LPIPS.

Each figure's name says what it is. `fid` is measured against real pictures with the published Inception weights, and
nothing else is called so: against the base model's pictures it is `fid_vs_base`, with weights that cannot be checked
`fd_inception`, with another encoder `fd_encoder`. FID falls as N grows, so N and a floor (real pictures against real
pictures, at this N) stand beside it; KID and CMMD have no such bias.

A protocol that draws both target and retained prompts measures the retained ones: what an erasure costs elsewhere.
Features are mapped from disk and read in blocks; memory does not grow with the number of pictures.
"""

from collections.abc import Callable
from functools import cache, cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from ...draw.answers import Scorer
from ..config import EvaluateConfig
from ..protocols import Protocol
from ..scoring import Metric, Scored, Summary, by_column, score_folder
from ..statistics import Interval, clustered_mean, resampled
from .distance import (
    BLOCK,
    Moments,
    cmmd,
    frechet_distance_of,
    frechet_distance_of_features,
    kid,
    mmd2_unbiased,
    moments_of,
    polynomial_kernel,
    read_rows,
)
from .encoders import ClipImageScorer, EncoderScorer, InceptionScorer
from .lpips import LpipsScorer
from .reference import Reference

REFERENCE_ROWS = 1000
"""Reference pictures that a resample of KID or CMMD is compared with."""
FLOOR_SPLITS = 5
T95_4 = 2.7764451051977987  # Student's t, 0.975, 4 degrees of freedom: what FLOOR_SPLITS leave
Distance = Callable[[np.ndarray, np.ndarray], float]


def frechet_floor(features: np.ndarray, n: int, seed: int = 0) -> Interval:
    """Fréchet distance between n pictures and the other pictures of the same kind: what a perfect model would get.

    Features (N, d); n at most half of N. The mean over random splits, and the range of one split at 95 %.
    """
    n = min(n, len(features) // 2)
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(FLOOR_SPLITS):
        order = rng.permutation(len(features))
        parts = (_moments_of_rows(features, np.sort(rows)) for rows in (order[:n], order[n:]))
        values.append(frechet_distance_of(*parts))
    middle, half = float(np.mean(values)), T95_4 * float(np.std(values, ddof=1))
    return Interval(middle, max(0.0, middle - half), middle + half, n)


def _moments_of_rows(features: np.ndarray, rows: np.ndarray, block: int = BLOCK) -> Moments:
    moments = Moments(features.shape[1])
    for first in range(0, len(rows), block):
        moments.update(read_rows(features, rows[first : first + block]))
    return moments


def measured(scored: Scored) -> Scored:
    """The pictures that fidelity is about: the retained ones where a protocol has both roles, else all."""
    roles = {record.get("role") for record in scored.records}
    return scored.where(role="retain") if {"target", "retain"} <= roles else scored


def _enough(scored: Scored) -> Scored:
    if len(scored.records) < 2:
        raise ValueError(f"A distance between sets of pictures needs at least two of them, got {len(scored.records)} "
                         f"in {scored.folder}.")  # fmt: skip
    return scored


def _other(scored: Scored, base: Scored | None) -> Scored | None:
    """The base model's pictures, unless these are they."""
    return None if base is None or base.folder == scored.folder else base


def _paired(distance: Distance, a: np.ndarray, b: np.ndarray) -> Callable[[np.ndarray], float]:
    """The distance of some rows of both sides, which are pictures of the same prompts."""
    return lambda rows: distance(read_rows(a, rows), read_rows(b, rows))


def _at_least_zero(figure: Interval) -> Interval:
    return Interval(figure.value, max(0.0, figure.low), figure.high, figure.n)


class FrechetMetric(Metric):
    """FID: Fréchet distance (arXiv 1706.08500) to real pictures, and the floor of real pictures among themselves."""

    name: ClassVar[str] = "fid"

    def __init__(self, scorer: Scorer, reference: Reference):
        self.scorer, self.reference = scorer, reference
        self._floors: dict[int, Interval] = {}

    def scorers(self) -> list[Scorer]:
        return [self.scorer]

    @cached_property
    def _moments(self) -> Moments:
        return self.reference.moments(self.scorer)

    def summarize(self, scored: Scored, base: Scored | None = None) -> Summary:
        """fid with an interval over prompts; the reference counts as known. fid_floor where its pictures are there."""
        scored = _enough(measured(scored))
        features, title = scored.features[self.scorer.name], _frechet_name(self.scorer)
        value = frechet_distance_of(moments_of(features), self._moments)
        figure = resampled(
            value,
            lambda rows: frechet_distance_of(moments_of(read_rows(features, rows)), self._moments),
            by_column(scored.records, "prompt"),
        )
        figures = {title: _at_least_zero(figure)}
        if self.reference.path.is_dir() and self._moments.n >= 4:
            figures[f"{title}_floor"] = self._floor(len(features))
        return Summary(figures, details={"reference": str(self.reference.path), "reference_n": self._moments.n})

    def _floor(self, n: int) -> Interval:
        """The same for base and erased, so it is measured once."""
        if n not in self._floors:
            self._floors[n] = frechet_floor(self.reference.features(self.scorer), n)
        return self._floors[n]


class FrechetVsBaseMetric(Metric):
    """FID-vs-base: Fréchet distance to the base model's pictures of the same rows. Another number than FID."""

    name: ClassVar[str] = "fid_vs_base"

    def __init__(self, scorer: Scorer):
        self.scorer = scorer

    def scorers(self) -> list[Scorer]:
        return [self.scorer]

    def summarize(self, scored: Scored, base: Scored | None = None) -> Summary:
        """Erased: fid_vs_base. Base: fid_vs_base_floor, one half of its own pictures against the other."""
        if base is None:
            return Summary({})
        title = f"{_frechet_name(self.scorer)}_vs_base"
        ours = _enough(measured(scored))
        a, other = ours.features[self.scorer.name], _other(scored, base)
        if other is None:
            return Summary({f"{title}_floor": frechet_floor(a, len(a) // 2)} if len(a) >= 4 else {})
        b = _enough(measured(other)).features[self.scorer.name]
        value = frechet_distance_of(moments_of(a), moments_of(b))
        prompts = by_column(ours.records, "prompt")
        figure = resampled(value, _paired(frechet_distance_of_features, a, b), prompts)
        return Summary({title: _at_least_zero(figure)})


class EncoderFrechetMetric(FrechetMetric):
    """Fréchet distance to real pictures on any encoder's features; it is not FID."""

    name: ClassVar[str] = "fd_encoder"


class EncoderFrechetVsBaseMetric(FrechetVsBaseMetric):
    """Fréchet distance to the base's pictures on any encoder's features; it is not FID."""

    name: ClassVar[str] = "fd_encoder_vs_base"


def _frechet_name(scorer: Scorer) -> str:
    if isinstance(scorer, InceptionScorer):
        return "fid" if scorer.is_published else "fd_inception"
    return f"fd_{scorer.name}"


class KernelMetric(Metric):
    """A kernel distance to real pictures (where there is a reference) and to the base model's."""

    distance: ClassVar[Distance]
    """Of all features (N, d) and (M, d)."""
    distance_of_few: ClassVar[Distance]
    """The same for up to REFERENCE_ROWS rows."""

    def __init__(self, scorer: Scorer, reference: Reference | None = None):
        if reference is not None and reference.path.is_file():
            raise ValueError(
                f"{self.name} compares single pictures, and {reference.path} holds their mean and covariance only: "
                f"give the folder of real pictures, or leave {self.name} out of --metrics."
            )
        self.scorer, self.reference = scorer, reference

    def scorers(self) -> list[Scorer]:
        return [self.scorer]

    @property
    def title(self) -> str:
        """The figure's name."""
        raise NotImplementedError

    def summarize(self, scored: Scored, base: Scored | None = None) -> Summary:
        """Distances may fall below zero: they are unbiased, and equal sets are at zero on average."""
        ours = _enough(measured(scored))
        a, prompts = ours.features[self.scorer.name], by_column(ours.records, "prompt")
        figures = {}
        if self.reference is not None:
            figures[self.title] = self._to_real(a, self.reference.features(self.scorer), prompts)
        if (other := _other(scored, base)) is not None:
            b = _enough(measured(other)).features[self.scorer.name]
            of_some = _paired(type(self).distance_of_few, a, b)
            figures[f"{self.title}_vs_base"] = resampled(type(self).distance(a, b), of_some, prompts)
        return Summary(figures)

    def _to_real(self, a: np.ndarray, b: np.ndarray, prompts: list[str]) -> Interval:
        rng, size = np.random.default_rng(0), min(len(b), REFERENCE_ROWS)

        def of_some(rows: np.ndarray) -> float:
            drawn = np.sort(rng.choice(len(b), size, replace=False))
            return type(self).distance_of_few(read_rows(a, rows), read_rows(b, drawn))

        return resampled(type(self).distance(a, b), of_some, prompts)


class KidMetric(KernelMetric):
    """KID (arXiv 1801.01401): the mean over 100 random subsets of 1,000, as the field's tools take it."""

    name: ClassVar[str] = "kid"
    distance = staticmethod(lambda a, b: kid(a, b)[0])
    distance_of_few = staticmethod(lambda a, b: mmd2_unbiased(a, b, polynomial_kernel))

    @property
    def title(self) -> str:
        """KID's name is for the published Inception weights."""
        return "kid" if isinstance(self.scorer, InceptionScorer) and self.scorer.is_published else "kd_inception"


class CmmdMetric(KernelMetric):
    """CMMD (arXiv 2401.09603), unbiased, on CLIP's ViT-L/14 at 336 pixels.

    The paper squeezes pictures to a square; ours are cut to one after their shorter side is resized, which is the same
    for square pictures.
    """

    name: ClassVar[str] = "cmmd"
    distance = staticmethod(cmmd)
    distance_of_few = staticmethod(cmmd)

    @property
    def title(self) -> str:
        """CMMD's name is for the encoder that it is defined with."""
        return "cmmd" if isinstance(self.scorer, ClipImageScorer) and self.scorer.is_published else "mmd_clip"


class LpipsMetric(Metric):
    """LPIPS between base and erased at equal seeds: high where the concept was, low where nothing should change."""

    name: ClassVar[str] = "lpips"

    def __init__(self, weights: Path | None, device: torch.device | None = None):
        self.weights, self.device = weights, device
        LpipsScorer(weights).fingerprint()  # missing weights are an error now, not after the pictures

    def scorers(self) -> list[Scorer]:
        """None: a distance needs both models' pictures, so it is measured when they are summarised."""
        return []

    def summarize(self, scored: Scored, base: Scored | None = None) -> Summary:
        """lpips over all pairs, and lpips_target and lpips_retain where records have a role."""
        other = _other(scored, base)
        if other is None:
            return Summary({})
        pairs = LpipsScorer(self.weights, other.folder, self.device)
        found = {row["id"]: row["lpips"] for row in score_folder(scored.folder, [pairs]).records}
        figures = {}
        for key, role in (("lpips", None), ("lpips_target", "target"), ("lpips_retain", "retain")):
            records = [r for r in scored.records if role is None or r.get("role") == role]
            if records:
                values = [found[record["id"]] for record in records]
                figures[key] = clustered_mean(values, by_column(records, "prompt"))
        return Summary(figures)


def build_fid(config: EvaluateConfig, protocol: Protocol) -> Metric:
    """FID, with --inception_weights and --fid_reference. ValueError without the reference."""
    return FrechetMetric(_inception(config.inception_weights), _needed_reference(config, "fid"))


def build_fid_vs_base(config: EvaluateConfig, protocol: Protocol) -> Metric:
    """FID-vs-base, with --inception_weights."""
    return FrechetVsBaseMetric(_inception(config.inception_weights))


def build_fd_encoder(config: EvaluateConfig, protocol: Protocol) -> Metric:
    """Fréchet distance on --encoder to --fid_reference. ValueError without either."""
    return EncoderFrechetMetric(_encoder(config), _needed_reference(config, "fd_encoder"))


def build_fd_encoder_vs_base(config: EvaluateConfig, protocol: Protocol) -> Metric:
    """Fréchet distance on --encoder to the base's pictures. ValueError without --encoder."""
    return EncoderFrechetVsBaseMetric(_encoder(config))


def build_kid(config: EvaluateConfig, protocol: Protocol) -> Metric:
    """KID, with --inception_weights; against real pictures where --fid_reference is a folder."""
    reference = _reference(config)
    # Statistics hold no single pictures, which KID compares: the distance to the base's remains.
    return KidMetric(_inception(config.inception_weights), reference if reference and reference.path.is_dir() else None)


def build_cmmd(config: EvaluateConfig, protocol: Protocol) -> Metric:
    """CMMD, with --cmmd_model and --fid_reference."""
    scorer = ClipImageScorer(config.cmmd_model) if config.cmmd_model else ClipImageScorer()
    return CmmdMetric(scorer, _reference(config))


def build_lpips(config: EvaluateConfig, protocol: Protocol) -> Metric:
    """LPIPS, with --lpips_weights."""
    return LpipsMetric(config.lpips_weights)


@cache
def _inception(weights: Path | None) -> InceptionScorer:
    """One network for all metrics that use it."""
    return InceptionScorer(weights)


def _encoder(config: EvaluateConfig) -> EncoderScorer:
    if not config.encoder:
        raise ValueError("fd_encoder needs --encoder, a transformers vision model by hub id or folder.")
    return EncoderScorer(config.encoder)


def _reference(config: EvaluateConfig) -> Reference | None:
    return Reference(config.fid_reference, config.data_cache_dir) if config.fid_reference else None


def _needed_reference(config: EvaluateConfig, name: str) -> Reference:
    if (reference := _reference(config)) is None:
        raise ValueError(
            f"{name} compares with real pictures: give --fid_reference, a folder of them (for COCO those of val2014) "
            f"or their statistics in .npz. The distance to the base model's pictures is --metrics {name}_vs_base."
        )
    return reference
