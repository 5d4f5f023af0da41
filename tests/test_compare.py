"""Contract of `erase compare`: a wrong name is an error before the first run; runs that are done are skipped, those
that were interrupted go on, those that fail are told of and take no other with them; Ctrl-C leaves no process behind
and nothing that cannot be gone on with; every figure of the table and the page comes from the runs' own files; the page
needs no network, and names in its plots lie inside them and never one over another.

The runs are `fake_erase.py`'s, which writes the files of a run in a moment; planning, settings and processes are real.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
import yaml
from test_report_browser import CHROMIUM, Browser, every_column_shows

from erase.cli import main
from erase.compare import CompareConfig, run_compare
from erase.compare import runner as runner_module
from erase.compare.config import GUARDS, parse_entries, slug
from erase.compare.jobs import PROOF_BATCH_SIZE, differences, next_step, plan, write_protocol
from erase.compare.pareto import Axes, axes_of, erased, kept, pareto_front
from erase.compare.rows import MethodSummary, aggregate, average_gap, rows_of
from erase.compare.runner import environment, log_tail, run_jobs, share_of
from erase.compare.table import cells, columns_of, markdown_table, text_table
from erase.html.label_placement import place_labels, text_width
from erase.html.plot import Point, percent_scale, plot, seconds_scale
from erase.ledger import OWN_DIR

FAKE = Path(__file__).with_name("fake_erase.py")
METHODS = "salun,esd-x,negative-prompt"

Compare = Callable[..., CompareConfig]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run fake_erase.py for `erase`; call it to tell the fake what to do."""
    monkeypatch.setattr(runner_module, "ERASE", (sys.executable, str(FAKE)))
    monkeypatch.setattr(runner_module, "PAUSE", 0.01)

    def tell(**wishes: Any) -> None:
        monkeypatch.setenv("FAKE", json.dumps(wishes))

    tell()
    return tell


@pytest.fixture
def compare(tmp_path: Path) -> Compare:
    def make(methods: str = METHODS, **changes: Any) -> CompareConfig:
        settings: dict[str, Any] = {"concept": "cat", "pretrained_model_name_or_path": "canvas", "seeds": 2}
        settings |= {"output_dir": tmp_path / "out", "data_cache_dir": tmp_path / "cache"}
        return CompareConfig(methods=(methods,), **(settings | changes))

    return make


# Names


def test_entries_with_settings_and_labels() -> None:
    entries = parse_entries(["salun, esd-x,salun:mask=random,density=0.5,mine=uce:erase_weight=2", "sld-max"])
    assert [(e.label, e.method, dict(e.settings)) for e in entries] == [
        ("salun", "salun", {}),
        ("esd-x", "esd-x", {}),
        ("salun:mask=random,density=0.5", "salun", {"mask": "random", "density": "0.5"}),
        ("mine", "uce", {"erase_weight": "2"}),
        ("sld-max", "sld-max", {}),
    ]
    assert [e.kind for e in entries] == ["trained", "trained", "trained", "closed-form", "inference"]
    assert slug("salun:mask=random,density=0.5") == "salun-mask-random-density-0.5"


@pytest.mark.parametrize(
    ("methods", "says"),
    [
        ("salum", "Unknown method 'salum'.*Did you mean salun"),
        ("sld", "Did you mean sld-medium or sld-strong or sld-max"),
        ("", "No method to compare"),
        ("base=salun", "base model's already"),
        ("salun,salun", "another line's already"),
        ("a-b=salun,a:b=1", "Unknown method 'a'"),
        ("a-b=salun,A.B=esd-x,A b=uce", "another line's already"),
        ("salun:densty=0.1", "Did you mean density"),
        ("salun:mask=random,densty=0.1", "Unknown method '0.1'.*meant as a setting: Did you mean density"),
        ("salun:seed=3", "gives that one itself"),
        ("sld-max:density=0.1", "It takes guard_concept"),
        ("salun:mask", "settings are KEY=VALUE"),
    ],
)
def test_wrong_names_are_told_at_once(methods: str, says: str, compare: Compare) -> None:
    with pytest.raises(ValueError, match=says):
        compare(methods)


def test_a_base_without_a_proof_needs_a_protocol(compare: Compare) -> None:
    with pytest.raises(ValueError, match="Choose a protocol of `erase evaluate` with --protocol"):
        compare(pretrained_model_name_or_path="some/model")
    with pytest.raises(ValueError, match="--evaluate gives flags to --protocol"):
        compare(evaluate=("max_images=3",))
    with pytest.raises(ValueError, match=r"has its own number of pictures.*max_images"):
        compare(protocol="canvas", num_kept_images=3)
    with pytest.raises(ValueError, match="seeds must be at least 1"):
        compare(seeds=0)


