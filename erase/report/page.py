"""The dict of a report to one HTML page that needs nothing else: no network, no other file."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..html.figures import DASH, MODELS, NBSP, count, interval, number, p_value, percent, plain
from ..html.glossary import glossary
from ..html.markup import Cell, bars, code, details, facts, note, num, section, table, text, whiskers
from ..html.shell import whole_page
from .gallery import gallery
from .limits import limits_section
from .network import loss_section, mask_section
from .nudity import nudity_section
from .published import RATIO_COLUMN

MOST_CLASSES = 8
"""What erased pictures turned into: so many classes, the others in one line."""


def render(report: Mapping[str, Any], folder: Path) -> str:
    """The page of a report; its pictures are read from `folder`."""
    sections = [
        gallery(report["pairs"], report["concepts"], folder),
        measures(report),
        *(published(board) for board in report["published"]),
        turned_into(report["turns_into"], report["classes"]),
        limits_section(report),
        nudity_section(report["nudity"]),
        mask_section(report["mask"]),
        loss_section(report["losses"]),
    ]
    content = "\n".join([opening(report["verdict"], report), *(part for part in sections if part)])
    ending = "\n".join([glossary(content), provenance(report)])
    concepts, protocol = ", ".join(report["concepts"]), report["protocol"].get("name")
    named = (("", concepts), ("base ", report["base_name"]), ("protocol ", protocol))
    about = " · ".join(f"{what}{name}" for what, name in named if name)
    return whole_page(
        title=f"Erasure report: {about}" if about else "Erasure report",
        eyebrow=f"<span>Erasure report</span> {text(about)}",
        content=f"{content}\n{ending}",
        footer=f"Made by erase {report['erase_version']}{_on_date(report['evaluation'])}. Every figure can be counted "
        "again from the records beside this page; report.json holds them for programs.",
    )


def _on_date(made: Mapping[str, Any]) -> str:
    return f" from an evaluation of {made['date']}" if made.get("date") else ""


def opening(verdict: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    """The verdict, what it rests on, and what speaks against it."""
    warnings = "".join(f"<li>{text(words)}</li>" for words in verdict["warnings"])
    callout = f'<div class="warning" role="note"><h2>Read with care</h2><ul>{warnings}</ul></div>' if warnings else ""
    links = "".join(f'<li><a href="#{anchor}">{text(title)}</a></li>' for anchor, title in _contents(report))
    return (
        f'<div class="verdict {verdict["tone"]}-tone"><h1>{text(verdict["headline"])}</h1>'
        f"{facts((fact['term'], fact['text']) for fact in verdict['facts'])}{callout}</div>"
        f'<nav aria-label="Sections"><ul>{links}</ul></nav>'
    )


def _contents(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Anchors and names of the sections that the page has."""
    found = [
        ("pictures", "Pictures", report["pairs"]),
        ("measures", "Measures", report["figures"]),
        ("became", "Turned into", report["turns_into"]),
        ("limits", "Limits", True),
        ("nudity", "Body parts", report["nudity"]),
        ("mask", "Mask", report["mask"]),
        ("training", "Training", report["losses"]),
        ("glossary", "Words", True),
        ("provenance", "Provenance", True),
    ]
    return [(anchor, title) for anchor, title, there in found if there]


def measures(report: Mapping[str, Any]) -> str:
    """Every figure, base beside erased; columns that no row fills are left out."""
    rows: Sequence[Mapping[str, Any]] = report["figures"]
    if not rows:
        return ""
    models = [name for name in MODELS if any(row[name] for row in rows)]
    has_rates, tested = any(row["is_rate"] for row in rows), any(row["paired"] for row in rows)
    head = ["", *models, *([f"0{DASH}100 %"] if has_rates else []), *(["p"] if tested else [])]
    words = "Rates in per cent; below each value the pictures that it counts and its 95 % interval."
    words += " Hollow: base; filled: erased." if has_rates and len(models) > 1 else ""
    if tested:
        words += (
            " p: exact McNemar test over pairs of equal seeds; below it, how many pairs only the base and only the "
        )
        words += "erased model answer yes to."
    lines = [_measure(row, models, has_rates, tested) for row in rows]
    body = table("Figures with 95 % intervals", head, lines, "measures stacked")
    return section("measures", "Measures", body, note(words))


def _measure(row: Mapping[str, Any], models: Sequence[str], has_rates: bool, tested: bool) -> list[Cell]:
    meaning = f'<span class="meaning">{text(row["meaning"])}</span>' if row["meaning"] else ""
    title = Cell(text(row["label"].replace(" ", NBSP)) + meaning, "part" if row["is_part"] else "")
    values = [_value(row[name], row["is_rate"]) for name in models]
    plot = [Cell(_plot(row, models), "chart")] if has_rates else []
    test = [_test(row["paired"])] if tested else []
    return [title, *values, *plot, *test]


def _plot(row: Mapping[str, Any], models: Sequence[str]) -> str:
    """Rates on the scale that they share; distances have none."""
    shown = [(name, row[name]) for name in models if row[name] and row["is_rate"]]
    return whiskers(*((name, f["value"], f["low"], f["high"]) for name, f in shown)) if shown else ""


def _value(figure: Mapping[str, Any] | None, is_rate: bool) -> Cell:
    if figure is None:
        return num(DASH)
    small = f"<small><span>{text(count(figure))}</span> <span>{text(interval(figure, is_rate))}</span></small>"
    return Cell(f"{text(plain(figure['value'], is_rate))}{small}", "num")


