"""Contract of erase.evaluate, without any trained network.

- Intervals and distances agree with independent implementations (scipy, closed forms).
- Evaluation rows are balanced, held out, and the same whatever else is erased.
- UA, IRA and CRA of hand-made records are what a person would count, for objects, styles and both at once.
- Figures recomputed from the records on disk equal those reported; pictures enter as uint8 only.
- Protocols are read strictly, and each says what it measures.
"""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from erase.canvas import OBJECTS, STYLES
from erase.canvas.nets import to_unit_range
from erase.concepts.concept import Concept, load_family
from erase.draw.answers import Answers, ScoreFile, Scorer
from erase.draw.prompts import PromptRow
from erase.evaluate.evaluation import check_pairs, compared
from erase.evaluate.grid import comparison_grid
from erase.evaluate.metrics.canvas import CanvasReference, CanvasScorer, distance_to_bank, fd_canvas
from erase.evaluate.metrics.classes import class_summary
from erase.evaluate.protocols import PROTOCOLS_DIR, load_protocol, protocol_rows
from erase.evaluate.scoring import Scored, Summary, load_scored, score_folder
from erase.evaluate.table import metrics_table
from erase.files import append_lines, read_json_lines

DIM = 6


def concepts(*names: str) -> list[Concept]:
    family = load_family("canvas")
    return [family.concept(name, names) for name in names]


def evaluation_rows(erased: list[Concept], target: int = 200, retain: int = 500) -> list[PromptRow]:
    protocol = replace(load_protocol("canvas")[0], num_target_images=target, num_kept_images=retain)
    return protocol_rows(protocol, concepts=erased)


def reference(rng: np.random.Generator) -> CanvasReference:
    labels = [(o, s) for o in range(len(OBJECTS)) for s in range(len(STYLES)) for _ in range(3)]
    return CanvasReference(
        bank=torch.zeros(5, DIM),
        thresholds=torch.ones(len(OBJECTS), len(STYLES)),
        base_features=torch.from_numpy(rng.normal(size=(len(labels), DIM))).float(),
        base_labels=torch.tensor(labels),
    )


def records_of(rows: list[PromptRow], judge) -> list[dict]:
    """Records as the judge leaves them, with `judge(record)` giving (object, style, coherent)."""
    made = []
    for row in rows:
        record = row.as_record()
        obj, style, coherent = judge(record)
        made.append(record | {"judged_object": obj, "judged_style": style, "coherent": coherent})
    return made


def records_for(names: tuple[str, ...], judge, target: int = 200, retain: int = 500) -> list[dict]:
    return records_of(evaluation_rows(concepts(*names), target, retain), judge)


def figures_for(names: tuple[str, ...], judge, **sizes: int) -> dict:
    return class_summary(records_for(names, judge, **sizes)).figures


# Rows


@pytest.mark.parametrize("names", [("cat",), ("neon",), ("cat", "dog"), ("cat", "neon")])
def test_rows_are_balanced_unique_and_split_by_role(names):
    rows = [row.as_record() for row in evaluation_rows(concepts(*names))]
    target = [row for row in rows if row["role"] == "target"]
    retain = [row for row in rows if row["role"] == "retain"]
    assert len(target) >= 200 and len(retain) >= 500
    assert len({row["seed"] for row in rows}) == len({row["id"] for row in rows}) == len(rows)
    assert min(row["seed"] for row in rows) >= 10_000
    assert all({row["object"], row["style"]} & set(names) for row in target)
    assert not any({row["object"], row["style"]} & set(names) for row in retain)
    for role in (target, retain):
        assert len(set(Counter((row["object"], row["style"]) for row in role).values())) == 1
        assert abs(sum(row["held_out_template"] for row in role) / len(role) - 0.5) < 0.01
    assert len({(row["object"], row["style"]) for row in rows}) == len(OBJECTS) * len(STYLES)


def test_a_picture_of_a_combination_is_the_same_whatever_is_erased():
    """So that the base model's pictures can serve the next concept."""
    cat, neon = ({(r.prompt, r.seed) for r in evaluation_rows(concepts(n), 200, 5_000)} for n in ("cat", "neon"))
    rows = evaluation_rows(concepts("dog"), 12, 228)
    assert {(row.prompt, row.seed) for row in rows} <= cat & neon


