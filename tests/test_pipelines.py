"""Any model as a stock pipeline: schedulers, an erasure in each of its forms, and what cannot be opened."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from drawing import TinyFolder, contents, prompt_rows
from erase.draw.pipelines import ModelSource, draw, open_pipeline
from erase.draw.records import Record
from erase.export.patch import make_patch, save_patch
from erase.models.schedulers import SCHEDULERS


def test_schedulers(tiny: TinyFolder) -> None:
    source = ModelSource(pretrained_model_name_or_path=str(tiny("sd1")))
    pictures = {}
    for name in ("default", *SCHEDULERS):
        pipe = open_pipeline(source, scheduler=name)
        assert name == "default" or type(pipe.scheduler).__name__ == SCHEDULERS[name]
        assert pipe.scheduler.config.get("clip_sample") in (False, None)
        pictures[name] = draw(pipe, prompt_rows(1))[0].tobytes()
    assert pictures["ddim"] == pictures["default"] and len(set(pictures.values())) == len(SCHEDULERS)
    with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler, which ddim cannot stand in for"):
        open_pipeline(ModelSource(pretrained_model_name_or_path=str(tiny("sd3"))), scheduler="ddim")
    with pytest.raises(ValueError, match="Unknown scheduler 'dim'"):
        open_pipeline(source, scheduler="dim")


@pytest.fixture
def erased(tiny: TinyFolder, tmp_path: Path) -> dict[str, Path]:
    """One erasure as a folder, a patch, and partial weights under both kinds of names."""
    pipe = StableDiffusionPipeline.from_pretrained(tiny("sd1"))
    base = {name: weight.detach().clone() for name, weight in pipe.unet.named_parameters()}
    moved = {name for name in base if "attn2" in name}
    with torch.no_grad():
        for name in moved:
            pipe.unet.get_parameter(name).mul_(-3)
    pipe.save_pretrained(tmp_path / "erased")
    weights = {name: weight.detach() for name, weight in pipe.unet.named_parameters()}
    save_patch(make_patch(base, weights, "unet", {}), tmp_path / "erase-patch.safetensors")
    partial = {name: weights[name].contiguous() for name in moved}
    save_file(partial, tmp_path / "esd.safetensors")
    save_file({f"unet.{name}": weight for name, weight in partial.items()}, tmp_path / "prefixed.safetensors")
    names = {"patch": "erase-patch", "unet_weights": "esd", "prefixed": "prefixed"}
    return {"folder": tmp_path / "erased"} | {key: tmp_path / f"{name}.safetensors" for key, name in names.items()}


def test_an_erasure_is_the_same_in_every_form(
    erased: dict[str, Path], tiny: TinyFolder, drawn: Callable[..., list[Record]], tmp_path: Path
) -> None:
    base = str(tiny("sd1"))
    sources = {
        "folder": ModelSource(pretrained_model_name_or_path=str(erased["folder"])),
        "patch": ModelSource(pretrained_model_name_or_path=base, patch=erased["patch"]),
        "esd": ModelSource(pretrained_model_name_or_path=base, unet_weights=erased["unet_weights"]),
        "prefixed": ModelSource(pretrained_model_name_or_path=base, unet_weights=erased["prefixed"]),
    }
    rows = prompt_rows(2)
    for name, source in sources.items():
        drawn(rows, out=name, source=source)
        assert contents(tmp_path / name) == contents(tmp_path / "folder"), name
    drawn(rows, out="base")
    assert contents(tmp_path / "base") != contents(tmp_path / "folder")
    hashes = [source.sha256() for source in sources.values()]
    assert len(set(hashes)) == 4 and ModelSource(pretrained_model_name_or_path=base).sha256() not in hashes
    assert sources["patch"].label.endswith("+ erase-patch.safetensors")


def test_weights_that_do_not_fit(erased: dict[str, Path], tiny: TinyFolder, tmp_path: Path) -> None:
    good = load_file(erased["unet_weights"])
    name, weight = next(iter(good.items()))

    def opened(weights: dict[str, torch.Tensor]) -> None:
        save_file(weights, tmp_path / "bad.safetensors")
        unet_weights = tmp_path / "bad.safetensors"
        open_pipeline(ModelSource(pretrained_model_name_or_path=str(tiny("sd1")), unet_weights=unet_weights))

    with pytest.raises(ValueError, match=rf"1 of {len(good) + 1} weights(.|\n)*no such weight; did you mean {name}"):
        opened(good | {name.replace("attn2", "attn3"): weight.clone()})
    with pytest.raises(ValueError, match=r"\(3,\) where the base has"):
        opened({name: torch.zeros(3)})
    with pytest.raises(ValueError, match=r"and 2 more"):
        opened({f"transformer.{n}": torch.zeros(1) for n in range(7)})
    with pytest.raises(ValueError, match="holds no weights"):
        opened({})
    with pytest.raises(ValueError, match="weights twice"):
        opened({name: weight, f"unet.{name}": weight.clone()})


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"unet_weights": "esd.pt"}, "is a pickle.*\n.*torch.load.*weights_only=True"),
        ({"unet_weights": "no.safetensors"}, "no.safetensors does not exist"),
        ({"patch": "cut.safetensors"}, "is not a whole safetensors file"),
        ({"patch": "empty.safetensors"}, "is not an erase patch"),
        ({"patch": "empty.safetensors", "unet_weights": "empty.safetensors"}, "not both"),
        ({"pretrained_model_name_or_path": "cavnas"}, "Did you mean 'canvas'"),
        ({"pretrained_model_name_or_path": "."}, "holds no model_index.json"),
        ({"pretrained_model_name_or_path": "inpaint"}, "which is no text-to-image pipeline"),
        ({"pretrained_model_name_or_path": "odd"}, "which diffusers .* does not have"),
    ],
)
def test_models_that_cannot_be_opened(
    source: dict[str, str], message: str, tiny: TinyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "esd.pt").write_bytes(b"\x80\x02")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00\x00")
    save_file({"a": torch.zeros(1)}, tmp_path / "empty.safetensors")
    for name, class_name in (("inpaint", "StableDiffusionInpaintPipeline"), ("odd", "MyPipeline")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model_index.json").write_text(json.dumps({"_class_name": class_name}))
    files = {key: Path(value) for key, value in source.items() if key in ("patch", "unet_weights")}
    with pytest.raises(ValueError, match=message):
        open_pipeline(ModelSource(**{"pretrained_model_name_or_path": str(tiny("sd1"))} | source | files))
