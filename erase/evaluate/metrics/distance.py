"""Distances between sets of feature vectors, in float64: Fréchet, KID and CMMD, each from features or running sums."""

import mmap
from collections.abc import Callable, Iterator

import numpy as np

BLOCK = 1024
"""Rows of features (or of a kernel matrix) that are held at once: memory does not grow with the number of pictures."""

Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Moments:
    """Running mean and covariance of features of d dimensions, in O(d²) memory whatever their number.

    Up to d rows are kept as they are: with fewer samples than dimensions the Fréchet distance is several times
    faster from the features than from their singular covariance.
    """

    def __init__(self, d: int):
        self.n = 0
        self._sum, self._outer = np.zeros(d), np.zeros((d, d))
        self._rows: list[np.ndarray] | None = []
        self._factor: np.ndarray | None = None

    @classmethod
    def of_statistics(cls, mean: np.ndarray, covariance: np.ndarray, n: int) -> "Moments":
        """Moments with this mean (d,) and unbiased covariance (d, d) of n samples, as a statistics file holds them."""
        moments = cls(len(mean))
        moments.n, moments._rows = n, None
        moments._sum, moments._outer = mean * n, covariance * (n - 1) + np.outer(mean, mean) * n
        return moments

    def update(self, features: np.ndarray) -> None:
        """Add features (N, d)."""
        d = len(self._sum)
        if features.ndim != 2 or features.shape[1] != d:
            raise ValueError(f"Features must be (N, {d}), got shape {features.shape}.")
        features = features.astype(np.float64)
        self._factor = None
        self.n += len(features)
        self._sum += features.sum(0)
        if self._rows is not None:
            self._rows.append(features)
        if self.n <= d:
            return
        if self._rows is not None:
            features, self._rows = np.concatenate(self._rows), None
        self._outer += features.T @ features

    @property
    def mean(self) -> np.ndarray:
        """(d,)"""
        return self._sum / self.n

    @property
    def covariance(self) -> np.ndarray:
        """Unbiased covariance (d, d)."""
        if self.n < 2:
            raise ValueError(f"A covariance needs at least two samples, got {self.n}.")
        if (centred := self.centred) is not None:
            return centred.T @ centred / (self.n - 1)
        return (self._outer - np.outer(self._sum, self.mean)) / (self.n - 1)

    @property
    def centred(self) -> np.ndarray | None:
        """The features (n, d) minus their mean while no more than d of them have come, else None."""
        return None if self._rows is None else np.concatenate(self._rows) - self.mean

    @property
    def factor(self) -> np.ndarray:
        """F (k, d) with FᵀF the covariance; kept, since one reference is compared with many samples."""
        if (factor := self._factor) is None:
            centred = self.centred
            factor = _factor(self.covariance).T if centred is None else centred / np.sqrt(self.n - 1)
            self._factor = factor
        return factor


def moments_of(features: np.ndarray) -> Moments:
    """Moments of features (N, d), N ≥ 2, read in blocks: a memory map is never held whole."""
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"Features must be (N, d) with N >= 2, got shape {features.shape}.")
    moments = Moments(features.shape[1])
    for block in _blocks(features):
        moments.update(block)
    return moments


def frechet_distance(mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray, sigma2: np.ndarray) -> float:
    """d² = |μ₁ − μ₂|² + tr Σ₁ + tr Σ₂ − 2 tr √(Σ₁Σ₂) between two Gaussians (arXiv 1706.08500).

    With Σ₁ = LLᵀ, tr √(Σ₁Σ₂) is the sum of the square roots of the eigenvalues of the symmetric LᵀΣ₂L.
    """
    mu1, sigma1, mu2, sigma2 = (np.asarray(a, np.float64) for a in (mu1, sigma1, mu2, sigma2))
    d = mu1.shape[0]
    if mu2.shape != (d,) or sigma1.shape != (d, d) or sigma2.shape != (d, d):
        shapes = [a.shape for a in (mu1, sigma1, mu2, sigma2)]
        raise ValueError(f"Expected shapes (d,), (d, d), (d,), (d, d), got {shapes}.")
    factor = _factor(sigma1)
    overlap = np.sqrt(np.linalg.eigvalsh(factor.T @ sigma2 @ factor).clip(min=0)).sum()
    return _frechet(mu1 - mu2, np.trace(sigma1) + np.trace(sigma2), overlap)


