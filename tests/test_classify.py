"""Contract: `classify()` gives the figures before forgetting beside those after, and leaves its model as it was.

A model that has no gradients, and data that are no numbers, are refused in words. One seed has no spread to show.
"""

import copy
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from erase import classify
from erase.classifiers.examples import Examples
from erase.classifiers.methods import METHODS
from erase.classifiers.metrics import RATES
from erase.classifiers.nets import ARCHITECTURES
from erase.classifiers.settings import DESCRIPTIONS, FLOOR, NETWORKS, TrainSettings
from erase.classifiers.table import as_markdown, as_svg
from erase.classifiers.training import predict

NAMES = np.array(["ant", "bee", "cow"])


def points(count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    return torch.randn(count, 5, generator=generator) + 2 * torch.eye(5)[labels], labels


FORGET, RETAIN, TEST = points(30, 1), points(90, 2), points(60, 3)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    inputs, labels = (torch.cat(parts) for parts in zip(FORGET, RETAIN))
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(inputs), labels).backward()
        optimizer.step()
    optimizer.zero_grad()
    return net.train()


def state(net: nn.Module) -> dict[str, Any]:
    weights = {name: value.clone() for name, value in net.state_dict().items()}
    return {"weights": weights, "modes": [m.training for m in net.modules()],
            "open": [p.requires_grad for p in net.parameters()]}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_figures_stand_before_and_after_and_the_model_stays(model: nn.Module, method: str) -> None:
    model[1].eval()  # type: ignore[index]
    model[0].requires_grad_(False)  # type: ignore[index]
    before = state(model)
    training = TrainSettings(epochs=2, batch_size=32)
    done = classify(model, FORGET, RETAIN, test=TEST, method=method, training=training, epochs=1, fgsm=0.5)
    after = state(model)
    assert (after["modes"], after["open"]) == (before["modes"], before["open"])
    assert all(torch.equal(after["weights"][name], value) for name, value in before["weights"].items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert done.before and done.rates and set(done.before) == set(done.rates) == set(RATES)
    for figures, net in ((done.before, model), (done.rates, done.model)):
        right = predict(net, Examples(inputs=FORGET[0], labels=FORGET[1])).argmax(1) == FORGET[1]
        assert figures["ua"] == pytest.approx(100 - 100 * right.double().mean().item())
    assert not done.model.training


def test_without_a_test_set_there_are_no_figures(model: nn.Module) -> None:
    done = classify(model, FORGET, RETAIN, method="ft", epochs=1)
    assert (done.before, done.rates) == (None, None)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (LogisticRegression(), "got a LogisticRegression of sklearn.linear_model.*fit it again without the rows"),
        ("resnet18", "got 'resnet18', which is text. Load it first"),
        (SimpleNamespace(model=nn.Linear(5, 3)), "Give the module that it holds: .model"),
        (lambda inputs: inputs, "got a function.*Wrap what computes the logits in a torch.nn.Module"),
        (nn.Flatten(), "Flatten has no parameters"),
    ],
)
def test_what_is_no_network_is_refused_in_words(given: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        classify(given, FORGET, RETAIN)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("forget", "words"),
    [
        ((FORGET[0], NAMES[FORGET[1]]), "The labels of the forget set must be numbers, got .*'ant'.*{name: number}"),
        ([(x, str(NAMES[y])) for x, y in zip(*FORGET)], "The labels of the forget set must be numbers"),
        ([("a bee", 1), ("a cow", 2)], "The inputs of the forget set must be numbers"),
        ((np.array([[1, None]] * 3, dtype=object), [0, 1, 2]), "The inputs of the forget set must be numbers"),
        ((FORGET[0], torch.eye(3)[FORGET[1]]), "one whole number each"),
    ],
)
def test_data_that_are_no_numbers_are_refused(model: nn.Module, forget: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        classify(model, forget, RETAIN)


def test_settings_are_checked_before_anything_runs(model: nn.Module) -> None:
    for settings, words in (
        ({"epoch": 3}, "Unknown setting 'epoch'. Did you mean epochs"),
        ({"mask": "saliant"}, "Did you mean salient"),
        ({"mask_score": "snup"}, "Did you mean snip"),
        ({"method": "retrian"}, "Did you mean retrain"),
    ):
        with pytest.raises(ValueError, match=words):
            classify(model, FORGET, RETAIN, **settings)  # type: ignore[arg-type]


def test_data_with_a_graph_are_read(model: nn.Module) -> None:
    inputs = copy.deepcopy(FORGET[0]).requires_grad_()
    assert classify(model, (inputs, FORGET[1]), RETAIN, method="ft", epochs=1).seconds > 0


def test_every_method_is_described() -> None:
    assert set(DESCRIPTIONS) == {*METHODS, FLOOR} and set(NETWORKS) == set(ARCHITECTURES)


def rows(seeds: int) -> list[dict[str, Any]]:
    return [
        {"method": method, "seed": seed, "ua": ua + seed, "ra": 100.0, "ta": 90.0, "mia": 10.0, "rte": 1.0}
        for seed in range(seeds) for method, ua in (("original", 0.0), ("retrain", 5.0), ("salun", 7.0))
    ]  # fmt: skip


def whiskers(svg: str) -> int:
    return len(re.findall(r'id="LineCollection_\d+"', svg))


def test_one_seed_has_no_spread() -> None:
    one, two = (as_markdown(rows(seeds), "x") for seeds in (1, 2))
    assert "| salun | 7.00 (2.00) | 100.00 (0.00) | 90.00 (0.00) | 10.00 (0.00) | 0.50 | 0.50 | 1.00 |" in one
    assert "±" not in one and "deviation" not in one and "of one seed" in one
    assert "| original | 0.00 (5.00) |" in one and "original: the model before it forgets" in one
    assert "| salun | 7.50 ± 0.71 (2.00) |" in two and "standard deviation of 2 seeds" in two
    assert (whiskers(as_svg(rows(1), "x")), whiskers(as_svg(rows(2), "x"))) == (0, 2)
