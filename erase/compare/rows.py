"""Runs to rows, rows to means with their intervals, and the distance to a model retrained without the concept."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

import yaml

from ..evaluate.protocols import RENAMED
from ..evaluate.table import label_of
from ..layout import CONFIG_FILE, EVALUATION_DIR, EVALUATION_FILE, MANIFEST_FILE, METRICS_FILE
from .chance import Estimate, over_seeds
from .config import BASE
from .jobs import RUNS_DIR

TRAINING_STAGES = ("mask", "train", "edit")
"""Stages of a run that are the method's own work; making the pictures is shared, and evaluation is the same for all."""
NAMES = ("method", "kind", "concept", "seed", "folder", "resumed", "intervals")
"""Keys of a row that hold no figure."""
COSTS = ("seconds", "data_seconds", "peak_bytes")
KEPT_RATES = ("ira", "cra")
DISTANCE_OF_GAP = "fd_canvas"
LARGEST_GAP = 100.0

Row = dict[str, Any]


def rows_of(folder: Path) -> list[Row]:
    """One row for each finished run in a comparison's folder, base first; every figure comes from the run's own files.

    Raises ValueError when the runs were not evaluated on the same pictures of the same base.
    """
    files = sorted((folder / RUNS_DIR).glob("*/*.json"))
    found = [(path, _read(path)) for path in files if is_finished(path.with_suffix(""))]
    _check_same_pictures([path.with_suffix("") for path, _ in found])
    rows = [
        row_of(path.with_suffix(""), method=job["method"], kind=job["kind"], concept=job["concept"], seed=job["seed"])
        | {"folder": path.with_suffix("").relative_to(folder).as_posix()}
        for path, job in found
    ]
    return sorted(rows, key=lambda row: (row["kind"] != BASE, row["method"], row["concept"], row["seed"] or 0))


def is_finished(run: Path) -> bool:
    """Whether a run has been evaluated to the end."""
    proved = not (run / CONFIG_FILE).is_file() or (run / MANIFEST_FILE).is_file()
    return proved and (run / EVALUATION_DIR / EVALUATION_FILE).is_file()


def row_of(run: Path, *, method: str, kind: str, concept: str, seed: int | None) -> Row:
    """The row of a run's folder: names, the values of its metrics.json (rates in 0–1), seconds and bytes.

    `intervals` holds the figures' 95 % intervals over the run's own pictures, key → [low, high]. `seconds` are
    those of mask and training, or of the edit; 0 for a guard, None for the base. They and `peak_bytes` are None where a
    run was interrupted and resumed: its files hold the last part only.
    """
    figures = _read(run / EVALUATION_DIR / METRICS_FILE)["erased"]
    names = {"method": method, "kind": kind, "concept": concept, "seed": seed}
    values = {key: figure["value"] for key, figure in figures.items()}
    known = {
        key: [figure["low"], figure["high"]] for key, figure in figures.items() if {"low", "high"} <= figure.keys()
    }
    return names | values | _costs(run, kind) | {"intervals": known}


def estimate_of(row: Mapping[str, Any], key: str) -> Estimate:
    """A figure or cost of one row. A cost has no width of its own; a figure without an interval could be anywhere."""
    value = row[key]
    if key in COSTS:
        return Estimate(value, value, value)
    return Estimate(value, *row.get("intervals", {}).get(key, ()))


def _costs(run: Path, kind: str) -> Row:
    if not (run / MANIFEST_FILE).is_file():
        spent = 0.0 if kind == "inference" else None
        return {"seconds": spent, "data_seconds": 0.0, "peak_bytes": None, "resumed": False}
    manifest = _read(run / MANIFEST_FILE)
    config = yaml.safe_load((run / CONFIG_FILE).read_text(encoding="utf-8"))
    resumed, spent = manifest.get("resumed", config.get("resume_from_checkpoint") is not None), manifest["seconds"]
    own = [spent[stage] for stage in TRAINING_STAGES if stage in spent]
    return {
        "seconds": None if resumed else round(sum(own), 2),
        "data_seconds": spent.get("data", 0.0),
        "peak_bytes": None if resumed else manifest.get("peak_bytes"),
        "resumed": resumed,
    }


