"""Pictures to look at: base above erased at the same seeds, and the sheet of everything that the canvas can draw."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from ..data.pictures import read_picture
from ..draw.records import Record
from ..files import atomic_path

_INK, _FAINT, _PAPER, _RULE = (28, 30, 36), (112, 116, 126), (255, 255, 255), (222, 224, 229)
_TILE = 128
_GAP = 6
_MARGIN = 28
_SHEET = (84, 28, 4)
"""Left and top margin of a sheet and the gap between its pictures."""
_TITLES = {"target": "Erased", "retain": "Kept"}


def comparison_grid(
    path: Path,
    records: Sequence[Record],
    folders: dict[str, Path],
    concepts: Sequence[str] = (),
    num_pairs: int = 12,
    columns: int = 6,
) -> None:
    """Write a PNG with a panel for what was erased and one for what was kept: one seed a column, one model a line.

    `folders` name the models, top line first; each holds the pictures of the same records.
    """
    panels = []
    for role, title in _TITLES.items():
        picked = spread([record for record in records if record.get("role", "target") == role], num_pairs)
        if picked:
            named = f": {', '.join(concepts)}" if concepts and role == "target" else ""
            panels.append(_panel(title + named, picked, folders, columns))
    size = sum(panel.width for panel in panels) + (len(panels) + 1) * _MARGIN, panels[0].height + 2 * _MARGIN
    sheet = Image.new("RGB", size, _PAPER)
    x = _MARGIN
    for panel in panels:
        if x > _MARGIN:
            ImageDraw.Draw(sheet).line([(x - _MARGIN // 2, _MARGIN), (x - _MARGIN // 2, sheet.height - _MARGIN)], _RULE)
        sheet.paste(panel, (x, _MARGIN))
        x += panel.width + _MARGIN
    with atomic_path(path) as temporary:
        sheet.save(temporary)


def spread(records: Sequence[Record], count: int) -> list[Record]:
    """`count` records, evenly over the first round of different prompts, so that they differ."""
    kinds = {(record["object"], record.get("style")) if "object" in record else record["prompt"] for record in records}
    last = min(len(records), max(count, len(kinds))) - 1
    return [records[round(place)] for place in np.linspace(0, last, min(count, len(records)))]


def _panel(title: str, picked: Sequence[Record], folders: dict[str, Path], columns: int) -> Image.Image:
    head, left, caption = 40, 52, 44
    line_height = len(folders) * (_TILE + _GAP // 2) + _GAP // 2 + caption
    lines = -(-len(picked) // columns)
    panel = Image.new("RGB", (left + columns * (_TILE + _GAP), head + lines * line_height), _PAPER)
    pen = ImageDraw.Draw(panel)
    pen.text((left, 0), title, _INK, ImageFont.load_default(22))
    for place, record in enumerate(picked):
        x, y = left + place % columns * (_TILE + _GAP), head + place // columns * line_height
        for name, folder in folders.items():
            picture = Image.fromarray(read_picture(folder / record["file"]))
            panel.paste(ImageOps.fit(picture, (_TILE, _TILE), Image.Resampling.LANCZOS), (x, y))
            if place % columns == 0:
                pen.text((left - 10, y + _TILE // 2), name, _INK, ImageFont.load_default(13), anchor="rm")
            y += _TILE + _GAP // 2
        text = textwrap.fill(textwrap.shorten(record["prompt"], 57, placeholder=" …"), 20)
        pen.multiline_text(
            (x + _TILE // 2, y + _GAP // 2), text, _FAINT, ImageFont.load_default(12), anchor="ma", align="center",
            spacing=2,
        )  # fmt: skip
    return panel


def picture_sheet(path: Path, pictures: np.ndarray, columns: Sequence[str], lines: Sequence[str]) -> None:
    """Write a labelled PNG of uint8 pictures (len(columns)·len(lines), H, W, 3), ordered column by column."""
    if len(pictures) != len(columns) * len(lines):
        raise ValueError(f"{len(columns)} × {len(lines)} pictures are needed, got {len(pictures)}.")
    size, (left, head, gap) = pictures.shape[1], _SHEET
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
    with atomic_path(path) as temporary:
        sheet.save(temporary)


def sheet_pictures(path: Path, columns: int, lines: int, size: int) -> np.ndarray:
    """The pictures of a sheet that `picture_sheet` wrote: (columns·lines, size, size, 3) uint8, column by column."""
    left, head, gap = _SHEET
    sheet = read_picture(path)
    corners = [
        (head + line * (size + gap), left + column * (size + gap)) for column in range(columns) for line in range(lines)
    ]
    return np.stack([sheet[top : top + size, at : at + size] for top, at in corners])
