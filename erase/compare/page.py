"""The dict of a comparison to one HTML page that needs nothing else: no network, no other file."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..html.figures import DASH, NBSP, percent
from ..html.glossary import glossary
from ..html.markup import Cell, code, details, facts, note, num, section, table, text
from ..html.plot import Point, Scale, percent_scale, plot, seconds_scale
from ..html.shell import whole_page
from .chance import Estimate, lesser
from .comparison import estimate, summaries_of
from .config import BASE
from .picture_grid import samples
from .rows import aggregate
from .table import CAPTION, MARK, Column, Value, cells, columns_of, value_of

HERE = Path(__file__).parent
GLOSSARY_FILE = HERE / "glossary.yaml"
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
        limits_section(comparison),
    ]
    content = "\n".join([opening(comparison), *(part for part in sections if part)])
    style = (HERE / "style.css").read_text(encoding="utf-8")
    about = f"{comparison['concept']} · base {comparison['base']['name']} · protocol {comparison['protocol']['name']}"
    return whole_page(
        title=f"Methods compared: {about}",
        eyebrow=f"<span>Methods compared</span> {text(about)}",
        content="\n".join([content, glossary(content, GLOSSARY_FILE), how_section(comparison)]),
        footer=f"Made by erase {comparison['erase_version']} on {comparison['made']['date']}. Every figure comes from "
        "the runs beside this page; compare.json holds them for programs.",
        style=style,
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
    """Who is on the front, of how many: all methods that no other beats by more than chance."""
    methods, concept = methods_of(comparison), comparison["concept"]
    front = sorted(line["method"] for line in methods if line.get("on_front"))
    if not methods:
        return f"No method has erased {concept} yet."
    if not front:
        return f"{_counted(len(methods))} that erase {concept}, on the protocol {comparison['protocol']['name']}."
    if len(methods) == 1:
        return f"{front[0]} erases {percent(methods[0]['erased']['mean'])} of {concept} and keeps " + (
            f"{percent(methods[0]['kept']['mean'])} of the rest."
        )
    if len(front) == 1:
        return f"Of {_counted(len(methods))}, {front[0]} does best at erasing {concept} and keeping the rest."
    none = "none beats another" if len(front) == len(methods) else f"none beats {_listed(front)}"
    return f"Of {_counted(len(methods))}, {none} by more than chance in erasing {concept} and keeping the rest."


def _counted(count: int) -> str:
    return f"{count} method{'s' if count != 1 else ''}"


def _listed(names: Sequence[str], word: str = "or") -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {word} {names[-1]}"


def _claims(comparison: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    methods = methods_of(comparison)
    if comparison["axes"] and methods:
        for term, key in (("Erases most", "erased"), ("Keeps most", "kept"), ("Does both best", "both")):
            yield term, f"{_leading(comparison, key)} ({_TITLES[key].format(**comparison['axes'])})"
    protocol, most = comparison["protocol"], max((line["n"] for line in methods), default=0)
    yield (
        "Rests on",
        (
            f"{protocol['num_target_images']:,} pictures that ask for {comparison['concept']} and "
            f"{protocol['num_kept_images']:,} that do not, the same for each run; up to {most} "
            f"seed{'s' if most != 1 else ''} a method"
        ),
    )


_TITLES = {"erased": "{erasure}", "kept": "{retention}", "both": "the lesser of erased and kept"}


def _leading(comparison: Mapping[str, Any], key: str) -> str:
    """All methods that chance cannot tell from the best, with their values."""
    names = sorted(comparison["leaders"][key])
    found = {line["method"]: _value_in(line, key) for line in methods_of(comparison) if line["method"] in names}
    if len(found) == 1:
        ((name, only),) = found.items()
        ends = f", 95{NBSP}% interval {_ends(only.interval)}" if only.interval else ""
        return f"{name}: {percent(only.value)}{ends}"
    values = sorted(one.value for one in found.values())
    if values[0] == values[-1]:
        return f"{_listed(names, 'and')}: {percent(values[0])} each"
    return f"{_listed(names, 'and')}: {_ends((values[0], values[-1]))}; chance may explain the difference"


def _value_in(line: Line, key: str) -> Estimate:
    """A method's share of erased or kept, or the lesser of both."""
    found = {name: estimate(line[name]) for name in ("erased", "kept")}
    return lesser(found["erased"], found["kept"]) if key == "both" else found[key]


def _ends(interval: Sequence[float]) -> str:
    """`97.0–99.5 %`."""
    low, high = interval
    return f"{100 * low:.1f}{DASH}{percent(high)}"


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
        yield f"{_plural(resumed, 'run')} {was} interrupted and resumed; seconds and peak memory leave {them} out."
    protocol = comparison["protocol"]
    fewest = min((protocol[key] for key in ("num_target_images", "num_kept_images") if protocol[key]), default=0)
    if fewest < FEW_PICTURES:
        yield f"Some figures rest on {fewest} pictures only."
    if once := [line["method"] for line in methods_of(comparison) if line["n"] == 1 and line["kind"] == "trained"]:
        yield f"One training seed only, so the intervals leave out what another would change: {', '.join(once)}."


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' if count != 1 else ''}"


