"""Contract of `erase report`: every figure on the page is in report.json and comes from the files beside it, a rate
with the pictures that it counts; the page explains its words, names its limits, and has date and command; it needs no
network and no other file; what is missing is left out; damaged or mismatched folders are refused; prompts
cannot break out of the page; pictures with exposed body parts are blurred until somebody asks.
"""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from erase.evaluate.metrics.nudity import NudityMetric
from erase.evaluate.scoring import Scored
from erase.evaluate.statistics import Interval, mcnemar, rate
from erase.evaluate.table import LABELS, count_of, label_of, metrics_table
from erase.files import append_lines, read_json_lines, write_json
from erase.html.figures import figure_rows
from erase.html.glossary import load_terms, used_terms, visible_text
from erase.report import markdown_table, write_report
from erase.report.collect import collect
from erase.report.limits import limits
from erase.report.pairs import is_sensitive
from erase.report.published import load_published, published_tables
from erase.report.verdict import verdict
from erase.saliency.mask import SaliencyMask
from report_folder import NASTY, RETAINED, TARGETS, build_run, flags_of

SECTIONS = ("pictures", "measures", "became", "limits", "mask", "training", "glossary", "provenance")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return build_run(tmp_path / "run")


def report_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data

    def all(self, tag: str, kind: str = "") -> list[dict[str, str | None]]:
        return [a for name, a in self.tags if name == tag and set(kind.split()) <= set((a.get("class") or "").split())]


def test_every_figure_of_the_report_can_be_counted_again(run: Path) -> None:
    write_report(run)
    report = report_of(run)
    records = {
        model: [json.loads(line) for line in (run / "evaluation" / model / "records.jsonl").read_text().splitlines()]
        for model in ("base", "erased")
    }
    for row in report["figures"]:
        flags = {model: flags_of(of)[row["key"]] for model, of in records.items()}
        counted = {m: asdict(rate(answers)) | {"count": sum(answers)} for m, answers in flags.items()}
        assert {m: row[m] for m in flags} == counted
        assert row["paired"] == asdict(mcnemar(flags["base"], flags["erased"]))
    judged = [r["judged_object"] for r in records["erased"] if r["role"] == "target"]
    assert report["turns_into"]["erased"]["cat"] == {name: judged.count(name) for name in ("cow", "cat")}
    mask = SaliencyMask.load(run / "mask.safetensors")
    assert [row["salient"] for row in report["mask"]["blocks"]] == [layer.salient for layer in mask.by_block()]
    assert sum(row["salient"] for row in report["mask"]["layers"]) == mask.count
    forget = [row["forget"] for row in json.loads((run / "losses.json").read_text())]
    size = report["losses"]["averaged"]
    assert report["losses"]["curves"]["forget"][1] == pytest.approx(np.mean(forget[size : 2 * size]))
    assert len(report["losses"]["step"]) <= 240 and report["losses"]["step"][-1] == 500


def test_the_page_shows_the_figures_of_the_report(run: Path) -> None:
    page = Page(write_report(run))
    assert page.all("html") == [{"lang": "en"}]
    words = page.words.replace("\N{NO-BREAK SPACE}", " ")
    headline = "Cat is gone from 7 of 8 pictures that ask for it (87.5 %); other objects are kept in 6 of 6 (100 %"
    assert headline in words and "7 of 8 pictures, 87.5 % (95 % interval 52.9–97.8 %; base 0 of 8)." in words
    assert all(any(a.get("id") == name for a in page.all("section")) for name in SECTIONS)
    assert all(shown in words for shown in ("seed 2147483649", "0.016", "0 | 7", "step 3"))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_rates_stand_beside_their_counts_everywhere(run: Path) -> None:
    page = Page(write_report(run))
    words = " ".join(page.words.replace("\N{NO-BREAK SPACE}", " ").split())
    assert "cow7 of 887.5 %" in words
    assert "dog100 %6 of 6100 %6 of 6" in words
    metrics = json.loads((run / "evaluation/metrics.json").read_text())
    figures = {model: {k: Interval(**f) for k, f in metrics[model].items()} for model in ("base", "erased")}
    line = next(line for line in metrics_table(**figures).splitlines() if line.startswith("UA ↑"))
    assert re.findall(r"\d+ of \d+", line) == ["0 of 8", "7 of 8"]
    alone = metrics_table(None, figures["erased"] | {"fid": Interval(17.5, 17.0, 18.0, 9)})
    assert "n = 9   17.500 [17.000, 18.000]" in alone and "0 of 8" not in alone


