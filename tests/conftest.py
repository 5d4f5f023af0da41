"""Shared fixtures. Nothing is downloaded, and the tests leave a processor to others."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before any import of huggingface_hub

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from drawing import TinyFolder, prompt_rows
from erase import EraseConfig, erase
from erase.draw.generate import generate
from erase.draw.pipelines import ModelSource
from erase.draw.prompts import PromptRow
from erase.draw.records import Record
from erase.trained.trainer import Trainer
from tiny import FAMILIES

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


@pytest.fixture(autouse=True)
def fresh_accelerator_state() -> None:
    """Each test chooses its precision anew; accelerate keeps the first choice of a process."""
    AcceleratorState._reset_state()


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[EraseConfig], None]:
    """Make a run that somebody stops at its third step."""

    def run(config: EraseConfig) -> None:
        step = Trainer._step

        def stop_at_three(self: Trainer) -> dict[str, float]:
            if self.step == 2:
                raise KeyboardInterrupt
            return step(self)

        with monkeypatch.context() as patched:
            patched.setattr(Trainer, "_step", stop_at_three)
            with pytest.raises(KeyboardInterrupt):
                erase(config)

    return run


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`tiny("sdxl")` is the folder of that family's toy pipeline, built on first use; treat it as read-only."""
    built: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in built:
            path = tmp_path_factory.mktemp("tiny") / family
            FAMILIES[family](path)
            built[family] = path
        return built[family]

    return folder


@pytest.fixture
def drawn(tiny: TinyFolder, tmp_path: Path) -> Callable[..., list[Record]]:
    """generate() with the tiny pipeline, into `out` below the test's folder."""

    def run(
        rows: Sequence[PromptRow] | None = None, out: str = "out", source: ModelSource | None = None, **options: Any
    ) -> list[Record]:
        source = source or ModelSource(pretrained_model_name_or_path=str(tiny("sd1")))
        options = {"accelerator": Accelerator(cpu=True), "batch_size": 4, "progress": False} | options
        return generate(prompt_rows() if rows is None else rows, source, tmp_path / out, **options)

    return run
