"""The losses equal a naive float64 recomputation, row by row, and their gradients go where they should."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from erase.models.base import Conditioning
from erase.trained.objectives import OBJECTIVES, Batch, Models, ascent, forgetting_loss, guided, mismatch

GENERATOR = torch.Generator().manual_seed(0)
ETA = 1.7


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


class Toy(nn.Module):
    """f(x, t, c) = x·w + t/1000 + tanh(c·v), with a map of "attention" softmax(c·v) beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.v = nn.Parameter(normal(1)), nn.Parameter(normal(3))
        self.calls: list[int] = []
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        self.calls.append(len(x))
        self.seen.append((conditioning["c"] * self.v).softmax(-1))
        return x * self.w + (t / 1000 + torch.tanh(conditioning["c"] @ self.v)).reshape(-1, 1, 1, 1)

    @contextmanager
    def maps(self, rows: slice, positions: Tensor) -> Iterator[list[Tensor]]:
        """Recorded maps (rows, 1 head, 1 query, tokens)."""
        found: list[Tensor] = []
        self.seen.clear()
        yield found
        found.extend(seen[rows][:, None, None, positions] for seen in self.seen)


def batch(forget: int = 3, retain: int = 2) -> Batch:
    return Batch(
        forget_x=normal(forget, 1, 2, 2),
        forget_t=torch.arange(forget) * 100,
        forget_y=normal(forget, 1, 2, 2),
        concept={"c": normal(forget, 3)},
        anchor={"c": normal(forget, 3)},
        empty={"c": normal(1, 3).expand(forget, 3)},
        tokens=torch.tensor([[False, True, False], [False, True, True], [False, False, True]])[:forget],
        retain_x=normal(retain, 1, 2, 2),
        retain_t=torch.arange(retain) * 50,
        retain={"c": normal(retain, 3)},
        retain_y=normal(retain, 1, 2, 2),
    )


def row(conditioning: Conditioning, i: int) -> Conditioning:
    return {"c": conditioning["c"][i : i + 1]}


def naive_mismatch(model: Toy, teacher: Toy, b: Batch, i: int) -> Tensor:
    x, t = b.forget_x[i : i + 1], b.forget_t[i : i + 1]
    return ((model(x, t, row(b.concept, i)) - teacher(x, t, row(b.anchor, i)).detach()) ** 2).mean()


def naive_ascent(model: Toy, teacher: Toy, b: Batch, i: int) -> Tensor:
    assert b.forget_y is not None
    return -(
        (model(b.forget_x[i : i + 1], b.forget_t[i : i + 1], row(b.concept, i)) - b.forget_y[i : i + 1]) ** 2
    ).mean()


def naive_negative_guidance(model: Toy, teacher: Toy, b: Batch, i: int) -> Tensor:
    x, t = b.forget_x[i : i + 1], b.forget_t[i : i + 1]
    empty, concept = teacher(x, t, row(b.empty, i)).detach(), teacher(x, t, row(b.concept, i)).detach()
    return ((model(x, t, row(b.concept, i)) - (empty - ETA * (concept - empty))) ** 2).mean()


def naive_attention(model: Toy, teacher: Toy, b: Batch, i: int) -> Tensor:
    assert b.tokens is not None
    weights = torch.exp(b.concept["c"][i] * model.v)
    weights = weights / weights.sum()
    return sum((weights[k] ** 2 for k in range(3) if b.tokens[i, k]), torch.zeros(()))  # type: ignore[return-value]


NAIVE: dict[str, Callable[[Toy, Toy, Batch, int], Tensor]] = {
    "mismatch": naive_mismatch,
    "ascent": naive_ascent,
    "negative-guidance": naive_negative_guidance,
    "attention": naive_attention,
}


