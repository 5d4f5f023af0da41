"""Contract of the bundled canvas model: complete, small, in safe formats, and as good as its card says."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline

from erase import EraseConfig, SaliencyMask, canvas, erase, load_concepts
from erase.canvas import OBJECTS, STYLES
from erase.concepts.concept import load_family
from erase.data.pictures import read_picture
from erase.draw.generate import generate
from erase.draw.pipelines import ModelSource
from erase.draw.prompts import PromptRow
from erase.evaluate.evaluation import load_metrics
from erase.evaluate.metrics.canvas import CanvasScorer, load_reference
from erase.evaluate.proof import canvas_evaluation
from erase.evaluate.scoring import load_scored, score_folder

WEIGHTS = Path(canvas.REFERENCE_FILE).parent


SOURCE = ModelSource(pretrained_model_name_or_path="canvas")


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[PromptRow], Path]:
    """24 scored pictures, every object and every style among them, at seeds used nowhere else."""
    family, rows, folder = load_family("canvas"), [], tmp_path_factory.mktemp("sampled")
    for at in range(24):
        obj, style = OBJECTS[at % len(OBJECTS)], STYLES[(at + at // 6) % len(STYLES)]
        prompt = family.captions(object=obj, style=style)[0]
        rows.append(
            PromptRow(id=str(at), prompt=prompt, seed=7_000_000 + at, guidance_scale=4, num_inference_steps=25,
                      extra={"object": obj, "style": style})
        )  # fmt: skip
    generate(rows, SOURCE, folder, accelerator=Accelerator(), batch_size=24, progress=False)
    score_folder(folder, [CanvasScorer()], progress=False)
    return rows, folder


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
    assert reference.thresholds.shape == (len(OBJECTS), len(STYLES)) and reference.thresholds.min() > 0
    assert reference.base_features.shape == (1200, 64)
    assert len(reference.base_labels.unique(dim=0)) == len(OBJECTS) * len(STYLES)
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
    records = load_scored(sampled[1]).records
    right = [r["judged_object"] == r["object"] and r["judged_style"] == r["style"] for r in records]
    assert len(records) == 24 and sum(right) >= 22
    assert sum(r["coherent"] for r in records) >= 22


def test_a_seed_draws_the_same_picture_in_any_batch(sampled, tmp_path):
    """Up to rounding: convolutions sum in another order when the batch has another size."""
    rows, folder = sampled
    generate(rows[:3], SOURCE, tmp_path / "again", accelerator=Accelerator(), batch_size=2, progress=False)
    for row in rows[:3]:
        once, again = (read_picture(place / row.file).astype(int) for place in (folder, tmp_path / "again"))
        assert abs(once - again).max() <= 2


def test_noise_is_neither_coherent_nor_anything_else():
    noise = np.random.default_rng(0).integers(0, 256, (24, 64, 64, 3), np.uint8)
    answers = CanvasScorer().score(list(noise), [{"file": "noise.png"}] * 24)
    assert not any(columns["coherent"] for columns in answers.columns)
    assert sum(columns["garbage"] for columns in answers.columns) >= 22
    assert answers.features is not None and answers.features.shape == (24, 64)
    np.testing.assert_array_equal(answers.features, CanvasScorer().encode(torch.from_numpy(noise))[0].numpy())


@pytest.mark.parametrize("concept", ["cat", "neon"])
def test_the_recommended_method_erases_and_keeps(concept: str, tmp_path: Path) -> None:
    config = EraseConfig.load("canvas", concept=concept, output_dir=tmp_path / "out", proof=False)
    assert config.method == "recommended"
    out = erase(config)
    mask = SaliencyMask.load(out / "mask.safetensors")
    assert mask.density == pytest.approx(0.005, rel=0.02)
    evaluation = canvas_evaluation(
        load_concepts([concept], model="canvas"),
        {"erased": out},
        tmp_path / "evaluation",
        tmp_path / "cache",
        Accelerator(cpu=True),
        "canvas-quick",
        num_target_images=12,
        num_kept_images=1,
    )
    evaluation = replace(evaluation, rows=[*evaluation.rows[:12], *evaluation.rows[-12:]])
    evaluation.run()
    figures = load_metrics(tmp_path / "evaluation")["erased"]
    assert all(figures[key]["value"] > 0.9 for key in ("ua", "ira", "cra"))


def test_plain_diffusers_loads_and_draws_it() -> None:
    pipe = DiffusionPipeline.from_pretrained(canvas.PIPELINE_DIR)
    assert {pipe.text_encoder.dtype, pipe.unet.dtype, pipe.vae.dtype} == {torch.float32}
    picture = pipe("a photo of a cat", num_inference_steps=1, output_type="np").images[0]
    assert picture.shape == (64, 64, 3) and np.isfinite(picture).all()
