"""What each part of a method is worth, on concepts that the benchmark leaves out; writes docs/ablations.jsonl and .md.

    python scripts/benchmark/ablations.py                          # all studies; goes on where the log ends
    python scripts/benchmark/ablations.py --studies density mask
    python scripts/benchmark/ablations.py --table                  # only the page, from the log

A study varies one or two settings and leaves the others as configs/canvas/ has them. A line of the log is one erasure,
scored as `scripts/benchmark/trial.py` does, at seeds that the benchmark never draws.
"""

import argparse
import json
from collections.abc import Iterator
from functools import cache
from itertools import groupby, product
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from trial import Row, read, summary, try_setting

from erase import EraseConfig, load_concepts
from erase.config import CANVAS
from erase.files import write_text

CONCEPTS = ("dog", "neon")
NEAR = {"dog": ("cat", "penguin", "fish", "butterfly", "octopus"), "neon": ("sketch", "blueprint")}
FAR = {"dog": ("car", "house", "rocket", "guitar", "bicycle"), "neon": ("photo", "watercolor")}
Changes = dict[str, Any]


def closed(**changes: Any) -> Changes:
    return {"method": "recommended"} | changes


def trained(**changes: Any) -> Changes:
    return {"method": "salun-anchored"} | changes


MASKS: dict[str, Changes] = {
    "pursuit": {"mask_score": "pursuit"},
    "gradient": {"mask_score": "gradient"},
    "random": {"mask": "random", "mask_score": "gradient"},
}
RATES: dict[tuple[float, str], tuple[float, ...]] = {
    (0.01, "salient"): (6e-4, 2e-3, 6e-3, 2e-2),
    (0.01, "random"): (6e-4, 2e-3, 6e-3, 2e-2, 6e-2),
    (0.1, "salient"): (6e-4, 2e-3, 6e-3),
    (0.1, "random"): (6e-4, 2e-3, 6e-3, 2e-2),
    (0.5, "salient"): (2e-4, 6e-4, 2e-3),
    (0.5, "random"): (2e-4, 6e-4, 2e-3, 6e-3),
}
"""Of `salun-anchored`, until more is worse: a random mask bears, and needs, three to ten times the salient one's."""
STUDIES: dict[str, dict[str, Changes]] = {
    "density": {
        f"{density:g} of the edited weights, {name}": closed(density=density, **mask)
        for density, (name, mask) in product((0.04, 0.09, 0.18, 0.36), MASKS.items())
    }
    | {"all of them (UCE)": closed(mask="none", mask_score="gradient")},
    "score": {
        f"{score}, density 0.09": closed(density=0.09, mask_score=score)
        for score in ("gradient", "fisher", "snip", "pursuit")
    },
    "mask": {
        f"{density:g}, {mask}": trained(density=density, mask=mask)
        for density, mask in product((0.01, 0.1, 0.5), ("salient", "random"))
    }
    | {"1, none": trained(mask="none")},
    "rate": {
        f"{density:g}, {mask}, {rate:g}": trained(density=density, mask=mask, learning_rate=rate)
        for (density, mask), rates in RATES.items()
        for rate in rates
    }
    | {f"1, none, {rate:g}": trained(mask="none", learning_rate=rate) for rate in RATES[0.5, "salient"]},
    "trained-score": {
        f"{score}, density 0.1": trained(density=0.1, mask_score=score) for score in ("gradient", "fisher", "snip")
    },
    "target": {
        f"{target}, α {alpha:g}": trained(target=target, alpha=alpha)
        for target, alpha in product(("frozen", "current"), (0.5, 2.0))
    },
    "retain": {
        "near: the most alike": trained(retain_classes=NEAR),
        "far: the least alike": trained(retain_classes=FAR),
        "all": trained(),
    },
    "concept-images": {f"{count}": trained(num_concept_images=count) for count in (15, 30, 60, 120)},
}
TITLES = {
    "density": "How few weights are enough? `recommended`: density and mask",
    "score": "`recommended`: what chooses the weights",
    "mask": "`salun-anchored`: density and mask",
    "rate": "`salun-anchored`: a learning rate for each density and mask",
    "trained-score": "`salun-anchored`: what chooses the weights",
    "target": "`salun-anchored`: whose prediction is the target, and α",
    "retain": "`salun-anchored`: which retained pictures",
    "concept-images": "`salun-anchored`: number of the concept's pictures",
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", nargs="+", default=list(STUDIES), choices=STUDIES)
    parser.add_argument("--concepts", nargs="+", default=CONCEPTS)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--work_dir", type=Path, default=Path("outputs/ablations"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--protocol", default="canvas-quick")
    parser.add_argument("--num_target_images", type=int, default=100)
    parser.add_argument("--num_kept_images", type=int, default=100)
    parser.add_argument("--table", action="store_true", help="run nothing; write the page from the log")
    return parser.parse_args()


def find(rows: list[Row], concept: str, changes: Changes, seed: int) -> Row | None:
    """The run of the log that had these very settings, whichever study it was made for."""
    wanted = settings_of(json.dumps(changes))
    of_concept = [row for row in rows if (row["concept"], row["seed"]) == (concept, seed)]
    return next((row for row in of_concept if settings_of(json.dumps(row["changes"])) == wanted), None)


@cache
def settings_of(text: str) -> Changes:
    """All settings of a run, the defaults among them, of its changes as JSON."""
    changes = json.loads(text)
    retained = changes.pop("retain_classes", None)
    config = EraseConfig.load(concept="cat", pretrained_model_name_or_path=CANVAS, **changes)
    return config.as_dict() | {"retain_classes": retained}


