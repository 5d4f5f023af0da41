"""Pictures to figures: the loop that runs scorers over a folder of pictures, and what a metric makes of the answers."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from tqdm.auto import tqdm

from ..data.pictures import read_picture
from ..draw.answers import SCORES_DIR, ScoreFile, Scorer, distinct_scorers
from ..draw.records import Record, hashed_records, load_records
from ..files import read_json_lines
from .statistics import Interval

READ_AHEAD = 2
"""Batches that are decoded while one is scored."""


@dataclass(frozen=True)
class Scored:
    """A folder's records joined with what the scorers said of them, in the order of the records."""

    folder: Path
    records: list[Record]
    features: dict[str, np.ndarray] = field(default_factory=dict)
    """Scorer name → (N, d) float32, mapped from disk rather than read."""

    def where(self, **columns: Any) -> "Scored":
        """The pictures whose record has these values."""
        rows = [at for at, r in enumerate(self.records) if all(r.get(key) == want for key, want in columns.items())]
        return Scored(self.folder, [self.records[at] for at in rows], {k: v[rows] for k, v in self.features.items()})


@dataclass(frozen=True)
class Summary:
    """What a metric says of one model."""

    figures: dict[str, Interval]
    """Name → value with its 95 % interval."""
    flags: dict[str, list[bool]] = field(default_factory=dict)
    """Yes-or-no answers per picture, in a fixed order: base and erased are compared pair by pair."""
    details: dict[str, Any] = field(default_factory=dict)
    """JSON values that tables and plots are made of (counts per body part, what pictures turned into)."""


class Metric(ABC):
    """One family of figures: the scorers that it needs and a pure count over their answers."""

    name: ClassVar[str]
    """As in a protocol's `metrics` and in `--metrics`."""

    @abstractmethod
    def scorers(self) -> list[Scorer]:
        """What must have looked at the pictures; two metrics may name equal scorers."""

    def check(self, records: Sequence[Mapping[str, Any]]) -> None:  # noqa: B027 — most metrics take any records
        """Refuse rows that cannot be counted, before their pictures are drawn or scored."""

    @abstractmethod
    def summarize(self, scored: Scored, base: Scored | None = None) -> Summary:
        """Figures of one model; `base` are the base model's pictures of the same rows, where the metric needs them."""


def score_folder(folder: Path, scorers: Sequence[Scorer], batch_size: int = 32, progress: bool = True) -> Scored:
    """Run the scorers over the pictures of `folder`, whose files are hashed: what is stored of the same picture is not
    asked again. ValueError for a picture that is not the one that its record is about.
    """
    return score_records(folder, hashed_records(folder, progress), scorers, batch_size, progress)


def score_records(
    folder: Path, records: list[Record], scorers: Sequence[Scorer], batch_size: int = 32, progress: bool = True
) -> Scored:
    """The same for the folder's records, whose sha256 were just taken."""
    for scorer in distinct_scorers(scorers):
        _score_missing(folder, records, scorer, batch_size, progress)
    return load_scored(folder)


def load_scored(folder: Path) -> Scored:
    """Records with the columns of every scorer that has seen all of these pictures; features are mapped from disk."""
    records = load_records(folder)
    features: dict[str, np.ndarray] = {}
    for path in sorted((folder / SCORES_DIR).glob("*.jsonl")):
        lines = read_json_lines(path)
        places = {line["id"]: row for row, line in enumerate(lines)}  # of several answers the last one counts
        order = [places.get(record["id"], -1) for record in records]
        if any(row < 0 or not _is_about(lines[row], record) for row, record in zip(order, records)):
            continue
        for row, record in zip(order, records):
            record.update(lines[row])
        if (stored := path.with_suffix(".f32")).is_file():
            mapped = _mapped(stored, len(lines))
            features[path.stem] = mapped if order == list(range(len(mapped))) else mapped[order]
    return Scored(folder, records, features)


def _is_about(answer: Record, record: Record) -> bool:
    """Whether a stored answer is about this very picture and, where it depends on the prompt, this prompt."""
    prompt = record.get("prompt")
    return answer.get("sha256") == record.get("sha256") and answer.get("prompt", prompt) == prompt


def _mapped(stored: Path, rows: int) -> np.ndarray:
    """(rows, d) features; what lies behind them is of a batch that a crash kept from being noted."""
    described = stored.with_suffix(".json")
    dimensions = json.loads(described.read_text(encoding="utf-8")).get("dimensions")
    if dimensions is None:
        raise ValueError(f"{described} says not how long a row of {stored.name} is, as files of older versions do not; "
                         "delete both and score the pictures again.")  # fmt: skip
    return np.memmap(stored, np.float32, "r", shape=(rows, dimensions))


def _score_missing(folder: Path, records: list[Record], scorer: Scorer, batch_size: int, progress: bool) -> None:
    file = ScoreFile(folder, scorer)
    file.keep(records)
    missing = [record for record in records if not file.has(record)]
    batches = [missing[first : first + batch_size] for first in range(0, len(missing), batch_size)]
    shown = bool(progress and missing)
    with tqdm(total=len(missing), desc=f"scoring, {scorer.name}", unit="picture", disable=not shown) as bar:
        for batch, pictures in zip(batches, decoded(folder, batches)):
            file.append(batch, scorer.score(pictures, batch))
            bar.update(len(batch))


def decoded(folder: Path, batches: Sequence[Sequence[Record]]) -> Iterator[list[np.ndarray]]:
    """The pictures of each batch, a few batches read ahead of the consumer."""
    with ThreadPoolExecutor(2) as pool:
        waiting = []
        for at in range(len(batches) + READ_AHEAD):
            if at < len(batches):
                waiting.append([pool.submit(read_picture, folder / record["file"]) for record in batches[at]])
            if at >= READ_AHEAD:
                yield [future.result() for future in waiting.pop(0)]


def by_column(records: Sequence[Mapping[str, Any]], column: str) -> list[str]:
    """The values of a column as cluster names (prompts share pictures, so intervals are drawn over prompts).

    A record without a value, such as a picture without a prompt, is a cluster by itself.
    """
    return [str(record[column]) or f"picture {record['id']}" for record in records]
