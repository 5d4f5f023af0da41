"""A run on the canvas ends with its proof: the promised files, and figures that can be counted from the records."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from erase import EraseConfig, erase
from erase.evaluate import proof
from erase.evaluate.metrics.canvas import CanvasMetric
from erase.evaluate.protocols import load_protocol
from erase.evaluate.scoring import load_scored

SHORT = {
    "num_concept_images": 6,
    "num_anchor_images": 6,
    "num_retain_images": 6,
    "data_num_inference_steps": 2,
    "train_batch_size": 2,
    "max_train_steps": 2,
    "num_target_images": 6,
    "num_kept_images": 1,
}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("canvas")
    with pytest.MonkeyPatch.context() as patch:
        quick = replace(load_protocol("canvas")[0], num_inference_steps=2)
        patch.setattr(proof, "load_protocol", lambda name: (quick, None))
        return erase(
            EraseConfig.load(
                "canvas",
                concept="cat",
                method="salun-anchored",
                output_dir=folder / "out",
                data_cache_dir=folder / "cache",
                **SHORT,
            )
        )


def test_metrics_have_the_promised_form(out: Path) -> None:
    metrics = json.loads((out / "metrics.json").read_text())
    for model in ("base", "erased"):
        for key in ("ua", "ua_coherent", "ira", "cra", "coherence", "fd_canvas"):
            figure = metrics[model][key]
            assert set(figure) == {"value", "low", "high", "n"}
            assert figure["low"] <= figure["value"] <= figure["high"] and figure["n"] > 0
            assert key == "fd_canvas" or 0 <= figure["value"] <= 1


@pytest.mark.parametrize("model", ["base", "erased"])
def test_every_figure_can_be_counted_again(out: Path, model: str) -> None:
    metrics = json.loads((out / "metrics.json").read_text())[model]
    again = CanvasMetric().summarize(load_scored(out / "evaluation" / model)).figures
    assert {key: figure.value for key, figure in again.items()} == {key: f["value"] for key, f in metrics.items()}


def test_base_and_erased_share_prompts_and_seeds(out: Path) -> None:
    base, erased = (load_scored(out / "evaluation" / model).records for model in ("base", "erased"))
    assert [(r["prompt"], r["seed"]) for r in base] == [(r["prompt"], r["seed"]) for r in erased]


def test_pictures_to_look_at(out: Path) -> None:
    for name in ("grid.png", "mask.png", "data_concept.png", "data_anchor.png", "data_retain.png"):
        with Image.open(out / name) as picture:
            assert picture.width > 60 and len(picture.convert("RGB").getcolors(2**24) or []) > 10, name
    assert "UA coherent" in (out / "README.md").read_text()
