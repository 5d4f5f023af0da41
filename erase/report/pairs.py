"""Which pictures the report shows: pairs of base and erased at equal seeds, and which of them are blurred at first."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..draw.records import RECORDS_FILE, Record
from ..evaluate.grid import spread
from ..evaluate.metrics.nudity import EXPOSED, shows
from ..evaluate.scoring import load_scored
from ..html.figures import MODELS

PAIRS_PER_ROLE = 12
ROLES = ("target", "retain")
NUDITY_COLUMN = "detections"
NUDITY_SCORE = 0.25
"""NudeNet itself drops what scores less."""
# I2P's other categories, which a detector of nudity cannot clear.
GRAPHIC_CATEGORIES = ("violence", "self-harm", "shocking")
SAME = ("prompt", "seed", "height", "width", "guidance_scale", "num_inference_steps")


def load_sides(evaluation: Path) -> dict[str, list[Record]]:
    """Model → its records with what the scorers said; a model without records is left out.

    Raises ValueError when base and erased are not pictures of the same rows.
    """
    folders = {name: evaluation / name for name in MODELS}
    sides = {name: load_scored(path).records for name, path in folders.items() if (path / RECORDS_FILE).is_file()}
    if len(sides) == 2:
        _check_pairs(evaluation, *(sides[name] for name in MODELS))
    return sides


def _check_pairs(evaluation: Path, base: Sequence[Record], erased: Sequence[Record]) -> None:
    """Same ids, and for each the same prompt, seed and settings."""
    advice = f"{evaluation} cannot be compared. Draw both models from one table of prompts with `erase evaluate`."
    rows = {record["id"]: record for record in base}
    if odd := sorted(rows.keys() ^ {record["id"] for record in erased}):
        where = "base" if odd[0] in rows else "erased"
        raise ValueError(f"{len(odd)} pictures are there for one model only ({odd[0]!r} for {where}): {advice}")
    for record in erased:
        twin = rows[record["id"]]
        for key in SAME:
            if twin.get(key) != record.get(key):
                raise ValueError(
                    f"The picture {record['id']!r} has {key} {twin.get(key)!r} for base and {record.get(key)!r} for "
                    f"erased: {advice}"
                )


def choose_pairs(
    folder: Path, evaluation: Path, sides: Mapping[str, Sequence[Record]], sensitive_protocol: bool
) -> dict[str, list[dict[str, Any]]]:
    """Role → pairs spread evenly over its prompts, whatever they show; empty when there are no pictures to show.

    `file` of a picture is relative to `folder`. Raises ValueError when the file of a chosen picture is missing.
    """
    shown = {
        name: records
        for name, records in sides.items()
        if any((evaluation / name / record["file"]).is_file() for record in records)
    }
    if "erased" not in shown:
        return {}
    twins = {name: {record["id"]: record for record in records} for name, records in shown.items()}
    pairs = {}
    for role in ROLES:
        if records := [record for record in shown["erased"] if _role(record) == role]:
            ids = dict.fromkeys(record["id"] for record in spread(records, PAIRS_PER_ROLE))
            rows = [{name: twins[name][at] for name in twins} for at in ids]
            pairs[role] = [_pair(row, folder, evaluation, sensitive_protocol) for row in rows]
    return pairs


def _role(record: Record) -> str:
    return "retain" if record.get("role") == "retain" else "target"


def _pair(records: Mapping[str, Record], folder: Path, evaluation: Path, sensitive_protocol: bool) -> dict[str, Any]:
    erased = records["erased"]
    models = {}
    for name, record in records.items():
        path = evaluation / name / record["file"]
        if not path.is_file():
            raise ValueError(
                f"{path} is missing though records.jsonl names it; generate it again with `erase evaluate`."
            )
        models[name] = {
            "file": path.relative_to(folder).as_posix(),
            "sensitive": is_sensitive(record, sensitive_protocol),
            "judged": [str(record[key]) for key in judged_columns(record)],
        }
    return {"id": erased["id"], "prompt": erased["prompt"], "seed": erased.get("seed")} | models


def judged_columns(record: Mapping[str, Any]) -> list[str]:
    """Columns in which a judge named what it saw, in the domains that matter for this picture."""
    domains = record.get("domains") or []
    return [f"judged_{domain}" for domain in domains if f"judged_{domain}" in record]


def is_sensitive(record: Mapping[str, Any], sensitive_protocol: bool) -> bool:
    """Whether a picture is blurred until somebody asks for it.

    It is when its record says so, when NudeNet found an exposed body part, when its prompt is of a graphic category, or
    when the protocol is about such pictures and no detector has looked.
    """
    if record.get("sensitive") or any(word in str(record.get("categories", "")) for word in GRAPHIC_CATEGORIES):
        return True
    if NUDITY_COLUMN not in record:
        return sensitive_protocol
    return shows(record[NUDITY_COLUMN], EXPOSED, NUDITY_SCORE)
