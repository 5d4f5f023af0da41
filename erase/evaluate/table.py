"""Figures as a table to read on a terminal, and the words that explain them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from .statistics import Interval

Unit = Literal["rate", "number"]
"""A rate lies in 0–1 and is printed in per cent; a number is printed as it is."""
Better = Literal["more", "less"]
INDENT = "  "
ARROWS: dict[Better | None, str] = {"more": " ↑", "less": " ↓", None: ""}


@dataclass(frozen=True)
class Label:
    """How a figure is named and read."""

    title: str
    """Name."""
    meaning: str
    """Half a sentence."""
    unit: Unit
    """What the value is."""
    better: Better | None
    """Which direction is better; None where neither is, or where the figure above it says so."""
    is_part: bool = False
    """Whether it is a part of the figure above it, and indented under it."""
    is_mean: bool = False
    """Whether a rate is a mean of other rates, and so no share of n pictures."""

    @property
    def shown(self) -> str:
        """The name, with an arrow where one direction is better."""
        return self.title + ARROWS[self.better]

    @property
    def is_rate(self) -> bool:
        """Whether the value lies in 0–1 and is printed in per cent."""
        return self.unit == "rate"

    @property
    def is_share(self) -> bool:
        """Whether the value is a number of pictures over n."""
        return self.is_rate and not self.is_mean


LABELS: dict[str, Label] = {
    "ua": Label("UA", "the erased concept is gone", "rate", "more"),
    "ua_coherent": Label("UA coherent", "gone, and still a proper picture", "rate", "more"),
    "ua_paraphrase": Label("UA paraphrased", "gone in wordings never trained on", "rate", "more"),
    "ira": Label("IRA", "the other concepts of its kind are kept", "rate", "more"),
    "cra": Label("CRA", "the other kind survives in erased prompts", "rate", "more"),
    "cra_retained": Label("CRA retained", "the other kind is kept in kept prompts", "rate", "more"),
    "coherence": Label("coherence", "proper pictures, of all", "rate", "more"),
    "coherence_target": Label("erased prompts", "", "rate", None, is_part=True),
    "coherence_retain": Label("kept prompts", "", "rate", None, is_part=True),
    "fd_canvas": Label("FD-canvas", "distance of kept pictures to the base's", "number", "less"),
    "accuracy": Label("accuracy", "the classifier names what was asked for", "rate", "more"),
    "mace_h_o": Label(
        "MACE H_o", "harmonic mean: erased, kept, and gone in other wordings", "rate", "more", is_mean=True
    ),
    "mace_h_c": Label("MACE H_c", "harmonic mean: erased and kept", "rate", "more", is_mean=True),
    "mace_h_a": Label("MACE H_a", "CLIP score of kept minus erased prompts", "number", "more"),
    "fid": Label("FID", "distance to real pictures", "number", "less"),
    "fid_floor": Label("floor", "two halves of the real pictures, at this number", "number", None, is_part=True),
    "fid_vs_base": Label("FID vs base", "distance to the base's pictures; not FID", "number", "less"),
    "fid_vs_base_floor": Label("floor", "two halves of the base's pictures", "number", None, is_part=True),
    "fd_encoder": Label("FD-encoder", "Fréchet distance to real pictures on --encoder", "number", "less"),
    "fd_encoder_vs_base": Label("FD-encoder vs base", "Fréchet distance to the base's on --encoder", "number", "less"),
    "kid": Label("KID", "distance to real pictures, without bias", "number", "less"),
    "kid_vs_base": Label("KID vs base", "distance to the base's pictures", "number", "less"),
    "cmmd": Label("CMMD", "distance to real pictures in CLIP's eyes, without bias", "number", "less"),
    "cmmd_vs_base": Label("CMMD vs base", "distance to the base's pictures", "number", "less"),
    "fd_inception": Label("FD-inception", "as above, on weights that nobody can check", "number", "less"),
    "fd_inception_vs_base": Label("FD-inception vs base", "distance to the base's pictures", "number", "less"),
    "kd_inception": Label("KD-inception", "as above, on weights that nobody can check", "number", "less"),
    "kd_inception_vs_base": Label("KD-inception vs base", "distance to the base's pictures", "number", "less"),
    "mmd_clip": Label("MMD-CLIP", "as above, on weights that nobody can check", "number", "less"),
    "mmd_clip_vs_base": Label("MMD-CLIP vs base", "distance to the base's pictures", "number", "less"),
    "clip_score": Label("CLIP score", "pictures fit their prompts", "number", "more"),
    "clip_score_target": Label("erased prompts", "", "number", "less", is_part=True),
    "clip_score_retain": Label("kept prompts", "", "number", "more", is_part=True),
    "lpips": Label("LPIPS to base", "how far each picture moved", "number", None),
    "lpips_target": Label("erased prompts", "", "number", "more", is_part=True),
    "lpips_retain": Label("kept prompts", "", "number", "less", is_part=True),
}
for _threshold in (0.25, 0.45, 0.6):
    LABELS[f"nudity_any_{_threshold}"] = Label(
        f"nudity ≥ {_threshold}", "pictures with an exposed body part", "rate", "less"
    )
    LABELS[f"nudity_core_{_threshold}"] = Label(
        "core parts", "genitalia, female breast, buttocks, anus", "rate", "less", is_part=True
    )


def label_of(key: str) -> Label:
    """The label of a figure; a figure that has none is printed by its own name, as a number."""
    return LABELS.get(key, Label(key, "", "number", None))


def count_of(key: str, value: float, n: int) -> int | None:
    """How many of the n pictures a share counts; None for a figure that is no share.

    Raises ValueError where value × n is no whole number, for then the figure does not belong to its n.
    """
    if not label_of(key).is_share:
        return None
    count = round(value * n)
    if abs(value * n - count) > 1e-6 * max(1, n):
        raise ValueError(
            f"The figure {key!r} is {value} of {n} pictures, which is no whole number of pictures; make metrics.json "
            "again with `erase evaluate`."
        )
    return count


def rests_on(count: int | None, n: int) -> str:
    """`203 of 204`, or `n = 570` where nothing is counted."""
    return f"n = {n:,}" if count is None else f"{count:,} of {n:,}"


def metrics_table(base: Mapping[str, Interval] | None, erased: Mapping[str, Interval]) -> str:
    """Base (where there is one) beside erased: counts, and values with 95 % intervals; rates in per cent."""
    models = [("base", base), ("erased", erased)] if base is not None else [("model", erased)]
    rows = [("", *(title for name, _ in models for title in ("", name)), "")]
    for key in dict(base or {}) | dict(erased):
        cells = [text for _, figures in models for text in cells_of(key, figures.get(key))]
        label = label_of(key)
        rows.append((INDENT * label.is_part + label.shown, *cells, label.meaning))
    return _aligned(rows)


def cells_of(key: str, figure: Interval | None) -> tuple[str, str]:
    """What a figure rests on, and its value with its interval."""
    if figure is None:
        return "", "–"
    return rests_on(count_of(key, figure.value, figure.n), figure.n), cell(figure, label_of(key).is_rate)


def cell(figure: Interval, is_rate: bool) -> str:
    """A value with its interval."""
    if is_rate:
        return f"{100 * figure.value:5.1f} [{100 * figure.low:5.1f}, {100 * figure.high:5.1f}]"
    return f"{figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}]"


def _aligned(rows: list[tuple[str, ...]]) -> str:
    columns = len(rows[0]) - 1
    widths = [max(len(row[at]) for row in rows) for at in range(columns)]
    lines = []
    for label, *figures, meaning in rows:
        aligned = [f"{figure:>{width}}" for figure, width in zip(figures, widths[1:], strict=True)]
        lines.append("   ".join([f"{label:<{widths[0]}}", *aligned, meaning]).rstrip())
    rule = "─" * max(map(len, lines))
    foot = "Rates in % with 95 % intervals." + (" Base and erased share prompts and seeds." if columns > 3 else "")
    return "\n".join([lines[0], rule, *lines[1:], rule, foot])
