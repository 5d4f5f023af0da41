"""Checkpoints of a run: one safetensors file with the salient weights, their Adam moments and the losses so far.

Smaller than accelerate's `save_state` (which writes the whole model and pickles), atomic, and exact: what a step sees
depends on (seed, step) alone, so nothing else is needed to end bit-equal to a run that was never interrupted.
"""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .files import atomic_save, read_safetensors
from .optim import MaskedAdamW

STATE_FILE = "state.safetensors"
_FOLDER = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder and the step that it was written after."""

    folder: Path
    """output_dir/checkpoint-{step}."""
    step: int
    """Optimiser steps done."""


def list_checkpoints(output_dir: Path) -> list[Checkpoint]:
    """All whole checkpoints of a run, oldest first."""
    found = [(_FOLDER.fullmatch(path.name), path) for path in output_dir.glob("checkpoint-*")]
    whole = [Checkpoint(path, int(m[1])) for m, path in found if m and (path / STATE_FILE).is_file()]
    return sorted(whole, key=lambda checkpoint: checkpoint.step)


def find_checkpoint(name: str, output_dir: Path) -> Checkpoint:
    """The checkpoint that `--resume_from_checkpoint` names: a folder, or `latest` in output_dir."""
    found = list_checkpoints(output_dir)
    if name == "latest":
        if not found:
            raise ValueError(
                f"{output_dir} holds no checkpoint-* to resume from; start without --resume_from_checkpoint."
            )
        return found[-1]
    folder = next((path for path in (Path(name), output_dir / name) if (path / STATE_FILE).is_file()), None)
    match = _FOLDER.fullmatch(folder.name) if folder else None
    if folder is None or match is None:
        names = ", ".join(checkpoint.folder.name for checkpoint in found) or "none"
        raise ValueError(
            f"{name!r} is not a checkpoint folder; {output_dir} holds: {names}. `latest` takes the newest."
        )
    return Checkpoint(folder, int(match[1]))


def save_checkpoint(
    output_dir: Path,
    step: int,
    history: list[dict[str, float]],
    trainable: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    optimizer: MaskedAdamW,
    identity: Mapping[str, str],
    scaler: Any = None,
    limit: int | None = None,
) -> None:
    """Write output_dir/checkpoint-{step}/state.safetensors, then drop the oldest checkpoints beyond `limit`."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in trainable.items():
        tensors[f"weight/{name}"] = parameter.detach()[masks[name]]
        for key in ("exp_avg", "exp_avg_sq"):
            if key in optimizer.state[parameter]:
                tensors[f"{key}/{name}"] = optimizer.state[parameter][key].reshape(-1)
    metadata = dict(identity) | {
        "format": "erase.checkpoint/1",
        "step": str(step),
        "history": json.dumps(history),
        "scaler": json.dumps(scaler.state_dict() if scaler else {}),
    }
    atomic_save({k: v.cpu() for k, v in tensors.items()}, output_dir / f"checkpoint-{step}" / STATE_FILE, metadata)
    for old in list_checkpoints(output_dir)[: -limit if limit else 0]:
        shutil.rmtree(old.folder)


@torch.no_grad()
def load_checkpoint(
    checkpoint: Checkpoint,
    trainable: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    optimizer: MaskedAdamW,
    identity: Mapping[str, str],
    scaler: Any = None,
) -> tuple[int, list[dict[str, float]]]:
    """Put a checkpoint's weights and moments in place; returns the step and the losses so far."""
    tensors, metadata = read_safetensors(checkpoint.folder / STATE_FILE)
    for key, value in identity.items():
        if metadata.get(key) != value:
            raise ValueError(
                f"{checkpoint.folder} belongs to another run: its {key} is {metadata.get(key)}, this run's is {value}. "
                "Resume with the settings that it was started with, or start afresh in another --output_dir."
            )
    for name, parameter in trainable.items():
        parameter[masks[name]] = tensors[f"weight/{name}"].to(parameter.device)
        if f"exp_avg/{name}" in tensors:
            whole = parameter.shape if masks[name].all() else (-1,)
            moments = {key: tensors[f"{key}/{name}"].reshape(whole) for key in ("exp_avg", "exp_avg_sq")}
            state = moments | {"step": torch.tensor(float(metadata["step"]))}
            optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in state.items()}
    if scaler:
        scaler.load_state_dict(json.loads(metadata["scaler"]))
    return int(metadata["step"]), json.loads(metadata["history"])