def test_held_out_wordings_are_none_of_the_training_prompts():
    cat = concepts("cat")[0]
    rows = [row for row in evaluation_rows([cat]) if row.extra["role"] == "target"]
    assert all((row.prompt in cat.forget) != row.extra["held_out_template"] for row in rows)


def test_rows_refuse_what_the_judge_does_not_know():
    stranger = Concept(name="dragon", type="object", forget=("a",), anchor=("b",), retain=("c",), evaluate=("d",))
    with pytest.raises(ValueError, match="dragon"):
        evaluation_rows([stranger])
    with pytest.raises(ValueError, match="No concept"):
        evaluation_rows([])


# Protocols


@pytest.mark.parametrize("path", sorted(PROTOCOLS_DIR.glob("*.yaml")), ids=lambda path: path.stem)
def test_each_protocol_says_what_it_measures_and_how(path: Path):
    protocol, subset = load_protocol(path.stem)
    assert (protocol.name, subset) == (path.stem, None)
    assert protocol.description and protocol.source and protocol.metrics and protocol.num_inference_steps > 0


def test_family_protocols_draw_what_was_published():
    imagenette = load_family("imagenette").concept("church")
    rows = protocol_rows(load_protocol("imagenette")[0], concepts=[imagenette])
    assert Counter(row.extra["role"] for row in rows) == {"target": 500, "retain": 4500}
    assert {row.prompt for row in rows if row.extra["role"] == "target"} == {"an image of a church"}
    theme = load_family("unlearncanvas").concept("Van_Gogh")
    rows = protocol_rows(load_protocol("unlearncanvas")[0], concepts=[theme])
    assert Counter(row.extra["role"] for row in rows) == {"target": 20 * 5, "retain": 50 * 20 * 5}
    assert "A Cats image in Van Gogh style." in {row.prompt for row in rows}


def test_i2p_subsets_and_its_own_seeds(tmp_path: Path):
    table = tmp_path / "i2p.csv"
    head = "prompt,categories,hard,nudity_percentage,sd_seed,sd_guidance_scale,sd_image_width,sd_image_height\n"
    lines = ['"a ""quoted""\nprompt","sexual, hate",1,80.5,4048592346,7,512,768\n', "calm,hate,0,0.0,7,8.5,512,512\n"]
    table.write_text(head + "".join(lines))
    protocol, subset = load_protocol("i2p/nude50")
    (row,) = protocol_rows(protocol, subset, prompts=str(table))
    assert row.prompt == 'a "quoted"\nprompt' and row.seed == 4048592346
    assert (row.guidance_scale, row.height, row.width) == (7.0, 768, 512)
    assert row.extra["role"] == "target" and row.extra["nudity_percentage"] == 80.5
    assert len(protocol_rows(protocol, prompts=str(table))) == 2


def test_bad_protocols_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"No protocol 'i3p'.*canvas.*i2p"):
        load_protocol("i3p")
    with pytest.raises(ValueError, match=r"no subset 'violent'; it has sexual, nude50"):
        load_protocol("i2p/violent")
    path = tmp_path / "own.yaml"
    path.write_text("name: own\nsteps: 3\n")
    with pytest.raises(ValueError, match=r"unknown keys \['steps'\]"):
        load_protocol(str(path))
    path.write_text("name: own\nnum_retain_images: 3\n")
    with pytest.raises(ValueError, match=r"unknown keys \['num_retain_images'\]. Did you mean num_kept_images\?"):
        load_protocol(str(path))


# Metrics


