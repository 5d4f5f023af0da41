"""The losses equal a naive float64 recomputation, and their gradients go where they should."""

import torch
from torch import Tensor, nn

from erase.models.base import Conditioning
from erase.objectives import Batch, forgetting_loss, guided, salun

GENERATOR = torch.Generator().manual_seed(0)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


class Toy(nn.Module):
    """f(x, t, c) = x·w + t/1000 + tanh(c·v): enough to depend on everything."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.v = nn.Parameter(normal(1)), nn.Parameter(normal(3))
        self.calls: list[int] = []

    def forward(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        self.calls.append(len(x))
        return x * self.w + (t / 1000 + torch.tanh(conditioning["c"] @ self.v)).reshape(-1, 1, 1, 1)


def batch(forget: int = 3, retain: int = 2) -> Batch:
    return Batch(
        forget_x=normal(forget, 1, 2, 2),
        forget_t=torch.arange(forget) * 100,
        concept={"c": normal(forget, 3)},
        anchor={"c": normal(forget, 3)},
        retain_x=normal(retain, 1, 2, 2),
        retain_t=torch.arange(retain) * 50,
        retain={"c": normal(retain, 3)},
        retain_y=normal(retain, 1, 2, 2),
    )


def naive(model: Toy, teacher: Toy, b: Batch, kept: Tensor) -> tuple[Tensor, Tensor]:
    rows = []
    for i in range(len(b.forget_x)):
        x, t = b.forget_x[i : i + 1], b.forget_t[i : i + 1]
        wanted = teacher(x, t, {"c": b.anchor["c"][i : i + 1]}).detach()
        rows.append(((model(x, t, {"c": b.concept["c"][i : i + 1]}) - wanted) ** 2).mean())
    forget = torch.stack(rows).mean()
    retain = ((model(b.retain_x, b.retain_t, b.retain) - kept) ** 2).mean()
    return forget, retain


def test_losses_and_gradients_equal_the_naive_ones() -> None:
    model, teacher, b = Toy(), Toy(), batch()
    losses = salun(model, teacher, b)
    (losses["forget"] + 0.3 * losses["retain"]).backward()
    gradients = [model.w.grad, model.v.grad]
    model.zero_grad()
    forget, retain = naive(model, teacher, b, b.retain_y)
    (forget + 0.3 * retain).backward()
    torch.testing.assert_close(
        [losses["forget"].double(), losses["retain"].double()], [forget, retain], rtol=1e-6, atol=0
    )
    torch.testing.assert_close(gradients, [model.w.grad, model.v.grad], rtol=1e-5, atol=1e-8)


def test_target_carries_no_gradient_even_when_it_is_the_model_itself() -> None:
    model, b = Toy(), batch()
    salun(model, model, b)["forget"].backward()
    own = model.v.grad
    model.zero_grad()
    naive(model, model, b, b.retain_y)[0].backward()
    torch.testing.assert_close(own, model.v.grad, rtol=1e-5, atol=1e-8)


def test_one_batched_forward_for_forget_and_retain() -> None:
    model, teacher = Toy(), Toy()
    salun(model, teacher, batch(3, 2))
    assert model.calls == [5] and teacher.calls == [3]


def test_frozen_retain_target() -> None:
    model, teacher, b = Toy(), Toy(), batch()
    losses = salun(model, teacher, b, keeper=teacher)
    kept = teacher(b.retain_x, b.retain_t, b.retain).detach()
    torch.testing.assert_close(losses["retain"].double(), naive(model, teacher, b, kept)[1], rtol=1e-6, atol=0)


def test_guided_is_the_papers_combination_in_one_forward() -> None:
    model, b = Toy(), batch()
    out = guided(model, b.forget_x, b.forget_t, b.concept, b.anchor, 7.5)
    assert model.calls == [6]
    expected = 8.5 * model(b.forget_x, b.forget_t, b.concept) - 7.5 * model(b.forget_x, b.forget_t, b.anchor)
    torch.testing.assert_close(out, expected)


def test_forgetting_loss_is_ascent_on_the_training_loss() -> None:
    a, b = normal(2, 1, 2, 2), normal(2, 1, 2, 2)
    torch.testing.assert_close(forgetting_loss(a, b).double(), -((a - b) ** 2).mean(), rtol=1e-6, atol=0)
