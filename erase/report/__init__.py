"""`erase report`: a folder with an evaluation to report.json and a page that opens from the disk without a network.

report.json   every figure, table and sentence of the page, with the sha256 of the files that they come from
report.html   the same for people: style, script and pictures are inside
"""

import json
from pathlib import Path

from ..files import write_json, write_text
from ..html.figures import markdown_table
from .collect import REPORT_FORMAT, collect
from .page import render

REPORT_FILE = "report.json"
PAGE_FILE = "report.html"


def write_report(folder: Path) -> Path:
    """Write report.json and report.html into a run folder (evaluation/ inside) or an evaluation's; returns the page.

    Raises ValueError when nothing was measured there, or when its files are damaged or do not belong together; both
    files are made before either is written.
    """
    _refuse_foreign(folder)
    report = collect(folder)
    page = render(report, folder)
    write_json(folder / REPORT_FILE, report)
    write_text(folder / PAGE_FILE, page)
    return folder / PAGE_FILE


def _refuse_foreign(folder: Path) -> None:
    """ValueError when a file of somebody else's has the name of one of ours."""
    there = [folder / name for name in (REPORT_FILE, PAGE_FILE) if (folder / name).exists()]
    if there and not _is_report(folder / REPORT_FILE):
        raise ValueError(f"{there[0]} was not written by `erase report`; move it away to have a report there.")


def _is_report(path: Path) -> bool:
    try:
        return json.loads(path.read_text(encoding="utf-8"))["format"] == REPORT_FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        return False


__all__ = ["markdown_table", "write_report"]
