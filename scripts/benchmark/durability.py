"""What becomes of an erasure: more erasures on top of it, and training that wants the concept back.

    python scripts/benchmark/durability.py                            # both studies; goes on where the log ends
    python scripts/benchmark/durability.py --studies sequence --methods recommended uce
    python scripts/benchmark/durability.py --table                    # only the page, from the log

sequence: concepts are erased one after the other, each from the model that the last one left, and at once for
comparison. relearning: an erased model is trained on pictures of the concept as anyone would fine-tune it. Concepts and
seeds are those that the benchmark leaves out; a line of docs/durability.jsonl is one scored model.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss
from tqdm.auto import tqdm
from trial import Row, read, scored

from erase import EraseConfig, erase, load_concepts
from erase.config import CANVAS
from erase.data.training_data import cycled
from erase.files import append_lines, write_text
from erase.models.base import rows as rows_of
from erase.models.loading import load_denoiser

CHAIN = ("dog", "neon", "bicycle", "mushroom", "fish")
SCORED = (1, 3, 5)
"""After how many erasures the model is scored."""
RELEARNED = ("dog", "neon")
STEPS = (0, 5, 20, 80)
"""Steps of relearning after which the model is scored."""
PICTURES, BATCH, RATE = 30, 8, 1e-4
"""Relearning: pictures of the concept, how many a step, AdamW's learning rate on all of the denoiser."""
METHODS: dict[str, dict[str, Any]] = {
    "recommended": {"method": "recommended"},
    "recommended, random mask": {"method": "recommended", "mask": "random", "mask_score": "gradient"},
    "uce": {"method": "uce"},
    "salun-anchored": {"method": "salun-anchored"},
    "salun-anchored, random mask": {"method": "salun-anchored", "mask": "random"},
    "salun-anchored, no mask": {"method": "salun-anchored", "mask": "none"},
}
QUICK = ("recommended", "recommended, random mask", "uce")
"""What the sequence is measured with: five trained erasures in a row take an hour."""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", nargs="+", default=("sequence", "relearning"), choices=("sequence", "relearning"))
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, help="default: closed forms for the sequence, else all"
    )
    parser.add_argument("--concepts", nargs="+", default=RELEARNED, help="what the relearning wants back")
    parser.add_argument("--work_dir", type=Path, default=Path("outputs/durability"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--table", action="store_true", help="run nothing; write the page from the log")
    return parser.parse_args()


def config_of(method: str, concepts: Sequence[str], base: str | Path, folder: Path) -> EraseConfig:
    """The canvas's settings of a method, for a base that may be a model erased from the canvas."""
    config = EraseConfig.load(
        concept=list(concepts), pretrained_model_name_or_path=CANVAS, output_dir=folder, overwrite_output_dir=True,
        proof=False, save_patch=False, **METHODS[method],
    )  # fmt: skip
    if base == CANVAS:
        return config
    named = tuple(f"{CANVAS}/{concept}" for concept in concepts)
    return replace(config, pretrained_model_name_or_path=str(base), concept=named)


def rates_of(concepts: Sequence[str], model: Path, folder: Path, cache: Path, **changes: int) -> dict[str, float]:
    """What the tables show of a model in which all of `concepts` are to be gone."""
    base, erased = scored(concepts, model, folder, cache, "canvas-quick", **changes).values()
    kept = min(erased[key] / base[key] for key in ("ira", "cra"))
    return {"ua_coherent": erased["ua_coherent"], "ua": erased["ua"], "kept": kept,
            "fd": erased["fd_canvas"] / base["fd_canvas"]}  # fmt: skip


def in_a_row(method: str, work: Path) -> Iterator[Row]:
    """Erase the chain link by link, scoring what is gone by then."""
    base: str | Path = CANVAS
    for at, concept in enumerate(CHAIN, start=1):
        config = config_of(method, [concept], base, work / f"link-{at}")
        erase(config)
        base = config.output_dir
        if at in SCORED:
            rates = rates_of(CHAIN[:at], config.output_dir, work / "evaluation", config.data_cache_dir)
            yield {"study": "sequence", "method": method, "concepts": at, "at_once": False} | rates


def at_once(method: str, work: Path) -> Row:
    """Erase the whole chain in one go."""
    config = config_of(method, CHAIN, CANVAS, work / "at-once")
    erase(config)
    rates = rates_of(CHAIN, config.output_dir, work / "evaluation", config.data_cache_dir)
    return {"study": "sequence", "method": method, "concepts": len(CHAIN), "at_once": True} | rates


def relearned(method: str, concept: str, work: Path) -> Iterator[Row]:
    """Erase a concept and train the result on the base's pictures of it, scoring on the way."""
    config = config_of(method, [concept], CANVAS, work / "erased")
    erase(config)
    prompts = cycled(load_concepts([concept], model=CANVAS)[0].forget, PICTURES)
    x0 = load_denoiser(CANVAS).sample_latents(prompts, range(PICTURES), 15, 3.0, "dpm++")
    folder = config.output_dir
    for start, stop in zip((0, *STEPS), STEPS):
        folder = fine_tuned(folder, prompts, x0, (start, stop), work / f"relearned-{stop}") if stop else folder
        # What is kept is not asked here: a few retained pictures, for the protocol's sake.
        rates = rates_of([concept], folder, work / "evaluation", config.data_cache_dir, num_kept_images=20)
        yield {"study": "relearning", "method": method, "concept": concept, "steps": stop} | rates


def fine_tuned(model: Path, prompts: Sequence[str], x0: Tensor, steps: tuple[int, int], folder: Path) -> Path:
    """Ordinary training from one step to another on latents (N, C, h, w) and their prompts; AdamW starts anew."""
    denoiser = load_denoiser(str(model))
    with torch.no_grad():
        conditioning = denoiser.encode(prompts)
    network, generator = denoiser.module.train(), torch.Generator().manual_seed(steps[0])
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE)
    for _ in tqdm(range(*steps), desc="relearn", unit="step"):
        drawn = torch.randint(PICTURES, (BATCH,), generator=generator)
        x, t = x0[drawn], denoiser.sample_timesteps(BATCH, generator)
        noise = torch.randn(x.shape, generator=generator)
        found = denoiser.predict(denoiser.add_noise(x, noise, t), t, rows_of(conditioning, drawn))
        optimizer.zero_grad()
        mse_loss(found, denoiser.target(x, noise, t)).backward()
        optimizer.step()
    network.eval()
    denoiser.pipeline.save_pretrained(folder)
    return folder


def run(args: argparse.Namespace, log: Path) -> None:
    """All rows that the log lacks, a chain or a relearning at a time."""

    def missing(**what: Any) -> bool:
        return not any(what.items() <= row.items() for row in read(log))

    def keep(row: Row) -> None:
        append_lines(log, [row])
        print(json.dumps(row), flush=True)

    for method in (args.methods or QUICK) if "sequence" in args.studies else ():
        if missing(study="sequence", method=method, at_once=True):
            keep(at_once(method, args.work_dir))
        if missing(study="sequence", method=method, concepts=SCORED[-1], at_once=False):
            for row in in_a_row(method, args.work_dir):
                keep(row)
    pairs = product(args.concepts, args.methods or METHODS) if "relearning" in args.studies else ()
    for concept, method in pairs:
        if missing(study="relearning", method=method, concept=concept, steps=STEPS[-1]):
            for row in relearned(method, concept, args.work_dir):
                keep(row)


HEAD = f"""# Durability

Made by `python scripts/benchmark/durability.py`; every figure is in [durability.jsonl](durability.jsonl). Concepts
that the
[benchmark](benchmark.md) leaves out, settings of `configs/canvas/`, protocol
[canvas-quick](evaluation.md#the-canvas), one seed, 60 pictures of what is erased (80 of five concepts): one picture is
1.7 points. UA: coherent, in %; kept: the lesser of IRA and CRA, in % of the
base's; FD: over the base's own.

## One erasure after another

{", ".join(CHAIN)}, each erased from the model that the one before left; *at once*: all five in one
run. UA is over all that is gone by then."""
RELEARNING = f"""## Relearning

The erased model is trained as anyone would fine-tune it: {PICTURES} pictures of the concept that the base drew, the
concept's own prompts, all of the denoiser, AdamW at {RATE:g}, {BATCH} pictures a step. UA (coherent or not)
after so many steps; what a method erases is the more durable the longer it stays high."""


def as_markdown(rows: list[Row]) -> str:
    """The page."""
    parts = [HEAD, *_sequence_table(rows), RELEARNING]
    for concept in RELEARNED:
        found = {(row["method"], row["steps"]): row for row in rows if row.get("concept") == concept}
        lines = [
            f"| {concept} | " + " | ".join(f"{steps} steps" for steps in STEPS) + " |",
            "|---" * (1 + len(STEPS)) + "|",
        ]
        for method in METHODS:
            if all((method, steps) in found for steps in STEPS):
                cells = [f"{100 * found[method, steps]['ua']:.1f}" for steps in STEPS]
                lines.append(f"| {method} | " + " | ".join(cells) + " |")
        parts += ["\n".join(lines)] if len(lines) > 2 else []
    return "\n\n".join(parts) + "\n"


def _sequence_table(rows: list[Row]) -> list[str]:
    found = {(row["method"], row["concepts"], row["at_once"]): row for row in rows if row["study"] == "sequence"}
    columns = [(count, False) for count in SCORED] + [(len(CHAIN), True)]
    titles = [f"{count} in a row" for count in SCORED] + ["at once"]
    lines = [
        "| | " + " | ".join(f"{title}: UA | kept | FD" for title in titles) + " |",
        "|---" * (1 + 3 * len(titles)) + "|",
    ]
    for method in METHODS:
        own = [found.get((method, *column)) for column in columns]
        if all(own):
            cells = [
                f"{100 * r['ua_coherent']:.1f} | {100 * r['kept']:.1f} | {r['fd']:.2f}" for r in own if r is not None
            ]
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return ["\n".join(lines)]


def main() -> None:
    args = parse_args()
    log = args.docs / "durability.jsonl"
    if not args.table:
        run(args, log)
    write_text(args.docs / "durability.md", as_markdown(read(log)))


if __name__ == "__main__":
    main()
