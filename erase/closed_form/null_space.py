"""SPEED (arXiv 2503.07392): which directions of the text embedding an edit may use, so that what is kept stays.

Rows of `concepts`, `anchors`, `preserve`, `empty` are token embeddings with i entries; a weight W is (o, i) and acts as
W c; all maths is in float64. In order: the preserved tokens that matter to a layer (`prior_filter`), noisy copies of
them (`directed_copies`), what must not move at all (`invariants`), the directions left (`null_space`), the edit.
"""

import torch
from torch import Tensor

CLUSTERING_ROUNDS = 100


def prior_filter(weight: Tensor, concepts: Tensor, anchors: Tensor, preserve: Tensor) -> Tensor:
    """The preserved tokens that an unconstrained edit would move more than their mean (arXiv 2503.07392, IPF).

    Keeps p where ‖Δp‖ > mean ‖Δp‖ with Δ = W Σ(a−c)cᵀ (I + Σ c cᵀ)⁻¹. Shapes as in `uce_update`; returns rows of
    preserve.
    """
    concepts, preserve = concepts.double(), preserve.double()
    identity = torch.eye(weight.shape[1], dtype=torch.float64, device=weight.device)
    change = weight.double() @ (anchors.double() - concepts).mT @ concepts
    delta = torch.linalg.solve(identity + concepts.mT @ concepts, change.mT).mT
    moved = (preserve @ delta.mT).norm(dim=1)
    return preserve[moved > moved.mean()]


def directed_copies(weight: Tensor, preserve: Tensor, copies: int, generator: torch.Generator) -> Tensor:
    """p + εv for each preserved token, `copies` times: other tokens that mean the same to W (arXiv 2503.07392, DPA).

    v is the direction that W amplifies least, the right singular vector of the smallest of its min(o, i) singular
    values σ, and ε ~ N(0, 1): W(p + εv) is ‖εσ‖ from Wp. weight: (o, i); preserve: (m, i). Returns (copies·m, i).
    """
    least = torch.linalg.svd(weight.double(), full_matrices=False).Vh[-1]
    least = least * least[least.abs().argmax()].sign()  # of two singular vectors the same one everywhere
    noise = torch.randn(copies * len(preserve), 1, generator=generator, dtype=torch.float64)
    return preserve.double().repeat(copies, 1) + noise.to(weight.device) * least


def invariants(empty: Tensor, centers: int) -> Tensor:
    """What of the empty prompt an edit must not move: its first token and cluster centres of the others (IEC).

    empty: (T, i). Returns (1 + centers, i), or with no centres all T tokens.
    """
    return torch.cat([empty[:1], cluster_centers(empty[1:], centers)]) if centers else empty


def cluster_centers(points: Tensor, count: int) -> Tensor:
    """k-means (Lloyd) of points (n, i), begun at `count` of them, evenly spaced in their order. Returns (count, i).

    The empty prompt's tokens lie along a curve, so evenly spaced ones are far apart and nothing need be random.
    """
    centers = points[torch.linspace(0, len(points) - 1, count).round().long()]
    for _ in range(CLUSTERING_ROUNDS):
        nearest = torch.cdist(points, centers).argmin(dim=1)
        groups = [points[nearest == at] for at in range(count)]
        moved = torch.stack([group.mean(dim=0) if len(group) else old for group, old in zip(groups, centers)])
        if torch.equal(moved, centers):
            break
        centers = moved
    return centers


def null_space(preserve: Tensor, invariant: Tensor, threshold: float) -> Tensor:
    """Orthonormal basis U (i, r) of the directions in which the preserved tokens have next to no energy.

    Eigenvectors of Σ p pᵀ whose eigenvalue is below `threshold` times the mean eigenvalue; of these, what is orthogonal
    to every row of `invariant` (k, i). preserve: (m, i). ValueError where nothing is left.
    """
    energies, directions = torch.linalg.eigh(preserve.double().mT @ preserve.double())
    free = directions[:, energies < threshold * energies.mean()]
    _, sizes, turned = torch.linalg.svd(invariant.double() @ free)
    held = int((sizes > 1e-9 * invariant.double().norm()).sum())
    if held == turned.shape[0]:
        raise ValueError(
            f"What is preserved fills all {len(energies)} directions of the text embedding ({free.shape[1]} are below "
            f"{threshold} of the mean energy, {held} of them are used by the empty prompt): raise "
            "--edit_null_threshold, or retain fewer prompts."
        )
    return free @ turned[held:].mT


def speed_update(
    weight: Tensor, concepts: Tensor, anchors: Tensor, basis: Tensor, *, erase_weight: float, regularization: float
) -> Tensor:
    """W' = W + W Σ(a−c)cᵀ U (λ/e·I + Uᵀ Σ c cᵀ U)⁻¹ Uᵀ (arXiv 2503.07392): an edit that only U can see.

    The minimum over Δ of e·Σ‖(W + ΔUUᵀ)c − Wa‖² + λ‖ΔUUᵀ‖²; docs/methods/speed.md derives it. weight: (o, i);
    concepts, anchors: (n, i); basis: U (i, r) from `null_space`. Returns (o, i) in the weight's dtype.
    """
    seen = concepts.double() @ basis
    wanted = weight.double() @ (anchors.double() - concepts.double()).mT @ seen
    identity = torch.eye(basis.shape[1], dtype=torch.float64, device=weight.device)
    change = torch.linalg.solve(regularization / erase_weight * identity + seen.mT @ seen, wanted.mT).mT
    return (weight.double() + change @ basis.mT).to(weight.dtype)
