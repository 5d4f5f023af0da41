"""Checkpoints of a run: one safetensors file with the salient weights, their Adam moments and the losses so far.

Smaller than accelerate's `save_state` (which writes the whole model and pickles), atomic, and exact: what a step sees
depends on (seed, step) alone, so nothing else is needed to end bit-equal to a run that was never interrupted.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import atomic_save, read_safetensors
from ..output import changes
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


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """What a checkpoint holds of a run, and what it is put back into."""

    trainable: Mapping[str, Tensor]
    """Name → parameter that the optimiser moves."""
    masks: Mapping[str, Tensor]
    """Name → which of its weights."""
    optimizer: MaskedAdamW
    """Holds their moments."""
    identity: Mapping[str, str]
    """What a checkpoint must agree with: hashes of base, mask and data, the settings as JSON."""
    scaler: Any = None
    """Gradient scaler of fp16."""


def save_checkpoint(
    output_dir: Path, state: TrainState, step: int, history: list[dict[str, float]], limit: int | None = None
) -> None:
    """Write output_dir/checkpoint-{step}/state.safetensors, then drop the oldest checkpoints beyond `limit`."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in state.trainable.items():
        tensors[f"weight/{name}"] = parameter.detach()[state.masks[name]]
        for key in ("exp_avg", "exp_avg_sq"):
            if key in state.optimizer.state[parameter]:
                tensors[f"{key}/{name}"] = state.optimizer.state[parameter][key].reshape(-1)
    metadata = dict(state.identity) | {
        "format": "erase.checkpoint/1",
        "step": str(step),
        "history": json.dumps(history),
        "scaler": json.dumps(state.scaler.state_dict() if state.scaler else {}),
    }
    atomic_save({k: v.cpu() for k, v in tensors.items()}, output_dir / f"checkpoint-{step}" / STATE_FILE, metadata)
    for old in list_checkpoints(output_dir)[: -limit if limit else 0]:
        remove_checkpoint(old)


def remove_checkpoint(checkpoint: Checkpoint) -> None:
    """Remove a checkpoint's file, and its folder unless it holds something else."""
    (checkpoint.folder / STATE_FILE).unlink()
    if not any(checkpoint.folder.iterdir()):
        checkpoint.folder.rmdir()


def _changes(there: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    """What differs between two identities: settings by name, the rest by the beginning of its hash."""
    for key, value in now.items():
        if key == "settings":
            yield from changes(json.loads(there.get(key, "{}")), json.loads(value))
        elif there.get(key) != value:
            yield f"{key}: sha256 {there.get(key, 'unknown')[:12]}… there, {value[:12]}… now"


@torch.no_grad()
def load_checkpoint(checkpoint: Checkpoint, state: TrainState) -> tuple[int, list[dict[str, float]]]:
    """Put a checkpoint's weights and moments in place; returns the step and the losses so far."""
    tensors, metadata = read_safetensors(checkpoint.folder / STATE_FILE)
    if changed := list(_changes(metadata, state.identity)):
        lines = "\n  ".join(changed)
        raise ValueError(
            f"{checkpoint.folder} belongs to another run:\n  {lines}\nResume with the settings that it was started "
            "with, or start afresh in another --output_dir."
        )
    for name, parameter in state.trainable.items():
        parameter[state.masks[name]] = tensors[f"weight/{name}"].to(parameter.device)
        if f"exp_avg/{name}" in tensors:
            whole = parameter.shape if state.masks[name].all() else (-1,)
            moments = {key: tensors[f"{key}/{name}"].reshape(whole) for key in ("exp_avg", "exp_avg_sq")}
            moments["step"] = torch.tensor(float(metadata["step"]))
            state.optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in moments.items()}
    if state.scaler:
        state.scaler.load_state_dict(json.loads(metadata["scaler"]))
    return int(metadata["step"]), json.loads(metadata["history"])
