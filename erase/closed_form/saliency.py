"""Which weights an edit in closed form shall change: SalUn's saliency for its least squares, at once or in rounds.

The loss of an edit (`closed_form.uce_update`) is known exactly, and so is its gradient, after any change: no picture is
needed, and weights may be chosen with the eyes on what those chosen before have left to do.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from ..concepts.concept import Concept
from ..models.base import Denoiser
from ..saliency.scores import Score
from ..saliency.topk import top_k
from .edit import EditSettings, edited_weights, solved, system_of
from .tokens import edit_tokens

EditScore = Score | Literal["pursuit"]
ROUNDS = 12
"""Of a pursuit: more change little (docs/methods/recommended.md)."""


def edit_scores(weight: Tensor, concepts: Tensor, anchors: Tensor, score: Score = "gradient") -> Tensor:
    """How much each entry of W (o, i) matters to Σ‖Wc − W_o a‖² at W_o: SalUn's saliency for the edit, float64.

        gradient  |W_o Σ(a − c)cᵀ|      fisher  Σ|W_o (a − c)|·|c|ᵀ      snip  |W_o ⊙ W_o Σ(a − c)cᵀ|

    weight: (o, i); concepts, anchors: (n, i).
    """
    weight, concepts = weight.double(), concepts.double()
    pulled = weight @ (anchors.double() - concepts).mT
    if score == "fisher":
        return pulled.abs() @ concepts.abs()
    gradient = pulled @ concepts
    return (weight * gradient if score == "snip" else gradient).abs()


def pursuit(
    weights: Mapping[str, Tensor], gram: Tensor, pull: Tensor, count: int, rounds: int = ROUNDS
) -> dict[str, Tensor]:
    """Name → which entries of each weight (o, i) to change, `count` in all: orthogonal matching pursuit in rounds.

    Each round solves for the entries chosen so far and adds those whose change alone would lower the loss most from
    there, g²/G_jj with the gradient g = W_o B − ΔG (Pati et al. 1993, a few at a time). gram, pull: G and B of
    `uce_system`. Entries that were chosen stay chosen.
    """
    chosen = {name: torch.zeros(weight.shape, dtype=torch.bool) for name, weight in weights.items()}
    changed = dict(weights)
    for done in range(1, rounds + 1):
        gains = {}
        for name, weight in weights.items():
            left = weight.double() @ pull - (changed[name].double() - weight.double()) @ gram
            gain = (left.square() / gram.diagonal()).float()
            gains[name] = gain.masked_fill(chosen[name].to(gain.device), torch.inf)
        chosen = top_k(gains, max(1, round(count * done / rounds)))
        if done < rounds:
            changed = {name: solved(weight, gram, pull, chosen[name]) for name, weight in weights.items()}
    return chosen


@torch.no_grad()
def edit_saliency(
    denoiser: Denoiser, concepts: Sequence[Concept], settings: EditSettings, score: EditScore, density: float
) -> dict[str, Tensor]:
    """Name → score of each weight that an edit may change; of a pursuit 1 for the chosen share `density`, else 0."""
    tokens, weights = edit_tokens(denoiser, concepts, settings.tokens), edited_weights(denoiser.module)
    if score == "pursuit":
        count = max(1, round(density * sum(weight.numel() for weight in weights.values())))
        chosen = pursuit(weights, *system_of(tokens, settings), count)
        return {name: mask.float() for name, mask in chosen.items()}
    return {n: edit_scores(w, tokens.concepts, tokens.anchors, score).float() for n, w in weights.items()}
