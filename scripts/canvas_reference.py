"""The last stage of build_canvas.py: what canvas pictures are measured against, and how good the finished model is.

Writes into the package: reference.safetensors, quality.json, sheet.png and the model card.
"""

from itertools import product
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from torch import Tensor

import canvas_training as training
from erase import canvas
from erase.canvas import OBJECTS, STYLES
from erase.concepts import load_family
from erase.evaluate.canvas import (
    COMBINATIONS,
    DOMAINS,
    EvaluationRow,
    distance_to_bank,
    encode_pictures,
    generate_pictures,
    judge_pictures,
)
from erase.evaluate.grid import picture_sheet
from erase.files import atomic_save, write_json, write_text

STEPS = 25
GUIDANCE_SCALE = 4.0
SAMPLES_PER_COMBINATION = 10
# Far from the seeds that concepts are scored on (from 10,000) and that training pictures are made from.
FIRST_SAMPLE_SEED = 5_000_000
BAR = 0.99
# Of real pictures. At 95 %, a model that draws as well as they are would be called incoherent once in twenty times.
COHERENT_SHARE = 0.99
CARD = Path(__file__).with_name("canvas_card.md")


def build_reference(
    pipe: StableDiffusionPipeline,
    bank_pictures: Tensor,
    held_out_pictures: Tensor,
    captions: list[str],
    work: Path,
    settings: dict[str, Any],
) -> None:
    """Measure the finished pipeline against two disjoint sets of real pictures, uint8 (N, 64, 64, 3).

    `captions` name what the held-out ones show.
    """
    rows = sample_rows()
    samples = draw_samples(pipe, rows, work)
    tensors = reference_tensors(pipe, bank_pictures, held_out_pictures, captions)
    labels = torch.tensor([(OBJECTS.index(row.object), STYLES.index(row.style)) for row in rows], dtype=torch.uint8)
    tensors |= {"base_features": encode_pictures(samples)[0].half(), "base_labels": labels}
    atomic_save(tensors, canvas.REFERENCE_FILE)
    quality = quality_of(judge_pictures(samples, rows)[0]) | {"build": settings}
    quality["coherence_of_controls"] = coherence_of_controls(samples, pipe)
    weights = canvas.REFERENCE_FILE.parent
    write_json(weights / "quality.json", quality)
    picture_sheet(weights / "sheet.png", samples[::SAMPLES_PER_COMBINATION], OBJECTS, STYLES)
    write_text(weights / "README.md", model_card(quality))
    report(quality)


def sample_rows() -> list[EvaluationRow]:
    """Ten pictures of each combination, in the main wording, combination by combination."""
    family = load_family("canvas")
    return [
        EvaluationRow(
            prompt=family.captions(object=obj, style=style)[0],
            object=obj,
            style=style,
            seed=FIRST_SAMPLE_SEED + at,
            role="retain",
            domains=DOMAINS,
            held_out_template=False,
        )
        for at, ((obj, style), _) in enumerate(product(COMBINATIONS, range(SAMPLES_PER_COMBINATION)))
    ]


def draw_samples(pipe: StableDiffusionPipeline, rows: list[EvaluationRow], work: Path) -> np.ndarray:
    """The rows' pictures, uint8 (N, 64, 64, 3), drawn once and kept in the work folder."""
    path = work / "samples.safetensors"
    if not path.exists():
        drawn = generate_pictures(pipe, rows, STEPS, GUIDANCE_SCALE)
        atomic_save({"pictures": torch.from_numpy(drawn)}, path)
    return load_file(path)["pictures"].numpy()


def reference_tensors(
    pipe: StableDiffusionPipeline, bank_pictures: Tensor, held_out_pictures: Tensor, captions: list[str]
) -> dict[str, Tensor]:
    """The bank of real layouts and the distance to it that 99 % of other real pictures keep.

    Whatever the pipeline draws has passed through its decoder, so real pictures must too, and the held-out ones through
    the last steps of its denoiser as well: the distance is to tell whether a picture shows something real, not how
    finely a small model renders it, which is FD-canvas's part.
    """
    bank = encode_pictures(training.decode(pipe.vae, training.encode(pipe.vae, bank_pictures)).numpy())[1].half()
    redrawn = training.redraw(pipe, training.encode(pipe.vae, held_out_pictures), captions, seed=1)
    held_out = encode_pictures(training.decode(pipe.vae, redrawn).numpy())[1]
    return {"bank": bank, "threshold": distance_to_bank(held_out, bank.float()).quantile(COHERENT_SHARE).reshape(1)}


def coherence_of_controls(samples: np.ndarray, pipe: StableDiffusionPipeline) -> dict[str, float]:
    """Share called coherent among pictures that are not: what a judge of coherence must turn down."""
    rng = np.random.default_rng(0)
    first, second = (samples[rng.permutation(len(samples))[:300]] for _ in range(2))
    quarters = first.copy()
    quarters[:, :32, :32], quarters[:, 32:, 32:] = second[:, :32, :32], second[:, 32:, 32:]
    pure = torch.randn(300, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    untrained = type(pipe.unet).from_config(pipe.unet.config)
    rows = sample_rows()[:: len(samples) // 120]
    trained, pipe.unet = pipe.unet, untrained
    controls = {
        "random-weight denoiser": generate_pictures(pipe, rows, STEPS, GUIDANCE_SCALE),
        "pixel noise": rng.integers(0, 256, first.shape, dtype=np.uint8),
        "decoded noise": training.decode(pipe.vae, pure / pipe.vae.config.scaling_factor).numpy(),
        "two pictures averaged": ((first.astype(np.uint16) + second) // 2).astype(np.uint8),
        "quarters of two pictures": quarters,
    }
    pipe.unet = trained
    some = sample_rows()[:1] * 300
    return {
        name: float(np.mean([record["coherent"] for record in judge_pictures(pictures, some[: len(pictures)])[0]]))
        for name, pictures in controls.items()
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
    return Template(CARD.read_text()).substitute(
        rates | counts,
        objects=len(OBJECTS),
        styles=len(STYLES),
        samples_per_combination=SAMPLES_PER_COMBINATION,
        steps=quality["steps"],
        guidance_scale=f"{quality['guidance_scale']:g}",
    )
