"""The proof of a run on the canvas: base and erased drawn at the same held-out seeds, judged, counted and shown."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline

from ..concepts import Concept
from ..config import EraseConfig
from ..data import Cache
from ..files import folder_hash
from .canvas import EvaluationRow, evaluation_rows, generate_pictures, judge_pictures, load_reference, summarize, turns_into
from .grid import comparison_grid
from .records import metrics_table, protocol, write_metrics, write_records

STEPS = 25
GUIDANCE_SCALE = 4.0
BATCH_SIZE = 60
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def draw_rows(folder: Path, model_hash: str, rows: Sequence[EvaluationRow], cache: Cache) -> np.ndarray:
    """uint8 pictures (N, 64, 64, 3) of the rows by the pipeline in `folder`; shared by processes, cached by content."""
    precision = str(cache.accelerator.mixed_precision)
    settings = {
        "rows": [[row.prompt, row.seed] for row in rows],
        "steps": STEPS,
        "guidance_scale": GUIDANCE_SCALE,
        "precision": precision,
    }
    pipes: list[DiffusionPipeline] = []

    def make(batch: int) -> dict[str, torch.Tensor]:
        if not pipes:
            pipes.append(DiffusionPipeline.from_pretrained(folder, dtype=torch.float32).to(cache.accelerator.device))
        chosen = rows[batch * BATCH_SIZE : (batch + 1) * BATCH_SIZE]
        pictures = generate_pictures(
            pipes[0], chosen, STEPS, GUIDANCE_SCALE, BATCH_SIZE, progress=False, autocast=AUTOCAST.get(precision)
        )  # fmt: skip
        return {"pictures": torch.from_numpy(pictures)}

    keyed = Cache(cache.root, model_hash, cache.accelerator)
    return keyed.fetch("pictures", settings, -(-len(rows) // BATCH_SIZE), make)[0]["pictures"].numpy()


def prove(concepts: Sequence[Concept], config: EraseConfig, base: Path, cache: Cache) -> str:
    """Score base and erased; writes metrics.json, records and grid.png into output_dir and returns the table."""
    rows = evaluation_rows(concepts, config.num_target_images, config.num_kept_images)
    drawn = {
        "base": draw_rows(base, cache.base_hash, rows, cache),
        "erased": draw_rows(config.output_dir, folder_hash(config.output_dir), rows, cache),
    }
    if not cache.accelerator.is_main_process:
        return ""
    metrics, after = {}, {}
    for model, pictures in drawn.items():
        records, features = judge_pictures(pictures, rows)
        write_records(config.output_dir / f"records-{model}.jsonl", records, features)
        metrics[model] = summarize(records, features, load_reference())
        after[model] = turns_into(records)
    extra = {"turns_into": after["erased"], "protocol": protocol(rows, STEPS, GUIDANCE_SCALE)}
    write_metrics(config.output_dir / "metrics.json", metrics["base"], metrics["erased"], extra)
    comparison_grid(config.output_dir / "grid.png", rows, drawn["base"], drawn["erased"])
    return metrics_table(metrics["base"], metrics["erased"])
