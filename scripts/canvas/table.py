"""Erase many of the canvas's concepts with one setting of salun-anchored, and the controls: docs/canvas.json and .md.

    python scripts/canvas/table.py                        # 8 objects, 6 styles, the mask controls
    python scripts/canvas/table.py --gold canvas_work     # and the gold models that build.py --without made

Runs that are done are not repeated: every run is a folder under --work_dir, every picture is in the cache. Gold models
do not depend on the config: without --gold, their rows in docs/canvas.json are kept.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from erase import EraseConfig, erase, load_concepts
from erase.canvas import STYLES
from erase.config import CANVAS
from erase.evaluate.evaluation import load_metrics
from erase.evaluate.proof import canvas_evaluation
from erase.files import write_json, write_text
from erase.runtime.devices import make_accelerator

OBJECTS = ("cat", "apple", "car", "sunflower", "umbrella", "guitar", "penguin", "octopus")
CONTROLLED = ("cat", "neon")
SETTING: dict[str, Any] = {
    "method": "salun-anchored",
    "density": 0.5,
    "train_batch_size": 16,
    "max_train_steps": 300,
    "learning_rate": 6e-4,
    "data_solver": "default",
    "data_num_inference_steps": 25,
}
METRICS = ("ua", "ua_coherent", "ira", "cra", "coherence", "fd_canvas")
MASKS: dict[str, dict[str, Any]] = {
    "random mask, density 0.5": {"mask": "random"},
    "salient mask, density 0.1": {"density": 0.1},
    "random mask, density 0.1": {"mask": "random", "density": 0.1},
    "no mask": {"mask": "none"},
}
GOLD = "gold: retrained without it"
Row = dict[str, Any]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work_dir", type=Path, default=Path("outputs/canvas_table"), help="one folder a run")
    parser.add_argument("--concepts", nargs="*", default=[*OBJECTS, *STYLES])
    parser.add_argument("--controls", nargs="*", default=list(CONTROLLED), help="concepts to run the controls on")
    parser.add_argument("--gold", type=Path, help="folder that holds pipeline-without-CONCEPT")
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    return parser.parse_args()


def run(concept: str, setting: str, work: Path, **changes: Any) -> list[Row]:
    """Erase one concept (unless that is done) and return its base and erased rows."""
    folder = work / f"{concept}-{setting}".replace(" ", "-").replace(",", "")
    if not (folder / "manifest.json").exists():
        values = SETTING | changes
        resume = "latest" if list(folder.glob("checkpoint-*/state.safetensors")) else None
        overwrite = (folder / "config.yaml").exists()
        erase(EraseConfig.load(pretrained_model_name_or_path=CANVAS, concept=concept, output_dir=folder,
                               resume_from_checkpoint=resume, overwrite_output_dir=overwrite, **values))  # fmt: skip
    metrics = load_metrics(folder)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    into = metrics["details"]["canvas"]["erased"]["turns_into"]
    known = {"concept": concept, "seconds": manifest["seconds"], "turns_into": into}
    return [known | {"setting": name} | metrics[model] for name, model in (("base", "base"), (setting, "erased"))]


def gold(concept: str, model: Path, work: Path) -> Row:
    """Score the model that was trained without the concept on the same rows."""
    cache = EraseConfig.load(pretrained_model_name_or_path=CANVAS, concept=concept).data_cache_dir
    folder = work / f"{concept}-gold"
    canvas_evaluation(
        load_concepts([concept], model="canvas"),
        {"base": CANVAS, "erased": model},
        folder,
        cache,
        make_accelerator(),
    ).run()
    trained = json.loads((model / "training.json").read_text(encoding="utf-8"))
    known = {"concept": concept, "setting": GOLD, "denoiser_steps": trained["denoiser_steps"]}
    return known | load_metrics(folder)["erased"]


def gold_rows(args: argparse.Namespace) -> dict[tuple[str, str], Row]:
    """The gold models in --gold, or the rows that an earlier table had."""
    if args.gold:
        models = {concept: args.gold / f"pipeline-without-{concept}" for concept in args.controls}
        rows = [gold(concept, model, args.work_dir) for concept, model in models.items() if model.is_dir()]
    else:
        earlier = args.docs / "canvas.json"
        rows = json.loads(earlier.read_text(encoding="utf-8")) if earlier.exists() else []
    return {(row["concept"], GOLD): row for row in rows if row["setting"] == GOLD}


def main() -> None:
    args = parse_args()
    table = {(row["concept"], row["setting"]): row for c in args.concepts for row in run(c, "default", args.work_dir)}
    for concept in args.controls:
        for setting, changes in MASKS.items():
            row = run(concept, setting, args.work_dir, **changes)[1]
            table[concept, setting] = row
    table |= gold_rows(args)
    args.docs.mkdir(exist_ok=True)
    write_json(args.docs / "canvas.json", list(table.values()))
    write_text(args.docs / "canvas.md", as_markdown(list(table.values())))


def as_markdown(rows: list[Row]) -> str:
    """The page docs/canvas.md."""
    by_setting: dict[str, list[Row]] = {}
    for row in rows:
        by_setting.setdefault(row["setting"], []).append(row)
    base = {row["concept"]: row for row in by_setting["base"]}
    erased = by_setting["default"]
    kinds = {
        "Objects": [row for row in erased if row["concept"] not in STYLES],
        "Styles": [row for row in erased if row["concept"] in STYLES],
    }
    parts = [_HEAD]
    for kind, members in kinds.items():
        if members:
            parts.append(f"## {kind}\n\n" + _concept_table(members, base))
    controlled = [row for row in rows if row["setting"] not in ("base", "default")]
    if controlled:
        controls = _control_table(rows, list(dict.fromkeys(row["concept"] for row in controlled)))
        parts += ["## Controls", _CONTROLS, controls]
    return "\n\n".join(parts) + "\n"


_HEAD = """# The canvas: every concept with one setting

