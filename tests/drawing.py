"""Rows, a scorer and looks at a folder, for the tests that draw with tiny pipelines."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from erase.draw.answers import Answers, Scorer
from erase.draw.prompts import PromptRow
from erase.draw.records import Record

TinyFolder = Callable[[str], Path]


def prompt_rows(count: int = 10, **changes: Any) -> list[PromptRow]:
    """Rows of two sizes and guidances, in turns, with seeds beyond 2³¹."""
    return [
        PromptRow(
            id=f"r{n}",
            prompt=f'cat {n},\n"sat"',
            seed=2**31 + 2**40 * (n % 2) + n,
            guidance_scale=4.0 + (n % 3 == 0),
            num_inference_steps=2,
            **_size(n) | {"extra": {"role": "target"}} | changes,
        )
        for n in range(count)
    ]


def _size(n: int) -> dict[str, int]:
    return {"height": 16, "width": 24} if n % 4 == 3 else {}


def picture(folder: Path, record: Record) -> np.ndarray:
    return np.asarray(Image.open(folder / record["file"])).astype(int)


def named_only(records: Sequence[Record]) -> list[Record]:
    """Records without what their pictures are: other batches differ in the last bit of a pixel."""
    return [{key: value for key, value in record.items() if key != "sha256"} for record in records]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file's bytes, but generation.json's, which names the model's path."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "generation.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


class Mean(Scorer):
    """The mean of each picture, as column and feature."""

    name = "mean"
    dimensions = 1

    def __init__(self, fail_at: str | None = None):
        self.fail_at, self.seen, self.threads = fail_at, [], set()

    def fingerprint(self) -> dict[str, Any]:
        return {"version": 1}

    def score(self, pictures: Sequence[np.ndarray], records: Sequence[Record]) -> Answers:
        if self.fail_at in [record["id"] for record in records]:
            raise RuntimeError("the detector broke")
        self.seen += [record["id"] for record in records]
        self.threads.add(threading.current_thread())
        means = [float(p.mean()) for p in pictures]
        return Answers([{"mean": mean} for mean in means], np.array(means, np.float32)[:, None])