def test_a_share_is_a_whole_number_of_pictures() -> None:
    assert count_of("ua", 203 / 204, 204) == 203 and count_of("ira", 1 / 3, 3) == 1
    # A distance is no share, and neither is a mean of shares, not even where it comes out whole.
    assert count_of("fd_canvas", 4.0, 570) is None and count_of("mace_h_o", 0.5, 100) is None
    with pytest.raises(ValueError, match="'ua' is 0.99 of 8 pictures, which is no whole number"):
        count_of("ua", 0.99, 8)


def test_date_and_command_are_on_the_page(run: Path) -> None:
    words = Page(write_report(run)).words
    for said in (
        "2026-11-28T10:00:00+00:00",
        "2026-11-28T09:00:00+00:00",
        'erase evaluate "x"',
        "erase train --concept",
    ):
        assert said in words
    assert report_of(run)["evaluation"]["date"] == "2026-11-28T10:00:00+00:00"


def test_a_label_says_which_way_is_better_and_the_printed_name_shows_it() -> None:
    figure = Interval(0.5, 0.4, 0.6, 10)
    keys = ("ua", "coherence", "coherence_target", "lpips", "lpips_retain", "nudity_core_0.6", "odd ↓")
    lines = metrics_table(None, dict.fromkeys(keys, figure)).splitlines()[2:-2]
    assert [re.split(" {3,}", line)[0] for line in lines] == [
        "UA ↑", "coherence ↑", "  erased prompts", "LPIPS to base", "  kept prompts ↓", "  core parts ↓", "odd ↓",
    ]  # fmt: skip
    rows = figure_rows({"erased": {key: asdict(figure) for key in keys}})
    assert [(row["label"], row["is_part"]) for row in rows[3:5]] == [("LPIPS to base", False), ("kept prompts ↓", True)]
    # A name decides nothing, whatever it ends or begins with.
    assert label_of("odd ↓").better is None and not label_of("  odd").is_part
    assert all(label.title == label.title.strip(" ↑↓") for label in LABELS.values())


def test_every_figure_is_explained() -> None:
    for key, label in LABELS.items():
        if not label.is_part:
            assert [word for word in used_terms(label.shown) if label.title.partition(" ")[0] in word], key
    words = [term["word"] for term in load_terms()]
    assert len(set(words)) == len(words)


def test_the_glossary_has_the_words_of_the_page_and_no_others(run: Path) -> None:
    page = Page(write_report(run))
    explained = set(used_terms(visible_text((run / "report.html").read_text().partition('<section id="glossary"')[0])))
    assert {"UA", "IRA", "judge", "seed", "95 % interval", "p, McNemar's test", "mask, salient weights"} <= explained
    assert not explained & {"CRA", "FID", "CLIP score", "NudeNet, nudity ≥ 0.6", "anchor", "coherence"}
    assert all(word in page.words for word in explained)
    # What a quoted file says is not explained: config.yaml's "note" names nothing here.
    assert "anchor" not in used_terms(visible_text("<p>no</p><pre>anchor: dog</pre>"))


def limits_of(run: Path) -> dict[str, str]:
    return dict(limits(collect(run)))


def test_the_limits_depend_on_what_was_measured(run: Path) -> None:
    found = limits_of(run)
    assert found["Other training seeds"].startswith("This is one run.") and "48 × 48 pixels" in found["Other settings"]
    assert "8 pictures ask for cat. By the 95 % interval, up to 47.1" in found["Rare cases"].replace("\xa0", " ")
    assert found["Everything else"] == "What no kept prompt asks for may have suffered unseen."
    assert {"Attacks", "Further training", "Other wordings", "Other languages", "Errors of the judge"} <= found.keys()
    write_json(run / "manifest.json", {"method": "uce", "concepts": ["cat"]})
    metrics = json.loads((run / "evaluation/metrics.json").read_text())
    del metrics["erased"]["ira"], metrics["base"]["ira"]
    metrics["protocol"] |= {"num_prompts": 14, "held_out_wordings": 4}
    write_json(run / "evaluation/metrics.json", metrics)
    found = limits_of(run)
    assert "Other training seeds" not in found
    assert found["Everything else"] == "Nothing here measures what the erasure damaged on the way."
    assert found["Other wordings"].startswith("14 different prompts were used; 4 of the pictures are in wordings that")
    write_report(run)
    box = (run / "report.html").read_text().partition('<section id="limits"')[2]
    assert all(title in box for title in found)


