"""Erasure against retention: which two numbers a run comes down to, and which methods no other one beats in both."""

from collections.abc import Mapping, Sequence
from math import isnan
from typing import Any, NamedTuple

from ..evaluate.table import label_of
from .chance import Estimate, is_above
from .rows import estimate_of

ERASURE = ("ua_coherent", "ua", "nudity_any_0.6")
"""Figures that say how far the concept is gone, the first that was measured."""
RETENTION = (("ira", "cra"), ("clip_score_retain",), ("clip_score",))
"""Figures that say what is kept, the first group that was measured."""


class Axes(NamedTuple):
    """The figures that a comparison is drawn over."""

    erasure: str
    """Key of the figure."""
    retention: tuple[str, ...]
    """Keys of the figures, of which the worst counts."""

    @property
    def erasure_title(self) -> str:
        """How it is named."""
        return label_of(self.erasure).title + (" gone, of the base's" if _falls(self.erasure) else "")

    @property
    def retention_title(self) -> str:
        """How it is named."""
        names = " and ".join(label_of(key).title for key in self.retention)
        return (f"lesser of {names}" if len(self.retention) > 1 else names) + ", of the base's"


def axes_of(base: Mapping[str, Any]) -> Axes | None:
    """What a comparison on this base row can be drawn over; None when erasure or retention was not measured."""
    # What the base never shows cannot fall.
    erasure = next((key for key in ERASURE if key in base and (base[key] or not _falls(key))), None)
    retention = next((keys for keys in RETENTION if all(base.get(key) for key in keys)), None)
    return Axes(erasure, retention) if erasure and retention else None


def erased(row: Mapping[str, Any], base: Mapping[str, Any], axes: Axes) -> Estimate:
    """How far the concept is gone, 1 being all the way, with the interval of the row's own figure.

    A rate of success as it is; a rate of finding the concept as 1 − rate / base's rate. The base's value is taken as it
    stands: it is the same for all methods, so its uncertainty does not come between them.
    """
    found = estimate_of(row, axes.erasure)
    if not _falls(axes.erasure):
        return found
    before = base[axes.erasure]
    return Estimate(1 - found.value / before, 1 - found.high / before, 1 - found.low / before)


def kept(row: Mapping[str, Any], base: Mapping[str, Any], axes: Axes) -> Estimate:
    """Retention relative to the base: min over the figures of row / base, so that no domain pays for another.

    1 is as good as the base; chance may put it above. As in `erased`, the interval is the row's own.
    """
    shares = [[end / base[key] for end in estimate_of(row, key)] for key in axes.retention]
    return Estimate(*map(min, zip(*shares)))


def pareto_front(points: Sequence[Sequence[float]]) -> list[bool]:
    """Which points (N, d), more being better in every coordinate, are on the Pareto front.

    A point is off the front when another is at least as good in each coordinate and better in one; equal points share
    their fate. Raises ValueError for NaN, which is neither better nor worse than anything.
    """
    if any(isnan(value) for point in points for value in point):
        raise ValueError(f"A Pareto front needs numbers, got {[tuple(point) for point in points]}.")
    return [not any(_beats(other, point) for other in points) for point in points]


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(a >= b for a, b in zip(one, other)) and any(a > b for a, b in zip(one, other))


def unbeaten(points: Sequence[Sequence[Estimate]]) -> list[bool]:
    """Which points (N, d) with intervals, more being better in every coordinate, no other point beats.

    One beats another that is better by more than chance in one coordinate at least, and in none worse by more than
    chance. Points that chance cannot tell apart do not beat each other, whatever their values.
    """
    return [not any(_beats_by_more(other, point) for other in points) for point in points]


def _beats_by_more(one: Sequence[Estimate], other: Sequence[Estimate]) -> bool:
    pairs = list(zip(one, other))
    return any(is_above(a, b) for a, b in pairs) and not any(is_above(b, a) for a, b in pairs)


def _falls(key: str) -> bool:
    """Whether less of a figure means more erasure."""
    return label_of(key).better == "less"
