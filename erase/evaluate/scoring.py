"""Pictures to scores: what a scorer and a metric are, and the loop that runs scorers over a folder of pictures.

A scorer looks at pictures and keeps raw answers (detections, logits, features); a metric counts them. Raw answers are
stored, so every threshold and rate can be derived again without the network that gave them.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm.auto import tqdm

from ..files import append_lines, read_json_lines, write_json
from .statistics import Interval

Record = dict[str, Any]
"""One picture: its prompt row, `file`, and whatever scorers found."""

RECORDS_FILE = "records.jsonl"
SCORES_DIR = "scores"
READ_AHEAD = 2
"""Batches that are decoded while one is scored."""


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
        """Refuse rows that cannot be counted, before their pictures are drawn."""

    @abstractmethod
    def summarize(self, scored: Scored, base: Scored | None = None) -> Summary:
        """Figures of one model; `base` are the base model's pictures of the same rows, where the metric needs them."""


def score_folder(folder: Path, scorers: Sequence[Scorer], batch_size: int = 32, progress: bool = True) -> Scored:
    """Run the scorers over the pictures of `folder`; what is stored from an earlier run is not asked again."""
    records = load_records(folder)
    for scorer in distinct_scorers(scorers):
        _score_missing(folder, records, scorer, batch_size, progress)
    return load_scored(folder)


def load_records(folder: Path) -> list[Record]:
    """The records of a folder of pictures, in their order."""
    path = folder / RECORDS_FILE
    if not path.is_file():
        raise ValueError(f"{folder} holds no {RECORDS_FILE}; give a folder that `erase generate` wrote.")
    return read_json_lines(path)


def load_scored(folder: Path) -> Scored:
    """Records with the columns of every scorer that has seen them all, and their features mapped from disk."""
    records = load_records(folder)
    features: dict[str, np.ndarray] = {}
    for path in sorted((folder / SCORES_DIR).glob("*.jsonl")):
        answers = {row["id"]: row for row in read_json_lines(path)}
        if any(record["id"] not in answers for record in records):
            continue
        for record in records:
            record.update(answers[record["id"]])
        if (stored := path.with_suffix(".f32")).is_file():
            places = {name: row for row, name in enumerate(answers)}
            order = [places[record["id"]] for record in records]
            mapped = np.memmap(stored, np.float32, "r").reshape(len(answers), -1)
            features[path.stem] = mapped if order == list(range(len(mapped))) else mapped[order]
    return Scored(folder, records, features)


def read_picture(path: Path) -> np.ndarray:
    """uint8 RGB (H, W, 3) of a picture file."""
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"{path} cannot be read as a picture ({error}); delete it and generate it again.") from error


class ScoreFile:
    """Answers of one scorer on disk: appended batch by batch, whole after a crash up to its last batch."""

    def __init__(self, folder: Path, scorer: Scorer):
        scores = folder / SCORES_DIR
        scores.mkdir(parents=True, exist_ok=True)
        self.scorer = scorer
        self.lines, self.values = scores / f"{scorer.name}.jsonl", scores / f"{scorer.name}.f32"
        described = scores / f"{scorer.name}.json"
        if not described.exists():
            write_json(described, scorer.fingerprint())
        elif (stored := json.loads(described.read_text())) != (now := scorer.fingerprint()):
            raise ValueError(f"{self.lines} was made with other settings; delete it with its {described.name} to score "
                             f"again, or choose another folder.\n  then: {stored}\n  now:  {now}")  # fmt: skip
        self.done = {row["id"] for row in read_json_lines(self.lines)} if self.lines.exists() else set()
        if scorer.dimensions and self.values.exists():
            with self.values.open("r+b") as file:
                file.truncate(len(self.done) * scorer.dimensions * 4)

    def append(self, records: Sequence[Record], answers: Answers) -> None:
        """Features first: a line without its features would be believed, features without a line are cut off."""
        if self.scorer.dimensions:
            assert answers.features is not None and answers.features.shape == (len(records), self.scorer.dimensions)
            with self.values.open("ab") as file:
                file.write(np.ascontiguousarray(answers.features, np.float32).tobytes())
        append_lines(self.lines, [{"id": r["id"]} | columns for r, columns in zip(records, answers.columns)])
        self.done.update(record["id"] for record in records)


def _score_missing(folder: Path, records: list[Record], scorer: Scorer, batch_size: int, progress: bool) -> None:
    file = ScoreFile(folder, scorer)
    missing = [record for record in records if record["id"] not in file.done]
    batches = [missing[first : first + batch_size] for first in range(0, len(missing), batch_size)]
    with tqdm(total=len(missing), desc=scorer.name, unit="picture", disable=not (progress and missing)) as bar:
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
    """The values of a column as cluster names (prompts share pictures, so intervals are drawn over prompts)."""
    return [str(record[column]) for record in records]
