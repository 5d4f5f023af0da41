"""The dict of a comparison to one HTML page that needs nothing else: no network, no other file."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..report.figures import NBSP, percent
from ..report.markup import Cell, code, details, facts, note, num, section, table, text
from ..report.page import HERE as REPORT
from ..report.shell import whole_page
from .comparison import summaries_of
from .config import BASE
from .plot import Point, percent_scale, plot, seconds_scale
from .samples import samples
from .table import CAPTION, Column, Value, cells, columns_of

HERE = Path(__file__).parent
FEW_PICTURES = 50
WEAK = 0.5
"""Share of the concept that the best of the methods should erase."""
KINDS = {
    "trained": ("trained", '<circle class="point" cx="7" cy="7" r="5.5"/>'),
    "closed-form": ("edited in closed form", '<rect class="point" x="1.5" y="1.5" width="11" height="11"/>'),
    "inference": ("no weight changed", '<polygon class="point" points="7,0.5 13.5,7 7,13.5 0.5,7"/>'),
}
"""Legend and marker of each kind of method."""

Line = Mapping[str, Any]


def render(comparison: Mapping[str, Any], folder: Path) -> str:
    """The page of a comparison; its pictures are read from `folder`."""
    sections = [
        front_section(comparison),
        cost_section(comparison),
        table_section(comparison),
        samples(comparison, folder),
        how_section(comparison),
    ]
    style = "".join(path.read_text(encoding="utf-8") for path in (REPORT / "style.css", HERE / "style.css"))
    script = (REPORT / "script.js").read_text(encoding="utf-8")
    about = f"{comparison['concept']} · base {comparison['base']['name']} · protocol {comparison['protocol']['name']}"
    return whole_page(
        title=f"Methods compared: {about}",
        eyebrow=f"<span>Methods compared</span> {text(about)}",
        content="\n".join([opening(comparison), *(part for part in sections if part)]),
        footer=f"Made by erase {comparison['erase_version']}. Every figure comes from the runs beside this page; "
        "compare.json holds them for programs.",
        style=style,
        script=script,
    )


def methods_of(comparison: Mapping[str, Any]) -> list[Line]:
    """The summaries without the base's."""
    return [line for line in comparison["summary"] if line["kind"] != BASE]


def opening(comparison: Mapping[str, Any]) -> str:
    """The answer in a sentence, what it rests on, and what speaks against it."""
    found = list(warnings(comparison))
    items = "".join(f"<li>{text(words)}</li>" for words in found)
    callout = f'<div class="warning" role="note"><h2>Read with care</h2><ul>{items}</ul></div>' if found else ""
    tone = "warning" if found else "good"
    return (
        f'<div class="verdict {tone}-tone"><h1>{text(headline(comparison))}</h1>'
        f"{facts(_claims(comparison))}{callout}</div>"
    )


def headline(comparison: Mapping[str, Any]) -> str:
    """Who is on the front, of how many."""
    methods, concept = methods_of(comparison), comparison["concept"]
    front = [line["method"] for line in methods if line.get("on_front")]
    if not methods:
        return f"No method has erased {concept} yet."
    if not front:
        return f"{_counted(len(methods))} that erase {concept}, on the protocol {comparison['protocol']['name']}."
    if len(methods) == 1:
        return f"{front[0]} erases {percent(methods[0]['erased']['mean'])} of {concept} and keeps " + (
            f"{percent(methods[0]['kept']['mean'])} of the rest."
        )
    if len(front) == 1:
        return f"Of {_counted(len(methods))}, {front[0]} erases {concept} best and keeps most."
    both = f"both erasing {concept} and keeping the rest"
    return f"Of {_counted(len(methods))}, none beats {_listed(front)} in {both}."


