"""Contract of output folders: a command replaces only what it or an earlier command of ours wrote, never what it reads,
never what it does not know; the new result is whole before the old one goes; two jobs never write into one folder.
"""

import json
import multiprocessing
import os
import stat
import time
from pathlib import Path

import pytest

from erase.files import append_lines, atomic_path, write_json, write_text
from erase.ledger import OWN_DIR, Ledger, keeping
from erase.output import Claim, find, owned_files, promote


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "out"


def write_result(claim: Claim, files: dict[str, str]) -> None:
    with find(claim).writing() as work:
        for name, text in files.items():
            write_text(work / name, text)


def texts(folder: Path) -> dict[str, str]:
    """Every file but our own notes."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_text() for path in found if OWN_DIR not in path.parts}


def claim(folder: Path, **changes: object) -> Claim:
    return Claim(folder=folder, command="train", **changes)  # type: ignore[arg-type]


def test_a_result_is_begun_finished_or_another(folder: Path) -> None:
    assert find(claim(folder, settings={"a": 1})).state == "new"
    with pytest.raises(RuntimeError), find(claim(folder, settings={"a": 1})).writing() as work:
        write_text(work / "half", "")
        find(claim(folder, settings={"a": 1}))
        raise RuntimeError
    assert find(claim(folder, settings={"a": 1})).state == "begun"
    write_result(claim(folder, settings={"a": 1}), {"x": "1"})
    assert find(claim(folder, settings={"a": 1})).state == "finished"
    other = find(claim(folder, settings={"a": 2, "b": [1]}))
    assert other.state == "other" and other.differences == ("a: 1 there, 2 now", "b: None there, [1] now")
    with pytest.raises(ValueError, match="a: 1 there, 2 now"):
        other.refuse_other()
    assert find(Claim(folder=folder, command="mask", settings={"a": 1})).state == "other"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_somebody_elses_is_refused(folder: Path, overwrite: bool) -> None:
    (folder / ".git").mkdir(parents=True)
    (folder / "config.yaml").write_text("mine: true")
    with pytest.raises(ValueError, match="no erase command wrote"):
        find(claim(folder, overwrite=overwrite))
    assert texts(folder) == {"config.yaml": "mine: true"}


def test_what_file_managers_leave_counts_as_nothing(folder: Path) -> None:
    folder.mkdir()
    (folder / ".DS_Store").touch()
    assert find(claim(folder)).state == "new"


def test_overwriting_replaces_our_files_and_keeps_everybody_elses(folder: Path) -> None:
    write_result(claim(folder), {"a": "old", "unet/w": "old", "only/old": "old"})
    (folder / "notes.txt").write_text("mine")
    (folder / "unet" / "mine").write_text("mine")
    (folder / "new").write_text("mine too")
    write_result(claim(folder, overwrite=True), {"a": "fresh", "unet/w": "fresh", "new": "fresh"})
    assert texts(folder) == {
        "a": "fresh", "unet/w": "fresh", "new": "fresh", "notes.txt": "mine", "unet/mine": "mine",
        "new.kept": "mine too",
    }  # fmt: skip
    assert not (folder / "only").exists()
    assert {path.name for path in owned_files(folder)} == {"a", "w", "new"}


def test_the_old_result_stays_until_the_new_one_is_whole(folder: Path) -> None:
    write_result(claim(folder), {"a": "old"})
    with pytest.raises(RuntimeError), find(claim(folder, overwrite=True)).writing() as work:
        write_text(work / "a", "half")
        raise RuntimeError
    assert texts(folder) == {"a": "old"}
    begun = find(claim(folder, overwrite=True))
    assert begun.state == "begun" and (begun.work / "a").read_text() == "half"
    assert find(claim(folder, overwrite=True, settings={"other": 1})).state == "new"


def test_an_interrupted_promotion_ends_the_same_way(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_result(claim(folder), {"a": "old", "b": "old", "c": "old"})
    replace, moved = Path.replace, []

    def fail_at_second(self: Path, target: Path) -> Path:
        if "next" in self.parts and not self.name.startswith(".") and OWN_DIR not in target.parts:
            moved.append(target)
            if len(moved) == 2:
                raise OSError("power cut")
        return replace(self, target)

    with monkeypatch.context() as patched, pytest.raises(OSError, match="power cut"):
        patched.setattr(Path, "replace", fail_at_second)
        write_result(claim(folder, overwrite=True), {"a": "new", "b": "new"})
    assert (folder / OWN_DIR / "promoting").exists()
    promote(folder)
    assert texts(folder) == {"a": "new", "b": "new"}
    assert find(claim(folder)).state == "finished"


@pytest.mark.parametrize("flag", ["mask", "pretrained_model_name_or_path"])
def test_what_a_job_reads_is_never_replaced(folder: Path, flag: str) -> None:
    write_result(claim(folder), {"mask.safetensors": "mask", "unet/w": "w"})
    given = folder / "mask.safetensors" if flag == "mask" else folder
    with pytest.raises(ValueError, match=rf"--{flag} .* would\s+be lost"):
        find(claim(folder, overwrite=True, inputs={flag: given, "revision": "main"}))
    assert texts(folder) == {"mask.safetensors": "mask", "unet/w": "w"}


def test_photos_beside_a_run_may_be_read_while_it_is_replaced(folder: Path) -> None:
    write_result(claim(folder), {"a": "old"})
    (folder / "photos").mkdir()
    (folder / "photos" / "1.png").write_text("photo")
    write_result(claim(folder, overwrite=True, inputs={"concept_data_dir": folder / "photos"}), {"a": "new"})
    assert texts(folder) == {"a": "new", "photos/1.png": "photo"}


def test_an_edited_file_of_ours_is_not_lost(folder: Path) -> None:
    write_result(claim(folder), {"README.md": "card", "a": "a"})
    (folder / "README.md").write_text("my own words")
    with pytest.raises(ValueError, match=r"README\.md was changed after the run wrote it"):
        find(claim(folder, overwrite=True))


def test_results_inside_a_replaced_one_go_with_it(folder: Path) -> None:
    write_result(claim(folder), {"a": "old"})
    write_result(Claim(folder=folder / "evaluation", command="evaluate"), {"metrics.json": "of the old model"})
    write_result(claim(folder, overwrite=True), {"a": "new"})
    assert texts(folder) == {"a": "new"} and not (folder / "evaluation").exists()


def test_ledger_counts_the_last_line_and_no_half_one(folder: Path) -> None:
    ledger = Ledger(folder)
    with keeping(ledger):
        append_lines(folder / "rows.jsonl", [{"a": 1}])
        append_lines(folder / "rows.jsonl", [{"a": 2}])
        write_text(folder / "card", "1")
        write_text(folder / "card", "2")
        write_text(folder.parent / "elsewhere", "")
    with ledger.file.open("a") as file:
        file.write('{"file": "ha')
    again = Ledger(folder)
    assert again.files() == [Path("rows.jsonl"), Path("card")] and again.edited() == []
    assert len(ledger.file.read_text().splitlines()) == 4


def hold(folder: Path, seconds: float) -> None:
    with find(claim(folder)).writing() as work:
        write_text(work / "held", "")
        time.sleep(seconds)


def test_two_jobs_in_one_folder_notice_each_other(folder: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=hold, args=(folder, 60))
    process.start()
    try:
        deadline = time.monotonic() + 50
        while not (folder / "held").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        with pytest.raises(ValueError, match=rf"Another job is at work in .* \(process {process.pid} on "):
            write_result(claim(folder), {"held": "overwritten"})
    finally:
        process.kill()
        process.join()
    assert (folder / "held").read_text() == ""
    write_result(claim(folder), {"held": "after the other one died"})
    assert (folder / "held").read_text() == "after the other one died"


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_have_the_users_permissions(folder: Path, umask: int) -> None:
    import torch

    from erase.files import atomic_save

    before = os.umask(umask)
    try:
        write_json(folder / "a.json", 1)
        atomic_save({"w": torch.zeros(2)}, folder / "b.safetensors", {"k": "v"})
        with atomic_path(folder / "c.bin") as temporary:
            temporary.unlink()
            os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == dict.fromkeys(("a.json", "b.safetensors", "c.bin"), 0o666 & ~umask)


def test_a_folder_that_cannot_be_one_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place, words in ((tmp_path / "file", "is a file"), (tmp_path / "file" / "out", "is not a folder")):
        with pytest.raises(ValueError, match=words):
            find(claim(place))


def test_run_file_says_who_when_and_what(folder: Path) -> None:
    write_result(claim(folder, settings={"a": 1}), {"x": "1"})
    run = json.loads((folder / OWN_DIR / "run.json").read_text())
    assert run["command"] == "train" and run["state"] == "finished" and run["pid"] == os.getpid()
    assert run["started"].endswith("+00:00") and run["finished"] >= run["started"]
