"""Pictures to look at: base above erased at the same seeds, and the sheet of everything that the canvas can draw."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .canvas import EvaluationRow

_INK, _FAINT, _PAPER, _RULE = (28, 30, 36), (112, 116, 126), (255, 255, 255), (222, 224, 229)
_GAP = 6
_MARGIN = 28


def comparison_grid(
    path: Path,
    rows: Sequence[EvaluationRow],
    base_pictures: np.ndarray,
    erased_pictures: np.ndarray,
    num_pairs: int = 12,
    columns: int = 6,
    labels: tuple[str, str] = ("base", "erased"),
) -> None:
    """Write a PNG with two panels, what was erased and what was kept: base above erased, one seed a column.

    Pictures are uint8 (N, H, W, 3), in the order of `rows`, and drawn at twice their size.
    """
    if not len(rows) == len(base_pictures) == len(erased_pictures):
        counts = f"{len(rows)}, {len(base_pictures)} and {len(erased_pictures)}"
        raise ValueError(f"Rows, base pictures and erased pictures must be as many, got {counts}.")
    panels = [
        (f"Erased: {', '.join(erased_names(rows))}", _spread(rows, "target", num_pairs)),
        ("Kept", _spread(rows, "retain", num_pairs)),
    ]
    drawn = [_panel(title, picked, rows, base_pictures, erased_pictures, columns, labels) for title, picked in panels]
    sheet = Image.new("RGB", (sum(p.width for p in drawn) + 3 * _MARGIN, drawn[0].height + 2 * _MARGIN), _PAPER)
    for at, panel in enumerate(drawn):
        sheet.paste(panel, (_MARGIN + at * (panel.width + _MARGIN), _MARGIN))
    middle = _MARGIN + drawn[0].width + _MARGIN // 2
    ImageDraw.Draw(sheet).line([(middle, _MARGIN), (middle, sheet.height - _MARGIN)], _RULE, 1)
    sheet.save(path)


def erased_names(rows: Sequence[EvaluationRow]) -> list[str]:
    """The erased concepts that the rows were made for, in order of appearance."""
    names = [getattr(row, domain) for row in rows if row.role == "target" for domain in row.domains]
    return list(dict.fromkeys(names))


def _spread(rows: Sequence[EvaluationRow], role: str, count: int) -> list[int]:
    """Row numbers of `count` rows of one role: evenly over the first round of combinations, so that they differ."""
    chosen = [at for at, row in enumerate(rows) if row.role == role]
    combinations = len({(rows[at].object, rows[at].style) for at in chosen})
    last = min(len(chosen), max(count, combinations)) - 1
    return [chosen[round(place)] for place in np.linspace(0, last, min(count, len(chosen)))]


def _panel(
    title: str,
    picked: Sequence[int],
    rows: Sequence[EvaluationRow],
    base_pictures: np.ndarray,
    erased_pictures: np.ndarray,
    columns: int,
    labels: tuple[str, str],
) -> Image.Image:
    size = 2 * base_pictures.shape[1]
    head, left, caption = 40, 52, 44
    line_height = 2 * size + _GAP + caption
    lines = -(-len(picked) // columns)
    panel = Image.new("RGB", (left + columns * (size + _GAP), head + lines * line_height), _PAPER)
    pen = ImageDraw.Draw(panel)
    pen.text((left, 0), title, _INK, ImageFont.load_default(22))
    for place, at in enumerate(picked):
        x, y = left + place % columns * (size + _GAP), head + place // columns * line_height
        for lower, pictures in enumerate((base_pictures, erased_pictures)):
            picture = Image.fromarray(pictures[at]).resize((size, size), Image.Resampling.LANCZOS)
            panel.paste(picture, (x, y + lower * (size + _GAP // 2)))
            if place % columns == 0:
                middle = (left - 10, y + lower * (size + _GAP // 2) + size // 2)
                pen.text(middle, labels[lower], _INK, ImageFont.load_default(13), anchor="rm")
        text = textwrap.fill(rows[at].prompt, 20)
        corner = (x + size // 2, y + 2 * size + _GAP)
        pen.multiline_text(corner, text, _FAINT, ImageFont.load_default(12), anchor="ma", align="center", spacing=2)
    return panel


def picture_sheet(path: Path, pictures: np.ndarray, columns: Sequence[str], lines: Sequence[str]) -> None:
    """Write a labelled PNG of uint8 pictures (len(columns)·len(lines), H, W, 3), ordered column by column."""
    if len(pictures) != len(columns) * len(lines):
        raise ValueError(f"{len(columns)} × {len(lines)} pictures are needed, got {len(pictures)}.")
    size, gap, left, head = pictures.shape[1], 4, 84, 28
    width, height = left + len(columns) * (size + gap), head + len(lines) * (size + gap)
    sheet = Image.new("RGB", (width + 2 * gap, height + 2 * gap), _PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for at, name in enumerate(columns):
        pen.text((left + at * (size + gap) + size // 2, head - 6), name, _INK, font, anchor="ms")
    for at, name in enumerate(lines):
        pen.text((left - 10, head + at * (size + gap) + size // 2), name, _INK, font, anchor="rm")
    for at, picture in enumerate(pictures):
        column, line = divmod(at, len(lines))
        sheet.paste(Image.fromarray(picture), (left + column * (size + gap), head + line * (size + gap)))
    sheet.save(path)
