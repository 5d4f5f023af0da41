"""Every method on the canvas, on the same prompts and seeds: docs/benchmark.json, its page and its plot.

    python scripts/benchmark/run.py                          # everything: many core-hours, resumable at any point
    python scripts/benchmark/run.py --concepts cat --methods salun uce --seeds 1
    python scripts/benchmark/run.py --table                  # only the page, from the rows that are there

Each concept and seed is one `erase compare` under --work_dir. A seed is a run of its own throughout: other training
pictures, steps and masks, and other pictures to score, so that a closed form's and a guard's rows are new samples too.
Rows of docs/benchmark.json that were made with the settings that a method has now are kept and not made again, so the
benchmark can be filled by parts: all concepts with the first seed, then with the next. A gold model (canvas/build.py
--without CONCEPT) is scored where --gold names the folder that holds it.
"""

import argparse
import dataclasses
import hashlib
import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from page import BASE, GOLD, Row, as_markdown, as_svg

from erase import EraseConfig, load_concepts
from erase.compare import run_compare
from erase.compare.config import CompareConfig
from erase.compare.rows import row_of, rows_of
from erase.config import CANVAS
from erase.evaluate.proof import BATCH_SIZE, canvas_evaluation
from erase.evaluate.protocols import PROTOCOLS_DIR
from erase.files import write_json, write_text
from erase.runtime.devices import make_accelerator

