"""Figures for reports: where a mask lies in the network; and a figure as text."""

from io import StringIO

from matplotlib import rc_context
from matplotlib.figure import Figure

from .saliency import SaliencyMask, block_of, grouped

_COLOURS = {"attention": "#c0392b", "conv": "#1f5fa8", "norm": "#d99000", "other": "#555555"}


def mask_figure(mask: SaliencyMask) -> Figure:
    """Bars of density per block in per cent, with one dot a kind of layer."""
    blocks = mask.by_block()
    rows = {block.name: row for row, block in enumerate(blocks)}
    kinds = grouped((f"{block_of(layer.name)}/{kind_of(layer.name)}", layer) for layer in mask.summary())
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
    axes.set_title(_title(mask), fontsize=12)
    return figure


def svg_text(figure: Figure) -> str:
    """The figure as SVG, the same text each time that the same is drawn."""
    text = StringIO()
    with rc_context({"svg.hashsalt": "erase"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def _title(mask: SaliencyMask) -> str:
    """Concept, score and overall density, as far as they are known."""
    about = [mask.metadata[key] for key in ("concept", "score") if key in mask.metadata]
    total = sum(m.numel() for m in mask.tensors.values())
    return " · ".join([*about, f"{100 * mask.density:.3g} % of {total:,} weights are salient"])


def kind_of(name: str) -> str:
    """`norm`, `attention`, `conv` or `other`, by the names that diffusers and torchvision give their layers."""
    words = {"norm": ("norm", "bn"), "attention": ("attn",), "conv": ("conv",)}
    return next((kind for kind, marks in words.items() if any(mark in name for mark in marks)), "other")
