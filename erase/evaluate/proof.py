"""The proof of a run on the canvas: base and erased drawn at the same held-out seeds, judged, counted and shown."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline
from torch import Tensor

from ..concepts import Concept
from ..config import EraseConfig
from ..data import OpenStore, Store
from ..files import folder_hash
from .canvas import (
    EvaluationRow,
    evaluation_rows,
    generate_pictures,
    judge_pictures,
    load_reference,
    summarize,
    turns_into,
)
from .grid import comparison_grid
from .records import metrics_table, protocol, write_metrics, write_records
from .statistics import Interval

STEPS = 25
GUIDANCE_SCALE = 4.0
BATCH_SIZE = 60
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def draw_rows(folder: Path, rows: Sequence[EvaluationRow], opened: OpenStore) -> np.ndarray:
    """uint8 pictures (N, 64, 64, 3) of the rows by the pipeline in `folder`; shared by processes, cached by content."""
    store = opened("pictures", {"steps": STEPS, "guidance_scale": GUIDANCE_SCALE})
    accelerator = store.accelerator
    pipes: list[Any] = []

    def make(chosen: list[int]) -> dict[str, Tensor]:
        if not pipes:
            pipes.append(DiffusionPipeline.from_pretrained(folder, dtype=torch.float32).to(accelerator.device))
        autocast = AUTOCAST.get(str(accelerator.mixed_precision))
        batch = [rows[row] for row in chosen]
        drawn = generate_pictures(pipes[0], batch, STEPS, GUIDANCE_SCALE, BATCH_SIZE, progress=False, autocast=autocast)
        return {"pictures": torch.from_numpy(drawn)}

    return store.fetch([json.dumps([row.prompt, row.seed]) for row in rows], BATCH_SIZE, make)["pictures"].numpy()


@dataclass(frozen=True)
class Scored:
    """One model's pictures of the rows and what the judge made of them."""

    pictures: np.ndarray
    """uint8 (N, 64, 64, 3), in the order of the rows."""
    records: list[dict[str, Any]]
    """One per picture."""
    features: np.ndarray
    """(N, d) features of the canvas's encoder."""
    metrics: dict[str, Interval]
    """Everything that is counted from the records."""


def score_model(folder: Path, rows: Sequence[EvaluationRow], cache: Path, accelerator: Accelerator) -> Scored:
    """Draw the rows with the pipeline in `folder` and judge the pictures."""
    pictures = draw_rows(folder, rows, partial(Store, cache, folder_hash(folder), accelerator))
    records, features = judge_pictures(pictures, rows)
    return Scored(pictures, records, features, summarize(records, features, load_reference()))


def prove(concepts: Sequence[Concept], config: EraseConfig, base: Path, accelerator: Accelerator) -> str:
    """Score base and erased; writes metrics.json, records and grid.png into output_dir and returns the table."""
    rows = evaluation_rows(concepts, config.num_target_images, config.num_kept_images)
    out = config.output_dir
    before, after = (score_model(folder, rows, config.data_cache_dir, accelerator) for folder in (base, out))
    if not accelerator.is_main_process:
        return ""
    for name, scored in (("base", before), ("erased", after)):
        write_records(out / f"records-{name}.jsonl", scored.records, scored.features)
    extra = {"turns_into": turns_into(after.records), "protocol": protocol(rows, STEPS, GUIDANCE_SCALE)}
    write_metrics(out / "metrics.json", before.metrics, after.metrics, extra)
    comparison_grid(out / "grid.png", rows, before.pictures, after.pictures)
    return metrics_table(before.metrics, after.metrics)
