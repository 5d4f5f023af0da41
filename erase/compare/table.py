"""The comparison as one table, base first: means with their intervals, marked where a lead is more than chance."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap

from ..evaluate.table import Label, label_of
from ..html.figures import DASH, plain
from .chance import marked
from .config import BASE
from .rows import COSTS, MethodSummary

FIGURES = ("ua", "ua_coherent", "ira", "cra", "coherence", "fd_canvas")
"""Columns of the canvas; other protocols show their own figures."""
MOST_FIGURES = 8
GIGABYTE = 1e9
COST_MARGIN = 0.05
"""Share by which two costs must differ: the same run takes a little longer or shorter each time."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """A figure or a cost."""

    key: str
    """Key of a summary's means."""
    label: Label
    """Its name, and which direction is better."""
    show: Callable[[float], str]
    """A mean as text; the name says the unit."""

    @property
    def margin(self) -> float:
        """Share by which values must differ beside being apart."""
        return COST_MARGIN if self.key in COSTS else 0.0

    @property
    def sign(self) -> int:
        """1: more is better. −1: less is better. 0: neither."""
        return {"more": 1, "less": -1, None: 0}[self.label.better]


@dataclass(frozen=True, kw_only=True)
class Value:
    """A cell."""

    mean: str
    """Mean over seeds, or a dash."""
    interval: str
    """Its 95 % interval; empty where it is not known."""
    is_marked: bool
    """Whether it is the best or chance cannot tell it from the best, and some method is worse by more than chance."""

    @property
    def text(self) -> str:
        """mean [interval]."""
        return f"{self.mean} [{self.interval}]" if self.interval else self.mean


def columns_of(summaries: Sequence[MethodSummary]) -> list[Column]:
    """The columns that a table of these has."""
    there = dict.fromkeys(key for summary in summaries for key in summary.mean if key not in COSTS)
    chosen = [key for key in FIGURES if key in there]
    if not chosen:
        chosen = [key for key in there if not label_of(key).is_part][:MOST_FIGURES]
    figures = [Column(key=key, label=label_of(key), show=_shown(key)) for key in chosen]
    seconds, peak = (Label(name, "", "number", "less") for name in ("seconds", "peak GB"))
    costs = [
        Column(key="seconds", label=seconds, show=lambda value: f"{value:.0f}" if value >= 100 else f"{value:.1f}"),
        Column(key="peak_bytes", label=peak, show=lambda value: f"{value / GIGABYTE:.2f}"),
    ]
    return figures + costs


def _shown(key: str) -> Callable[[float], str]:
    is_rate = label_of(key).is_rate
    return lambda value: plain(value, is_rate)


def cells(summaries: Sequence[MethodSummary], column: Column) -> dict[str, Value]:
    """Method → its cell. The base's own row is never marked."""
    there = {s.method: s.estimate(column.key) for s in summaries if column.key in s.mean and s.kind != BASE}
    best = marked(there, column.sign, column.margin) if column.sign else set()
    return {s.method: value_of(s, column, s.method in best) for s in summaries}


def value_of(summary: MethodSummary, column: Column, is_marked: bool = False) -> Value:
    """A summary's cell in a column."""
    mean, interval = summary.mean.get(column.key), summary.interval.get(column.key)
    return Value(
        mean=DASH if mean is None else column.show(mean),
        interval=DASH.join(map(column.show, interval)) if interval else "",
        is_marked=is_marked,
    )


def text_table(summaries: Sequence[MethodSummary]) -> str:
    """For a terminal: under each method's line its intervals; what is marked has a star."""
    columns = columns_of(summaries)
    by_column = [cells(summaries, column) for column in columns]
    rows = [["", *(f"{column.label.shown} " for column in columns), "n"]]
    for summary in summaries:
        values = [of[summary.method] for of in by_column]
        rows.append([summary.method, *(f"{v.mean}{'*' if v.is_marked else ' '}" for v in values), str(summary.n)])
        rows += [["", *(f"{v.interval} " for v in values), ""]] if any(v.interval for v in values) else []
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [
        f"{first:<{widths[0]}}  {'  '.join(f'{cell:>{width}}' for cell, width in zip(rest, widths[1:]))}".rstrip()
        for first, *rest in rows
    ]
    rule = "─" * max(map(len, lines))
    return "\n".join([lines[0], rule, *lines[1:], rule, *wrap(f"{CAPTION} *: {MARK}", max(60, len(rule)))])


def markdown_table(summaries: Sequence[MethodSummary]) -> str:
    """For a document; what is marked is bold."""
    columns = columns_of(summaries)
    by_column = [cells(summaries, column) for column in columns]
    lines = [["method", *(column.label.shown for column in columns), "n"], ["---"] + ["---:"] * (len(columns) + 1)]
    for summary in summaries:
        values = [of[summary.method] for of in by_column]
        shown = [
            f"**{value.mean}**{value.text.removeprefix(value.mean)}" if value.is_marked else value.text
            for value in values
        ]
        lines.append([summary.method.replace("|", "\\|"), *shown, str(summary.n)])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{table}\n\n{CAPTION} Bold: {MARK}\n"


CAPTION = (
    "Rates in %. A value is the mean over n seeds; its 95 % interval counts pictures and seeds together, with one run "
    "the pictures alone. Seconds: mask and training, or the edit; pictures are shared. Peak: memory of the run."
)
MARK = (
    "the best of the column and every value whose interval meets its interval; nothing where that is every method. "
    "Seconds and peak also have to differ by 5 %."
)


def ordered(summaries: Sequence[MethodSummary], score: Mapping[str, float]) -> list[MethodSummary]:
    """Base first, then by falling score; what has none keeps its order, at the end. An order, not a verdict."""
    return sorted(summaries, key=lambda s: (s.kind != BASE, -score.get(s.method, float("-inf"))))
