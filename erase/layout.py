"""Where things lie: what the package ships with, and the names of the files that pass between stages."""

from pathlib import Path

PACKAGE = Path(__file__).parent

CONFIG_FILE = "config.yaml"
"""Settings of a run or of `erase classify`, in its folder."""
MANIFEST_FILE = "manifest.json"
"""What a run was made with, written last."""
MASK_FILE = "mask.safetensors"
"""Which weights could change."""
LOSSES_FILE = "losses.json"
"""Losses of every training step."""
EVALUATION_DIR = "evaluation"
"""The proof in a run's folder."""
EVALUATION_FILE = "evaluation.json"
"""Where an evaluation's figures come from, written last."""
METRICS_FILE = "metrics.json"
"""Figures of an evaluation."""
GRID_FILE = "grid.png"
"""The same seeds, base above erased."""


def shipped(name: str) -> Path:
    """The folder of that name which ships with the package: inside a wheel, or beside the package in a checkout."""
    return next(folder for folder in (PACKAGE / name, PACKAGE.parent / name) if folder.is_dir())
