"""What scorers say of pictures, kept on disk beside them: raw answers, appended batch by batch.

A scorer looks at pictures and keeps raw answers (detections, logits, features), so that every threshold and rate can be
derived again without the network that gave them.
"""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..files import append_lines, atomic_path, read_json_lines, write_json, write_text
from ..ledger import note
from .records import Record

SCORES_DIR = "scores"


@dataclass(frozen=True)
class Answers:
    """What a scorer says of one batch."""

    columns: list[Record]
    """Per picture: JSON values."""
    features: np.ndarray | None = None
    """(B, d) float32, for scorers with `dimensions`."""


class Scorer(ABC):
    """A network (or rule) that looks at pictures; it loads its weights on first use."""

    name: ClassVar[str]
    """File stem under scores/."""
    beside: ClassVar[bool] = False
    """Whether it works on the processor, and so can look at pictures while an accelerator draws the next ones."""
    dimensions: int | None = None
    """d of the features that it gives beside its columns; known before the first batch."""

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """What decides the answers: weights' sha256, versions, settings. Stored answers of another one are refused."""

    def question(self, record: Record) -> Record:
        """What else decides the answer to one picture; it is stored with the answer, which serves no other question."""
        return {"sha256": record["sha256"]}

    @abstractmethod
    def score(self, pictures: Sequence[np.ndarray], records: Sequence[Record]) -> Answers:
        """Answers for uint8 RGB pictures, each (H, W, 3) and of any size, and their records."""


class ScoreFile:
    """Answers of one scorer on disk: appended batch by batch, whole after a crash up to its last batch.

    Line n of the answers belongs to row n of the features.
    """

    def __init__(self, folder: Path, scorer: Scorer):
        scores = folder / SCORES_DIR
        scores.mkdir(parents=True, exist_ok=True)
        self.scorer = scorer
        self.path, self.features = scores / f"{scorer.name}.jsonl", scores / f"{scorer.name}.f32"
        self._describe(scores / f"{scorer.name}.json")
        self._lines = read_json_lines(self.path) if self.path.exists() else []
        if scorer.dimensions and not self._has_features(scorer.dimensions):
            self._lines = []
            self.path.unlink(missing_ok=True)
        self._places = {line["id"]: row for row, line in enumerate(self._lines)}
        self._cut()

    def _describe(self, path: Path) -> None:
        """Write down what gives the answers; ValueError where it was something else."""
        now = self.scorer.fingerprint() | ({"dimensions": d} if (d := self.scorer.dimensions) else {})
        if not path.exists():
            write_json(path, now)
        elif (stored := json.loads(path.read_text(encoding="utf-8"))) != now:
            raise ValueError(f"{self.path} was made with other settings; delete it with its {path.name} to score "
                             f"again, or choose another folder.\n  then: {stored}\n  now:  {now}")  # fmt: skip

    def _has_features(self, dimensions: int) -> bool:
        """Whether each line has its row; fewer rows are what a crash in `keep` leaves, and then no line has its own."""
        there = self.features.stat().st_size if self.features.exists() else 0
        return there >= len(self._lines) * dimensions * 4

    def _cut(self) -> None:
        """Cut off features that a crash left without a line."""
        if self.scorer.dimensions and self.features.exists():
            with self.features.open("r+b") as file:
                file.truncate(len(self._lines) * self.scorer.dimensions * 4)

    def has(self, record: Record) -> bool:
        """Whether there is an answer to this record's question."""
        row = self._places.get(record["id"])
        asked = self.scorer.question(record)
        return row is not None and {name: self._lines[row].get(name) for name in asked} == asked

    def keep(self, records: Sequence[Record]) -> None:
        """Drop the answers to all other questions: features first, so that a crash in between leaves too few rows."""
        rows = sorted(self._places[record["id"]] for record in records if self.has(record))
        if len(rows) == len(self._lines):
            return
        if width := 4 * (self.scorer.dimensions or 0):
            with atomic_path(self.features) as kept, kept.open("wb") as new, self.features.open("rb") as old:
                for row in rows:
                    old.seek(row * width)
                    new.write(old.read(width))
        self._lines = [self._lines[row] for row in rows]
        self._places = {line["id"]: row for row, line in enumerate(self._lines)}
        write_text(self.path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in self._lines))

    def append(self, records: Sequence[Record], answers: Answers) -> None:
        """Features first: a line without its features would be believed, features without a line are cut off."""
        if self.scorer.dimensions:
            assert answers.features is not None and answers.features.shape == (len(records), self.scorer.dimensions)
            with self.features.open("ab") as file:
                file.write(np.ascontiguousarray(answers.features, np.float32).tobytes())
                file.flush()
                os.fsync(file.fileno())
            note(self.features, grows=True)
        lines = [{"id": r["id"]} | self.scorer.question(r) | columns for r, columns in zip(records, answers.columns)]
        append_lines(self.path, lines)
        for line in lines:
            self._places[line["id"]] = len(self._lines)
            self._lines.append(line)


def distinct_scorers(scorers: Sequence[Scorer]) -> list[Scorer]:
    """One scorer a name; two of one name must be the same."""
    found: dict[str, Scorer] = {}
    for scorer in scorers:
        twin = found.setdefault(scorer.name, scorer)
        if twin is not scorer and twin.fingerprint() != scorer.fingerprint():
            raise ValueError(f"Two metrics ask for {scorer.name!r} with different settings; run them one at a time.")
    return list(found.values())
