"""The grid of pictures on the page: the same prompts and seeds, one line for the base and for each method."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..draw.records import Record
from ..evaluate.grid import spread
from ..evaluate.scoring import load_scored
from ..html.markup import note, section, text
from ..layout import EVALUATION_DIR
from ..report.gallery import data_uri
from ..report.pairs import is_sensitive, judged_columns

COLUMNS = {"target": 5, "retain": 5}
"""Pictures of prompts that ask for the concept, and of others."""
TITLES = {"target": "asked for {}", "retain": "asked for something else"}


def samples(comparison: Mapping[str, Any], folder: Path) -> str:
    """The section; nothing where no pictures are kept. Of a method with several seeds the first run is shown."""
    runs: dict[str, str] = {}
    for row in comparison["rows"]:
        runs.setdefault(row["method"], row["folder"])
    names = [line["method"] for line in comparison["summary"]]
    sides = {name: folder / runs[name] / EVALUATION_DIR / "erased" for name in names}
    records = {name: {record["id"]: record for record in load_scored(path).records} for name, path in sides.items()}
    chosen = chosen_columns(list(next(iter(records.values())).values()))
    sensitive = bool(comparison["protocol"].get("sensitive"))
    if not all((sides[name] / record["file"]).is_file() for name in sides for record in chosen.values()):
        return ""
    lines = [_line(name, sides[name], records[name], chosen, sensitive) for name in sides]
    hidden = sum(line.count('class="sensitive"') for line in lines)
    head, body = _head(chosen, comparison["concept"]), f'<tbody role="rowgroup">{"".join(lines)}</tbody>'
    grid = f'<table role="table" class="samples">{head}{body}</table>'
    body = f'<div class="scroll" role="region" tabindex="0" aria-label="Pictures by method">{grid}</div>'
    return section("pictures", "Pictures", note(_words(comparison, chosen)), _reveal_all(hidden), body)


def _words(comparison: Mapping[str, Any], chosen: Mapping[str, Record]) -> str:
    words = "One prompt and seed a column, one method a line; chosen evenly over the prompts, not by what they show."
    is_judged = any(map(judged_columns, chosen.values()))
    return words + (f" Framed: the judge still sees {comparison['concept']}." if is_judged else "")


def chosen_columns(base: Sequence[Record]) -> dict[str, Record]:
    """Id → record of the base's pictures that stand for the others: the target's first, each role spread evenly."""
    chosen: dict[str, Record] = {}
    for role, count in COLUMNS.items():
        of_role = [record for record in base if record.get("role", "target") == role]
        chosen |= {record["id"]: record for record in (spread(of_role, count) if of_role else [])}
    return chosen


def _head(chosen: Mapping[str, Record], concept: str) -> str:
    roles = [record.get("role", "target") for record in chosen.values()]
    groups = "".join(
        f'<th role="columnheader" scope="colgroup" colspan="{roles.count(role)}" class="{role}{_gap(at > 0)}">'
        f"{text(TITLES[role].format(concept))}</th>"
        for at, role in enumerate(dict.fromkeys(roles))
    )
    prompts = "".join(
        f'<th role="columnheader" scope="col" class="{role}{_gap(_begins(roles, at))}">'
        f'<div class="prompt" dir="auto">{text(record["prompt"])}</div></th>'
        for at, (role, record) in enumerate(zip(roles, chosen.values()))
    )
    corner = '<td role="cell"></td>'
    rows = "".join(f'<tr role="row">{corner}{cells}</tr>' for cells in (groups, prompts))
    return f'<thead role="rowgroup">{rows}</thead>'


def _line(
    name: str, side: Path, records: Mapping[str, Record], chosen: Mapping[str, Record], sensitive_protocol: bool
) -> str:
    roles = [record.get("role", "target") for record in chosen.values()]
    found = [_picture(name, side, records[at], sensitive_protocol) for at in chosen]
    cells = "".join(
        f'<td role="cell" class="{role}{_gap(_begins(roles, at))}">{picture}</td>'
        for at, (role, picture) in enumerate(zip(roles, found))
    )
    return f'<tr role="row"><th role="rowheader" scope="row">{text(name)}</th>{cells}</tr>'


def _picture(name: str, side: Path, record: Record, sensitive_protocol: bool) -> str:
    uri, width, height = data_uri(side / record["file"])
    judged = [str(record[column]) for column in judged_columns(record)]
    seen = f", judged {', '.join(judged)}" if judged else ""
    alt = text(f"{name}: {record['prompt']}{seen}")
    frame = "frame still" if still_there(record) else "frame"
    size = f'width="{width}" height="{height}"'
    if not is_sensitive(record, sensitive_protocol):
        return f'<div class="{frame}"><img src="{uri}" {size} alt="{alt}"></div>'
    said = f'aria-pressed="false" aria-label="Show blurred picture: {alt}"'
    button = f'<button type="button" class="reveal" {said} hidden></button>'
    return f'<div class="{frame}"><img class="sensitive" src="{uri}" {size} alt="{alt}">{button}</div>'


def still_there(record: Mapping[str, Any]) -> bool:
    """Whether a judge named the erased class in a picture that asked for it."""
    columns = [name.removeprefix("judged_") for name in judged_columns(record)]
    return record.get("role") == "target" and any(record[f"judged_{name}"] == record.get(name) for name in columns)


def _begins(roles: Sequence[str], at: int) -> bool:
    """Whether a second group of columns begins."""
    return at > 0 and roles[at] != roles[at - 1]


def _gap(wide: bool) -> str:
    return " gap" if wide else ""


def _reveal_all(hidden: int) -> str:
    if not hidden:
        return ""
    plural = "picture" if hidden == 1 else "pictures"
    button = f'<button type="button" id="reveal-all" aria-pressed="false">Show {hidden} blurred {plural}</button>'
    return f'<div class="controls" hidden>{button}</div>'