def _check_same_pictures(runs: Sequence[Path]) -> None:
    """Refuse runs whose base, prompts, seeds or sampler differ."""
    seen: dict[str, tuple[Path, Any]] = {}
    for run in runs:
        metrics = _read(run / EVALUATION_DIR / METRICS_FILE)
        base = _read(run / EVALUATION_DIR / EVALUATION_FILE)["models"]["base"]["sha256"]
        what = protocol_of(metrics), base
        first, expected = seen.setdefault(json.dumps(metrics.get("concepts")), (run, what))
        if what != expected:
            raise ValueError(
                f"{run} and {first} were not evaluated on the same pictures of the same base: {what} and {expected}. "
                "Remove one of them, or compare in another --output_dir."
            )


def protocol_of(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """How a run's pictures were made; an older run's keys by their names of today."""
    made: Mapping[str, Any] = metrics["protocol"]
    return {RENAMED.get(key, key): value for key, value in made.items()}


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); remove its run and call the comparison again.") from error


@dataclass(frozen=True, kw_only=True)
class MethodSummary:
    """A method's rows in one line."""

    method: str
    """Label."""
    kind: str
    """base, trained, closed-form or inference."""
    n: int
    """Rows."""
    mean: Mapping[str, float]
    """Mean of each figure and cost over the rows that have it."""
    sd: Mapping[str, float]
    """Their standard deviation (n − 1); only of what two rows or more have."""
    interval: Mapping[str, Sequence[float]]
    """95 % interval of each mean, low and high, over pictures and seeds; only of what has one."""

    def estimate(self, key: str) -> Estimate:
        """A mean with its interval. A cost that was measured once has no width."""
        value = self.mean[key]
        return Estimate(value, *self.interval.get(key, (value, value) if key in COSTS else ()))


def aggregate(rows: Iterable[Mapping[str, Any]]) -> list[MethodSummary]:
    """Mean with its interval, standard deviation and number of each method's rows, in the methods' first order."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["method"], []).append(row)
    return [_summary(method, of) for method, of in groups.items()]


def _summary(method: str, rows: Sequence[Mapping[str, Any]]) -> MethodSummary:
    keys = dict.fromkeys(key for row in rows for key in row if key not in NAMES)
    found = {key: [estimate_of(row, key) for row in rows if row.get(key) is not None] for key in keys}
    means = {key: _mean_of(key, of) for key, of in found.items() if of}
    return MethodSummary(
        method=method,
        kind=rows[0]["kind"],
        n=len(rows),
        mean={key: mean.value for key, mean in means.items()},
        sd={key: stdev(one.value for one in of) for key, of in found.items() if len(of) > 1},
        interval={
            key: list(mean.interval)
            for key, mean in means.items()
            if mean.interval and (key not in COSTS or len(found[key]) > 1)
        },
    )


def _mean_of(key: str, runs: Sequence[Estimate]) -> Estimate:
    """Over seeds, within what the figure can be."""
    most = 1.0 if label_of(key).is_rate else inf
    return over_seeds(runs).within(0.0 if most == 1.0 or key in COSTS else -inf, most)


def average_gap(
    rows: Sequence[Mapping[str, Any]],
    gold_row: Mapping[str, Any],
    fd_floor: float,
    erased: Literal["ua_coherent", "ua"] = "ua_coherent",
) -> float:
    """Gap to the gold model in points, as SalUn's average gap (arXiv 2310.12508): 0 is the model that never saw it.

    Mean of |mean over rows − gold| over `erased`, IRA and CRA in percentage points and FD-canvas in floors, at most
    100 of them: |fd − fd_gold| / fd_floor. `fd_floor` is the base's own FD-canvas, the distance that other seeds alone
    make. One floor counts as one point, for both are about what chance does: the standard deviation of a rate near 99 %
    is 0.7 points at 200 pictures, 0.4 at 500. In per cent of the floor, FD would be all of the gap.

    A retrained model need not answer an unknown word with a proper picture; UA coherent counts that as something to be
    copied, UA does not. The rows are one method's, on the gold row's concept. Raises ValueError without rows or for a
    floor that is not positive.
    """
    if not rows or fd_floor <= 0:
        raise ValueError(f"A gap needs rows and a positive floor, got {len(rows)} rows and {fd_floor}.")
    rates = (erased, *KEPT_RATES)
    mean = {key: fmean(row[key] for row in rows) for key in (*rates, DISTANCE_OF_GAP)}
    gaps = [100 * abs(mean[key] - gold_row[key]) for key in rates]
    distance = abs(mean[DISTANCE_OF_GAP] - gold_row[DISTANCE_OF_GAP]) / fd_floor
    return fmean([*gaps, min(LARGEST_GAP, distance)])
