"""Closed-form editing: new weights from token embeddings alone, without a picture, a gradient or a training step.

Only the matrices that read the text are edited: the cross-attention keys and values of a UNet, the context embedder of
an MMDiT. Rows of `concepts`, `anchors`, `preserve` are token embeddings c, a, p with i entries; a weight W is (o, i)
and acts as W c. All maths is done in float64 whatever the weight's dtype: thousands of nearly equal tokens make Σ p pᵀ
so ill-conditioned (10⁵ and more) that float32 would leave errors of the size of the edit, and the matrices are small.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..concepts.concept import Concept
from ..config import EraseConfig
from ..models.base import Denoiser
from ..saliency.mask import SaliencyMask
from .null_space import directed_copies, invariants, null_space, prior_filter, speed_update
from .tokens import EditTokens, EditTokenSet, edit_tokens

EditMethod = Literal["recommended", "uce", "rece", "speed"]
SOLVE_ENTRIES = 2**20
"""Entries of all small systems that are solved at once: they stay in the cache, 8 MB in float64."""


@dataclass(frozen=True, kw_only=True)
class EditSettings:
    """The settings of a closed-form edit."""

    method: EditMethod
    """uce, recommended: one weighted least-squares edit (of all weights, or of those in the mask). rece: the same, then
    again on what still brings the concept back. speed: an edit inside the null space of what is preserved."""
    erase_weight: float = 1.0
    """Weight e of the concept's tokens in the least squares, above 0."""
    preserve_weight: float = 1.0
    """Weight p of each preserved token, at least 0 (recommended, uce, rece)."""
    regularization: float = 0.5
    """λ, above 0: how much the weights are held where they are, in units of squared embedding norms."""
    rounds: int = 3
    """rece: how often an embedding that still brings the concept back is derived and edited away."""
    mu: float = 0.1
    """rece: μ, above 0; the larger, the shorter the derived embeddings."""
    null_threshold: float = 0.1
    """speed: a direction is free to change when the preserved tokens have less energy in it than this many times their
    mean over all directions."""
    augmentations: int = 10
    """speed: noisy copies of each preserved token that are preserved with it; 0 does without."""
    empty_centers: int = 3
    """speed: the empty prompt's first token and this many cluster centres of the others stay exactly as they are; 0
    holds every one of its tokens."""
    seed: int = 0
    """speed: seed of the copies' noise."""
    tokens: EditTokens = "all"
    """Which tokens are paired: all positions of both prompts, or only the last one that tells them apart."""

    def __post_init__(self) -> None:
        for field, choices in (("method", get_args(EditMethod)), ("tokens", get_args(EditTokens))):
            if getattr(self, field) not in choices:
                raise ValueError(f"{field} must be one of {', '.join(choices)}; got {getattr(self, field)!r}.")
        for field in ("erase_weight", "regularization", "mu", "null_threshold"):
            if getattr(self, field) <= 0:
                raise ValueError(f"{field} must be above 0, got {getattr(self, field)}.")
        if self.preserve_weight < 0:
            raise ValueError(f"preserve_weight must be at least 0, got {self.preserve_weight}.")
        for field in ("augmentations", "empty_centers"):
            if getattr(self, field) < 0:
                raise ValueError(f"{field} must be at least 0, got {getattr(self, field)}.")
        if self.rounds < 1:
            raise ValueError(f"rounds must be at least 1, got {self.rounds}; `uce` is the edit without rounds.")


def edit_settings(config: EraseConfig) -> EditSettings:
    """What of `config` a closed-form edit reads."""
    return EditSettings(
        method=config.method,  # type: ignore[arg-type]
        erase_weight=config.erase_weight,
        preserve_weight=config.preserve_weight,
        regularization=config.edit_regularization,
        rounds=config.edit_rounds,
        mu=config.edit_mu,
        null_threshold=config.edit_null_threshold,
        augmentations=config.edit_augmentations,
        empty_centers=config.edit_empty_centers,
        seed=config.seed,
        tokens=config.edit_tokens,
    )


def uce_system(
    concepts: Tensor,
    anchors: Tensor,
    preserve: Tensor,
    *,
    erase_weight: float,
    preserve_weight: float,
    regularization: float,
) -> tuple[Tensor, Tensor]:
    """G = λI + e·Σ c cᵀ + p·Σ p pᵀ and B = e·Σ (a − c) cᵀ, both (i, i) in float64: the edit Δ of W solves ΔG = W B.

    −2 W B is also the gradient of UCE's loss at Δ = 0. Both are the same for every layer that reads these tokens.
    Shapes as in `uce_update`.
    """
    concepts, anchors, preserve = concepts.double(), anchors.double(), preserve.double()
    gram = regularization * torch.eye(concepts.shape[1], dtype=torch.float64, device=concepts.device)
    gram += preserve_weight * preserve.mT @ preserve + erase_weight * concepts.mT @ concepts
    return gram, erase_weight * (anchors - concepts).mT @ concepts


