"""Losses of erasure as pure functions of predictions, written once in the denoiser's native output space.

At a fixed (x_t, t), ε, v, x0 and flow velocity are affine in each other, so guidance (weights that sum to 1) and
differences of predictions say the same in each family's space.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..models.base import Conditioning, cat
from .attention import attention_loss

Predict = Callable[[Tensor, Tensor, Conditioning], Tensor]
"""(x_t, t, conditioning) → the denoiser's output, shape of x_t."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One training batch: F forget rows and R ≥ 0 retain rows; latents are (·, C, h, w), timesteps (·,)."""

    forget_x: Tensor
    """Noisy latents of the concept's (or the anchor's) pictures, or of the base model's trajectories."""
    forget_t: Tensor
    """Their timesteps."""
    forget_y: Tensor | None
    """The training target at `forget_x`; trajectories have none."""
    concept: Conditioning
    """Conditioning of the forget prompts."""
    anchor: Conditioning
    """Conditioning of the mismatched prompts, row by row."""
    empty: Conditioning
    """Conditioning of the empty prompt, as often as there are forget rows."""
    tokens: Tensor | None
    """(F, T) bool: which tokens of the forget prompts name the concept; only for losses on attention."""
    retain_x: Tensor
    """Noisy latents of the retained pictures."""
    retain_t: Tensor
    """Their timesteps."""
    retain: Conditioning
    """Conditioning of the retained prompts."""
    retain_y: Tensor
    """The training target at `retain_x`."""


@dataclass(frozen=True, kw_only=True)
class Models:
    """Who predicts what in a loss."""

    predict: Predict
    """The model being trained; losses call it once, with forget and retain rows together."""
    teacher: Predict
    """Gives the forget target, without a graph: the frozen base or the weights as they are."""
    keeper: Predict | None = None
    """Gives the retain target in place of the training target `Batch.retain_y`: the frozen base."""
    negative_guidance: float = 1.0
    """η of `negative_guidance`."""
    attention_maps: "Callable[[slice, Tensor], AbstractContextManager[list[Tensor]]] | None" = None
    """(rows, token positions) → the cross-attention maps of the predictions made meanwhile; only `attention` asks."""


Losses = dict[str, Tensor]
Objective = Callable[[Models, Batch], Losses]
"""`forget`, and `retain` where the batch has retain rows; unweighted scalars."""


def guided(predict: Predict, x: Tensor, t: Tensor, concept: Conditioning, empty: Conditioning, scale: float) -> Tensor:
    """(1+s)·f(x_t, c) − s·f(x_t, ∅), both branches in one forward of 2B rows."""
    with_prompt, without = predict(torch.cat([x, x]), torch.cat([t, t]), cat(concept, empty)).chunk(2)
    return (1 + scale) * with_prompt - scale * without


def forgetting_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """ℓ_f = −‖y − prediction‖², averaged: gradient ascent on the training loss (arXiv 2310.12508, eq. 3)."""
    return -F.mse_loss(prediction.float(), target.float())


def mismatch(models: Models, batch: Batch) -> Losses:
    """‖f(x_t, c) − sg f*(x_t, a)‖²: the concept's prompt shall do what the anchor's does.

    SalUn (arXiv 2310.12508, eq. 8) on the concept's pictures, concept ablation (2303.13516, eq. 4) on the anchor's.
    """
    with torch.no_grad():
        wanted = models.teacher(batch.forget_x, batch.forget_t, batch.anchor)
    forget, retain = _predictions(models, batch)
    return {"forget": F.mse_loss(forget.float(), wanted.float())} | _retain_loss(models, batch, retain)


def ascent(models: Models, batch: Batch) -> Losses:
    """−‖f(x_t, c) − y‖²: gradient ascent on the training loss of the concept's pictures (arXiv 2109.13398)."""
    if batch.forget_y is None:
        raise ValueError("Gradient ascent needs pictures, which have a training target: use --forget_x pictures.")
    forget, retain = _predictions(models, batch)
    return {"forget": forgetting_loss(forget, batch.forget_y)} | _retain_loss(models, batch, retain)


def negative_guidance(models: Models, batch: Batch) -> Losses:
    """‖f(x_t, c) − sg [f*(x_t, ∅) − η (f*(x_t, c) − f*(x_t, ∅))]‖²: the prediction that guides away from c.

    ESD (arXiv 2303.07345, eq. 7) on all the weights in scope, LECO on a low-rank adapter.
    """
    with torch.no_grad():
        wanted = guided(
            models.teacher, batch.forget_x, batch.forget_t, batch.empty, batch.concept, models.negative_guidance
        )
    forget, retain = _predictions(models, batch)
    return {"forget": F.mse_loss(forget.float(), wanted.float())} | _retain_loss(models, batch, retain)


def attention(models: Models, batch: Batch) -> Losses:
    """‖A[:, concept tokens]‖² of the cross-attention maps at x_t: Forget-Me-Not (arXiv 2303.17591, algorithm 1)."""
    assert models.attention_maps is not None and batch.tokens is not None
    positions = batch.tokens.any(0).nonzero().flatten()
    with models.attention_maps(slice(len(batch.forget_x)), positions) as maps:
        forget, retain = _predictions(models, batch)
    # Values and outputs of the last layers do not reach the maps; under DDP every parameter must have its gradient.
    loss = attention_loss(maps, batch.tokens[:, positions]) + 0 * forget.sum()
    return {"forget": loss} | _retain_loss(models, batch, retain)


OBJECTIVES: dict[str, Objective] = {
    "mismatch": mismatch,
    "ascent": ascent,
    "negative-guidance": negative_guidance,
    "attention": attention,
}


def _predictions(models: Models, batch: Batch) -> tuple[Tensor, Tensor]:
    """What the trained model says of forget and retain rows, in one forward."""
    x, t = torch.cat([batch.forget_x, batch.retain_x]), torch.cat([batch.forget_t, batch.retain_t])
    forget, retain = models.predict(x, t, cat(batch.concept, batch.retain)).split(
        [len(batch.forget_x), len(batch.retain_x)]
    )
    return forget, retain


def _retain_loss(models: Models, batch: Batch, prediction: Tensor) -> Losses:
    """‖f(x_t, r) − y‖², y being the training target or the keeper's prediction; nothing without retain rows."""
    if len(batch.retain_x) == 0:
        return {}
    with torch.no_grad():
        kept = models.keeper(batch.retain_x, batch.retain_t, batch.retain) if models.keeper else batch.retain_y
    return {"retain": F.mse_loss(prediction.float(), kept.float())}
