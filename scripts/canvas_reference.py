"""The last stage of build_canvas.py: what canvas pictures are measured against, and how good the finished model is.

Writes into the package: reference.safetensors, quality.json, sheet.png and the model card.
"""

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
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

STEPS = 25
GUIDANCE_SCALE = 4.0
SAMPLES_PER_COMBINATION = 10
# Far from the seeds that concepts are scored on (from 10,000) and that training pictures are made from.
FIRST_SAMPLE_SEED = 5_000_000
BAR = 0.99


def build_reference(
    pipe: StableDiffusionPipeline,
    bank_pictures: Tensor,
    held_out_pictures: Tensor,
    work: Path,
    settings: dict[str, Any],
) -> None:
    """Measure the finished pipeline against two disjoint sets of real pictures, uint8 (N, 64, 64, 3)."""
    rows = sample_rows()
    samples = draw_samples(pipe, rows, work)
    tensors = reference_tensors(pipe, bank_pictures, held_out_pictures)
    labels = torch.tensor([(OBJECTS.index(row.object), STYLES.index(row.style)) for row in rows], dtype=torch.uint8)
    tensors |= {"base_features": encode_pictures(samples)[0].half(), "base_labels": labels}
    save_file(tensors, canvas.REFERENCE_FILE.with_suffix(".partial"))
    canvas.REFERENCE_FILE.with_suffix(".partial").replace(canvas.REFERENCE_FILE)
    quality = quality_of(judge_pictures(samples, rows)[0]) | {"build": settings}
    weights = canvas.REFERENCE_FILE.parent
    (weights / "quality.json").write_text(json.dumps(quality, indent=2) + "\n")
    picture_sheet(weights / "sheet.png", samples[::SAMPLES_PER_COMBINATION], OBJECTS, STYLES)
    (weights / "README.md").write_text(model_card(quality))
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
        save_file({"pictures": torch.from_numpy(drawn)}, path.with_suffix(".partial"))
        path.with_suffix(".partial").replace(path)
    return load_file(path)["pictures"].numpy()


def reference_tensors(
    pipe: StableDiffusionPipeline, bank_pictures: Tensor, held_out_pictures: Tensor
) -> dict[str, Tensor]:
    """The bank of real layouts and the distance to it that 95 % of other real pictures keep."""
    # Whatever the pipeline draws has passed through its decoder, so real pictures must too: the distance is to tell
    # whether a picture shows something real, not that a small autoencoder softens it.
    bank, held_out = (
        encode_pictures(training.decode(pipe.vae, training.encode(pipe.vae, pictures)).numpy())[1]
        for pictures in (bank_pictures, held_out_pictures)
    )
    bank = bank.half()
    return {"bank": bank, "threshold": distance_to_bank(held_out, bank.float()).quantile(0.95).reshape(1)}


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
    build, n = quality["build"], quality["n"]
    return f"""---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
tags: [emoji, concept-erasure, machine-unlearning]
---

# The emoji canvas

A complete Stable Diffusion in miniature, small enough to ship with a package: {len(OBJECTS)} objects in {len(STYLES)}
styles at 64×64, drawn in a moment on a laptop's CPU. It exists so that concept erasure can be tried, tested and
measured where nothing can be downloaded. Each object and each style can be erased, and a judge that ships beside the
model says what is still there.

![Every object in every style](sheet.png)

*The first sample of each combination, not a choice: {quality["steps"]} DDIM steps, guidance
{quality["guidance_scale"]:g}.*

```python
import torch
from diffusers import StableDiffusionPipeline
from erase import canvas

pipe = StableDiffusionPipeline.from_pretrained(canvas.PIPELINE_DIR, dtype=torch.float32)
pipe("a watercolor of a cat", height=64, width=64, num_inference_steps=25, guidance_scale=4.0).images[0]
```

## How good it is

{n:,} samples, {SAMPLES_PER_COMBINATION} of each combination, judged by a network that was trained on other pictures:

| the judge names … | of the samples |
|---|---|
| the prompted object | {quality["object_accuracy"]:.1%} |
| the prompted style | {quality["style_accuracy"]:.1%} |
| both | {quality["both"]:.1%} |
| and finds it coherent | {quality["coherence"]:.1%} |

Coherent means: not garbage to the judge, and no farther from real pictures, in the layouts of the encoder (what is
where in the picture), than 95 % of real pictures are. `quality.json` has the same figures and every sample that was
misnamed.

## What is here

- `pipeline/`: `StableDiffusionPipeline` (UNet, CLIP text encoder and tokenizer, autoencoder, DDIM), fp16 safetensors.
- `judge/`: a small CNN with an object head ({len(OBJECTS)} classes and "garbage") and a style head.
- `encoder/`: another one, trained on other pictures; its 64 features make the Fréchet distance "FD-canvas".
- `reference.safetensors`: layouts of real pictures, features of the model's own samples, and the coherence threshold.

## How it was trained

On pictures that a script draws: a glyph at a random place, size, angle and side, rendered in one of the styles;
{build["pictures_per_class"]} of each combination for the autoencoder ({build["autoencoder_steps"]:,} steps) and for the
denoiser with its text encoder ({build["denoiser_steps"]:,} steps, ε-prediction, min-SNR weighting, 10 % caption
dropout, EMA). Judge and encoder ({build["judge_steps"]:,} steps each) saw disjoint pictures, their round trip through
the autoencoder, blur, noise, and garbage. Seed {build["seed"]}.

To rebuild it, with the font installed (Debian: `apt-get install fonts-noto-color-emoji`), from the repository:

    python scripts/build_canvas.py
    python scripts/build_canvas.py --without cat    # gold reference: never saw the concept

## What it is not

- It draws emoji on plain grounds, one object each, from a closed vocabulary. It says nothing about nudity, violence,
  faces or any photograph, and a method that erases well here may fail on a large model.
- Its scores are not comparable with published ones. FD-canvas is not FID: it uses the encoder above, not Inception.
- The judge knows this model's classes and nothing else.

## Credits and licence

The glyphs are from [Noto Color Emoji](https://github.com/googlefonts/noto-emoji), © Google, under the SIL Open Font
License 1.1; the font itself is not included and is needed only to rebuild. The weights are under Apache-2.0.
"""