def uce_update(
    weight: Tensor,
    concepts: Tensor,
    anchors: Tensor,
    preserve: Tensor,
    *,
    erase_weight: float,
    preserve_weight: float,
    regularization: float,
    chosen: Tensor | None = None,
) -> Tensor:
    """W' = (λW + e·Σ W a cᵀ + p·Σ W p pᵀ)(λI + e·Σ c cᵀ + p·Σ p pᵀ)⁻¹ (arXiv 2308.14761, eq. 7).

    The minimum over W' of e·Σ‖W'c − Wa‖² + p·Σ‖W'p − Wp‖² + λ‖W' − W‖²; with `chosen`, (o, i) bool, the minimum over
    the W' that equal W elsewhere. weight: (o, i); concepts, anchors: (n, i); preserve: (m, i), m may be 0. Returns
    (o, i) in the weight's dtype.
    """
    system = uce_system(
        concepts,
        anchors,
        preserve,
        erase_weight=erase_weight,
        preserve_weight=preserve_weight,
        regularization=regularization,
    )
    return solved(weight, *system, chosen)


def solved(weight: Tensor, gram: Tensor, pull: Tensor, chosen: Tensor | None = None) -> Tensor:
    """W + Δ with ΔG = W B, or with `chosen` the same for each row's chosen entries S alone: Δ_S G_SS = (W B)_S.

    weight: (o, i); gram, pull: G and B of `uce_system`; chosen: (o, i) bool. Returns (o, i) in the weight's dtype; what
    is not chosen keeps its bits.
    """
    wanted = weight.double() @ pull
    if chosen is None:
        return (weight.double() + torch.linalg.solve(gram, wanted.mT).mT).to(weight.dtype)
    new, counts = weight.clone(), chosen.sum(dim=1)
    places = chosen.to(weight.device, torch.uint8).argsort(dim=1, descending=True, stable=True)
    for rows in _alike(counts):
        at = places[rows, : int(counts[rows].max())]
        change = _solved_rows(gram, wanted[rows].gather(1, at), at, counts[rows].to(at.device))
        free = chosen[rows].to(weight.device)
        moved = torch.zeros_like(wanted[rows]).scatter_(1, at, change)
        new[rows] = torch.where(free, (weight[rows].double() + moved).to(weight.dtype), weight[rows])
    return new


