"""Which files below an output folder are ours: FOLDER/.erase/files.jsonl, one line for each file that we wrote.

`files.atomic_path`, `files.append_lines` and their relatives report every file to the ledgers that are open, so that a
later command can replace what an earlier one wrote and nothing else. A small file's sha256 is kept with its name: a
model card that somebody has edited since is no longer only ours.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OWN_DIR = ".erase"
"""Folder of our own notes inside an output folder."""
LEDGER_FILE = "files.jsonl"
HASHED_BYTES = 2**20
"""Files up to this size are remembered with their sha256."""


class Ledger:
    """The files that were written below one folder, by their path relative to it."""

    def __init__(self, folder: Path):
        self.folder = folder.resolve()
        self._lock = threading.Lock()  # pictures are written by a thread of their own
        self._known = self._read()

    @property
    def file(self) -> Path:
        """Where the ledger is kept."""
        return self.folder / OWN_DIR / LEDGER_FILE

    def files(self) -> list[Path]:
        """The files that are ours and still there, relative to the folder, in the order of their first writing."""
        return [Path(name) for name in self._known if (self.folder / name).is_file()]

    def holds(self, path: Path) -> bool:
        """Whether a file, by its path relative to the folder, is ours."""
        return path.as_posix() in self._known

    def edited(self) -> list[Path]:
        """Files of ours that somebody has changed since they were written."""
        known = [(Path(name), digest) for name, digest in self._known.items() if digest]
        return [path for path, digest in known if _is_other(self.folder / path, digest)]

    def note(self, path: Path, *, grows: bool = False) -> None:
        """Remember that `path`, which is there now, is ours; a file that `grows` is not expected to stay as it is."""
        place = _place(path).relative_to(self.folder)
        if OWN_DIR in place.parts:
            return
        name = place.as_posix()
        digest = None if grows or path.stat().st_size > HASHED_BYTES else _sha256(path)
        with self._lock:
            if name in self._known and self._known[name] == digest:
                return
            self._known[name] = digest
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a", encoding="utf-8", newline="\n") as lines:
                lines.write(json.dumps({"file": name, "sha256": digest}, ensure_ascii=False) + "\n")

    def _read(self) -> dict[str, str | None]:
        """Name → sha256; the last line of a name counts, and half a line that a crash left does not."""
        if not self.file.is_file():
            return {}
        lines = self.file.read_text(encoding="utf-8").split("\n")[:-1]
        rows = [json.loads(line) for line in lines if line.endswith("}")]
        return {row["file"]: row["sha256"] for row in rows}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _is_other(path: Path, digest: str) -> bool:
    return path.is_file() and (path.stat().st_size > HASHED_BYTES or _sha256(path) != digest)


def _place(path: Path) -> Path:
    """Where a file lies; one that is itself a link counts as where the link is."""
    return path.parent.resolve() / path.name


_open: list[Ledger] = []


@contextmanager
def keeping(ledger: Ledger) -> Iterator[None]:
    """While the block runs, every file that this package writes below the ledger's folder is noted in it."""
    _open.append(ledger)
    try:
        yield
    finally:
        _open.remove(ledger)


def note(path: str | Path, *, grows: bool = False) -> None:
    """Tell the innermost open ledger whose folder `path` lies in that this file is ours."""
    place = _place(Path(path))
    inside = [ledger for ledger in _open if place.is_relative_to(ledger.folder)]
    if inside:
        max(inside, key=lambda ledger: len(ledger.folder.parts)).note(place, grows=grows)
