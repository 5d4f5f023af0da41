"""Records of pictures: one line a picture in records.jsonl, with the sha256 of the file that it is about."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..files import file_sha256, read_json_lines, write_text

Record = dict[str, Any]
"""One picture: its prompt row, `file` with its `sha256`, and whatever scorers found."""

RECORDS_FILE = "records.jsonl"
HASHED_AT_ONCE = 64
"""Files that are hashed between two looks at Ctrl-C."""


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
                f"{folder / record['file']} has been changed since its record was written. Remove it to generate it "
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