def _alike(counts: Tensor) -> Iterator[Tensor]:
    """Rows in groups of nearly as many chosen entries, so that the systems of a group fit into SOLVE_ENTRIES."""
    order = counts.argsort(descending=True)
    order = order[counts[order] > 0]
    while len(order):
        size = max(1, SOLVE_ENTRIES // int(counts[order[0]]) ** 2)
        yield order[:size]
        order = order[size:]


def _solved_rows(gram: Tensor, wanted: Tensor, at: Tensor, counts: Tensor) -> Tensor:
    """x with x G_SS = wanted for each row's S, the first `counts` of `at`; what follows them comes out as 0.

    gram: (i, i); wanted, at: (r, k); counts: (r,). One batch for all rows: a GPU solves them at once.
    """
    real = torch.arange(at.shape[1], device=at.device) < counts[:, None]
    identity = torch.eye(at.shape[1], dtype=gram.dtype, device=gram.device)
    system = torch.where(real[:, :, None] & real[:, None, :], gram[at[:, :, None], at[:, None, :]], identity)
    factor = torch.linalg.cholesky(system)
    return torch.cholesky_solve(torch.where(real, wanted, 0.0)[..., None], factor)[..., 0]


def derive_concepts(base: Sequence[Tensor], edited: Sequence[Tensor], concepts: Tensor, *, mu: float) -> Tensor:
    """c' = (μI + Σ_l W'_lᵀW'_l)⁻¹(Σ_l W'_lᵀW_l) c: what makes the edited layers answer as the base's did to c.

    The minimum over c' of Σ_l ‖W'_l c' − W_l c‖² + μ‖c'‖² (arXiv 2407.12383, eq. 8–10): one c' for all layers, as a
    prompt has one embedding. base, edited: W_l and W'_l, (o_l, i); concepts: (n, i). Returns (n, i) in float64.
    """
    now = mu * torch.eye(concepts.shape[1], dtype=torch.float64, device=concepts.device)
    cross = torch.zeros_like(now)
    for before, after in zip(base, edited, strict=True):
        now += after.double().mT @ after.double()
        cross += after.double().mT @ before.double()
    return torch.linalg.solve(now, cross @ concepts.double().mT).mT


def edit(
    denoiser: Denoiser, concepts: Sequence[Concept], settings: EditSettings, mask: SaliencyMask | None = None
) -> dict[str, Tensor]:
    """Edit the denoiser in place and return name → new weight of each edited parameter.

    Each forget prompt's tokens are mapped to its anchor's; the retain prompts and the empty prompt stay. With a mask
    the edit is the best one that leaves every other weight alone. The text encoders must still be loaded. ValueError
    when the denoiser has no such layer, or when the mask leaves none of its weights.
    """
    weights = edited_weights(denoiser.module)
    chosen = None if mask is None else _chosen(mask, denoiser.module, weights)
    with torch.no_grad():
        tokens = edit_tokens(denoiser, concepts, settings.tokens)
        edited = UPDATES[settings.method](list(weights.values()), tokens, settings, chosen)
        for weight, new in zip(weights.values(), edited, strict=True):
            weight.copy_(new)
    return {name: weight.detach().clone() for name, weight in weights.items()}


def edited_weights(module: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that read the text: attn2.to_k and attn2.to_v of a UNet, context_embedder of an MMDiT."""
    own = dict(module.named_parameters())
    found = {n: p for n, p in own.items() if n.endswith((".attn2.to_k.weight", ".attn2.to_v.weight"))}
    found = found or {n: p for n, p in own.items() if n == "context_embedder.weight"}
    if not found:
        raise ValueError(
            f"{type(module).__name__} has neither cross-attention keys and values (attn2.to_k, attn2.to_v) nor a "
            "context_embedder, which closed-form methods edit; Stable Diffusion 1, 2, XL and 3 have. A trained method "
            "such as --method salun works on any denoiser."
        )
    return found


def _chosen(mask: SaliencyMask, module: nn.Module, weights: Mapping[str, Tensor]) -> list[Tensor]:
    mask.check(module)
    chosen = [mask.tensors[name] for name in weights]
    if not any(bool(part.any()) for part in chosen):
        raise ValueError(
            f"The mask selects no weight of the {len(weights)} layers that a closed-form method edits (such as "
            f"{next(iter(weights))}); build it with --scope cross-attention-kv, or edit without a mask."
        )
    return chosen


Chosen = Sequence[Tensor] | None
"""For each weight, which of its entries may change; None for all."""


def system_of(tokens: EditTokenSet, settings: EditSettings) -> tuple[Tensor, Tensor]:
    """`uce_system` of an edit's tokens, weighted as its settings say."""
    return uce_system(
        tokens.concepts,
        tokens.anchors,
        tokens.preserve,
        erase_weight=settings.erase_weight,
        preserve_weight=settings.preserve_weight,
        regularization=settings.regularization,
    )


def _uce(
    weights: Sequence[Tensor], tokens: EditTokenSet, settings: EditSettings, chosen: Chosen = None
) -> list[Tensor]:
    gram, pull = system_of(tokens, settings)
    parts = chosen if chosen is not None else [None] * len(weights)
    return [solved(weight, gram, pull, part) for weight, part in zip(weights, parts, strict=True)]


def _rece(
    weights: Sequence[Tensor], tokens: EditTokenSet, settings: EditSettings, chosen: Chosen = None
) -> list[Tensor]:
    """Rounds of: derive the c' that still bring the concept back, and edit the base again with them beside c.

    The published loop edits the last round's weights and maps c' alone, which lets go of c where everything else is
    preserved (docs/methods/rece.md has the figures).
    """
    base, erased = [weight.double() for weight in weights], tokens
    edited = _uce(base, tokens, settings, chosen)
    for _ in range(settings.rounds):
        derived = derive_concepts(base, edited, tokens.concepts, mu=settings.mu)
        concepts, anchors = torch.cat([erased.concepts, derived]), torch.cat([erased.anchors, tokens.anchors])
        erased = replace(erased, concepts=concepts, anchors=anchors)
        edited = _uce(base, erased, settings, chosen)
    return [new.to(weight.dtype) for new, weight in zip(edited, weights)]


def _speed(
    weights: Sequence[Tensor], tokens: EditTokenSet, settings: EditSettings, chosen: Chosen = None
) -> Iterator[Tensor]:
    """The null space is each layer's own: which preserved tokens matter depends on its weight."""
    if chosen is not None:
        raise ValueError("speed edits inside a null space, which an edit of some weights alone would leave; no mask.")
    held = invariants(tokens.empty, settings.empty_centers)
    generator = torch.Generator().manual_seed(settings.seed)
    for weight in weights:
        affected = partial(prior_filter, weight, tokens.concepts, tokens.anchors)
        preserve = affected(tokens.preserve)
        if settings.augmentations:
            copies = directed_copies(weight, preserve, settings.augmentations, generator)
            preserve = torch.cat([preserve, affected(copies)])
        yield speed_update(
            weight,
            tokens.concepts,
            tokens.anchors,
            null_space(preserve, held, settings.null_threshold),
            erase_weight=settings.erase_weight,
            regularization=settings.regularization,
        )


UPDATES: dict[str, Callable[..., Any]] = {"recommended": _uce, "uce": _uce, "rece": _rece, "speed": _speed}
