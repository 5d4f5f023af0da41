"""Pictures to scores: what a scorer and a metric are, and the loop that runs scorers over a folder of pictures.

A scorer looks at pictures and keeps raw answers (detections, logits, features); a metric counts them. Raw answers are
stored, so every threshold and rate can be derived again without the network that gave them.
"""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from tqdm.auto import tqdm

from ..files import append_lines, atomic_path, file_sha256, read_json_lines, write_json, write_text
from ..ledger import note
from ..pictures import read_picture
from .statistics import Interval

Record = dict[str, Any]
"""One picture: its prompt row, `file` with its `sha256`, and whatever scorers found."""

RECORDS_FILE = "records.jsonl"
SCORES_DIR = "scores"
READ_AHEAD = 2
"""Batches that are decoded while one is scored."""
HASHED_AT_ONCE = 64
"""Files that are hashed between two looks at Ctrl-C."""


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


def load_records(folder: Path) -> list[Record]:
    """The records of a folder of pictures, in their order."""
    path = folder / RECORDS_FILE
    if not path.is_file():
        raise ValueError(f"{folder} holds no {RECORDS_FILE}; give a folder that `erase generate` wrote.")
    return read_json_lines(path)


def write_records(folder: Path, records: Sequence[Record]) -> None:
    """Write records.jsonl anew."""
    write_text(folder / RECORDS_FILE, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def hashed_records(folder: Path, progress: bool = True) -> list[Record]:
    """The folder's records after a look at the pictures' bytes; records without a sha256 get one, on disk too."""
    records = load_records(folder)
    digests = picture_hashes([folder / record["file"] for record in records], progress)
    for record, digest in zip(records, digests):
        if record.get("sha256", digest) != digest:
            raise ValueError(
                f"{folder / record['file']} has been changed since its record was written. Remove it to have it drawn "
                "again, or score the pictures as they are now from another folder, with --images."
            )
    if any("sha256" not in record for record in records):
        records = [record | {"sha256": digest} for record, digest in zip(records, digests)]
        write_records(folder, records)
    return records


def picture_hashes(paths: Sequence[Path], progress: bool = True) -> list[str]:
    """sha256 of each file; ValueError names one that is missing."""
    if missing := next((path for path in paths if not path.is_file()), None):
        raise ValueError(f"{missing} is missing though {RECORDS_FILE} names it; run the command that made it again.")
    found: list[str] = []
    # Only large folders take so long that somebody wonders.
    with ThreadPoolExecutor() as pool, tqdm(total=len(paths), desc="hash", disable=not progress, delay=2) as bar:
        for first in range(0, len(paths), HASHED_AT_ONCE):
            found += pool.map(file_sha256, paths[first : first + HASHED_AT_ONCE])
            bar.update(len(found) - first)
    return found


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


def distinct_scorers(scorers: Sequence[Scorer]) -> list[Scorer]:
    """One scorer a name; two of one name must be the same."""
    found: dict[str, Scorer] = {}
    for scorer in scorers:
        twin = found.setdefault(scorer.name, scorer)
        if twin is not scorer and twin.fingerprint() != scorer.fingerprint():
            raise ValueError(f"Two metrics ask for {scorer.name!r} with different settings; run them one at a time.")
    return list(found.values())


def by_column(records: Sequence[Mapping[str, Any]], column: str) -> list[str]:
    """The values of a column as cluster names (prompts share pictures, so intervals are drawn over prompts).

    A record without a value, such as a picture without a prompt, is a cluster by itself.
    """
    return [str(record[column]) or f"picture {record['id']}" for record in records]