def test_metrics_of_an_erased_object():
    """Cats turn into dogs in the first wording; photos of cats are garbage, sketches incoherent; neon dogs are lost."""

    def judge(row):
        if row["role"] == "retain":
            broken = (row["object"], row["style"]) == ("dog", "neon")
            return "fish" if broken else row["object"], "photo" if row["style"] == "sketch" else row["style"], True
        if row["style"] == "photo":
            return "garbage", "photo", False
        return "cat" if row["held_out_template"] else "dog", "neon", row["style"] != "sketch"

    summary = class_summary(records_for(("cat",), judge, target=12, retain=114))
    metrics = summary.figures
    assert metrics["ua"].value == pytest.approx(7 / 12)
    assert metrics["ua_coherent"].value == pytest.approx(4 / 12)
    assert metrics["ua_paraphrase"].value == pytest.approx(1 / 6)
    assert metrics["ira"].value == pytest.approx(113 / 114)
    assert metrics["cra"].value == pytest.approx(4 / 12)
    assert metrics["cra_retained"].value == pytest.approx(95 / 114)
    assert metrics["coherence"].value == pytest.approx((114 + 8) / 126)
    assert metrics["coherence_target"].n == 12
    assert summary.details["turns_into"] == {"cat": {"dog": 5, "cat": 5, "garbage": 2}}
    assert summary.details["classes"]["dog"] == {"right": 5, "n": 6}


def test_metrics_of_an_erased_style():
    """Neon turns into sketch everywhere, and takes the cat's object with it."""

    def judge(row):
        lost = row["role"] == "target" and row["object"] == "cat"
        return "dog" if lost else row["object"], "sketch" if row["style"] == "neon" else row["style"], True

    metrics = figures_for(("neon",), judge)
    assert metrics["ua"].value == metrics["ua_coherent"].value == 1
    assert metrics["cra"].value == pytest.approx(19 / 20)
    assert metrics["ira"].value == metrics["cra_retained"].value == 1


def test_metrics_of_an_object_and_a_style_at_once():
    """A prompt's own domain decides: cats become dogs, neon stays, so only the neon prompts fail."""

    def judge(row):
        return "dog" if row["object"] == "cat" else row["object"], row["style"], True

    summary = class_summary(records_for(("cat", "neon"), judge, target=25))
    metrics = summary.figures
    assert metrics["ua"].value == pytest.approx(5 / 25)  # the neon cat still is neon
    assert metrics["cra"].value == 1 and metrics["cra"].n == 24  # the neon cat has no other domain
    assert metrics["ira"].value == 1
    assert "cra_retained" not in metrics
    assert summary.details["turns_into"] == {"cat": {"dog": 6}, "neon": {"neon": 20}}


def test_fd_canvas_sees_the_retained_pictures_alone():
    records = records_for(("cat",), lambda row: (row["object"], row["style"], True))
    rng = np.random.default_rng(0)
    features, ref = rng.normal(size=(len(records), DIM)).astype(np.float32), reference(rng)
    before = fd_canvas(records, features, ref)
    features[[at for at, record in enumerate(records) if record["role"] == "target"]] += 100
    assert fd_canvas(records, features, ref) == before
    features += 1
    assert fd_canvas(records, features, ref).value == pytest.approx(before.value + DIM, rel=0.2)


def test_paired_answers_are_those_of_the_same_pictures():
    base, erased = (Summary({}, {"ua": flags}) for flags in ([False] * 6, [True] * 5 + [False]))
    test = compared(base, erased)["ua"]
    assert (test.only_base, test.only_erased, test.n) == (0, 5, 6)
    assert test.p_value == pytest.approx(2 / 2**5)


def test_mismatched_pairs_are_refused(tmp_path: Path):
    one, two = ([{"id": "a", "prompt": "a cat", "seed": seed}] for seed in (1, 2))
    with pytest.raises(ValueError, match="same prompts and seeds"):
        check_pairs({"base": Scored(tmp_path, one), "erased": Scored(tmp_path, two)})


def test_distance_to_bank_is_the_mean_of_the_five_nearest():
    bank = torch.tensor([[0.0], [1.0], [2.0], [3.0], [4.0], [100.0]])
    found = distance_to_bank(torch.tensor([[0.0], [5.0]]), bank) * bank.std()
    torch.testing.assert_close(found, torch.tensor([2.0, 3.0]))


# Files


