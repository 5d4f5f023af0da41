"""What was forgotten and what was kept: UA, RA, TA, membership inference, and the gap to retraining.

All rates are in per cent, as the paper's tables have them (arXiv 2310.12508, section 5).
"""

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev

import numpy as np
import torch
from torch import Tensor, nn

from .examples import Examples
from .training import predict

RATES = ("ua", "ra", "ta", "mia")


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of rows (N, classes) whose largest logit is the label's (N,), in %."""
    return 100 * (logits.argmax(1) == labels).double().mean().item()


def confidence(logits: Tensor, labels: Tensor) -> np.ndarray:
    """(N, 1) probability of the true class."""
    return logits.double().softmax(1).gather(1, labels[:, None]).numpy()


def membership_inference(members: np.ndarray, others: np.ndarray, questioned: np.ndarray) -> float:
    """Share of the questioned, in %, that an attacker takes for non-members; arrays (n, 1) of confidences.

    The attacker is a support vector machine (C = 3, rbf kernel) on the true class's probability, trained on as many
    members as non-members (Song & Mittal, arXiv 2003.10595, as the paper uses it).
    """
    try:
        from sklearn.svm import SVC
    except ImportError as error:
        from .sources import INSTALL

        raise ValueError(f"Membership inference needs scikit-learn: {INSTALL}") from error
    known = np.concatenate([members, others])
    attacker = SVC(C=3, kernel="rbf", gamma="auto").fit(known, [1] * len(members) + [0] * len(others))
    return 100 * float(np.mean(attacker.predict(questioned) == 0))


def score(
    model: nn.Module, forget: Examples, retain: Examples, test: Examples, seed: int = 0, erased: int | None = None
) -> dict[str, float]:
    """UA = 100 − accuracy on the forget set, RA and TA the accuracies on retain and test set, MIA as above; in %.

    The attacker learns from test examples and as many of the retain set, drawn by `seed`. `erased`: where a whole class
    is forgotten, its test examples are left out of TA, for no model that has forgotten it could name them.
    A model that diverged names the first class and is sure of none.
    """
    if erased is not None:
        test = test[test.labels != erased]
    if not len(test):
        raise ValueError("The test set is empty, or holds the forgotten class alone: TA and MIA cannot be measured.")
    parts = forget, retain, test
    on_forget, on_retain, on_test = (predict(model, part).nan_to_num(0.0, 0.0, 0.0) for part in parts)
    size = min(len(test), len(retain))
    generator = torch.Generator().manual_seed(seed)
    members = torch.randperm(len(retain), generator=generator)[:size]
    others = torch.randperm(len(test), generator=generator)[:size]
    return {
        "ua": 100 - accuracy(on_forget, forget.labels),
        "ra": accuracy(on_retain, retain.labels),
        "ta": accuracy(on_test, test.labels),
        "mia": membership_inference(
            confidence(on_retain[members], retain.labels[members]),
            confidence(on_test[others], test.labels[others]),
            confidence(on_forget, forget.labels),
        ),
    }


def gap(rates: Mapping[str, float], reference: Mapping[str, float]) -> float:
    """Mean absolute difference of UA, RA, TA and MIA, in points."""
    return fmean(abs(rates[key] - reference[key]) for key in RATES)


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation of the sample, which one value alone does not have."""
    return fmean(values), stdev(values) if len(values) > 1 else None


def spread_text(values: Sequence[float], digits: int = 2) -> str:
    """`98.21 ± 0.40`; of one value `98.21`."""
    return " ± ".join(f"{figure:.{digits}f}" for figure in spread(values) if figure is not None)
