"""The proof of a run on the canvas: base and erased drawn at the same held-out seeds, judged, counted and shown."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator

from ..concepts.concept import Concept
from ..config import CANVAS, EraseConfig
from ..draw.pipelines import ModelSource
from ..files import copy
from ..layout import EVALUATION_DIR, GRID_FILE, METRICS_FILE
from .evaluation import Evaluation
from .metrics.canvas import CanvasMetric
from .protocols import load_protocol, protocol_rows

BATCH_SIZE = 60


def canvas_evaluation(
    concepts: Sequence[Concept],
    models: dict[str, str | Path],
    folder: Path,
    cache: Path,
    accelerator: Accelerator,
    protocol: str = CANVAS,
    **changes: int,
) -> Evaluation:
    """A protocol on the canvas for these concepts and models; `changes` are fields of the protocol."""
    made = replace(load_protocol(protocol)[0], **changes)
    return Evaluation(
        protocol=made,
        rows=protocol_rows(made, concepts=concepts),
        metrics=[CanvasMetric()],
        models={name: ModelSource(pretrained_model_name_or_path=str(path)) for name, path in models.items()},
        folder=folder,
        accelerator=accelerator,
        batch_size=BATCH_SIZE,
        picture_cache=cache / "pictures",
        concepts=[concept.name for concept in concepts],
    )


def prove(concepts: Sequence[Concept], config: EraseConfig, accelerator: Accelerator, name: str) -> str:
    """Score base and erased into output_dir/evaluation, metrics.json and grid.png beside it; returns the table.

    name: what the report calls the erased model.
    """
    out = config.output_dir
    counts = {"num_target_images": config.num_target_images, "num_kept_images": config.num_kept_images}
    models: dict[str, str | Path] = {"base": CANVAS, "erased": out}
    folder = out / EVALUATION_DIR
    evaluation = canvas_evaluation(concepts, models, folder, config.data_cache_dir, accelerator, CANVAS, **counts)
    named = {"erased": ModelSource(pretrained_model_name_or_path=str(out), name=name)}
    table = replace(evaluation, models={**evaluation.models, **named}).run()
    if accelerator.is_main_process:
        for file in (METRICS_FILE, GRID_FILE):
            copy(folder / file, out / file)
    return table