def _test(paired: Mapping[str, Any] | None) -> Cell:
    if paired is None:
        return num(DASH)
    counts = f"{paired['only_base']:,} | {paired['only_erased']:,}"
    return Cell(f"{text(p_value(paired['p_value']))}<small>{counts}</small>", "num")


def published(board: Mapping[str, Any]) -> str:
    """Published rows under our own two, protocol being equal."""
    lines = []
    for row in board["rows"]:
        cells = [num(_published_value(*pair, row["ours"])) for pair in zip(board["columns"], row["values"])]
        lines.append([Cell(text(row["name"]), "ours" if row["ours"] else ""), *cells])
    caption = f"{board['title']}. Source: {board['source']}"
    body = table(caption, ["", *board["columns"]], lines, "published stacked")
    return section("published", "Published under the same protocol", body, note(board["note"]))


def _published_value(column: str, value: float | None, is_ours: bool) -> str:
    """Published digits as they were printed, ours rounded."""
    if value is None:
        return DASH
    if column == RATIO_COLUMN:
        return percent(value)
    return number(value) if is_ours else f"{value:g}"


def turned_into(judged: Mapping[str, Any], kept: Mapping[str, Any]) -> str:
    """What the judge saw where the concept was asked for, and which kept classes suffered."""
    parts = [_became(concept, counts) for concept, counts in judged.get("erased", {}).items()]
    if kept.get("erased"):
        parts.append(details(f"All {len(kept['erased'])} kept classes", _kept_classes(kept)))
    return section("became", "What the pictures became", *parts) if parts else ""


def _became(concept: str, counts: Mapping[str, int]) -> str:
    total = sum(counts.values())
    first = list(counts.items())[:MOST_CLASSES]
    if (rest := total - sum(count for _, count in first)) > 0:
        first.append((f"{len(counts) - len(first)} others", rest))
    lines = [
        (
            Cell(text(name)),
            Cell(bars(("erased", n / total)), "chart"),
            num(f"{n:,} of {total:,}"),
            num(percent(n / total)),
        )
        for name, n in first
    ]
    caption = f"The erased model's {total:,} pictures of {concept}, by what the judge saw"
    return table(caption, ("", "", "pictures", "share"), lines, "became")


def _kept_classes(kept: Mapping[str, Mapping[str, Mapping[str, int]]]) -> str:
    """Share of right pictures per class, the largest loss first."""
    models = [name for name in MODELS if name in kept]
    shares = {
        name: {model: kept[model][name]["right"] / kept[model][name]["n"] for model in models if name in kept[model]}
        for name in kept["erased"]
    }
    lines = [
        [
            Cell(text(name)),
            Cell(bars(*shares[name].items()), "chart"),
            *(_tally(kept[model].get(name)) for model in models),
        ]
        for name in sorted(shares, key=lambda name: shares[name]["erased"] - shares[name].get("base", 0.0))
    ]
    return table("Pictures that show the class that was asked for", ("", "", *models), lines, "became")


def _tally(tally: Mapping[str, int] | None) -> Cell:
    """A share of right pictures over its count."""
    if not tally:
        return num(DASH)
    right, n = tally["right"], tally["n"]
    return Cell(f"{percent(right / n)}<small>{right:,} of {n:,}</small>", "num")


def provenance(report: Mapping[str, Any]) -> str:
    """Where the figures come from: models, versions, settings, files and their hashes."""
    files = [
        (Cell(f"<code>{text(path)}</code>"), Cell(f"<code>{text(digest)}</code>"))
        for path, digest in report["sources"].items()
    ]
    parts = [
        facts(_key_facts(report["evaluation"], report["manifest"], report["protocol"])),
        _json_details("The evaluation (evaluation.json)", report["evaluation"]),
        _json_details("The run (manifest.json)", report["manifest"]),
        details("The run's settings (config.yaml)", code(report["config"])) if report["config"] else "",
        details("Files that this page was made from, with their sha256", table("Files", ("", "sha256"), files, _FILES)),
    ]
    return section("provenance", "Provenance", *parts)


_FILES = "files stacked"


def _key_facts(
    made: Mapping[str, Any], manifest: Mapping[str, Any], protocol: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    """What a reader looks for first, as far as it is known."""
    for name, model in (made.get("models") or {}).items():
        yield f"{name} model", " ".join(filter(None, (model.get("name"), _short_hash(model.get("sha256")))))
    for key, title in _SETTINGS.items():
        if protocol.get(key) not in (None, "", []):
            yield title, _setting(protocol[key])
    if packages := made.get("packages"):
        yield "packages", ", ".join(f"{name} {version}" for name, version in packages.items())
    for title, source in (("erased", manifest), ("evaluated", made)):
        if source.get("date"):
            yield title, source["date"]
    commands = {"erased by": manifest.get("command"), "evaluated by": made.get("command")}
    if commands["erased by"] == commands["evaluated by"]:
        commands = {"command": made.get("command")}
    yield from ((title, command) for title, command in commands.items() if command)


def _short_hash(sha256: str | None) -> str:
    return f"(sha256 {sha256[:12]}…)" if sha256 else ""


def _setting(value: Any) -> str:
    return " to ".join(map(str, value)) if isinstance(value, list) else str(value)


_SETTINGS = {
    "name": "protocol",
    "source": "source",
    "num_images": "pictures",
    "published_num_images": "published with",
    "num_prompts": "prompts",
    "scheduler": "sampler",
    "steps": "steps",
    "guidance_scale": "guidance",
    "seeds": "seeds",
}


def _json_details(title: str, value: Mapping[str, Any]) -> str:
    return details(title, code(json.dumps(value, indent=2, ensure_ascii=False))) if value else ""
