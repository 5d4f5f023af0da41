"""Contract of erase.evaluate.metrics.alignment and accuracy, on real CLIP and ViT models of toy size.

- CLIP score is the model's own cosine, for any prompt; classifiers' answers are the model's softmax.
- A class is found in ImageNet's lists of words; one that the classifier does not know is an error with near matches,
  and so is a model without a trained head.
- UA, retained accuracy and MACE's means of hand-made answers are what a person would count.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from erase.evaluate.metrics.accuracy import (
    AccuracyMetric,
    ClassifierScorer,
    MaceMetric,
    ObjectClassifierScorer,
    StyleClassifierScorer,
    mace_artists,
    mace_celebrities,
    mace_objects,
    matching_classes,
)
from erase.evaluate.metrics.alignment import ClipScoreMetric, CLIPScorer, clip_score
from erase.evaluate.scoring import Scored, load_scored, score_folder
from tiny_encoders import build_classifier, build_clip, noise, write_pictures

CPU = torch.device("cpu")
IMAGENET = [
    "tench, Tinca tinca",
    "English springer, English springer spaniel",
    "cassette player",
    "chain saw, chainsaw",
    "church, church building",
    "crane",
    "crane, lifting machine",
]
PROMPTS = [
    "a cat",
    'a "dog"\nin two lines, with a prompt that is far longer than the forty tokens of this text encoder',
    "",
]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_classifier(tmp_path_factory.mktemp("classifier"), IMAGENET)


# CLIP score


def test_cosines_are_the_models_own(clip, tmp_path):
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    pictures = [*noise(2, 50), noise(1, 64)[0][:40]]
    folder = write_pictures(tmp_path / "eval", pictures, [{"prompt": prompt} for prompt in PROMPTS])
    scored = score_folder(folder, [CLIPScorer(str(clip), CPU)], batch_size=2, progress=False)

    model, tokenizer = CLIPModel.from_pretrained(clip).eval(), CLIPTokenizer.from_pretrained(clip)
    processor = CLIPImageProcessorPil.from_pretrained(clip)
    for picture, prompt, record in zip(pictures, PROMPTS, scored.records):
        tokens = tokenizer(prompt, truncation=True, return_tensors="pt")
        pixels = processor(images=picture, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            expected = model(**tokens, pixel_values=pixels).logits_per_image.item() / model.logit_scale.exp().item()
        assert record["clip_cosine"] == pytest.approx(expected, abs=1e-5)
    assert len({round(record["clip_cosine"], 4) for record in scored.records}) == 3


def test_clip_score_is_the_mean_over_pictures_and_roles(clip):
    cosines = [0.3, -0.1, 0.25, 0.2]
    roles = ["target", "target", "retain", "retain"]
    records = [{"prompt": f"p{at}", "role": role, "clip_cosine": c} for at, (role, c) in enumerate(zip(roles, cosines))]
    figures = ClipScoreMetric(CLIPScorer(str(clip))).summarize(Scored(Path(), records)).figures
    assert {name: figure.value for name, figure in figures.items()} == pytest.approx(
        {"clip_score": 18.75, "clip_score_target": 15, "clip_score_retain": 22.5}
    )
    assert all(figure.low <= figure.value <= figure.high for figure in figures.values())
    assert clip_score(-0.1) == 0
    bare = [{"prompt": "p", "clip_cosine": 0.5}] * 2
    assert set(ClipScoreMetric(CLIPScorer(str(clip))).summarize(Scored(Path(), bare)).figures) == {"clip_score"}


def test_a_missing_clip_is_named_with_source_and_flag():
    with pytest.raises(ValueError, match=r"huggingface\.co/openai/clip-vit-base-patch32.*--clip_model"):
        CLIPScorer().fingerprint()


# Classifiers


def test_answers_are_the_models_softmax(classifier, tmp_path):
    from transformers import ViTForImageClassification, ViTImageProcessorPil

    folder = write_pictures(tmp_path / "eval", noise(4, 50))
    scored = score_folder(folder, [ClassifierScorer(str(classifier), CPU)], batch_size=3, progress=False)
    model = ViTForImageClassification.from_pretrained(classifier).eval()
    pixels = ViTImageProcessorPil.from_pretrained(classifier)(images=noise(4, 50), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = model(pixel_values=pixels).logits.softmax(1)
    for record, shares in zip(load_scored(folder).records, expected):
        order = shares.argsort(descending=True)[:5].tolist()
        assert [label for label, _ in record["classifier_top5"]] == [IMAGENET[at] for at in order]
        assert record["classifier_label"] == IMAGENET[order[0]]
        assert record["classifier_probability"] == pytest.approx(shares.max().item(), abs=1e-5)
    assert scored.records == load_scored(folder).records


@pytest.mark.parametrize(
    ("name", "expected"),
    [("tench", {IMAGENET[0]}), ("Tinca tinca", {IMAGENET[0]}), ("english_springer", {IMAGENET[1]}),
     ("church", {IMAGENET[4]}), ("crane", {"crane", IMAGENET[6]}), (IMAGENET[3], {IMAGENET[3]})],
)  # fmt: skip
def test_a_class_is_found_in_lists_of_words(name, expected):
    assert matching_classes(name, IMAGENET) == expected


def test_an_unknown_class_is_refused_with_near_ones(classifier):
    with pytest.raises(ValueError, match=r"7 classes and none is called 'chainsaws' \(near: .*chain saw"):
        matching_classes("chainsaws", IMAGENET)
    metric = AccuracyMetric({"label": ClassifierScorer(str(classifier))})
    with pytest.raises(ValueError, match="none is called 'dragon'"):
        metric.check([{"label": "tench"}, {"label": "dragon"}])
    with pytest.raises(ValueError, match="column 'label'; a row has only id, prompt"):
        metric.check([{"id": "a", "prompt": "b"}])
    with pytest.raises(ValueError, match="--style_classifier"):
        metric.check([{"label": "tench", "domains": ["style"]}])


def test_a_model_without_a_trained_head_is_refused(tmp_path):
    from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    ViTModel(ViTConfig(**sizes)).save_pretrained(tmp_path)
    ViTImageProcessorPil().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lacks classifier\.bias, classifier\.weight, which would be random"):
        ClassifierScorer(str(tmp_path), CPU).score(noise(1), [{}])


# Accuracy


def answered(rows: list[tuple[str, str, str]], **columns) -> list[dict]:
    """Records of (role, label, what the classifier said)."""
    return [
        {"id": str(at), "prompt": f"{label} {at}", "role": role, "label": label, "classifier_label": said} | columns
        for at, (role, label, said) in enumerate(rows)
    ]


ROWS = [
    ("target", "church", "church, church building"),
    ("target", "church", "tench, Tinca tinca"),
    ("target", "church", "cassette player"),
    ("target", "church", "cassette player"),
    ("retain", "tench", "tench, Tinca tinca"),
    ("retain", "tench", "church, church building"),
    ("retain", "crane", "crane, lifting machine"),
]


def test_unlearning_accuracy_and_retained_accuracy(classifier):
    metric = AccuracyMetric({"label": ClassifierScorer(str(classifier))})
    records = answered(ROWS)
    summary = metric.summarize(Scored(Path(), records))
    assert summary.figures["ua"].value == 0.75 and summary.figures["ira"].value == pytest.approx(2 / 3)
    assert summary.details["turns_into"] == {"church": {"cassette player": 2, "church": 1, "tench": 1}}
    assert summary.details["classes"] == {"tench": {"right": 1, "n": 2}, "crane": {"right": 1, "n": 1}}
    assert summary.flags["ua"] == [False, True, True, True]
    assert records == answered(ROWS)  # what is stored stays as it is
    for record in records:
        del record["role"]
    plain = metric.summarize(Scored(Path(), records))
    assert {name: figure.value for name, figure in plain.figures.items()} == pytest.approx({"accuracy": 3 / 7})


def test_two_classifiers_judge_their_own_domains(tmp_path, classifier):
    styles = build_classifier(tmp_path / "styles", ["Van_Gogh", "Sketch"])
    judges = {"object": ObjectClassifierScorer(str(classifier)), "style": StyleClassifierScorer(str(styles))}
    assert [scorer.name for scorer in AccuracyMetric(judges).scorers()] == ["object_classifier", "style_classifier"]
    common = {"prompt": "p", "domains": ["style"], "object": "church", "held_out_template": False}
    rows = [("target", "van gogh", "Sketch", "church, church building"), ("target", "van gogh", "Van_Gogh", "crane"),
            ("retain", "sketch", "Sketch", "crane")]  # fmt: skip
    records = [
        common | {"role": role, "style": style, "style_classifier_label": said, "object_classifier_label": thing}
        for role, style, said, thing in rows
    ]
    figures = AccuracyMetric(judges).summarize(Scored(Path(), records)).figures
    values = {name: figure.value for name, figure in figures.items()}
    assert values == {"ua": 0.5, "ira": 1, "cra": 0.5, "cra_retained": 0}


def test_mace_means_are_the_formulas():
    e, s, g = 0.1, 0.8, 0.3
    assert mace_objects(e, s, g) == pytest.approx(3 / (1 / 0.9 + 1 / 0.8 + 1 / 0.7))
    assert mace_celebrities(e, s) == pytest.approx(2 / (1 / 0.9 + 1 / 0.8))
    assert mace_artists(20.0, 28.5) == 8.5
    np.testing.assert_allclose(
        mace_celebrities(np.array([0.1, 1]), np.array([0.8, 0.8])), [mace_celebrities(0.1, 0.8), 0]
    )


def test_mace_metric_takes_what_parts_there_are(classifier, clip):
    records = answered([*ROWS, *ROWS], held_out_template=False)
    for at, record in enumerate(records):
        record |= {"clip_cosine": 0.2 if record["role"] == "target" else 0.3, "held_out_template": at >= len(ROWS)}
        if record["held_out_template"] and record["role"] == "target":
            record["classifier_label"] = "crane"  # the held-out wordings are all erased
    metric = MaceMetric({"label": ClassifierScorer(str(classifier))}, CLIPScorer(str(clip)))
    assert [scorer.name for scorer in metric.scorers()] == ["classifier", "clip_score"]
    figures = metric.summarize(Scored(Path(), records)).figures
    values = {name: figure.value for name, figure in figures.items()}
    assert values == pytest.approx({
        "mace_h_c": mace_celebrities(0.25, 2 / 3),
        "mace_h_o": mace_objects(0.25, 2 / 3, 0),
        "mace_h_a": 10,
    })  # fmt: skip
    assert all(figure.low <= figure.value <= figure.high for figure in figures.values())

    retained = [record for record in records if record["role"] == "retain"]
    assert metric.summarize(Scored(Path(), retained)).figures == {}
    trained = [record for record in records if not record["held_out_template"]]
    only = MaceMetric({"label": ClassifierScorer(str(classifier))}).summarize(Scored(Path(), trained)).figures
    assert set(only) == {"mace_h_c"}
    with pytest.raises(ValueError, match="--classifier.*--clip_model"):
        MaceMetric()