def points_of(comparison: Mapping[str, Any], x: str) -> list[Point]:
    """The methods over `kept` in per cent, or over `seconds` (where those are known), erasure upwards."""
    found = []
    for line in methods_of(comparison):
        if x == "seconds":
            value, ends = line["mean"].get("seconds"), line["interval"].get("seconds")
        else:
            value, ends = 100 * line[x]["mean"], _per_cent(line[x])
        if value is not None:
            y = line["erased"]
            found.append(
                Point(label=line["method"], kind=line["kind"], x=value, y=100 * y["mean"], on_front=line["on_front"],
                      x_range=(ends[0], ends[1]) if ends else None, y_range=_per_cent(y))
            )  # fmt: skip
    return found


def _per_cent(share: Mapping[str, float | None]) -> tuple[float, float] | None:
    """The ends of a share's interval in per cent."""
    known = estimate(share).interval
    return (100 * known[0], 100 * known[1]) if known else None


def front_section(comparison: Mapping[str, Any]) -> str:
    """Erasure against retention."""
    axes = comparison["axes"]
    if axes is None or not (points := points_of(comparison, "kept")):
        return ""
    x = percent_scale(f"kept: {axes['retention']}, % →", [v for p in points for v in (p.x, *(p.x_range or ()))])
    y = erasure_scale(comparison, points)
    said = [f"{p.label}: erased {p.y:.1f} %, kept {p.x:.1f} %" for p in points]
    words = (
        f"Up and to the right is better; both scales are stretched towards 100. Whiskers: 95{NBSP}% intervals. Filled: "
        "no other method is better in one of the two by more than chance and not worse in the other. The dashed line "
        "joins the highest values of these. The base model itself keeps 100 and erases nothing."
    )
    drawn = plot(points, x, y, f"Erased against kept. {'; '.join(said)}.", front=True, height=440)
    return section("front", "Erased and kept", legend(points), drawn, note(words))


def cost_section(comparison: Mapping[str, Any]) -> str:
    """Erasure against seconds."""
    if comparison["axes"] is None or not (points := points_of(comparison, "seconds")):
        return ""
    x = seconds_scale("seconds of mask and training, or of the edit →", [p.x for p in points])
    y = erasure_scale(comparison, points)
    said = [f"{p.label}: {p.x:.1f} seconds, erased {p.y:.1f} %" for p in points]
    made = sum(row["data_seconds"] for row in comparison["rows"])
    words = (
        "Filled: on the front above. “none”: nothing is trained, each picture costs more instead. Pictures to train on "
        f"are shared between the runs and not counted: {made:.0f} seconds in all."
    )
    drawn = plot(points, x, y, f"Erased against seconds. {'; '.join(said)}.", height=320)
    return section("cost", "Cost", drawn, note(words))


def erasure_scale(comparison: Mapping[str, Any], points: Sequence[Point]) -> Scale:
    """The upright scale, which covers the whiskers too."""
    title = f"↑ erased: {comparison['axes']['erasure']}, %"
    return percent_scale(title, [v for p in points for v in (p.y, *(p.y_range or ()))])


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
    head = ["", *(column.label.shown.replace(" ", NBSP) for column in columns), "n"]
    body = table("Methods with 95 % intervals", head, lines, "results measures stacked")
    words = note(f"{CAPTION} Coloured: {MARK} Methods in the order of the lesser of erased and kept.")
    return section("table", "All figures", body, words, _runs(comparison, columns))


def _value(value: Value) -> Cell:
    ends = f"<small><span>{text(value.interval)}</span></small>" if value.interval else ""
    if value.is_marked:
        best = (
            f'<span class="best">{text(value.mean)}</span><span class="seen-by-ear">, best, or not apart from it</span>'
        )
        return Cell(f"{best}{ends}", "num")
    return Cell(f"{text(value.mean)}{ends}", "num")


def _runs(comparison: Mapping[str, Any], columns: Sequence[Column]) -> str:
    """Each run by itself."""
    runs = {row["folder"]: aggregate([row])[0] for row in comparison["rows"]}
    lines = [
        [
            Cell(text(row["method"])),
            num(DASH if row["seed"] is None else row["seed"]),
            *(_value(value_of(runs[row["folder"]], column)) for column in columns),
            Cell(f"<code>{text(row['folder'])}</code>", "path"),
        ]
        for row in comparison["rows"]
    ]
    head = ["", "seed", *(column.label.shown.replace(" ", NBSP) for column in columns), "folder"]
    return details(f"All {len(lines)} runs", table("Runs", head, lines, "results measures stacked"))


def limits_section(comparison: Mapping[str, Any]) -> str:
    """What the comparison leaves open."""
    concept = comparison["concept"]
    found = {
        "Other concepts": f"The order of the methods is that for {concept}; with another concept it may be another.",
        "Other settings": "Each method ran with the settings listed below; tuned to this concept, it may do better.",
        "Attacks": f"Nobody tried to bring {concept} back, by optimised prompts or by further training.",
        "Other prompts": "Other wordings, languages, sizes and samplers were not tried.",
        "Errors of the judge": "A network judges the pictures. No interval counts its mistakes.",
        "Small leads": "Many methods are compared at once, so a lead that is just beyond chance may still be chance.",
    }
    return section("limits", "What this does not show", f'<div class="box">{facts(found.items())}</div>')


def how_section(comparison: Mapping[str, Any]) -> str:
    """How it was made, so that anybody can make it again."""
    made, base, protocol = comparison["made"], comparison["base"], comparison["protocol"]
    pairs = {
        "date": made["date"],
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
