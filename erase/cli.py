"""The command line: `erase COMMAND`; a command's flags are the fields of its config."""

import os
import platform
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from io import TextIOWrapper

from . import __version__
from .commands.functions import patch, report, statistics
from .config import EraseConfig
from .parsing import is_main_process, parse, run_function, value_of
from .resume import check_inputs
from .runtime.stopping import Stopped, explained, terminable
from .suggest import did_you_mean

DESCRIPTION = """Concept erasure for text-to-image diffusion models.

  erase train      erase concepts and export a diffusers pipeline
  erase mask       only find the weights that carry a concept; with --dataset, those of a classifier
  erase patch      turn a base pipeline into an erased one with a patch file
  erase generate   generate pictures for a table of prompts with any model
  erase evaluate   generate a protocol's pictures with base and erased model, score and compare them
  erase compare    erase one concept with several methods on the same seeds; writes a table and a page
  erase report     write a page that compares base and erased model
  erase classify   make an image classifier forget training data, and compare methods
  erase statistics save the FID statistics of real pictures to a file

  erase concepts   list the concepts that have a name, and show how to write your own
  erase methods    list every method, one per line
  erase completion print a completion script for your shell
  erase --version  print the versions of this package and its main dependencies

`erase COMMAND --help` lists every flag. With --print_config, a command prints its settings as YAML for --config.

First try: erase train --pretrained_model_name_or_path canvas --concept cat
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `erase`: an expected error prints a message and exits with 2, a stop with the signal's status."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    command, rest = (tokens[0], tokens[1:]) if tokens else ("--help", [])
    print_anything()
    if command in ("-h", "--help", "--version"):
        if is_main_process():
            print(versions() if command == "--version" else DESCRIPTION)
        return
    # Without torchvision, transformers warns at import about image processors that no denoiser needs.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        with terminable(), explained(lambda: "Finished files are kept, and no file is half written."):
            _dispatch(command, rest)
    except (ValueError, OSError, FloatingPointError, MemoryError) as error:
        print(f"erase: {error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stop:
        print(f"\nerase: {stop}", file=sys.stderr)
        sys.exit(stop.status)


def print_anything() -> None:
    """A console or pipe whose encoding lacks a sign that is printed, such as ≥ in cp1252, gets a ? in its place."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")


def versions() -> str:
    """The versions that a bug report should name, on one line."""
    below = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "transformers", "accelerate"))
    return f"diffusers-erase {__version__} (Python {platform.python_version()}, {below})"


def _dispatch(command: str, rest: list[str]) -> None:
    if command not in COMMANDS:
        hint = did_you_mean(command, COMMANDS)
        raise ValueError(f"unknown command {command!r}.{hint} The commands are {', '.join(COMMANDS)}.")
    COMMANDS[command](rest)


def _train(rest: list[str]) -> None:
    config = parse(EraseConfig, "erase train", rest)
    check_inputs(config)
    from .run import erase

    erase(config)


def _mask(rest: list[str]) -> None:
    """The mask of a classifier if --dataset is given, else of a denoiser."""
    if value_of(rest, "dataset") is not None:
        from .classifiers.config import ClassifyConfig

        classify = parse(ClassifyConfig, "erase mask", rest)
        from .classifiers.run import build_classifier_mask

        print(f"The mask is in {build_classifier_mask(classify)}.")
        return
    config = parse(EraseConfig, "erase mask", rest)
    check_inputs(config)
    from .run import build_only_mask

    print(f"The mask is in {build_only_mask(config)}.")


def _generate(rest: list[str]) -> None:
    from .draw.generate import GenerateConfig, check_inputs, run_generate

    config = parse(GenerateConfig, "erase generate", rest)
    check_inputs(config)
    if not config.nudenet:
        run_generate(config)
        return
    from .evaluate.metrics.nudity import NudityScorer
    from .evaluate.scoring import score_folder

    scorers = [NudityScorer()]
    run_generate(config, scorers, then=partial(score_folder, scorers=scorers))


def _evaluate(rest: list[str]) -> None:
    from .evaluate.config import EvaluateConfig, check_inputs

    config = parse(EvaluateConfig, "erase evaluate", rest)
    check_inputs(config)
    from .evaluate.run import run_evaluate
    from .report import write_report

    run_evaluate(config, then=write_report if config.report else None)


def _compare(rest: list[str]) -> None:
    from .compare import CompareConfig, run_compare

    run_compare(parse(CompareConfig, "erase compare", rest))


def _classify(rest: list[str]) -> None:
    from .classifiers.config import ClassifyConfig

    config = parse(ClassifyConfig, "erase classify", rest)
    from .classifiers.run import run_classify

    run_classify(config)


def _completion(rest: list[str]) -> None:
    from .commands.completion import completion

    run_function(completion, rest)


def _concepts(rest: list[str]) -> None:
    from .commands.listings import concepts

    run_function(concepts, rest)


def _methods(rest: list[str]) -> None:
    from .commands.listings import methods

    run_function(methods, rest)


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": _train,
    "mask": _mask,
    "patch": partial(run_function, patch),
    "generate": _generate,
    "evaluate": _evaluate,
    "compare": _compare,
    "classify": _classify,
    "report": partial(run_function, report),
    "statistics": partial(run_function, statistics),
    "concepts": _concepts,
    "methods": _methods,
    "completion": _completion,
}
