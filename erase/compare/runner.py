"""Jobs as processes of their own, some at once: so each run's peak memory and seconds are its own, and one that fails
takes no other with it.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil

from ..ledger import note
from ..runtime.stopping import terminable
from .config import BASE
from .jobs import Job, Step, drop_replaced, next_step, write_job

ROOT = Path(__file__).parents[2]
# The package's own folder comes last, so that it is found from any place and hides nothing of what is installed.
ERASE = (sys.executable, "-c",
         f"import sys; sys.argv[0] = 'erase'; sys.path.append({str(ROOT)!r}); from erase.cli import main; main()",
         )  # fmt: skip
"""What `erase` is started as, wherever the command itself is."""
PAUSE = 0.1
"""Seconds between looks at the processes."""
GRACE = 60.0
"""Seconds that a process has to end after it was asked to: a training step and its checkpoint take some."""
TAIL_LINES = 15
LOG_ENCODING = {"PYTHONIOENCODING": "utf-8"}
"""Elsewhere than on a console, Windows would write another encoding than logs are read in."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A job that ended badly."""

    job: Job
    """The job."""
    status: int
    """Exit status of its process; negative: the signal that ended it."""
    tail: str
    """The last lines of its log."""

    def describe(self) -> str:
        """The job, its status, the end of its log and where the log is."""
        ended = f"exit status {self.status}" if self.status >= 0 else f"ended by signal {-self.status}"
        lines = "\n".join(f"    {line}" for line in self.tail.splitlines()) or "    (it printed nothing)"
        return f"  {self.job.name}: {ended}\n{lines}\n    the whole log: {self.job.log}"


@dataclass
class Running:
    """A job whose process is at work."""

    job: Job
    slot: int
    step: Step
    process: "subprocess.Popen[bytes]"


def run_jobs(jobs: Sequence[Job], processes: int = 1) -> list[Failure]:
    """Run what is left of the jobs, `processes` at once; returns those that failed.

    The base goes first and alone: the others find its pictures in the cache, and are not begun when it fails, for then
    there is nothing to compare with. KeyboardInterrupt (Ctrl-C, or a request to end) stops the processes and is raised
    again; the next call resumes from what they wrote.
    """
    refuse_launcher()
    left = [job for job in jobs if job.left()]
    bases, others = ([job for job in left if (job.kind == BASE) == is_base] for is_base in (True, False))
    with _bar(len(jobs), len(jobs) - len(left)) as bar, terminable():
        return _run_group(bases, 1, bar) or _run_group(others, processes, bar)


def refuse_launcher() -> None:
    """Several copies of a comparison would do each job several times."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "erase compare starts its runs itself: call it without accelerate launch (or with --num_processes 1), and "
            "say with --processes how many runs are at work at once."
        )


def _bar(total: int, done: int) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=total, initial=done, desc="compare", unit="run")


def _run_group(jobs: Sequence[Job], at_once: int, bar: Any) -> list[Failure]:
    """Run the jobs in their order, `at_once` of them at a time."""
    waiting, running, failures = list(jobs), list[Running](), list[Failure]()
    try:
        while waiting or running:
            for slot in sorted(set(range(at_once)) - {one.slot for one in running})[: len(waiting)]:
                running.append(_start(waiting.pop(0), slot, at_once))
                bar.set_postfix_str("; ".join(one.job.name for one in running))
            time.sleep(PAUSE)
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                if failure := _failure(one):
                    failures.append(failure)
                elif one.job.left():
                    running.append(_start(one.job, one.slot, at_once))
                    continue
                drop_replaced(one.job)
                bar.update()
    finally:
        _stop([one.process for one in running])
    return failures


def _start(job: Job, slot: int, at_once: int) -> Running:
    """Start a job's next step; its output goes to the end of the job's log."""
    step = next_step(job)
    assert step is not None, job.name
    write_job(job)
    command = [*ERASE, *step.arguments]
    with job.log.open("ab") as log:
        log.write(f"\n$ erase {' '.join(step.arguments)}\n".encode())
        log.flush()
        note(job.log, grows=True)
        process = _popen(command, log, os.environ | LOG_ENCODING | environment(slot, at_once))
    if at_once > 1 and hasattr(os, "sched_setaffinity"):
        # A run takes as many threads as it has cores: this, not OMP_NUM_THREADS, is what it goes by.
        os.sched_setaffinity(process.pid, share_of(sorted(os.sched_getaffinity(0)), slot, at_once))
    return Running(job, slot, step, process)


def _popen(command: Sequence[str], log: IO[bytes], env: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    # A session of its own (on Windows a group): Ctrl-C reaches this process alone, which stops the others in order.
    group = subprocess.CREATE_NEW_PROCESS_GROUP if sys.platform == "win32" else 0
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=env, start_new_session=True,
        creationflags=group,
    )  # fmt: skip


def environment(slot: int, at_once: int) -> dict[str, str]:
    """What tells one of several processes which threads and which GPU are its own; nothing for one alone."""
    if at_once == 1:
        return {}
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    found = {"OMP_NUM_THREADS": str(len(share_of(cores, slot, at_once)))}
    devices = visible_devices()
    return found | ({"CUDA_VISIBLE_DEVICES": devices[slot % len(devices)]} if len(devices) > 1 else {})


def share_of(cores: Sequence[int], slot: int, at_once: int) -> Sequence[int]:
    """The cores of one of several processes: as even a part as there is, or one that others have too."""
    part = cores[len(cores) * slot // at_once : len(cores) * (slot + 1) // at_once]
    return part or [cores[slot % len(cores)]]


def visible_devices() -> list[str]:
    """The GPUs that this process may give away."""
    import torch

    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named or [str(index) for index in range(torch.cuda.device_count())]


def _failure(one: Running) -> Failure | None:
    """Why the step that has ended is no success, if it is none."""
    status = one.process.returncode
    if status == 0 and one.step.made.is_file():
        return None
    tail = log_tail(one.job.log)
    if status == 0:
        tail += f"\n{one.step.made} was not written."
    return Failure(job=one.job, status=status, tail=tail)


def log_tail(path: Path, lines: int = TAIL_LINES) -> str:
    """The last lines of a log, of each progress bar only its last state."""
    # Bytes, for in text mode a carriage return would become the end of a line.
    text = path.read_bytes().decode(errors="replace")
    shown = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
    return "\n".join([line for line in shown if line.strip()][-lines:])


def _stop(processes: "Sequence[subprocess.Popen[bytes]]") -> None:
    """Ask the processes and what they started to end, then make them."""
    families = [_family(process) for process in processes]
    for process, family in zip(processes, families):
        _end(process, family, by_force=False)
    deadline = time.monotonic() + GRACE
    for process, family in zip(processes, families):
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            _end(process, family, by_force=True)
            process.wait()


def _family(process: "subprocess.Popen[bytes]") -> "list[psutil.Process]":
    """What the process has started so far, where the system has no groups of processes (Windows)."""
    if hasattr(os, "killpg") or process.poll() is not None:
        return []
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:  # it has ended meanwhile
        return []


def _end(process: "subprocess.Popen[bytes]", family: "Sequence[psutil.Process]", *, by_force: bool) -> None:
    if process.poll() is not None:
        return
    if hasattr(os, "killpg"):
        os.killpg(process.pid, signal.SIGKILL if by_force else signal.SIGTERM)
        return
    (process.kill if by_force else process.terminate)()
    for one in family:
        with suppress(psutil.NoSuchProcess):
            one.kill()
