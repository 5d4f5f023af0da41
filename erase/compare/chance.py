"""What chance explains: a value's 95 % interval over pictures and seeds, and which values lie apart from each other."""

from collections.abc import Mapping, Sequence
from math import atan, cos, hypot, inf, isinf, pi, sin, sqrt
from statistics import fmean, stdev
from typing import NamedTuple


class Estimate(NamedTuple):
    """A value with its 95 % interval. Without one (−inf to inf) nothing tells the value from any other."""

    value: float
    low: float = -inf
    high: float = inf

    @property
    def interval(self) -> tuple[float, float] | None:
        """Low and high; None where they are not known."""
        return None if isinf(self.low) or isinf(self.high) else (self.low, self.high)

    def within(self, least: float, most: float) -> "Estimate":
        """The ends moved to what is possible at all, where they are known."""
        return self if self.interval is None else Estimate(self.value, max(self.low, least), min(self.high, most))


def over_seeds(runs: Sequence[Estimate]) -> Estimate:
    """Mean of a method's runs, with the uncertainty of pictures and seeds together.

    One run keeps its own interval. Of n runs: mean ± √(h² + (t₀.₉₇₅,ₙ₋₁ · sd / √n)²), where h is the mean half-width of
    the runs' own intervals. h does not shrink with n, for all runs are scored on the same prompts and seeds. An
    interval that one of the runs lacks is unknown. Raises ValueError without runs.
    """
    if not runs:
        raise ValueError("A mean over seeds needs at least one run, got none.")
    if len(runs) == 1:
        return runs[0]
    value = fmean(run.value for run in runs)
    half = hypot(fmean((run.high - run.low) / 2 for run in runs), seed_half_width([run.value for run in runs]))
    return Estimate(value, value - half, value + half)


def seed_half_width(values: Sequence[float]) -> float:
    """Half the 95 % interval of a mean of n ≥ 2 values by Student's t: t₀.₉₇₅,ₙ₋₁ · sd / √n."""
    return t_quantile(len(values) - 1) * stdev(values) / sqrt(len(values))


def t_quantile(freedom: int, level: float = 0.95) -> float:
    """The t that |T| stays below with probability `level`, T being Student's with `freedom` ≥ 1 degrees of freedom."""
    low, high = 0.0, 1.0
    while t_probability(high, freedom) < level:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if t_probability(middle, freedom) < level else (low, middle)
    return (low + high) / 2


def t_probability(t: float, freedom: int) -> float:
    """P(|T| < t) of Student's T with whole degrees of freedom (Abramowitz & Stegun 26.7.3 and 26.7.4)."""
    if freedom < 1:
        raise ValueError(f"Student's t needs at least one degree of freedom, got {freedom}.")
    angle, is_odd = atan(t / sqrt(freedom)), freedom % 2
    term = total = cos(angle) if is_odd else 1.0
    for k in range(2 + is_odd, freedom - 1, 2):
        term *= (k - 1) / k * cos(angle) ** 2
        total += term
    if not is_odd:
        return sin(angle) * total
    return 2 / pi * (angle + (sin(angle) * total if freedom > 1 else 0.0))


def is_above(one: Estimate, other: Estimate) -> bool:
    """Whether a value is larger by more than chance: the intervals do not meet."""
    return one.low > other.high


def are_apart(one: Estimate, other: Estimate, margin: float = 0.0) -> bool:
    """Whether two values differ by more than chance and by at least `margin`, a share of the smaller one."""
    differ = is_above(one, other) or is_above(other, one)
    return differ and abs(one.value - other.value) >= margin * min(abs(one.value), abs(other.value))


def leaders(values: Mapping[str, Estimate], sign: int, margin: float = 0.0) -> list[str]:
    """The best (sign 1: largest; −1: smallest) and all that chance cannot tell from it, in the order of `values`."""
    if not values:
        return []
    best = max(values.values(), key=lambda estimate: sign * estimate.value)
    return [name for name, estimate in values.items() if not are_apart(best, estimate, margin)]


def marked(values: Mapping[str, Estimate], sign: int, margin: float = 0.0) -> set[str]:
    """What a table marks: the leaders, or nothing where those are all."""
    found = leaders(values, sign, margin)
    return set(found) if len(found) < len(values) else set()


def lesser(one: Estimate, other: Estimate) -> Estimate:
    """The smaller of two quantities, each known within its interval."""
    return Estimate(*map(min, one, other))