def models(model: Toy, teacher: Toy, keeper: Toy | None = None) -> Models:
    return Models(predict=model, teacher=teacher, keeper=keeper, negative_guidance=ETA, attention_maps=model.maps)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_losses_and_gradients_equal_the_naive_ones(name: str) -> None:
    model, teacher, b = Toy(), Toy(), batch()
    losses = OBJECTIVES[name](models(model, teacher), b)
    (losses["forget"] + 0.3 * losses["retain"]).backward()
    gradients = [p.grad for p in model.parameters()]
    model.zero_grad()
    forget = torch.stack([NAIVE[name](model, teacher, b, i) for i in range(3)]).mean()
    retain = ((model(b.retain_x, b.retain_t, b.retain) - b.retain_y) ** 2).mean()
    (forget + 0.3 * retain).backward()
    assert float(forget.detach()) != 0
    torch.testing.assert_close(
        [losses["forget"].double(), losses["retain"].double()], [forget, retain], rtol=1e-6, atol=0
    )
    torch.testing.assert_close(gradients, [p.grad for p in model.parameters()], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_one_forward_for_forget_and_retain_and_none_for_what_is_not_there(name: str) -> None:
    model, teacher = Toy(), Toy()
    assert set(OBJECTIVES[name](models(model, teacher), batch(3, 2))) == {"forget", "retain"}
    assert set(OBJECTIVES[name](models(model, teacher), batch(3, 0))) == {"forget"}
    assert model.calls == [5, 3]


@pytest.mark.parametrize("name", ["mismatch", "negative-guidance"])
def test_a_step_down_the_loss_brings_the_concept_to_its_target(name: str) -> None:
    """And leaves the retained prediction nearer to its own than the same step without the retain loss does."""
    torch.manual_seed(0)
    teacher, b = Toy(), batch()
    ends = {}
    for alpha in (0.0, 10.0):
        model = Toy()
        model.load_state_dict(teacher.state_dict())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
        first = OBJECTIVES[name](models(model, teacher, teacher), b)
        for _ in range(50):
            optimizer.zero_grad()
            losses = OBJECTIVES[name](models(model, teacher, teacher), b)
            (losses["forget"] + alpha * losses["retain"]).backward()
            optimizer.step()
        assert losses["forget"] < first["forget"]
        ends[alpha] = losses["retain"].item()
    assert ends[10.0] < ends[0.0]


def test_target_carries_no_gradient_even_when_it_is_the_model_itself() -> None:
    model, b = Toy(), batch()
    mismatch(models(model, model), b)["forget"].backward()
    own = model.v.grad
    model.zero_grad()
    torch.stack([naive_mismatch(model, model, b, i) for i in range(3)]).mean().backward()
    torch.testing.assert_close(own, model.v.grad, rtol=1e-5, atol=1e-8)


def test_frozen_retain_target() -> None:
    model, teacher, b = Toy(), Toy(), batch()
    losses = mismatch(models(model, teacher, keeper=teacher), b)
    kept = teacher(b.retain_x, b.retain_t, b.retain).detach()
    naive = ((model(b.retain_x, b.retain_t, b.retain) - kept) ** 2).mean()
    torch.testing.assert_close(losses["retain"].double(), naive, rtol=1e-6, atol=0)


def test_ascent_on_trajectories_says_what_it_needs() -> None:
    model = Toy()
    with pytest.raises(ValueError, match="--forget_x pictures"):
        ascent(models(model, model), replace(batch(), forget_y=None))


def test_guided_is_the_papers_combination_in_one_forward() -> None:
    model, b = Toy(), batch()
    out = guided(model, b.forget_x, b.forget_t, b.concept, b.anchor, 7.5)
    assert model.calls == [6]
    expected = 8.5 * model(b.forget_x, b.forget_t, b.concept) - 7.5 * model(b.forget_x, b.forget_t, b.anchor)
    torch.testing.assert_close(out, expected)


def test_forgetting_loss_is_ascent_on_the_training_loss() -> None:
    a, b = normal(2, 1, 2, 2), normal(2, 1, 2, 2)
    torch.testing.assert_close(forgetting_loss(a, b).double(), -((a - b) ** 2).mean(), rtol=1e-6, atol=0)
