"""The classification benchmark: every method of `erase classify`, two data sets, three kinds of forget set, ten seeds.

    python scripts/classification/run.py                    # docs/classification.json, its page and its plot
    python scripts/classification/run.py --table            # only the page and the plot, from the rows

Settings are those of configs/classify, tuned by scripts/classification/tune.py on other seeds. Makes the rows that are
missing and no others. Seed s forgets class s where a whole class is forgotten.
"""

import argparse
import json
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from page import as_page, as_plot
from tqdm.auto import tqdm

from erase.classifiers.config import ClassifyConfig
from erase.classifiers.methods import METHODS
from erase.classifiers.run import Task
from erase.classifiers.settings import FLOOR, ORIGINAL, REFERENCE
from erase.files import write_json, write_text

DATASETS = ("digits", "canvas-pictures")
SETTINGS = ("random-10", "random-50", "class")
APPROXIMATE = tuple(name for name in METHODS if name != REFERENCE)
Row = dict[str, Any]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", default=DATASETS, choices=DATASETS)
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


def one_seed(dataset: str, seed: int, wanted: Mapping[str, list[str]]) -> list[Row]:
    """The methods that each setting asks for; the model that forgets is trained once for all of them."""
    torch.set_num_threads(1)
    model, rows = None, []
    for setting, methods in wanted.items():
        task = Task(config_of(dataset, setting, seed, label=seed))
        model = model or task.original(seed)
        rows += task.run(seed, methods, model)
    return rows


def run(args: argparse.Namespace, path: Path) -> None:
    rows = {key_of(row): row for row in (json.loads(path.read_text(encoding="utf-8")) if path.exists() else [])}
    jobs: dict[tuple[str, int], dict[str, list[str]]] = {}
    for dataset, seed, setting in product(args.datasets, range(args.seeds), SETTINGS):
        missing = [m for m in (REFERENCE, FLOOR, *APPROXIMATE) if (dataset, setting, seed, m) not in rows]
        if missing:
            jobs.setdefault((dataset, seed), {})[setting] = missing
    with ProcessPoolExecutor(args.processes, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(one_seed, *key, wanted) for key, wanted in jobs.items()]
        for future in tqdm(as_completed(futures), total=len(futures), unit="seed"):
            rows |= {key_of(row): row for row in future.result()}
            write_json(path, [rows[key] for key in sorted(rows, key=place_of)])


def key_of(row: Row) -> tuple[str, str, int, str]:
    return row["dataset"], row["setting"], row["seed"], row["method"]


def place_of(key: tuple[str, str, int, str]) -> tuple[int, int, int, int]:
    """Where a row stands in the file."""
    dataset, setting, seed, method = key
    order = [ORIGINAL, REFERENCE, FLOOR, *APPROXIMATE]
    return DATASETS.index(dataset), SETTINGS.index(setting), seed, order.index(method)


def main() -> None:
    args = parse_args()
    path = args.docs / "classification.json"
    if not args.table:
        run(args, path)
    rows = json.loads(path.read_text(encoding="utf-8"))
    write_text(args.docs / "classification.md", as_page(rows))
    write_text(args.docs / "images" / "classification.svg", as_plot(rows))


if __name__ == "__main__":
    main()