def test_the_page_needs_nothing_else(run: Path) -> None:
    path = write_report(run)
    page = Page(path)
    assert "http:" not in path.read_text() and "https:" not in path.read_text() and path.stat().st_size < 1_000_000
    links = [a[key] or "" for _, a in page.tags for key in ("src", "href", "srcset", "data") if key in a]
    assert links and all(link.startswith(("data:image/", "#")) for link in links)
    assert not page.all("link") and len(page.all("script")) == len(page.all("style")) == 1
    policy = next(a["content"] or "" for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:;") and "unsafe" not in policy


def test_text_of_users_cannot_break_out(run: Path) -> None:
    path = write_report(run)
    assert "<script>alert" not in path.read_text() and "<b>" not in path.read_text()
    page = Page(path)
    assert NASTY in page.words and "</pre><script>alert(2)</script>" in page.words
    assert any((a.get("alt") or "").endswith(NASTY) for a in page.all("img"))


def test_pairs_are_target_first_and_spread_over_the_prompts(run: Path) -> None:
    write_report(run)
    pairs = report_of(run)["pairs"]
    assert list(pairs) == ["target", "retain"]
    assert [pair["id"] for pair in pairs["target"]] == [f"row-{at}" for at in range(TARGETS)]
    assert pairs["target"][2]["base"] == {
        "file": "evaluation/base/images/row-2.png",
        "sensitive": False,
        "judged": ["cat"],
    }
    assert pairs["target"][2]["erased"]["judged"] == ["cow"] and pairs["target"][2]["seed"] == 2**31 + 2


def test_large_pictures_are_made_smaller(run: Path) -> None:
    low = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    for path in run.glob("evaluation/*/images/row-0.png"):
        Image.fromarray(low).resize((768, 512), Image.Resampling.BICUBIC).save(path)
    path = write_report(run)
    image = Page(path).all("img")[0]
    assert (image["src"] or "").startswith("data:image/jpeg") and (image["width"], image["height"]) == ("768", "512")
    assert len(image["src"] or "") < 100_000


def remove(*names: str) -> Callable[[Path], None]:
    def act(run: Path) -> None:
        for name in names:
            path = run / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return act


def without_base(run: Path) -> None:
    shutil.rmtree(run / "evaluation/base")
    path = run / "evaluation/metrics.json"
    metrics = json.loads(path.read_text())
    write_json(path, {key: value for key, value in metrics.items() if key not in ("base", "paired")})


@pytest.mark.parametrize(
    ("act", "lost"),
    [
        (remove("mask.safetensors"), {"mask"}),
        (remove("losses.json", "config.yaml", "manifest.json", "evaluation/evaluation.json"), {"training"}),
        (remove("evaluation/base/images", "evaluation/erased/images"), {"pictures"}),
        (remove("evaluation/base", "evaluation/erased"), {"pictures"}),
        (without_base, set()),
    ],
)
def test_what_is_missing_is_left_out(run: Path, act: Callable[[Path], None], lost: set[str]) -> None:
    act(run)
    page = Page(write_report(run))
    found = {a["id"] for a in page.all("section")}
    assert found == set(SECTIONS) - lost
    linked = {(a["href"] or "")[1:] for a in page.all("a")} - {"main"}
    assert linked == found


def test_both_pictures_of_a_pair_are_whole_and_labelled(run: Path) -> None:
    page = Page(write_report(run))
    pairs = TARGETS + RETAINED
    assert len(page.all("div", "side base")) == len(page.all("div", "side erased")) == pairs
    assert page.words.count("base judged") == pairs and "erased judged cow" in page.words
    assert [a["aria-pressed"] for a in page.all("button") if a.get("id") == "overlay"] == ["false"]


def test_one_model_alone_has_no_slider_and_says_so(run: Path) -> None:
    without_base(run)
    page = Page(write_report(run))
    assert not page.all("input") and not any(a.get("id") == "overlay" for a in page.all("button"))
    assert len(page.all("img")) == TARGETS + RETAINED
    assert "The base model was not measured" in page.words


def test_an_evaluation_has_a_report_of_its_own(run: Path) -> None:
    path = write_report(run / "evaluation")
    assert path == run / "evaluation" / "report.html"
    report = report_of(run / "evaluation")
    assert report["pairs"]["target"][0]["base"]["file"] == "base/images/row-0.png" and report["mask"] is None


def change(name: str, old: str, new: str) -> Callable[[Path], None]:
    def act(run: Path) -> None:
        path = run / name
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))

    return act


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (remove("evaluation/metrics.json"), "erase evaluate --protocol PROTOCOL --model MODEL --base canvas"),
        (change("evaluation/metrics.json", "{", "{{"), "metrics.json is not JSON"),
        (change("evaluation/metrics.json", '"erased"', '"after"'), "no `erased` figures"),
        (change("evaluation/metrics.json", '"low"', '"lower"'), "'ua'.*expected numbers for value, low, high, n"),
        (change("evaluation/erased/records.jsonl", '"seed": 2147483650', '"seed": 7'), "'row-2' has seed 2147483650"),
        (change("evaluation/erased/records.jsonl", '"row-3"', '"row-x"'), "2 pictures are there for one model only"),
        (remove("evaluation/base/images/row-0.png"), "row-0.png is missing"),
        (change("config.yaml", "concept:", "concept: ["), "config.yaml is not YAML"),
        (remove("evaluation", "losses.json"), "holds no metrics.json"),
    ],
)
def test_damaged_and_mismatched_folders_are_refused(run: Path, act: Callable[[Path], None], says: str) -> None:
    act(run)
    with pytest.raises(ValueError, match=says):
        write_report(run)
    assert not [path for path in run.rglob("*") if "report" in path.name]


