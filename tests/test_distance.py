"""Contract of distances, intervals and the paired test: equal to direct float64 formulas and to scipy."""

import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.stats import binomtest

from erase.evaluate.metrics.distance import (
    Moments,
    cmmd,
    frechet_distance,
    frechet_distance_of,
    frechet_distance_of_features,
    kid,
    mmd2_unbiased,
    moments_of,
    polynomial_kernel,
)
from erase.evaluate.statistics import cluster_bootstrap, frechet_bootstrap, mcnemar, wilson


@pytest.mark.parametrize("n", [40, 300])
def test_both_roads_to_the_frechet_distance_agree(n: int) -> None:
    rng = np.random.default_rng(n)
    a, b = rng.normal(size=(n, 64)), rng.normal(size=(250, 64)) * 1.3 + 0.2
    expected = frechet_distance(a.mean(0), np.cov(a.T), b.mean(0), np.cov(b.T))
    # With fewer samples than dimensions the covariance's road takes roots of rounding errors.
    assert frechet_distance_of_features(a, b) == pytest.approx(expected, rel=1e-7 if n < 64 else 1e-9)


def test_moments_do_not_depend_on_the_batches() -> None:
    features = np.random.default_rng(0).normal(3, 2, size=(500, 20)).astype(np.float32)
    whole, pieces = Moments(20), Moments(20)
    whole.update(features)
    for first in range(0, 500, 7):
        pieces.update(features[first : first + 7])
    np.testing.assert_allclose(pieces.covariance, np.cov(features.astype(np.float64).T), rtol=1e-9)
    assert pieces.centred is None
    assert frechet_distance_of(pieces, whole) == pytest.approx(0, abs=1e-9)


def naive_mmd2(a: np.ndarray, b: np.ndarray, kernel) -> float:
    n, m = len(a), len(b)
    within_a = sum(kernel(a[i], a[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_b = sum(kernel(b[i], b[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within_a + within_b - 2 * sum(kernel(x, y) for x in a for y in b) / (n * m)


@pytest.mark.parametrize("block", [4, 2048])
def test_kid_and_its_mmd_are_the_direct_formula(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr("erase.evaluate.metrics.distance.BLOCK", block)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(13, 5)), rng.normal(0.5, 1, size=(13, 5))
    expected = naive_mmd2(a, b, lambda x, y: (x @ y / 5 + 1) ** 3)
    assert mmd2_unbiased(a, b, polynomial_kernel) == pytest.approx(expected, rel=1e-12)
    # Subsets as large as the sets are the sets: every one gives the same value.
    assert kid(a, b, subsets=3) == pytest.approx((expected, 0), abs=1e-12)


def test_cmmd_is_the_direct_formula() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(11, 6)), rng.normal(0.3, 1, size=(8, 6))
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b)]
    expected = 1000 * naive_mmd2(*unit, lambda x, y: np.exp(-((x - y) ** 2).sum() / 200))
    assert cmmd(a, b) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (5, 1), (30, 12), (400, 300), (1500, 2)])
def test_mcnemar_is_the_binomial_test(b: int, c: int) -> None:
    ours = mcnemar([True] * b + [False] * c + [True] * 7, [False] * b + [True] * c + [True] * 7)
    assert (ours.only_base, ours.only_erased, ours.n) == (b, c, b + c + 7)
    expected = binomtest(min(b, c), b + c).pvalue if b + c else 1.0
    assert ours.p_value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (1, 10), (99, 100), (200, 200), (313, 570)])
def test_wilson_agrees_with_scipy(successes, n):
    ours, theirs = wilson(successes, n), binomtest(successes, n).proportion_ci(method="wilson")
    assert (ours.value, ours.n) == (successes / n, n)
    assert ours.low == pytest.approx(theirs.low, abs=1e-12)
    assert ours.high == pytest.approx(theirs.high, abs=1e-12)


def test_wilson_refuses_impossible_counts():
    with pytest.raises(ValueError, match="successes"):
        wilson(3, 2)


def test_cluster_bootstrap_is_as_wide_as_its_clusters_are_few():
    """Ten prompts of fifty equal answers each carry ten observations, not five hundred."""
    rng = np.random.default_rng(0)
    per_prompt = rng.normal(size=10)
    values, clusters = np.repeat(per_prompt, 50), np.repeat([f"prompt {i}" for i in range(10)], 50)
    ours = cluster_bootstrap(values, clusters.tolist(), seed=1)
    expected = 2 * 1.96 * per_prompt.std() / np.sqrt(10)
    assert ours.value == pytest.approx(per_prompt.mean())
    assert ours.low < ours.value < ours.high
    assert ours.high - ours.low == pytest.approx(expected, rel=0.15)
    assert ours == cluster_bootstrap(values, clusters.tolist(), seed=1)


def random_gaussian(rng: np.random.Generator, d: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
    factor = rng.normal(size=(d, rank))
    return rng.normal(size=d), factor @ factor.T / rank


def test_frechet_distance_of_commuting_gaussians_has_a_closed_form():
    mu, a, b = np.array([1.0, -2.0, 0.5]), np.array([1.0, 4.0, 9.0]), np.array([4.0, 1.0, 0.25])
    expected = (mu**2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert frechet_distance(mu, np.diag(a), 0 * mu, np.diag(b)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("rank", [24, 9])
def test_frechet_distance_agrees_with_sqrtm(rank):
    rng = np.random.default_rng(rank)
    (mu1, s1), (mu2, s2) = random_gaussian(rng, 24, 24), random_gaussian(rng, 24, rank)
    expected = ((mu1 - mu2) ** 2).sum() + np.trace(s1 + s2 - 2 * sqrtm(s1 @ s2).real)
    assert frechet_distance(mu1, s1, mu2, s2) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(mu2, s2, mu1, s1) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(mu2, s2, mu2, s2) == pytest.approx(0, abs=1e-6)


def test_moments_are_float64_and_unbiased():
    features = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float16)
    mu, sigma = moments_of(features).mean, moments_of(features).covariance
    assert mu.dtype == sigma.dtype == np.float64
    np.testing.assert_allclose(sigma, np.cov(features.astype(np.float64).T))


def test_frechet_bootstrap_contains_its_value_and_compares_like_with_like():
    rng = np.random.default_rng(0)
    names = [f"prompt {i % 20}" for i in range(400)]
    centres = 5 * rng.normal(size=(20, 4))
    a, b = (np.tile(centres, (20, 1)) + rng.normal(size=(400, 4)) for _ in range(2))
    ours = frechet_bootstrap(a, names, b, names)
    assert ours.value == frechet_distance_of_features(a, b)
    assert ours.low <= ours.value <= ours.high
    assert ours.high < 1  # the prompts' own spread, 25 times that of the pictures, must cancel
    with pytest.raises(ValueError, match="same clusters"):
        frechet_bootstrap(a, names, b, [*names[1:], "another"])
