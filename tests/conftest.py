"""Shared fixtures. Nothing is downloaded, and the tests leave a processor to others."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before any import of huggingface_hub

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from tiny import FAMILIES

torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def fresh_accelerator_state() -> None:
    """Each test chooses its precision anew; accelerate keeps the first choice of a process."""
    AcceleratorState._reset_state()


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
