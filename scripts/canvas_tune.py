"""Try settings of the canvas config on concepts and seeds that docs/canvas.md does not report; append to a log.

    python scripts/canvas_tune.py learning_rate=3e-4 max_train_steps=300
    python scripts/canvas_tune.py --concepts neon -- retain_target=data

Each call tries one setting: configs/canvas.yaml with the given values on top.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator

from erase import EraseConfig, erase, load_concepts
from erase.canvas import PIPELINE_DIR
from erase.evaluate.canvas import evaluation_rows
from erase.evaluate.proof import score_model
from erase.run import native_precision

# Objects that the table leaves out; all six styles are in it, so the style is only drawn at other seeds.
CONCEPTS = ("mushroom", "bicycle", "neon")
FIRST_SEED = 500_000


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", help="field=value of EraseConfig")
    parser.add_argument("--concepts", nargs="+", default=CONCEPTS)
    parser.add_argument("--work_dir", type=Path, default=Path("outputs/canvas_tune"))
    parser.add_argument("--log", type=Path, default=Path("docs/canvas_tuning.jsonl"))
    parser.add_argument("--num_target_images", type=int, default=120)
    parser.add_argument("--num_retain_images", type=int, default=200)
    return parser.parse_args()


def try_setting(concept: str, changes: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Erase `concept` and score base and erased at the tuning seeds."""
    config = EraseConfig.load("canvas", concept=concept, output_dir=args.work_dir / concept, overwrite_output_dir=True,
                              proof=False, save_patch=False, **changes)  # fmt: skip
    erase(config)
    rows = evaluation_rows(
        load_concepts([concept], model="canvas"), args.num_target_images, args.num_retain_images, FIRST_SEED
    )
    accelerator = Accelerator(mixed_precision=native_precision())
    base, erased = (
        {key: asdict(figure)["value"] for key, figure in scored.metrics.items()}
        for scored in (
            score_model(folder, rows, config.data_cache_dir, accelerator)
            for folder in (PIPELINE_DIR, config.output_dir)
        )
    )
    return {"concept": concept, "changes": changes, "base": base, "erased": erased}


def main() -> None:
    args = parse_args()
    changes = {key: yaml.safe_load(value) for key, value in (setting.split("=", 1) for setting in args.settings)}
    for concept in args.concepts:
        row = try_setting(concept, changes, args)
        with args.log.open("a") as log:
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
