"""Rows of docs/benchmark.json → docs/benchmark.md and its plot; called by scripts/benchmark/run.py."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

from erase import load_concepts
from erase.compare.pareto import pareto_front
from erase.compare.rows import average_gap
from erase.config import CANVAS
from erase.html.plot import Point, percent_scale, plot
from erase.methods import METHODS

Row = dict[str, Any]
Bases = dict[tuple[str, int], Row]
BASE, GOLD = "base", "gold"
HEAD = """# The benchmark: every method on the canvas

`python scripts/benchmark/run.py` made this page; [benchmark.json](benchmark.json) holds every row. Each method has one
setting for all concepts (`configs/canvas/`, else `configs/methods/`). The settings were tuned on concepts that are not
on this page:

| methods | tuned on | log |
|---|---|---|
| trained, three settings each | butterfly, watercolor | [trained](method_tuning.jsonl) |
| closed forms | butterfly, watercolor, snowman, neon | [closed forms](method_tuning_closed_form.jsonl) |
| `recommended`, more settings | the same four, dog, fish | [closed forms](method_tuning_closed_form.jsonl) |

There is one exception. The first result of `recommended` on `cat` (95.0, with the gradient mask and e = 1) prompted the
search for a better mask, so `cat` was not entirely unseen when `recommended` was tuned.

- **UA coherent, IRA, CRA**: rates in %, mean ± standard deviation over concepts and seeds. IRA and CRA are given in %
  of the base model's own rates.
- **FD**: divided by the base model's own FD, so 1 is the effect of other seeds alone.
- **Front**: the number of concepts on which no other method both erases and retains at least as much. Retention is the
  smaller of IRA and CRA. In brackets: the number of concepts on which no such method is better by more than chance (two
  standard errors of either difference).
- **Gap to gold**, **by UA**: the mean absolute difference to the gold model in UA coherent (or in UA, as in the paper),
  IRA and CRA (in points) and FD (in floors).
- **Seconds**: time on one core, while the other core ran the same kind of job. They cover mask and training, or the
  edit, but not generating the training pictures. Rows of the first seed have none, because other jobs
  shared their core.