def frechet_distance_of(a: Moments, b: Moments) -> float:
    """Fréchet distance between the Gaussians fitted to two sets of features.

    While one side has no more samples than dimensions, tr √(Σ₁Σ₂) is the nuclear norm of a product M of factors, whose
    smaller side counts samples. The eigenvalues of MMᵀ give it to 7 digits three times as fast as M's singular values.
    """
    if a.centred is None and b.centred is None:
        return frechet_distance(a.mean, a.covariance, b.mean, b.covariance)
    product = a.factor @ b.factor.T if len(a.factor) <= len(b.factor) else b.factor @ a.factor.T
    overlap = np.sqrt(np.linalg.eigvalsh(product @ product.T).clip(min=0)).sum()
    traces = np.square(a.factor).sum() + np.square(b.factor).sum()
    return _frechet(a.mean - b.mean, traces, overlap)


def frechet_distance_of_features(a: np.ndarray, b: np.ndarray) -> float:
    """Fréchet distance between the Gaussians fitted to features a (N, d) and b (M, d)."""
    return frechet_distance_of(moments_of(a), moments_of(b))


def _factor(sigma: np.ndarray) -> np.ndarray:
    """L with LLᵀ = Σ; by eigenvectors where Σ is singular, which Cholesky refuses."""
    try:
        return np.linalg.cholesky(sigma)
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(sigma)
        return vectors * np.sqrt(values.clip(min=0))


def _frechet(shift: np.ndarray, traces: float, overlap: float) -> float:
    return max(0.0, float(np.square(shift).sum() + traces - 2 * overlap))


def polynomial_kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """KID's kernel (a·b / d + 1)³ for a (N, d) and b (M, d)."""
    values = a @ b.T / a.shape[1] + 1
    return values * values * values  # many times as fast as a power


def gaussian_kernel(a: np.ndarray, b: np.ndarray, sigma: float = 10.0) -> np.ndarray:
    """CMMD's kernel exp(−|a − b|² / 2σ²) for a (N, d) and b (M, d)."""
    squares = np.square(a).sum(1)[:, None] + np.square(b).sum(1)[None] - 2 * a @ b.T
    return np.exp(-squares / (2 * sigma**2))


def mmd2_unbiased(a: np.ndarray, b: np.ndarray, kernel: Kernel) -> float:
    """Unbiased MMD² of a (N, d) and b (M, d), which may be below zero: no sample is compared with itself."""
    if min(len(a), len(b)) < 2:
        raise ValueError(f"MMD needs at least two samples on each side, got {len(a)} and {len(b)}.")
    within = sum(_sum_within(x, kernel) / (len(x) * (len(x) - 1)) for x in (a, b))
    between = sum(float(kernel(x, y).sum()) for x in _blocks(a) for y in _blocks(b))
    return within - 2 * between / (len(a) * len(b))


def _sum_within(rows: np.ndarray, kernel: Kernel) -> float:
    """Sum of the kernel over all pairs of two different rows; each pair of blocks is looked at once."""
    total = 0.0
    for i, x in enumerate(_blocks(rows)):
        values = kernel(x, x)
        total += float(values.sum() - np.trace(values))
        total += 2 * sum(float(kernel(x, y).sum()) for y in _blocks(rows[(i + 1) * BLOCK :]))
    return total


def _blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    for first in range(0, len(rows), BLOCK):
        yield read_rows(rows, slice(first, first + BLOCK))


def read_rows(features: np.ndarray, rows: slice | np.ndarray) -> np.ndarray:
    """A copy in float64 of some rows of features, which may be mapped from disk."""
    read = features[rows].astype(np.float64)
    if (mapped := getattr(features, "_mmap", None)) is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)  # pages that were read count as this process's memory until given back
    return read


def kid(
    a: np.ndarray, b: np.ndarray, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Kernel inception distance (arXiv 1801.01401): mean and standard deviation of MMD² over random subsets."""
    size = min(subset_size, len(a), len(b))
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(1 if size == len(a) == len(b) else subsets):  # subsets as large as the sets are all the same
        x, y = (read_rows(rows, np.sort(rng.choice(len(rows), size, replace=False))) for rows in (a, b))
        values.append(mmd2_unbiased(x, y, polynomial_kernel))
    return float(np.mean(values)), float(np.std(values))


def cmmd(a: np.ndarray, b: np.ndarray) -> float:
    """CLIP maximum mean discrepancy (arXiv 2401.09603), unbiased: 1000 · MMD² of L2-normalised CLIP embeddings.

    The paper's own estimate keeps each sample's distance to itself, which biases it upwards by about 1/N.
    """
    return 1000 * mmd2_unbiased(a, b, lambda x, y: gaussian_kernel(_unit(x), _unit(y)))


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
