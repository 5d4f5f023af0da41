"""The table that SalUn's paper prints, from rows of one setting; and a plot of the gaps."""

from collections.abc import Sequence
from typing import Any

from .metrics import RATES, gap, spread, spread_text
from .settings import FLOOR, ORIGINAL, REFERENCE

Row = dict[str, Any]
HEADS = {"ua": "UA", "ra": "RA", "ta": "TA", "mia": "MIA"}


def methods_in(rows: Sequence[Row]) -> list[str]:
    """Names in the order of first appearance."""
    return list(dict.fromkeys(row["method"] for row in rows))


def of_method(rows: Sequence[Row], method: str) -> list[Row]:
    """A method's rows, by seed."""
    return sorted((row for row in rows if row["method"] == method), key=lambda row: row["seed"])


def gaps(rows: Sequence[Row], method: str) -> list[float]:
    """The mean absolute difference to the retrained model of the same seed, for each seed that has both, in points."""
    reference = {row["seed"]: row for row in of_method(rows, REFERENCE)}
    return [gap(row, reference[row["seed"]]) for row in of_method(rows, method) if row["seed"] in reference]


def mean_gap(rows: Sequence[Row], method: str) -> float | None:
    """The paper's: the gap between the means over seeds."""
    own, reference = of_method(rows, method), of_method(rows, REFERENCE)
    if not own or not reference:
        return None
    means = [{key: spread([row[key] for row in part])[0] for key in RATES} for part in (own, reference)]
    return gap(*means)


def as_markdown(rows: Sequence[Row], title: str) -> str:
    """Mean ± standard deviation over seeds, the difference to the retrained model's mean in brackets."""
    seeds = len({row["seed"] for row in rows})
    lines = [
        "| method | " + " | ".join(HEADS.values()) + " | gap of means ↓ | gap ↓ | run time, s |",
        "|---|" + "---|" * 7,
        *(_line(rows, method) for method in methods_in(rows)),
    ]
    note = (
        f"{ORIGINAL}: the model before it forgets. {_of_seeds(seeds)}. In brackets: the distance from retraining's "
        "mean. Gap of means: the mean of the four, as the paper has it; gap: the same for each seed"
        + (", then mean ± standard deviation." if seeds > 1 else ".")
    )
    return f"### {title}\n\n" + "\n".join(lines) + f"\n\n{note}\n"


def _of_seeds(count: int) -> str:
    if count == 1:
        return "Rates in %, of one seed: how far chance moves them is not measured"
    return f"Rates in %, mean ± standard deviation of {count} seeds"


def _line(rows: Sequence[Row], method: str) -> str:
    own, reference = of_method(rows, method), of_method(rows, REFERENCE)
    cells = []
    for key in RATES:
        values = [row[key] for row in own]
        shown = spread_text(values)
        if reference and method != REFERENCE:
            shown += f" ({abs(spread(values)[0] - spread([row[key] for row in reference])[0]):.2f})"
        cells.append(shown)
    each, means = gaps(rows, method), mean_gap(rows, method)
    other = method != REFERENCE and each and means is not None
    cells += [f"{means:.2f}", spread_text(each)] if other else ["–", "–"]
    times = [row["rte"] for row in own if row["rte"] is not None]
    return f"| {method} | " + " | ".join([*cells, f"{spread(times)[0]:.2f}" if times else "–"]) + " |"


def as_svg(rows: Sequence[Row], title: str) -> str:
    """Bars of each method's gap, the smallest on top, with a standard deviation where there are several seeds."""
    from matplotlib.figure import Figure

    from ..saliency.plots import svg_text  # matplotlib is needed nowhere else

    known = {m: spread(gaps(rows, m)) for m in methods_in(rows) if m != REFERENCE and gaps(rows, m)}
    order = sorted(known, key=lambda method: known[method][0])
    figure = Figure(figsize=(7, 1.3 + 0.32 * max(1, len(order))), layout="constrained")
    axes = figure.subplots()
    colours = ["#c0392b" if m.startswith("salun") else "#9aa5b1" if m == FLOOR else "#c9d6e8" for m in order]
    axes.barh(range(len(order)), [known[m][0] for m in order], color=colours, height=0.7)
    for at, (mean, deviation) in enumerate(known[method] for method in order):
        if deviation is not None:
            axes.errorbar(mean, at, xerr=deviation, color="#555555", elinewidth=1.2)
    axes.set_yticks(range(len(order)), order)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("mean gap to the retrained model in UA, RA, TA and MIA, points (less is better)")
    axes.set_title(title, fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    return svg_text(figure)
