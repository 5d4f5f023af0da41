"""Tune every method of `erase classify` with the same number of trials, on seeds that the benchmark never uses.

    python scripts/classification/tune.py                        # all; goes on where the log ends
    python scripts/classification/tune.py --datasets digits --settings random-10
    python scripts/classification/tune.py --write                # only the settings files, from the log

A trial is one setting of one method, run with each seed of SEEDS; what counts is the mean gap to the retrained model.
Trials that take more than a tenth of retraining's time are logged but never chosen. Writes
docs/classification_tuning.jsonl and the best settings into configs/classify/DATASET.yaml.
"""

import argparse
import copy
import json
import time
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import yaml
from run import APPROXIMATE, SETTINGS, config_of
from torch import nn

from erase.classifiers.config import preset
from erase.classifiers.examples import Examples
from erase.classifiers.forget import forgotten
from erase.classifiers.metrics import gap, score
from erase.classifiers.run import Task
from erase.classifiers.settings import ForgetSettings, own_mask
from erase.classifiers.table import REFERENCE
from erase.files import append_lines, read_json_lines, write_text

SEEDS = (100, 101)
LOG = Path("docs/classification_tuning.jsonl")
CONFIGS = Path("configs/classify")
MOST_TIME = 0.1
"""Of retraining's."""
Trial = dict[str, Any]


def grid(**choices: tuple[Any, ...]) -> list[Trial]:
    """All combinations."""
    return [dict(zip(choices, values)) for values in product(*choices.values())]


