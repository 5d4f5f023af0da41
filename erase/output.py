"""Output folders: what a command may write there, one job at a time, and how a new result takes an older one's place.

A command replaces only files that it or an earlier command of ours wrote (`ledger.py` knows which), never a file that
it reads and never one that it does not know. With --overwrite_output_dir the new result is made in FOLDER/.erase/next
and moved into place when it is whole; until then the old one stays as it is.
"""

import json
import os
import shlex
import shutil
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from .files import write_json
from .ledger import LEDGER_FILE, OWN_DIR, Ledger, keeping

RUN_FILE, LOCK_FILE, NEXT_DIR, PROMOTING_FILE = "run.json", "lock", "next", "promoting"
KEPT_SUFFIX = ".kept"
MOST_SHOWN = 8
DROPPINGS = (".DS_Store", "Thumbs.db", "desktop.ini")
"""What file managers leave in a folder: it counts as empty all the same."""

State = Literal["new", "begun", "finished", "other"]
Settings = Mapping[str, Any]


def now() -> str:
    """Date and time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def command_line() -> str:
    """What was typed, quoted for a shell."""
    return shlex.join([Path(sys.argv[0]).name or "python", *sys.argv[1:]])


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a command is about to write, and what it reads."""

    folder: Path
    """--output_dir."""
    command: str
    """train, mask, generate, evaluate, compare, classify or patch."""
    settings: Settings = field(default_factory=dict)
    """What decides the result, as plain values: with others, a begun result cannot be continued."""
    inputs: Mapping[str, Path | str | None] = field(default_factory=dict)
    """Flag → the file or folder that it names; what is no path on this disk does not matter."""
    overwrite: bool = False
    """--overwrite_output_dir."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """An output folder as it was found."""

    claim: Claim
    """What was asked for."""
    work: Path
    """Where to write: the folder, or the one that is to take its place."""
    state: State
    """new; begun or finished by the same command with the same settings; other: another result of ours."""
    differences: tuple[str, ...] = ()
    """`setting: there, now` of a result that is another."""
    stage: str | None = None
    """Where a begun job was when it stopped."""

    @property
    def replaces(self) -> bool:
        """Whether an earlier result goes when this one is whole."""
        return self.work != self.claim.folder

    @contextmanager
    def writing(self, *, is_main: bool = True, wait: Callable[[], object] = lambda: None) -> Iterator[Path]:
        """Lock the folder and note every file that is written below it; at the end an older result is replaced.

        is_main: of several processes that write together, the one that locks and replaces. wait: lets each process wait
        for the others. Raises ValueError when another job is at work in the folder.
        """
        with _locked(self.claim.folder) if is_main else nullcontext():
            if is_main:
                self._begin()
            wait()
            with keeping(Ledger(self.work)):
                yield self.work
            wait()
            if is_main:
                self._finish()

    def refuse_other(self) -> None:
        """ValueError when the folder holds another result of ours."""
        if self.state == "other":
            raise ValueError(
                f"output_dir {self.claim.folder} holds another result:\n  "
                + "\n  ".join(self.differences[:MOST_SHOWN])
                + "\nGive the settings of before, another --output_dir, or replace it with --overwrite_output_dir."
            )

    def reached(self, stage: str) -> None:
        """Note where the job is, for whoever finds it stopped."""
        path = self.work / OWN_DIR / RUN_FILE
        write_json(path, _read(path) | {"stage": stage})

    def _begin(self) -> None:
        if find(self.claim) != self:
            raise ValueError(f"{self.claim.folder} has been changed by another job meanwhile; start again.")
        if self.state == "new" and self.replaces:
            shutil.rmtree(self.work, ignore_errors=True)
        path = self.work / OWN_DIR / RUN_FILE
        before = _read(path) if self.state in ("begun", "finished") else {}
        write_json(path, {
            "command": self.claim.command, "settings": dict(self.claim.settings), "state": "running",
            "stage": before.get("stage"), "started": now(), "host": socket.gethostname(), "pid": os.getpid(),
            "typed": command_line(),
        })  # fmt: skip

    def _finish(self) -> None:
        path = self.work / OWN_DIR / RUN_FILE
        write_json(path, _read(path) | {"state": "finished", "finished": now()})
        if self.replaces:
            promote(self.claim.folder)


def find(claim: Claim) -> Output:
    """Look at the folder without changing anything; ValueError when the command may not write there."""
    folder = claim.folder
    _refuse_unwritable(folder)
    if is_empty(folder):
        return Output(claim=claim, work=folder, state="new")
    if not is_ours(folder):
        raise ValueError(f"output_dir {folder} {_whose(folder)}; choose another --output_dir.")
    if claim.overwrite:
        _refuse_losses(claim)
        work = folder / OWN_DIR / NEXT_DIR
        found = _found(claim, work)
        return found if found.state == "begun" else Output(claim=claim, work=work, state="new")
    return _found(claim, folder)


def _found(claim: Claim, work: Path) -> Output:
    """The result of ours that is in `work`, compared with what is asked for now."""
    run = _read(work / OWN_DIR / RUN_FILE)
    changed = (
        *changes({"command": run.get("command")}, {"command": claim.command}),
        *changes(run.get("settings") or {}, claim.settings),
    )
    state: State = "other" if changed else "finished" if run.get("state") == "finished" else "begun"
    return Output(claim=claim, work=work, state=state, differences=changed, stage=run.get("stage"))


def changes(there: Settings, now: Settings) -> list[str]:
    """`setting: X there, Y now` of each one that differs; `there` is of a file, `now` is compared as JSON has it."""
    plain = json.loads(json.dumps(dict(now)))
    names = (name for name in dict.fromkeys([*there, *plain]) if there.get(name) != plain.get(name))
    return [f"{name}: {there.get(name)} there, {plain.get(name)} now" for name in names]


def is_empty(folder: Path) -> bool:
    """Whether a folder is missing or holds nothing but what a file manager left, or a job that wrote nothing."""
    if not folder.exists():
        return True
    names = [path.name for path in folder.iterdir() if path.name not in DROPPINGS]
    if names == [OWN_DIR]:
        return {path.name for path in (folder / OWN_DIR).iterdir()} <= {LOCK_FILE}
    return not names


def is_ours(folder: Path) -> bool:
    """Whether a command of ours wrote into this very folder."""
    return (folder / OWN_DIR / RUN_FILE).is_file()


def owned_files(folder: Path) -> list[Path]:
    """What earlier commands wrote below the folder, as their ledgers have it; absolute paths."""
    return [ledger.folder / file for ledger in _ledgers(folder) for file in ledger.files()]


def _ledgers(folder: Path) -> list[Ledger]:
    """The folder's own ledger and those of folders inside it, such as an evaluation in a run's folder."""
    found = [path.parents[1] for path in folder.rglob(f"{OWN_DIR}/{LEDGER_FILE}")]
    return [Ledger(place) for place in found if OWN_DIR not in place.relative_to(folder).parts]


@contextmanager
def adding(folder: Path) -> Iterator[None]:
    """Files that are written into a result of ours from outside its own command, such as a report, are noted there."""
    with keeping(Ledger(folder)) if is_ours(folder) else nullcontext():
        yield


def _refuse_unwritable(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output_dir {folder} is a file; give a folder.")
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"output_dir {folder} cannot be written: {there} is {_why_not(there)}. Choose another folder.")


def _why_not(path: Path) -> str:
    return "not a folder" if not path.is_dir() else "not open to this user for writing"


def _refuse_losses(claim: Claim) -> None:
    """ValueError when the folder's old result holds something that this job reads, or that somebody has edited."""
    old = {path.resolve() for path in owned_files(claim.folder)}
    for flag, given in claim.inputs.items():
        place = Path(given).expanduser().resolve() if given else None
        inside = place is not None and place.exists() and place.is_relative_to(claim.folder.resolve())
        if place and inside and any(path == place or path.is_relative_to(place) for path in old):
            raise ValueError(
                f"--{flag} {given} is part of what --overwrite_output_dir would replace in {claim.folder}, so it would "
                "be lost. Copy it elsewhere first, or choose another --output_dir."
            )
    if edited := Ledger(claim.folder).edited():
        raise ValueError(
            f"{claim.folder / edited[0]} was changed after the run wrote it"
            + (f" (and {len(edited) - 1} more)" if len(edited) > 1 else "")
            + "; move what you want to keep elsewhere before --overwrite_output_dir replaces it."
        )


