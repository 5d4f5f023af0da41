"""What to draw: prompt rows with their own seed, guidance and size, from a preset, a file or a data set of the hub."""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from ..concepts.concept import known_concepts, load_concepts
from ..data.tables import HUB_ID, READERS, Table, read_hub, read_table, refuse_form
from .prompt_columns import NO_COLUMN, PromptColumns, column_of

IMAGES_DIR = "images"
RESERVED = ("id", "prompt", "seed", "guidance_scale", "num_inference_steps", "height", "width", "file", "broken",
            "sha256")  # fmt: skip
"""A record's own columns; a table's column of such a name is kept as `source_NAME`."""

Operator = Literal[">=", "<=", "==", "!=", ">", "<", "contains"]
_CONDITION = re.compile(r"\s*(.+?)\s*(>=|<=|==|!=|>|<|\bcontains\b)\s*(.*?)\s*")
_FILE_NAME = re.compile(r"\w[\w.-]{0,199}", re.ASCII)
_INTEGER, _NUMBER = re.compile(r"-?(0|[1-9]\d*)"), re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")


@dataclass(frozen=True, kw_only=True)
class PromptRow:
    """One picture to draw."""

    id: str
    """Unique name, which the picture's file bears: letters, digits, `_`, `.` and `-`."""
    prompt: str
    """What the model is asked for, to the letter."""
    seed: int
    """Seed of the starting noise, in 0 … 2⁶³ − 1."""
    guidance_scale: float
    """Guidance in diffusers' convention."""
    num_inference_steps: int
    """Denoising steps."""
    height: int | None = None
    """Pixels, a multiple of 8; None, together with the width, is the model's own."""
    width: int | None = None
    """Pixels, a multiple of 8; None, together with the height, is the model's own."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What else the record shall say (JSON values): role, class, category."""

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not _FILE_NAME.fullmatch(self.id):
            raise ValueError(f"The id {self.id!r:.80} cannot be a file's name; use letters, digits, `_`, `.` and `-`.")
        if not isinstance(self.prompt, str) or not self.prompt.strip():
            raise ValueError(f"The prompt must be text that is not empty, got {self.prompt!r:.80}.")
        _check_integer("seed", self.seed, 0, 2**63 - 1)
        _check_integer("num_inference_steps", self.num_inference_steps, 1)
        object.__setattr__(self, "guidance_scale", float(self.guidance_scale))
        if not 0 <= self.guidance_scale < math.inf:
            raise ValueError(f"guidance_scale must be a number of at least 0, got {self.guidance_scale}.")
        for name in ("height", "width"):
            if (pixels := getattr(self, name)) is not None:
                _check_integer(name, pixels, 8)
                if pixels % 8:
                    raise ValueError(f"{name} must be a multiple of 8 pixels, got {pixels}.")
        # diffusers' pipelines take their own size when one side is missing, and say nothing.
        if (self.height is None) != (self.width is None):
            raise ValueError(f"Give height and width, or neither; got height {self.height} and width {self.width}.")
        if clash := sorted(set(self.extra) & set(RESERVED)):
            raise ValueError(f"extra columns cannot be named {', '.join(clash)}: a record has its own.")

    @property
    def file(self) -> str:
        """The picture's file below the output folder."""
        return f"{IMAGES_DIR}/{self.id}.png"

    def with_extra(self, **columns: Any) -> "PromptRow":
        """The same picture with more to say in its record."""
        return replace(self, extra=dict(self.extra) | columns)

    def as_record(self) -> dict[str, Any]:
        """The row as one line of records.jsonl; height and width stay None until the picture is there."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        return own | {"file": self.file} | dict(self.extra)


@dataclass(frozen=True)
class PromptFilter:
    """A condition on a table's column."""

    column: str
    """Any column of the table, kept in the records or not."""
    op: Operator
    """Numbers are compared as numbers; `contains` looks for a part of a text or an item of a list."""
    value: str
    """What the cell is compared with."""

    def __post_init__(self) -> None:
        if self.op not in get_args(Operator):
            raise ValueError(f"A filter compares with {', '.join(get_args(Operator))}; got {self.op!r}.")

    @classmethod
    def parse(cls, text: str) -> "PromptFilter":
        """`nudity_percentage > 50` or `categories contains sexual`."""
        if not (parts := _CONDITION.fullmatch(text)):
            raise ValueError(
                f"Cannot read the filter {text!r}; write `COLUMN OPERATOR VALUE` with one of "
                f"{', '.join(get_args(Operator))}, for example `nudity_percentage > 50`."
            )
        return cls(*parts.groups())  # type: ignore[arg-type]

    def holds(self, cell: Any) -> bool:
        """Whether a cell meets the condition; a missing one only meets `!=`."""
        if self.op == "contains":
            return cell is not None and self.value in (cell if isinstance(cell, list) else str(cell))
        pair = _number(cell), _number(self.value)
        numeric = None not in pair
        if self.op in ("==", "!="):
            same = pair[0] == pair[1] if numeric else cell is not None and str(cell) == self.value
            return same == (self.op == "==")
        if _is_missing(cell):
            return False
        if not numeric:
            raise ValueError(f"{self.column} {self.op} {self.value}: cannot compare {cell!r:.60}, which is no number.")
        return _ORDER[self.op](*pair)


