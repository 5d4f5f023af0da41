"""A run folder as a report finds it: pictures, records, figures, mask and losses, drawn and counted here."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from erase.evaluate.statistics import mcnemar, rate
from erase.files import append_lines, write_json
from erase.saliency.mask import SaliencyMask

NASTY = 'a "cat", <b>bold</b></script>\n<script>alert(1)</script> & été 猫'
TARGETS, RETAINED = 8, 6


def make_record(at: int, model: str) -> dict[str, Any]:
    """The base draws every cat; the erased model draws one of them still, and everything else as it should."""
    is_target = at < TARGETS
    asked = "cat" if is_target else "dog"
    seen = "cow" if is_target and model == "erased" and at > 0 else asked
    return {
        "id": f"row-{at}",
        "prompt": NASTY if at == 1 else f"a {asked} number {at}",
        "seed": 2**31 + at,
        "height": 48,
        "width": 48,
        "guidance_scale": 4.0,
        "num_inference_steps": 5,
        "file": f"images/row-{at}.png",
        "role": "target" if is_target else "retain",
        "object": asked,
        "domains": ["object"],
        "judged_object": seen,
    }


def draw_folder(folder: Path, model: str) -> list[dict[str, Any]]:
    """Pictures, records and the scores of one model."""
    records = [make_record(at, model) for at in range(TARGETS + RETAINED)]
    (folder / "images").mkdir(parents=True)
    for at, record in enumerate(records):
        pixels = np.random.default_rng(at).integers(0, 256, (48, 48, 3), np.uint8)
        Image.fromarray(pixels if model == "base" else 255 - pixels).save(folder / record["file"])
    append_lines(folder / "records.jsonl", records)
    return records


def flags_of(records: list[dict[str, Any]]) -> dict[str, list[bool]]:
    target, retain = (([r for r in records if r["role"] == role]) for role in ("target", "retain"))
    return {
        "ua": [r["judged_object"] != "cat" for r in target],
        "ira": [r["judged_object"] == r["object"] for r in retain],
    }


def write_metrics(evaluation: Path, records: dict[str, list[dict[str, Any]]]) -> None:
    flags = {model: flags_of(of) for model, of in records.items()}
    metrics: dict[str, Any] = {
        model: {key: asdict(rate(answers)) for key, answers in of.items()} for model, of in flags.items()
    }
    metrics["paired"] = {key: asdict(mcnemar(flags["base"][key], flags["erased"][key])) for key in flags["base"]}
    details: dict[str, Any] = {model: {"classes": {"dog": {"right": RETAINED, "n": RETAINED}}} for model in flags}
    details["erased"] |= {"turns_into": {"cat": {"cow": TARGETS - 1, "cat": 1}}}
    metrics["details"] = {"canvas": details}
    metrics |= {"concepts": ["cat"], "protocol": {"name": "canvas", "num_images": TARGETS + RETAINED, "seeds": [1, 2]}}
    write_json(evaluation / "metrics.json", metrics)


def build_run(folder: Path) -> Path:
    """A run folder with everything that a report can show."""
    evaluation = folder / "evaluation"
    write_metrics(evaluation, {model: draw_folder(evaluation / model, model) for model in ("base", "erased")})
    models = {model: {"name": f"models/{model}", "sha256": "ab" * 32} for model in ("base", "erased")}
    made = {"models": models, "packages": {"torch": "2"}, "seconds": {"draw": 1}, "command": 'erase evaluate "x"',
            "date": "2026-11-28T10:00:00+00:00"}  # fmt: skip
    write_json(evaluation / "evaluation.json", made)
    run = {"base": "canvas", "concepts": ["cat"], "method": "salun", "date": "2026-11-28T09:00:00+00:00"}
    write_json(folder / "manifest.json", run | {"command": "erase train --concept cat"})
    (folder / "config.yaml").write_text("concept:\n- cat\nnote: </pre><script>alert(2)</script>\n")
    history = [{"step": at + 1, "forget": 1.0 / (at + 1), "retain": 0.5, "lr": 1e-3} for at in range(500)]
    write_json(folder / "losses.json", history)
    scores = {"down_blocks.0.conv.weight": torch.arange(8.0), "mid_block.attn.weight": torch.arange(8.0) / 2}
    SaliencyMask.from_scores(scores, density=0.25, metadata={"concept": "cat"}).save(folder / "mask.safetensors")
    return folder
