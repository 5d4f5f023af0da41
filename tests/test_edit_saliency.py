"""Where a closed form changes weights: scores equal naive sums and autograd's gradient, a pursuit is greedy and exact.

A pursuit is recomputed with numpy from its definition, entry by entry, and must do better than its first round alone.
"""

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from test_closed_form import TINY, normal, problem
from torch import Tensor

from erase import load_denoiser
from erase.closed_form.edit import EditSettings, edit, edited_weights, solved, uce_system
from erase.closed_form.saliency import edit_saliency, edit_scores, pursuit
from erase.closed_form.tokens import edit_tokens
from erase.saliency.mask import SaliencyMask
from erase.saliency.scores import Score

TinyFolder = Callable[[str], Path]
WEIGHTS = {"erase_weight": 0.7, "preserve_weight": 1.3, "regularization": 0.5}


@pytest.mark.parametrize("score", get_args(Score))
def test_scores_of_an_edit_equal_sums_over_single_tokens(score: Score) -> None:
    w, c, a, _ = problem()
    gradients = [np.outer(w.numpy() @ (y - x), x) for x, y in zip(c.numpy(), a.numpy())]
    expected = {
        "gradient": np.abs(sum(gradients)),
        "fisher": sum(map(np.abs, gradients)),
        "snip": np.abs(w.numpy() * sum(gradients)),
    }[score]
    np.testing.assert_allclose(edit_scores(w, c, a, score).numpy(), expected, rtol=1e-9, atol=1e-12)


def test_saliency_is_the_gradient_of_the_edits_forgetting_loss(tiny: TinyFolder) -> None:
    denoiser = load_denoiser(str(tiny("sd1")))
    with torch.no_grad():
        tokens = edit_tokens(denoiser, [TINY], "all")
    found = edit_saliency(denoiser, [TINY], EditSettings(method="uce"), "gradient", 0.1)
    assert found.keys() == edited_weights(denoiser.module).keys()
    for name, weight in edited_weights(denoiser.module).items():
        w = weight.detach().double().requires_grad_()
        loss = (tokens.concepts @ w.T - tokens.anchors @ w.detach().T).square().sum()
        (gradient,) = torch.autograd.grad(loss, w)
        torch.testing.assert_close(2 * found[name], gradient.abs().float(), rtol=1e-4, atol=1e-5)


def layers() -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Two weights that read the same tokens, G and B."""
    w, c, a, p = problem()
    return {"one": w, "two": normal(7, w.shape[1], seed=10)}, *uce_system(c, a, p, **WEIGHTS)


def loss(weights: dict[str, Tensor], chosen: dict[str, Tensor], gram: Tensor, pull: Tensor) -> float:
    """½ΔGΔᵀ − W B Δᵀ, the edit's loss up to a constant, at its minimum over the chosen entries."""
    total = 0.0
    for name, weight in weights.items():
        change = solved(weight, gram, pull, chosen[name]) - weight
        total += float((0.5 * (change @ gram) * change - (weight @ pull) * change).sum())
    return total


def test_a_pursuit_of_single_weights_takes_the_best_one_each_time() -> None:
    weights, gram, pull = layers()
    chosen = {name: torch.zeros(weight.shape, dtype=torch.bool) for name, weight in weights.items()}
    for count in range(1, 5):
        gains = {}
        for name, weight in weights.items():
            change = (solved(weight, gram, pull, chosen[name]) - weight).numpy()
            gradient = weight.numpy() @ pull.numpy() - change @ gram.numpy()
            gains |= {(name, *at): gradient[at] ** 2 / gram[at[1], at[1]].item() for at in np.ndindex(gradient.shape)}
        best = max((place for place in gains if not chosen[place[0]][place[1:]]), key=gains.__getitem__)
        chosen[best[0]][best[1:]] = True
        found = pursuit(weights, gram, pull, count, rounds=count)
        assert all(torch.equal(found[name], chosen[name]) for name in weights), count


def test_rounds_choose_better_than_one_look() -> None:
    weights, gram, pull = layers()
    at_once, in_rounds = (pursuit(weights, gram, pull, 30, rounds=rounds) for rounds in (1, 12))
    assert sum(int(mask.sum()) for mask in in_rounds.values()) == 30
    assert loss(weights, in_rounds, gram, pull) < loss(weights, at_once, gram, pull) < 0


def test_a_pursuits_mask_has_the_density_and_erases_more(tiny: TinyFolder) -> None:
    def gap(score: Score | str) -> float:
        denoiser = load_denoiser(str(tiny("sd1")))
        settings = EditSettings(method="recommended")
        scores = edit_saliency(denoiser, [TINY], settings, score, 0.1)  # type: ignore[arg-type]
        mask = SaliencyMask.from_scores(scores, density=0.1)
        assert mask.count == round(0.1 * sum(weight.numel() for weight in scores.values()))
        before = {name: weight.detach().clone() for name, weight in edited_weights(denoiser.module).items()}
        with torch.no_grad():
            tokens = edit_tokens(denoiser, [TINY], "all")
        after = edit(denoiser, [TINY], settings, mask.covering(denoiser.module))
        return sum(
            float((tokens.concepts @ after[name].double().T - tokens.anchors @ w.double().T).square().sum())
            for name, w in before.items()
        )

    assert gap("pursuit") < gap("gradient")