def trials(method: str, setting: str, epochs: int) -> list[Trial]:
    """Eight settings of a method. `epochs` is what a tenth of retraining's time allows to those that read all data."""
    half = max(1, epochs // 2)
    rates = (0.0003, 0.001, 0.003, 0.01) if setting == "random-50" else (0.003, 0.006, 0.012, 0.025)
    labels = grid(learning_rate=rates, epochs=(half, epochs))
    if half == epochs:
        labels = grid(learning_rate=(0.0005, 0.001, 0.002, 0.004, 0.006, 0.008, 0.012, 0.025), epochs=(epochs,))
    ascent = grid(learning_rate=(0.001, 0.003, 0.01, 0.03), epochs=(3, 10))
    if setting == "random-50":  # ten passes over half the data are a third of retraining's time, and diverge
        ascent = grid(learning_rate=(0.001, 0.003, 0.006, 0.012), epochs=(1, 3))
    # Masks and targets count as run time.
    frugal = {"copies": (4,), "mask_examples": (500,), "epochs": (min(3, epochs),)}
    smooth = grid(mistaken=(0.04, 0.1, 0.2, 0.3), learning_rate=(0.1, 0.25), **frugal)
    if setting == "random-50":
        frugal |= {"copies": (1,), "density": (0.7,), "epochs": (1.75 * epochs,), "frozen_layers": (1,)}
        smooth = grid(mistaken=(0.05, 0.1, 0.2, 0.4), learning_rate=(0.25, 0.5), **frugal)
    elif setting == "class":
        rates = (0.003, 0.01, 0.02, 0.04, 0.07, 0.1, 0.2, 0.4)
        smooth = grid(mistaken=(1.0,), learning_rate=rates, **frugal)
    return {
        "ft": grid(learning_rate=(0.03, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0), epochs=(epochs,)),
        "ga": ascent,
        "rl": labels,
        "salun": labels,
        "salun-soft": labels,
        "iu": grid(step_length=(1.0, 3.0, 10.0, 30.0), damping=(0.01, 0.1), fisher_examples=(30,)),
        "boundary-expand": grid(learning_rate=(0.001, 0.002, 0.004, 0.01), epochs=(1, 4)),
        "boundary-shrink": grid(learning_rate=(0.001, 0.002, 0.004, 0.01), epochs=(1, 4)),
        "l1-sparse": grid(learning_rate=(0.03, 0.1, 0.2, 0.4), l1=(1e-4, 1e-3), epochs=(epochs,)),
        "salun-smoothed": smooth,
    }[method]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", default=("digits", "canvas-pictures"))
    parser.add_argument("--settings", nargs="+", default=SETTINGS)
    parser.add_argument("--methods", nargs="+", default=APPROXIMATE, choices=APPROXIMATE)
    parser.add_argument("--log", type=Path, default=LOG)
    parser.add_argument("--write", action="store_true", help="run nothing; write the settings from the log")
    return parser.parse_args()


def tune(dataset: str, setting: str, methods: tuple[str, ...], log: Path) -> None:
    """All trials of a data set and a kind of forget set that the log lacks."""
    epochs = epochs_of(dataset, setting)
    known = {key_of(row) for row in (read_json_lines(log) if log.exists() else [])}
    for seed in SEEDS:
        task = Task(config_of(dataset, setting, seed, label=seed - SEEDS[0]))
        left = [
            (m, t)
            for m in methods
            for t in trials(m, setting, epochs)
            if (dataset, setting, seed, m, json.dumps(t)) not in known
        ]
        if not left:
            continue
        model, parts = task.original(seed), task.seed_set(seed)
        reference, whole = timed(task, REFERENCE, {}, model, parts, seed)
        for method, settings in left:
            rates, seconds = timed(task, method, settings, model, parts, seed)
            row = {"dataset": dataset, "setting": setting, "seed": seed, "method": method, "settings": settings}
            row |= {"gap": round(gap(rates, reference), 4), "time": round(seconds / whole, 4)} | rates
            append_lines(log, [row])
            print(f"{dataset} {setting} {seed} {method} {settings}: gap {row['gap']}, time {row['time']}", flush=True)


def timed(
    task: Task, method: str, settings: Trial, model: nn.Module, parts: tuple[Examples, Examples], seed: int
) -> tuple[dict[str, float], float]:
    """Rates of a trial and the seconds that the processor spent on it, whatever else the machine did."""
    values: dict[str, Any] = {"batch_size": task.config.training().batch_size, "mask": own_mask(method)}
    job = task.job(ForgetSettings(**values | settings), copy.deepcopy(model), parts, seed + 1)
    started = time.process_time()
    done = forgotten(job, method)
    spent = time.process_time() - started
    return score(done.model, *parts, task.test_set, seed, task.label), spent


def key_of(row: Trial) -> tuple[str, str, int, str, str]:
    return row["dataset"], row["setting"], row["seed"], row["method"], json.dumps(row["settings"])


def current(rows: list[Trial]) -> list[Trial]:
    """The rows of today's grids; others were tried with grids that were given up."""
    found = []
    for row in rows:
        grids = trials(row["method"], row["setting"], epochs_of(row["dataset"], row["setting"]))
        found += [row] if row["settings"] in grids else []
    return found


def epochs_of(dataset: str, setting: str) -> int:
    """Half as much data is left to retrain on at 50 %, so a tenth of the time reads it half as often."""
    return preset(dataset)["training"]["epochs"] // (30 if setting == "random-50" else 15)


def best(rows: list[Trial], dataset: str, setting: str, method: str) -> Trial | None:
    """The settings with the least mean gap over the seeds, of those that are quick enough."""
    own = [row for row in rows if (row["dataset"], row["setting"], row["method"]) == (dataset, setting, method)]
    quick = [row for row in own if cost(own, row["settings"]) <= MOST_TIME] or own
    gaps: dict[str, list[float]] = {}
    for row in quick:
        gaps.setdefault(json.dumps(row["settings"]), []).append(row["gap"])
    return json.loads(min(gaps, key=lambda key: fmean(gaps[key]))) if gaps else None


def cost(rows: list[Trial], settings: Trial) -> float:
    """Least time of all trials with as many epochs: rates cost nothing, and other jobs on the machine can only add."""
    return min(row["time"] for row in rows if row["settings"].get("epochs") == settings.get("epochs"))


def write(rows: list[Trial], dataset: str) -> None:
    """configs/classify/DATASET.yaml: its head as it is, the best settings below."""
    path = CONFIGS / f"{dataset}.yaml"
    head = path.read_text(encoding="utf-8").split("\n# Tuned")[0].rstrip()
    chosen = {}
    for setting in SETTINGS:
        of_methods = {method: best(rows, dataset, setting, method) for method in APPROXIMATE}
        chosen[setting] = {method: values for method, values in of_methods.items() if values}
    note = "# Tuned by scripts/classification/tune.py, eight trials a method (docs/classification_tuning.jsonl)."
    lines = yaml.safe_dump({key: values for key, values in chosen.items() if values}, sort_keys=False)
    write_text(path, f"{head}\n{note}\n{lines}")


def main() -> None:
    args = parse_args()
    torch.set_num_threads(1)
    if not args.write:
        for dataset, setting in product(args.datasets, args.settings):
            tune(dataset, setting, tuple(args.methods), args.log)
    for dataset in args.datasets:
        write(current(read_json_lines(args.log)), dataset)


if __name__ == "__main__":
    main()
