"""Pictures of prompt rows: the same noise for a row whatever the batch or the number of processes; a job that is killed
anywhere and run again ends with the records and bytes of one that was not; finished records are never lost.
"""

import errno
import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tyro
from accelerate import Accelerator
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from drawing import Mean, TinyFolder, contents, named_only, picture, prompt_rows
from erase.draw import generate as generation
from erase.draw import pipelines
from erase.draw.generate import GenerateConfig, batches_of, run_generate
from erase.draw.picture_folder import PictureCache
from erase.draw.pipelines import ModelSource, draw, open_pipeline
from erase.draw.prompts import PromptRow
from erase.draw.records import Record
from erase.evaluate.scoring import load_scored, score_folder
from erase.files import file_sha256, read_json_lines
from erase.models.schedulers import SCHEDULERS
from tiny import each_family

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Toy networks are quickest on one, and the processes that are started here have one as well."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_pictures_records_and_settings(drawn: Callable[..., list[Record]], tmp_path: Path) -> None:
    rows = prompt_rows()
    records = drawn(rows)
    assert [r["id"] for r in records] == [row.id for row in rows]
    assert records == read_json_lines(tmp_path / "out" / "records.jsonl")
    assert records[3] == rows[3].as_record() | {"sha256": file_sha256(tmp_path / "out" / rows[3].file)}
    assert picture(tmp_path / "out", records[3]).shape == (16, 24, 3)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"images", "records.jsonl", "generation.json"}
    settings = json.loads((tmp_path / "out" / "generation.json").read_text())
    assert settings["model_class"] == "StableDiffusionPipeline" and settings["num_rows"] == 10
    before = contents(tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert drawn(rows) == records
    assert contents(tmp_path / "out") == before
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == times


def test_rows_of_equal_settings_share_batches() -> None:
    batches = batches_of(prompt_rows(), 3)
    assert [[row.id for row in batch] for batch in batches] == [["r0", "r6", "r9"], ["r1", "r2", "r4"], ["r5", "r8"],
                                                                ["r3"], ["r7"]]  # fmt: skip


def test_batch_size_does_not_matter(drawn: Callable[..., list[Record]], tmp_path: Path) -> None:
    one = drawn(out="one", batch_size=1)
    for size in (3, 16):
        for a, b in zip(one, drawn(out=f"by-{size}", batch_size=size), strict=True):
            assert named_only([a]) == named_only([b])
            assert abs(picture(tmp_path / "one", a) - picture(tmp_path / f"by-{size}", b)).max() <= 2
    assert (picture(tmp_path / "one", one[0]) != picture(tmp_path / "one", one[1])).any()


@each_family
def test_every_family_draws(family: str, tiny: TinyFolder, drawn: Callable[..., list[Record]]) -> None:
    source = ModelSource(pretrained_model_name_or_path=str(tiny(family)))
    (record,) = drawn(prompt_rows(1), source=source, out=family)
    assert (record["height"], record["width"]) == (16, 16)


def test_generator_is_the_seed_alone(tiny: TinyFolder) -> None:
    """The same as a script that calls the pipeline by itself."""
    pipe = open_pipeline(ModelSource(pretrained_model_name_or_path=str(tiny("sd1"))))
    (row,) = prompt_rows(1)
    pictures, finite = draw(pipe, [row])
    stock = StableDiffusionPipeline.from_pretrained(tiny("sd1"))
    generator = torch.Generator().manual_seed(row.seed)
    expected = stock(row.prompt, num_inference_steps=2, guidance_scale=5.0, generator=generator).images[0]
    assert np.array_equal(pictures[0], np.asarray(expected)) and finite.all()


def test_autocast(drawn: Callable[..., list[Record]], tmp_path: Path) -> None:
    drawn(prompt_rows(2), accelerator=Accelerator(cpu=True, mixed_precision="bf16"))
    assert json.loads((tmp_path / "out" / "generation.json").read_text())["mixed_precision"] == "bf16"


def test_other_settings_and_foreign_folders_are_refused(
    drawn: Callable[..., list[Record]], tiny: TinyFolder, tmp_path: Path
) -> None:
    drawn(prompt_rows(3))
    with pytest.raises(ValueError, match=r"other settings:\n  scheduler: default there, ddpm now"):
        drawn(prompt_rows(3), scheduler="ddpm")
    with pytest.raises(ValueError, match="num_rows: 3 there, 4 now"):
        drawn(prompt_rows(4))
    with pytest.raises(ValueError, match="model_sha256"):
        drawn(prompt_rows(3), source=ModelSource(pretrained_model_name_or_path=str(tiny("sd2"))))
    drawn(prompt_rows(3), batch_size=1)  # nothing is missing, so nothing would be drawn in other batches
    (tmp_path / "out" / "images" / "r1.png").unlink()
    with pytest.raises(ValueError, match="batch_size: 4 there, 1 now"):
        drawn(prompt_rows(3), batch_size=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="files that no erase command wrote"):
        drawn(out="mine")
    with pytest.raises(ValueError, match="no row is left"):
        drawn([])
    with pytest.raises(ValueError, match="id 'r0' is there twice"):
        drawn(prompt_rows(1) * 2)


def test_a_removed_picture_comes_back_the_same(drawn: Callable[..., list[Record]], tmp_path: Path) -> None:
    records = drawn()
    before = contents(tmp_path / "out")
    for name in ("r1", "r7"):
        (tmp_path / "out" / "images" / f"{name}.png").unlink()
    assert drawn() == records
    assert contents(tmp_path / "out") == before


def test_cache_is_shared_and_changes_nothing(
    drawn: Callable[..., list[Record]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, cache = prompt_rows(), tmp_path / "cache"
    drawn(rows, out="plain")
    drawn(rows[:2], out="first", picture_cache=cache)
    assert len(list(cache.rglob("*.png"))) == 2
    drawn(rows, out="all", picture_cache=cache)
    assert contents(tmp_path / "all") == contents(tmp_path / "plain")
    shared = next(
        path for path in cache.rglob("*.png") if path.read_bytes() == contents(tmp_path / "all")["images/r0.png"]
    )
    assert shared.stat().st_nlink == 3

    monkeypatch.setattr(pipelines, "open_pipeline", lambda *_, **__: pytest.fail("everything was in the cache"))
    monkeypatch.setattr(os, "link", _no_links)
    scorer = Mean()
    drawn(rows, out="again", picture_cache=cache, scorers=[scorer])
    assert contents(tmp_path / "again").items() >= contents(tmp_path / "plain").items()
    assert sorted(scorer.seen) == sorted(row.id for row in rows)


def test_a_picture_that_was_changed_spoils_no_other_folder(drawn: Callable[..., list[Record]], tmp_path: Path) -> None:
    """The cache and the folders share files, so writing into one of them writes into all."""
    rows, cache = prompt_rows(3), tmp_path / "cache"
    drawn(rows, out="whole")
    drawn(rows, out="first", picture_cache=cache)
    (tmp_path / "first" / rows[0].file).write_bytes(b"cut")
    drawn(rows, out="next", picture_cache=cache)
    assert contents(tmp_path / "next") == contents(tmp_path / "whole")
    assert len(list(cache.rglob("*.png"))) == 3
    with pytest.raises(ValueError, match=r"r0\.png has been changed since its record was written"):
        score_folder(tmp_path / "first", [Mean()], progress=False)
    (tmp_path / "first" / rows[0].file).unlink()
    drawn(rows, out="first", picture_cache=cache)
    assert contents(tmp_path / "first") == contents(tmp_path / "whole")
    score_folder(tmp_path / "first", [Mean()], progress=False)


def test_the_cache_knows_what_decides_a_picture() -> None:
    (row,) = prompt_rows(1)
    made: dict[str, Any] = {"model_sha256": "a", "scheduler": "ddim", "mixed_precision": "no", "device": "cpu"}
    made |= {"packages": {"torch": "1"}}
    places = {PictureCache(Path("cache"), made | {name: "other"}).path(row, "0") for name in made}
    places.add(PictureCache(Path("cache"), made).path(row, "0"))
    assert len(places) == 1 + len(made)


def _no_links(*_: object) -> None:
    raise OSError(errno.EXDEV, "Invalid cross-device link")


def test_scores_are_made_beside_generation(drawn: Callable[..., list[Record]], tmp_path: Path) -> None:
    scorer = Mean()
    records = drawn(scorers=[scorer, scorer])
    assert sorted(scorer.seen) == sorted(record["id"] for record in records)
    assert len(scorer.threads) == 1 and threading.main_thread() not in scorer.threads
    scored = load_scored(tmp_path / "out")
    means = [picture(tmp_path / "out", record).mean() for record in records]
    assert [record["mean"] for record in scored.records] == pytest.approx(means)
    assert scored.features["mean"][:, 0] == pytest.approx(means, rel=1e-6)


def test_errors_beside_generation_surface_and_lose_nothing(drawn: Callable[..., list[Record]], tmp_path: Path) -> None:
    rows = prompt_rows(40, height=None, width=None)
    with pytest.raises(RuntimeError, match="the detector broke"):
        drawn(rows, scorers=[Mean(fail_at="r9")])
    kept = read_json_lines(tmp_path / "out" / "records-0.jsonl")
    assert 4 <= len(kept) < 40
    scorer = Mean()
    drawn(rows, scorers=[scorer])
    score_folder(tmp_path / "out", [scorer], progress=False)
    drawn(rows, out="whole", scorers=[Mean()])
    pictures = {name: data for name, data in contents(tmp_path / "whole").items() if not name.startswith("scores")}
    assert contents(tmp_path / "out").items() >= pictures.items()
    assert [r["mean"] for r in load_scored(tmp_path / "out").records] == [
        r["mean"] for r in load_scored(tmp_path / "whole").records
    ]


def test_full_disk_keeps_what_is_finished(drawn: Callable[..., list[Record]], tmp_path: Path) -> None:
    rows = prompt_rows(16, height=None, width=None)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))  # the record file's second or third batch will not fit
    try:
        with pytest.raises(OSError, match="every record that was finished is kept.*run the same command again"):
            drawn(rows)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert 4 <= len(read_json_lines(tmp_path / "out" / "records-0.jsonl")) < 16
    drawn(rows)
    drawn(rows, out="whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_model_of_nans_is_refused(tiny: TinyFolder, drawn: Callable[..., list[Record]], tmp_path: Path) -> None:
    weights = load_file(tiny("sd1") / "unet" / "diffusion_pytorch_model.safetensors")
    save_file({"conv_out.bias": weights["conv_out.bias"] * float("nan")}, tmp_path / "nan.safetensors")
    source = ModelSource(pretrained_model_name_or_path=str(tiny("sd1")), unet_weights=tmp_path / "nan.safetensors")
    for size, kept in ((16, 0), (3, 6)):
        with pytest.raises(
            FloatingPointError, match=r"generated 8 pictures of NaN or infinity in a row.*mixed_precision no"
        ):
            drawn(prompt_rows(30, height=None, width=None), out=str(size), source=source, batch_size=size)
        part = tmp_path / str(size) / "records-0.jsonl"
        assert len(read_json_lines(part) if part.exists() else []) == kept


def test_a_single_broken_picture_is_flagged(
    drawn: Callable[..., list[Record]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoilt(pipe: Any, rows: Sequence[PromptRow], autocast: Any, on_step: Any) -> tuple[np.ndarray, np.ndarray]:
        pictures, finite = draw(pipe, rows, autocast)
        return pictures, finite & np.array([row.id != "r2" for row in rows])

    monkeypatch.setattr(pipelines, "draw", spoilt)
    records = drawn(picture_cache=tmp_path / "cache")
    assert [record["id"] for record in records if record.get("broken")] == ["r2"]
    assert len(list((tmp_path / "cache").rglob("*.png"))) == len(records) - 1


# Every child is killed at one of the moments at which the files change, then the next one goes on where it stopped.
KILLED = """
import os, random, signal, sys
from pathlib import Path
sys.path[:0] = [{tests!r}]
os.environ["HF_HUB_OFFLINE"] = "1"
import torch
from accelerate import Accelerator
import erase.files, erase.draw.answers as scoring, erase.draw.picture_folder as pictures
from erase.draw.generate import generate
from erase.draw.pipelines import ModelSource, open_pipeline
from test_generate import Mean, prompt_rows
torch.set_num_threads(1)
open_pipeline(ModelSource(pretrained_model_name_or_path={model!r}))  # what it imports is imported once

def job(folder, fatal):
    moments = 0
    def counted(before, torn=None):
        def call(*args, **kwargs):
            nonlocal moments
            moments += 1
            if moments == fatal:
                if torn:
                    torn(*args)
                os.kill(os.getpid(), signal.SIGKILL)
            return before(*args, **kwargs)
        return call
    def half_a_batch(path, rows):
        before_append(path, rows)
        path.write_bytes(path.read_bytes()[:-150])
    before_append = erase.files.append_lines
    pictures.append_lines = counted(before_append, half_a_batch)
    scoring.append_lines = counted(before_append, half_a_batch)
    Path.replace, Path.unlink = counted(Path.replace), counted(Path.unlink)
    os.fsync = counted(os.fsync)
    source = ModelSource(pretrained_model_name_or_path={model!r})
    accelerator = Accelerator(cpu=True)
    generate(prompt_rows(), source, folder, accelerator=accelerator, batch_size=4, scorers=[Mean()], progress=False)
    Path(str(folder) + ".moments").write_text(str(moments))

def child(folder, fatal=None):
    process = os.fork()
    if not process:
        try:
            job(folder, fatal)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitpid(process, 0)[1]

out = Path({out!r})
assert child(out / "whole") == 0
total = int((out / "whole.moments").read_text())
# Five at random, one of them twice, and where the parts are joined.
for at, fatal in enumerate([*random.Random(0).sample(range(3, total - 4), 5), total]):
    for moment in [fatal, 4][: 2 - min(at, 1)]:
        status = child(out / f"killed-{{at}}", moment)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (at, moment, status)
    assert child(out / f"killed-{{at}}") == 0
"""


def test_killed_at_any_moment_and_resumed(tiny: TinyFolder, tmp_path: Path) -> None:
    program = KILLED.format(tests=str(ROOT / "tests"), model=str(tiny("sd1")), out=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    folders = sorted(path for path in tmp_path.glob("killed-*") if path.is_dir())
    assert len(folders) == 6
    for folder in folders:
        score_folder(folder, [Mean()], progress=False)
        ours, whole = load_scored(folder), load_scored(tmp_path / "whole")
        assert ours.records == whole.records and np.array_equal(ours.features["mean"], whole.features["mean"])
        for kind in ("images", "records"):
            both = [{n: d for n, d in contents(f).items() if n.startswith(kind)} for f in (folder, tmp_path / "whole")]
            assert both[0] == both[1], folder


TWO = """
import sys
sys.path[:0] = [{tests!r}]
from pathlib import Path
from erase.runtime.devices import make_accelerator
from erase.draw.generate import generate
from erase.draw.pipelines import ModelSource, open_pipeline
from test_generate import Mean, prompt_rows
accelerator = make_accelerator("no")
assert accelerator.num_processes == 2
for name, count in (("two", 10), ("begun", 10), ("one-row", 1)):
    source = ModelSource(pretrained_model_name_or_path={model!r})
    records = generate(prompt_rows(count), source, Path({out!r}) / name, accelerator=accelerator, batch_size=4,
                       scorers=[Mean()])
    assert [record["id"] for record in records] == [row.id for row in prompt_rows(count)]
accelerator.end_training()
"""


def test_two_processes_equal_one(drawn: Callable[..., list[Record]], tiny: TinyFolder, tmp_path: Path) -> None:
    records = drawn(out="one")
    # A folder that one process began: a batch of its records and pictures.
    (tmp_path / "begun" / "images").mkdir(parents=True)
    begun = [record for record in records if record["id"] in ("r0", "r6")]
    lines = "".join(json.dumps(record) + "\n" for record in begun)
    (tmp_path / "begun" / "records-5.jsonl").write_text(lines)
    (tmp_path / "begun" / "generation.json").write_bytes((tmp_path / "one" / "generation.json").read_bytes())
    for record in begun:
        (tmp_path / "begun" / record["file"]).write_bytes((tmp_path / "one" / record["file"]).read_bytes())

    (tmp_path / "two.py").write_text(TWO.format(tests=str(ROOT / "tests"), model=str(tiny("sd1")), out=str(tmp_path)))
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(tmp_path / "two.py")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("pictures:   0%") == 3  # bars of the main process alone, over what is missing everywhere
    assert all(end in done.stderr for end in ("10/10", "8/8", "1/1"))
    for name, expected in (("two", records), ("begun", records), ("one-row", records[:1])):
        found = read_json_lines(tmp_path / name / "records.jsonl")
        assert named_only(found) == named_only(expected)
        assert [r["sha256"] for r in found] == [file_sha256(tmp_path / name / r["file"]) for r in found]
        for record in expected:
            difference = picture(tmp_path / "one", record) - picture(tmp_path / name, record)
            assert abs(difference).max() <= 2
        assert {path.name for path in (tmp_path / name).iterdir()} == {"images", "records.jsonl", "generation.json"}


def test_the_command(tiny: TinyFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.csv").write_text("prompt,weight,sd_seed\na cat,3,5\na dog,7,4261553411\nan owl,9,6\n")
    flags = [
        "--prompts", str(tmp_path / "p.csv"), "--pretrained_model_name_or_path", str(tiny("sd1")),
        "--output_dir", str(tmp_path / "out"), "--num_inference_steps", "2", "--mixed_precision", "no",
        "--filter", "weight > 5", "--filter", "weight < 9", "--num_images_per_prompt", "2", "--extra_column", "weight",
    ]  # fmt: skip
    config = tyro.cli(GenerateConfig, args=flags, use_underscores=True)
    assert run_generate(config) == tmp_path / "out"
    assert "2 pictures are in" in capsys.readouterr().err
    records = read_json_lines(tmp_path / "out" / "records.jsonl")
    assert [(r["id"], r["seed"], r["weight"]) for r in records] == [
        ("000001-0", 4261553411, 7),
        ("000001-1", 4261553412, 7),
    ]
    other = tyro.cli(GenerateConfig, args=[*flags, "--scheduler", "euler"], use_underscores=True)
    with pytest.raises(ValueError, match="other settings"):
        run_generate(other)
    run_generate(tyro.cli(GenerateConfig, args=[*flags, "--scheduler", "euler", "--overwrite_output_dir"]))
    assert json.loads((tmp_path / "out" / "generation.json").read_text())["scheduler"] == "euler"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="files that no erase command wrote"):
        run_generate(GenerateConfig(prompts=str(tmp_path / "p.csv"), pretrained_model_name_or_path=str(tiny("sd1")),
                                    output_dir=tmp_path / "mine", overwrite_output_dir=True))  # fmt: skip
    assert (tmp_path / "mine" / "thesis.tex").exists()


def test_config_is_light_and_strict() -> None:
    code = "import sys, erase.draw.generate; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT).stdout == "False\n"
    with pytest.raises(ValueError, match="scheduler must be one of default, ddim"):
        GenerateConfig(prompts="nudity", scheduler="dim")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        GenerateConfig(prompts="nudity", batch_size=0)
    assert set(generation.get_type_hints(GenerateConfig)["scheduler"].__args__) == {"default", *SCHEDULERS}
