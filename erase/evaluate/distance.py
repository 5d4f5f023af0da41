"""Distances between sets of feature vectors, in float64: Fréchet, KID and CMMD, each from features or running sums."""

from collections.abc import Callable, Iterator

import numpy as np

BLOCK = 2048
"""Rows of a kernel matrix that are held at once."""

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

    def update(self, features: np.ndarray) -> None:
        """Add features (N, d)."""
        d = len(self._sum)
        if features.ndim != 2 or features.shape[1] != d:
            raise ValueError(f"Features must be (N, {d}), got shape {features.shape}.")
        features = features.astype(np.float64)
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


def moments_of(features: np.ndarray) -> Moments:
    """Moments of features (N, d), N ≥ 2."""
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"Features must be (N, d) with N >= 2, got shape {features.shape}.")
    moments = Moments(features.shape[1])
    moments.update(features)
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

    While one side has no more samples than dimensions, tr √(Σ₁Σ₂) is the nuclear norm of a product of factors.
    """
    centred_a, centred_b = a.centred, b.centred
    if centred_a is None and centred_b is None:
        return frechet_distance(a.mean, a.covariance, b.mean, b.covariance)
    factors = [
        _factor(moments.covariance).T if centred is None else centred / np.sqrt(moments.n - 1)
        for moments, centred in ((a, centred_a), (b, centred_b))
    ]
    overlap = np.linalg.svd(factors[0] @ factors[1].T, compute_uv=False).sum()
    traces = sum(np.square(factor).sum() for factor in factors)
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
    return (a @ b.T / a.shape[1] + 1) ** 3


def gaussian_kernel(a: np.ndarray, b: np.ndarray, sigma: float = 10.0) -> np.ndarray:
    """CMMD's kernel exp(−|a − b|² / 2σ²) for a (N, d) and b (M, d)."""
    squares = np.square(a).sum(1)[:, None] + np.square(b).sum(1)[None] - 2 * a @ b.T
    return np.exp(-squares / (2 * sigma**2))


def mmd2_unbiased(a: np.ndarray, b: np.ndarray, kernel: Kernel) -> float:
    """Unbiased MMD² of a (N, d) and b (M, d), which may be below zero: no sample is compared with itself."""
    if min(len(a), len(b)) < 2:
        raise ValueError(f"MMD needs at least two samples on each side, got {len(a)} and {len(b)}.")
    within = sum(_kernel_sum(x, x, kernel, skip_diagonal=True) / (len(x) * (len(x) - 1)) for x in (a, b))
    return within - 2 * _kernel_sum(a, b, kernel) / (len(a) * len(b))


def _kernel_sum(a: np.ndarray, b: np.ndarray, kernel: Kernel, skip_diagonal: bool = False) -> float:
    total = 0.0
    for i, x in enumerate(_blocks(a)):
        for j, y in enumerate(_blocks(b)):
            values = kernel(x, y)
            total += float(values.sum() - (np.trace(values) if skip_diagonal and i == j else 0))
    return total


def _blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    for first in range(0, len(rows), BLOCK):
        yield rows[first : first + BLOCK].astype(np.float64)


def kid(
    a: np.ndarray, b: np.ndarray, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Kernel inception distance (arXiv 1801.01401): mean and standard deviation of MMD² over random subsets."""
    size = min(subset_size, len(a), len(b))
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(subsets):
        x, y = (rows[np.sort(rng.choice(len(rows), size, replace=False))] for rows in (a, b))
        values.append(mmd2_unbiased(x, y, polynomial_kernel))
    return float(np.mean(values)), float(np.std(values))


def cmmd(a: np.ndarray, b: np.ndarray) -> float:
    """CLIP maximum mean discrepancy (arXiv 2401.09603), unbiased: 1000 · MMD² of L2-normalised CLIP embeddings.

    The paper's own estimate keeps each sample's distance to itself, which biases it upwards by about 1/N.
    """
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a.astype(np.float64), b.astype(np.float64)))
    return 1000 * mmd2_unbiased(a, b, gaussian_kernel)