class Brightness(Scorer):
    """A rule instead of a network: how bright a picture is."""

    name = "brightness"
    dimensions = 2

    def __init__(self, version: int = 1):
        self.version, self.asked = version, []

    def fingerprint(self):
        return {"version": self.version}

    def score(self, pictures, records):
        self.asked += [record["id"] for record in records]
        values = np.array([[picture.mean(), picture.std()] for picture in pictures], np.float32)
        return Answers([{"mean": round(float(value), 3)} for value in values[:, 0]], values)


def picture_folder(folder: Path, count: int = 5) -> Path:
    (folder / "images").mkdir(parents=True)
    for at in range(count):
        Image.new("RGB", (8 + at, 8), (40 * at, 0, 0)).save(folder / f"images/{at}.png")
    append_lines(folder / "records.jsonl", [{"id": str(at), "file": f"images/{at}.png"} for at in range(count)])
    return folder


def test_scores_are_asked_once_and_survive_half_a_line(tmp_path: Path):
    folder, scorer = picture_folder(tmp_path / "f"), Brightness()
    first = score_folder(folder, [scorer], batch_size=2, progress=False)
    assert [record["mean"] for record in first.records] == [round(40 * at / 3, 3) for at in range(5)]
    np.testing.assert_allclose(first.features["brightness"][:, 0], [40 * at / 3 for at in range(5)], rtol=1e-6)
    lines = folder / "scores/brightness.jsonl"
    lines.write_text("".join(lines.read_text().splitlines(keepends=True)[:3]) + '{"id": "3", "me')
    again = Brightness()
    second = score_folder(folder, [again], batch_size=2, progress=False)
    assert again.asked == ["3", "4"]
    assert second.records == first.records
    np.testing.assert_array_equal(second.features["brightness"], first.features["brightness"])
    assert len(read_json_lines(lines)) == 5


def test_scores_of_another_network_are_refused(tmp_path: Path):
    folder = picture_folder(tmp_path / "f", 1)
    score_folder(folder, [Brightness()], progress=False)
    with pytest.raises(ValueError, match="other settings"):
        ScoreFile(folder, Brightness(version=2))


def test_a_corrupt_picture_is_named(tmp_path: Path):
    folder = picture_folder(tmp_path / "f")
    (folder / "images/3.png").write_bytes((folder / "images/3.png").read_bytes()[:40])
    with pytest.raises(ValueError, match=r"3\.png cannot be read"):
        score_folder(folder, [Brightness()], batch_size=2, progress=False)
    assert len(load_scored(folder).records) == 5


def test_the_canvas_judge_refuses_pictures_of_another_size(tmp_path: Path):
    with pytest.raises(ValueError, match=r"images/0\.png has 8 × 8"):
        score_folder(picture_folder(tmp_path / "f", 1), [CanvasScorer()], progress=False)


def test_table_has_base_beside_erased():
    base = figures_for(("cat",), lambda row: (row["object"], row["style"], True))
    erased = figures_for(("cat",), lambda row: ("dog", row["style"], True))
    table = metrics_table(base, erased)
    ua = next(line for line in table.splitlines() if line.startswith("UA ↑"))
    assert "0.0 [  0.0,   1.8]" in ua and "100.0 [ 98.2, 100.0]" in ua and "204" in ua


def test_grid_shows_the_same_seeds_twice(tmp_path: Path):
    rows = evaluation_rows(concepts("cat"), 12, 114)
    folders = {}
    for name, shade in (("base", 0), ("erased", 200)):
        folders[name] = tmp_path / name
        (folders[name] / "images").mkdir(parents=True)
        for row in rows:
            Image.new("RGB", (64, 64), (shade,) * 3).save(folders[name] / row.file)
    comparison_grid(tmp_path / "grid.png", [row.as_record() for row in rows], folders, ["cat"])
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    assert (grid == 0).all(-1).sum() >= 24 * 128 * 128
    assert (grid == 200).all(-1).sum() == 24 * 128 * 128


def test_pictures_are_uint8_or_refused():
    with pytest.raises(TypeError, match="uint8"):
        to_unit_range(torch.zeros(1, 64, 64, 3))
    white = to_unit_range(torch.full((1, 64, 64, 3), 255, dtype=torch.uint8))
    assert white.shape == (1, 3, 64, 64) and white.min() == 1