def _counted(count: int) -> str:
    return f"{count} method{'s' if count != 1 else ''}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def _claims(comparison: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    methods = methods_of(comparison)
    if comparison["axes"] and methods:
        for term, key in (("Erases most", "erased"), ("Keeps most", "kept")):
            best = max(methods, key=lambda line: (line[key]["mean"], line["on_front"]))
            yield term, f"{best['method']}: {_share(best[key])} {_TITLES[key].format(**comparison['axes'])}"
        both = methods[0]
        shares = f"{_share(both['erased'])} erased, {_share(both['kept'])} kept"
        yield "Does both best", f"{both['method']}: {shares} (the lesser of the two is the largest)"
    protocol, most = comparison["protocol"], max((line["n"] for line in methods), default=0)
    yield (
        "Rests on",
        (
            f"{protocol['num_target_images']:,} pictures that ask for {comparison['concept']} and "
            f"{protocol['num_kept_images']:,} that do not, the same for each run; up to {most} "
            f"seed{'s' if most != 1 else ''} a method"
        ),
    )


_TITLES = {"erased": "({erasure})", "kept": "({retention})"}


def _share(spread: Mapping[str, float | None]) -> str:
    value, sd = spread["mean"] or 0.0, spread["sd"]
    return percent(value) + (f" ± {100 * sd:.1f}" if sd is not None else "")


def warnings(comparison: Mapping[str, Any]) -> Iterator[str]:
    """What should make a reader doubt the picture."""
    if failures := comparison["failures"]:
        yield f"{_plural(len(failures), 'run')} failed and {'is' if len(failures) == 1 else 'are'} missing: " + (
            f"{', '.join(failures)}."
        )
    best = max((line["erased"]["mean"] for line in methods_of(comparison) if "erased" in line), default=1.0)
    if best < WEAK:
        yield f"No method erases more than {percent(best)} of {comparison['concept']}."
    if resumed := sum(row["resumed"] for row in comparison["rows"]):
        was, them = ("was", "it") if resumed == 1 else ("were", "them")
        yield f"{_plural(resumed, 'run')} {was} interrupted and gone on with; seconds and peak memory leave {them} out."
    protocol = comparison["protocol"]
    fewest = min((protocol[key] for key in ("num_target_images", "num_kept_images") if protocol[key]), default=0)
    if fewest < FEW_PICTURES:
        yield f"Some figures rest on {fewest} pictures only."
    if once := [line["method"] for line in methods_of(comparison) if line["n"] == 1 and line["kind"] == "trained"]:
        yield f"One seed only, so nothing tells how far chance goes: {', '.join(once)}."


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' if count != 1 else ''}"


def points_of(comparison: Mapping[str, Any], x: str) -> list[Point]:
    """The methods over `kept` in per cent, or over `seconds` (where those are known), erasure upwards."""
    found = []
    for line in methods_of(comparison):
        if x == "seconds":
            value, spread = line["mean"].get("seconds"), line["sd"].get("seconds")
        else:
            value, spread = 100 * line[x]["mean"], 100 * (line[x]["sd"] or 0.0)
        if value is not None:
            y = line["erased"]
            found.append(
                Point(label=line["method"], kind=line["kind"], x=value, y=100 * y["mean"], x_sd=spread or 0.0,
                      y_sd=100 * (y["sd"] or 0.0), on_front=line["on_front"])
            )  # fmt: skip
    return found


def front_section(comparison: Mapping[str, Any]) -> str:
    """Erasure against retention."""
    axes = comparison["axes"]
    if axes is None or not (points := points_of(comparison, "kept")):
        return ""
    x = percent_scale(f"kept: {axes['retention']}, % →", [p.x for p in points])
    y = percent_scale(f"↑ erased: {axes['erasure']}, %", [p.y for p in points])
    said = [f"{p.label}: erased {p.y:.1f} %, kept {p.x:.1f} %" for p in points]
    words = (
        "Up and to the right is better; both scales are stretched towards 100. Whiskers: standard deviation over "
        "seeds. Filled, on the dashed line: no other method erases and keeps at least as much. The base model itself "
        "keeps 100 and erases nothing."
    )
    drawn = plot(points, x, y, f"Erased against kept. {'; '.join(said)}.", front=True, height=440)
    return section("front", "Erased and kept", legend(points), drawn, note(words))


