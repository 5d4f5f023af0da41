"""Distances between sets of feature vectors, in float64."""

import numpy as np


def feature_statistics(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (d,) and unbiased covariance (d, d) of features (N, d), both float64."""
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"Features must be (N, d) with N >= 2, got shape {features.shape}.")
    features = features.astype(np.float64)
    return features.mean(0), np.cov(features, rowvar=False).reshape(features.shape[1], -1)


def frechet_distance(mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray, sigma2: np.ndarray) -> float:
    """d² = |μ₁ − μ₂|² + tr Σ₁ + tr Σ₂ − 2 tr √(Σ₁Σ₂) between two Gaussians (arXiv 1706.08500).

    With Σ₁ = LLᵀ, tr √(Σ₁Σ₂) is the sum of the square roots of the eigenvalues of the symmetric LᵀΣ₂L.
    """
    mu1, sigma1, mu2, sigma2 = (np.asarray(a, np.float64) for a in (mu1, sigma1, mu2, sigma2))
    d = mu1.shape[0]
    if mu2.shape != (d,) or sigma1.shape != (d, d) or sigma2.shape != (d, d):
        shapes = [a.shape for a in (mu1, sigma1, mu2, sigma2)]
        raise ValueError(f"Expected shapes (d,), (d, d), (d,), (d, d), got {shapes}.")
    # eigh rather than Cholesky: fewer pictures than features make a covariance singular, which Cholesky refuses.
    values, vectors = np.linalg.eigh(sigma1)
    factor = vectors * np.sqrt(values.clip(min=0))
    overlap = np.sqrt(np.linalg.eigvalsh(factor.T @ sigma2 @ factor).clip(min=0)).sum()
    distance = np.square(mu1 - mu2).sum() + np.trace(sigma1) + np.trace(sigma2) - 2 * overlap
    return max(0.0, float(distance))


def frechet_distance_of_features(a: np.ndarray, b: np.ndarray) -> float:
    """Fréchet distance between the Gaussians fitted to features a (N, d) and b (M, d)."""
    return frechet_distance(*feature_statistics(a), *feature_statistics(b))
