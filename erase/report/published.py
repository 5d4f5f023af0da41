"""Published rows, shown beside ours only where the protocol is the same."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ..html.figures import MODELS

RATIO_COLUMN = "of its own base"
PUBLISHED_FILE = Path(__file__).with_name("published.yaml")


@cache
def load_published() -> list[dict[str, Any]]:
    """The boards of published.yaml."""
    return yaml.safe_load(PUBLISHED_FILE.read_text(encoding="utf-8"))


def published_tables(
    rows: Sequence[Mapping[str, Any]],
    totals: Mapping[str, Mapping[str, float]],
    protocol: Mapping[str, Any],
    concepts: Sequence[str],
    domains: Sequence[str],
) -> list[dict[str, Any]]:
    """Tables of the boards whose protocol is this evaluation's: our two models first, then the published methods.

    rows: figures; totals: counts that are no figures, name → model → count.
    """
    is_true = {
        "name": lambda wanted: protocol.get("name") == wanted,
        "num_images": lambda wanted: protocol.get("num_images") == wanted,
        "concept": lambda wanted: list(concepts) == [wanted],
        "domain": lambda wanted: list(domains) == [wanted],
    }
    own = {row["key"]: _values(row) for row in rows} | dict(totals)
    return [
        _table(board, own)
        for board in load_published()
        if all(is_true[key](wanted) for key, wanted in board["when"].items()) and board["columns"].keys() & own.keys()
    ]


def _values(row: Mapping[str, Any]) -> dict[str, float]:
    """A figure by model, in the boards' units."""
    return {name: row[name]["value"] * (100 if row["is_rate"] else 1) for name in MODELS if row[name]}


def _table(board: Mapping[str, Any], own: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    ours = {f"{name}, this run": [own.get(key, {}).get(name) for key in board["columns"]] for name in MODELS}
    ours = {name: values for name, values in ours.items() if any(value is not None for value in values)}
    lines = [
        {"name": name, "ours": whose is ours, "values": values}
        for whose in (ours, board["rows"])
        for name, values in whose.items()
    ]
    columns = list(board["columns"].values())
    if reference := board.get("ratio_to"):
        columns.append(RATIO_COLUMN)
        bases = {True: ours.get("base, this run", [None])[0], False: board["rows"][reference][0]}
        for line in lines:
            value, base = line["values"][0], bases[line["ours"]]
            line["values"] = [*line["values"], value / base if value is not None and base else None]
    return {**{key: board[key] for key in ("title", "source", "note")}, "columns": columns, "rows": lines}
