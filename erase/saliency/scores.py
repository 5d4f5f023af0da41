"""How much each weight matters to a loss: gradient scores of any module (arXiv 2310.12508, eq. 4).

Nothing here knows of diffusion: only of modules and losses.
"""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

Score = Literal["gradient", "fisher", "snip"]


def saliency_scores(
    module: nn.Module,
    losses: Iterable[Callable[[], Tensor]],
    score: Score = "gradient",
    parameters: Container[str] | None = None,
    backward: Callable[[Tensor], None] | None = None,
    reduce: Callable[[Tensor], object] | None = None,
) -> dict[str, Tensor]:
    """How much each weight w matters to the losses ℓ_b (arXiv 2310.12508, eq. 4), with the module in eval mode.

        gradient  |Σ_b ∇ℓ_b|        fisher  Σ_b |∇ℓ_b|        snip  |w · Σ_b ∇ℓ_b|

    losses: closures that each return one scalar; they run in turn. parameters: names to score, default all; the others
    need no gradient meanwhile. backward: default `loss.backward()`; pass `accelerator.backward` under accelerate.
    reduce: sums a tensor over processes in place, so that all of them score alike; default none.
    Returns name → score ≥ 0, shape and dtype of the parameter, zero for a parameter that no loss uses. The scores ARE
    the accumulated `.grad` tensors: peak memory is parameters + gradients + one batch ("fisher" cannot do without one
    more set of gradients). The module's modes, requires_grad and earlier gradients are put back.
    Raises ValueError when no parameter is named, when a gradient is not finite, or when all of them are zero.
    """
    if score not in ("gradient", "fisher", "snip"):
        raise ValueError(f"Unknown score {score!r}: expected 'gradient', 'fisher' or 'snip'.")
    with _scoring(module, parameters) as named, torch.enable_grad():
        totals: dict[str, Tensor] = {}
        for loss in losses:
            (backward or Tensor.backward)(loss())
            if score == "fisher":
                _take_absolute(named, totals)
        scores = totals if score == "fisher" else {n: p.grad for n, p in named.items() if p.grad is not None}
        with torch.no_grad():
            for name, gradient in scores.items():
                if reduce:
                    reduce(gradient)
                if score == "snip":
                    gradient.mul_(named[name])
            _refuse_useless(scores)
            return {n: scores[n].abs_() if n in scores else torch.zeros_like(p) for n, p in named.items()}


def _take_absolute(named: Mapping[str, nn.Parameter], totals: dict[str, Tensor]) -> None:
    """Add |grad| to the totals and drop it; the first batch's gradient becomes the total itself."""
    for name, parameter in named.items():
        if parameter.grad is not None:
            gradient, parameter.grad = parameter.grad.abs_(), None
            totals[name] = totals[name].add_(gradient) if name in totals else gradient


def _refuse_useless(scores: Mapping[str, Tensor]) -> None:
    """ValueError when a score is not finite or when none of them is above zero."""
    for name, score in scores.items():
        if not torch.isfinite(score).all():
            raise ValueError(
                f"The gradient of {name!r} ({score.dtype}) is not finite. Score in float32 (or bfloat16 "
                "instead of float16), and look for a loss that divides by zero."
            )
    if not any(bool(score.any()) for score in scores.values()):
        raise ValueError(
            "Every gradient is zero: the losses do not depend on these parameters, or there were no losses."
        )


@contextmanager
def _scoring(module: nn.Module, parameters: Container[str] | None) -> Iterator[dict[str, nn.Parameter]]:
    """Eval mode, with gradients for the named parameters alone; puts everything back."""
    everything = dict(module.named_parameters())
    named = {name: p for name, p in everything.items() if parameters is None or name in parameters}
    if not named:
        raise ValueError(
            f"None of the module's {len(everything)} parameters is to be scored: compare the names asked for."
        )
    before = {name: (p.requires_grad, p.grad) for name, p in everything.items()}
    with eval_mode(module):
        try:
            for name, parameter in everything.items():
                parameter.grad = None
                parameter.requires_grad_(name in named)
            yield named
        finally:
            for name, parameter in everything.items():
                parameter.requires_grad_(before[name][0]).grad = before[name][1]


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Eval mode for a while; afterwards each submodule is in the mode that it was in."""
    modes = {child: child.training for child in module.modules()}
    try:
        module.eval()
        yield
    finally:
        for child, training in modes.items():
            child.training = training
