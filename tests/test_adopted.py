"""Contract of pictures that exist already: an evaluation's figures are those of the pictures that it was given last.

Records carry the sha256 of their files, and an answer serves the picture (and prompt) that it was given for, whatever
was scored in the folder before, wherever that was interrupted. Prompts come from records, a table or captions, or
metrics that need them refuse before anything is written.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from erase.cli import main
from erase.draw.prompts import load_prompts
from erase.evaluate import adopted
from erase.evaluate.adopted import ADOPTED_FILE, GivenPictures, given_pictures
from erase.evaluate.evaluation import Evaluation, load_metrics
from erase.evaluate.metrics.alignment import ClipScoreMetric, CLIPScorer
from erase.evaluate.metrics.canvas import CanvasMetric
from erase.evaluate.metrics.fidelity import EncoderFrechetMetric, LpipsMetric
from erase.evaluate.metrics.reference import Reference
from erase.evaluate.protocols import Protocol
from erase.evaluate.scoring import Metric, load_scored, score_folder
from erase.files import file_sha256, read_json_lines
from tiny_encoders import RandomFeatures, build_classifier, build_clip, build_lpips, noise, write_pictures

PROTOCOL = Protocol(
    name="mine", description="", source="", metrics=("fd_encoder",), num_inference_steps=2, guidance_scale=4.0
)
CPU = torch.device("cpu")


def album(folder: Path, pictures: Sequence[np.ndarray], suffixes: Sequence[str] = (".png",)) -> Path:
    """Plain pictures, 000.png and so on; with several suffixes each picture is there in each of them."""
    folder.mkdir(parents=True)
    for at, picture in enumerate(pictures):
        for suffix in suffixes:
            Image.fromarray(picture).save(folder / f"{at:03d}{suffix}")
    return folder


@pytest.fixture
def a(tmp_path: Path) -> Path:
    return album(tmp_path / "a", noise(12, seed=1))


@pytest.fixture
def b(tmp_path: Path) -> Path:
    return album(tmp_path / "b", noise(12, seed=2))


@pytest.fixture
def figure(tmp_path: Path) -> Callable[..., float]:
    """The Fréchet distance of a folder's pictures to those of another, scored in one evaluation's folder."""

    def measure(source: Path, reference: Path, out: str = "evaluation", scorer: Any = None) -> float:
        scorer = scorer or RandomFeatures()
        folder = tmp_path / out
        given = {"erased": given_pictures(source, folder / "erased")}
        metric = EncoderFrechetMetric(scorer, Reference(reference, tmp_path / "cache"))
        run = Evaluation(protocol=PROTOCOL, rows=(), metrics=[metric], models={"erased": None}, folder=folder,
                         accelerator=Accelerator(cpu=True), given=given)  # fmt: skip
        run.run()
        return load_metrics(folder)["erased"]["fd_random"]["value"]

    return measure


def frechet_by_scipy(one: Path, other: Path) -> float:
    linalg = pytest.importorskip("scipy.linalg")
    x, y = (features_of(folder) for folder in (one, other))
    roots = linalg.sqrtm(np.cov(x, rowvar=False) @ np.cov(y, rowvar=False))
    traces = np.trace(np.cov(x, rowvar=False)) + np.trace(np.cov(y, rowvar=False))
    return float(np.square(x.mean(0) - y.mean(0)).sum() + traces - 2 * np.trace(roots).real)


def features_of(folder: Path) -> np.ndarray:
    pictures = [np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))]
    features = RandomFeatures().score(pictures, []).features
    assert features is not None
    return features.astype(np.float64)


# One folder, other pictures


def test_a_after_b_is_a(a: Path, b: Path, figure: Callable[..., float], tmp_path: Path) -> None:
    expected = frechet_by_scipy(b, a)
    assert expected > 0.1 and figure(b, a) == pytest.approx(expected, rel=1e-5)
    assert figure(a, a) == pytest.approx(0, abs=1e-6)
    assert figure(b, a) == pytest.approx(expected, rel=1e-5)
    records = read_json_lines(tmp_path / "evaluation/erased/records.jsonl")
    assert [record["sha256"] for record in records] == [file_sha256(path) for path in sorted(b.iterdir())]


def test_the_command_gives_the_figures_of_the_last_pictures(a: Path, b: Path, tmp_path: Path) -> None:
    encoder = build_classifier(tmp_path / "encoder", ["x", "y"])
    (tmp_path / "mine.yaml").write_text(
        "{name: mine, description: d, source: none, prompts: absent.csv, num_inference_steps: 2, guidance_scale: 4.0, "
        "metrics: [fd_encoder]}"
    )
    values = {}
    for name in (b, a):
        main(["evaluate", "--protocol", str(tmp_path / "mine.yaml"), "--encoder", str(encoder), "--fid_reference",
              str(a), "--images", str(name), "--output_dir", str(tmp_path / "out"), "--no_report",
              "--data_cache_dir", str(tmp_path / "cache")])  # fmt: skip
        values[name] = load_metrics(tmp_path / "out")["erased"]["fd_encoder"]["value"]
    assert values[b] > 0.1 and values[a] == pytest.approx(0, abs=1e-5)


def test_base_and_erased_pictures_of_one_table_are_told_apart(
    a: Path, figure: Callable[..., float], tmp_path: Path
) -> None:
    """They have the same ids, prompts and file names."""
    base, erased = (write_pictures(tmp_path / str(seed), noise(12, seed=seed)) for seed in (3, 4))
    fresh = [figure(folder, a, out=folder.name + "-fresh") for folder in (base, erased)]
    assert [figure(folder, a) for folder in (base, erased, base)] == [fresh[0], fresh[1], fresh[0]]
    assert fresh[0] != fresh[1]


def test_a_mended_picture_is_read_again(a: Path, b: Path, figure: Callable[..., float]) -> None:
    expected = figure(a, b, out="fresh")
    whole = (a / "004.png").read_bytes()
    (a / "004.png").unlink()
    (a / "004.png").write_bytes(whole[:60])
    with pytest.raises(ValueError, match=r"004\.png cannot be read"):
        figure(a, b)
    (a / "004.png").unlink()
    (a / "004.png").write_bytes(whole)
    assert figure(a, b) == expected


def test_a_picture_that_was_changed_in_its_place_is_noticed(a: Path, b: Path, figure: Callable[..., float]) -> None:
    """It is one file with the evaluation's own."""
    before = figure(a, b)
    with (a / "004.png").open("r+b") as file:
        file.truncate(0)
        Image.new("RGB", (40, 40), "white").save(file, "PNG")
    after = figure(a, b)
    assert after == figure(a, b, out="fresh") != before


