"""What the program says of itself: versions, concepts, methods, completions; and the ways to start it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import yaml

from erase import __version__
from erase.classifiers.settings import DESCRIPTIONS
from erase.cli import COMMANDS, main
from erase.commands.completion import commands
from erase.commands.listings import OWN_CONCEPT
from erase.concepts.concept import known_concepts, load_concepts
from erase.config import MethodName
from erase.draw.guard_names import GuardName
from erase.methods import METHODS

ROOT = Path(__file__).parents[1]


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    main(arguments)
    return capsys.readouterr().out


def test_the_version_names_what_a_report_needs(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    line = said(["--version"], capsys)
    assert line.startswith(f"diffusers-erase {__version__} (Python 3.") and f"torch {torch.__version__}" in line


def test_every_concept_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(["concepts"], capsys)
    words = " ".join(text.split())
    for name in known_concepts():
        family, _, member = name.rpartition("/")
        assert f"  {family or name} " in text and member in words
    assert "18 prompts: 'a photo of a nude person' becomes 'a photo of a person wearing clothes'" in words
    assert "20 objects and 6 styles" in words


def test_the_concept_that_is_shown_as_an_example_works(tmp_path: Path) -> None:
    lines = OWN_CONCEPT.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("  name:"))
    (tmp_path / "zebra.yaml").write_text("\n".join(lines[start:]), encoding="utf-8")
    (concept,) = load_concepts([str(tmp_path / "zebra.yaml")])
    assert concept.name == "zebra" and len(concept.forget) == 2


def test_every_method_and_guard_is_listed_with_its_source(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(["methods"], capsys)
    words = " ".join(text.split())
    guards = [guard for method in METHODS.values() for guard in method.guards]
    assert sorted(guards) == sorted(get_args(GuardName))
    trained = [name for name in get_args(MethodName) if METHODS[name].kind != "inference"]
    for name in (*trained, *DESCRIPTIONS):
        assert f"\n  {name} " in text or f"\n  {name}\n" in text
    for guard in guards:
        assert guard in words
    for method in (*METHODS.values(), *DESCRIPTIONS.values()):
        assert method.summary in words
    assert "(arXiv 2303.07345)" in words and "(diffusers)" in words and "()" not in words


def test_completions_know_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(commands()) == set(COMMANDS)
    for shell in ("bash", "zsh", "tcsh"):
        script = said(["completion", shell], capsys)
        assert all(name in script for name in (*COMMANDS, "print_config", "salun-anchored", "inception_weights"))


def completed(words: list[str], script: Path) -> list[str]:
    """What bash offers for the last of the words."""
    typed = " ".join(f"'{word}'" for word in words)
    code = f"source {script}; COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; _shtab_erase; echo ${{COMPREPLY[@]}}"
    return subprocess.run(["bash", "-c", code], check=True, capture_output=True, text=True).stdout.split()


def test_bash_completes_commands_flags_and_choices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "erase"
    script.write_text(said(["completion", "bash"], capsys), encoding="utf-8")
    for words, right in [
        (["erase", "tra"], ["train"]),
        (["erase", "comp"], ["compare", "completion"]),
        (["erase", "train", "--densi"], ["--density"]),
        (["erase", "train", "--no_save"], ["--no_save_patch"]),
        (["erase", "train", "--method", "esd-"], ["esd-x", "esd-x-strict", "esd-u"]),
        (["erase", "evaluate", "--guard", "saf"], ["safree"]),
        (["erase", "classify", "--forget_f"], ["--forget_fraction"]),
        (["erase", "completion", "z"], ["zsh"]),
    ]:
        assert completed(words, script) == right


def outside(arguments: list[str], folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run Python in a folder without `erase.py`, as whoever installed a wheel would."""
    known = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=folder, env=known, encoding="utf-8"
    )


def test_the_package_runs_as_a_module(tmp_path: Path) -> None:
    flags = ["train", "--pretrained_model_name_or_path", "canvas", "--concept", "cat", "--print_config"]
    shown = outside(["-m", "erase", *flags], tmp_path)
    assert shown.returncode == 0 and yaml.safe_load(shown.stdout)["method"] == "recommended"
    wrong = outside(["-m", "erase", "traim"], tmp_path)
    assert wrong.returncode == 2 and wrong.stderr.startswith("erase: unknown command 'traim'. Did you mean train?")


def test_accelerate_launches_the_package_as_a_module(tmp_path: Path) -> None:
    launch = ["-m", "accelerate.commands.launch", "--num_processes", "2", "--cpu", "--module", "erase"]
    flags = ["train", "--pretrained_model_name_or_path", "canvas", "--concept", "cat", "--print_config"]
    done = outside([*launch, *flags], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("# All settings") == 1 and yaml.safe_load(done.stdout)["concept"] == ["cat"]


def test_a_console_that_lacks_a_sign_shows_another() -> None:
    code = "from erase.cli import main; import erase.cli as cli; cli.DESCRIPTION = 'a ≥ b — c ↓'; main(['--help'])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, cwd=ROOT, env=os.environ | {"PYTHONIOENCODING": "cp1252"}
    )
    assert done.stdout.decode("cp1252").strip() == "a ? b — c ?"
