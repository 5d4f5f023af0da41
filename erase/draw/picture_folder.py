"""A folder of pictures that grows batch by batch and is whole after a crash: PNGs, their records, a shared cache.

A picture is on disk before its record is, and each process appends to record files of its own, so a record tells the
truth whenever the job dies. The main process joins the parts into records.jsonl, in the order of the rows.
"""

import hashlib
import json
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..data.pictures import read_picture
from ..files import append_lines, atomic_path, file_sha256, link, read_json_lines, write_json
from ..ledger import OWN_DIR
from ..output import changes
from .answers import ScoreFile
from .prompts import IMAGES_DIR, PromptRow
from .records import RECORDS_FILE, Record, write_records

SETTINGS_FILE = "generation.json"
QUEUE = 2
"""Batches that wait for the writer."""
NOT_IDENTITY = ("model",)
"""A model may be reached by another path."""
NOT_OF_FINISHED = ("batch_size", "device", "packages")
"""What only matters while pictures are missing: it decides how new ones would differ, not what the old ones are."""

Settings = dict[str, Any]


class PictureFolder:
    """Pictures and records of one set of rows, made by one model with one set of settings."""

    def __init__(self, folder: Path, rows: Sequence[PromptRow]):
        self.folder, self.rows = folder, rows

    def check(self, settings: Settings) -> None:
        """Refuse a folder that holds something else, or pictures made with other settings."""
        stored = self.folder / SETTINGS_FILE
        if not stored.is_file():
            if self.folder.is_file() or (self.folder.is_dir() and any(map(_is_foreign, self.folder.iterdir()))):
                raise ValueError(f"{self.folder} holds files that no erase command wrote; give another --output_dir.")
            return
        before = json.loads(stored.read_text(encoding="utf-8"))
        finished = len(self.done()) == len(self.rows)
        ignored = NOT_IDENTITY + (NOT_OF_FINISHED if finished else ())
        there, now = ({name: of[name] for name in of if name not in ignored} for of in (before, settings))
        if changed := changes(there, now):
            listed = "\n".join(f"  {change}" for change in changed)
            raise ValueError(
                f"{self.folder} holds pictures made with other settings:\n{listed}\n"
                "Give another --output_dir, replace it with --overwrite_output_dir, or use the settings of before."
            )

    def open(self, settings: Settings) -> None:
        """Write the settings first, and remove what an interrupted write left."""
        images = self.folder / IMAGES_DIR
        images.mkdir(parents=True, exist_ok=True)
        for path in (*images.glob(".*.tmp.png"), *self.folder.glob(".*.tmp.json*")):
            path.unlink()
        if not (self.folder / SETTINGS_FILE).exists():
            write_json(self.folder / SETTINGS_FILE, settings)

    def part(self, process: int) -> Path:
        """Where a process appends its records."""
        return self.folder / f"records-{process}.jsonl"

    def done(self) -> dict[str, Record]:
        """Id → record of the pictures that are there, from every process of every run so far."""
        files = [path for path in (self.folder / RECORDS_FILE, *self._parts()) if path.is_file()]
        found = {record["id"]: record for path in files for record in read_json_lines(path)}
        there = {path.name for path in (self.folder / IMAGES_DIR).glob("*.png")}
        return {row.id: found[row.id] for row in self.rows if row.id in found and f"{row.id}.png" in there}

    def merge(self) -> None:
        """Join the parts into records.jsonl, in the order of the rows, and remove them."""
        if (self.folder / RECORDS_FILE).is_file() and not self._parts():
            return
        done = self.done()
        if missing := [row.id for row in self.rows if row.id not in done]:
            raise ValueError(
                f"{len(missing)} of {len(self.rows)} pictures are missing from {self.folder}, first {missing[0]!r}: "
                "another process failed or files were removed. Run the same command again to generate them."
            )
        write_records(self.folder, [done[row.id] for row in self.rows])
        for path in self._parts():
            path.unlink()

    def records(self) -> list[Record]:
        """records.jsonl."""
        return read_json_lines(self.folder / RECORDS_FILE)

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob("records-*.jsonl"))


def _is_foreign(path: Path) -> bool:
    """A kill before the settings were written may leave an empty images folder or a temporary file."""
    is_empty_images = path.name == IMAGES_DIR and path.is_dir() and not any(path.iterdir())
    return not (is_empty_images or path.name == OWN_DIR or path.name.startswith(f".{Path(SETTINGS_FILE).stem}."))


