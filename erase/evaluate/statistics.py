"""Intervals for every figure that a report prints: Wilson for rates, a bootstrap over prompts for the rest."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import comb, sqrt

import numpy as np

from .metrics.distance import frechet_distance_of_features

Z95 = 1.959963984540054  # Φ⁻¹(0.975)

SMALL = 200
"""Up to this many rows, `resampled` bootstraps; above it, a statistic of large subsets says as much for less work."""
SUBSETS = 20
"""Random subsets that `resampled` measures the spread over."""
SUBSET_ROWS = 1000
"""Rows of a subset at most."""
T95_19 = 2.093024054408263  # Student's t, 0.975, 19 degrees of freedom: what SUBSETS leave


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


def bootstrap_means(
    values: Sequence[float] | np.ndarray, clusters: Sequence[str], seed: int = 0, resamples: int = 1000
) -> np.ndarray:
    """(resamples,) means of values (N,) with whole clusters drawn again; from cluster sums, so large N costs little."""
    values = np.asarray(values, np.float64)
    rows_of = _rows_by_cluster(clusters, len(values))
    sums, sizes = (np.array([f(values[rows]) for rows in rows_of], np.float64) for f in (np.sum, len))
    rng = np.random.default_rng(seed)
    drawn = (rng.integers(0, len(sums), len(sums)) for _ in range(resamples))
    return np.array([sums[at].sum() / sizes[at].sum() for at in drawn])


def clustered_mean(values: Sequence[float] | np.ndarray, clusters: Sequence[str], seed: int = 0) -> Interval:
    """Mean of values (N,) with its percentile interval over clusters (prompts)."""
    low, high = np.quantile(bootstrap_means(values, clusters, seed), [0.025, 0.975])
    return Interval(float(np.mean(values)), float(low), float(high), len(values))


def clustered_rate(flags: Sequence[bool], clusters: Sequence[str], seed: int = 0) -> Interval:
    """Share of true flags: Wilson's interval, widened to the bootstrap over prompts where pictures share prompts.

    The bootstrap alone has no width when no picture (or every one) shows it; Wilson's alone takes the pictures of one
    prompt for independent.
    """
    score = rate(flags)
    if len(set(clusters)) == len(flags):
        return score
    drawn = clustered_mean(np.asarray(flags, np.float64), clusters, seed)
    return Interval(score.value, min(score.low, drawn.low), max(score.high, drawn.high), score.n)


def resampled(
    value: float, statistic: Callable[[np.ndarray], float], clusters: Sequence[str], seed: int = 0
) -> Interval:
    """95 % interval around `value`, which is `statistic` (rows → number) of all rows; whole clusters are drawn.

    Up to SMALL rows: a bootstrap. Above: value ± t·s·√(m/(n − m)), where s is the spread of the statistic over random
    subsets of about m = min(n/2, SUBSET_ROWS) of the n rows (the delete-d jackknife, Shao & Wu 1989). Statistics with a
    bias that depends on n are no obstacle, since all subsets share it. Fewer than ten clusters say nothing of their
    own spread: then each row counts for itself.
    """
    n = len(clusters)
    units = clusters if len(set(clusters)) >= 10 else [str(row) for row in range(n)]
    rows_of = _rows_by_cluster(units, n)
    rng = np.random.default_rng(seed)
    if n <= SMALL:
        draws = [rng.integers(0, len(rows_of), len(rows_of)) for _ in range(100)]
        replicates = np.array([statistic(np.concatenate([rows_of[c] for c in drawn])) for drawn in draws])
        low, high = np.quantile(replicates - replicates.mean() + value, [0.025, 0.975])
        return Interval(value, float(low), float(high), n)
    subsets = [_subset(rows_of, min(n // 2, SUBSET_ROWS), rng) for _ in range(SUBSETS)]
    left = float(np.mean([len(rows) / (n - len(rows)) for rows in subsets]))
    half = T95_19 * float(np.std([statistic(rows) for rows in subsets], ddof=1)) * sqrt(left)
    return Interval(value, value - half, value + half, n)


def _subset(rows_of: Sequence[np.ndarray], rows: int, rng: np.random.Generator) -> np.ndarray:
    """The rows of clusters in random order, up to `rows` of them (at least one cluster)."""
    order = rng.permutation(len(rows_of))
    ends = np.cumsum([len(rows_of[c]) for c in order])
    taken = order[: max(1, int(np.searchsorted(ends, rows, side="right")))]
    return np.sort(np.concatenate([rows_of[c] for c in taken]))


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