Made by `python scripts/canvas/table.py`; the figures with their 95 % intervals and N are in `canvas.json`, the protocol
is described in [evaluation.md](evaluation.md). All use [salun-anchored](methods/salun-anchored.md) with density 0.5 and
300 steps of 16 + 16 pictures, which was tuned on other objects and seeds ([canvas_tuning.jsonl](canvas_tuning.jsonl));
every method in shorter runs is in the [benchmark](benchmark.md). 25 DDIM steps, guidance 4, held-out seeds, half of the
prompts in a held-out wording. UA, IRA, CRA and coherence in %. FD is the Fréchet distance of the kept pictures to the
base model's at other seeds; the base's own is the seed-to-seed floor, FD ratio is over it. A gold model is trained from
nothing on the pictures that do not show the concept, for the steps named in its row (the base: 7,400)."""

_CONTROLS = """All at the default's learning rate, which at density 0.1 is too low for a random mask
([why](methods/salun.md#what-the-mask-is-worth)): at 4e-3 one erases `neon` as the salient mask does at 6e-4, UA
coherent 97.5 against 99.2 (N = 120, other seeds; the last lines of [canvas_tuning.jsonl](canvas_tuning.jsonl))."""

_COLUMNS = ("erased", "UA", "UA coherent", "IRA (base)", "CRA (base)", "coherence (base)", "FD (floor)", "FD ratio",
            "turns into")  # fmt: skip


def _percent(row: Row, key: str) -> str:
    return f"{100 * row[key]['value']:.1f}"


def _concept_table(members: list[Row], base: dict[str, Row]) -> str:
    lines = [f"| {' | '.join(_COLUMNS)} |", "|---" * len(_COLUMNS) + "|"]
    for row in members:
        own = base[row["concept"]]
        paired = [f"{_percent(row, key)} ({_percent(own, key)})" for key in ("ira", "cra", "coherence")]
        fd, floor = row["fd_canvas"]["value"], own["fd_canvas"]["value"]
        judged = row["turns_into"][row["concept"]]
        into = ", ".join(f"{name} {100 * n / sum(judged.values()):.0f} %" for name, n in list(judged.items())[:2])
        cells = [row["concept"], _percent(row, "ua"), _percent(row, "ua_coherent"), *paired,
                 f"{fd:.2f} ({floor:.2f})", f"{fd / floor:.2f}", into]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    lines.append(_mean_line(members, base))
    return "\n".join(lines)


def _mean_line(members: list[Row], base: dict[str, Row]) -> str:
    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    own = [base[row["concept"]] for row in members]
    cells = ["**mean**"]
    cells += [f"{100 * mean([row[key]['value'] for row in members]):.1f}" for key in ("ua", "ua_coherent")]
    for key in ("ira", "cra", "coherence"):
        ours, theirs = (100 * mean([row[key]["value"] for row in group]) for group in (members, own))
        cells.append(f"{ours:.1f} ({theirs:.1f})")
    fd, floor = (mean([row["fd_canvas"]["value"] for row in group]) for group in (members, own))
    ratio = mean([a["fd_canvas"]["value"] / b["fd_canvas"]["value"] for a, b in zip(members, own)])
    return f"| {' | '.join([*cells, f'{fd:.2f} ({floor:.2f})', f'{ratio:.2f}', ''])} |"


def _control_table(rows: list[Row], concepts: list[str]) -> str:
    lines = ["| erased | model | UA | UA coherent | IRA | CRA | coherence | FD |", "|---|---|---|---|---|---|---|---|"]
    for concept in concepts:
        for row in (row for row in rows if row["concept"] == concept):
            name = "salient mask, density 0.5 (default)" if row["setting"] == "default" else row["setting"]
            name += f", {sum(row['denoiser_steps']):,} steps" if "denoiser_steps" in row else ""
            figures = [_percent(row, key) for key in METRICS[:-1]]
            lines.append(f"| {row['concept']} | {name} | {' | '.join(figures)} | {row['fd_canvas']['value']:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
