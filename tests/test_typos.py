"""A command line that cannot work is answered at once, in words, with status 2, and before torch is loaded.

`--print_config` shows what would run, and what it shows gives the same again.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from erase import EraseConfig
from erase.classifiers.config import ClassifyConfig
from erase.cli import main
from erase.draw.generate import GenerateConfig
from erase.evaluate.config import EvaluateConfig
from erase.parsing import parse

ROOT = Path(__file__).parents[1]
CANVAS = ("--pretrained_model_name_or_path", "canvas")
CAT = ("--concept", "cat", *CANVAS)
DIGITS = ("--dataset", "digits", "--forget_fraction", "0.1")
EVALUATE = ("evaluate", "--protocol", "canvas", "--concept", "cat", "--model", "canvas")

CASES: list[tuple[list[str], str]] = [
    (["traim"], "Did you mean train?"),
    (["train", "--concept", "catt", *CANVAS], "cannot draw 'catt'. Did you mean 'cat'"),
    (["train", "--concept", "cat", "--pretrained_model_name_or_path", "cavnas"], "Did you mean 'canvas'?"),
    (["train", "--concept", "nuditi"], "Did you mean 'nudity'"),
    (["train", "--concept", ""], "--concept is empty"),
    (["train", "--concept= "], "--concept is empty"),
    (["train", "--concept", "empty.yaml"], "`name` must be text, got ''"),
    (["train", "--concept", "absent.yaml"], "No such concept file: absent.yaml"),
    (["train", *CAT, "--output_dir", ""], "--output_dir is empty"),
    (["train", *CAT, "--config", "absent.yaml"], "No config 'absent.yaml'"),
    (["train", *CAT, "--config", "salun-nsfv"], "salun-nsfw"),
    (["train", *CAT, "--denisty", "0.1"], "--density"),
    (["train", *CAT, "--method", "saln"], "'salun'"),
    (["train", *CAT, "--method", "sld"], "--guard sld-medium"),
    (["train", *CAT, "--mask", "saliant"], "there is no file saliant. Did you mean salient?"),
    (["train", *CAT, "--concept_data_dir", "photso"], "there is no folder photso. Did you mean photos?"),
    (["train", *CAT, "--retain_data_dir", "a/b"], "--retain_data_dir: there is no folder a/b"),
    (["train", *CAT, "--retain_data_dir", "table.csv"], "table.csv is a file; give a folder"),
    (["mask", "--concept", "catt", *CANVAS], "Did you mean 'cat'"),
    (["mask", *CAT, "--mask", "m.safetensors"], "there is no file m.safetensors"),
    (["mask", *DIGITS, "--mask_score", "snup"], "'snip'"),
    (["patch", "p.safetensors", *CANVAS, "--output_dir", "out"], "patch_file: there is no file p.safetensors"),
    (["patch", "photos", *CANVAS, "--output_dir", "out"], "photos is a folder; give a file"),
    (["patch", "table.csv", *CANVAS, "--output_dirr", "out"], "--output_dir"),
    (["generate", "--prompts", "tabel.csv"], "tabel.csv does not exist"),
    (["generate", "--prompts", ""], "--prompts is empty"),
    (["generate", "--prompts", "canvas/catt"], "Did you mean 'cat'"),
    (["generate", "--prompts", "table.csv", "--pretrained_model_name_or_path", "cavnas"], "Did you mean 'canvas'?"),
    (["generate", "--prompts", "table.csv", "--patch", "p.safetensors"], "--patch: there is no file p.safetensors"),
    (["generate", "--prompts", "table.csv", "--unet_weights", "w"], "--unet_weights: there is no file w"),
    (["generate", "--prompts", "table.csv", "--guard", "sld"], "'sld-medium'"),
    (["generate", "--prompts", "table.csv", "--guard", "sld-max"], "needs the concept in words"),
    (["generate", "--prompts", "table.csv", "--config", "absent.yaml"], "No config 'absent.yaml'. Give a YAML file."),
    (["generate", "--prompts", "table.csv", "--config", "typo.yaml"], "Did you mean guidance_scale"),
    (["evaluate", "--protocol", "canvs", "--model", "x"], "No protocol 'canvs'"),
    (["evaluate", "--protocol", "i2p/sexul", "--model", "x"], "i2p has no subset 'sexul'"),
    ([*EVALUATE, "--metrics", "fidd"], "Unknown metric 'fidd'. Did you mean fid"),
    (["evaluate", "--protocol", "canvas", "--model", "x", "--concept", "catt"], "Did you mean 'cat'"),
    (["evaluate", "--protocol", "canvas", "--concept", "cat", "--model", "photso"], "Did you mean 'photos'?"),
    ([*EVALUATE, "--guard", "safre"], "'safree'"),
    ([*EVALUATE, "--base_images", "absent"], "--base_images: there is no folder absent"),
    (["evaluate", "--protocol", "canvas", "--images", "absent"], "--images: there is no folder absent"),
    ([*EVALUATE, "--fid_reference", "val"], "--fid_reference: there is no file or folder val"),
    ([*EVALUATE, "--prompts", "tabel.csv"], "--prompts: there is no file tabel.csv. Did you mean table.csv?"),
    (["compare", "--concept", "catt", *CANVAS, "--methods", "salun"], "Did you mean 'cat'"),
    (["compare", *CAT, "--methods", "salunn"], "Did you mean salun"),
    (["compare", *CAT, "--methods", "salun:mask=saliant"], "there is no file saliant"),
    (["compare", *CAT, "--methods", "salun", "--config", "absent.yaml"], "No config 'absent.yaml'"),
    (["compare", *CAT, "--methods", "salun", "--protocol", "canvs"], "No protocol 'canvs'"),
    (["compare", *CAT, "--methods", "salun", "--protocol", "canvas", "--evaluate", "metrics=fidd"], "Did you mean fid"),
    (["compare", *CAT, "--methods", "salun", "--protocol", "canvas", "--evaluate", "max_imgs=5"], "--max_images"),
    (["classify", *DIGITS, "--methods", "salun,retrian"], "Did you mean retrain or retrain-2?"),
    (["classify", "--dataset", "digts", "--forget_fraction", "0.1"], "Did you mean digits?"),
    (["classify", *DIGITS, "--model", "reznet18"], "Did you mean resnet18?"),
    (["classify", *DIGITS, "--mask", "saliant"], "Did you mean salient?"),
    (["classify", *DIGITS, "--mask_score", "snup"], "'snip'"),
    (["classify", "--dataset", "digits", "--forget_indices", "rows.txt"], "there is no file rows.txt"),
    (["classify", "--dataset", "data.npz", "--forget_fraction", "0.1"], "there is no file or folder data.npz"),
    (["classify", *DIGITS, "--config", "absent.yaml"], "No config 'absent.yaml'"),
    (["report", "runn"], "folder: there is no folder runn"),
    (["statistics", "photso", "s.npz"], "pictures: there is no folder photso. Did you mean photos?"),
    (["statistics", "photos", "s.npz", "--inception_weights", "w.pth"], "--inception_weights: there is no file w.pth"),
    (["statistics", "photos", "s.txt"], "must be a new file that ends in .npz"),
    (["completion", "fish"], "'zsh'"),
    (["concepts", "--all"], "--all"),
]  # fmt: skip
ALL = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from erase.cli import main
for arguments in json.load(sys.stdin):
    said, status, had_torch = io.StringIO(), None, "torch" in sys.modules
    with redirect_stdout(said), redirect_stderr(said):
        try:
            main(arguments)
        except SystemExit as stop:
            status = stop.code
    print(json.dumps([status, "torch" in sys.modules and not had_torch, said.getvalue()]))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, bool, str]]:
    """Status, whether torch was loaded, and what was said, for each of CASES: one process for all."""
    folder = tmp_path_factory.mktemp("typos")
    (folder / "photos").mkdir()
    (folder / "table.csv").write_text("prompt\na cat\n", encoding="utf-8")
    (folder / "typo.yaml").write_text("guidence_scale: 3\n", encoding="utf-8")
    concept = {"name": "", "type": "object", "forget": ["a"], "anchor": "b", "retain": ["c"], "evaluate": ["d"]}
    (folder / "empty.yaml").write_text(yaml.safe_dump(concept), encoding="utf-8")
    before = sorted(folder.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.append({str(ROOT)!r}){ALL}"],
        input=json.dumps([arguments for arguments, _ in CASES]), capture_output=True, text=True, cwd=folder,
        encoding="utf-8",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sorted(folder.rglob("*")) == before
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("number", range(len(CASES)), ids=[" ".join(arguments) for arguments, _ in CASES])
def test_a_typo_is_answered_before_torch_is_loaded(answers: list[tuple[int, bool, str]], number: int) -> None:
    status, has_torch, said = answers[number]
    words = " ".join(said.replace("│", " ").split())
    assert CASES[number][1] in words
    assert status == 2 and "Traceback" not in said
    assert not has_torch


@pytest.mark.parametrize("name", ["", "  "])
def test_an_empty_concept_is_refused_from_python_too(name: str) -> None:
    from erase import load_concepts

    with pytest.raises(ValueError, match="A concept is empty"):
        load_concepts([name])


def printed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--print_config"])
    assert stop.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("config", "arguments", "changed"),
    [
        (EraseConfig, ["train", *CAT, "--concept", "neon", "--density", "0.25", "--no_save_patch"], {"density": 0.25}),
        (EraseConfig, ["train", "--concept", "猫", "--concept_type", "object"], {"concept": ["猫"]}),
        (EraseConfig, ["mask", "--config", "salun-class", "--concept", "imagenette/church"], {"learning_rate": 1e-5}),
        (GenerateConfig, ["generate", "--prompts", "nudity", "--filter", "a > 1", "--filter", "b < 2", "--seed_column",
                          "none", "--guard", "sld-max", "--guard_concept", "a cat"], {"filter": ["a > 1", "b < 2"]}),
        (EvaluateConfig, [*EVALUATE, "--metrics", "fid", "--metrics", "kid", "--no_report"], {"report": False}),
        (ClassifyConfig, ["classify", *DIGITS, "--methods", "retrain,ft", "--epochs", "1.5"], {"epochs": 1.5}),
        (ClassifyConfig, ["mask", "--dataset", "digits", "--forget_class", "3"], {"forget_class": "3"}),
    ],
)  # fmt: skip
def test_print_config_shows_all_and_gives_the_same_again(
    config: type, arguments: list[str], changed: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = printed(arguments, capsys)
    values = yaml.safe_load(text)
    assert list(values) == list(config.__dataclass_fields__)  # type: ignore[attr-defined]
    assert {key: values[key] for key in changed} == changed and text.isascii()
    (tmp_path / "all.yaml").write_text(text, encoding="utf-8")
    again = [arguments[0], "--config", str(tmp_path / "all.yaml")]
    dataset = [] if arguments[0] != "mask" or config is EraseConfig else ["--dataset", "digits"]
    assert printed([*again, *dataset], capsys) == text
    assert parse(config, "erase", again[1:]) == parse(config, "erase", arguments[1:])


def test_compare_prints_its_settings_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    values = yaml.safe_load(printed(["compare", *CAT, "--methods", "salun,uce", "--seeds", "2"], capsys))
    assert values["methods"] == ["salun,uce"] and values["seeds"] == 2 and values["config"] is None


def test_of_several_processes_one_speaks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "density" in printed(["train", *CAT], capsys)
    monkeypatch.setenv("RANK", "1")
    assert printed(["train", *CAT], capsys) == ""
    main(["concepts"])
    main(["--version"])
    assert capsys.readouterr().out == ""
