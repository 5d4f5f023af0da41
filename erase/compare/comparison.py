"""A comparison's folder to the dict that compare.json holds and the page shows."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from .. import __version__
from .config import BASE
from .jobs import EVALUATION_DIR
from .pareto import Axes, axes_of, erased, kept, pareto_front
from .rows import METRICS_FILE, Row, Summary, aggregate, rows_of
from .table import ordered

FORMAT = "erase.compare/1"
Comparison = dict[str, Any]


def collect(folder: Path, made: Mapping[str, Any], failures: Sequence[str] = ()) -> Comparison:
    """Everything that compare.json and the page hold; `made` says how it was asked for.

    Raises ValueError when the base itself has not been evaluated.
    """
    rows = rows_of(folder)
    base = next((row for row in rows if row["kind"] == BASE), None)
    if base is None:
        raise ValueError(f"{folder} holds no evaluation of the base, so there is nothing to compare with.")
    axes = axes_of(base)
    lines = placed(rows, base, axes)
    evaluation = folder / base["folder"] / EVALUATION_DIR
    metrics, provenance = (json.loads((evaluation / n).read_text()) for n in (METRICS_FILE, "evaluation.json"))
    return {
        "format": FORMAT,
        "erase_version": __version__,
        "concept": base["concept"],
        "base": provenance["models"]["base"],
        "protocol": metrics["protocol"],
        "axes": {"erasure": axes.erasure_title, "retention": axes.retention_title} if axes else None,
        "summary": lines,
        "rows": rows,
        "failures": list(failures),
        "made": dict(made),
        "packages": provenance["packages"],
        "device": provenance["device"],
    }


def placed(rows: Sequence[Row], base: Row, axes: Axes | None) -> list[dict[str, Any]]:
    """The summaries with erased, kept and whether they are on the front; best first, by the lesser of the two."""
    summaries = aggregate(rows)
    if axes is None:
        return [described(summary) for summary in ordered(summaries, {})]
    methods = {summary.method: [row for row in rows if row["method"] == summary.method] for summary in summaries}
    shares = {
        method: ([erased(row, base, axes) for row in of], [kept(row, base, axes) for row in of])
        for method, of in methods.items()
    }
    points = {method: (fmean(gone), fmean(left)) for method, (gone, left) in shares.items() if method != BASE}
    front = dict(zip(points, pareto_front(list(points.values()))))
    in_order = ordered(summaries, {method: min(point) for method, point in points.items()})
    spreads = {method: {"erased": _spread(gone), "kept": _spread(left)} for method, (gone, left) in shares.items()}
    return [described(s) | spreads[s.method] | {"on_front": front.get(s.method, False)} for s in in_order]


def described(summary: Summary) -> dict[str, Any]:
    """A summary as JSON."""
    names = {"method": summary.method, "kind": summary.kind, "n": summary.n}
    return names | {"mean": dict(summary.mean), "sd": dict(summary.sd)}


def summaries_of(comparison: Mapping[str, Any]) -> list[Summary]:
    """The summaries back from JSON, in the table's order."""
    names = ("method", "kind", "n", "mean", "sd")
    return [Summary(**{name: line[name] for name in names}) for line in comparison["summary"]]


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    return {"mean": fmean(values), "sd": stdev(values) if len(values) > 1 else None}