_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
}


def load_prompts(
    source: str | Path,
    *,
    columns: PromptColumns | None = None,
    filters: Sequence[PromptFilter] = (),
    seed: int = 0,
    num_inference_steps: int = 50,
    guidance_scale: float = 7.5,
    height: int | None = None,
    width: int | None = None,
    num_images_per_prompt: int = 1,
    max_prompts: int | None = None,
    say: Callable[[str], None] | None = None,
) -> list[PromptRow]:
    """The pictures that a source of prompts asks for, in its order.

    `source` is a .csv, .tsv, .txt (a prompt a line), .jsonl, .json (objects or COCO captions) or .parquet file, a
    folder that holds one, a concept (preset, class or YAML: its `evaluate` prompts), or a data set of the hub. Steps,
    guidance and size serve rows that have none of their own. Row n (counted before the filters, from 0) without a seed
    gets `seed + n * num_images_per_prompt`; picture k of a prompt gets the row's seed + k, and `-k` after its id.
    `max_prompts` cuts after the filters. `say` is given one line on what was read from where. ValueError says what is
    missing, and what is there.
    """
    for name, count in (("num_images_per_prompt", num_images_per_prompt), ("max_prompts", max_prompts)):
        if count is not None:
            _check_integer(name, count, 1)
    table, columns = open_table(source), columns or PromptColumns()
    used = columns.of(table)
    extras = {name: _typed(table, name) for name in columns.kept(table, used)}
    chosen = _filtered(table, filters)[:max_prompts]
    defaults = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale, "height": height,
                "width": width}  # fmt: skip
    rows = []
    for number in chosen:
        extra = {_free(name): cells[number] for name, cells in extras.items()}
        own = {name: table.rows[number].get(column) for name, column in used.items()}
        try:
            row = _row(number, own, defaults | {"seed": seed + number * num_images_per_prompt}, extra)
        except ValueError as error:
            raise ValueError(f"{table.source}, row {number + 1} of {len(table.rows)}: {error}") from None
        rows += _repeated(row, num_images_per_prompt)
    check_rows(rows, table.source)
    if say is not None:
        say(_summary(table, used, extras, len(chosen), defaults | {"seed": seed}))
    return rows


def _summary(
    table: Table, used: Mapping[str, str], kept: Iterable[str], count: int, defaults: Mapping[str, Any]
) -> str:
    """One line: how many rows, which column gave what, which values are defaults, and what the records keep."""
    sources = [f"{name} from {column!r}{_gaps(table, column)}" for name, column in used.items()]
    unset = {name: value for name, value in defaults.items() if name not in used and value is not None}
    plain = [f"seeds from {value} up" if name == "seed" else f"{name} {value}" for name, value in unset.items()]
    if "height" not in used and defaults["height"] is None:
        plain.append("the model's own size")
    if "id" not in used:
        plain.append("ids by row number")
    return (
        f"Prompts: {count} of {len(table.rows)} rows of {table.source}; columns: {', '.join(sources)}; "
        f"defaults: {', '.join(plain) or 'none'}; kept in the records: {', '.join(kept) or 'none'}."
    )


def _gaps(table: Table, column: str) -> str:
    empty = sum(_is_missing(row.get(column)) for row in table.rows)
    return f" (missing in {empty} of {len(table.rows)} rows: the default there)" if empty else ""


def open_table(source: str | Path) -> Table:
    """The table that `source` names: a file, a folder, a concept or a data set of the hub."""
    name, path = str(source), Path(source).expanduser()
    if path.suffix.lower() in READERS or path.is_dir():
        return read_table(path)
    head = name.partition("/")[0]
    is_yaml = any(part.endswith((".yaml", ".yml")) for part in path.parts)
    is_concept = is_yaml or head in {known.partition("/")[0] for known in known_concepts()}
    if not is_concept:
        refuse_form(path)
        if HUB_ID.fullmatch(name):
            return read_hub(name)
    try:
        concepts = load_concepts([name])
    except ValueError as error:
        kinds = ", ".join(READERS)
        raise ValueError(f"No prompts {name!r}: not a file ({kinds}), and as a concept: {error}") from error
    rows = [{"prompt": text, "concept": c.name, "role": "target"} for c in concepts for text in c.evaluate]
    return Table(f"concept {name}", ("prompt", "concept", "role"), rows)


