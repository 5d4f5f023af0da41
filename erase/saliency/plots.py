"""Figures for reports: where a mask lies in the network; and a figure as text."""

from collections.abc import Sequence
from io import StringIO

from matplotlib import rc_context
from matplotlib.figure import Figure

from .layers import LayerDensity, block_of, grouped, kind_of

_COLOURS = {"attention": "#c0392b", "conv": "#1f5fa8", "norm": "#d99000", "other": "#555555"}


def mask_figure(layers: Sequence[LayerDensity], about: Sequence[str] = ()) -> Figure:
    """Bars of a mask's density per block in per cent, with one dot a kind of layer; `about` begins the title."""
    blocks = grouped((block_of(layer.name), layer) for layer in layers)
    rows = {block.name: row for row, block in enumerate(blocks)}
    kinds = grouped((f"{block_of(layer.name)}/{kind_of(layer.name)}", layer) for layer in layers)
    figure = Figure(figsize=(8, 1.8 + 0.32 * len(blocks)), layout="constrained")
    axes = figure.subplots()
    axes.barh(range(len(blocks)), [100 * block.density for block in blocks], color="#c9d6e8", height=0.72)
    for kind, colour in _COLOURS.items():
        dots = {rows[k.name.rpartition("/")[0]]: 100 * k.density for k in kinds if k.name.endswith(f"/{kind}")}
        if dots:
            axes.scatter(list(dots.values()), list(dots), color=colour, s=26, label=kind, zorder=3)
    axes.set_yticks(range(len(blocks)), [block.name for block in blocks], fontsize=10)
    axes.set_ylim(len(blocks) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.set_xlabel("salient weights in the block, % (bar), and by kind of layer (dots)", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=10)
    axes.set_title(_title(layers, about), fontsize=12)
    return figure


def svg_text(figure: Figure) -> str:
    """The figure as SVG, the same text each time that the same is drawn."""
    text = StringIO()
    with rc_context({"svg.hashsalt": "erase"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def _title(layers: Sequence[LayerDensity], about: Sequence[str]) -> str:
    """What the mask is about, and its overall density."""
    whole = LayerDensity("", sum(layer.salient for layer in layers), sum(layer.total for layer in layers))
    return " · ".join([*about, f"{100 * whole.density:.3g} % of {whole.total:,} weights are salient"])
