"""Which column of a table holds what: the usual names in any spelling, and no guess at names that only look alike."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher, get_close_matches
from typing import NoReturn

from ..data.tables import Table
from ..suggest import meant

NO_COLUMN = "none"
USUAL_NAMES: dict[str, tuple[str, ...]] = {
    "id": ("id", "case_number", "image_id", "coco_id"),
    "prompt": ("prompt", "caption", "text"),
    "seed": ("seed", "evaluation_seed", "sd_seed"),
    "guidance_scale": ("guidance_scale", "evaluation_guidance", "sd_guidance_scale"),
    "num_inference_steps": ("num_inference_steps",),
    "height": ("height", "sd_image_height"),
    "width": ("width", "sd_image_width"),
}
"""Field → the names that published tables give its column."""
TELLING_WORDS: dict[str, frozenset[str]] = {
    "seed": frozenset({"seed", "seeds"}),
    "guidance_scale": frozenset({"guidance", "cfg", "cfgscale"}),
    "num_inference_steps": frozenset({"step", "steps"}),
    "height": frozenset({"height", "heights"}),
    "width": frozenset({"width", "widths"}),
}
"""Field → words in a column's name that make it look like the field's."""
NEARLY = 0.85
"""Share of letters in common (of SequenceMatcher) from which a name looks like another."""
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")


@dataclass(frozen=True, kw_only=True)
class PromptColumns:
    """Which column of a table holds what. None looks for the names that published tables use; "none" uses no column.

    Case, blanks, `_` and `-` make no difference to a name.
    """

    id: str | None = None
    """Unique name of a row; without one, rows are numbered from 000000, before any filter."""
    prompt: str | None = None
    """The prompt."""
    seed: str | None = None
    """The row's own seed."""
    guidance_scale: str | None = None
    """The row's own guidance."""
    num_inference_steps: str | None = None
    """The row's own steps."""
    height: str | None = None
    """The row's own height in pixels."""
    width: str | None = None
    """The row's own width in pixels."""
    extra: Sequence[str] | None = None
    """Columns to keep in the records; None keeps all."""

    def of(self, table: Table) -> dict[str, str]:
        """Field → the table's column, where there is one; ValueError where that is not certain."""
        found = {name: self._one(name, table) for name in USUAL_NAMES}
        used = {name: column for name, column in found.items() if column is not None}
        for name in USUAL_NAMES:
            if found[name] is None and getattr(self, name) is None:
                _refuse_look_alikes(table, name, used.values())
        return used

    def _one(self, name: str, table: Table) -> str | None:
        given = getattr(self, name)
        if given is None:
            return _usual_column(table, name)
        if given == NO_COLUMN and name != "prompt":
            return None
        return column_of(table, given, f"--{name}_column")

    def kept(self, table: Table, used: Mapping[str, str]) -> list[str]:
        """The table's columns that go into the records."""
        if self.extra is not None:
            return [column_of(table, name, "--extra_column") for name in self.extra]
        # pandas writes its row numbers as a column without a name.
        return [name for name in table.columns if name and name not in used.values()]


def column_of(table: Table, name: str, flag: str) -> str:
    """The table's column of that name, to the letter or else in another spelling; ValueError names those there are."""
    if name in table.columns:
        return name
    found = [column for column in table.columns if _letters(column) == _letters(name)]
    if not found:
        _refuse_unknown(table, [name], f"no column {name!r}", flag)
    if len(found) > 1:
        raise ValueError(f"{table.source} has {_and(found)}, which are both {name!r} but for their spelling; {flag} "
                         "must spell the one that is meant exactly.")  # fmt: skip
    return found[0]


def _usual_column(table: Table, name: str) -> str | None:
    """The column whose name is one of the field's usual ones."""
    usual = USUAL_NAMES[name]
    found = [[column for column in table.columns if _letters(column) == _letters(known)] for known in usual]
    if not any(found) and name == "prompt":
        _refuse_unknown(table, usual, f"no column named {' or '.join(usual)}", "--prompt_column")
    # Published tables carry several ids, and an id only names the file: the first usual name is taken.
    matches = next(filter(None, found), []) if name == "id" else [column for columns in found for column in columns]
    if len(matches) > 1:
        raise ValueError(
            f"{table.source} has {len(matches)} columns for {name}: {_and(matches)}. Say which one is meant: "
            f"{_settled(name, matches[0])}."
        )
    return matches[0] if matches else None


def _refuse_look_alikes(table: Table, name: str, used: Iterable[str]) -> None:
    """ValueError for a column that would be passed over though its name looks like the field's."""
    others = [column for column in table.columns if column not in set(used)]
    if column := next((column for column in others if _looks_like(column, name)), None):
        raise ValueError(
            f"{table.source} has a column {column!r}, which looks like {name} but is not one of its usual names "
            f"({', '.join(USUAL_NAMES[name])}). Say whether it is: {_settled(name, column)}."
        )


def _settled(name: str, column: str) -> str:
    flag = f"--{name}_column"
    none = "" if name == "prompt" else f", or {flag} {NO_COLUMN} to use no column"
    return f"{flag} {column!r}{none} (in a protocol's YAML file, `columns: {{{name}: …}}`)"


def _looks_like(column: str, name: str) -> bool:
    words = {word.casefold() for word in _WORD.findall(column)}
    if words & TELLING_WORDS.get(name, frozenset()):
        return True
    return any(_is_slip(_letters(column), _letters(usual)) for usual in USUAL_NAMES[name])


def _is_slip(typed: str, meant: str) -> bool:
    """Whether a name is another one with a slip of the keyboard: a letter too many, too few, wrong or misplaced."""
    return sorted(typed) == sorted(meant) or SequenceMatcher(None, typed, meant).ratio() >= NEARLY


def _letters(name: str) -> str:
    """A name without what people vary: case, blanks, `_` and `-`."""
    return re.sub(r"[\s_-]+", "", name).casefold()


def _and(names: Sequence[str]) -> str:
    return " and ".join(map(repr, names))


def _refuse_unknown(table: Table, wanted: Sequence[str], what: str, flag: str) -> NoReturn:
    near = [match for want in wanted for match in get_close_matches(want, table.columns, cutoff=0.5)]
    raise ValueError(
        f"{table.source} has {what}.{meant(near)} Its columns are {', '.join(filter(None, table.columns))}. "
        f"Say which one is meant with {flag}."
    )