def test_names_and_flags_are_the_commands_own() -> None:
    from erase.evaluate.proof import BATCH_SIZE

    assert PROOF_BATCH_SIZE == BATCH_SIZE
    assert {"negative-prompt", "sld-medium", "sld-strong", "sld-max", "safree"} == set(GUARDS)


# Plan


def test_jobs_carry_the_same_seeds_and_their_own_settings(compare: Compare, tmp_path: Path) -> None:
    common = tmp_path / "common.yaml"
    common.write_text("max_train_steps: 7\ndensity: 0.3\n")
    jobs = plan(compare("salun,salun:density=0.2,save_patch=false,sld-max", config=str(common), seed=5))
    assert [job.name for job in jobs] == [
        "base", "sld-max", "salun, seed 5", "salun:density=0.2,save_patch=false, seed 5",
        "salun, seed 6", "salun:density=0.2,save_patch=false, seed 6",
    ]  # fmt: skip
    plain, variant = jobs[2].steps[0], jobs[3].steps[0]
    assert plain.settings["seed"] == 5 and plain.settings["max_train_steps"] == variant.settings["max_train_steps"] == 7
    assert (plain.settings["density"], variant.settings["density"]) == (0.3, 0.2)
    assert "--no_save_patch" in variant.arguments and plain.settings["num_target_images"] == 200
    assert plain.settings["concept"] == ["cat"] and plain.settings["method"] == "salun"
    guard = jobs[1].steps[0].arguments
    assert guard[:1] == ("evaluate",) and " --guard sld-max --concept canvas/cat " in f" {' '.join(guard)} "


def test_an_edit_without_anything_random_runs_once(compare: Compare) -> None:
    jobs = plan(compare("recommended,uce,control=recommended:mask=random", seeds=3))
    assert [job.name for job in jobs[1:4]] == ["recommended, seed 0", "uce, seed 0", "control, seed 0"]
    assert [job.name for job in jobs[4:]] == ["control, seed 1", "control, seed 2"]
    edits = plan(compare("speed,copies=speed:edit_augmentations=3", seeds=2))
    assert [job.name for job in edits[1:]] == ["speed, seed 0", "copies, seed 0", "copies, seed 1"]


def test_other_counts_of_pictures_reach_every_run(compare: Compare) -> None:
    config = compare("salun", num_target_images=6, num_kept_images=1, seeds=1)
    base, run = plan(config)
    assert not config.output_dir.exists()
    write_protocol(config)
    file = Path(base.steps[0].arguments[base.steps[0].arguments.index("--protocol") + 1])
    protocol = yaml.safe_load(file.read_text())
    assert (protocol["num_target_images"], protocol["num_kept_images"]) == (6, 1)
    assert (run.steps[0].settings["num_target_images"], run.steps[0].settings["num_kept_images"]) == (6, 1)
    assert base.steps[0].settings["protocol"] == "canvas" and base.steps[0].settings["num_kept_images"] == 1


def test_scored_pictures_have_another_name_than_those_to_train_on(
    compare: Compare, capsys: pytest.CaptureFixture[str]
) -> None:
    _, run = plan(compare("salun:num_retain_images=4", num_kept_images=9, seeds=1))
    assert (run.steps[0].settings["num_retain_images"], run.steps[0].settings["num_kept_images"]) == (4, 9)
    flags = ["--pretrained_model_name_or_path", "canvas", "--concept", "cat", "--methods", "uce"]
    with pytest.raises(SystemExit) as stopped:
        main(["compare", *flags, "--num_retain_images", "9"])
    assert stopped.value.code == 2 and "num_kept_images" in capsys.readouterr().err


def test_a_protocol_is_a_step_of_its_own(compare: Compare) -> None:
    config = compare("salun,safree", pretrained_model_name_or_path="some/model", concept="nudity",
                     protocol="i2p/sexual", evaluate=("max_images=3",), seeds=1)  # fmt: skip
    base, guard, run = plan(config)
    assert [step.name for step in run.steps] == ["train", "evaluate"] and "--no_proof" in run.steps[0].arguments
    for job in (base, guard, run):
        flags = job.steps[-1].arguments
        assert flags[flags.index("--protocol") + 1] == "i2p/sexual" and flags[flags.index("--max_images") + 1] == "3"
        assert flags[flags.index("--output_dir") + 1] == str(job.folder / "evaluation")


def test_a_setting_that_no_run_takes_ends_the_plan(compare: Compare, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        plan(compare("salun:density=much"))
    assert "density" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"density must be in \(0, 1\]"):
        plan(compare("salun:density=3"))
    with pytest.raises(ValueError, match="cannot draw 'cta'"):
        plan(compare(concept="cta"))


