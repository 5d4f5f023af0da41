"""A tabular classifier forgets some of its patients: scikit-learn's breast-cancer data, a small network, `classify`.

    python examples/forget_patients.py

Can somebody who asks the model tell that a patient's record was in its training data? The share of the forgotten that
an attacker takes for strangers says so, before and after; a model retrained without them says what would be fair. Four
of the thirty measurements are used, which tell little: the network has to learn its patients by heart.
"""

from dataclasses import replace

import torch

from erase import classify
from erase.classifiers.examples import Examples, forget_rows
from erase.classifiers.metrics import score
from erase.classifiers.nets import mlp
from erase.classifiers.sources import load_source
from erase.classifiers.training import TrainSettings, train

TRAINING = TrainSettings(epochs=300, learning_rate=0.1, batch_size=32, weight_decay=0.0)
MEASURED = [4, 8, 9, 18]
"""Mean smoothness, symmetry and fractal dimension, and the symmetry's standard error."""


def measured(patients: Examples) -> Examples:
    """With the few measurements alone."""
    return replace(patients, inputs=patients.inputs[:, MEASURED])


def main(seed: int = 0) -> dict[str, dict[str, float]]:
    """Train, forget a tenth of the patients, print; returns the rates in %."""
    patients, others, names = load_source("breast-cancer")
    patients, others = measured(patients), measured(others)
    chosen = forget_rows(patients.labels, fraction=0.1, label=None, indices=None, seed=seed)
    forget, retain = patients[chosen], patients[~chosen]
    torch.manual_seed(seed)
    model = train(mlp((len(MEASURED),), len(names), width=256), patients, TRAINING, seed)
    rates = {"before": score(model, forget, retain, others, seed)}
    settings = {"learning_rate": 0.002, "epochs": 15, "batch_size": 32, "weight_decay": 0.0}
    for method, own in (("salun", settings), ("retrain", {})):
        done = classify(model, forget, retain, test=others, method=method, seed=seed, training=TRAINING, **own)
        assert done.rates is not None  # there is a test set
        rates[method] = done.rates
    print(f"{len(forget)} of {len(patients)} patients are to be forgotten; rates in %")
    print(f"{'':>16}  forgotten wrong  kept right  new right  taken for non-members")
    for name, own in rates.items():
        print(f"{name:>16}  {own['ua']:15.1f}  {own['ra']:10.1f}  {own['ta']:9.1f}  {own['mia']:21.1f}")
    return rates


if __name__ == "__main__":
    main()
