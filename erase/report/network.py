"""Sections about the training: where the mask lies in the network, and how the losses went."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..html.figures import number, percent
from ..html.markup import Cell, bars, curve, details, note, num, section, table, text


def mask_section(mask: Mapping[str, Any] | None) -> str:
    """Blocks and kinds of layer as bars, every parameter in a table that opens."""
    if not mask:
        return ""
    about = ", ".join(f"{key} {value}" for key, value in mask["metadata"].items() if key in ("score", "density"))
    words = f"{mask['salient']:,} of {mask['total']:,} weights ({percent(mask['density'])}) may move"
    layers = _density_table("Every parameter", mask["layers"])
    return section(
        "mask",
        "Where the mask lies",
        note(f"{words}; all others keep their bits.{f' Chosen by: {about}.' if about else ''}"),
        '<div class="columns">',
        _density_table("Blocks of the network", mask["blocks"]),
        _density_table("Kinds of layer", mask["kinds"]),
        "</div>",
        details(f"All {len(mask['layers']):,} parameters", layers),
    )


def _density_table(caption: str, rows: Sequence[Mapping[str, Any]]) -> str:
    highest = max(row["density"] for row in rows) or 1.0
    lines = [
        (
            Cell(f"<code>{text(row['name'])}</code>"),
            Cell(bars(("erased", row["density"] / highest)), "chart"),
            num(percent(row["density"])),
            num(f"{row['salient']:,}"),
            num(f"{row['total']:,}"),
        )
        for row in rows
    ]
    return table(caption, ("", "", "density", "salient", "weights"), lines, "density")


def loss_section(losses: Mapping[str, Any] | None) -> str:
    """One small curve a column of losses.json."""
    if not losses:
        return ""
    averaged = f" Each point is the mean of {losses['averaged']} steps." if losses["averaged"] > 1 else ""
    panels = [_panel(name, losses["step"], values) for name, values in losses["curves"].items()]
    words = f"{losses['steps']:,} steps; every axis starts at zero.{averaged}"
    return section("training", "Training", note(words), f'<div class="panels">{"".join(panels)}</div>')


def _panel(name: str, steps: Sequence[float], values: Sequence[float]) -> str:
    title = {"forget": "Forgetting loss", "retain": "Retaining loss", "lr": "Learning rate"}.get(name, name)
    label = f"{title} from {values[0]:.3g} at step {steps[0]:g} to {values[-1]:.3g} at step {steps[-1]:g}"
    ends = f"<span>step {steps[0]:g}</span><span>{steps[-1]:g}</span>"
    return (
        f'<figure class="panel"><figcaption>{text(title)} <span class="about">last {text(_short(values[-1]))}</span>'
        f'</figcaption><div class="axis">{text(_short(max(values)))}</div>{curve(steps, values, label)}'
        f'<div class="axis ends">{ends}</div></figure>'
    )


def _short(value: float) -> str:
    return f"{value:.2e}" if 0 < abs(value) < 0.001 else number(value)
