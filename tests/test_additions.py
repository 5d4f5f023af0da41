"""Contract of the registries: what moves in is one class (or function) and its row, and the harness runs it.

A toy objective with its method, family, guard, metric and classifier method are registered here and then used as the
shipped ones are: by the real trainer, pipelines, scorer and forgetting, with no other line of the package changed.
"""

import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from drawing import Mean, TinyFolder, prompt_rows
from erase import EraseConfig, classify, erase
from erase.classifiers import methods as classifier_methods
from erase.classifiers import settings as classifier_settings
from erase.config import read_config
from erase.draw import guard_names, guards
from erase.draw.answers import Scorer
from erase.draw.generate import generate
from erase.draw.pipelines import ModelSource, open_pipeline
from erase.evaluate.config import EvaluateConfig
from erase.evaluate.metrics import registry
from erase.evaluate.protocols import load_protocol
from erase.evaluate.scoring import Metric, Scored, Summary, score_folder
from erase.evaluate.statistics import clustered_mean
from erase.layout import CONFIG_FILE
from erase.methods import METHODS, Method
from erase.models import loading
from erase.models.unet import UNetDenoiser
from erase.trained import objectives


def config_of(model: Path, output: Path, **changes: Any) -> EraseConfig:
    values: dict[str, Any] = {
        "concept": "a cat", "concept_type": "object", "pretrained_model_name_or_path": str(model), "output_dir": output,
        "data_cache_dir": output.with_name("cache"), "num_concept_images": 4, "num_retain_images": 4, "resolution": 16,
        "data_num_inference_steps": 2, "train_batch_size": 2, "max_train_steps": 2, "mask": "none", "proof": False,
        "mixed_precision": "no",
    }  # fmt: skip
    return EraseConfig.load(None, **values | changes)


def test_an_objective_and_its_method(monkeypatch: pytest.MonkeyPatch, tiny: TinyFolder, tmp_path: Path) -> None:
    seen = []

    def silence(models: objectives.Models, batch: objectives.Batch) -> objectives.Losses:
        """‖f(x_t, c)‖²: the concept's prompt shall predict nothing."""
        seen.append(len(batch.forget_x))
        return {"forget": models.predict(batch.forget_x, batch.forget_t, batch.concept).float().square().mean()}

    row = Method(kind="trained", source="this test", summary="predicts nothing", objective="silence")
    monkeypatch.setitem(objectives.OBJECTIVES, "silence", silence)
    monkeypatch.setitem(METHODS, "silence", row)
    out = erase(config_of(tiny("sd1"), tmp_path / "out", method="silence", learning_rate=1e-2))
    assert seen == [2, 2]
    assert read_config(out / CONFIG_FILE)["method"] == "silence"


def test_a_family(monkeypatch: pytest.MonkeyPatch, tiny: TinyFolder, tmp_path: Path) -> None:
    """A pipeline of diffusers that none of the shipped adapters serves, built of the same components."""
    name, folder = "StableDiffusionPAGPipeline", tmp_path / "pag"
    shutil.copytree(tiny("sd1"), folder)
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": name}), encoding="utf-8")
    config = config_of(folder, tmp_path / "out")
    with pytest.raises(ValueError, match=f"is a {name}, which has no adapter here"):
        erase(config)

    class PerturbedAttentionDenoiser(UNetDenoiser):
        """The toy family."""

    monkeypatch.setitem(loading.FAMILIES, name, PerturbedAttentionDenoiser)
    out = erase(config)
    assert json.loads((out / "model_index.json").read_text(encoding="utf-8"))["_class_name"] == name
    assert type(open_pipeline(ModelSource(pretrained_model_name_or_path=str(out)))).__name__ == name


@dataclass(frozen=True, kw_only=True)
class Hush(guards.Guard):
    """Every prompt becomes the same word."""

    serves: ClassVar[tuple[str, ...]] = ("every pipeline",)
    needs_guidance: ClassVar[bool] = False
    word: str = "nothing"

    def can_serve(self, pipeline: type) -> bool:
        return True

    @contextmanager
    def drawing(self, pipe: Any, denoiser: nn.Module, words: str, call: guards.Call) -> Iterator[guards.Call]:
        yield call | {"prompt": [self.word] * len(call["prompt"])}


def test_a_guard(monkeypatch: pytest.MonkeyPatch, tiny: TinyFolder, tmp_path: Path) -> None:
    monkeypatch.setitem(guards.GUARDS, "hush", Hush())
    monkeypatch.setattr(guard_names, "GUARDS", (*guard_names.GUARDS, "hush"))
    folder = str(tiny("sd1"))
    guarded = ModelSource(pretrained_model_name_or_path=folder, guard="hush", guard_concept="a cat")
    plain = ModelSource(pretrained_model_name_or_path=folder)
    assert guarded.sha256() != plain.sha256()
    rows = prompt_rows(2, height=16, width=16)
    hushed = [replace(row, prompt="nothing") for row in rows]
    made = [generate(asked, source, tmp_path / name, accelerator=Accelerator(cpu=True))
            for name, source, asked in (("a", guarded, rows), ("b", plain, hushed))]  # fmt: skip
    pictures = [[record["sha256"] for record in records] for records in made]
    assert pictures[0] == pictures[1]


class Brightness(Metric):
    """Mean grey value of all pictures, 0–255."""

    name: ClassVar[str] = "brightness"

    def scorers(self) -> Sequence[Scorer]:  # type: ignore[override]
        return [Mean()]

    def summarize(self, scored: Scored, base: Scored | None = None) -> Summary:
        values = [record["mean"] for record in scored.records]
        return Summary({"brightness": clustered_mean(values, [record["id"] for record in scored.records])})


def test_a_metric(monkeypatch: pytest.MonkeyPatch, tiny: TinyFolder, tmp_path: Path) -> None:
    module = ModuleType("erase.evaluate.metrics.brightness")
    module.build = lambda config, protocol: Brightness()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(registry.METRICS, "brightness", ("brightness", "build"))
    config = EvaluateConfig(protocol="canvas", model="canvas", metrics=("brightness",))
    metric = registry.build_metric("brightness", config, load_protocol("canvas")[0])
    source = ModelSource(pretrained_model_name_or_path=str(tiny("sd1")))
    generate(prompt_rows(4), source, tmp_path / "drawn", accelerator=Accelerator(cpu=True))
    scored = score_folder(tmp_path / "drawn", metric.scorers())
    figure = metric.summarize(scored).figures["brightness"]
    assert figure.value == pytest.approx(np.mean([record["mean"] for record in scored.records]))
    assert figure.low <= figure.value <= figure.high and 0 < figure.value < 255


def test_a_classifier_method(monkeypatch: pytest.MonkeyPatch) -> None:
    def zeroed(job: classifier_methods.ForgetJob) -> nn.Module:
        """Forgets everything."""
        with torch.no_grad():
            for parameter in job.model.parameters():
                parameter.zero_()
        return job.model

    rows: Mapping[str, Any] = {"zeroed": classifier_settings.Described("all weights to zero", "")}
    monkeypatch.setitem(classifier_methods.METHODS, "zeroed", zeroed)
    monkeypatch.setitem(classifier_settings.DESCRIPTIONS, "zeroed", rows["zeroed"])
    model = nn.Linear(4, 3)
    inputs: Tensor = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(12) % 3
    done = classify(model, (inputs[:4], labels[:4]), (inputs[4:], labels[4:]), method="zeroed")
    assert not any(p.any() for p in done.model.parameters()) and model.weight.any()
