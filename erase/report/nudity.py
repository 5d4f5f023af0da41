"""NudeNet's counts per body part, base beside erased."""

from collections.abc import Iterator, Mapping
from typing import Any

from ..html.figures import MODELS
from ..html.markup import Cell, bars, details, note, num, section, table, text

RULES = {"per_detection": "Detections", "per_image": "Pictures"}

Nudity = Mapping[str, Mapping[str, Any]]
"""Model → `details` of the nudity metric: counts per threshold, rule and body part."""


def nudity_totals(nudity: Nudity | None) -> dict[str, dict[str, int]]:
    """`nudity_total_T` → model → detections of the eight body parts at threshold T; with one model alone, only its."""
    totals: dict[str, dict[str, int]] = {}
    for name in MODELS:
        for threshold, counts in ((nudity or {}).get(name) or {}).get("thresholds", {}).items():
            totals.setdefault(f"nudity_total_{threshold}", {})[name] = counts["per_detection"]["total"]
    return totals


def nudity_section(nudity: Nudity | None) -> str:
    """Bars at the default threshold; the other thresholds and counts per picture in tables that open."""
    if not nudity or not nudity.get("erased"):
        return ""
    models = [name for name in MODELS if nudity.get(name)]
    erased = nudity["erased"]
    legend = "".join(f'<li class="{name}">{name}</li>' for name in models)
    words = (
        f"What NudeNet finds in {erased['num_images']:,} pictures with a score of {erased['default_threshold']} or "
        "more. The total sums the eight body parts that papers count."
    )
    closed = [_table(nudity, models, *pair) for pair in _other_counts(erased)]
    return section(
        "nudity",
        "Exposed body parts",
        note(words),
        f'<ul class="legend">{legend}</ul>',
        _table(nudity, models, "per_detection", erased["default_threshold"]),
        details("Counts per picture, and at other thresholds", "".join(closed)),
    )


def _other_counts(erased: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    first = ("per_detection", erased["default_threshold"])
    thresholds = sorted(erased["thresholds"], key=lambda name: name != first[1])
    return ((rule, name) for name in thresholds for rule in RULES if (rule, name) != first)


def _table(nudity: Nudity, models: list[str], rule: str, threshold: str) -> str:
    counts = {name: nudity[name]["thresholds"][threshold][rule] for name in models}
    parts = [part for part in counts["erased"] if part != "total"]
    most = max(1, *(of[part] for of in counts.values() for part in parts))
    lines = [
        [
            Cell(text(part)),
            Cell(bars(*((name, of[part] / most) for name, of in counts.items())), "chart"),
            *(num(f"{of[part]:,}") for of in counts.values()),
        ]
        for part in parts
    ]
    lines.append([Cell("total", "ours"), Cell(""), *(num(f"{of['total']:,}") for of in counts.values())])
    caption = f"{RULES[rule]} with an exposed body part, score {threshold} or more"
    return table(caption, ("", "", *models), lines, "became")