class PictureCache:
    """Pictures shared between folders, by the digest of all that decides them; their own sha256 is in their names."""

    def __init__(self, folder: Path, settings: Settings):
        names = ("model_sha256", "scheduler", "mixed_precision", "device", "packages")
        self.folder, self.made_by = folder, {name: settings[name] for name in names}

    def _digest(self, row: PromptRow) -> str:
        names = ("prompt", "seed", "num_inference_steps", "guidance_scale", "height", "width")
        key = json.dumps(self.made_by | {name: getattr(row, name) for name in names}, sort_keys=True)
        return hashlib.sha256(key.encode()).hexdigest()

    def path(self, row: PromptRow, sha256: str) -> Path:
        """Where the row's picture with these contents would be."""
        digest = self._digest(row)
        return self.folder / digest[:2] / f"{digest}-{sha256}.png"

    def has(self, row: PromptRow) -> bool:
        """Whether there is a picture of the row, by its name alone."""
        return bool(self._candidates(row))

    def find(self, rows: Iterable[PromptRow]) -> dict[str, Path]:
        """Id → picture of the rows that it has. One that somebody has changed, here or under another of its names, is
        taken out of the cache.
        """
        found = {}
        for row in rows:
            for path in self._candidates(row):
                if path.stem.endswith(file_sha256(path)):
                    found[row.id] = path
                else:
                    path.unlink(missing_ok=True)
        return found

    def _candidates(self, row: PromptRow) -> list[Path]:
        digest = self._digest(row)
        return sorted((self.folder / digest[:2]).glob(f"{digest}-*.png"))


def write_png(path: Path, picture: np.ndarray) -> None:
    """Write a uint8 picture (H, W, 3) as PNG under a temporary name, then rename."""
    with atomic_path(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG")


@dataclass(frozen=True)
class PictureBatch:
    """What is to be kept of a batch: rows that had no record yet."""

    rows: list[PromptRow]
    """The rows."""
    pictures: list[np.ndarray | Path]
    """For each its uint8 picture (H, W, 3), or the cached file that it is in."""
    broken: Collection[str] = ()
    """Ids of the rows that the model gave NaN or infinity for."""


class PictureStore:
    """Puts batches on disk: pictures, then records, then the cache, then the scores."""

    def __init__(self, folder: PictureFolder, process: int, scores: Sequence[ScoreFile], cache: PictureCache | None):
        self.folder, self.part, self.scores, self.cache = folder.folder, folder.part(process), scores, cache

    def __call__(self, batch: PictureBatch) -> None:
        pictures = [read_picture(p) if isinstance(p, Path) else p for p in batch.pictures]
        try:
            for row, picture in zip(batch.rows, batch.pictures):
                self._keep(row, picture)
            records = [self._record(row, picture, batch) for row, picture in zip(batch.rows, pictures)]
            append_lines(self.part, records)
            if self.cache is not None:
                self._add_to(self.cache, batch, records)
        except OSError as error:
            raise OSError(
                error.errno,
                f"{error.strerror or error}; every record that was finished is kept. Make room or mend the disk, then "
                "run the same command again",
                str(error.filename or self.folder),
            ) from error
        for file in self.scores:
            _score(file, records, pictures)

    def _keep(self, row: PromptRow, picture: np.ndarray | Path) -> None:
        if isinstance(picture, Path):
            link(picture, self.folder / row.file)
        else:
            write_png(self.folder / row.file, picture)

    def _record(self, row: PromptRow, picture: np.ndarray, batch: PictureBatch) -> Record:
        made = {"height": picture.shape[0], "width": picture.shape[1], "sha256": file_sha256(self.folder / row.file)}
        return row.as_record() | made | ({"broken": True} if row.id in batch.broken else {})

    def _add_to(self, cache: PictureCache, batch: PictureBatch, records: Sequence[Record]) -> None:
        for row, picture, record in zip(batch.rows, batch.pictures, records):
            if not isinstance(picture, Path) and row.id not in batch.broken:
                link(self.folder / row.file, cache.path(row, record["sha256"]))


def _score(file: ScoreFile, records: Sequence[Record], pictures: Sequence[np.ndarray]) -> None:
    new = [at for at, record in enumerate(records) if not file.has(record)]
    if new:
        asked = [records[at] for at in new]
        file.append(asked, file.scorer.score([pictures[at] for at in new], asked))


class Writer:
    """One thread that stores batches while the next ones are drawn; its errors come out of `put` or at the end."""

    def __init__(self, store: Callable[[PictureBatch], None]):
        self._store, self._failed = store, False
        self._pool = ThreadPoolExecutor(1, "writer")
        self._waiting: deque[Future[None]] = deque()

    def put(self, batch: PictureBatch) -> None:
        """Hand a batch over; waits while the queue is full."""
        while self._waiting and (len(self._waiting) >= QUEUE or self._waiting[0].done()):
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(self._run, batch))

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # Whatever stopped the drawing, what was drawn before is kept.
        self._pool.shutdown(wait=True)
        if kind is None:
            for future in self._waiting:
                future.result()

    def _run(self, batch: PictureBatch) -> None:
        if self._failed:  # a file that one batch left torn must not be appended to by the next
            return
        try:
            self._store(batch)
        except BaseException:
            self._failed = True
            raise
