"""Every method on the canvas, on the same prompts and seeds; writes docs/benchmark.json and docs/benchmark.md.

    python scripts/benchmark.py                                  # everything: many core-hours, resumable at any point
    python scripts/benchmark.py --concepts cat --methods salun uce --seeds 1
    python scripts/benchmark.py --table                          # only the page, from the rows that are there

Each concept is one `erase compare` under --work_dir. Rows of docs/benchmark.json that were made with the settings that
a method has now are kept and not made again, so the benchmark can be filled by parts. A gold model (build_canvas.py
--without CONCEPT) is scored where --gold names the folder that holds it; rows of docs/canvas.json stand in for those
that were scored before.
"""

import argparse
import hashlib
import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from accelerate import Accelerator

from erase import EraseConfig, load_concepts
from erase.compare.config import CompareConfig
from erase.compare.pareto import pareto_front
from erase.compare.rows import average_gap, row_of
from erase.config import CANVAS
from erase.devices import native_precision
from erase.evaluate.proof import canvas_evaluation
from erase.files import write_json, write_text

# None of them was used to tune a method: those are butterfly and watercolor, and for `recommended` also snowman,
# mushroom, dog, bicycle, fish, rocket and neon.
CONCEPTS = ("cat", "apple", "car", "penguin", "pixel art", "sketch")
METHODS = {
    "recommended": "recommended",
    "salun": "salun",
    "random-mask": "salun:mask=random",
    "random-label": "random-label",
    "salun-soft": "salun-soft",
    "gradient-ascent": "gradient-ascent",
    "esd-x": "esd-x",
    "esd-x-strict": "esd-x-strict",
    "esd-u": "esd-u",
    "concept-ablation": "concept-ablation",
    "forget-me-not": "forget-me-not",
    "erasediff": "erasediff",
    "leco": "leco",
    "uce": "uce",
    "rece": "rece",
    "speed": "speed",
    "negative-prompt": "negative-prompt",
    "sld": "sld-medium",
    "safree": "safree",
}
"""Name in the table → entry of `erase compare --methods`."""
FIGURES = ("ua_coherent", "ira", "cra", "fd_canvas")
COSTS = ("seconds", "peak_bytes")
GOLD = "gold"
Row = dict[str, Any]


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


