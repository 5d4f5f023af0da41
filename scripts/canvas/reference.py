"""The last stage of build.py: what canvas pictures are measured against, and how good the finished model is.

Writes into the package: reference.safetensors, quality.json, sheet.png and the model card.
"""

from itertools import product
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import torch
import training
from accelerate import Accelerator
from diffusers import StableDiffusionPipeline
from torch import Tensor
from torch.nn import functional as F

from erase import canvas
from erase.canvas import OBJECTS, STYLES
from erase.concepts.concept import load_family
from erase.data.pictures import read_picture
from erase.draw.generate import generate
from erase.draw.pipelines import ModelSource
from erase.draw.prompts import PromptRow
from erase.draw.records import Record
from erase.evaluate.grid import picture_sheet
from erase.evaluate.metrics.canvas import CanvasScorer, distance_to_bank
from erase.evaluate.protocols import slug
from erase.files import atomic_save, write_json, write_text

STEPS = 25
GUIDANCE_SCALE = 4.0
SAMPLES_PER_COMBINATION = 10
# Far from the seeds that concepts are scored on (from 10,000) and that training pictures are made from.
FIRST_SAMPLE_SEED = 5_000_000
BAR = 0.99
# Of real pictures. At 95 %, a model that draws as well as they are would be called incoherent once in twenty times, and
# a bar of 98 % could not be met.
COHERENT_SHARE = 0.995
CARD = Path(__file__).with_name("card.md")


def build_reference(
    pipe: StableDiffusionPipeline,
    bank_pictures: Tensor,
    held_out_pictures: Tensor,
    held_out_labels: Tensor,
    captions: list[str],
    work: Path,
    settings: dict[str, Any],
) -> None:
    """Measure the finished pipeline against two disjoint sets of real pictures, uint8 (N, 64, 64, 3).

    `held_out_labels` (N, 2) and `captions` say what the held-out ones show.
    """
    rows = sample_rows()
    samples = draw_samples(canvas.PIPELINE_DIR, rows, work / "samples")
    tensors = reference_tensors(pipe, bank_pictures, held_out_pictures, held_out_labels, captions)
    classes = [(OBJECTS.index(row.extra["object"]), STYLES.index(row.extra["style"])) for row in rows]
    features = CanvasScorer().encode(torch.from_numpy(samples))[0].half()
    tensors |= {"base_features": features, "base_labels": torch.tensor(classes, dtype=torch.uint8)}
    atomic_save(tensors, canvas.REFERENCE_FILE)
    quality = quality_of([row.as_record() | judged for row, judged in zip(rows, judge(samples))]) | {"build": settings}
    quality["coherence_of_controls"] = coherence_of_controls(samples, pipe, work)
    weights = canvas.REFERENCE_FILE.parent
    write_json(weights / "quality.json", quality)
    picture_sheet(weights / "sheet.png", samples[::SAMPLES_PER_COMBINATION], OBJECTS, STYLES)
    write_text(weights / "README.md", model_card(quality))
    report(quality)


def sample_rows() -> list[PromptRow]:
    """Ten pictures of each combination, in the main wording, combination by combination."""
    family, rows = load_family("canvas"), []
    for at, ((obj, style), repeat) in enumerate(product(product(OBJECTS, STYLES), range(SAMPLES_PER_COMBINATION))):
        rows.append(
            PromptRow(
                id=f"{slug(obj, style)}-{repeat}",
                prompt=family.captions(object=obj, style=style)[0],
                seed=FIRST_SAMPLE_SEED + at,
                guidance_scale=GUIDANCE_SCALE,
                num_inference_steps=STEPS,
                extra={"object": obj, "style": style},
            )
        )
    return rows


def draw_samples(model: Path, rows: list[PromptRow], folder: Path) -> np.ndarray:
    """The rows' pictures, uint8 (N, 64, 64, 3), drawn once and kept in `folder`."""
    source = ModelSource(pretrained_model_name_or_path=str(model))
    records = generate(rows, source, folder, accelerator=Accelerator(mixed_precision="no"), batch_size=50)
    return np.stack([read_picture(folder / record["file"]) for record in records])


def judge(pictures: np.ndarray) -> list[Record]:
    """The judge's answers about pictures, uint8 (N, 64, 64, 3)."""
    return CanvasScorer().score(list(pictures), [{"file": str(at)} for at in range(len(pictures))]).columns


def layouts_of(pictures: Tensor) -> Tensor:
    """What coherence compares, of uint8 pictures (N, 64, 64, 3)."""
    return CanvasScorer().encode(pictures)[1]


