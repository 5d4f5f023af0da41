"""Contract: each way to make a classifier forget does what its definition says, and its scores are scikit-learn's.

Weights outside a mask keep their bits under SGD with momentum and decay; IU's step is the Newton step of a linear
softmax model; UA, RA, TA and MIA equal independent computations; what cannot work is refused with what was expected.
"""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score
from sklearn.svm import SVC
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from erase import classify
from erase.classifiers.boundary import expanded, narrowed, nearest_wrong_labels
from erase.classifiers.examples import Examples, forget_rows, moved
from erase.classifiers.forget import forgotten
from erase.classifiers.influence import influence
from erase.classifiers.methods import METHODS, ForgetJob, ForgetSettings, make_mask, other_labels
from erase.classifiers.metrics import confidence, gap, membership_inference, score
from erase.classifiers.nets import build, fresh, head_of, logits_of
from erase.classifiers.smoothing import exchanged, smoothed_targets, without_own
from erase.classifiers.sources import as_examples
from erase.classifiers.training import TrainSettings, predict, train
from erase.saliency.mask import SaliencyMask
from erase.trained.optim import MaskedSGD

CLASSES = 4
QUICK = TrainSettings(epochs=30, learning_rate=0.1, batch_size=32)


def blobs(count: int, seed: int) -> Examples:
    """Points around four corners of a square that overlap a little."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    centres = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    noise = torch.randn(count, 6, generator=generator)
    noise[:, :2] = 0.5 * noise[:, :2] + centres[labels]
    return Examples(inputs=noise, labels=labels)


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    return train(build("mlp", (6,), CLASSES, 0), blobs(160, 0), QUICK, 0)


def job_of(model: nn.Module, **settings: object) -> ForgetJob:
    data, rows = blobs(160, 0), forget_rows(blobs(160, 0).labels, fraction=0.2, label=None, indices=None, seed=1)
    values = {"batch_size": 32, "epochs": 3} | settings
    return ForgetJob(
        model=copy.deepcopy(model), forget=data[rows], retain=data[~rows], num_classes=CLASSES, training=QUICK,
        settings=ForgetSettings(**values),  # type: ignore[arg-type]
    )  # fmt: skip


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("density", [0.05, 0.5, 1.0])
def test_masked_sgd_moves_as_torch_does_and_leaves_the_rest(density: float) -> None:
    torch.manual_seed(0)
    ours, theirs = (build("mlp", (6,), CLASSES, 3) for _ in range(2))
    start = weights(ours)
    masks = {n: torch.rand(p.shape, generator=torch.Generator().manual_seed(1)) < density for n, p in start.items()}
    masks["hidden1.weight"][0, 0] = True
    optimizer = MaskedSGD(ours.named_parameters(), masks, lr=0.1, momentum=0.9, weight_decay=0.1)
    reference = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for step in range(4):
        for (name, mine), other in zip(ours.named_parameters(), theirs.parameters()):
            gradient = torch.randn(mine.shape, generator=torch.Generator().manual_seed(step))
            if mine.requires_grad:
                mine.grad = gradient.clone()
            other.grad = gradient
            assert name in masks
        optimizer.step()
        reference.step()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters()):
        assert torch.equal(mine[~masks[name]], start[name][~masks[name]])
        torch.testing.assert_close(mine[masks[name]], other[masks[name]])


def test_masked_sgd_resumes_exactly() -> None:
    def steps(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
        for step in range(first, last):
            data = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            model(data).square().mean().backward()
            optimizer.step()

    def pair(model: nn.Module) -> tuple[nn.Module, MaskedSGD]:
        return model, MaskedSGD(model.named_parameters(), None, lr=0.1, momentum=0.9)

    whole, optimizer = pair(build("mlp", (6,), CLASSES, 0))
    steps(whole, optimizer, 0, 6)
    half, first = pair(build("mlp", (6,), CLASSES, 0))
    steps(half, first, 0, 3)
    resumed, second = pair(copy.deepcopy(half))
    second.load_state_dict(first.state_dict())
    steps(resumed, second, 3, 6)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters()))


@pytest.mark.parametrize("method", [name for name in METHODS if name != "retrain"])
def test_a_mask_holds_under_every_method(trained: nn.Module, method: str) -> None:
    job = job_of(trained, mask="salient", density=0.3, learning_rate=0.05)
    before = weights(job.model)
    done = forgotten(job, method)
    assert done.mask is not None and abs(done.mask.density - 0.3) < 0.01
    after = weights(done.model)
    for name, mask in done.mask.tensors.items():
        assert torch.equal(after[name][~mask], before[name][~mask]), name
    assert any(not torch.equal(after[name], before[name]) for name in before)


def test_the_mask_is_the_top_of_the_forgetting_gradient(trained: nn.Module) -> None:
    job = job_of(trained, mask="salient", density=0.25)
    mask = make_mask(job)
    assert mask is not None
    model = copy.deepcopy(trained).double()
    (-cross_entropy(model(job.forget.inputs.double()), job.forget.labels)).backward()
    flat = torch.cat([p.grad.abs().flatten() for p in model.parameters() if p.grad is not None])
    expected = torch.zeros_like(flat, dtype=torch.bool)
    expected[flat.argsort(descending=True)[: round(0.25 * len(flat))]] = True
    chosen = torch.cat([mask.tensors[name].flatten() for name, _ in model.named_parameters()])
    assert (chosen == expected).float().mean() > 0.999


def test_a_mask_may_be_made_from_a_sample(trained: nn.Module) -> None:
    job = job_of(trained, mask="salient", density=0.25, mask_examples=10)
    mask = make_mask(job)
    drawn = torch.randperm(len(job.forget), generator=torch.Generator().manual_seed(job.seed))[:10]
    same = make_mask(replace(job_of(trained, mask="salient", density=0.25), forget=job.forget[drawn]))
    whole = make_mask(job_of(trained, mask="salient", density=0.25))
    assert mask is not None and same is not None and whole is not None
    assert all(torch.equal(mask.tensors[name], same.tensors[name]) for name in mask.tensors)
    assert any(not torch.equal(mask.tensors[name], whole.tensors[name]) for name in mask.tensors)


@pytest.mark.parametrize("mask", ["salient", "random", "none", "file"])
def test_frozen_layers_stay(trained: nn.Module, mask: str, tmp_path: Path) -> None:
    if mask == "file":
        made = make_mask(job_of(trained, mask="salient"))
        assert made is not None
        made.save(tmp_path / "mask.safetensors")
        mask = str(tmp_path / "mask.safetensors")
    done = forgotten(job_of(trained, mask=mask, frozen_layers=1, learning_rate=0.05), "rl")
    before, after = weights(trained), weights(done.model)
    first = next(iter(before)).rpartition(".")[0]
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and not any(name.startswith(f"{first}.") for name in moved)
    layers = len({name.rpartition(".")[0] for name in before})
    with pytest.raises(ValueError, match=f"has {layers} layers: leave some open"):
        make_mask(job_of(trained, mask="none", frozen_layers=layers))


def test_a_part_of_an_epoch_is_a_part_of_the_data(trained: nn.Module) -> None:
    job = job_of(trained, epochs=2.5, batch_size=8)
    assert job.shares() == [1.0, 1.0, 0.5] and job_of(trained, epochs=2).shares() == [1.0, 1.0]
    sizes = [sum(len(labels) for _, labels in job.passes(job.retain, share)) for share in job.shares()]
    assert sizes == [len(job.retain), len(job.retain), round(len(job.retain) / 2)]
    assert job.steps(job.retain) == sum(-(-size // 8) for size in sizes)


def test_retraining_never_sees_the_forget_set(trained: nn.Module) -> None:
    job = job_of(trained)
    model = METHODS["retrain"](job)
    spoiled = replace(job.forget, inputs=job.forget.inputs + 100)
    again = METHODS["retrain"](replace(job_of(trained), forget=spoiled))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))
    reference = train(fresh(trained, 0), job.retain, QUICK, 0)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), reference.parameters()))


def loss_on(model: nn.Module, examples: Examples) -> float:
    return cross_entropy(predict(model, examples), examples.labels).item()


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("ga", {"learning_rate": 0.1, "epochs": 8}),
        ("rl", {"learning_rate": 0.05, "epochs": 5}),
        ("salun", {"learning_rate": 0.05, "epochs": 5, "mask": "salient"}),
        ("salun-soft", {"learning_rate": 0.05, "epochs": 5}),
        ("salun-smoothed", {"learning_rate": 0.1, "epochs": 5, "mask": "salient", "mistaken": 0.5}),
        ("iu", {"step_length": 3.0}),
        ("boundary-shrink", {"learning_rate": 0.02}),
        ("boundary-expand", {"learning_rate": 0.05}),
    ],
)
def test_the_forget_set_is_forgotten_more_than_the_rest(trained: nn.Module, method: str, settings: dict) -> None:
    job = job_of(trained, **settings)
    before = loss_on(trained, job.forget), loss_on(trained, job.retain)
    model = METHODS[method](replace(job, masks=mask.tensors if (mask := make_mask(job)) else None))
    forget, retain = loss_on(model, job.forget), loss_on(model, job.retain)
    assert forget > before[0] + 0.05
    assert forget - before[0] > 1.2 * (retain - before[1])


def test_fine_tuning_and_l1_lower_what_they_say(trained: nn.Module) -> None:
    job = job_of(trained, learning_rate=0.05)
    tuned = METHODS["ft"](job)
    sparse = METHODS["l1-sparse"](job_of(trained, learning_rate=0.05, l1=1e-2))
    assert loss_on(tuned, job.retain) < loss_on(trained, job.retain)
    sizes = [sum(p.abs().sum().item() for p in model.parameters()) for model in (tuned, sparse)]
    assert sizes[1] < 0.8 * sizes[0]


def test_random_labels_are_never_the_own_one_and_even() -> None:
    labels = torch.arange(4000) % CLASSES
    drawn = other_labels(labels, CLASSES, torch.Generator().manual_seed(0))
    assert not (drawn == labels).any()
    counts = torch.bincount((drawn - labels) % CLASSES, minlength=CLASSES)[1:]
    assert (counts - 4000 / 3).abs().max() < 120


def test_soft_salun_moves_less_than_hard(trained: nn.Module) -> None:
    def moved_by(method: str, **settings: float) -> float:
        model = METHODS[method](job_of(trained, learning_rate=0.01, **settings))
        return sum((a - b).abs().sum().item() for a, b in zip(model.parameters(), trained.parameters()))

    assert moved_by("salun-soft", soft_quantile=0.9) < 0.85 * moved_by("rl")
    assert moved_by("salun-soft", soft_quantile=0.0) == moved_by("rl")


def test_influence_is_the_newton_step_of_a_linear_softmax_model() -> None:
    torch.manual_seed(0)
    data, forget = blobs(40, 3), blobs(12, 4)
    model = nn.Linear(6, CLASSES).double()
    data, forget = (replace(part, inputs=part.inputs.double()) for part in (data, forget))
    damping = 0.05
    moves = influence(model, forget, data, len(data), damping)
    sizes = [p.numel() for p in model.parameters()]
    start = torch.cat([p.detach().flatten() for p in model.parameters()])

    def loss(flat: Tensor, part: Examples) -> Tensor:
        weight, bias = flat.split(sizes)
        logits = part.inputs @ weight.view(CLASSES, 6).mT + bias
        return cross_entropy(logits, part.labels, reduction="sum")

    hessian = torch.autograd.functional.hessian(lambda flat: loss(flat, data) / len(data), start)
    gradient = torch.autograd.functional.jacobian(lambda flat: loss(flat, forget) / len(data), start)
    expected = torch.linalg.solve(hessian + damping * torch.eye(len(start)), gradient)
    torch.testing.assert_close(torch.cat([moves["weight"].flatten(), moves["bias"]]), expected, rtol=1e-6, atol=1e-9)


def test_boundary_expanding_adds_and_drops_one_class(trained: nn.Module) -> None:
    inputs = blobs(20, 5).inputs
    wide, masks = expanded(trained, CLASSES, SaliencyMask.full(trained).tensors, seed=0)
    torch.testing.assert_close(wide(inputs)[:, :CLASSES], trained(inputs))
    assert wide(inputs).shape[1] == CLASSES + 1
    assert masks is not None and {n: m.shape for n, m in masks.items()} == {
        n: p.shape for n, p in wide.named_parameters()
    }
    narrow = narrowed(wide, CLASSES)
    torch.testing.assert_close(narrow(inputs), trained(inputs))
    with pytest.raises(ValueError, match="no linear layer with 9 outputs"):
        head_of(trained, 9)


def test_the_nearest_wrong_class_is_found_by_one_step_up_the_loss(trained: nn.Module) -> None:
    data = blobs(30, 6)
    found = nearest_wrong_labels(trained, data, 0.1)
    for row in range(len(data)):
        x = data.inputs[row : row + 1].clone().requires_grad_()
        cross_entropy(trained(x), data.labels[row : row + 1]).backward()
        assert x.grad is not None
        logits = trained(x.detach() + 0.1 * x.grad.sign())[0]
        order = logits.argsort(descending=True).tolist()
        assert found[row] == next(k for k in order if k != data.labels[row])


def test_smoothed_targets_are_the_mean_around_and_mistake_the_unsurest(trained: nn.Module) -> None:
    data = blobs(40, 7)
    still = smoothed_targets(trained, data, 1e-6, 4, 0.0, torch.Generator().manual_seed(0))
    torch.testing.assert_close(still, predict(trained, data).softmax(1), rtol=1e-3, atol=1e-4)
    q = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.1, 0.8, 0.1]])
    swapped = exchanged(q, torch.tensor([0, 0, 0]), 2)
    assert torch.equal(swapped, torch.tensor([[0.7, 0.2, 0.1], [0.3, 0.5, 0.2], [0.1, 0.8, 0.1]]))
    assert torch.equal(exchanged(q, torch.tensor([0, 0, 1]), 0), q)
    sure = torch.tensor([[0.6, 0.3, 0.1], [1.0, 0.0, 0.0]])
    torch.testing.assert_close(without_own(sure, torch.tensor([0, 0])), torch.tensor([[0, 0.75, 0.25], [0, 0.5, 0.5]]))
    gone = smoothed_targets(trained, data, 0.1, 4, 1.0, torch.Generator().manual_seed(0))
    assert not gone.gather(1, data.labels[:, None]).any()
    torch.testing.assert_close(gone.sum(1), torch.ones(len(data)))


def test_scores_are_scikit_learns(trained: nn.Module) -> None:
    job, test = job_of(trained), blobs(60, 8)
    rates = score(trained, job.forget, job.retain, test, seed=5)
    with torch.no_grad():
        named = [trained(part.inputs).argmax(1).numpy() for part in (job.forget, job.retain, test)]
    expected = [100 * accuracy_score(part.labels, own) for part, own in zip((job.forget, job.retain, test), named)]
    assert rates["ua"] == pytest.approx(100 - expected[0])
    assert (rates["ra"], rates["ta"]) == (pytest.approx(expected[1]), pytest.approx(expected[2]))
    assert gap({"ua": 1, "ra": 2, "ta": 3, "mia": 4}, {"ua": 2, "ra": 2, "ta": 1, "mia": 5}) == 1.0
    only = test[test.labels != 2]
    assert score(trained, job.forget, job.retain, test, erased=2)["ta"] == pytest.approx(
        100 * accuracy_score(only.labels, trained(only.inputs).argmax(1).numpy())
    )


def test_membership_inference_is_the_papers_support_vector_machine() -> None:
    generator = np.random.default_rng(0)
    members, others = generator.beta(8, 1, (80, 1)), generator.beta(3, 1, (80, 1))
    questioned = generator.beta(5, 1, (50, 1))
    machine = SVC(C=3, gamma="auto", kernel="rbf")
    machine.fit(np.concatenate([members, others]), np.repeat([1, 0], 80))
    expected = 100 * (machine.predict(questioned) == 0).mean()
    assert membership_inference(members, others, questioned) == pytest.approx(expected)
    logits, labels = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])
    sure = np.exp([2.0, 0.0]) / (np.exp([2.0, 0.0]) + np.exp([0.0, 1.0]))
    np.testing.assert_allclose(confidence(logits, labels)[:, 0], sure)


def test_the_public_function_takes_arrays_and_leaves_the_model_alone(trained: nn.Module) -> None:
    job, test = job_of(trained), blobs(40, 9)
    before = weights(trained)
    done = classify(
        trained, (job.forget.inputs.numpy(), job.forget.labels.numpy()), job.retain, test=test, method="salun",
        learning_rate=0.05, epochs=2, batch_size=32,
    )  # fmt: skip
    assert all(torch.equal(before[name], p) for name, p in trained.named_parameters())
    assert done.mask is not None and done.mask.density == pytest.approx(0.5, abs=0.01)
    assert done.rates is not None and set(done.rates) == {"ua", "ra", "ta", "mia"} and done.seconds > 0
    pairs = torch.utils.data.TensorDataset(job.forget.inputs, job.forget.labels)
    same = as_examples(pairs, "forget")
    assert torch.equal(same.inputs, job.forget.inputs) and torch.equal(same.labels, job.forget.labels)


def test_a_transformers_classifier_forgets() -> None:
    model = build("resnet18", (3, 8, 8), CLASSES, 0)
    pictures = torch.randint(256, (24, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(24) % CLASSES
    done = classify(
        model, (pictures[:8], labels[:8]), (pictures[8:], labels[8:]), method="salun", epochs=1, batch_size=8,
        density=0.1, learning_rate=0.01,
    )  # fmt: skip
    assert logits_of(done.model.eval(), torch.zeros(2, 3, 8, 8)).shape == (2, CLASSES)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(11_170_000, rel=0.01)
    new = fresh(model, 1)
    assert {n: p.shape for n, p in new.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    assert not torch.equal(next(new.parameters()), next(model.parameters()))


def bad(examples: Examples, **changes: object) -> Examples:
    return replace(examples, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("overlap", "10 examples are in the forget set and in the retain set"),
        ("empty", "forget set is empty"),
        ("range", "has labels 0 … 4, but the model has 4 classes"),
        ("float", "must be one whole number each"),
        ("shape", r"Inputs to forget are \(6,\) and those to keep \(5,\)"),
        ("method", "Unknown method 'salon'"),
        ("mask", "retrain starts from new weights"),
    ],
)
def test_what_cannot_work_is_refused(trained: nn.Module, case: str, message: str) -> None:
    data = blobs(40, 0)
    forget, retain, settings = data[torch.arange(10)], data[torch.arange(10, 40)], {}
    if case == "overlap":
        retain = data
    elif case == "empty":
        forget = forget[torch.arange(0)]
    elif case == "range":
        forget = bad(forget, labels=torch.arange(10) % 5)
    elif case == "float":
        forget = (forget.inputs, forget.labels.float())
    elif case == "shape":
        retain = bad(retain, inputs=retain.inputs[:, :5])
    elif case == "method":
        settings = {"method": "salon"}
    elif case == "mask":
        settings = {"method": "retrain", "mask": "salient"}
    with pytest.raises(ValueError, match=message):
        classify(trained, forget, retain, **settings)


def test_a_run_that_diverges_says_so_and_scores_as_lost(trained: nn.Module) -> None:
    job, test = job_of(trained), blobs(40, 9)
    with pytest.warns(RuntimeWarning, match="ga diverged with seed 0: lower its learning rate"):
        done = classify(trained, job.forget, job.retain, test=test, method="ga", learning_rate=1e9, epochs=10)
    assert done.rates is not None
    assert done.rates["ta"] == pytest.approx(100 * (test.labels == 0).double().mean().item())


def test_nan_and_bad_settings_are_refused() -> None:
    inputs = torch.zeros(3, 2)
    inputs[1, 0] = torch.nan
    with pytest.raises(ValueError, match="1 of 3 inputs hold NaN or infinity, the first at row 1"):
        Examples(inputs=inputs, labels=torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="density must be a share"):
        ForgetSettings(density=50)
    with pytest.raises(ValueError, match="epochs must be above 0"):
        ForgetSettings(epochs=0)
    with pytest.raises(ValueError, match="mask_examples must be above 0"):
        ForgetSettings(mask_examples=0)
    with pytest.raises(ValueError, match="frozen_layers must be at least 0"):
        ForgetSettings(frozen_layers=-1)
    labels = torch.tensor([0, 1, 1])
    with pytest.raises(ValueError, match="no example of class 7"):
        forget_rows(labels, fraction=None, label=7, indices=None, seed=0)
    with pytest.raises(ValueError, match="rows 0 … 2"):
        forget_rows(labels, fraction=None, label=None, indices=[3], seed=0)
    with pytest.raises(ValueError, match="in one way"):
        forget_rows(labels, fraction=0.1, label=1, indices=None, seed=0)


def test_augmented_pictures_are_shifts_and_mirrors() -> None:
    pictures = torch.arange(2 * 9, dtype=torch.uint8).view(2, 1, 3, 3) + 1
    out = moved(pictures.repeat(40, 1, 1, 1), 1, torch.Generator().manual_seed(0))
    wide = torch.nn.functional.pad(pictures, [1] * 4)
    for at, picture in enumerate(out):
        source = wide[at % 2]
        options = [source[:, y : y + 3, x : x + 3] for y in range(3) for x in range(3)]
        assert any(torch.equal(picture, o) or torch.equal(picture, o.flip(-1)) for o in options)
    assert len({tuple(picture.flatten().tolist()) for picture in out[::2]}) > 8