def _whose(folder: Path) -> str:
    """Why nothing may be written into a folder that holds no result of its own."""
    for parent in folder.absolute().parents:
        if is_ours(parent) and any(path.is_relative_to(folder.resolve()) for path in owned_files(parent)):
            return f"is part of the result in {parent}"
    return f"holds files that no erase command wrote ({_some(folder)})"


def _some(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def promote(folder: Path) -> None:
    """Move the whole result in FOLDER/.erase/next into place and remove the older one's files.

    A file of somebody else's that is in the way gets `.kept` after its name. What is to be done is written down first,
    so that a promotion which was interrupted ends the same way when it is called again.
    """
    own, work, top = folder / OWN_DIR, folder / OWN_DIR / NEXT_DIR, folder.resolve()
    plan = own / PROMOTING_FILE
    if not plan.exists():
        old = [path.relative_to(top).as_posix() for path in owned_files(folder)]
        write_json(plan, {"old": old, "new": [file.as_posix() for file in Ledger(work).files()]})
    old, new = (dict.fromkeys(_read(plan)[name]) for name in ("old", "new"))
    for name in old.keys() - new.keys():
        (top / name).unlink(missing_ok=True)
    for name in new:
        if (work / name).exists():
            _put(work / name, top / name, is_ours=name in old)
    for nested in [ledger.file.parent for ledger in _ledgers(folder) if ledger.folder != top]:
        shutil.rmtree(nested)
    for name in (LEDGER_FILE, RUN_FILE):
        if (work / OWN_DIR / name).exists():
            (work / OWN_DIR / name).replace(own / name)
    shutil.rmtree(work, ignore_errors=True)
    remove_empty(folder)
    plan.unlink()


def _put(source: Path, target: Path, is_ours: bool) -> None:
    """Move a file to its place; what is there and is not ours is kept under another name."""
    if target.exists() and not is_ours:
        target.replace(_free_name(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    source.replace(target)


def discard(folder: Path) -> None:
    """Remove what is ours below a folder, and the folder where nothing else is left."""
    for path in owned_files(folder):
        path.unlink(missing_ok=True)
    for own in [path for path in folder.rglob(OWN_DIR) if path.is_dir()]:
        shutil.rmtree(own)
    remove_empty(folder)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _free_name(path: Path) -> Path:
    names = (path.with_name(f"{path.name}{KEPT_SUFFIX}{number or ''}") for number in range(10**6))
    return next(name for name in names if not name.exists())


def remove_empty(folder: Path) -> None:
    """Remove folders that our files have left empty, the deepest first."""
    for path in sorted((p for p in folder.rglob("*") if p.is_dir()), key=lambda p: -len(p.parts)):
        if OWN_DIR not in path.relative_to(folder).parts and not any(path.iterdir()):
            path.rmdir()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    (folder / OWN_DIR).mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / OWN_DIR / LOCK_FILE, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(_busy(folder)) from None
    try:
        if (folder / OWN_DIR / PROMOTING_FILE).exists():
            promote(folder)
        yield
    finally:
        lock.release()


def _busy(folder: Path) -> str:
    runs = [_read(path / OWN_DIR / RUN_FILE) for path in (folder / OWN_DIR / NEXT_DIR, folder)]
    run = next((run for run in runs if run.get("state") == "running"), {})
    who = f" (process {run['pid']} on {run['host']}, since {run['started']}: {run['typed']})" if run else ""
    advice = "Wait for it, or choose another --output_dir."
    if "TORCHELASTIC_RUN_ID" in os.environ:
        advice = "Processes that belong together must know of each other: start them with `accelerate launch`, or give "
        advice += "torchrun without a GPU the variable ACCELERATE_USE_CPU=true."
    return f"Another job is at work in {folder}{who}. {advice}"


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