def reference_tensors(
    pipe: StableDiffusionPipeline,
    bank_pictures: Tensor,
    held_out_pictures: Tensor,
    held_out_labels: Tensor,
    captions: list[str],
) -> dict[str, Tensor]:
    """The bank of real layouts and the distances to it that 99.5 % of other real pictures keep.

    Whatever the pipeline draws has passed through its decoder, so real pictures must too, and the held-out ones through
    the last steps of its denoiser as well: the distance is to tell whether a picture shows something real, not how
    finely a small model renders it, which is FD-canvas's part.
    """
    bank = layouts_of(training.decode(pipe.vae, training.encode(pipe.vae, bank_pictures))).half()
    redrawn = training.redraw(pipe, training.encode(pipe.vae, held_out_pictures), captions, seed=1)
    held_out = layouts_of(training.decode(pipe.vae, redrawn))
    return {"bank": bank, "thresholds": class_thresholds(distance_to_bank(held_out, bank.float()), held_out_labels)}


def class_thresholds(distances: Tensor, labels: Tensor) -> Tensor:
    """What COHERENT_SHARE of the distances (N,) keep, (objects, styles), for labels (N, 2).

    Real rockets are farther from each other than real suns are, and one threshold for all would call a fifth of them
    incoherent. log d = a + b + ε, with a for the object and b for the style, leaves one distribution of ε to cut.
    """
    sizes = (len(OBJECTS), len(STYLES))
    design = torch.cat([F.one_hot(labels[:, at].long(), size) for at, size in enumerate(sizes)], 1).double()
    effects = torch.linalg.lstsq(design, distances.double().log()[:, None], driver="gelsd").solution[:, 0]
    cut = (distances.double().log() - design @ effects).quantile(COHERENT_SHARE)
    return (effects[: sizes[0], None] + effects[None, sizes[0] :] + cut).exp().float()


def coherence_of_controls(samples: np.ndarray, pipe: StableDiffusionPipeline, work: Path) -> dict[str, float]:
    """Share called coherent among pictures that are not: what a judge of coherence must turn down."""
    rng = np.random.default_rng(0)
    first, second = (samples[rng.permutation(len(samples))[:300]] for _ in range(2))
    quarters = first.copy()
    quarters[:, :32, :32], quarters[:, 32:, 32:] = second[:, :32, :32], second[:, 32:, 32:]
    pure = torch.randn(300, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    pipe.unet = type(pipe.unet).from_config(pipe.unet.config)
    pipe.save_pretrained(work / "untrained")
    controls = {
        "random-weight denoiser": draw_samples(
            work / "untrained", sample_rows()[::SAMPLES_PER_COMBINATION], work / "samples-untrained"
        ),
        "pixel noise": rng.integers(0, 256, first.shape, dtype=np.uint8),
        "decoded noise": training.decode(pipe.vae, pure / pipe.vae.config.scaling_factor).numpy(),
        "two pictures averaged": ((first.astype(np.uint16) + second) // 2).astype(np.uint8),
        "quarters of two pictures": quarters,
    }
    return {
        name: float(np.mean([answer["coherent"] for answer in judge(pictures)])) for name, pictures in controls.items()
    }


def quality_of(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Shares (0–1) of the samples that the judge names as they were prompted."""
    objects = np.array([record["judged_object"] == record["object"] for record in records])
    styles = np.array([record["judged_style"] == record["style"] for record in records])
    return {
        "object_accuracy": float(objects.mean()),
        "style_accuracy": float(styles.mean()),
        "both": float((objects & styles).mean()),
        "coherence": float(np.mean([record["coherent"] for record in records])),
        "n": len(records),
        "steps": STEPS,
        "guidance_scale": GUIDANCE_SCALE,
        "wrong": sorted(
            f"{record['prompt']} (seed {record['seed']}): {record['judged_style']}, {record['judged_object']}"
            for record, right in zip(records, objects & styles)
            if not right
        ),
    }


def report(quality: dict[str, Any]) -> None:
    """Print the figures; fail when the model is below its bar."""
    for key in ("object_accuracy", "style_accuracy", "both", "coherence"):
        print(f"{key:>16}: {quality[key]:.2%} of {quality['n']}")
    print(f"{'written to':>16}: {canvas.REFERENCE_FILE.parent}")
    if min(quality["object_accuracy"], quality["style_accuracy"]) < BAR:
        raise SystemExit(
            f"The judge must name object and style on at least {BAR:.0%} of the model's samples; the samples that it "
            "misnamed are in quality.json. Train longer: --denoiser_steps, --autoencoder_steps."
        )


def model_card(quality: dict[str, Any]) -> str:
    """The README.md beside the weights."""
    rates = {key: f"{quality[key]:.1%}" for key in ("object_accuracy", "style_accuracy", "both", "coherence")}
    build = quality["build"] | {"n": quality["n"], "denoiser_steps": sum(quality["build"]["denoiser_steps"])}
    counts = {key: f"{value:,}" for key, value in build.items()}
    return Template(CARD.read_text(encoding="utf-8")).substitute(
        rates | counts,
        objects=len(OBJECTS),
        styles=len(STYLES),
        samples_per_combination=SAMPLES_PER_COMBINATION,
        steps=quality["steps"],
        guidance_scale=f"{quality['guidance_scale']:g}",
    )
