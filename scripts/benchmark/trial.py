"""Try settings of the canvas config on concepts and seeds that docs/canvas.md does not report; append to a log.

    python scripts/benchmark/trial.py learning_rate=3e-4 max_train_steps=300
    python scripts/benchmark/trial.py --concepts neon -- retain_target=data

Each call tries one setting: the canvas's own with the given values on top.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from erase import EraseConfig, erase, load_concepts
from erase.config import CANVAS
from erase.evaluate.evaluation import MODELS, load_metrics
from erase.evaluate.proof import canvas_evaluation
from erase.files import read_json_lines
from erase.runtime.devices import make_accelerator

# Objects that the table leaves out; all six styles are in it, so the style is only drawn at other seeds.
CONCEPTS = ("mushroom", "bicycle", "neon")
FIRST_SEED = 500_000
Row = dict[str, Any]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", help="field=value of EraseConfig")
    parser.add_argument("--concepts", nargs="+", default=CONCEPTS)
    parser.add_argument("--work_dir", type=Path, default=Path("outputs/canvas_tune"))
    parser.add_argument("--log", type=Path, default=Path("docs/canvas_tuning.jsonl"))
    parser.add_argument("--protocol", default="canvas")
    parser.add_argument("--num_target_images", type=int, default=120)
    parser.add_argument("--num_kept_images", type=int, default=200)
    return parser.parse_args()


def read(log: Path) -> list[Row]:
    """The lines of a log; none where there is none yet."""
    return read_json_lines(log) if log.exists() else []


def try_setting(concept: str, changes: dict[str, Any], args: argparse.Namespace) -> Row:
    """Erase `concept` (or as the file says that `changes` name instead) and score base and erased at tuning seeds."""
    values = {"concept": concept} | changes
    config = EraseConfig.load(pretrained_model_name_or_path=CANVAS, output_dir=args.work_dir / concept,
                              overwrite_output_dir=True, proof=False, save_patch=False, **values)  # fmt: skip
    erase(config)
    folder, counts = args.work_dir / f"{concept}-evaluation", (args.num_target_images, args.num_kept_images)
    figures = scored(
        [concept], config.output_dir, folder, config.data_cache_dir, args.protocol,
        num_target_images=counts[0], num_kept_images=counts[1],
    )  # fmt: skip
    return {"concept": concept, "changes": changes} | figures


def scored(
    concepts: Sequence[str], model: Path, folder: Path, cache: Path, protocol: str, **changes: int
) -> dict[str, dict[str, float]]:
    """Every rate of base and model at tuning seeds; all of `concepts` are to be gone from the model."""
    shutil.rmtree(folder, ignore_errors=True)
    canvas_evaluation(
        load_concepts(concepts, model=CANVAS),
        {"base": CANVAS, "erased": model},
        folder,
        cache,
        make_accelerator(),
        protocol,
        first_seed=FIRST_SEED,
        **changes,
    ).run()
    metrics = load_metrics(folder)
    return {name: {key: figure["value"] for key, figure in metrics[name].items()} for name in MODELS}


def main() -> None:
    args = parse_args()
    changes = {key: yaml.safe_load(value) for key, value in (setting.split("=", 1) for setting in args.settings)}
    for concept in args.concepts:
        row = try_setting(concept, changes, args)
        with args.log.open("a", encoding="utf-8") as log:
            log.write(json.dumps(row) + "\n")
        print(f"{concept:>10} {json.dumps(changes)}: {summary(row['base'], row['erased'])}", flush=True)


def summary(base: dict[str, float], erased: dict[str, float]) -> str:
    """What the bars ask for, in one line."""
    ratios = {key: erased[key] / base[key] for key in ("ira", "cra", "fd_canvas")}
    return (
        f"UA {erased['ua']:.3f}, coherent {erased['ua_coherent']:.3f}; over base: IRA {ratios['ira']:.3f}, CRA "
        f"{ratios['cra']:.3f}, FD {ratios['fd_canvas']:.2f}; coherence of kept {erased['coherence_retain']:.3f} "
        f"(base {base['coherence_retain']:.3f})"
    )


if __name__ == "__main__":
    main()
