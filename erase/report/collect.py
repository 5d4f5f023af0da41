"""A folder to the dict that report.json holds and the page shows; every figure comes from the files beside it."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from .. import __version__
from ..files import file_sha256
from ..html.figures import MODELS, figure_rows
from ..layout import CONFIG_FILE, EVALUATION_FILE, LOSSES_FILE, MANIFEST_FILE, MASK_FILE, METRICS_FILE
from .nudity import nudity_totals
from .pairs import choose_pairs, load_sides
from .published import published_tables
from .verdict import verdict

REPORT_FORMAT = "erase.report/1"
LOSS_POINTS = 240
"""Points of a loss curve; longer runs are averaged into as many."""

Report = dict[str, Any]


def collect(folder: Path) -> Report:
    """Everything that a report shows of a run folder (with evaluation/ inside) or of an evaluation's folder.

    What is not there is None or empty. Raises ValueError when nothing was measured, when a file is damaged, or when
    base and erased are not pictures of the same rows.
    """
    evaluation = find_evaluation(folder)
    metrics = _read_json(evaluation / METRICS_FILE)
    if not isinstance(metrics, dict) or not isinstance(metrics.get("erased"), dict):
        raise ValueError(f"{evaluation / METRICS_FILE} has no `erased` figures; make it again with `erase evaluate`.")
    made = _read_json(evaluation / EVALUATION_FILE) or {}
    manifest = _read_json(folder / MANIFEST_FILE) or {}
    protocol = metrics.get("protocol") or made.get("protocol") or {}
    sides = load_sides(evaluation)
    concepts = metrics.get("concepts") or manifest.get("concepts") or []
    rows, details = figure_rows(metrics), metrics.get("details") or {}
    totals = nudity_totals(details.get("nudity"))
    domains = sorted({domain for record in sides.get("erased", ()) for domain in record.get("domains") or ()})
    return {
        "format": REPORT_FORMAT,
        "erase_version": __version__,
        "concepts": concepts,
        "base_name": ((made.get("models") or {}).get("base") or {}).get("name") or manifest.get("base"),
        "verdict": verdict(rows, totals, concepts, domains, protocol),
        "protocol": protocol,
        "sizes": sizes_of(sides.get("erased", ())),
        "pairs": choose_pairs(folder, evaluation, sides, bool(protocol.get("sensitive"))),
        "figures": rows,
        "published": published_tables(rows, totals, protocol, concepts, domains),
        "turns_into": _merged(details, "turns_into"),
        "classes": _merged(details, "classes"),
        "nudity": details.get("nudity"),
        "mask": mask_summary(folder / MASK_FILE),
        "losses": loss_curves(_read_json(folder / LOSSES_FILE) or []),
        "evaluation": made,
        "manifest": manifest,
        "config": _config_text(folder / CONFIG_FILE),
        "sources": _hashes(folder, evaluation),
    }


def sizes_of(records: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """Width and height of the pictures, each once."""
    return [list(size) for size in sorted({(r["width"], r["height"]) for r in records if r.get("width")})]


def find_evaluation(folder: Path) -> Path:
    """The folder with metrics.json: `folder`/evaluation, or `folder` itself."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give a run's output_dir, or the folder that `erase evaluate` wrote.")
    evaluation = folder / "evaluation" if (folder / "evaluation").is_dir() else folder
    if not (evaluation / METRICS_FILE).is_file():
        base = (_read_json(folder / MANIFEST_FILE) or {}).get("base", "BASE")
        model = folder if (folder / "model_index.json").is_file() else "MODEL"
        raise ValueError(
            f"{evaluation} holds no {METRICS_FILE}, so there is nothing to report. Make it with\n"
            f"  erase evaluate --protocol PROTOCOL --model {model} --base {base}"
        )
    return evaluation


def _read_json(path: Path) -> Any:
    """A JSON file's value, None when there is no such file."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); make it again, or delete it.") from error


def _config_text(path: Path) -> str | None:
    """config.yaml as it stands; damaged YAML is refused."""
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8")
    try:
        yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML ({error}); mend it, or delete it.") from error
    return text


def _merged(details: Mapping[str, Any], key: str) -> dict[str, Any]:
    """`key` of every metric's details, by model; metrics share no concept."""
    found: dict[str, Any] = {}
    for models in details.values():
        for name in MODELS:
            if value := (models.get(name) or {}).get(key):
                found.setdefault(name, {}).update(value)
    return found


def mask_summary(path: Path) -> dict[str, Any] | None:
    """Where a mask lies: per block, per kind of layer and per parameter; None without a mask."""
    if not path.is_file():
        return None
    # Both need torch; the second also matplotlib.
    from ..saliency.layers import LayerDensity, grouped, kind_of
    from ..saliency.mask import SaliencyMask

    mask = SaliencyMask.load(path)
    layers = mask.summary()

    def rows(of: list[LayerDensity]) -> list[dict[str, Any]]:
        return [{"name": r.name, "salient": r.salient, "total": r.total, "density": r.density} for r in of]

    return {
        "metadata": {key: value for key, value in mask.metadata.items() if key != "scope"},
        "salient": mask.count,
        "total": sum(layer.total for layer in layers),
        "density": mask.density,
        "blocks": rows(mask.by_block()),
        "kinds": rows(sorted(grouped((kind_of(layer.name), layer) for layer in layers), key=lambda r: -r.salient)),
        "layers": rows(layers),
    }


def loss_curves(history: list[dict[str, float]], points: int = LOSS_POINTS) -> dict[str, Any] | None:
    """Curves of losses.json: `step` and every other column, averaged over equal runs of steps when there are many."""
    if not history:
        return None
    size = -(-len(history) // points)
    runs = [history[first : first + size] for first in range(0, len(history), size)]
    mean: Callable[[list[dict[str, float]], str], float] = lambda run, key: sum(row[key] for row in run) / len(run)  # noqa: E731
    curves = {key: [mean(run, key) for run in runs] for key in history[0] if key != "step"}
    return {"steps": len(history), "averaged": size, "step": [run[-1]["step"] for run in runs], "curves": curves}


def _hashes(folder: Path, evaluation: Path) -> dict[str, str]:
    """sha256 of every file that the report was made from, by its path in `folder`."""
    records = [path for name in MODELS for path in (evaluation / name).glob("**/*.jsonl")]
    own = [folder / name for name in (CONFIG_FILE, MANIFEST_FILE, MASK_FILE, LOSSES_FILE)]
    made = [evaluation / name for name in (METRICS_FILE, EVALUATION_FILE)]
    digests = {}
    for path in [*made, *sorted(records), *own]:
        if path.is_file():
            digests[path.relative_to(folder).as_posix()] = file_sha256(path)
    return digests
