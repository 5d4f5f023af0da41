"""Tables of prompts as they are published: CSV, TSV, plain lines, JSONL, JSON (COCO captions too), parquet, the hub."""

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_HUB_FILES = {"AIML-TUDA/i2p": "i2p_benchmark.csv"}
"""The data sets whose one file has a name that an error can give."""
_SOURCES = {
    "i2p_benchmark.csv": "https://huggingface.co/datasets/AIML-TUDA/i2p",
    "captions_val2014.json": "annotations_trainval2014.zip of https://cocodataset.org/#download",
}
"""Published files and where they are to be had."""
_HUB_SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl")
_SUFFIX = re.compile(r"\.[A-Za-z]\w{0,6}", re.ASCII)
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}")


@dataclass(frozen=True)
class Table:
    """Rows of named cells."""

    source: str
    """Where it comes from, for messages."""
    columns: tuple[str, ...]
    """Every column's name, in the file's order."""
    rows: list[dict[str, Any]]
    """Column → cell; None where a cell is missing."""
    is_text: bool = False
    """Whether every cell is text, as in CSV, so that numbers have yet to be told from words."""


def read_table(path: Path) -> Table:
    """The table in a file, or in a folder that holds a downloaded data set; ValueError when it cannot be read."""
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob(f"*{path.suffix}"))[:5] if path.parent.is_dir() else []
        origin = f" It comes from {_SOURCES[path.name]}." if path.name in _SOURCES else ""
        beside = f" Beside it there is {', '.join(near)}." if near else ""
        raise ValueError(f"The prompt file {path} does not exist.{origin}{beside} Give its path: --prompts FILE.")
    try:
        table = READERS[path.suffix.lower()](path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}); save it as UTF-8.") from error
    if not table.rows:
        raise ValueError(f"{path} holds no rows; expected one a picture.")
    return table


def refuse_form(path: Path) -> None:
    """ValueError when `path` is clearly a file, of a form that is not read."""
    in_a_folder = path.parent != Path() and path.parent.is_dir()
    is_name = bool(_SUFFIX.fullmatch(path.suffix)) and (in_a_folder or not HUB_ID.fullmatch(str(path)))
    if path.is_file() or is_name:
        form = f"ends in {path.suffix}" if path.suffix else "has no suffix"
        there = "" if path.is_file() else " (and does not exist)"
        raise ValueError(
            f"The prompt file {path} {form}{there}; prompts are read from {', '.join(READERS)} (.txt: a prompt a "
            "line). Save it in one of these forms and give its path: --prompts FILE."
        )


def read_hub(name: str) -> Table:
    """The table of the hub data set `owner/name`, from the local cache where there is no network."""
    from huggingface_hub import snapshot_download

    try:
        patterns = [f"*{suffix}" for suffix in _HUB_SUFFIXES]
        folder = snapshot_download(name, repo_type="dataset", allow_patterns=patterns)
    except (OSError, ValueError) as error:
        file = _HUB_FILES.get(name)
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"Cannot load the prompts {name!r}: neither a file nor a preset, and the hub gave no data set of that name "
            f"({reason}).\nWhere there is a network, download {file or 'its .csv, .parquet or .jsonl file'} from "
            f"https://huggingface.co/datasets/{name}, and give its path: --prompts {file or 'FILE'}."
        ) from error
    return _read_folder(Path(folder), name)


def _read_folder(folder: Path, name: str | None = None) -> Table:
    """The one table of a data set: a single file, or the shards of a single split."""
    found: list[Path] = []
    for suffix in _HUB_SUFFIXES:
        found = found or sorted(folder.rglob(f"*{suffix}"))
    stems = {shard[1] if (shard := _SHARD.fullmatch(path.stem)) else path.stem for path in found}
    if len(stems) != 1 or len({path.parent for path in found}) != 1:
        holds = ", ".join(str(path.relative_to(folder)) for path in found[:10]) or "none"
        raise ValueError(
            f"{name or folder} must hold one table ({', '.join(_HUB_SUFFIXES)}); found: {holds}. "
            f"Give the path of the one you mean, below {folder}."
        )
    tables = [read_table(path) for path in found]
    rows = [row for table in tables for row in table.rows]
    return Table(name or str(folder), _columns(rows), rows, tables[0].is_text)


def _columns(rows: Iterable[dict[str, Any]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for row in rows for name in row))


def _read_csv(path: Path, delimiter: str = ",") -> Table:
    # newline="" leaves line breaks inside quotes as they are; utf-8-sig drops the mark that spreadsheets put first.
    with path.open(encoding="utf-8-sig", newline="") as file:
        text = file.read()
    reader = _csv_reader(text, delimiter)
    try:
        spaced = _has_blanks_after_commas(reader)
        reader = _csv_reader(text, delimiter, skipinitialspace=spaced, strict=True)
        lines = [line for line in reader if line]
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num} is not {path.suffix[1:].upper()} ({error}).") from error
    names, *rows = [[name.strip() for name in lines[0]], *lines[1:]] if lines else [[]]
    _check_cells(path, names, rows, delimiter)
    return Table(str(path), tuple(names), [dict(zip(names, row)) for row in rows], is_text=True)


def _read_tsv(path: Path) -> Table:
    return _read_csv(path, "\t")


