"""What an evaluation leaves on disk: raw records, metrics that can be recomputed from them, and a table to read."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file

from ..files import atomic_save, write_json, write_text
from .canvas import EvaluationRow
from .statistics import Interval

_DESCRIPTIONS = {
    "ua": ("UA ↑", "the erased concept is gone"),
    "ua_coherent": ("UA coherent ↑", "gone, and still a proper picture"),
    "ua_paraphrase": ("UA paraphrased ↑", "gone in wordings never trained on"),
    "ira": ("IRA ↑", "the other concepts of its kind are kept"),
    "cra": ("CRA ↑", "the other kind survives in erased prompts"),
    "cra_retained": ("CRA retained ↑", "the other kind is kept in kept prompts"),
    "coherence": ("coherence ↑", "proper pictures, of all"),
    "coherence_target": ("  erased prompts", ""),
    "coherence_retain": ("  kept prompts", ""),
    "fd_canvas": ("FD-canvas ↓", "distance of kept pictures to the base's"),
}


def write_records(path: Path, records: Sequence[dict[str, Any]], features: np.ndarray) -> None:
    """One JSON line a picture in `path`, and the pictures' features (N, d) in a .safetensors file beside it."""
    if len(records) != len(features):
        raise ValueError(f"One feature row a record is needed, got {len(features)} for {len(records)} records.")
    atomic_save({"features": torch.from_numpy(features)}, path.with_suffix(".safetensors"))
    write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def load_records(path: Path) -> tuple[list[dict[str, Any]], np.ndarray]:
    """The records and features (N, d) that `write_records` wrote."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    features = load_file(path.with_suffix(".safetensors"))["features"]
    if len(records) != len(features):
        raise ValueError(f"{path} has {len(records)} records but {len(features)} feature rows; evaluate again.")
    return records, features


def write_metrics(
    path: Path, base: Mapping[str, Interval], erased: Mapping[str, Interval], extra: Mapping[str, Any]
) -> None:
    """metrics.json: base and erased with their intervals, and what else belongs to them (turns_into, protocol)."""
    models = {"base": base, "erased": erased}
    figures = {model: {key: asdict(figure) for key, figure in metrics.items()} for model, metrics in models.items()}
    write_json(path, figures | dict(extra))


def protocol(rows: Sequence[EvaluationRow], steps: int, guidance_scale: float) -> dict[str, Any]:
    """How the pictures were made, for metrics.json."""
    counts = {role: sum(row.role == role for row in rows) for role in ("target", "retain")}
    return {
        "scheduler": "the pipeline's own",
        "steps": steps,
        "guidance_scale": guidance_scale,
        "num_target_images": counts["target"],
        "num_retain_images": counts["retain"],
        "num_prompts": len({row.prompt for row in rows}),
        "held_out_wordings": sum(row.held_out_template for row in rows),
        "seeds": [min(row.seed for row in rows), max(row.seed for row in rows)],
        "intervals": "95 %: Wilson over pictures for rates, bootstrap over object × style combinations for FD-canvas",
    }


def metrics_table(base: Mapping[str, Interval], erased: Mapping[str, Interval]) -> str:
    """Base beside erased, with 95 % intervals; rates in per cent."""
    rows = [("", "base", "erased", "n", "")]
    for key, (label, description) in _DESCRIPTIONS.items():
        if key in erased:
            as_rate = key != "fd_canvas"
            cells = (_cell(base[key], as_rate), _cell(erased[key], as_rate))
            rows.append((label, *cells, str(erased[key].n), description))
    widths = [max(len(row[at]) for row in rows) for at in range(4)]
    lines = []
    for label, *figures, description in rows:
        aligned = [f"{figure:>{width}}" for figure, width in zip(figures, widths[1:], strict=True)]
        lines.append("   ".join([f"{label:<{widths[0]}}", *aligned, description]).rstrip())
    rule = "─" * max(map(len, lines))
    foot = "Rates in % with 95 % intervals. Base and erased share prompts and seeds."
    return "\n".join([lines[0], rule, *lines[1:], rule, foot])


def _cell(figure: Interval, as_rate: bool) -> str:
    if as_rate:
        return f"{100 * figure.value:5.1f} [{100 * figure.low:5.1f}, {100 * figure.high:5.1f}]"
    return f"{figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}]"