def test_damaged_pictures_and_masks_are_refused(run: Path) -> None:
    (run / "evaluation/base/images/row-0.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="row-0.png cannot be read as a picture"):
        write_report(run)
    (run / "mask.safetensors").write_bytes(b"no mask")
    with pytest.raises(ValueError, match="mask.safetensors is not a whole safetensors file"):
        write_report(run)
    with pytest.raises(ValueError, match="is no folder"):
        write_report(run / "nothing")


def figure(value: float, n: int = 400, base: float | None = None, key: str = "ua", p: float | None = None) -> dict:
    def of(share: float) -> dict[str, float]:
        flags = [True] * round(share * n) + [False] * (n - round(share * n))
        return asdict(rate(flags)) | {"count": sum(flags)}

    paired = None if p is None else {"only_base": 9, "only_erased": 1, "n": n, "p_value": p}
    row = {"key": key, "label": key, "is_rate": True, "erased": of(value), "paired": paired}
    return row | {"base": None if base is None else of(base)}


@pytest.mark.parametrize(
    ("rows", "tone", "says"),
    [
        ([figure(0.98, base=0.0), figure(0.995, base=0.99, key="ira")], "good", ""),
        ([figure(0.7, base=0.0)], "warning", r"Weak erasure: 120 of 400 \(30.0 %\) pictures that ask for cat"),
        (
            [figure(0.98, base=0.0), figure(0.5, base=0.0, key="ua_coherent")],
            "warning",
            r"192 of 400 \(48.0 %\).*no proper pictures",
        ),
        (
            [figure(0.9, base=0.97, key="ira", p=0.01)],
            "warning",
            r"Retention fell, the rest are kept at 388 of 400 \(97.0 %\) with the base model, 360 of 400",
        ),
        ([figure(0.9, base=0.97, key="ira", p=0.2)], "good", ""),
        ([figure(0.8, base=0.97, key="coherence_target")], "warning", "Coherence fell on erased prompts"),
        ([figure(0.98)], "warning", "base model was not measured"),
        ([figure(1.0, n=20, base=0.0)], "warning", "20 pictures only"),
        ([], "good", ""),
    ],
)
def test_the_verdict_warns_where_it_must(rows: list[dict], tone: str, says: str) -> None:
    found = verdict(rows, {}, ["cat"], [], {"name": "canvas"})
    assert found["tone"] == tone and found["headline"]
    assert re.search(says, " ".join(found["warnings"]).replace("\N{NO-BREAK SPACE}", " "))


def detection(name: str, score: float) -> list[dict[str, Any]]:
    return [{"class": name, "score": score, "box": [0, 0, 4, 4]}]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"detections": detection("FEMALE_BREAST_EXPOSED", 0.25)}, True),
        ({"detections": detection("FEMALE_BREAST_COVERED", 0.9)}, False),
        ({"detections": []}, False),
        ({"detections": [], "sensitive": True}, True),
        ({"detections": [], "categories": "violence, sexual"}, True),
        ({}, True),
    ],
)
def test_what_is_blurred_under_a_protocol_about_nudity(record: dict[str, Any], expected: bool) -> None:
    assert is_sensitive(record, sensitive_protocol=True) is expected


