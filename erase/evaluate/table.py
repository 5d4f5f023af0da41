"""Figures as a table to read on a terminal, and the words that explain them."""

from collections.abc import Mapping
from dataclasses import dataclass

from .statistics import Interval


@dataclass(frozen=True)
class Label:
    """How a figure is named and printed."""

    title: str
    """Name, with an arrow where one direction is better."""
    meaning: str
    """Half a sentence."""
    is_rate: bool = True
    """Whether the value lies in 0–1 and is printed in per cent."""
    is_mean: bool = False
    """Whether a rate is a mean of other rates, and so no share of n pictures."""

    @property
    def is_share(self) -> bool:
        """Whether the value is a number of pictures over n."""
        return self.is_rate and not self.is_mean


LABELS: dict[str, Label] = {
    "ua": Label("UA ↑", "the erased concept is gone"),
    "ua_coherent": Label("UA coherent ↑", "gone, and still a proper picture"),
    "ua_paraphrase": Label("UA paraphrased ↑", "gone in wordings never trained on"),
    "ira": Label("IRA ↑", "the other concepts of its kind are kept"),
    "cra": Label("CRA ↑", "the other kind survives in erased prompts"),
    "cra_retained": Label("CRA retained ↑", "the other kind is kept in kept prompts"),
    "coherence": Label("coherence ↑", "proper pictures, of all"),
    "coherence_target": Label("  erased prompts", ""),
    "coherence_retain": Label("  kept prompts", ""),
    "fd_canvas": Label("FD-canvas ↓", "distance of kept pictures to the base's", is_rate=False),
    "accuracy": Label("accuracy ↑", "the classifier names what was asked for"),
    "mace_h_o": Label("MACE H_o ↑", "harmonic mean: erased, kept, and gone in other wordings", is_mean=True),
    "mace_h_c": Label("MACE H_c ↑", "harmonic mean: erased and kept", is_mean=True),
    "mace_h_a": Label("MACE H_a ↑", "CLIP score of kept minus erased prompts", is_rate=False),
    "fid": Label("FID ↓", "distance to real pictures", is_rate=False),
    "fid_floor": Label("  floor", "two halves of the real pictures, at this number", is_rate=False),
    "fid_vs_base": Label("FID vs base ↓", "distance to the base's pictures; not FID", is_rate=False),
    "fid_vs_base_floor": Label("  floor", "two halves of the base's pictures", is_rate=False),
    "fd_encoder": Label("FD-encoder ↓", "Fréchet distance to real pictures on --encoder", is_rate=False),
    "fd_encoder_vs_base": Label("FD-encoder vs base ↓", "Fréchet distance to the base's on --encoder", is_rate=False),
    "kid": Label("KID ↓", "distance to real pictures, without bias", is_rate=False),
    "kid_vs_base": Label("KID vs base ↓", "distance to the base's pictures", is_rate=False),
    "cmmd": Label("CMMD ↓", "distance to real pictures in CLIP's eyes, without bias", is_rate=False),
    "cmmd_vs_base": Label("CMMD vs base ↓", "distance to the base's pictures", is_rate=False),
    "fd_inception": Label("FD-inception ↓", "as above, on weights that nobody can check", is_rate=False),
    "fd_inception_vs_base": Label("FD-inception vs base ↓", "distance to the base's pictures", is_rate=False),
    "kd_inception": Label("KD-inception ↓", "as above, on weights that nobody can check", is_rate=False),
    "kd_inception_vs_base": Label("KD-inception vs base ↓", "distance to the base's pictures", is_rate=False),
    "mmd_clip": Label("MMD-CLIP ↓", "as above, on weights that nobody can check", is_rate=False),
    "mmd_clip_vs_base": Label("MMD-CLIP vs base ↓", "distance to the base's pictures", is_rate=False),
    "clip_score": Label("CLIP score ↑", "pictures fit their prompts", is_rate=False),
    "clip_score_target": Label("  erased prompts ↓", "", is_rate=False),
    "clip_score_retain": Label("  kept prompts ↑", "", is_rate=False),
    "lpips": Label("LPIPS to base", "how far each picture moved", is_rate=False),
    "lpips_target": Label("  erased prompts ↑", "", is_rate=False),
    "lpips_retain": Label("  kept prompts ↓", "", is_rate=False),
}
for _threshold in (0.25, 0.45, 0.6):
    LABELS[f"nudity_any_{_threshold}"] = Label(f"nudity ≥ {_threshold} ↓", "pictures with an exposed body part")
    LABELS[f"nudity_core_{_threshold}"] = Label("  core parts ↓", "genitalia, female breast, buttocks, anus")


def label_of(key: str) -> Label:
    """The label of a figure; a figure that has none is printed by its own name, as a number."""
    return LABELS.get(key, Label(key, "", is_rate=False))


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
        rows.append((label_of(key).title, *cells, label_of(key).meaning))
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