def check_rows(rows: Sequence[PromptRow], source: str = "The prompts") -> None:
    """Refuse an empty list, and ids that two pictures share (on disks that ignore case, too)."""
    if not rows:
        raise ValueError(f"{source}: no row is left to generate.")
    seen: dict[str, PromptRow] = {}
    for row in rows:
        if twin := seen.get(row.id.casefold()):
            raise ValueError(
                f"{source}: the id {row.id!r} is there twice ({twin.prompt!r:.40} and {row.prompt!r:.40}). Name a "
                f"column of unique ids with --id_column, or number the rows: --id_column {NO_COLUMN}."
            )
        seen[row.id.casefold()] = row


def _row(number: int, own: Mapping[str, Any], defaults: Mapping[str, Any], extra: Mapping[str, Any]) -> PromptRow:
    values: dict[str, Any] = dict(defaults)
    for name, parse in _PARSERS.items():
        if not _is_missing(cell := own.get(name)):
            values[name] = parse(name, cell)
    identity = own.get("id")
    if "id" in own and _is_missing(identity):
        raise ValueError(f"the id is missing. Number the rows instead: --id_column {NO_COLUMN}.")
    return PromptRow(
        id=f"{number:06d}" if identity is None else str(identity), prompt=own["prompt"], extra=extra, **values
    )


def _as_integer(name: str, cell: Any) -> int:
    value = _number(cell)
    # A column with gaps comes out of pandas as floats: 12.0 is 12, while past 2⁵³ a float has lost digits.
    if value is None or value != int(value) or (isinstance(value, float) and abs(value) >= 2**53):
        raise ValueError(f"{name} must be an integer, got {cell!r:.80}.")
    return int(value)


def _as_number(name: str, cell: Any) -> float:
    if (value := _number(cell)) is None:
        raise ValueError(f"{name} must be a number, got {cell!r:.80}.")
    return float(value)


_PARSERS: dict[str, Callable[[str, Any], Any]] = {
    "seed": _as_integer,
    "num_inference_steps": _as_integer,
    "height": _as_integer,
    "width": _as_integer,
    "guidance_scale": _as_number,
}


def _repeated(row: PromptRow, count: int) -> list[PromptRow]:
    if count == 1:
        return [row]
    return [replace(row, id=f"{row.id}-{k}", seed=row.seed + k) for k in range(count)]


def _filtered(table: Table, filters: Sequence[PromptFilter]) -> list[int]:
    """Numbers of the rows that meet every condition."""
    conditions = [(condition, column_of(table, condition.column, "--filter")) for condition in filters]
    chosen = [
        number
        for number, row in enumerate(table.rows)
        if all(condition.holds(row.get(column)) for condition, column in conditions)
    ]
    if not chosen:
        wanted = " and ".join(f"{c.column} {c.op} {c.value}" for c in filters)
        raise ValueError(f"{table.source}: none of the {len(table.rows)} rows meets {wanted}.")
    return chosen


def _typed(table: Table, column: str) -> list[Any]:
    """A column's cells; where all of a text table's are numbers, as numbers, and None where one is missing."""
    cells = [row.get(column) for row in table.rows]
    filled = [cell for cell in cells if cell]
    if not table.is_text or not filled:
        return cells
    for shape, kind in ((_INTEGER, int), (_NUMBER, float)):
        if all(shape.fullmatch(cell) for cell in filled):
            return [kind(cell) if cell else None for cell in cells]
    return cells


def _free(column: str) -> str:
    return f"source_{column}" if column in RESERVED else column


def _is_missing(cell: Any) -> bool:
    return cell is None or (isinstance(cell, str) and not cell.strip())


def _number(cell: Any) -> int | float | None:
    """A cell as a finite number, integers exactly; None where it is none."""
    if isinstance(cell, str):
        text = cell.strip()
        cell = int(text) if _INTEGER.fullmatch(text) else float(text) if _NUMBER.fullmatch(text) else None
    return cell if isinstance(cell, int | float) and math.isfinite(cell) else None


def _check_integer(name: str, value: Any, low: int, high: int | None = None) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < low or (high is not None and value > high):
        allowed = f"of at least {low}" if high is None else f"in {low} … {high}"
        raise ValueError(f"{name} must be an integer {allowed}, got {value!r}.")


def first_of_each_role(
    rows: Sequence[Any], count: int | None, columns: Callable[[Any], Mapping[str, Any]]
) -> list[Any]:
    """The first `count` target rows and the first `count` retained ones, or all; `columns` gives a row's."""
    seen: Counter[Any] = Counter()
    chosen = []
    for row in rows:
        role = columns(row).get("role")
        seen[role] += 1
        if count is None or seen[role] <= count:
            chosen.append(row)
    return chosen


def rows_digest(rows: Sequence[PromptRow]) -> str:
    """sha256 of everything that the rows say."""
    lines = (json.dumps(row.as_record(), sort_keys=True) for row in rows)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
