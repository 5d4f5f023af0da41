"""Contract of the bundled canvas model: complete, small, in safe formats, and as good as its card says."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from erase import canvas
from erase.canvas import OBJECTS, STYLES
from erase.concepts import load_family
from erase.evaluate.canvas import (
    COMBINATIONS,
    DOMAINS,
    EvaluationRow,
    encode_pictures,
    generate_pictures,
    judge_pictures,
    load_reference,
)

WEIGHTS = Path(canvas.REFERENCE_FILE).parent


@pytest.fixture(scope="module")
def sampled():
    """24 pictures, every object and every style among them, at seeds used nowhere else; and their records."""
    family, rows = load_family("canvas"), []
    for at in range(24):
        obj, style = OBJECTS[at % len(OBJECTS)], STYLES[(at + at // 6) % len(STYLES)]
        prompt = family.captions(object=obj, style=style)[0]
        classes = {"object": obj, "style": style, "domains": DOMAINS, "held_out_template": False}
        rows.append(EvaluationRow(prompt=prompt, seed=7_000_000 + at, role="retain", **classes))
    pipe = StableDiffusionPipeline.from_pretrained(canvas.PIPELINE_DIR, dtype=torch.float32)
    pictures = generate_pictures(pipe, rows, batch_size=24, progress=False)
    return rows, pipe, pictures, judge_pictures(pictures, rows)[0]


def test_vocabulary_is_that_of_the_prompt_file():
    domains = load_family("canvas").domains
    assert tuple(domains["object"]) == OBJECTS
    assert tuple(domains["style"]) == STYLES


def test_weights_are_small_and_in_safe_formats():
    files = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 25 * 2**20
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt", ".png", ".md"}


def test_reference_has_a_bank_a_threshold_and_the_base_models_own_pictures():
    reference = load_reference()
    assert reference.bank.shape == (2400, 384)
    assert reference.threshold > 0
    assert reference.base_features.shape == (1200, 64)
    assert len(reference.base_labels.unique(dim=0)) == len(COMBINATIONS)
    for tensor in (reference.bank, reference.base_features):
        assert tensor.isfinite().all() and tensor.std() > 0


def test_model_meets_its_bar():
    quality = json.loads((WEIGHTS / "quality.json").read_text())
    assert quality["n"] == 1200
    assert quality["object_accuracy"] >= 0.99
    assert quality["style_accuracy"] >= 0.99


def test_card_credits_the_font_and_says_what_the_model_is_not():
    card = (WEIGHTS / "README.md").read_text()
    for phrase in ("Noto Color Emoji", "Open Font", "Apache-2.0", "not comparable", "nudity", "sheet.png"):
        assert phrase in card


def test_judge_names_what_was_prompted(sampled):
    pictures, records = sampled[2:]
    assert pictures.shape == (24, 64, 64, 3) and pictures.dtype.name == "uint8"
    right = [r["judged_object"] == r["object"] and r["judged_style"] == r["style"] for r in records]
    assert sum(right) >= 22
    assert sum(r["coherent"] for r in records) >= 22


def test_a_seed_draws_the_same_picture_in_any_batch(sampled):
    """Up to rounding: convolutions sum in another order when the batch has another size."""
    rows, pipe, pictures, _ = sampled
    again = generate_pictures(pipe, rows[:3], batch_size=2, progress=False)
    assert abs(again.astype(int) - pictures[:3].astype(int)).max() <= 2


def test_noise_is_neither_coherent_nor_anything_else(sampled):
    rows = sampled[0]
    noise = np.random.default_rng(0).integers(0, 256, (24, 64, 64, 3), np.uint8)
    records, features = judge_pictures(noise, rows)
    assert not any(r["coherent"] for r in records)
    assert sum(r["garbage"] for r in records) >= 22
    torch.testing.assert_close(torch.from_numpy(features), encode_pictures(noise)[0])