def settings(args: argparse.Namespace) -> Iterator[tuple[str, Changes, int]]:
    """What to try: closed forms have nothing random but a random mask."""
    for seed in range(args.seeds):
        for changes in (changes for study in args.studies for changes in STUDIES[study].values()):
            if seed == 0 or changes["method"] != "recommended" or changes.get("mask") == "random":
                yield from ((concept, changes, seed) for concept in args.concepts)


def run(args: argparse.Namespace) -> None:
    log = args.docs / "ablations.jsonl"
    for concept, changes, seed in settings(args):
        if find(read(log), concept, changes, seed) is None:
            values = {key: value for key, value in changes.items() if key != "retain_classes"}
            if classes := changes.get("retain_classes"):
                values["concept"] = str(retaining(concept, classes[concept], args.work_dir))
            row = try_setting(concept, values | {"seed": seed}, args)
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row | {"changes": changes, "seed": seed}) + "\n")
            print(f"{concept} {changes}: {summary(row['base'], row['erased'])}", flush=True)


def retaining(concept: str, classes: tuple[str, ...], folder: Path) -> Path:
    """A concept file that retains the prompts of some classes alone."""
    whole = load_concepts([concept], model=CANVAS)[0]
    named = load_concepts(list(classes), model=CANVAS)
    kept = {prompt for other in named for prompt in other.forget} & set(whole.retain)
    text = yaml.safe_dump(
        {
            "name": whole.name,
            "type": whole.type,
            "forget": list(whole.forget),
            "anchor": list(whole.anchor),
            "retain": [prompt for prompt in whole.retain if prompt in kept],
            "evaluate": list(whole.evaluate),
        }
    )
    path = folder / f"{concept}-{classes[0]}.yaml"
    write_text(path, text)
    return path


HEAD = """# Ablations

Made by `python scripts/benchmark/ablations.py` on `dog` and `neon`, which the [benchmark](benchmark.md) leaves out;
every figure
is in [ablations.jsonl](ablations.jsonl). Each table varies what its first column says and leaves the rest as
`configs/canvas/` has it. Protocol: [canvas-quick](evaluation.md#the-canvas) with 100 target and 100 or more retained
pictures. UA: coherent, in %; kept: the lesser of IRA and CRA, in % of the base's; FD: over the base's own. Two concepts
and one seed, of the rates two: a point or two is chance."""

BEST = "Each density and mask with its own rate, of those that keep 95 % on both concepts the one with the highest UA:"


def as_markdown(rows: list[Row], concepts: tuple[str, ...]) -> str:
    """The page: every study that is done on one concept at least."""
    parts = [HEAD]
    for study, choices in STUDIES.items():
        found = {label: [runs_of(rows, concept, changes) for concept in concepts] for label, changes in choices.items()}
        if any(all(of_concept) for of_concept in zip(*found.values())):
            parts.append(f"## {TITLES[study]}\n\n{table(found, concepts)}")
            if study == "rate":
                parts += [BEST, table(best_rates(found), concepts)]
    return "\n\n".join(parts) + "\n"


def table(found: dict[str, list[list[Row]]], concepts: tuple[str, ...]) -> str:
    """A line a label; its runs are listed by concept."""
    head = "| | " + " | ".join(f"{concept}: UA | kept | FD" for concept in concepts) + " |"
    lines = [f"| {label} | " + " | ".join(map(cells, runs)) + " |" for label, runs in found.items()]
    return "\n".join([head, "|---" * (1 + 3 * len(concepts)) + "|", *lines])


def best_rates(found: dict[str, list[list[Row]]]) -> dict[str, list[list[Row]]]:
    """Of the labels that differ in the last part alone and keep enough, the one whose runs erase most."""
    figures = {label: [figures_of(rows) for rows in runs] for label, runs in found.items() if all(runs)}
    enough = [label for label, of_concepts in figures.items() if min(kept for _, kept, _ in of_concepts) >= 95]
    groups = groupby(enough, key=lambda label: label.rpartition(", ")[0])
    best = [max(labels, key=lambda label: fmean(ua for ua, _, _ in figures[label])) for _, labels in groups]
    return {label: found[label] for label in best}


def runs_of(rows: list[Row], concept: str, changes: Changes) -> list[Row]:
    """The runs of a setting on a concept, one a seed."""
    return [row for seed in range(9) if (row := find(rows, concept, changes, seed))]


def cells(rows: list[Row]) -> str:
    """The figures of one setting on one concept; dashes where it was not run."""
    if not rows:
        return "– | – | –"
    return "{:.1f} | {:.1f} | {:.2f}".format(*figures_of(rows))


def figures_of(rows: list[Row]) -> tuple[float, float, float]:
    """UA coherent in %, the lesser of IRA and CRA in % of the base's, and FD over the base's; means over seeds."""
    pairs = [(row["erased"], row["base"]) for row in rows]
    return (
        fmean(100 * erased["ua_coherent"] for erased, _ in pairs),
        fmean(min(100 * erased[key] / base[key] for key in ("ira", "cra")) for erased, base in pairs),
        fmean(erased["fd_canvas"] / base["fd_canvas"] for erased, base in pairs),
    )


if __name__ == "__main__":
    arguments = parse_args()
    if not arguments.table:
        run(arguments)
    page = as_markdown(read(arguments.docs / "ablations.jsonl"), tuple(arguments.concepts))
    write_text(arguments.docs / "ablations.md", page)
