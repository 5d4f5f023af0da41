"""The comparison as one table: mean ± sd over seeds, base first, the best of each column marked; text and Markdown."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..evaluate.table import label_of
from ..report.figures import DASH, plain
from .config import BASE
from .rows import COSTS, Summary

FIGURES = ("ua", "ua_coherent", "ira", "cra", "coherence", "fd_canvas")
"""Columns of the canvas; other protocols show their own figures."""
MOST_FIGURES = 8
GIGABYTE = 1e9


@dataclass(frozen=True, kw_only=True)
class Column:
    """A figure or a cost."""

    key: str
    """Key of a summary's means."""
    title: str
    """Name, with an arrow where one direction is better."""
    show: Callable[[float], str]
    """A mean or standard deviation as text; the title says the unit."""

    @property
    def sign(self) -> int:
        """1: more is better. −1: less is better. 0: neither."""
        return {"↑": 1, "↓": -1}.get(self.title[-1:], 0)


@dataclass(frozen=True, kw_only=True)
class Value:
    """A cell."""

    mean: str
    """Mean over seeds, or a dash."""
    sd: str
    """Standard deviation; empty where there are fewer than two values."""
    is_best: bool
    """Whether no method's mean is better (the base's own row does not count)."""

    @property
    def text(self) -> str:
        """mean ± sd."""
        return f"{self.mean} ± {self.sd}" if self.sd else self.mean


def columns_of(summaries: Sequence[Summary]) -> list[Column]:
    """The columns that a table of these has."""
    there = dict.fromkeys(key for summary in summaries for key in summary.mean if key not in COSTS)
    chosen = [key for key in FIGURES if key in there]
    if not chosen:
        chosen = [key for key in there if not label_of(key).title.startswith(" ")][:MOST_FIGURES]
    figures = [Column(key=key, title=label_of(key).title.strip(), show=_shown(key)) for key in chosen]
    costs = [
        Column(key="seconds", title="seconds ↓", show=lambda value: f"{value:.0f}" if value >= 100 else f"{value:.1f}"),
        Column(key="peak_bytes", title="peak GB ↓", show=lambda value: f"{value / GIGABYTE:.2f}"),
    ]
    return figures + costs


def _shown(key: str) -> Callable[[float], str]:
    is_rate = label_of(key).is_rate
    return lambda value: plain(value, is_rate)


def cells(summaries: Sequence[Summary], column: Column) -> dict[str, Value]:
    """Method → its cell; values that print alike share the mark of the best."""
    means = {s.method: s.mean[column.key] for s in summaries if column.key in s.mean and s.kind != BASE}
    best = (max if column.sign > 0 else min)(means.values(), default=None) if column.sign else None
    shown = {s.method: column.show(s.mean[column.key]) if column.key in s.mean else DASH for s in summaries}
    return {
        s.method: Value(
            mean=shown[s.method],
            sd=column.show(s.sd[column.key]) if column.key in s.sd else "",
            is_best=best is not None and s.method in means and shown[s.method] == column.show(best),
        )
        for s in summaries
    }


def text_table(summaries: Sequence[Summary]) -> str:
    """For a terminal; the best of a column has a star."""
    columns = columns_of(summaries)
    by_column = [cells(summaries, column) for column in columns]
    rows = [["", *(column.title for column in columns), "n"]]
    for summary in summaries:
        values = [of[summary.method] for of in by_column]
        rows.append([summary.method, *(f"{v.text}{'*' if v.is_best else ' '}" for v in values), str(summary.n)])
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [
        f"{first:<{widths[0]}}  " + "  ".join(f"{cell:>{width}}" for cell, width in zip(rest, widths[1:]))
        for first, *rest in rows
    ]
    rule = "─" * max(map(len, lines))
    return "\n".join([lines[0], rule, *lines[1:], rule, f"{CAPTION} *: best of the column."])


def markdown_table(summaries: Sequence[Summary]) -> str:
    """For a document; the best of a column is bold."""
    columns = columns_of(summaries)
    by_column = [cells(summaries, column) for column in columns]
    lines = [["method", *(column.title for column in columns), "n"], ["---"] + ["---:"] * (len(columns) + 1)]
    for summary in summaries:
        values = [of[summary.method] for of in by_column]
        marked = [f"**{value.text}**" if value.is_best else value.text for value in values]
        lines.append([summary.method.replace("|", "\\|"), *marked, str(summary.n)])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{table}\n\n{CAPTION} Bold: best of the column.\n"


CAPTION = (
    "Rates in %; mean ± standard deviation over n seeds. Seconds: mask and training, or the edit; pictures are shared. "
    "Peak: memory of the run."
)


def ordered(summaries: Sequence[Summary], score: Mapping[str, float]) -> list[Summary]:
    """Base first, then by falling score; what has none keeps its order, at the end."""
    return sorted(summaries, key=lambda s: (s.kind != BASE, -score.get(s.method, float("-inf"))))