def settings_of(name: str) -> str:
    """Hash of what decides a method's rows: rows made with other settings are not this method's."""
    method, _, changes = METHODS[name].partition(":")
    if method in ("negative-prompt", "safree") or method.startswith("sld"):
        return method
    values = dict(pair.split("=") for pair in changes.split(",") if pair)
    config = EraseConfig.load(concept="cat", pretrained_model_name_or_path=CANVAS, method=method, **values)
    text = json.dumps(config.as_dict() | {"output_dir": "", "data_cache_dir": ""}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def is_current(row: Row) -> bool:
    return row["method"] not in METHODS or row.get("settings") == settings_of(row["method"])


def missing(rows: list[Row], concept: str, names: list[str], seeds: int) -> list[str]:
    """The methods that lack a row of the concept."""
    seen = defaultdict(set)
    for row in rows:
        seen[row["method"]].add((row["concept"], row["seed"]))
    inference = {name for name in names if settings_of(name) == METHODS[name]}
    needed = {name: range(1 if name in inference else seeds) for name in names}
    return [name for name in names if any((concept, seed) not in seen[name] for seed in needed[name])]


def compared(concept: str, names: list[str], args: argparse.Namespace) -> list[Row]:
    """Run `erase compare` on a concept and return the benchmark's rows."""
    from erase.compare import run_compare
    from erase.compare.rows import rows_of

    folder = args.work_dir / concept.replace(" ", "-")
    run_compare(
        CompareConfig(
            concept=concept,
            methods=tuple(f"{name}={METHODS[name]}" for name in names),
            pretrained_model_name_or_path=CANVAS,
            output_dir=folder,
            seeds=args.seeds,
            processes=args.processes,
        )
    )
    wanted = {"base", *names}
    return [_row(row, folder / row["folder"]) for row in rows_of(folder) if row["method"] in wanted]


def _row(row: Row, run: Path) -> Row:
    names = {"method": row["method"], "concept": row["concept"], "seed": row["seed"] or 0}
    known = {"settings": settings_of(row["method"])} if row["method"] in METHODS else {}
    kept = {"per_class": kept_classes(run, row["concept"])}
    return names | {key: row[key] for key in (*FIGURES, "ua", "coherence", *COSTS)} | known | kept


def kept_classes(run: Path, concept: str) -> dict[str, float]:
    """Share of the retained pictures of each class of the erased one's domain that still show it."""
    domain = load_concepts([concept], model=CANVAS)[0].type
    folder = run / "evaluation" / "erased"
    lines = [
        map(json.loads, path.read_text().splitlines())
        for path in (folder / "records.jsonl", folder / "scores/canvas.jsonl")
    ]
    rights: dict[str, list[bool]] = defaultdict(list)
    for record, answer in zip(*lines, strict=True):
        if record["role"] == "retain":
            rights[record[domain]].append(answer[f"judged_{domain}"] == record[domain])
    return {name: round(fmean(right), 4) for name, right in rights.items()}


def gold_row(concept: str, args: argparse.Namespace) -> Row | None:
    """The retrained model's row: scored now, or as docs/canvas.json has it."""
    model = args.gold and args.gold / f"pipeline-without-{concept.replace(' ', '-')}"
    if model and model.is_dir():
        folder = args.work_dir / f"{concept.replace(' ', '-')}-gold" / "evaluation"
        cache = EraseConfig.load(concept=concept, pretrained_model_name_or_path=CANVAS).data_cache_dir
        accelerator = Accelerator(mixed_precision=native_precision())
        models = {"base": CANVAS, "erased": model}
        canvas_evaluation(load_concepts([concept], model=CANVAS), models, folder, cache, accelerator).run()
        row = row_of(folder.parent, method=GOLD, kind="trained", concept=concept, seed=0)
        return _row(row, folder.parent)
    known = json.loads((args.docs / "canvas.json").read_text())
    found = [row for row in known if row["concept"] == concept and row["setting"].startswith(GOLD)]
    values = {key: found[0][key]["value"] for key in (*FIGURES, "ua", "coherence")} if found else {}
    return {"method": GOLD, "concept": concept, "seed": 0} | values | dict.fromkeys(COSTS) if found else None


def merged(old: list[Row], new: list[Row]) -> list[Row]:
    """Rows by method, concept and seed, the new ones on top."""
    keyed = {(row["concept"], row["method"], row["seed"]): row for row in [*old, *new]}
    order = ["base", GOLD, *METHODS]
    return sorted(keyed.values(), key=lambda row: (row["concept"], order.index(row["method"]), row["seed"]))


def main() -> None:
    args = parse_args()
    path = args.docs / "benchmark.json"
    rows = [row for row in json.loads(path.read_text()) if is_current(row)] if path.exists() else []
    for concept in args.concepts if not args.table else ():
        names = missing(rows, concept, args.methods, args.seeds)
        new = compared(concept, names, args) if names else []
        gold = gold_row(concept, args)
        rows = merged(rows, [*new, *([gold] if gold else [])])
        write_json(path, rows)
    write_text(args.docs / "benchmark.md", as_markdown(rows))


HEAD = """# The benchmark: every method on the canvas

Made by `python scripts/benchmark.py`; every row is in [benchmark.json](benchmark.json). One default per method for all
concepts (`configs/canvas/`), tuned on butterfly and watercolor with the same number of settings each
([method_tuning.jsonl](method_tuning.jsonl)), `recommended` with more ([canvas_tuning.jsonl](canvas_tuning.jsonl)).
Rates in %, mean ± sd over seeds and concepts; IRA, CRA and FD over the base's own of the same concept. Protocol:
[evaluation.md](evaluation.md), 200 target and 500 retained pictures a run. Seconds on two cores, mask and training or
the edit. The gap is the mean absolute difference to the retrained model in UA coherent, IRA and CRA (points) and in FD
(floors), where a gold model was trained."""


def as_markdown(rows: list[Row]) -> str:
    """The page docs/benchmark.md."""
    kinds = {
        concept: load_concepts([concept], model=CANVAS)[0].type for concept in dict.fromkeys(r["concept"] for r in rows)
    }
    parts = [HEAD]
    for title, kind in (("Objects", "object"), ("Styles", "style")):
        chosen = [row for row in rows if kinds[row["concept"]] == kind]
        if chosen:
            names = ", ".join(dict.fromkeys(row["concept"] for row in chosen))
            parts.append(f"## {title}\n\n{names}.\n\n{main_table(chosen)}")
    parts.append("## Neighbours\n\n" + NEIGHBOURS + "\n\n" + neighbour_table(rows))
    return "\n\n".join(parts) + "\n"


def over_base(row: Row, base: Row) -> dict[str, float]:
    """UA coherent in %, IRA and CRA in % of base, FD over the floor."""
    return {
        "ua_coherent": 100 * row["ua_coherent"],
        "ira": 100 * row["ira"] / base["ira"],
        "cra": 100 * row["cra"] / base["cra"],
        "fd": row["fd_canvas"] / base["fd_canvas"],
    }


COLUMNS = ("method", "UA coherent ↑", "IRA of base ↑", "CRA of base ↑", "FD / floor ↓", "gap to gold ↓", "front",
           "seconds", "peak GB", "n")  # fmt: skip


def main_table(rows: list[Row]) -> str:
    base = {row["concept"]: row for row in rows if row["method"] == "base"}
    gold = {row["concept"]: row for row in rows if row["method"] == GOLD}
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row["concept"] in base:
            groups[row["method"]].append(row)
    fronts = on_fronts(rows, base)
    for method, group in groups.items():
        values = [over_base(row, base[row["concept"]]) for row in group]
        digits = {"ua_coherent": 1, "ira": 1, "cra": 1, "fd": 2}
        cells = [spread([value[key] for value in values], places) for key, places in digits.items()]
        gaps = [
            average_gap([row for row in group if row["concept"] == concept], gold[concept], base[concept]["fd_canvas"])
            for concept in gold
            if concept in base and any(row["concept"] == concept for row in group)
        ]
        cells += [f"{fmean(gaps):.1f}" if gaps else "–", fronts.get(method, "–")]
        cells += [mean_cost(group, "seconds", 1, 0), mean_cost(group, "peak_bytes", 1e9, 2), str(len(group))]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def mean_cost(rows: list[Row], key: str, unit: float, digits: int) -> str:
    values = [row[key] / unit for row in rows if row.get(key) is not None]
    return f"{fmean(values):.{digits}f}" if values else "–"


def on_fronts(rows: list[Row], base: dict[str, Row]) -> dict[str, str]:
    """Method → on how many concepts' fronts it lies, of UA coherent against the mean of IRA and CRA, of how many."""
    counts: dict[str, list[bool]] = defaultdict(list)
    for concept in base:
        points: dict[str, list[dict[str, float]]] = defaultdict(list)
        for row in rows:
            if row["concept"] == concept and row["method"] not in ("base", GOLD):
                points[row["method"]].append(over_base(row, base[concept]))
        means = [
            (fmean(p["ua_coherent"] for p in group), fmean((p["ira"] + p["cra"]) / 2 for p in group))
            for group in points.values()
        ]
        for method, flag in zip(points, pareto_front(means)):
            counts[method].append(flag)
    return {method: f"{sum(flags)} of {len(flags)}" for method, flags in counts.items()}


def spread(values: list[float], digits: int) -> str:
    sd = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{fmean(values):.{digits}f}{sd}"


NEIGHBOURS = """What happens to the others of the erased one's kind: the anchor, which it turns into, and the one that
lost most. Share of their retained pictures that still show them, in %, mean over seeds."""


def neighbour_table(rows: list[Row]) -> str:
    lines = ["| erased | method | anchor | lost most |", "|---|---|---|---|"]
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row.get("per_class"):
            groups[row["concept"], row["method"]].append(row)
    for (concept, method), group in groups.items():
        rates = {name: fmean(row["per_class"][name] for row in group) for name in group[0]["per_class"]}
        anchor = anchor_of(concept, list(rates))
        worst = min(rates, key=rates.__getitem__)
        lines.append(
            f"| {concept} | {method} | {anchor} {100 * rates[anchor]:.0f} | {worst} {100 * rates[worst]:.0f} |"
        )
    return "\n".join(lines)


def anchor_of(concept: str, classes: list[str]) -> str:
    """The class that the concept's anchor prompts name."""
    prompt = load_concepts([concept], model=CANVAS)[0].anchor[0]
    return max((name for name in classes if name in prompt), key=len)


if __name__ == "__main__":
    main()
