"""Losses of erasure as pure functions of predictions, written once in the denoiser's native output space.

At a fixed (x_t, t), ε, v, x0 and flow velocity are affine in each other, so guidance (weights that sum to 1) and
differences of predictions say the same in each family's space.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .models.base import Conditioning, cat

Predict = Callable[[Tensor, Tensor, Conditioning], Tensor]
"""(x_t, t, conditioning) → the denoiser's output, shape of x_t."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One training batch: F forget rows and R retain rows; latents are (·, C, h, w), timesteps (·,)."""

    forget_x: Tensor
    """Noisy latents of the concept's (or the anchor's) pictures."""
    forget_t: Tensor
    """Their timesteps."""
    concept: Conditioning
    """Conditioning of the forget prompts."""
    anchor: Conditioning
    """Conditioning of the mismatched prompts, row by row."""
    retain_x: Tensor
    """Noisy latents of the retained pictures."""
    retain_t: Tensor
    """Their timesteps."""
    retain: Conditioning
    """Conditioning of the retained prompts."""
    retain_y: Tensor
    """The training target at `retain_x`."""


def guided(predict: Predict, x: Tensor, t: Tensor, concept: Conditioning, empty: Conditioning, scale: float) -> Tensor:
    """(1+s)·f(x_t, c) − s·f(x_t, ∅), both branches in one forward of 2B rows."""
    with_prompt, without = predict(torch.cat([x, x]), torch.cat([t, t]), cat(concept, empty)).chunk(2)
    return (1 + scale) * with_prompt - scale * without


def forgetting_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """ℓ_f = −‖y − prediction‖², averaged: gradient ascent on the training loss (arXiv 2310.12508, eq. 3)."""
    return -F.mse_loss(prediction.float(), target.float())


def salun(predict: Predict, teacher: Predict, batch: Batch, keeper: Predict | None = None) -> dict[str, Tensor]:
    """SalUn's losses (arXiv 2310.12508, eq. 8), unweighted: forget ‖f(x_t,c) − sg f*(x_t,a)‖², retain ‖f(x_t,r) − y‖².

    Args:
        predict: the model being trained, called once with forget and retain rows together.
        teacher: gives the anchor's prediction, without a graph: the current weights or the frozen base.
        keeper: gives the retain target in place of the training target `batch.retain_y`: the frozen base.
    """
    with torch.no_grad():
        wanted = teacher(batch.forget_x, batch.forget_t, batch.anchor)
        kept = keeper(batch.retain_x, batch.retain_t, batch.retain) if keeper else batch.retain_y
    x, t = torch.cat([batch.forget_x, batch.retain_x]), torch.cat([batch.forget_t, batch.retain_t])
    sizes = [len(batch.forget_x), len(batch.retain_x)]
    forget, retain = predict(x, t, cat(batch.concept, batch.retain)).split(sizes)
    return {
        "forget": F.mse_loss(forget.float(), wanted.float()),
        "retain": F.mse_loss(retain.float(), kept.float()),
    }
