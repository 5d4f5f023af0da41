"""One evaluation from protocol to table: both models draw the same rows, the same scorers look, one count is made.

evaluation/
  base/, erased/     pictures, records and raw scores of each model
  metrics.json       figures of both with their intervals, paired tests, details
  evaluation.json    protocol, models, versions, times: where the figures come from
  grid.png           the same seeds, base above erased
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ..draw.answers import Scorer
from ..draw.generate import generate
from ..draw.pipelines import ModelSource
from ..draw.prompts import PromptRow
from ..files import write_json
from ..layout import EVALUATION_FILE, GRID_FILE, METRICS_FILE
from ..output import command_line, now
from .adopted import GivenPictures
from .grid import comparison_grid
from .protocols import Protocol
from .scoring import Metric, Scored, Summary, score_folder
from .statistics import Paired, mcnemar
from .table import metrics_table

MODELS = ("base", "erased")
PACKAGES = ("torch", "diffusers", "transformers", "nudenet", "onnxruntime", "torchmetrics")


@dataclass
class Evaluation:
    """What is compared, where, and how long it took."""

    protocol: Protocol
    """How the pictures are made."""
    rows: Sequence[PromptRow]
    """The pictures to draw with each model."""
    metrics: Sequence[Metric]
    """What is counted."""
    models: Mapping[str, ModelSource | None]
    """`base` (may be missing) and `erased`; None where the pictures are given, or in the folder already."""
    folder: Path
    """Where everything is written."""
    accelerator: Accelerator
    """Processes and precision."""
    batch_size: int = 8
    """Pictures generated at once."""
    given: Mapping[str, GivenPictures] = field(default_factory=dict)
    """The pictures of models that draw none."""
    picture_cache: Path | None = None
    """Pictures shared with other evaluations of the same model."""
    concepts: Sequence[str] = ()
    """Names of what was erased."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Time per stage."""

    def check(self) -> None:
        """ValueError for missing weights, and for rows or pictures that a metric cannot count; writes nothing."""
        for scorer in self.scorers:
            scorer.fingerprint()
        for records in ([row.as_record() for row in self.rows], *(given.records for given in self.given.values())):
            for metric in self.metrics:
                metric.check(records)

    @property
    def scorers(self) -> list[Scorer]:
        """What looks at the pictures."""
        return [scorer for metric in self.metrics for scorer in metric.scorers()]

    def run(self) -> str:
        """Draw, score, count, compare and write; returns the table (on the main process)."""
        self.check()
        scorers = self.scorers
        for name, source in self.models.items():
            if source is not None:
                self._timed(f"draw {name}", lambda n=name, s=source: self._draw(n, s, scorers))
        if not self.accelerator.is_main_process:
            self.accelerator.wait_for_everyone()
            return ""
        for given in self.given.values():
            given.adopt()
        scored = {
            name: self._timed(f"score {name}", lambda n=name: score_folder(self.folder / n, scorers))
            for name in self.models
        }
        table = self._compare(scored)
        self.accelerator.wait_for_everyone()
        return table

    def _timed(self, name: str, stage: Any) -> Any:
        started = time.perf_counter()
        result = stage()
        self.seconds[name] = round(time.perf_counter() - started, 2)
        return result

    def _draw(self, name: str, source: ModelSource, scorers: Sequence[Scorer]) -> None:
        generate(
            self.rows,
            source,
            self.folder / name,
            accelerator=self.accelerator,
            batch_size=self.batch_size,
            scheduler=self.protocol.scheduler,
            scorers=[scorer for scorer in scorers if scorer.beside],
            picture_cache=self.picture_cache,
            label=f"pictures of {name}",
        )

    def _compare(self, scored: Mapping[str, Scored]) -> str:
        check_pairs(scored)
        base = scored.get("base")
        summaries = {
            name: [metric.summarize(pictures, base) for metric in self.metrics] for name, pictures in scored.items()
        }
        write_json(self.folder / METRICS_FILE, self._figures(summaries, scored["erased"]))
        write_json(self.folder / EVALUATION_FILE, self._provenance())
        if base is not None:
            folders = {name: self.folder / name for name in scored}
            comparison_grid(self.folder / GRID_FILE, base.records, folders, self.concepts)
        merged = {name: merged_figures(parts) for name, parts in summaries.items()}
        return metrics_table(merged.get("base"), merged["erased"])

    def _figures(self, summaries: Mapping[str, Sequence[Summary]], erased: Scored) -> dict[str, Any]:
        figures: dict[str, Any] = {
            name: {key: asdict(figure) for key, figure in merged_figures(parts).items()}
            for name, parts in summaries.items()
        }
        details = {
            metric.name: {name: parts[at].details for name, parts in summaries.items()}
            for at, metric in enumerate(self.metrics)
        }
        paired = {}
        if "base" in summaries:
            for before, after in zip(summaries["base"], summaries["erased"]):
                paired |= {key: asdict(test) for key, test in compared(before, after).items()}
        return figures | {
            "paired": paired,
            "details": details,
            "concepts": list(self.concepts),
            "protocol": described(self.protocol, erased.records),
        }

    def _provenance(self) -> dict[str, Any]:
        models = {
            name: source.describe() if source else {"name": "pictures as given"} for name, source in self.models.items()
        }
        return {
            "protocol": asdict(self.protocol),
            "models": models,
            "packages": {name: found for name in PACKAGES if (found := _version(name))},
            "precision": str(self.accelerator.mixed_precision),
            "device": str(self.accelerator.device),
            "num_processes": self.accelerator.num_processes,
            "seconds": self.seconds,
            "date": now(),
            "command": command_line(),
        }