# Runs


def events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def without_date(compared: str) -> dict[str, Any]:
    comparison = json.loads(compared)
    del comparison["made"]["date"]
    return comparison


def test_runs_are_made_once(compare: Compare, fake: Callable[..., None], tmp_path: Path) -> None:
    fake(log=str(tmp_path / "log"))
    config = compare()
    run_compare(config)
    names = ["base", "negative-prompt", "salun-0", "esd-x-0", "salun-1", "esd-x-1"]
    assert [event["name"] for event in events(tmp_path / "log") if event["what"] == "start"] == names
    before = (config.output_dir / "compare.json").read_text()
    (tmp_path / "log").unlink()
    run_compare(config)
    after = (config.output_dir / "compare.json").read_text()
    assert events(tmp_path / "log") == [] and without_date(after) == without_date(before)
    assert datetime.fromisoformat(json.loads(after)["made"]["date"]).utcoffset() == timedelta(0)
    run_compare(compare("gradient-ascent", seeds=1))
    assert [event["name"] for event in events(tmp_path / "log")] == ["gradient-ascent-0"] * 2
    assert len(rows_of(config.output_dir)) == 7


def test_other_settings_are_refused_or_made_again(compare: Compare, fake: Callable[..., None], tmp_path: Path) -> None:
    run_compare(compare("salun,sld-max", seeds=1))
    changed = tmp_path / "changed.yaml"
    changed.write_text("learning_rate: 0.5\n")
    with pytest.raises(ValueError, match=r"seed-0 holds salun, seed 0.*\n  learning_rate: .* there, 0\.5 now"):
        run_compare(compare("salun", seeds=1, config=str(changed)))
    with pytest.raises(ValueError, match="guard_concept: None there, kitten now"):
        run_compare(compare("sld-max=sld-max:guard_concept=kitten", seeds=1))
    fake(log=str(tmp_path / "log"))
    run_compare(compare("salun,sld-max", seeds=1, config=str(changed), overwrite_output_dir=True))
    assert {event["name"] for event in events(tmp_path / "log")} == {"salun-0"}
    assert yaml.safe_load((tmp_path / "out/runs/salun/seed-0/config.yaml").read_text())["learning_rate"] == 0.5


def test_a_setting_that_was_added_since_is_at_its_default(compare: Compare, fake: Callable[..., None]) -> None:
    run_compare(compare("salun", seeds=1))
    job = plan(compare("salun", seeds=1))[1]
    path = job.folder / "config.yaml"
    settings = yaml.safe_load(path.read_text())
    assert settings.pop("edit_mu") == 0.1
    path.write_text(yaml.safe_dump(settings))
    assert differences(job) == []
    path.write_text(yaml.safe_dump(settings | {"edit_mu": 0.2, "gone_since": 1}))
    assert differences(job) == ["edit_mu: 0.2 there, 0.1 now", "gone_since: 1 there, None now"]


def test_other_pictures_are_not_compared(compare: Compare, fake: Callable[..., None], tmp_path: Path) -> None:
    run_compare(compare("salun", seeds=1))
    path = tmp_path / "out/runs/salun/seed-0/evaluation/metrics.json"
    path.write_text(path.read_text().replace('"num_target_images": 204', '"num_target_images": 20'))
    with pytest.raises(ValueError, match="not evaluated on the same pictures"):
        rows_of(tmp_path / "out")