def test_only_what_is_new_is_scored_again(a: Path, b: Path, figure: Callable[..., float]) -> None:
    scorer = RandomFeatures()
    figure(a, b, scorer=scorer)
    seen = scorer.seen
    (a / "004.png").unlink()
    Image.new("RGB", (40, 40), "white").save(a / "004.png")
    figure(a, b, scorer=scorer)
    assert scorer.seen == seen + 1


def test_the_references_features_are_those_of_its_bytes(a: Path, b: Path, figure: Callable[..., float]) -> None:
    """Other bytes of the same size and time are other pictures."""
    figure(a, b)
    stamp, size = (b / "000.png").stat().st_mtime_ns, (b / "000.png").stat().st_size
    picture = Image.new("RGB", (40, 40), "white")
    picture.save(b / "000.png")
    with (b / "000.png").open("ab") as file:
        file.write(b"\0" * (size - file.tell()))
    os.utime(b / "000.png", ns=(stamp, stamp))
    assert (b / "000.png").stat().st_size == size
    assert figure(a, b, out="again") == pytest.approx(frechet_by_scipy(a, b), rel=1e-5)


# What lies in the folder


def test_what_was_linked_before_goes(a: Path, figure: Callable[..., float], tmp_path: Path) -> None:
    nested = tmp_path / "nested"
    album(nested / "cat", noise(7, seed=5))
    album(nested / "dog", noise(8, seed=6))
    figure(nested, a)
    folder = tmp_path / "evaluation/erased"
    assert {p.relative_to(folder / "images").as_posix() for p in (folder / "images").rglob("*.png")} == {
        *(f"cat/{at:03d}.png" for at in range(7)), *(f"dog/{at:03d}.png" for at in range(8))
    }  # fmt: skip
    assert len(read_json_lines(folder / "scores/random.jsonl")) == 15
    figure(a, a)
    assert sorted(p.name for p in (folder / "images").rglob("*")) == [path.name for path in sorted(a.iterdir())]
    assert len(read_json_lines(folder / "scores/random.jsonl")) == 12
    assert (folder / "scores/random.f32").stat().st_size == 12 * 12 * 4
    assert len(list(nested.rglob("*.png"))) == 15  # the links went, the pictures stayed


