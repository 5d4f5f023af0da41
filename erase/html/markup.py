"""Small pieces of HTML and inline SVG that the sections are made of; every piece escapes the text that it is given."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple


class Cell(NamedTuple):
    """A table cell: ready HTML and its class."""

    html: str
    kind: str = ""


def text(value: object) -> str:
    """A value as escaped text."""
    return escape(str(value), quote=True)


def num(value: object) -> Cell:
    """A cell with a number, aligned to the right."""
    return Cell(text(value), "num")


def section(anchor: str, title: str, *content: str) -> str:
    """A landmark with a heading."""
    body = "\n".join(part for part in content if part)
    return (
        f'<section id="{anchor}" aria-labelledby="{anchor}-title">\n'
        f'<h2 id="{anchor}-title">{text(title)}</h2>\n{body}\n</section>'
    )


def note(words: str) -> str:
    """A line of explanation."""
    return f'<p class="note">{text(words)}</p>'


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[Cell]], kind: str = "stacked") -> str:
    """A table in a box of its own that scrolls sideways; the first cell of a row is its header.

    kind: classes. `stacked` sets each row as a block on a narrow screen, its cells under the titles of their columns.
    The roles say what the elements are anyway, for a browser forgets it where a style sheet sets rows as blocks.
    """
    lines = []
    for first, *rest in rows:
        cells = "".join(_cell(cell, title) for cell, title in zip(rest, head[1:]))
        lines.append(f'<tr role="row"><th role="rowheader" scope="row"{_class(first)}>{first.html}</th>{cells}</tr>')
    heads = "".join(f'<th role="columnheader" scope="col">{text(title)}</th>' for title in head)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{text(caption)}"><table role="table" '
        f'class="{kind}"><caption>{text(caption)}</caption><thead role="rowgroup"><tr role="row">{heads}</tr></thead>'
        f'<tbody role="rowgroup">{"".join(lines)}</tbody></table></div>'
    )


def _cell(cell: Cell, title: str) -> str:
    label = f' data-label="{text(title)}"' if title else ""
    return f'<td role="cell"{_class(cell)}{label}>{cell.html}</td>'


def _class(cell: Cell) -> str:
    return f' class="{cell.kind}"' if cell.kind else ""


def details(summary: str, content: str) -> str:
    """A part that is closed until somebody opens it."""
    return f"<details><summary>{text(summary)}</summary>{content}</details>"


def code(source: str) -> str:
    """Text as it stands in a file."""
    return f'<pre class="scroll" tabindex="0">{text(source)}</pre>'


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Terms with what is to be said of them."""
    return '<dl class="facts">' + "".join(f"<dt>{text(a)}</dt><dd>{text(b)}</dd>" for a, b in pairs) + "</dl>"


def bars(*shares: tuple[str, float]) -> str:
    """Horizontal bars under each other, each with its class (`base`, `erased`) and length in 0–1 of the cell.

    The numbers stand beside them in the table, so the picture itself is hidden from screen readers.
    """
    height = 100 / len(shares)
    rects = "".join(
        f'<rect class="{kind}" y="{at * height + 8 / len(shares):.1f}%" width="{100 * min(1.0, max(0.0, share)):.2f}%" '
        f'height="{height - 16 / len(shares):.1f}%"/>'
        for at, (kind, share) in enumerate(shares)
    )
    return f'<svg class="bars n{len(shares)}" aria-hidden="true" focusable="false">{rects}</svg>'


def whiskers(*intervals: tuple[str, float, float, float]) -> str:
    """Points with their intervals on a scale of 0–1: (class, value, low, high), under each other."""
    parts = ['<line class="scale" x1="0" x2="100%" y1="50%" y2="50%"/>']
    for at, (kind, value, low, high) in enumerate(intervals):
        y = f"{100 * (at + 1) / (len(intervals) + 1):.1f}%"
        parts.append(f'<line class="{kind}" x1="{100 * low:.2f}%" x2="{100 * high:.2f}%" y1="{y}" y2="{y}"/>')
        parts.append(f'<circle class="{kind}" cx="{100 * value:.2f}%" cy="{y}" r="3.5"/>')
    return f'<svg class="whiskers" aria-hidden="true" focusable="false">{"".join(parts)}</svg>'


def curve(xs: Sequence[float], ys: Sequence[float], label: str) -> str:
    """A line over 0…max(y), stretched to its box."""
    top, span = max(*ys, 1e-12), max(xs[-1] - xs[0], 1)
    points = " ".join(f"{600 * (x - xs[0]) / span:.1f},{150 - 146 * y / top:.1f}" for x, y in zip(xs, ys))
    return (
        f'<svg class="curve" role="img" aria-label="{text(label)}" viewBox="0 0 600 150" preserveAspectRatio="none">'
        f'<polyline points="{points}"/></svg>'
    )
