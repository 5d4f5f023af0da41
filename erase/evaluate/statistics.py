"""Intervals for every figure that a report prints: Wilson for rates, a bootstrap over prompts for the rest."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import comb, sqrt

import numpy as np

from .distance import frechet_distance_of_features

Z95 = 1.959963984540054  # Φ⁻¹(0.975)


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % confidence interval."""

    value: float
    """The point estimate; rates lie in 0–1."""
    low: float
    """Lower bound."""
    high: float
    """Upper bound."""
    n: int
    """Pictures (or prompts) that the figure rests on."""


def wilson(successes: int, n: int) -> Interval:
    """95 % score interval of a rate: (p + z²/2n ± z·√(p(1−p)/n + z²/4n²)) / (1 + z²/n) (Wilson 1927)."""
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"A rate needs 0 <= successes <= n and n > 0, got {successes} of {n}.")
    p, shrink = successes / n, 1 + Z95**2 / n
    centre = (p + Z95**2 / (2 * n)) / shrink
    half = Z95 / shrink * sqrt(p * (1 - p) / n + Z95**2 / (4 * n**2))
    return Interval(p, 0.0 if successes == 0 else centre - half, 1.0 if successes == n else centre + half, n)


def rate(flags: Sequence[bool]) -> Interval:
    """Share of true flags with its Wilson interval."""
    return wilson(sum(map(bool, flags)), len(flags))


def cluster_bootstrap(
    values: Sequence[float] | np.ndarray,
    clusters: Sequence[str],
    statistic: Callable[[np.ndarray], float] = np.mean,
    seed: int = 0,
    resamples: int = 1000,
) -> Interval:
    """Percentile interval of `statistic(values)` when whole clusters (prompts) are drawn again with replacement.

    `values` (N, …) and `clusters` (N,) name the prompt of each value; `n` of the result counts values.
    """
    values = np.asarray(values)
    rows_of = _rows_by_cluster(clusters, len(values))
    rng = np.random.default_rng(seed)
    replicates = [
        statistic(values[np.concatenate([rows_of[c] for c in rng.integers(0, len(rows_of), len(rows_of))])])
        for _ in range(resamples)
    ]
    low, high = np.quantile(replicates, [0.025, 0.975])
    return Interval(float(statistic(values)), float(low), float(high), len(values))


def frechet_bootstrap(
    features: np.ndarray,
    clusters: Sequence[str],
    reference: np.ndarray,
    reference_clusters: Sequence[str],
    seed: int = 0,
    resamples: int = 200,
) -> Interval:
    """Fréchet distance of features (N, d) to reference (M, d), with a bootstrap over the clusters that both share.

    A cluster is drawn on both sides at once, so that a resample never compares different sets of prompts.
    """
    rows_of = _rows_by_cluster(clusters, len(features))
    reference_rows_of = _rows_by_cluster(reference_clusters, len(reference))
    if set(clusters) != set(reference_clusters):
        odd = sorted(set(clusters) ^ set(reference_clusters))
        raise ValueError(f"Features and reference must have the same clusters; on one side only: {odd[:5]}.")
    rng = np.random.default_rng(seed)
    replicates = []
    for _ in range(resamples):
        drawn = rng.integers(0, len(rows_of), len(rows_of))
        ours, theirs = (np.concatenate([rows[c] for c in drawn]) for rows in (rows_of, reference_rows_of))
        replicates.append(frechet_distance_of_features(features[ours], reference[theirs]))
    value = frechet_distance_of_features(features, reference)
    # Resampling repeats pictures, which adds to the distance the bias that a smaller sample has: take it out again.
    low, high = np.quantile(np.asarray(replicates) - np.mean(replicates) + value, [0.025, 0.975])
    return Interval(value, max(0.0, float(low)), float(high), len(features))


def _rows_by_cluster(clusters: Sequence[str], expected: int) -> list[np.ndarray]:
    """Row numbers of each cluster, clusters in sorted order."""
    if len(clusters) != expected or expected == 0:
        raise ValueError(f"Each value needs a cluster name, got {len(clusters)} names for {expected} values.")
    _, codes = np.unique(np.asarray(clusters), return_inverse=True)
    order = np.argsort(codes, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)


@dataclass(frozen=True)
class Paired:
    """Base against erased on the same prompts and seeds, where each picture answers yes or no."""

    only_base: int
    """Pairs where only the base's picture shows it."""
    only_erased: int
    """Pairs where only the erased model's picture shows it."""
    n: int
    """All pairs."""
    p_value: float
    """Exact two-sided McNemar test that both models are equally likely to show it."""


def mcnemar(base: Sequence[bool], erased: Sequence[bool]) -> Paired:
    """Exact McNemar test (1947): of the b + c pairs that disagree, b ~ Binomial(b + c, ½) if nothing changed."""
    if len(base) != len(erased) or not len(base):
        raise ValueError(f"Base and erased must be pairs, got {len(base)} and {len(erased)} answers.")
    b = sum(x and not y for x, y in zip(base, erased))
    c = sum(y and not x for x, y in zip(base, erased))
    tail = sum(comb(b + c, k) for k in range(min(b, c) + 1))
    # Integers up to the last step: 2⁻ⁿ underflows a float long before the ratio does.
    return Paired(b, c, len(base), min(1.0, float(Fraction(2 * tail, 2 ** (b + c)))))
