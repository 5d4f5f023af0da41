"""The command line: light, strict, and clear about what is wrong before any long work starts."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest
from safetensors.torch import save_file

from erase import EraseConfig
from erase.classifiers.config import ClassifyConfig
from erase.cli import main
from erase.compare.config import CompareConfig
from erase.config import CONFIGS_DIR, read_config
from erase.draw.generate import GenerateConfig
from erase.evaluate.config import EvaluateConfig
from erase.parsing import parse, with_file

TinyFolder = Callable[[str], Path]
ROOT = Path(__file__).parents[1]


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT).stdout


def test_import_loads_neither_torch_nor_diffusers() -> None:
    assert python("import erase, sys; print({'torch', 'diffusers'} & set(sys.modules))").strip() == "set()"


@pytest.mark.parametrize("arguments", ["--help", "train --help"])
def test_help_is_quick_and_teaches(arguments: str) -> None:
    code = f"from erase.cli import main\ntry:\n    main({arguments.split()!r})\nexcept SystemExit: pass\n"
    # Processor time: a busy machine must not fail this.
    shown, seconds = python(code + "import time; print(time.process_time())").rstrip().rsplit("\n", 1)
    assert float(seconds) < 1
    assert "--concept" in shown
    if "train" in arguments:
        assert "--pretrained_model_name_or_path" in shown and "density" in shown


def test_help_loads_no_torch() -> None:
    code = "from erase.cli import main\nimport sys\ntry:\n    main(['train', '--help'])\nexcept SystemExit: pass\n"
    assert "False" in python(code + "print('torch' in sys.modules)")


def test_flags_go_on_top_of_yaml_on_top_of_the_base_preset(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("learning_rate: 1e-5\ndensity: 0.3\nsave_patch: false\nconcept: [cat, dog]\n")
    flags = ["--config", str(path), "--density", "0.2", "--pretrained_model_name_or_path", "canvas"]
    config = parse(EraseConfig, "erase train", flags)
    assert config.concept == ("cat", "dog")
    assert (config.learning_rate, config.density, config.save_patch) == (1e-5, 0.2, False)
    assert config.train_batch_size == read_config("canvas")["train_batch_size"]
    assert parse(EraseConfig, "erase", [*flags, "--concept", "owl", "--save-patch"]).concept == ("owl",)
    assert parse(EraseConfig, "erase", [*flags, "--save_patch"]).save_patch is True


def test_python_takes_the_same_road() -> None:
    config = EraseConfig.load("canvas", concept="cat", learning_rate="1e-4")
    assert config.learning_rate == 1e-4 and config.concept == ("cat",)
    assert config == EraseConfig.load(pretrained_model_name_or_path="canvas", concept="cat", learning_rate=1e-4)


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS_DIR.glob("*.yaml")))
def test_shipped_configs_are_valid(name: str) -> None:
    EraseConfig.load(name, concept="cat")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("densty: 0.1", "unknown key 'densty'. Did you mean density"),
        ("density: 1.5", r"density must be in \(0, 1\]"),
        ("density: 0", r"density must be in \(0, 1\]"),
        ("learning_rate: fast", "learning_rate must be a number"),
        ("max_train_steps: 0", "max_train_steps must be at least 1"),
        ("max_train_steps: 1.5", "max_train_steps must be int"),
        ("target: frozzen", "target must be one of current, frozen"),
        ("gradient_checkpointing: 3", "gradient_checkpointing must be bool"),
        ("anchor_image_fraction: 0.5", "num_anchor_images must be at least 1"),
        ("concept: []", "No concept given"),
        ("[1, 2]", "must hold `key: value` lines"),
        ("density: [", "not valid YAML"),
    ],
)
def test_bad_config_says_what_is_wrong(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        EraseConfig.load(tmp_path / "bad.yaml", **({} if "concept" in text else {"concept": "nudity"}))


def run_main(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code not in (0, None)
    output = capsys.readouterr()
    assert "Traceback" not in output.err and len(output.err.splitlines()) < 30
    return " ".join((output.out + output.err).split())


def truncated_copy(source: Path, target: Path) -> Path:
    import shutil

    shutil.copytree(source, target)
    weights = target / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-500])
    return target


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--concept", "nuditi"], "nudity"),
        (["train", "--concept", "cta", "--pretrained_model_name_or_path", "canvas"], "cat"),
        (["train", "--concept", "nudity", "--denisty", "0.1"], "denisty"),
        (["train", "--concept", "nudity", "--density", "much"], "density"),
        (["train", "--concept", "nudity", "--pretrained_model_name_or_path", "no/such-model"], "model_index.json"),
        (["train", "--concept", "nudity", "--config", "no-such-config"], "salun-nsfw"),
        (["train", "--concept", "nudity", "--mask", "missing.safetensors"], "missing.safetensors"),
        (["train"], "concept"),
        (["paint"], "unknown command"),
    ],
)
def test_wrong_arguments_end_in_one_message(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in run_main(arguments, capsys)
    assert not list(tmp_path.iterdir())


def base_flags(tiny: TinyFolder, out: Path) -> list[str]:
    return ["train", "--concept", "nudity", f"--pretrained_model_name_or_path={tiny('sd1')}", f"--output_dir={out}",
            f"--data_cache_dir={out.parent / 'cache'}"]  # fmt: skip


def test_truncated_weights(tiny: TinyFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = truncated_copy(tiny("sd1"), tmp_path / "broken")
    flags = [*base_flags(tiny, tmp_path / "out"), f"--pretrained_model_name_or_path={broken}"]
    assert "truncated or unreadable" in run_main([f for f in flags if f"={tiny('sd1')}" not in f], capsys)


def test_mask_for_another_model(tiny: TinyFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    from erase import SaliencyMask

    SaliencyMask({"other.weight": torch.ones(4, dtype=torch.bool)}).save(tmp_path / "other.safetensors")
    flags = [*base_flags(tiny, tmp_path / "out"), f"--mask={tmp_path / 'other.safetensors'}"]
    flags += ["--num_concept_images=1", "--num_retain_images=1", "--data_num_inference_steps=1"]
    assert "mask for another model" in run_main(flags, capsys)


def test_folder_without_pictures(tiny: TinyFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    flags = [*base_flags(tiny, tmp_path / "out"), f"--concept_data_dir={tmp_path / 'empty'}"]
    assert "holds no pictures" in run_main(flags, capsys)
    assert not (tmp_path / "out").exists()


def test_output_dir_of_somebody_else(tiny: TinyFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.yaml").write_text("concept: [dog]\n", encoding="utf-8")
    for overwrite in ([], ["--overwrite_output_dir"]):
        assert "no erase command wrote" in run_main([*base_flags(tiny, out), *overwrite], capsys)
        assert (out / "config.yaml").read_text(encoding="utf-8") == "concept: [dog]\n"


def test_too_little_disk(
    tiny: TinyFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    assert "Too little disk" in run_main(base_flags(tiny, tmp_path / "out"), capsys)


def test_not_a_pipeline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({}, tmp_path / "model.safetensors")
    flags = ["train", "--concept", "nudity", f"--pretrained_model_name_or_path={tmp_path}"]
    assert "holds no model_index.json" in run_main(flags, capsys)


@pytest.mark.parametrize("config", [EraseConfig, GenerateConfig, EvaluateConfig, CompareConfig, ClassifyConfig])
def test_every_flag_is_explained_in_one_paragraph(config: type) -> None:
    """A parser of flags would keep the source's line breaks."""
    hints = get_type_hints(with_file(config), include_extras=True)
    for name in (field.name for field in fields(config)):
        helps = [text for note in hints[name].__metadata__ if (text := getattr(note, "help", None))]
        assert helps and "\n" not in helps[-1] and "  " not in helps[-1], name


def test_help_has_no_line_that_ends_early(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "or of the text encoder. The mask selects" in capsys.readouterr().out
