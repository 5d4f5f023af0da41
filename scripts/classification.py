"""The classification benchmark: every method of `erase classify`, two data sets, three kinds of forget set, ten seeds.

    python scripts/classification.py                    # docs/classification.json, its page and its plot
    python scripts/classification.py --table            # only the page and the plot, from the rows

Settings are those of configs/classify, tuned by scripts/tune_classification.py on other seeds. Goes on where the rows
end. Seed s forgets class s where a whole class is forgotten.
"""

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from classification_page import as_page, as_plot
from tqdm.auto import tqdm

from erase.classifiers.config import ClassifyConfig
from erase.classifiers.methods import METHODS
from erase.classifiers.run import Task
from erase.classifiers.table import FLOOR, REFERENCE
from erase.files import write_json, write_text

DATASETS = ("digits", "canvas-pictures")
SETTINGS = ("random-10", "random-50", "class")
APPROXIMATE = tuple(name for name in METHODS if name != REFERENCE)
Row = dict[str, Any]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", default=DATASETS)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--processes", type=int, default=2, help="seeds at once, each on one core")
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--table", action="store_true", help="run nothing; write the page from the rows")
    return parser.parse_args()


def config_of(dataset: str, setting: str, seed: int, label: int) -> ClassifyConfig:
    """`label`: what is forgotten where it is a class."""
    what: dict[str, Any] = {"forget_class": str(label)}
    if setting != "class":
        what = {"forget_fraction": float(setting.removeprefix("random-")) / 100}
    return ClassifyConfig(dataset=dataset, seed=seed, save_models=False, **what)


def one_seed(dataset: str, seed: int, settings: Sequence[str]) -> list[Row]:
    """All methods in the given settings; the model that forgets is trained once for all of them."""
    torch.set_num_threads(1)
    model, rows = None, []
    for setting in settings:
        task = Task(config_of(dataset, setting, seed, label=seed))
        model = model or task.original(seed)
        rows += task.run(seed, [REFERENCE, FLOOR, *APPROXIMATE], model)
    return rows


def run(args: argparse.Namespace, path: Path) -> None:
    rows = json.loads(path.read_text()) if path.exists() else []
    done = {(row["dataset"], row["setting"], row["seed"]) for row in rows}
    jobs = {
        (dataset, seed): [s for s in SETTINGS if (dataset, s, seed) not in done]
        for dataset, seed in product(args.datasets, range(args.seeds))
    }
    jobs = {key: settings for key, settings in jobs.items() if settings}
    with ProcessPoolExecutor(args.processes, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(one_seed, *key, settings) for key, settings in jobs.items()]
        for future in tqdm(as_completed(futures), total=len(futures), unit="seed"):
            rows += future.result()
            order = [*DATASETS, *args.datasets]
            rows.sort(key=lambda row: (order.index(row["dataset"]), SETTINGS.index(row["setting"]), row["seed"]))
            write_json(path, rows)


def main() -> None:
    args = parse_args()
    path = args.docs / "classification.json"
    if not args.table:
        run(args, path)
    rows = json.loads(path.read_text())
    write_text(args.docs / "classification.md", as_page(rows))
    write_text(args.docs / "images" / "classification.svg", as_plot(rows))


if __name__ == "__main__":
    main()
