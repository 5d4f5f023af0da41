"""Tune every method on the canvas with the same budget; choose the settings of configs/canvas/ from the log.

    python scripts/tune_methods.py                       # all methods, both concepts; goes on where the log ends
    python scripts/tune_methods.py --methods esd-x leco
    python scripts/tune_methods.py --choose              # print each method's best setting and how the others did

Each method tries GRID's settings on the same object and style, which the benchmark leaves out, at seeds that it never
draws. A line of the log is one erasure, scored as `scripts/canvas_tune.py` does.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from canvas_tune import Row, summary, try_setting

from erase.methods import METHODS

CONCEPTS = ("butterfly", "watercolor")
LOG = Path("docs/method_tuning.jsonl")
MISMATCH = [
    {"learning_rate": 1e-4, "alpha": 0.5, "max_train_steps": 100},
    {"learning_rate": 1e-4, "alpha": 1.0, "max_train_steps": 200},
    {"learning_rate": 3e-4, "alpha": 1.0, "max_train_steps": 200},
    {"learning_rate": 6e-4, "alpha": 2.0, "max_train_steps": 300},
]


def rates(steps: int, *values: float, **others: Any) -> list[dict[str, Any]]:
    """One setting for each learning rate."""
    return [{"learning_rate": value, "max_train_steps": steps} | others for value in values]


GRID: dict[str, list[dict[str, Any]]] = {
    "salun": MISMATCH,
    "salun-soft": MISMATCH,
    "random-label": MISMATCH,
    "gradient-ascent": rates(20, 1e-5, 3e-5, 1e-4, 3e-4),
    "esd-x": rates(200, 3e-5, 1e-4, 3e-4, 1e-3),
    "esd-x-strict": rates(200, 1e-4, 3e-4, 1e-3, 3e-3),
    "esd-u": rates(200, 1e-5, 3e-5, 1e-4, 3e-4),
    "concept-ablation": rates(200, 1e-4, 3e-4, 1e-3, 2e-3),
    "forget-me-not": rates(100, 1e-5, 1e-4, 3e-4, 1e-3),
    "erasediff": rates(150, 3e-5, 1e-4, 3e-4, 6e-4),
    "leco": rates(200, 1e-4, 3e-4, 1e-3, 3e-3),
}
"""`recommended` has its log in docs/canvas_tuning.jsonl, closed forms in docs/method_tuning_closed_form.jsonl."""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(GRID), choices=GRID)
    parser.add_argument("--concepts", nargs="+", default=CONCEPTS)
    parser.add_argument("--work_dir", type=Path, default=Path("outputs/tune_methods"))
    parser.add_argument("--log", type=Path, default=LOG)
    parser.add_argument("--num_target_images", type=int, default=96)
    parser.add_argument("--num_retain_images", type=int, default=120)
    parser.add_argument("--choose", action="store_true", help="run nothing; print what the log says")
    return parser.parse_args()


def read(log: Path) -> list[Row]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def identity(row: Row) -> str:
    return json.dumps([row["concept"], row["changes"]], sort_keys=True)


def score(row: Row) -> float:
    """Mean of UA coherent, IRA and CRA over base, and nearness of the kept pictures: 1 at the FD's floor, 0 at 5×."""
    base, erased = row["base"], row["erased"]
    kept = [min(1.0, erased[key] / base[key]) for key in ("ira", "cra")]
    near = 1 - min(1.0, max(0.0, erased["fd_canvas"] / base["fd_canvas"] - 1) / 4)
    return (erased["ua_coherent"] + sum(kept) + near) / 4


def tune(args: argparse.Namespace) -> None:
    done = {identity(row) for row in read(args.log)}
    for method in args.methods:
        for setting in GRID[method]:
            for concept in args.concepts:
                changes = {"method": method} | setting
                if identity({"concept": concept, "changes": changes}) in done:
                    continue
                row = try_setting(concept, changes, args)
                with args.log.open("a") as log:
                    log.write(json.dumps(row | {"score": score(row)}) + "\n")
                print(f"{method:>16} {concept:>10} {setting}: {summary(row['base'], row['erased'])}", flush=True)


def choose(args: argparse.Namespace) -> None:
    rows = read(args.log)
    for method in args.methods:
        print(f"{method} ({METHODS[method].summary})")
        for setting in GRID[method]:
            changes = {"method": method} | setting
            found = [row for row in rows if row["changes"] == changes]
            if found:
                print(f"  {sum(map(score, found)) / len(found):.3f}  {setting}")
                for row in found:
                    print(f"         {row['concept']:>10}: {summary(row['base'], row['erased'])}")


if __name__ == "__main__":
    arguments = parse_args()
    choose(arguments) if arguments.choose else tune(arguments)
