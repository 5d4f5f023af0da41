"""Contract of the distances and of the paired test: equal to direct float64 formulas and to scipy."""

import numpy as np
import pytest
from scipy.stats import binomtest

from erase.evaluate.distance import (
    Moments,
    cmmd,
    frechet_distance,
    frechet_distance_of,
    frechet_distance_of_features,
    kid,
    mmd2_unbiased,
    polynomial_kernel,
)
from erase.evaluate.statistics import mcnemar


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
    monkeypatch.setattr("erase.evaluate.distance.BLOCK", block)
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
