"""Figures as rows to print: base beside erased with counts and intervals, and the model card's table."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..evaluate.table import count_of, label_of, rests_on

MODELS = ("base", "erased")
FIELDS = ("value", "low", "high", "n")
NBSP = "\N{NO-BREAK SPACE}"
DASH = "\N{EN DASH}"


def figure_rows(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a figure, the erased model's first: key, label, both models' intervals (or None), the paired test.

    A figure that is a share of its n pictures has their `count`, else None. Raises ValueError when an interval lacks a
    field, or when a share is no whole number of its pictures.
    """
    base, erased, paired = (metrics.get(name) or {} for name in (*MODELS, "paired"))
    return [
        {
            "key": key,
            "label": (label := label_of(key)).shown,
            "is_part": label.is_part,
            "meaning": label.meaning,
            "is_rate": label.is_rate,
            "base": _checked(key, base[key]) if key in base else None,
            "erased": _checked(key, erased[key]) if key in erased else None,
            "paired": paired.get(key),
        }
        for key in dict.fromkeys([*erased, *base])
    ]


def _checked(key: str, figure: Any) -> dict[str, Any]:
    if not isinstance(figure, Mapping) or any(not isinstance(figure.get(name), int | float) for name in FIELDS):
        raise ValueError(
            f"The figure {key!r} of metrics.json is {figure!r}, expected numbers for {', '.join(FIELDS)}; "
            "make the file again with `erase evaluate`."
        )
    return {name: figure[name] for name in FIELDS} | {"count": count_of(key, figure["value"], figure["n"])}


def percent(value: float) -> str:
    """A rate in per cent, with its sign; 0 % and 100 % mean none and all."""
    return f"{100 * value:.0f}{NBSP}%" if value in (0, 1) else f"{100 * value:.1f}{NBSP}%"


def number(value: float) -> str:
    """A count (int) as it is; a distance or score short and without false digits."""
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.2f}" if abs(value) >= 10 else f"{value:.3f}"


def plain(value: float, is_rate: bool) -> str:
    """A figure in a column that says its unit: rates in per cent without the sign."""
    return f"{100 * value:.1f}" if is_rate else number(value)


def interval(figure: Mapping[str, Any], is_rate: bool) -> str:
    """`92.5–98.0`, in the unit of `plain`."""
    return f"{plain(figure['low'], is_rate)}{DASH}{plain(figure['high'], is_rate)}"


def count(figure: Mapping[str, Any]) -> str:
    """`203 of 204`; `n = 570` where nothing is counted."""
    return rests_on(figure["count"], figure["n"])


def p_value(p: float) -> str:
    """An exact p; below a thousandth only that."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def markdown_table(metrics: Mapping[str, Any]) -> str:
    """The figures of a metrics.json as a Markdown table with counts and 95 % intervals: what a model card shows."""
    rows = figure_rows(metrics)
    names = [name for name in MODELS if any(row[name] for row in rows)]
    tested = any(row["paired"] for row in rows)
    head = ["pictures, and rates in % with 95 % interval", *names, *(["p"] if tested else [])]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *(_markdown_cells(row, names, tested) for row in rows)]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    notes = ["Base and erased share prompts and seeds."] if "base" in names else []
    notes += ["p: exact McNemar test over the pairs."] if tested else []
    return "\n\n".join([table, " ".join(notes)]).strip()


def _markdown_cells(row: Mapping[str, Any], names: Sequence[str], tested: bool) -> list[str]:
    title = row["label"] + (f": {row['meaning']}" if row["meaning"] else "")
    values = [_markdown_value(row[name], row["is_rate"]) if row[name] else DASH for name in names]
    p = [p_value(row["paired"]["p_value"]) if row["paired"] else DASH] if tested else []
    return [title.replace("|", "\\|"), *values, *p]


def _markdown_value(figure: Mapping[str, Any], is_rate: bool) -> str:
    """`203 of 204: 99.5 [97.3–99.9]`."""
    return f"{count(figure)}: {plain(figure['value'], is_rate)} [{interval(figure, is_rate)}]"