def test_pictures_of_one_name_have_records_files_and_answers_of_their_own(
    b: Path, figure: Callable[..., float], tmp_path: Path
) -> None:
    both = tmp_path / "stem"
    both.mkdir()
    for at, (one, other) in enumerate(zip(noise(6, seed=7), noise(6, seed=8))):
        Image.fromarray(one).save(both / f"{at}.png")
        Image.fromarray(other).save(both / f"{at}.jpg")
    figure(both, b)
    scored = load_scored(tmp_path / "evaluation/erased")
    assert [record["id"] for record in scored.records] == sorted(path.name for path in both.iterdir())
    assert len(np.unique(scored.features["random"], axis=0)) == 12


def test_pictures_that_a_model_drew_and_files_of_others_are_left_alone(a: Path, tmp_path: Path) -> None:
    drawn, mine = tmp_path / "drawn", tmp_path / "mine"
    for folder, name in ((drawn, "generation.json"), (mine, "thesis.tex")):
        folder.mkdir()
        (folder / name).write_text("{}")
    with pytest.raises(ValueError, match="pictures that a model drew.*another --output_dir"):
        given_pictures(a, drawn).adopt()
    with pytest.raises(ValueError, match="no erase command wrote"):
        given_pictures(a, mine).adopt()
    assert [len(list(folder.rglob("*"))) for folder in (drawn, mine)] == [1, 1]