def test_a_run_that_fails_takes_no_other_with_it(
    compare: Compare, fake: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake(fail=["salun"])
    with pytest.raises(ValueError, match="1 of 4 runs failed") as failed:
        run_compare(compare(seeds=1))
    said = str(failed.value)
    assert "salun, seed 0: exit status 3\n" in said and "    step 3\n    out of memory: <buy> more\n" in said
    assert "step 2" not in said and str(tmp_path / "out/runs/salun/seed-0.log") in said
    assert "esd-x " in capsys.readouterr().out
    comparison = json.loads((tmp_path / "out/compare.json").read_text())
    assert comparison["failures"] == ["salun, seed 0"]
    assert [row["method"] for row in comparison["rows"]] == ["base", "esd-x", "negative-prompt"]
    assert "1 run failed and is missing: salun, seed 0." in (tmp_path / "out/compare.html").read_text()
    fake(log=str(tmp_path / "log"))
    run_compare(compare(seeds=1))
    assert {event["name"] for event in events(tmp_path / "log")} == {"salun-0"}


def test_a_command_that_writes_nothing_has_failed(
    compare: Compare, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(runner_module, "ERASE", (sys.executable, "-c", "print('fine')"))
    with pytest.raises(ValueError, match=r"(?s)1 of 2 runs.*exit status 0\n.*fine\n.*evaluation.json was not written"):
        run_compare(compare("salun", seeds=1))
    # Without the base there is nothing to compare with.
    written = {path.name for path in (tmp_path / "out").rglob("*") if OWN_DIR not in path.parts}
    assert written == {"runs", "base", "run.json", "run.log"}


def test_runs_at_once_share_the_cores(compare: Compare, fake: Callable[..., None], tmp_path: Path) -> None:
    fake(log=str(tmp_path / "log"), meet=3)
    assert run_jobs(plan(compare("salun,esd-x", seeds=1)), processes=2) == []
    seen = events(tmp_path / "log")
    assert [(event["what"], event["name"]) for event in seen[:2]] == [("start", "base"), ("end", "base")]
    assert [event["what"] for event in seen[2:]] == ["start"] * 2 + ["end"] * 2
    cores = [set(event["cores"]) for event in seen]
    assert cores[0] == os.sched_getaffinity(0) == cores[-1] | cores[-2] and len(cores[-1]) <= max(
        1, len(cores[0]) // 2 + 1
    )


@pytest.mark.parametrize("cores", [1, 2, 3, 8])
@pytest.mark.parametrize("at_once", [1, 2, 3, 5])
def test_shares_of_the_cores(cores: int, at_once: int) -> None:
    shares = [set(share_of(range(cores), slot, at_once)) for slot in range(at_once)]
    assert all(shares) and set.union(*shares) == set(range(cores))
    if at_once <= cores:
        assert sum(map(len, shares)) == cores and max(map(len, shares)) - min(map(len, shares)) <= 1


def test_each_run_gets_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert [environment(slot, 3)["CUDA_VISIBLE_DEVICES"] for slot in range(3)] == ["2", "5", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    assert environment(0, 3).keys() == {"OMP_NUM_THREADS"} and environment(0, 1) == {}
    assert int(environment(0, 1000)["OMP_NUM_THREADS"]) == 1


def test_copies_of_a_comparison_are_refused(compare: Compare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="without accelerate launch"):
        run_compare(compare())


INTERRUPTED = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background would ignore it
import sys
from erase.cli import main
from erase.compare import runner
runner.ERASE = (sys.executable, {fake!r})
main(["compare", "--concept", "cat", "--methods", "salun,esd-x", "--pretrained_model_name_or_path", "canvas",
      "--seeds", "1", "--output_dir", {out!r}, "--data_cache_dir", {cache!r}, "--processes", "2"])
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_comparison_goes_on(
    number: signal.Signals, compare: Compare, fake: Callable[..., None], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    wishes = {"FAKE": json.dumps({"log": str(log), "hang": ["salun"]}), "CUDA_VISIBLE_DEVICES": "0"}
    program = INTERRUPTED.format(fake=str(FAKE), out=str(tmp_path / "out"), cache=str(tmp_path / "cache"))
    process = subprocess.Popen([sys.executable, "-c", program], env=os.environ | wishes, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not any(event["what"] == "hang" for event in events(log)):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 128 + number and b"the same command continues them" in said
    assert subprocess.run(["pgrep", "-f", str(tmp_path / "out")], capture_output=True).stdout == b""
    job = next(job for job in plan(compare("salun,esd-x", seeds=1)) if job.label == "salun")
    step = next_step(job)
    assert step is not None and step.arguments[-2:] == ("--resume_from_checkpoint", "latest") and not differences(job)
    run_compare(compare("salun,esd-x", seeds=1))
    row = next(row for row in rows_of(tmp_path / "out") if row["method"] == "salun")
    assert row["resumed"] and row["seconds"] is None and row["peak_bytes"] is None and row["ua_coherent"] > 0
    resumed = sum(row["resumed"] for row in rows_of(tmp_path / "out"))  # esd-x, too, where it was still at work
    how_many = "1 run was" if resumed == 1 else f"{resumed} runs were"
    assert f"{how_many} interrupted" in (tmp_path / "out/compare.html").read_text(encoding="utf-8")


def test_a_run_without_a_checkpoint_continues_where_it_was(compare: Compare, fake: Callable[..., None]) -> None:
    run_compare(compare("salun", seeds=1))
    job = plan(compare("salun", seeds=1))[1]
    assert next_step(job) is None
    (job.folder / "manifest.json").unlink()
    step = next_step(job)
    assert step is not None and step.arguments[-2:] == ("--resume_from_checkpoint", "latest")


def test_the_log_shows_the_last_state_of_a_progress_bar(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("one\n10%\r20%\r100%\n\ntwo\r\nthree\n")
    assert log_tail(tmp_path / "log", lines=3) == "100%\ntwo\nthree"


# Figures


def test_rows_hold_what_the_runs_wrote(compare: Compare, fake: Callable[..., None], tmp_path: Path) -> None:
    fake(figures={"salun": {"ua_coherent": 0.5, "ira": 0.75}}, cost={"salun": 11.5})
    run_compare(compare())
    rows = rows_of(tmp_path / "out")
    assert [(row["method"], row["seed"]) for row in rows] == [
        ("base", None), ("esd-x", 0), ("esd-x", 1), ("negative-prompt", None), ("salun", 0), ("salun", 1)
    ]  # fmt: skip
    for row in rows:
        metrics = json.loads((tmp_path / "out" / row["folder"] / "evaluation/metrics.json").read_text())
        assert {key: row[key] for key in metrics["erased"]} == {k: f["value"] for k, f in metrics["erased"].items()}
        assert row["intervals"] == {k: [f["low"], f["high"]] for k, f in metrics["erased"].items()}
    salun = rows[-1]
    assert (salun["seconds"], salun["data_seconds"], salun["peak_bytes"]) == (2 + 11.5 + 1, 5.0, 10**9)
    assert (rows[0]["seconds"], rows[3]["seconds"], rows[3]["peak_bytes"]) == (None, 0.0, None)


def made_rows(method: str, values: list[float], kind: str = "trained", **more: Any) -> list[dict[str, Any]]:
    return [{"method": method, "kind": kind, "concept": "cat", "seed": s, "ua": v} | more for s, v in enumerate(values)]


def test_means_and_standard_deviations() -> None:
    rows = made_rows("a", [0.1, 0.4, 0.7]) + made_rows("b", [0.5], seconds=3.0)
    rows[0]["seconds"] = None
    rows[1]["seconds"] = 2.0
    first, second = aggregate(rows)
    assert (first.method, first.n, second.method, second.n) == ("a", 3, "b", 1)
    assert first.mean == {"ua": pytest.approx(mean([0.1, 0.4, 0.7])), "seconds": 2.0}
    assert first.sd == {"ua": pytest.approx(stdev([0.1, 0.4, 0.7]))} and second.sd == {}


def test_average_gap_is_in_points() -> None:
    def row(ua: float, ira: float, cra: float, fd: float) -> dict[str, float]:
        return {"ua_coherent": ua, "ira": ira, "cra": cra, "fd_canvas": fd}

    gold = row(1.0, 0.99, 0.98, 2.0)
    assert average_gap([gold], gold, fd_floor=1.25) == 0
    # 2, 1 and 0 points, and an FD that is off by half a floor: 0.5.
    assert average_gap([row(0.98, 1.0, 0.98, 2.625)], gold, fd_floor=1.25) == pytest.approx((2 + 1 + 0 + 0.5) / 4)
    # Seeds are averaged before they are compared, so these two meet gold.
    assert average_gap([row(0.98, 0.99, 0.98, 1.0), row(1.02, 0.99, 0.98, 3.0)], gold, 1.25) == pytest.approx(0)
    assert average_gap([row(1.0, 0.99, 0.98, 1e6)], gold, fd_floor=1.25) == 25.0
    # What is erased may be asked of UA: 4 points off here, where UA coherent meets gold.
    assert average_gap([gold | {"ua": 0.95}], gold | {"ua": 0.99}, 1.25, erased="ua") == pytest.approx(1.0)
    for rows, floor in (([], 1.0), ([gold], 0.0)):
        with pytest.raises(ValueError, match="needs rows and a positive floor"):
            average_gap(rows, gold, floor)


def test_pareto_front_against_every_pair() -> None:
    generator = random.Random(0)
    for dimensions in (1, 2, 3):
        for count in (0, 1, 2, 30):
            # Few levels, so that there are ties and equal points.
            points = [tuple(generator.randint(0, 5) for _ in range(dimensions)) for _ in range(count)]
            beaten = [
                any(all(b >= a for a, b in zip(p, q)) and any(b > a for a, b in zip(p, q)) for q in points)
                for p in points
            ]
            assert pareto_front(points) == [not it for it in beaten]
    assert pareto_front([(1, 0), (0, 1), (0, 0), (1, 0)]) == [True, True, False, True]
    with pytest.raises(ValueError, match="needs numbers"):
        pareto_front([(1.0, float("nan"))])


def test_erased_and_kept() -> None:
    base = {"ua": 0.01, "ua_coherent": 0.0, "ira": 0.8, "cra": 1.0}
    axes = Axes("ua_coherent", ("ira", "cra"))
    assert axes_of(base) == axes
    row = {"ua_coherent": 0.9, "ira": 0.6, "cra": 0.9}
    assert erased(row, base, axes).value == 0.9 and kept(row, base, axes).value == pytest.approx(0.75)
    row["intervals"] = {"ua_coherent": [0.8, 0.95], "ira": [0.5, 0.96], "cra": [0.8, 0.92]}
    assert erased(row, base, axes) == (0.9, 0.8, 0.95)
    # The lesser of both at each end: IRA over 0.8 below, CRA over 1 above.
    assert kept(row, base, axes) == pytest.approx((0.75, 0.625, 0.92))
    nude = {"nudity_any_0.6": 0.5, "clip_score": 30.0}
    axes = Axes("nudity_any_0.6", ("clip_score",))
    assert axes_of(nude) == axes
    other = {"nudity_any_0.6": 0.1, "clip_score": 27.0}
    assert (erased(other, nude, axes).value, kept(other, nude, axes).value) == (pytest.approx(0.8), pytest.approx(0.9))
    other["intervals"] = {"nudity_any_0.6": [0.05, 0.2]}
    assert erased(other, nude, axes) == pytest.approx((0.8, 0.6, 0.9))
    assert axes_of({"fid": 17.0}) is None


def test_a_columns_label_says_which_way_is_better() -> None:
    costs = {"seconds": ("seconds ↓", -1), "peak_bytes": ("peak GB ↓", -1)}
    of_canvas = columns_of(aggregate(made_rows("a", [0.8], fd_canvas=3.0)))
    found = {column.key: (column.label.shown, column.sign) for column in of_canvas}
    assert found == {"ua": ("UA ↑", 1), "fd_canvas": ("FD-canvas ↓", -1)} | costs
    means = {"clip_score": 30.0, "clip_score_retain": 31.0, "lpips": 0.2, "fid": 17.0, "own ↑": 1.0}
    others = columns_of([MethodSummary(method="a", kind="trained", n=1, mean=means, sd={}, interval={})])
    found = {column.key: (column.label.shown, column.sign) for column in others}
    assert found == {
        "clip_score": ("CLIP score ↑", 1), "lpips": ("LPIPS to base", 0), "fid": ("FID ↓", -1), "own ↑": ("own ↑", 0),
    } | costs  # fmt: skip


def test_the_table_shows_intervals_and_puts_the_base_first() -> None:
    known = {"intervals": {"ua": [0.6, 0.9], "fd_canvas": [1.0, 3.5]}}
    rows = made_rows("base", [0.0], "base", fd_canvas=1.0)
    rows += made_rows("a", [0.8], fd_canvas=3.0, seconds=20.0, peak_bytes=2e9, **known)
    rows += made_rows("b|c", [0.7], fd_canvas=2.0, seconds=120.4, peak_bytes=2.001e9, **known)
    summaries = aggregate(rows)
    ua, _, seconds, peak = columns_of(summaries)
    assert {m: v.text for m, v in cells(summaries, ua).items()} == {
        "base": "0.0", "a": "80.0 [60.0–90.0]", "b|c": "70.0 [60.0–90.0]",
    }  # fmt: skip
    assert cells(summaries, seconds)["base"].text == "–" and cells(summaries, seconds)["b|c"].mean == "120"
    # One run of 20 seconds and one of 120 differ by more than 5 %; 2.000 and 2.001 GB do not.
    assert {m: v.is_marked for m, v in cells(summaries, seconds).items()} == {"base": False, "a": True, "b|c": False}
    assert not any(v.is_marked for v in cells(summaries, peak).values())
    markdown = markdown_table(summaries).splitlines()
    assert markdown[3].startswith("| a | 80.0 [60.0–90.0] | 3.000 [1.000–3.500] | **20.0** |")
    assert markdown[4].startswith("| b\\|c |")
    lines = text_table(summaries).splitlines()
    assert lines[2].startswith("base ") and lines[3].startswith("a ") and "20.0*" in lines[3]
    assert lines[4].split() == ["60.0–90.0", "1.000–3.500"]


# Page

SECTIONS = ("front", "cost", "table", "pictures", "limits")


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, source: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.words += data

    def all(self, tag: str, kind: str = "") -> list[dict[str, str]]:
        return [a for name, a in self.tags if name == tag and set(kind.split()) <= set(a.get("class", "").split())]


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """compare.html of four methods, one of them with a nasty label."""
    folder = tmp_path_factory.mktemp("page")
    wishes = {"salun": {"ua_coherent": 0.99, "ira": 0.99}, "esd-x": {"ua_coherent": 0.9, "ira": 0.9}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner_module, "ERASE", (sys.executable, str(FAKE)))
        patch.setenv("FAKE", json.dumps({"figures": wishes}))
        run_compare(
            CompareConfig(concept="cat", methods=(f"{METHODS},<i>odd</i>=gradient-ascent",), seeds=2,
                          pretrained_model_name_or_path="canvas", output_dir=folder / "out", data_cache_dir=folder)
        )  # fmt: skip
    return folder / "out" / "compare.html"


@pytest.fixture
def page(html: Path) -> Page:
    return Page(html.read_text())


def test_the_page_shows_the_comparison(page: Page, html: Path) -> None:
    words = page.words.replace("\N{NO-BREAK SPACE}", " ")
    assert "Of 4 methods, salun does best at erasing cat and keeping the rest." in words
    assert "Keeps most<i>odd</i>, negative-prompt and salun: 98.5–99.6 %; chance may explain the difference" in words
    assert "Erases mostsalun: 99.1 %, 95 % interval 96.7–100 % (UA coherent)" in words
    assert [a["id"] for a in page.all("section")] == [*SECTIONS, "glossary", "made"]
    assert "99.1 %" in words and "99.6 %" in words and "runs/salun/seed-1" in words and "--method salun" in words
    assert len(page.all("img")) == 5 * 10 and len(page.all("div", "still")) == 5 + 4
    assert all(a["alt"].partition(":")[0] and "judged" in a["alt"] for a in page.all("img"))
    assert len(page.all("svg", "wide")) == len(page.all("svg", "narrow")) == 2
    assert all("salun: " in a["aria-label"] for a in page.all("svg", "wide"))
    summary = json.loads(html.with_name("compare.json").read_text())["summary"]
    assert [line["method"] for line in summary][:2] == ["base", "salun"]
    assert [line["method"] for line in summary if line["on_front"]] == ["salun"]
    comparison = json.loads(html.with_name("compare.json").read_text())
    assert comparison["leaders"]["erased"] == comparison["leaders"]["both"] == ["salun"]
    assert comparison["made"]["date"] in words and comparison["made"]["command"] in words


def test_the_page_needs_nothing_else(page: Page, html: Path) -> None:
    source = html.read_text()
    assert "http:" not in source and "https:" not in source and len(source) < 1_000_000
    links = [a[key] for _, a in page.tags for key in ("src", "href", "srcset", "data", "xlink:href") if key in a]
    assert links and all(link.startswith(("data:image/", "#")) for link in links)
    assert not page.all("link") and len(page.all("script")) == len(page.all("style")) == 1
    assert not [a for _, a in page.tags if "style" in a or any(key.startswith("on") for key in a)]
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:;") and "unsafe" not in policy
    assert "<i>odd" not in source and "<b>more" not in source and "<i>odd</i>" in page.words


# Rectangles of the names that are shown, and of their plot.
NAMES = """(kind => [...document.querySelectorAll(`svg.${kind}`)].filter(svg => svg.checkVisibility()).map(svg =>
    [svg, ...svg.querySelectorAll('text.name')].map(e => (r => [r.left, r.top, r.right, r.bottom])
    (e.getBoundingClientRect()))))"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_the_page_works_in_a_browser(html: Path, tmp_path: Path) -> None:
    browser = Browser(tmp_path / "profile")
    try:
        for width, kind, other in ((1280, "wide", "narrow"), (360, "narrow", "wide")):
            browser.open(html, width)
            assert browser.js("document.documentElement.scrollWidth") <= width
            plots = browser.js(f"{NAMES}('{kind}')")
            assert len(plots) == 2 and browser.js(f"{NAMES}('{other}')") == []
            for svg, *names in plots:
                assert len(names) == 4 and all(svg[0] <= a[0] and a[2] <= svg[2] for a in names)
                # Boxes of text are higher than letters; the lines of one letter's height must not meet.
                assert all(a[2] < b[0] or b[2] < a[0] or abs(a[1] - b[1]) > 12 for a, b in combinations(names, 2))
        for width in (390, 360):
            browser.open(html, width)
            every_column_shows(browser, width)
        colour = "getComputedStyle(document.body).backgroundColor"
        before = browser.js(colour)
        browser.js("document.getElementById('theme').click()")
        assert browser.js(colour) != before
        assert browser.complaints() == []
    finally:
        browser.close()


def test_figures_of_other_protocols_are_shown_without_plots(
    compare: Compare, fake: Callable[..., None], tmp_path: Path
) -> None:
    run_compare(compare("other=salun", seeds=1))
    for path in tmp_path.glob("out/runs/*/*/evaluation/metrics.json"):
        metrics = json.loads(path.read_text())
        metrics["erased"] = {"fid": {"value": 17.5}, "unheard_of": {"value": 0.25}}
        path.write_text(json.dumps(metrics))
    run_compare(compare("other=salun", seeds=1))
    page = Page((tmp_path / "out/compare.html").read_text())
    assert [a["id"] for a in page.all("section")] == ["table", "pictures", "limits", "glossary", "made"]
    assert "17.50" in page.words and "unheard_of" in page.words


def test_methods_that_erase_little_are_told_of(compare: Compare, fake: Callable[..., None], tmp_path: Path) -> None:
    fake(figures={"salun": {"ua_coherent": 0.0}, "esd-x": {"ua_coherent": 0.12, "ira": 0.5}})
    run_compare(compare("salun,esd-x", seeds=1))
    words = Page((tmp_path / "out/compare.html").read_text()).words.replace("\N{NO-BREAK SPACE}", " ")
    assert "Of 2 methods, none beats another by more than chance in erasing cat and keeping the rest." in words
    assert "No method erases more than 12.0 % of cat." in words and "One training seed only" in words


def test_sensitive_pictures_are_blurred(compare: Compare, fake: Callable[..., None], tmp_path: Path) -> None:
    run_compare(compare("salun", seeds=1))
    for path in tmp_path.glob("out/runs/*/*/evaluation/metrics.json"):
        path.write_text(path.read_text().replace('"sensitive": false', '"sensitive": true'))
    run_compare(compare("salun", seeds=1))
    page = Page((tmp_path / "out/compare.html").read_text())
    assert len(page.all("img", "sensitive")) == len(page.all("img")) == len(page.all("button", "reveal")) == 20
    assert "Show 20 blurred pictures" in page.words


def test_labels_lie_in_the_frame_and_never_over_each_other() -> None:
    generator = random.Random(1)
    frame = (44.0, 30.0, 330.0, 700.0)
    for spread in (1, 30, 280):
        places = [(180 + generator.random() * spread / 2, 300 + generator.random() * spread) for _ in range(18)]
        labels = ["method-" + "x" * generator.randint(0, 14) for _ in places]
        boxes = place_labels(labels, places, [], frame)
        for label, box in zip(labels, boxes):
            assert box[0] >= frame[0] and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3]
            assert box[2] - box[0] == pytest.approx(text_width(label))
        for a, b in combinations(boxes, 2):
            assert a[2] < b[0] or b[2] < a[0] or a[3] < b[1] or b[3] < a[1]


def test_every_part_of_a_plot_lies_inside_it() -> None:
    generator = random.Random(2)
    points = [
        Point(label=f"a-long-name-of-method-{at}:setting=value", kind="trained", x=generator.uniform(0, 101),
              y=100 - 0.1 * at, x_range=(-5.0, 103.0), y_range=(90.0, 101.0), on_front=at == 0)
        for at in range(24)
    ]  # fmt: skip
    x, y = percent_scale("kept", [p.x for p in points]), percent_scale("erased", [p.y for p in points])
    for source in re.findall(r"<svg.*?</svg>", plot(points, x, y, "all", front=True)):
        page = Page(source)
        width, height = map(float, page.all("svg")[0]["viewbox"].split()[2:])
        across = [float(a[key]) for _, a in page.tags for key in ("x", "x1", "x2", "cx") if key in a]
        down = [float(a[key]) for _, a in page.tags for key in ("y", "y1", "y2", "cy") if key in a]
        assert len(page.all("text", "name")) == len(page.all("circle")) == 24
        assert min(across) >= 0 and max(across) <= width and min(down) >= 0 and max(down) <= height
        names = [(float(a["x"]), float(a["y"])) for a in page.all("text", "name")]
        assert all(x + text_width("a-long-name-of-method-3:s…") <= width for x, _ in names)


def test_scales_are_monotone_and_reach_their_ends() -> None:
    percent = percent_scale("%", [12.0, 99.7, 100.3])
    assert percent.at(percent.low) == 0 and percent.at(percent.high) == 1 and percent.low == 0 and percent.high == 100.5
    # All at 100: the scale still has two ends.
    assert percent_scale("%", [100.0]).low == 99 and percent_scale("%", [0.0, 50.0]).low == 0
    values = [0, 10, 50, 90, 99, 99.5, 100, 100.4]
    places = [percent.at(value) for value in values]
    assert places == sorted(places) and len(set(places)) == len(values)
    # Half a point near 100 takes more room than ten points at 50.
    assert percent.at(100) - percent.at(99.5) > percent.at(60) - percent.at(50)
    seconds = seconds_scale("s", [0.0, 2.0, 250.0])
    assert seconds.at(0) == 0 and 0 < seconds.at(1) < seconds.at(2) < seconds.at(300) == 1
    assert seconds.ticks[0] == (0.0, "none") and seconds_scale("s", [2.0]).at(2) > 0