def cost_section(comparison: Mapping[str, Any]) -> str:
    """Erasure against seconds."""
    if comparison["axes"] is None or not (points := points_of(comparison, "seconds")):
        return ""
    x = seconds_scale("seconds of mask and training, or of the edit →", [p.x for p in points])
    y = percent_scale(f"↑ erased: {comparison['axes']['erasure']}, %", [p.y for p in points])
    said = [f"{p.label}: {p.x:.1f} seconds, erased {p.y:.1f} %" for p in points]
    made = sum(row["data_seconds"] for row in comparison["rows"])
    words = (
        "Filled: on the front above. “none”: nothing is trained, each picture costs more instead. Pictures to train on "
        f"are shared between the runs and not counted: {made:.0f} seconds in all."
    )
    drawn = plot(points, x, y, f"Erased against seconds. {'; '.join(said)}.", height=320)
    return section("cost", "Cost", drawn, note(words))


def legend(points: Sequence[Point]) -> str:
    """The markers that a plot has."""
    kinds = [kind for kind in KINDS if any(point.kind == kind for point in points)]
    items = "".join(
        f'<li><svg class="plot" width="14" height="14" aria-hidden="true" focusable="false">{KINDS[kind][1]}</svg>'
        f"{KINDS[kind][0]}</li>"
        for kind in kinds
    )
    return f'<ul class="shapes">{items}</ul>'


def table_section(comparison: Mapping[str, Any]) -> str:
    """Every method's line."""
    summaries = summaries_of(comparison)
    columns = columns_of(summaries)
    by_column = [cells(summaries, column) for column in columns]
    lines = [[Cell(text(s.method)), *(_value(of[s.method]) for of in by_column), num(s.n)] for s in summaries]
    head = ["", *(column.title.replace(" ", NBSP) for column in columns), "n"]
    body = table("Methods, mean ± standard deviation over seeds", head, lines, "results measures")
    words = note(f"{CAPTION} Coloured: best of the column.")
    return section("table", "All figures", body, words, _runs(comparison, columns))


def _value(value: Value) -> Cell:
    spread = f"<small>±{NBSP}{text(value.sd)}</small>" if value.sd else ""
    if value.is_best:
        best = f'<span class="best">{text(value.mean)}</span><span class="seen-by-ear">, best</span>'
        return Cell(f"{best}{spread}", "num")
    return Cell(f"{text(value.mean)}{spread}", "num")


def _runs(comparison: Mapping[str, Any], columns: Sequence[Column]) -> str:
    """Each run by itself."""
    lines = [
        [
            Cell(text(row["method"])),
            num("" if row["seed"] is None else row["seed"]),
            *(num("" if row.get(c.key) is None else c.show(row[c.key])) for c in columns),
            Cell(f"<code>{text(row['folder'])}</code>"),
        ]
        for row in comparison["rows"]
    ]
    head = ["", "seed", *(column.title.replace(" ", NBSP) for column in columns), "folder"]
    return details(f"All {len(lines)} runs", table("Runs", head, lines, "results measures"))


def how_section(comparison: Mapping[str, Any]) -> str:
    """How it was made, so that anybody can make it again."""
    made, base, protocol = comparison["made"], comparison["base"], comparison["protocol"]
    pairs = {
        "command": made["command"],
        "base": f"{base['name']} (sha256 {base['sha256'][:12]}…)",
        "protocol": f"{protocol['name']}, {protocol['steps']} steps, guidance {protocol['guidance_scale']:g}",
        "picture seeds": " to ".join(map(str, protocol["seeds"])),
        "runs at once": str(made["processes"]),
        "device": comparison["device"],
        "packages": ", ".join(f"{name} {version}" for name, version in comparison["packages"].items()),
    }
    commands = "\n\n".join(f"# {name}\n{command}" for name, command in made["commands"].items())
    parts = [
        facts((name, value) for name, value in pairs.items() if value),
        details("The runs' own commands", code(commands)),
        details("Common settings of the trained methods", code(made["config"])) if made["config"] else "",
    ]
    return section("made", "How it was made", *parts)