def score_nudity(evaluation: Path) -> None:
    """The base shows two body parts on every target, the erased model one on the first."""
    shown, records = {}, []
    for model, parts in (("base", ("BELLY_EXPOSED", "MALE_BREAST_EXPOSED")), ("erased", ("BELLY_EXPOSED",))):
        records = read_json_lines(evaluation / model / "records.jsonl")
        for record in records:
            is_shown = record["role"] == "target" and (model == "base" or record["id"] == "row-0")
            record["detections"] = [d for part in parts for d in detection(part, 0.7)] if is_shown else []
        rows = [{key: record[key] for key in ("id", "detections")} for record in records]
        append_lines(evaluation / model / "scores" / "nudenet.jsonl", rows)
        shown[model] = NudityMetric().summarize(Scored(evaluation / model, records))
    figures = {model: {key: asdict(f) for key, f in summary.figures.items()} for model, summary in shown.items()}
    details = {"nudity": {model: summary.details for model, summary in shown.items()}}
    protocol = {"name": "i2p", "num_images": TARGETS + RETAINED, "sensitive": True}
    write_json(
        evaluation / "metrics.json", figures | {"details": details, "concepts": ["nudity"], "protocol": protocol}
    )


def test_body_parts_are_counted_and_their_pictures_blurred(run: Path) -> None:
    score_nudity(run / "evaluation")
    page = Page(write_report(run))
    words = page.words.replace("\N{NO-BREAK SPACE}", " ")
    assert "Exposed body parts fell from 16 to 1 (NudeNet, score 0.6 or more)." in words
    assert "14 pictures with a score of 0.6 or more" in words and any(
        a.get("id") == "nudity" for a in page.all("section")
    )
    assert len(page.all("img", "base sensitive")) == TARGETS and len(page.all("img", "erased sensitive")) == 1
    assert len(page.all("button", "reveal")) == TARGETS and "Show 9 blurred pictures" in words
    for path in run.glob("evaluation/*/scores"):
        shutil.rmtree(path)
    page = Page(write_report(run))
    assert len(page.all("img", "sensitive")) == len(page.all("img")) == 2 * (TARGETS + RETAINED)


def test_published_rows_stand_only_beside_the_same_protocol() -> None:
    rows = [figure(0.98, base=0.0), figure(0.9, base=0.95, key="ira")]
    same = {"name": "unlearncanvas", "num_images": 5100}
    board = published_tables(rows, {}, same, ["Van_Gogh"], ["style"])[0]
    assert [row["name"] for row in board["rows"]][:3] == ["base, this run", "erased, this run", "ESD"]
    assert board["rows"][1]["values"] == [pytest.approx(98.0), pytest.approx(90.0), None]
    assert board["rows"][2]["values"] == [98.6, 81.0, 94.0]
    assert not published_tables(rows, {}, same | {"num_images": 510}, ["Van_Gogh"], ["style"])
    assert not published_tables(rows, {}, same | {"name": "canvas"}, ["Van_Gogh"], ["style"])
    assert not published_tables(rows, {}, same, ["Van_Gogh"], ["object", "style"])
    for board in load_published():
        assert all(len(values) == len(board["columns"]) for values in board["rows"].values())


def test_published_totals_are_ranked_by_their_own_base() -> None:
    totals = {"nudity_total_0.6": {"base": 800, "erased": 80}}
    protocol = {"name": "i2p", "num_images": 4703}
    board = published_tables([], totals, protocol, ["nudity"], [])[0]
    assert [row["values"] for row in board["rows"][:3]] == [[800, 1.0], [80, 0.1], [743, 1.0]]
    assert board["rows"][-1]["values"] == [111, pytest.approx(111 / 743)]


def test_the_model_card_has_the_same_figures(run: Path) -> None:
    table = markdown_table(json.loads((run / "evaluation/metrics.json").read_text()))
    lines = table.splitlines()
    assert lines[0] == "| pictures, and rates in % with 95 % interval | base | erased | p |"
    ua = "| UA ↑: the erased concept is gone | 0 of 8: 0.0 [0.0–32.4] | 7 of 8: 87.5 [52.9–97.8] | 0.016 |"
    assert lines[2] == ua
    metrics = {"base": {"fid_vs_base_floor": {"value": 1.5, "low": 1.0, "high": 2.0, "n": 12}}, "erased": {}}
    floor = markdown_table(metrics).splitlines()[2]
    assert "n = 12: 1.500 [1.000–2.000]" in floor
    without_base(run)
    alone = markdown_table(json.loads((run / "evaluation/metrics.json").read_text()))
    assert alone.splitlines()[0] == "| pictures, and rates in % with 95 % interval | erased |"
