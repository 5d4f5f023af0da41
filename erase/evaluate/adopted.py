"""Pictures that exist already: which prompts they have, and how they come into an evaluation's folder.

They are linked, not moved, and each record carries the sha256 of its file. What an earlier evaluation linked into the
same folder makes room; pictures that a model drew, and files of somebody else's, are refused.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..concepts.concept import Concept
from ..data.captions import read_captions
from ..data.pictures import list_pictures, picture_ids
from ..draw.picture_folder import SETTINGS_FILE
from ..draw.prompts import IMAGES_DIR, PromptRow, first_of_each_role
from ..draw.records import RECORDS_FILE, Record, picture_hashes, write_records
from ..files import file_sha256, link, read_json_lines, write_json
from ..output import remove_empty
from .protocols import Protocol

ADOPTED_FILE = "adopted.json"
"""Where the pictures come from, and which files were linked."""


@dataclass(frozen=True)
class GivenPictures:
    """Pictures of one model in a folder of somebody's, and the folder of the evaluation that they go into."""

    source: Path
    """Where they are."""
    folder: Path
    """Where they are scored; the same as `source` where a folder is scored in its place."""
    records: list[Record]
    """A record each, `file` relative to `source`, as yet without `sha256`."""

    def adopt(self) -> None:
        """Link the pictures into the folder and write their records, in place of those of an earlier evaluation.

        ValueError when the folder holds anything else. The files that are linked are noted before the first one is, so
        a later adoption knows them wherever this one stops.
        """
        if self.source.resolve() == self.folder.resolve():
            return
        before = adopted_files(self.folder)
        paths = [self.source / record["file"] for record in self.records]
        files, digests = _targets(self.records), picture_hashes(paths)
        self._note(sorted({*before, *files}))
        _remove(self.folder, set(before) - set(files))
        for path, name, digest in zip(paths, files, digests):
            if not _is_there(self.folder / name, path, digest):
                # A hard link to a symbolic one would point to nothing from here.
                link(path.resolve(), self.folder / name)
        records = [r | {"file": name, "sha256": digest} for r, name, digest in zip(self.records, files, digests)]
        write_records(self.folder, records)
        self._note(files)

    def _note(self, files: Sequence[str]) -> None:
        write_json(self.folder / ADOPTED_FILE, {"source": str(self.source), "files": list(files)})


def adopted_files(folder: Path) -> list[str]:
    """What an earlier evaluation linked into the folder; ValueError when there is something else in it."""
    if (folder / SETTINGS_FILE).is_file():
        raise ValueError(f"{folder} holds pictures that a model drew, which others are not mixed with; give another "
                         "--output_dir for pictures that exist.")  # fmt: skip
    if (folder / ADOPTED_FILE).is_file():
        return json.loads((folder / ADOPTED_FILE).read_text(encoding="utf-8"))["files"]
    if folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise ValueError(f"{folder} holds files that no erase command wrote; give another --output_dir.")
    return []


def _remove(folder: Path, files: Collection[str]) -> None:
    """Remove files, and folders below images/ that they leave empty."""
    for name in files:
        (folder / name).unlink(missing_ok=True)
    remove_empty(folder / IMAGES_DIR)


def _is_there(target: Path, source: Path, digest: str) -> bool:
    """Whether the target has the source's contents, of which `digest` is the sha256."""
    return target.is_file() and (target.samefile(source) or file_sha256(target) == digest)


def _targets(records: Sequence[Record]) -> list[str]:
    """Where the pictures go: below images/, in the folders that they are in."""
    places = [PurePosixPath(record["file"]) for record in records]
    if all(place.parts[0] == IMAGES_DIR and len(place.parts) > 1 for place in places):
        places = [place.relative_to(IMAGES_DIR) for place in places]
    return [f"{IMAGES_DIR}/{place}" for place in places]


def refuse_inside(reference: Path | None, output_dir: Path) -> None:
    """ValueError when an evaluation would write its pictures among the real ones."""
    if reference is not None and reference.is_dir() and output_dir.resolve().is_relative_to(reference.resolve()):
        raise ValueError(f"output_dir {output_dir} lies inside --fid_reference {reference}, so its pictures would be "
                         "counted among the real ones; choose another --output_dir.")  # fmt: skip


def at_hand(protocol: Protocol, concepts: Sequence[Concept], prompts: str | None) -> bool:
    """Whether the protocol's rows can be read without asking the hub, to find the prompts of pictures that exist."""
    if protocol.family is not None or prompts is not None:
        return bool(concepts or prompts)
    return Path(str(protocol.prompts)).expanduser().exists()


