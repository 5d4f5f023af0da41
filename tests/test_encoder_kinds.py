"""Each flag that takes a model of transformers refuses another kind before a picture is drawn, and says which flag or
class is right; what it does take loads.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    BertConfig,
    BertModel,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    ViTModel,
)

from erase.evaluate.metrics.accuracy import ClassifierScorer, StyleClassifierScorer
from erase.evaluate.metrics.alignment import CLIPScorer
from erase.evaluate.metrics.encoders import ClipImageScorer, EncoderScorer
from tiny_encoders import WIDTH, build_clip, noise

SIZES: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of each kind."""
    folder = tmp_path_factory.mktemp("models")
    build_clip(folder / "clip")
    for name, kind in (("clip-vision", CLIPVisionModel), ("clip-projected", CLIPVisionModelWithProjection)):
        kind.from_pretrained(folder / "clip", projection_dim=WIDTH).save_pretrained(folder / name)
        shutil.copy(folder / "clip" / "preprocessor_config.json", folder / name)
    BertModel(BertConfig(vocab_size=8, **SIZES)).save_pretrained(folder / "bert")
    vit = ViTConfig(image_size=32, patch_size=8, **SIZES)
    for name, kind in (("vit", ViTModel), ("vit-classifier", ViTForImageClassification)):
        kind(vit).save_pretrained(folder / name)
        ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize(
    ("scorer", "model", "message"),
    [
        (EncoderScorer, "clip", "is a CLIPModel, which also reads text; --encoder .* takes a model of pictures alone"),
        (EncoderScorer, "clip", r"--cmmd_model .* or --clip_model .*, or save its vision half: CLIPVisionModel\.from_"),
        (EncoderScorer, "bert", "is a BertModel, which does not read pictures; --encoder takes a vision model"),
        (CLIPScorer, "clip-vision", "is a CLIPVisionModel, and .* --clip_model takes a CLIPModel .* serves --encoder"),
        (CLIPScorer, "clip-projected", "--clip_model takes a CLIPModel with its tokenizer"),
        (CLIPScorer, "bert", "is a BertModel, and .* --clip_model takes a CLIPModel"),
        (ClipImageScorer, "vit", "is a ViTModel, and CMMD is defined with CLIP: --cmmd_model .* serves --encoder"),
        (ClipImageScorer, "clip-vision", "is a CLIP without visual_projection.weight, .* not a CLIPVisionModel"),
        (ClassifierScorer, "vit", "is a ViTModel, which has no trained head .* microsoft/resnet-50"),
        (ClassifierScorer, "clip", "is a CLIPModel, which has no trained head"),
        (StyleClassifierScorer, "bert", "is a BertModel, which has no trained head"),
    ],
)
def test_another_kind_is_refused_before_anything_is_drawn(
    scorer: Callable[[str], Any], model: str, message: str, models: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        scorer(str(models / model)).fingerprint()


@pytest.mark.parametrize(
    ("scorer", "model"),
    [
        (EncoderScorer, "vit"), (EncoderScorer, "vit-classifier"), (EncoderScorer, "clip-vision"),
        (ClipImageScorer, "clip"), (ClipImageScorer, "clip-projected"), (CLIPScorer, "clip"),
        (ClassifierScorer, "vit-classifier"),
    ],
)  # fmt: skip
def test_the_right_kind_looks_at_pictures(scorer: Callable[[str], Any], model: str, models: Path) -> None:
    built = scorer(str(models / model))
    assert len(built.fingerprint()["sha256"]) == 64
    assert len(built.score(noise(2), [{"prompt": "a cat"}] * 2).columns) == 2


def test_the_class_that_the_message_names_makes_an_encoder(models: Path, tmp_path: Path) -> None:
    CLIPVisionModel.from_pretrained(str(models / "clip")).save_pretrained(tmp_path)
    shutil.copy(models / "clip" / "preprocessor_config.json", tmp_path)
    features = EncoderScorer(str(tmp_path)).score(noise(2), [{}] * 2).features
    assert features is not None and features.shape == (2, WIDTH)


def test_files_odd_configurations_and_variants(models: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--encoder .*model.safetensors is a file; give the folder that holds it"):
        EncoderScorer(str(models / "vit" / "model.safetensors")).fingerprint()
    shutil.copytree(models / "vit", tmp_path / "odd")
    (tmp_path / "odd" / "config.json").write_text('{"model_type": "vitt"}')
    with pytest.raises(ValueError, match=r"config\.json is of no model that transformers has"):
        EncoderScorer(str(tmp_path / "odd")).fingerprint()
    shutil.move(tmp_path / "odd" / "model.safetensors", tmp_path / "odd" / "model.fp16.safetensors")
    with pytest.raises(ValueError, match=r"holds no model\.safetensors .*model\.fp16\.safetensors"):
        EncoderScorer(str(tmp_path / "odd")).fingerprint()