def merged_figures(parts: Sequence[Summary]) -> dict[str, Any]:
    """The figures of all metrics, in their order."""
    return {key: figure for part in parts for key, figure in part.figures.items()}


def compared(base: Summary, erased: Summary) -> dict[str, Paired]:
    """McNemar's test for each yes-or-no answer that both models gave on the same pictures."""
    return {
        key: mcnemar(base.flags[key], answers)
        for key, answers in erased.flags.items()
        if len(base.flags.get(key, ())) == len(answers)
    }


def check_pairs(scored: Mapping[str, Scored]) -> None:
    """Refuse base and erased pictures of different prompts or seeds."""
    if len(scored) < 2:
        return
    keys = [[(r["id"], r["prompt"], r.get("seed")) for r in scored[name].records] for name in MODELS]
    if keys[0] == keys[1]:
        return
    odd = next((pair for pair in zip(*keys) if pair[0] != pair[1]), None)
    what = f"the first that differ: {odd[0]} and {odd[1]}" if odd else f"{len(keys[0])} and {len(keys[1])} pictures"
    raise ValueError(f"Base and erased must be pictures of the same prompts and seeds in one order; {what}. "
                     "Generate both from the same table.")  # fmt: skip


def described(protocol: Protocol, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How the pictures were made, in the form that a table's caption needs."""
    counts = {role: sum(record.get("role") == role for record in records) for role in ("target", "retain")}
    seeds = [record["seed"] for record in records if record.get("seed") is not None]
    return {
        "name": protocol.name,
        "source": protocol.source,
        "num_images": len(records),
        "published_num_images": protocol.num_images,
        "num_target_images": counts["target"],
        "num_kept_images": counts["retain"],
        "num_prompts": len({record["prompt"] for record in records}),
        "held_out_wordings": sum(bool(record.get("held_out_template")) for record in records),
        "scheduler": protocol.scheduler,
        "steps": protocol.num_inference_steps,
        "guidance_scale": protocol.guidance_scale,
        "seeds": [min(seeds), max(seeds)] if seeds else [],
        "sensitive": protocol.sensitive,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def load_metrics(folder: Path) -> dict[str, Any]:
    """metrics.json of an evaluation's folder."""
    path = folder / METRICS_FILE
    if not path.is_file():
        raise ValueError(f"{folder} holds no {METRICS_FILE}; make it with `erase evaluate`.")
    return json.loads(path.read_text(encoding="utf-8"))