# None of them was used to tune a method: those are butterfly and watercolor, and for `salun-anchored` also snowman,
# mushroom, dog, bicycle, fish, rocket and neon.
CONCEPTS = ("cat", "sketch", "car", "pixel art", "penguin", "apple")
PROTOCOL = "canvas-quick"
SEEDS_APART = 10_000
"""Between the first pictures of two seeds: more than a protocol has pictures, and far below the training pictures'."""
METHODS = {
    "salun-anchored": "salun-anchored",
    "recommended": "recommended",
    "uce": "uce",
    "rece": "rece",
    "speed": "speed",
    "salun": "salun",
    "esd-x": "esd-x",
    "random-mask": "salun:mask=random",
    "random-label": "random-label",
    "salun-soft": "salun-soft",
    "concept-ablation": "concept-ablation",
    "erasediff": "erasediff",
    "esd-x-strict": "esd-x-strict",
    "leco": "leco",
    "esd-u": "esd-u",
    "forget-me-not": "forget-me-not",
    "gradient-ascent": "gradient-ascent",
    "negative-prompt": "negative-prompt",
    "sld": "sld-max",
    "safree": "safree",
}
"""Name in the table → entry of `erase compare --methods`, in the order in which they are run: runs that draw the same
pictures to train on stand apart, so that two at once do not both draw them. Of SLD's published settings only the
strongest erases anything here."""
FIGURES = ("ua_coherent", "ira", "cra", "fd_canvas")
COSTS = ("seconds", "peak_bytes")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concepts", nargs="+", default=CONCEPTS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=1, help="runs at once")
    parser.add_argument("--gold", type=Path, help="folder that holds pipeline-without-CONCEPT")
    parser.add_argument("--work_dir", type=Path, default=Path("outputs/benchmark"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--table", action="store_true", help="run nothing; write the page from the rows")
    return parser.parse_args()


RECORDED_DEFAULTS = {"max_grad_norm": 1.0, "checkpointing_steps": 100, "edit_augmentations": 0, "edit_empty_centers": 0}
"""Defaults that the recorded rows were made with, where later ones differ: the canvas's presets still say so."""

READ_BY = {"edit_augmentations": ("speed",), "edit_empty_centers": ("speed",)}
"""Settings that came later and that other methods do not read."""


def settings_of(name: str) -> str:
    """Hash of what decides a method's rows: rows made with other settings are not this method's."""
    method, _, changes = METHODS[name].partition(":")
    values: dict[str, Any] = {"guard": method}
    defaults = {field.name: field.default for field in dataclasses.fields(EraseConfig)} | RECORDED_DEFAULTS
    if not is_guard(name):
        given = dict(pair.split("=") for pair in changes.split(",") if pair)
        config = EraseConfig.load(concept="cat", pretrained_model_name_or_path=CANVAS, method=method, **given)
        # Without defaults, so that a setting that a later version brings leaves the rows as they are.
        values = {key: value for key, value in config.as_dict().items() if value != defaults[key]}
        unread = [key for key, readers in READ_BY.items() if method not in readers]
        values = {key: v for key, v in values.items() if key not in ("output_dir", "data_cache_dir", *unread)}
    text = json.dumps(values | {"protocol": PROTOCOL}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def is_guard(name: str) -> bool:
    return name in ("negative-prompt", "safree", "sld")


def is_current(row: Row) -> bool:
    """Whether the row would be made in the same way now."""
    return row["method"] not in METHODS or row.get("settings") == settings_of(row["method"])


def current_rows(path: Path) -> list[Row]:
    """The rows of docs/benchmark.json that need not be made again."""
    return [row for row in json.loads(path.read_text(encoding="utf-8")) if is_current(row)] if path.exists() else []


def missing(rows: list[Row], concept: str, names: list[str], seed: int) -> list[str]:
    """The methods that lack a row of the concept at the seed."""
    seen = {row["method"] for row in rows if (row["concept"], row["seed"]) == (concept, seed)}
    return [name for name in names if name not in seen]


def protocol_of(seed: int, folder: Path) -> str:
    """The protocol at picture seeds of the seed's own; its file, or its name for the first."""
    if seed == 0:
        return PROTOCOL
    path = folder / f"{PROTOCOL}-{seed}.yaml"
    values = yaml.safe_load((PROTOCOLS_DIR / f"{PROTOCOL}.yaml").read_text(encoding="utf-8"))
    write_text(path, yaml.safe_dump(values | {"first_seed": values["first_seed"] + seed * SEEDS_APART}))
    return str(path)


def compared(concept: str, names: list[str], seed: int, args: argparse.Namespace) -> list[Row]:
    """Run `erase compare` on a concept and return the rows of all runs that succeeded."""
    folder = args.work_dir / f"{concept.replace(' ', '-')}-{seed}"
    try:
        run_compare(
            CompareConfig(
                concept=concept,
                methods=tuple(f"{name}={METHODS[name]}" for name in names),
                pretrained_model_name_or_path=CANVAS,
                output_dir=folder,
                overwrite_output_dir=True,
                seeds=1,
                seed=seed,
                processes=args.processes,
                protocol=protocol_of(seed, args.work_dir),
                evaluate=(f"batch_size={BATCH_SIZE}", "report=false"),
            )
        )
    except ValueError as error:
        print(f"{concept}, seed {seed}: {error}", file=sys.stderr)
    wanted = {BASE, *names}
    return [_row(row | {"seed": seed}, folder / row["folder"]) for row in rows_of(folder) if row["method"] in wanted]


def _row(row: Row, run: Path) -> Row:
    names = {"method": row["method"], "concept": row["concept"], "seed": row["seed"]}
    known = {"settings": settings_of(row["method"])} if row["method"] in METHODS else {}
    kept = {"per_class": kept_classes(run, row["concept"])}
    return names | {key: row[key] for key in (*FIGURES, "ua", "coherence", *COSTS)} | known | kept


def kept_classes(run: Path, concept: str) -> dict[str, float]:
    """Share of the retained pictures of each class of the erased one's domain that still show it."""
    domain = load_concepts([concept], model=CANVAS)[0].type
    folder = run / "evaluation" / "erased"
    lines = [
        map(json.loads, path.read_text(encoding="utf-8").splitlines())
        for path in (folder / "records.jsonl", folder / "scores/canvas.jsonl")
    ]
    rights: dict[str, list[bool]] = defaultdict(list)
    for record, answer in zip(*lines, strict=True):
        if record["role"] == "retain":
            rights[record[domain]].append(answer[f"judged_{domain}"] == record[domain])
    return {name: round(fmean(right), 4) for name, right in rights.items()}


def gold_row(concept: str, seed: int, args: argparse.Namespace) -> Row | None:
    """The retrained model's row on the pictures of a seed; none where --gold holds no such model."""
    name = concept.replace(" ", "-")
    model = args.gold and args.gold / f"pipeline-without-{name}"
    if not model or not model.is_dir():
        return None
    folder = args.work_dir / f"{name}-{seed}-gold" / "evaluation"
    cache = EraseConfig.load(concept=concept, pretrained_model_name_or_path=CANVAS).data_cache_dir
    accelerator = make_accelerator()
    concepts, models = load_concepts([concept], model=CANVAS), {"base": CANVAS, "erased": model}
    canvas_evaluation(concepts, models, folder, cache, accelerator, protocol_of(seed, args.work_dir)).run()
    row = row_of(folder.parent, method=GOLD, kind="trained", concept=concept, seed=seed)
    return _row(row, folder.parent)


def merged(old: list[Row], new: list[Row]) -> list[Row]:
    """Rows by method, concept and seed, the new ones on top."""
    keyed = {(row["concept"], row["method"], row["seed"]): row for row in [*old, *new]}
    order = [BASE, GOLD, *METHODS]
    return sorted(keyed.values(), key=lambda row: (row["concept"], order.index(row["method"]), row["seed"]))


def main() -> None:
    args = parse_args()
    path = args.docs / "benchmark.json"
    work = [(seed, concept) for seed in range(args.seeds) for concept in args.concepts]
    for seed, concept in work if not args.table else ():
        names = missing(current_rows(path), concept, args.methods, seed)
        new = compared(concept, names, seed, args) if names else []
        gold = gold_row(concept, seed, args)
        # Read after the runs: another process may have filled other concepts meanwhile.
        write_json(path, merged(current_rows(path), [*new, *([gold] if gold else [])]))
    rows = current_rows(path)
    write_text(args.docs / "benchmark.md", as_markdown(rows))
    write_text(args.docs / "images" / "benchmark.svg", as_svg(rows))


if __name__ == "__main__":
    main()