def given_pictures(
    source: Path,
    folder: Path,
    rows: Sequence[PromptRow] = (),
    table: str | None = None,
    most: int | None = None,
) -> GivenPictures:
    """The pictures in `source` with their prompts: from its records.jsonl, else from rows that name them, else from
    captions, else none. Nothing is written.

    table: the table of the rows where the user gave one; then each picture must be named by a row. most: pictures of
    each role. ValueError for a folder without pictures, with half an `erase generate`, or around the evaluation's own.
    """
    _check_places(source, folder)
    has_records = (source / RECORDS_FILE).is_file()
    records = _own_records(source) if has_records else _records_of(source, rows, table)
    return GivenPictures(source, folder, first_of_each_role(records, most, lambda record: record))


def _records_of(source: Path, rows: Sequence[PromptRow], table: str | None) -> list[Record]:
    """A record of each picture in a folder that has no records."""
    pictures = list_pictures(source)
    said = _by_rows(source, pictures, rows, table) or _by_captions(source, pictures)
    return [
        {"id": name, "prompt": "", "seed": None, "file": path.relative_to(source).as_posix()} | dict(more)
        for name, path, more in zip(picture_ids(source, pictures), pictures, said)
    ]


def _check_places(source: Path, folder: Path) -> None:
    has_records, (inner, outer) = (source / RECORDS_FILE).is_file(), (source.resolve(), folder.resolve())
    if (source / SETTINGS_FILE).is_file() and not has_records:
        raise ValueError(f"{source} holds an `erase generate` that was stopped; run its command again to finish it.")
    if inner == outer and has_records:
        return
    if inner.is_relative_to(outer) or (outer.is_relative_to(inner) and not has_records):
        raise ValueError(f"{source} and the evaluation's own folder {folder} lie one inside the other, so its pictures "
                         "would be counted among those that are scored; give another --output_dir.")  # fmt: skip


def _own_records(source: Path) -> list[Record]:
    """records.jsonl of the folder; ValueError for a line that does not say which picture it is about."""
    records = [{"prompt": "", "seed": None} | record for record in read_json_lines(source / RECORDS_FILE)]
    for number, record in enumerate(records, 1):
        place = PurePosixPath(str(record.get("file") or "/"))
        if not record.get("id") or place.is_absolute() or ".." in place.parts:
            raise ValueError(f"{source / RECORDS_FILE}, line {number} has id {record.get('id')!r} and file "
                             f"{record.get('file')!r}; expected a name, and a path below {source}.")  # fmt: skip
    for key in ("id", "file"):
        if twice := [name for name, count in Counter(record[key] for record in records).items() if count > 1]:
            raise ValueError(f"{source / RECORDS_FILE} has the {key} {twice[0]!r} more than once; keep one line.")
    if not records:
        raise ValueError(f"{source / RECORDS_FILE} names no pictures; remove it to have the folder's pictures taken.")
    return records


def _by_rows(
    source: Path, pictures: Sequence[Path], rows: Sequence[PromptRow], table: str | None
) -> list[Mapping[str, Any]]:
    """For each picture the prompt and other columns of the row that names it, by file_name or by id; nothing where no
    row names any.
    """
    named = {row.id: row for row in rows} | _by_file_name(rows)
    found = [next((named[n] for n in names if n in named), None) for names in _names(source, pictures)]
    lacking = [path for path, row in zip(pictures, found) if row is None]
    if table is not None and lacking:
        raise ValueError(
            f"{len(lacking)} of {len(pictures)} pictures in {source} are named by no row of {table}: "
            f"{lacking[0].relative_to(source)} is neither an id (as {rows[0].id!r} is) nor in a column file_name. "
            "Rename the pictures, or add that column."
        )
    if len(lacking) == len(pictures):
        return []
    return [{"prompt": row.prompt} | dict(row.extra) if row else {} for row in found]


def _by_file_name(rows: Sequence[PromptRow]) -> dict[str, PromptRow]:
    """The rows by the file that they name; ValueError where two say different things of one."""
    found: dict[str, PromptRow] = {}
    for row in rows:
        name = str(row.extra.get("file_name") or "")
        if name and found.setdefault(name, row).prompt != row.prompt:
            raise ValueError(f"The rows {found[name].id!r} and {row.id!r} give {name} two prompts; keep one of them.")
    return found


def _names(source: Path, pictures: Sequence[Path]) -> Iterator[list[str]]:
    """What a row may call each picture: its path below `source` and its id; its name, and that without its suffix,
    where no picture of another folder has it. `0.png` and `0.jpg` in one folder are two pictures of row 0.
    """
    names, stems = Counter(path.name for path in pictures), Counter({(path.parent, path.stem) for path in pictures})
    folders = Counter(stem for _, stem in stems)
    for path, known in zip(pictures, picture_ids(source, pictures)):
        bare = [path.name] * (names[path.name] == 1) + [path.stem] * (folders[path.stem] == 1)
        yield [path.relative_to(source).as_posix(), known, *bare]


def _by_captions(source: Path, pictures: Sequence[Path]) -> list[Mapping[str, Any]]:
    captions = read_captions(source)
    return [{"prompt": captions[path]} if captions else {} for path in pictures]