def test_an_interrupted_adoption_ends_the_same(
    a: Path, b: Path, figure: Callable[..., float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure(album(tmp_path / "more", noise(20, seed=9)), b)
    calls = []

    def link(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 4:
            raise KeyboardInterrupt
        linked(source, target)

    linked = adopted.link
    monkeypatch.setattr(adopted, "link", link)
    with pytest.raises(KeyboardInterrupt):
        figure(a, b)
    monkeypatch.setattr(adopted, "link", linked)
    assert figure(b, b) == pytest.approx(0, abs=1e-6)
    folder = tmp_path / "evaluation/erased"
    assert sorted(path.name for path in (folder / "images").iterdir()) == [path.name for path in sorted(b.iterdir())]
    assert json.loads((folder / ADOPTED_FILE).read_text())["files"] == [f"images/{at:03d}.png" for at in range(12)]


def test_links_of_others_lead_to_their_pictures(a: Path, b: Path, figure: Callable[..., float], tmp_path: Path) -> None:
    (tmp_path / "snapshot").mkdir()
    for path in a.iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(Path("..") / "a" / path.name)
    assert figure(tmp_path / "snapshot", b) == figure(a, b, out="fresh")


def test_a_folder_with_records_is_scored_in_its_place(a: Path, figure: Callable[..., float], tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "evaluation/erased", noise(12, seed=3))
    before = sorted(path.name for path in folder.rglob("*.png"))
    value = figure(folder, a)
    assert sorted(path.name for path in folder.rglob("*.png")) == before and not (folder / ADOPTED_FILE).exists()
    copy = write_pictures(tmp_path / "copy", noise(12, seed=3))
    assert figure(copy, a, out="fresh") == value
    Image.new("RGB", (40, 40)).save(folder / "images/00003.png")
    with pytest.raises(ValueError, match=r"00003\.png has been changed since its record was written"):
        figure(folder, a)


def test_an_evaluation_among_its_own_pictures_is_refused(a: Path, tmp_path: Path) -> None:
    for source, folder in ((a, a / "evaluation/erased"), (a, a), (a / "sub", a)):
        source.mkdir(exist_ok=True)
        with pytest.raises(ValueError, match="lie one inside the other"):
            given_pictures(source, folder)
    with pytest.raises(ValueError, match="would be counted among the real ones"):
        adopted.refuse_inside(a, a / "evaluation")
    (a / "generation.json").write_text("{}")
    with pytest.raises(ValueError, match="`erase generate` that was stopped"):
        given_pictures(a, tmp_path / "out")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"file": "a.png"}', "line 1 has id None"),
        ('{"id": "a", "file": "../a.png"}', r"file '\.\./a\.png'; expected a name, and a path below"),
        ('{"id": "a", "file": "/a.png"}', "expected a name, and a path below"),
        ('{"id": "a", "file": "a.png"}\n{"id": "a", "file": "b.png"}', "the id 'a' more than once"),
        ("", "names no pictures"),
    ],
)
def test_records_that_name_no_picture_of_theirs_are_refused(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").write_text(line + "\n" * bool(line))
    with pytest.raises(ValueError, match=message):
        given_pictures(tmp_path, tmp_path.parent / "out")


# Answers


def test_a_crash_between_features_and_lines_costs_answers_and_mixes_none(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "f", noise(6, seed=1))
    first = score_folder(folder, [RandomFeatures()], progress=False).features["random"].copy()
    values = folder / "scores/random.f32"
    values.write_bytes(values.read_bytes()[: 4 * 12 * 4])  # as if rows were dropped and the lines not yet
    scorer = RandomFeatures()
    again = score_folder(folder, [scorer], progress=False).features["random"]
    assert scorer.seen == 6
    np.testing.assert_array_equal(again, first)
    with values.open("ab") as file:
        file.write(b"\1" * 6 * 12 * 4)  # as if a batch was seen and not yet noted
    np.testing.assert_array_equal(load_scored(folder).features["random"], first)
    score_folder(folder, [RandomFeatures()], progress=False)
    assert values.stat().st_size == 6 * 12 * 4


def test_answers_of_older_versions_are_asked_again(tmp_path: Path) -> None:
    """They do not say which picture they are about."""
    folder, scorer = write_pictures(tmp_path / "f", noise(3)), RandomFeatures()
    score_folder(folder, [scorer], progress=False)
    for name in ("records.jsonl", "scores/random.jsonl"):
        rows = [{k: v for k, v in row.items() if k != "sha256"} for row in read_json_lines(folder / name)]
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    score_folder(folder, [scorer], progress=False)
    assert scorer.seen == 6
    assert all("sha256" in row for row in read_json_lines(folder / "records.jsonl"))


def test_a_missing_picture_is_named(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "f", noise(3))
    (folder / "images/00001.png").unlink()
    with pytest.raises(ValueError, match=r"00001\.png is missing"):
        score_folder(folder, [RandomFeatures()], progress=False)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_clip(tmp_path_factory.mktemp("clip"))


def test_another_prompt_is_another_clip_score(clip: Path, tmp_path: Path) -> None:
    pictures, cosines = noise(2, seed=1), []
    for prompt in ("a cat", "a dog", "a cat"):
        source = write_pictures(tmp_path / f"source-{len(cosines)}", pictures, [{"prompt": prompt}] * 2)
        given_pictures(source, tmp_path / "erased").adopt()
        scored = score_folder(tmp_path / "erased", [CLIPScorer(str(clip), CPU)], progress=False)
        cosines.append([record["clip_cosine"] for record in scored.records])
    assert cosines[0] == cosines[2] and cosines[0] != cosines[1]


def test_lpips_is_measured_again_when_the_base_is_another(tmp_path: Path) -> None:
    weights, out = build_lpips(tmp_path / "lpips.safetensors"), tmp_path / "out"
    erased = write_pictures(tmp_path / "erased", noise(1, 40, 1))
    values = []
    for seed in (2, 3, 2):
        base = write_pictures(tmp_path / f"base-{len(values)}", noise(1, 40, seed))
        given_pictures(base, out / "base").adopt()
        score_folder(out / "base", [], progress=False)
        metric = LpipsMetric(weights, CPU)
        values.append(metric.summarize(load_scored(erased), load_scored(out / "base")).figures["lpips"].value)
    assert values[0] == values[2] != values[1]


def test_pictures_without_prompts_are_no_single_cluster(tmp_path: Path) -> None:
    """Drawn as one prompt, they would have an interval of no width."""
    weights = build_lpips(tmp_path / "lpips.safetensors")
    base, erased = (write_pictures(tmp_path / str(seed), noise(3, 40, seed), [{"prompt": ""}] * 3) for seed in (1, 2))
    score_folder(base, [], progress=False)
    figure = LpipsMetric(weights, CPU).summarize(load_scored(erased), load_scored(base)).figures["lpips"]
    assert figure.low < figure.value < figure.high


# Prompts


def prompts_of(given: GivenPictures) -> list[str]:
    return [record["prompt"] for record in given.records]


def test_prompts_come_from_the_rows_that_name_the_pictures(a: Path, tmp_path: Path) -> None:
    by_id, by_file = tmp_path / "ids.csv", tmp_path / "files.csv"
    by_id.write_text("id,prompt,role\n" + "".join(f"{at:03d},cat {at},target\n" for at in reversed(range(12))))
    by_file.write_text("file_name,prompt\n" + "".join(f"{at:03d}.png,cat {at}\n" for at in reversed(range(12))))
    expected = [f"cat {at}" for at in range(12)]
    for table in (by_id, by_file):
        given = given_pictures(a, tmp_path / "out", load_prompts(table), str(table))
        assert prompts_of(given) == expected and given.records[3]["seed"] is None
    assert given_pictures(a, tmp_path / "out", load_prompts(by_id)).records[0]["role"] == "target"

    few = tmp_path / "few.csv"
    few.write_text("id,prompt\n000,cat\n")
    with pytest.raises(ValueError, match=r"11 of 12 pictures in .*: 001\.png is neither an id \(as '000' is\)"):
        given_pictures(a, tmp_path / "out", load_prompts(few), str(few))
    assert prompts_of(given_pictures(a, tmp_path / "out", load_prompts(few))) == ["cat"] + [""] * 11
    few.write_text("id,file_name,prompt\nx,000.png,a cat\ny,000.png,a dog\n")
    with pytest.raises(ValueError, match=r"'x' and 'y' give 000\.png two prompts"):
        given_pictures(a, tmp_path / "out", load_prompts(few))


def test_prompts_come_from_captions_and_records(a: Path, tmp_path: Path) -> None:
    assert prompts_of(given_pictures(a, tmp_path / "out")) == [""] * 12
    for at in range(12):
        (a / f"{at:03d}.txt").write_text(f"dog {at}")
    assert prompts_of(given_pictures(a, tmp_path / "out")) == [f"dog {at}" for at in range(12)]
    source = write_pictures(tmp_path / "generated", noise(2))
    assert prompts_of(given_pictures(source, tmp_path / "out", load_prompts_of(a))) == ["prompt 0", "prompt 1"]


def load_prompts_of(folder: Path) -> Any:
    (folder / "p.csv").write_text("id,prompt\n00000,other\n")
    return load_prompts(folder / "p.csv")


def test_one_picture_of_each_role(a: Path, tmp_path: Path) -> None:
    table = tmp_path / "ids.csv"
    table.write_text("id,prompt,role\n" + "".join(f"{k:03d},p,{'retain' if k % 3 else 'target'}\n" for k in range(12)))
    given = given_pictures(a, tmp_path / "out", load_prompts(table), most=2)
    assert [record["id"] for record in given.records] == ["000", "001", "002", "003"]


@pytest.mark.parametrize("metric", ["clip_score", "canvas"])
def test_metrics_that_need_prompts_refuse_before_anything_is_written(
    metric: str, a: Path, clip: Path, tmp_path: Path
) -> None:
    metrics: dict[str, Metric] = {"clip_score": ClipScoreMetric(CLIPScorer(str(clip), CPU)), "canvas": CanvasMetric()}
    out = tmp_path / "out"
    run = Evaluation(protocol=replace(PROTOCOL, metrics=(metric,)), rows=(), metrics=[metrics[metric]],
                     models={"erased": None}, folder=out, accelerator=Accelerator(cpu=True),
                     given={"erased": given_pictures(a, out / "erased")})  # fmt: skip
    expected = {"clip_score": r"12 of 12 pictures have none \(000\.png\)", "canvas": "need the columns role, domains"}
    with pytest.raises(ValueError, match=expected[metric]):
        run.run()
    assert not out.exists()


def test_the_commands_table_gives_the_clip_score_its_prompts(
    a: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kept.csv").write_text("id,prompt\n" + "".join(f"{at:03d},a cat {at}\n" for at in range(12)))
    (tmp_path / "mine.yaml").write_text(
        "{name: mine, description: d, source: none, prompts: absent.csv, num_inference_steps: 2, guidance_scale: 4.0, "
        "metrics: [clip_score]}"
    )
    flags = ["evaluate", "--protocol", str(tmp_path / "mine.yaml"), "--clip_model", str(clip), "--images", str(a),
             "--output_dir", str(tmp_path / "out"), "--no_report"]  # fmt: skip
    with pytest.raises(SystemExit):
        main(flags)
    assert "Give --prompts" in capsys.readouterr().err and not (tmp_path / "out").exists()
    main([*flags, "--prompts", str(tmp_path / "kept.csv")])
    written = load_scored(tmp_path / "out/erased").records
    same = write_pictures(tmp_path / "same", noise(12, seed=1), [{"prompt": f"a cat {at}"} for at in range(12)])
    expected = score_folder(same, [CLIPScorer(str(clip), CPU)], progress=False).records
    cosines = [[record["clip_cosine"] for record in records] for records in (written, expected)]
    assert cosines[0] == pytest.approx(cosines[1], abs=1e-6)
