"""Stands in for `erase` in the tests of `erase compare`: writes the files that a run writes, in a moment.

FAKE (JSON in the environment): `log`, a file of lines that say what starts and ends on which cores; `fail`, methods
that end with status 3; `hang`, methods that write a checkpoint and then wait, unless they are resumed; `meet`, how many
starts the log must have before a run ends; `figures`, method → figures; `cost`, method → seconds of training.
"""

import json
import os
import struct
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import yaml

FAKE: dict[str, Any] = json.loads(os.environ.get("FAKE", "{}"))
FIGURES = ("ua", "ua_coherent", "ira", "cra", "coherence", "fd_canvas")
BASE = {"ua": 0.0, "ua_coherent": 0.0, "ira": 0.995, "cra": 1.0, "coherence": 0.987, "fd_canvas": 1.25}
OBJECTS = ("cat", "dog", "car", "house", "tree", "apple", "fish", "rocket")
STYLES = ("photo", "neon", "sketch", "pixel art")
NUM = 8
WIDTH = 0.02
"""Half the width of every figure's interval."""


def flags_of(tokens: list[str]) -> dict[str, str]:
    pairs = zip(tokens, [*tokens[1:], "--"])
    return {a[2:]: "" if b.startswith("--") else b for a, b in pairs if a.startswith("--")}


def png(pixels: list[tuple[int, int, int]], side: int) -> bytes:
    rows = (b"\0" + bytes(v for p in pixels[at : at + side] for v in p) for at in range(0, side * side, side))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b"".join(rows)))
        + chunk(b"IEND", b"")
    )


def picture(obj: str, style: str, side: int = 32) -> bytes:
    """A disc of the object's colour on the style's ground."""
    ground = [(236, 232, 220), (20, 16, 34), (250, 250, 250), (180, 210, 240)][STYLES.index(style)]
    at = OBJECTS.index(obj)
    colour = (40 + 97 * at % 200, 60 + 61 * at % 180, 50 + 139 * at % 190)
    inside = [(x - side / 2) ** 2 + (y - side / 2) ** 2 < (side / 3) ** 2 for y in range(side) for x in range(side)]
    return png([colour if i else ground for i in inside], side)


def record(at: int, erased: bool) -> dict[str, Any]:
    is_target = at < NUM
    obj, style = "cat" if is_target else OBJECTS[1 + at % 7], STYLES[at % 4]
    seen = "dog" if is_target and erased and at != 2 else obj
    return {
        "id": f"row-{at:02d}", "prompt": f"a {obj}, {style} & <b>more</b>", "seed": 10_000 + at, "height": 32,
        "width": 32, "guidance_scale": 4.0, "num_inference_steps": 25, "file": f"images/row-{at:02d}.png",
        "role": "target" if is_target else "retain", "object": obj, "style": style, "domains": ["object"],
        "judged_object": seen, "judged_style": style,
    }  # fmt: skip


def draw(folder: Path, erased: bool) -> None:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    records = [record(at, erased) for at in range(2 * NUM)]
    for one in records:
        (folder / one["file"]).write_bytes(picture(one["judged_object"], one["style"]))
    (folder / "records.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))


def evaluate(folder: Path, name: str, seed: int | None) -> None:
    figures = FAKE.get("figures", {}).get(name, BASE if name == "base" else {"ua_coherent": 0.9, "ira": 0.98})
    values = {key: figures.get(key, BASE[key]) for key in FIGURES}
    shift = 0.002 * (seed or 0)
    erased = {key: value + (shift if name != "base" else 0) for key, value in values.items()}
    for model in ("base", "erased"):
        draw(folder / model, model == "erased" and name != "base")
    metrics: dict[str, Any] = {
        model: {key: {"value": v, "low": max(0, v - WIDTH), "high": v + WIDTH, "n": 8} for key, v in of.items()}
        for model, of in (("base", BASE), ("erased", erased))
    }
    metrics |= {"concepts": ["cat"], "protocol": {
        "name": "canvas", "num_target_images": 204, "num_kept_images": 570, "scheduler": "default", "steps": 25,
        "guidance_scale": 4.0, "seeds": [10_000, 10_203], "sensitive": False}}  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(metrics))
    made = {"models": {"base": {"name": "canvas", "sha256": "ab" * 32}}, "packages": {"torch": "2"}, "device": "cpu"}
    (folder / "evaluation.json").write_text(json.dumps(made))


def note(what: str, name: str) -> None:
    if "log" in FAKE:
        with Path(FAKE["log"]).open("a") as log:
            cores = sorted(os.sched_getaffinity(0))
            log.write(json.dumps({"what": what, "name": name, "cores": cores}) + "\n")


def wait_for_others() -> None:
    deadline = time.monotonic() + 30
    while FAKE.get("meet") and Path(FAKE["log"]).read_text().count('"start"') < FAKE["meet"]:
        if time.monotonic() > deadline:
            sys.exit("the others never came")
        time.sleep(0.02)


def train(flags: dict[str, str], job: dict[str, Any]) -> None:
    out = Path(flags["output_dir"])
    out.mkdir(parents=True, exist_ok=True)
    resumed = flags.get("resume_from_checkpoint")
    settings = job["settings"]["train"] | {"resume_from_checkpoint": resumed, "output_dir": str(out)}
    (out / "config.yaml").write_text(yaml.safe_dump(settings))
    if job["method"] in FAKE.get("hang", ()) and not resumed:
        (out / "checkpoint-100").mkdir()
        (out / "checkpoint-100" / "state.safetensors").write_bytes(b"weights")
        note("hang", job["method"])
        time.sleep(60)
    if job["method"] in FAKE.get("fail", ()):
        sys.stderr.write("step 1\rstep 2\rstep 3\nout of memory: <buy> more\n")
        sys.exit(3)
    wait_for_others()
    if "proof" in job["settings"]["train"] and job["settings"]["train"]["proof"]:
        evaluate(out / "evaluation", job["method"], job["seed"])
    cost = FAKE.get("cost", {}).get(job["method"], 30.0) + job["seed"]
    edits = job["kind"] == "closed-form"
    spent = {"load": 1.0, "data": 5.0, "export": 1.0} | ({"edit": cost} if edits else {"mask": 2.0, "train": cost})
    (out / "manifest.json").write_text(json.dumps({"seconds": spent, "peak_bytes": 10**9, "method": flags["method"]}))


def main() -> None:
    command, flags = sys.argv[1], flags_of(sys.argv[2:])
    run = Path(flags["output_dir"])
    run = run.parent if command == "evaluate" else run
    job = json.loads(run.with_name(f"{run.name}.json").read_text())
    name = job["method"] if job["seed"] is None else f"{job['method']}-{job['seed']}"
    note("start", name)
    if command == "train":
        train(flags, job)
    else:
        evaluate(Path(flags["output_dir"]), job["method"], job["seed"])
    note("end", name)


if __name__ == "__main__":
    main()
