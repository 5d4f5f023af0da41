"""`classify()`: one model, one method, any data; and the timed step that it shares with `erase classify`."""

import copy
import time
import warnings
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ..saliency.mask import SaliencyMask
from ..suggest import need_name
from .examples import Examples, check_split
from .methods import METHODS, ForgetJob, make_mask
from .metrics import score
from .nets import num_classes_of
from .settings import ForgetSettings, TrainSettings, own_mask
from .sources import as_examples


@dataclass(frozen=True, kw_only=True)
class Forgotten:
    """What `classify` returns."""

    model: nn.Module
    """The model without what it was to forget, in eval mode; the one that was given is as it was."""
    mask: SaliencyMask | None
    """Which weights could change; None for all."""
    seconds: float
    """Run time: mask and method."""
    before: dict[str, float] | None = None
    """ua, ra, ta and mia of the model as it was given, in per cent; None without a test set."""
    rates: dict[str, float] | None = None
    """The same of the model that has forgotten."""


def classify(
    model: nn.Module,
    forget: Any,
    retain: Any,
    *,
    test: Any = None,
    method: str = "salun",
    seed: int = 0,
    training: TrainSettings | None = None,
    **settings: Any,
) -> Forgotten:
    """Make a classifier forget; for a `torch.nn.Module` or transformers model that gives logits (arXiv 2310.12508).

    forget, retain, test: Examples, (inputs, labels) arrays, a datasets.Dataset, a torch dataset, or a folder with a
    folder of pictures a class. method: a key of METHODS. settings: fields of ForgetSettings, such as learning_rate,
    epochs, mask ("salient", "random", "none", a file) and density; a method that has a mask of its own has it unless
    told otherwise. training: for `retrain`. Raises ValueError for a model that is no such module, for sets that
    overlap, are empty, hold NaN or labels that the model's logits do not have.
    """
    need_name("method", method, METHODS)
    check_model(model)
    for name in settings:
        need_name("setting", name, ForgetSettings.__dataclass_fields__)
    values: dict[str, Any] = {"mask": own_mask(method)} | settings
    chosen = ForgetSettings(**values)
    gone, kept = as_examples(forget, "forget"), as_examples(retain, "retain")
    held = None if test is None else as_examples(test, "test")
    count = num_classes_of(model, gone)
    check_split(gone, kept, count)
    job = ForgetJob(
        model=copy.deepcopy(model), forget=gone, retain=kept, num_classes=count, settings=chosen,
        training=training or TrainSettings(), seed=seed,
    )  # fmt: skip
    done = forgotten(job, method)
    if held is None:
        return done
    before, after = (score(m, gone, kept, held, seed, _whole_class(gone, kept)) for m in (model, done.model))
    return replace(done, before=before, rates=after)


def check_model(model: object) -> None:
    """ValueError for anything but a torch module with weights: what was given, and what to do with it."""
    if isinstance(model, nn.Module):
        if next(model.parameters(), None) is None:
            raise ValueError(f"{type(model).__name__} has no parameters, so there is nothing in it to change.")
        return
    given = type(model)
    what = f"{model!r:.60}, which is text" if isinstance(model, str) else f"a {given.__name__} of {given.__module__}"
    raise ValueError(
        "The model must be a torch.nn.Module that gives logits (B, classes), such as a transformers classifier; got "
        f"{what}. {_advice(model)}"
    )


def _advice(model: object) -> str:
    if isinstance(model, str):
        return "Load it first: transformers.AutoModelForImageClassification.from_pretrained(...), or `erase classify`."
    if isinstance(getattr(model, "model", None), nn.Module):
        return "Give the module that it holds: .model."
    if callable(getattr(model, "predict", None)):
        return (
            "Forgetting follows gradients, which an estimator such as scikit-learn's does not have: fit it again "
            "without the rows to forget, which is exact, or train a network (erase.classifiers.nets.mlp) in its place."
        )
    return "Wrap what computes the logits in a torch.nn.Module."


def forgotten(job: ForgetJob, method: str) -> Forgotten:
    """Mask and method, timed; the job's model is spent. RuntimeWarning where the weights are not finite any more."""
    started = time.perf_counter()
    mask = make_mask(job)
    job.masks = mask.tensors if mask else None
    model = METHODS[method](job)
    seconds = time.perf_counter() - started
    if not all(bool(p.isfinite().all()) for p in model.parameters()):
        warnings.warn(f"{method} diverged with seed {job.seed}: lower its learning rate.", RuntimeWarning, stacklevel=2)
    return Forgotten(model=model, mask=mask, seconds=seconds)


def _whole_class(forget: Examples, retain: Examples) -> int | None:
    """The class that is forgotten as a whole, if it is one."""
    label = int(forget.labels[0])
    whole = bool((forget.labels == label).all()) and not bool((retain.labels == label).any())
    return label if whole else None