A *gold model* is retrained without the concept for as many steps as the base model. `cat` and `sketch` have one
([below](#gold)). The gold model never read the word "cat". For prompts with that word its picture is no cat, but in one
case of five it is no coherent picture either. By UA coherent, a coherent dog is therefore farther from the gold model
than an incoherent picture. By UA, half a point is about the size of chance: one picture of 180 is 0.6 points.

Every seed is a separate run and is scored on other pictures, also for the base model. Closed forms and guards use no
randomness, so only their scored pictures differ between seeds. The protocol is
[canvas-quick](evaluation.md#the-canvas), with 60 target and 100 or 114 retained pictures per run. One picture is 1.7
points of UA coherent. A perfect erasure scores about 98, because about 98 % of the base model's pictures are
coherent."""
PICTURES = 60
"""Of a row: those of the target, the fewest that any of its rates is made of."""
GOLD_PICTURES = """Both rows have the same prompts and seeds: the base model above, the gold model below (labelled
*erased*). `python scripts/canvas/build.py --without cat` retrains the model without `cat` (or `sketch`), and
`scripts/benchmark/run.py --gold canvas_work` scores it.

![The model that never saw a cat](images/gold-cat.png)

![The model that never saw a sketch](images/gold-sketch.png)"""
TAIL = """In the bundled model every word is one token, and its prompts name every class. This favours methods that edit
the effect of words ([recommended](methods/recommended.md), [uce](methods/uce.md), [rece](methods/rece.md),
[speed](methods/speed.md)). On Stable Diffusion, prompts ask for nudity in many different words. Published results
there: with UCE, 22 % of the prompts still work without an attack and 80 % with one; with SalUn, 1 % and 11 %
([evaluation.md](evaluation.md))."""


def kind_of(concept: str) -> str:
    return load_concepts([concept], model=CANVAS)[0].type


def as_markdown(rows: Sequence[Row]) -> str:
    """The page docs/benchmark.md."""
    shared = ", ".join(shared_concepts(rows))
    plotted = (
        f"Erased against kept, over the concepts that all methods were run on ({shared}); gold over the concepts that "
        "have a gold model."
    )
    parts = [HEAD, "![Erased against kept](images/benchmark.svg)", plotted]
    kinds = {concept: kind_of(concept) for concept in dict.fromkeys(row["concept"] for row in rows)}
    for title, kind in (("Objects", "object"), ("Styles", "style")):
        chosen = [row for row in rows if kinds[row["concept"]] == kind]
        if chosen:
            parts.append(f"## {title}\n\n{counted(chosen)}\n\n{main_table(chosen)}")
    parts += [
        "## By concept",
        BY_CONCEPT,
        concept_table(rows),
        "## Gold",
        GOLD_PICTURES,
        "## What it does not show",
        TAIL,
        "## Neighbours",
        NEIGHBOURS,
        neighbour_table(rows),
    ]
    return "\n\n".join(parts) + "\n"


def counted(rows: Sequence[Row]) -> str:
    """Which concepts, and how many rows a method has at most."""
    names = ", ".join(dict.fromkeys(row["concept"] for row in rows))
    seeds, counts = {row["seed"] for row in rows}, Counter(row["method"] for row in rows if row["method"] in METHODS)
    incomplete = (
        " **Not complete**: where n is smaller, some concepts or seeds have not been run; compare rows of equal n, or "
        "look at [single concepts](#by-concept)."
    )
    note = incomplete if len(set(counts.values())) > 1 else ""
    return f"{names}; {len(seeds)} seed{'s' if len(seeds) > 1 else ''}. n: runs.{note}"


def over_base(row: Row, base: Row) -> dict[str, float]:
    """UA coherent in %, IRA and CRA in % of base, FD over the base's own."""
    return {
        "ua_coherent": 100 * row["ua_coherent"],
        "ira": 100 * row["ira"] / base["ira"],
        "cra": 100 * row["cra"] / base["cra"],
        "fd": row["fd_canvas"] / base["fd_canvas"],
    }


def run_of(row: Row) -> tuple[str, int]:
    """Concept and seed: the rows that were scored on the same prompts and picture seeds."""
    return row["concept"], row["seed"]


def bases_of(rows: Sequence[Row]) -> Bases:
    """The base's own row of each concept and seed."""
    return {run_of(row): row for row in rows if row["method"] == BASE}


def concepts_of(base: Bases) -> list[str]:
    """The concepts whose base was measured, in the rows' order."""
    return list(dict.fromkeys(concept for concept, _ in base))


def by_method(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows of concepts and seeds whose base was measured."""
    base, groups = bases_of(rows), defaultdict(list)
    for row in rows:
        if run_of(row) in base:
            groups[row["method"]].append(row)
    return groups


COLUMNS = (
    "method", "UA coherent ↑", "IRA ↑", "CRA ↑", "FD ↓", "front ↑",
    "gap to gold ↓", "by UA ↓", "seconds", "peak GB", "n",
)  # fmt: skip


def main_table(rows: Sequence[Row]) -> str:
    """Base and gold first, then by the lesser of erased and kept."""
    base, groups, fronts = bases_of(rows), by_method(rows), on_fronts(rows)
    score = {method: min(point_of(group, base)) for method, group in groups.items()}
    names = sorted(groups, key=lambda method: (method not in (BASE, GOLD), method == GOLD, -score[method]))
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for method in names:
        values = [over_base(row, base[run_of(row)]) for row in groups[method]]
        digits = {"ua_coherent": 1, "ira": 1, "cra": 1, "fd": 2}
        cells = [spread([value[key] for value in values], places) for key, places in digits.items()]
        cells += [fronts.get(method, "–"), *gaps_to_gold(method, groups, base)]
        cells += [mean_cost(groups[method], "seconds", 1, 1), mean_cost(groups[method], "peak_bytes", 1e9, 2)]
        lines.append(f"| {method} | {' | '.join(cells)} | {len(values)} |")
    return "\n".join(lines)


def gaps_to_gold(method: str, groups: dict[str, list[Row]], base: Bases) -> list[str]:
    """By UA coherent and by UA; means over the concepts that have a gold model, of the seeds that both have."""
    golds = {run_of(row): of_base(row, base) for row in groups.get(GOLD, ())}
    pairs: dict[str, list[tuple[Row, Row]]] = defaultdict(list)
    for row in groups[method] if method not in (BASE, GOLD) else ():
        if run_of(row) in golds:
            pairs[row["concept"]].append((of_base(row, base), golds[run_of(row)]))
    cells = []
    for erased in ("ua_coherent", "ua"):
        gaps = [
            average_gap([own for own, _ in pair], mean_of([gold for _, gold in pair]), 1.0, erased)
            for pair in pairs.values()
        ]
        cells.append(f"{fmean(gaps):.1f}" if gaps else "–")
    return cells


def of_base(row: Row, base: Bases) -> Row:
    """A row's figures in the base's own: UA as it is, IRA and CRA as shares of the base's, FD in floors."""
    values = over_base(row, base[run_of(row)])
    kept = {key: values[key] / 100 for key in ("ira", "cra")}
    return {key: row[key] for key in ("ua", "ua_coherent")} | kept | {"fd_canvas": values["fd"]}


def mean_of(rows: Sequence[Row]) -> Row:
    return {key: fmean(row[key] for row in rows) for key in rows[0]}


def point_of(rows: Sequence[Row], base: Bases) -> tuple[float, float]:
    """(UA coherent, the lesser of IRA and CRA of base), means over the rows, in %."""
    values = [over_base(row, base[run_of(row)]) for row in rows]
    return fmean(v["ua_coherent"] for v in values), fmean(min(v["ira"], v["cra"]) for v in values)


def on_fronts(rows: Sequence[Row]) -> dict[str, str]:
    """Method → on how many concepts' fronts it lies, by more than chance in brackets, of how many."""
    base, counts = bases_of(rows), defaultdict(list)
    for concept in concepts_of(base):
        groups = by_method([row for row in rows if row["concept"] == concept])
        groups = {method: group for method, group in groups.items() if method not in (BASE, GOLD)}
        points = [point_of(group, base) for group in groups.values()]
        sizes = [PICTURES * len(group) for group in groups.values()]
        beaten = [any(beats_by_more(p, q, n, m) for q, m in zip(points, sizes)) for p, n in zip(points, sizes)]
        for method, *flags in zip(groups, pareto_front(points), beaten):
            counts[method].append(flags)
    return {
        method: f"{sum(front for front, _ in flags)} ({sum(not worse for _, worse in flags)}) of {len(flags)}"
        for method, flags in counts.items()
    }


def beats_by_more(point: Sequence[float], other: Sequence[float], n: int, m: int) -> bool:
    """Whether `other`, of m pictures, is nowhere worse than `point`, of n, and somewhere better by more than chance.

    Chance: two standard errors of the difference of two rates in %, each with a success and a failure added
    (Agresti & Caffo 2000), so that a rate of 100 has one too.
    """
    if any(b < a for a, b in zip(point, other)):
        return False
    return any(b - a > 2 * (variance(a, n) + variance(b, m)) ** 0.5 for a, b in zip(point, other))


def variance(rate: float, n: int) -> float:
    """Of a rate in % over n pictures; of the base's own, a rate may be above 100."""
    share = (n * min(rate, 100.0) / 100 + 1) / (n + 2)
    return 1e4 * share * (1 - share) / (n + 2)


def mean_cost(rows: Sequence[Row], key: str, unit: float, digits: int) -> str:
    values = [row[key] / unit for row in rows if row.get(key) is not None]
    return f"{fmean(values):.{digits}f}" if values else "–"


def spread(values: Sequence[float], digits: int) -> str:
    sd = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{fmean(values):.{digits}f}{sd}"


BY_CONCEPT = """Each cell holds UA coherent / the smaller of IRA and CRA in % of the base's / FD divided by the base's,
as means over seeds."""


def concept_table(rows: Sequence[Row]) -> str:
    """A line a method, a column a concept."""
    base, groups = bases_of(rows), by_method(rows)
    concepts = concepts_of(base)
    lines = [f"| | {' | '.join(concepts)} |", "|---" * (1 + len(concepts)) + "|"]
    for method, group in groups.items():
        cells = []
        for concept in concepts:
            found = [row for row in group if row["concept"] == concept]
            erased, kept = point_of(found, base) if found else (0.0, 0.0)
            distance = fmean(over_base(row, base[run_of(row)])["fd"] for row in found) if found else 0.0
            cells.append(f"{erased:.1f} / {kept:.1f} / {distance:.2f}" if found else "")
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


NEIGHBOURS = """This table shows the damage to the other classes of the same kind, including the anchor (after the
arrow). Each cell names the class that lost the most retained pictures compared with the base, and the loss in points,
averaged over seeds; – means that no class lost any. Each object has 6 such pictures per seed, each style 20."""


def neighbour_table(rows: Sequence[Row]) -> str:
    base = bases_of(rows)
    classes = {concept: list(row["per_class"]) for (concept, _), row in base.items()}
    titles = [f"{concept} → {anchor_of(concept, names)}" for concept, names in classes.items()]
    lines = [f"| | {' | '.join(titles)} |", "|---" * (1 + len(titles)) + "|"]
    for method, group in by_method(rows).items():
        if method not in (BASE, GOLD):
            cells = [lost_most([row for row in group if row["concept"] == concept], base) for concept in classes]
            lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def lost_most(rows: Sequence[Row], base: Bases) -> str:
    """The class whose rate fell most, and by how many points; nothing without rows. One concept's rows."""
    if not rows:
        return ""
    pairs = [(row["per_class"], base[run_of(row)]["per_class"]) for row in rows]
    falls = {name: fmean(rates[name] - before[name] for rates, before in pairs) for name in pairs[0][1]}
    worst = min(falls, key=falls.__getitem__)
    return f"{worst} −{-100 * falls[worst]:.0f}" if falls[worst] < 0 else "–"


def anchor_of(concept: str, classes: Sequence[str]) -> str:
    """The class that the concept's anchor prompts name."""
    prompt = load_concepts([concept], model=CANVAS)[0].anchor[0]
    return max((name for name in classes if name in prompt), key=len)


CSS = """
svg { background: #fdfcfa; font-family: system-ui, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif; }
text { font-size: 12.5px; fill: #5f626a; }
.tick { font-size: 11.5px; }
line.tick, .frame { fill: none; stroke: #e2ded7; }
.front { fill: none; stroke: #1f5f8b; stroke-width: 1.5; stroke-dasharray: 5 4; }
.whisker, .leader { stroke: #a5a9b3; stroke-width: 1; }
.point { fill: #fdfcfa; stroke: #5f626a; stroke-width: 1.75; }
.point.on-front { fill: #1f5f8b; stroke: #1f5f8b; }
.name { paint-order: stroke; stroke: #fdfcfa; stroke-width: 3px; }
.name.on-front { fill: #1c1e23; font-weight: 600; }
"""


def as_svg(rows: Sequence[Row]) -> str:
    """Erased against kept, a point a method, over the concepts that all have: docs/images/benchmark.svg."""
    shared = shared_concepts(rows)
    rows = [row for row in rows if row["concept"] in shared]
    base, groups = bases_of(rows), by_method(rows)
    means = {method: point_of(group, base) for method, group in groups.items() if method != BASE}
    names = [method for method in means if method != GOLD]
    front = dict(zip(names, pareto_front([means[name] for name in names])))
    points = [
        Point(label=method, kind=kind_in_plot(method), x=kept, y=erased, on_front=front.get(method, False))
        for method, (erased, kept) in means.items()
    ]
    x = percent_scale("kept: lesser of IRA and CRA, % of the base's →", [p.x for p in points])
    y = percent_scale("↑ erased: UA coherent, %   ○ trained  □ edited in closed form  ◇ guard", [p.y for p in points])
    drawn = plot(points, x, y, "Erased against kept", front=True, height=440)
    found = re.search(r"<svg.*?</svg>", drawn, re.DOTALL)
    assert found is not None
    return (
        found[0]
        .replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
        .replace(">", f"><style>{CSS}</style>", 1)
    )


def shared_concepts(rows: Sequence[Row]) -> list[str]:
    """The concepts that every method has a row of: a mean over others would compare concepts, not methods."""
    methods = {row["method"] for row in rows if row["method"] in METHODS}
    return [c for c in concepts_of(bases_of(rows)) if methods <= {row["method"] for row in rows if row["concept"] == c}]


def kind_in_plot(method: str) -> str:
    return METHODS[method].kind if method in METHODS else "trained"
