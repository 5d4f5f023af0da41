"""Contract of what a result says of itself: the method that ran, with its own paper and settings; concepts and base by
name, never by a path of this machine; loading lines that run as they stand; equal runs give equal files.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import DiffusionPipeline

from erase import EraseConfig, erase
from erase.export.patch import PATCH_FILE, load_patch
from erase.layout import MASK_FILE
from erase.saliency.mask import SaliencyMask

TinyFolder = Callable[[str], Path]


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Path]:
    def make(base: Path, out: str = "out", **changes: Any) -> Path:
        settings = {
            "concept": ("imagenette/church",), "num_concept_images": 2, "num_retain_images": 2,
            "data_num_inference_steps": 2, "data_batch_size": 2, "train_batch_size": 2, "max_train_steps": 2,
            "learning_rate": 2e-3, "mixed_precision": "no", "pretrained_model_name_or_path": str(base),
            "output_dir": tmp_path / out, "data_cache_dir": tmp_path / "cache",
        }  # fmt: skip
        return erase(EraseConfig.load(**settings | changes))

    return make


@pytest.fixture(scope="session")
def half(tiny: TinyFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline with fp16 files alone, and a safety checker in its index that nobody copied."""
    folder = tmp_path_factory.mktemp("half") / "half"
    DiffusionPipeline.from_pretrained(tiny("sd1"), dtype=torch.float16).save_pretrained(folder, variant="fp16")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def card(folder: Path) -> tuple[dict[str, Any], str]:
    _, head, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(head), text


def code_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def test_a_trained_run_names_its_steps_and_paper(run: Callable[..., Path], tiny: TinyFolder) -> None:
    head, text = card(run(tiny("sd1"), density=0.25))
    assert "2 steps of 2, learning rate 0.002, scope full, mask salient, density 0.25" in text
    assert "[arXiv 2310.12508](https://arxiv.org/abs/2310.12508)" in text
    assert "base_model" not in head and head["tags"][:3] == ["diffusers", "concept-erasure", "salun"]
    assert "config.yaml" in text and "config.json" not in text and "## Limits" in text


@pytest.mark.parametrize(("method", "paper"), [("uce", "2308.14761"), ("recommended", "2310.12508")])
def test_a_closed_form_claims_no_steps(method: str, paper: str, run: Callable[..., Path], tiny: TinyFolder) -> None:
    out = run(tiny("sd1"), method=method)
    text = card(out)[1]
    assert f"https://arxiv.org/abs/{paper}" in text and "one edit in closed form" in text
    assert "steps" not in text.partition("## Results")[0] and "learning rate" not in text
    patch = load_patch(out / PATCH_FILE).metadata
    assert patch["method"] == method and paper in patch["source"] and "steps" not in patch["settings"]


def test_no_path_of_this_machine_leaves_it(run: Callable[..., Path], tiny: TinyFolder, tmp_path: Path) -> None:
    concept = tmp_path / "secret" / "my-church.yaml"
    concept.parent.mkdir()
    names = {"name": "church", "type": "object", "forget": ["a church"], "anchor": "a barn", "retain": ["a dog"],
             "evaluate": ["the church"]}  # fmt: skip
    concept.write_text(yaml.safe_dump(names))
    out = run(tiny("sd1"), concept=(str(concept),))
    text, patch, mask = card(out)[1], load_patch(out / PATCH_FILE).metadata, SaliencyMask.load(out / MASK_FILE).metadata
    before_command = text.partition("## How it was made")[0]
    for said in (before_command, *patch.values(), *mask.values()):
        assert str(tmp_path) not in said and str(tiny("sd1").parent) not in said
    assert "# sd1 without church" in text and patch["concept"] == mask["concept"] == "church"
    assert patch["model"] == mask["model"] == "sd1"


def test_loading_lines_run_as_they_stand(
    run: Callable[..., Path], half: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = run(half, variant="fp16")
    load, patch = code_blocks(card(out)[1])
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(load, found)
    assert found["pipe"].unet.dtype == torch.float16 and found["pipe"].safety_checker is None
    (tmp_path / PATCH_FILE).write_bytes((out / PATCH_FILE).read_bytes())
    (tmp_path / "half").symlink_to(half)
    patched: dict[str, Any] = {}
    exec(patch.replace("remove_patch(pipe)", ""), patched)
    for name, weight in found["pipe"].unet.state_dict().items():
        assert torch.equal(weight, patched["pipe"].unet.state_dict()[name]), name


def test_equal_runs_give_equal_files(run: Callable[..., Path], tiny: TinyFolder) -> None:
    folders = run(tiny("sd1"), "one"), run(tiny("sd1"), "two")
    for name in (MASK_FILE, PATCH_FILE, "losses.json", "unet/diffusion_pytorch_model.safetensors"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name


def test_the_manifest_says_when_how_and_within_what_limits(run: Callable[..., Path], tiny: TinyFolder) -> None:
    manifest = json.loads((run(tiny("sd1")) / "manifest.json").read_text())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", manifest["date"])
    assert manifest["command"] and manifest["resumed"] is False and manifest["base"] == "sd1"
    assert any("no guarantee" in limit for limit in manifest["limits"])
