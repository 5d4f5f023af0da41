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

from .config import CompareConfig

if TYPE_CHECKING:
    from .jobs import Job
    from .runner import Failure

JSON_FILE = "compare.json"
MARKDOWN_FILE = "compare.md"
PAGE_FILE = "compare.html"
INTERRUPTED = 130
"""Exit status of a command that Ctrl-C ended."""


def run_compare(config: CompareConfig) -> Path:
    """The command: run what is not done yet, print the table and write the page; returns output_dir.

    Runs of earlier calls in the same folder stay in the table. Raises ValueError before the first run when something
    cannot be done, and after the last when runs failed; the table is written all the same.
    """
    from .jobs import check, plan
    from .runner import run_jobs

    jobs = plan(config)
    check(jobs, config.overwrite_output_dir)
    try:
        failures = run_jobs(jobs, config.processes)
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on where the runs are.", file=sys.stderr)
        sys.exit(INTERRUPTED)
    said = "\n".join(failure.describe() for failure in failures)
    if not jobs[0].left():
        print(f"{write_comparison(config, jobs, failures)}\n\nThe page: {config.output_dir / PAGE_FILE}")
    if failures:
        raise ValueError(f"{len(failures)} of {len(jobs)} runs failed; the same command tries them again.\n{said}")
    return config.output_dir


def write_comparison(config: CompareConfig, jobs: "Sequence[Job]", failures: "Sequence[Failure]" = ()) -> str:
    """Write compare.json, compare.md and compare.html from the runs that are done; returns the table."""
    import yaml

    from ..config import read_config
    from ..files import write_json, write_text
    from .comparison import collect, summaries_of
    from .page import render
    from .table import markdown_table, text_table

    made = {
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
