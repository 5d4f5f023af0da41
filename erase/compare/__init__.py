"""`erase compare`: many methods on one concept, each as a run of its own, to one table and one page.

output_dir/
  runs/           the runs, each with its evaluation (jobs.py)
  compare.json    rows of all runs, and their means
  compare.md      the table
  compare.html    the page: erasure against retention, cost, table, pictures
"""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..output import Claim, find
from ..runtime.stopping import explained
from .config import CompareConfig

if TYPE_CHECKING:
    from .jobs import Job
    from .runner import Failure

JSON_FILE = "compare.json"
MARKDOWN_FILE = "compare.md"
PAGE_FILE = "compare.html"


def run_compare(config: CompareConfig) -> Path:
    """The command: run what is not done yet, print the table and write the page; returns output_dir.

    Runs of earlier calls in the same folder stay in the table. Raises ValueError before the first run when something
    cannot be done, and after the last when runs failed; the table is written all the same.
    """
    from .jobs import RUNS_DIR, check, plan, set_aside, write_protocol
    from .runner import run_jobs

    # Runs are replaced one by one, so the folder as a whole never is.
    output = find(Claim(folder=config.output_dir, command="compare"))
    output.refuse_other()
    jobs = plan(config)
    again = check(jobs, config.overwrite_output_dir)
    runs = config.output_dir / RUNS_DIR
    with explained(lambda: f"The runs in {runs} are kept; the same command continues them."), output.writing():
        write_protocol(config)
        for job in again:
            set_aside(job)
        print(f"Each run writes a log: {runs}/METHOD/seed-N.log", file=sys.stderr)
        failures = run_jobs(jobs, config.processes)
        if not jobs[0].left():
            print(f"{write_comparison(config, jobs, failures)}\n\nThe page: {config.output_dir / PAGE_FILE}")
    if failures:
        said = "\n".join(failure.describe() for failure in failures)
        raise ValueError(f"{len(failures)} of {len(jobs)} runs failed; the same command tries them again.\n{said}")
    return config.output_dir


def write_comparison(config: CompareConfig, jobs: "Sequence[Job]", failures: "Sequence[Failure]" = ()) -> str:
    """Write compare.json, compare.md and compare.html from the runs that are done; returns the table."""
    import yaml

    from ..config import read_config
    from ..files import write_json, write_text
    from ..output import now
    from .comparison import collect, summaries_of
    from .page import render
    from .table import markdown_table, text_table

    made = {
        "date": now(),
        "command": shlex.join(["erase", *sys.argv[1:]]),
        "processes": config.processes,
        "config": yaml.safe_dump(read_config(config.config), sort_keys=False) if config.config else None,
        "commands": {job.name: "\n".join(map(shlex.join, job.describe()["commands"])) for job in jobs},
    }
    comparison = collect(config.output_dir, made, [failure.job.name for failure in failures])
    page, summaries = render(comparison, config.output_dir), summaries_of(comparison)
    write_json(config.output_dir / JSON_FILE, comparison)
    write_text(config.output_dir / MARKDOWN_FILE, markdown_table(summaries))
    write_text(config.output_dir / PAGE_FILE, page)
    return text_table(summaries)


__all__ = ["CompareConfig", "run_compare", "write_comparison"]