def _csv_reader(text: str, delimiter: str, skipinitialspace: bool = False, strict: bool = False) -> Any:
    lines = io.StringIO(text, newline="")
    return csv.reader(lines, delimiter=delimiter, skipinitialspace=skipinitialspace, strict=strict)


def _has_blanks_after_commas(lines: Iterator[list[str]]) -> bool:
    """Whether blanks after commas are the file's style (`prompt, seed`, `7, "a cat, asleep"`) and not part of cells."""
    header = next(lines, [])
    return any(name[:1] == " " for name in header[1:]) or any(
        cell[:1] == " " and cell.lstrip(" ")[:1] == '"' for line in lines for cell in line
    )


def _check_cells(path: Path, names: list[str], rows: list[list[str]], delimiter: str) -> None:
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"{path} has several columns named {sorted(twice)}; rename them.")
    others = {",": "commas", ";": "semicolons", "\t": "tabs"}
    mark = others.pop(delimiter)
    if len(names) == 1 and (other := next((others[letter] for letter in names[0] if letter in others), None)):
        raise ValueError(f"{path} has {other} between its cells, where {mark} were expected; save it with {mark}.")
    for number, row in enumerate(rows, 1):
        if len(row) != len(names):
            raise ValueError(
                f"{path}, row {number} has {len(row)} cells where the header has {len(names)} columns "
                f"({', '.join(names)}); quote texts that contain {mark}."
            )


def _read_text(path: Path) -> Table:
    """A prompt a line, to the letter; blank lines are none."""
    lines = [line.removesuffix("\r") for line in path.read_text(encoding="utf-8-sig").split("\n")]
    return Table(str(path), ("prompt",), [{"prompt": line} for line in lines if line.strip()])


def _read_json_lines(path: Path) -> Table:
    # Split at "\n" alone: JSON may hold U+2028 and its like, which splitlines() takes for line ends.
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    rows = [_parsed(path, line, number) for number, line in enumerate(lines, 1) if line.strip()]
    return _objects(path, rows)


def _parsed(path: Path, text: str, number: int | None = None) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = str(path) if number is None else f"{path}, line {number}"
        raise ValueError(f"{where} is not JSON ({error}).") from error


def _read_json(path: Path) -> Table:
    content = _parsed(path, path.read_text(encoding="utf-8-sig"))
    if isinstance(content, dict) and {"images", "annotations"} <= content.keys():
        return _coco(path, content)
    if not isinstance(content, list):
        raise ValueError(
            f'{path} holds a {type(content).__name__}; expected a list of objects such as {{"prompt": "…"}}, or COCO '
            "captions with `images` and `annotations`."
        )
    return _objects(path, content)


def _objects(path: Path, rows: Sequence[Any]) -> Table:
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise ValueError(f'{path}, row {number} is {row!r:.80}; expected an object such as {{"prompt": "…"}}.')
    whole = [{name: _cell(value) for name, value in row.items()} for row in rows]
    return Table(str(path), _columns(whole), whole)


def _cell(value: Any) -> Any:
    """NaN is how pandas writes a missing cell."""
    return None if isinstance(value, float) and math.isnan(value) else value


def _coco(path: Path, content: dict[str, Any]) -> Table:
    """One row an image that has captions, in the file's order of images, with its caption of the lowest id."""
    try:
        chosen: dict[int, dict[str, Any]] = {}
        for caption in content["annotations"]:
            best = chosen.setdefault(caption["image_id"], caption)
            if caption["id"] < best["id"]:
                chosen[caption["image_id"]] = caption
        rows = [
            {
                "image_id": image["id"],
                "caption": chosen[image["id"]]["caption"],
                "caption_id": chosen[image["id"]]["id"],
                "file_name": image.get("file_name"),
            }
            for image in content["images"]
            if image["id"] in chosen
        ]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not COCO captions ({error} is missing or odd); expected `images` with id and file_name, and "
            "`annotations` with id, image_id and caption, as in captions_val2014.json."
        ) from error
    if unknown := set(chosen) - {row["image_id"] for row in rows}:
        raise ValueError(f"{path} has captions of {len(unknown)} images that `images` does not list: {min(unknown)} ….")
    return Table(str(path), _columns(rows), rows)


def _read_parquet(path: Path) -> Table:
    try:
        import pyarrow.parquet as parquet
        from pyarrow import ArrowInvalid
    except ImportError as error:
        raise ValueError(f'{path}: reading parquet needs pyarrow. pip install "diffusers-erase[parquet]"') from error
    try:
        with parquet.ParquetFile(path) as file:
            # Pictures and other bytes stay on disk: a record holds JSON values.
            names = [column.name for column in file.schema_arrow if _is_plain(column.type)]
            rows = file.read(columns=names).to_pylist()
    except (ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is not a whole parquet file ({error}); copy or download it again.") from error
    rows = [{name: _cell(value) for name, value in row.items()} for row in rows]
    return Table(str(path), tuple(names), rows)


def _is_plain(kind: Any) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind) or types.is_list(kind) or types.is_large_list(kind):
        return _is_plain(kind.value_type)
    checks = (types.is_integer, types.is_floating, types.is_boolean, types.is_string, types.is_large_string)
    return any(check(kind) for check in checks) or types.is_null(kind)


READERS: dict[str, Callable[[Path], Table]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".txt": _read_text,
    ".jsonl": _read_json_lines,
    ".json": _read_json,
    ".parquet": _read_parquet,
}
