"""Contract of the trainer's small parts: shares are spread evenly, and a schedule goes on where it stopped."""

from types import SimpleNamespace

import pytest
import torch

from erase.trained.trainer import Trainer, evenly


@pytest.mark.parametrize(
    ("share", "rows"), [(0.0, []), (0.125, [7, 15]), (0.5, list(range(1, 16, 2))), (1.0, list(range(16)))]
)
def test_a_share_is_spread_over_the_rows(share: float, rows: list[int]) -> None:
    assert evenly(share, 16).nonzero().flatten().tolist() == rows


@pytest.mark.parametrize("name", ["constant", "constant_with_warmup", "linear", "cosine"])
def test_a_resumed_schedule_has_the_learning_rates_of_one_never_stopped(name: str) -> None:
    config = SimpleNamespace(lr_scheduler=name, lr_warmup_steps=3, max_train_steps=10)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    trainer = SimpleNamespace(config=config, optimizer=optimizer)
    whole, rates = Trainer._schedule_after(trainer, 0), []  # type: ignore[arg-type]
    for _ in range(10):
        rates.append(whole.get_last_lr()[0])
        optimizer.step()
        whole.step()
    for step in (1, 3, 7):
        assert Trainer._schedule_after(trainer, step).get_last_lr()[0] == pytest.approx(rates[step])  # type: ignore[arg-type]
