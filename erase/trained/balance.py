"""Forgetting and retaining pull at the same weights: how their two gradients become one update. Pure functions.

Gradients are dicts of parameter name → tensor; norms and products run over all of them together.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

Gradients = Mapping[str, Tensor]


def dot(a: Gradients, b: Gradients) -> Tensor:
    """⟨a, b⟩ over all tensors, in float64: long sums of small products."""
    return torch.stack([(a[name].double() * b[name].double()).sum().cpu() for name in a]).sum()


def bilevel(forget: Gradients, retain: Gradients, eta: float) -> dict[str, Tensor]:
    """g = g_r + λ·g_f with λ = max(0, η − cos(g_r, g_f)): EraseDiff (arXiv 2401.05779).

    Where the two agree, retaining alone already forgets and λ is small; where they conflict, λ grows so that the update
    still forgets. The paper subtracts from the forget loss what K inner steps would make of it: a constant, which no
    gradient sees, so those steps are left out.
    """
    norms = (dot(forget, forget) * dot(retain, retain)).sqrt()
    cosine = dot(retain, forget) / norms if norms > 0 else torch.zeros(())
    weight = max(0.0, eta - float(cosine))
    return {name: retain[name] + weight * forget[name] for name in forget}


def project(forget: Gradients, retain: Gradients, alpha: float) -> dict[str, Tensor]:
    """g = α·g_r + g_f − min(0, ⟨g_f, g_r⟩)/‖g_r‖² · g_r: forgetting without its part that undoes retaining.

    Gradient surgery (arXiv 2001.06782, algorithm 1) on the forget gradient alone.
    """
    size = dot(retain, retain)
    conflict = min(0.0, float(dot(forget, retain) / size)) if size > 0 else 0.0
    return {name: alpha * retain[name] + forget[name] - conflict * retain[name] for name in forget}
