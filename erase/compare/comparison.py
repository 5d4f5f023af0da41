"""A comparison's folder to the dict that compare.json holds and the page shows."""

import json
from collections.abc import Mapping, Sequence
from math import inf
from pathlib import Path
from statistics import stdev
from typing import Any

from .. import __version__
from ..layout import EVALUATION_DIR, EVALUATION_FILE, METRICS_FILE
from .chance import Estimate, leaders, lesser, over_seeds
from .config import BASE
from .pareto import Axes, axes_of, erased, kept, unbeaten
from .rows import MethodSummary, Row, aggregate, protocol_of, rows_of
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
    metrics, provenance = (
        json.loads((evaluation / n).read_text(encoding="utf-8")) for n in (METRICS_FILE, EVALUATION_FILE)
    )
    return {
        "format": FORMAT,
        "erase_version": __version__,
        "concept": base["concept"],
        "base": provenance["models"]["base"],
        "protocol": protocol_of(metrics),
        "axes": {"erasure": axes.erasure_title, "retention": axes.retention_title} if axes else None,
        "leaders": leaders_of(lines) if axes else None,
        "summary": lines,
        "rows": rows,
        "failures": list(failures),
        "made": dict(made),
        "packages": provenance["packages"],
        "device": provenance["device"],
    }


def placed(rows: Sequence[Row], base: Row, axes: Axes | None) -> list[dict[str, Any]]:
    """The summaries with erased, kept and whether they are on the front; base first, then by the lesser of the two."""
    summaries = aggregate(rows)
    if axes is None:
        return [described(summary) for summary in ordered(summaries, {})]
    methods = {summary.method: [row for row in rows if row["method"] == summary.method] for summary in summaries}
    shares = {
        method: {
            "erased": share_of([erased(row, base, axes) for row in of], most=1.0),
            "kept": share_of([kept(row, base, axes) for row in of]),
        }
        for method, of in methods.items()
    }
    points = {method: [estimate(share) for share in of.values()] for method, of in shares.items() if method != BASE}
    front = dict(zip(points, unbeaten(list(points.values()))))
    in_order = ordered(summaries, {method: lesser(*point).value for method, point in points.items()})
    return [described(s) | shares[s.method] | {"on_front": front.get(s.method, False)} for s in in_order]


def share_of(runs: Sequence[Estimate], most: float = inf) -> dict[str, float | None]:
    """Mean over the runs, their standard deviation and the mean's interval; None where one is not known."""
    mean = over_seeds(runs).within(-inf, most)
    low, high = mean.interval or (None, None)
    sd = stdev(run.value for run in runs) if len(runs) > 1 else None
    return {"mean": mean.value, "sd": sd, "low": low, "high": high}


def estimate(share: Mapping[str, float | None]) -> Estimate:
    """`share_of`'s mean with its interval."""
    mean, low, high = (share[name] for name in ("mean", "low", "high"))
    assert mean is not None
    return Estimate(mean) if low is None or high is None else Estimate(mean, low, high)


def leaders_of(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Who erases most, keeps most, and does both best (the lesser of the two): all that chance cannot tell apart."""
    methods = {
        line["method"]: (estimate(line["erased"]), estimate(line["kept"])) for line in lines if line["kind"] != BASE
    }
    return {
        "erased": leaders({method: gone for method, (gone, _) in methods.items()}, 1),
        "kept": leaders({method: left for method, (_, left) in methods.items()}, 1),
        "both": leaders({method: lesser(*point) for method, point in methods.items()}, 1),
    }


def described(summary: MethodSummary) -> dict[str, Any]:
    """A summary as JSON."""
    names = {"method": summary.method, "kind": summary.kind, "n": summary.n}
    return names | {name: dict(getattr(summary, name)) for name in ("mean", "sd", "interval")}


def summaries_of(comparison: Mapping[str, Any]) -> list[MethodSummary]:
    """The summaries back from JSON, in the table's order."""
    names = ("method", "kind", "n", "mean", "sd", "interval")
    return [MethodSummary(**{name: line[name] for name in names}) for line in comparison["summary"]]
