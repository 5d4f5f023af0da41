"""Two gradients into one: equal to numpy's arithmetic on the concatenated vectors, and doing what each is for."""

import numpy as np
import pytest
import torch
from torch import Tensor

from erase.trained.balance import bilevel, dot, project

Gradients = dict[str, Tensor]


def gradients(seed: int) -> Gradients:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in (("a", (3, 4)), ("b", (5,)))}


def flat(g: Gradients) -> np.ndarray:
    return np.concatenate([g[name].double().numpy().ravel() for name in ("a", "b")])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_bilevel(seed: int, eta: float) -> None:
    forget, retain = gradients(seed), gradients(seed + 100)
    f, r = flat(forget), flat(retain)
    cosine = f @ r / np.linalg.norm(f) / np.linalg.norm(r)
    np.testing.assert_allclose(flat(bilevel(forget, retain, eta)), r + max(0, eta - cosine) * f, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_project(seed: int) -> None:
    forget, retain = gradients(seed), gradients(seed + 100)
    f, r = flat(forget), flat(retain)
    kept = f - min(0.0, f @ r / (r @ r)) * r
    np.testing.assert_allclose(flat(project(forget, retain, 0.7)), 0.7 * r + kept, rtol=1e-5, atol=1e-6)


def test_projection_takes_out_exactly_what_undoes_retaining() -> None:
    forget, retain = gradients(0), gradients(1)
    against = {name: -g for name, g in retain.items()}
    opposed = {name: forget[name] + 3 * against[name] for name in forget}
    assert dot(opposed, retain) < 0
    torch.testing.assert_close(
        dot(project(opposed, retain, 0.0), retain), torch.zeros((), dtype=torch.float64), atol=1e-4, rtol=0
    )
    agreeing = {name: forget[name] + 3 * retain[name] for name in forget}
    torch.testing.assert_close(project(agreeing, retain, 0.0), agreeing)


def test_bilevel_forgets_more_where_the_two_conflict() -> None:
    retain = gradients(1)
    same, opposite = ({name: sign * g for name, g in retain.items()} for sign in (1, -1))
    torch.testing.assert_close(bilevel(same, retain, 1.0), retain)
    torch.testing.assert_close(bilevel(opposite, retain, 1.0), {n: g - 2 * g for n, g in retain.items()})


@pytest.mark.parametrize("join", [lambda f, r: bilevel(f, r, 1.0), lambda f, r: project(f, r, 1.0)])
def test_a_retain_gradient_of_zero_leaves_forgetting_alone(join) -> None:
    forget = gradients(0)
    nothing = {name: torch.zeros_like(g) for name, g in forget.items()}
    torch.testing.assert_close(join(forget, nothing), forget)
