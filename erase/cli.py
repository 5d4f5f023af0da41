"""The command line: `erase COMMAND`; a command's flags are the fields of its config."""

import difflib
import os
import platform
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated

import tyro

from . import __version__
from .config import EraseConfig
from .inputs import check_erase, check_evaluate, check_generate, need_file, need_folder
from .model_folder import check_model
from .output import Claim, adding, find
from .parsing import is_main_process, parse, run_function, value_of
from .stopping import Stopped, explained, terminable

DESCRIPTION = """Concept erasure for text-to-image diffusion models.

  erase train      erase concepts and export a diffusers pipeline
  erase mask       only find the weights that carry a concept; with --dataset, those of a classifier
  erase patch      turn a base pipeline into an erased one with a patch file
  erase generate   draw a table of prompts with any model
  erase evaluate   draw a protocol's prompts with base and erased model, score both, compare
  erase compare    erase one concept with many methods on the same seeds; one table, one page
  erase report     write the page that shows what was lost and what was kept
  erase classify   make an image classifier forget; the methods side by side
  erase statistics keep the FID statistics of real pictures in a file

  erase concepts   what can be erased by name, and how to write a concept of your own
  erase methods    every way to erase, in a line each
  erase completion print what a shell needs to complete commands and flags
  erase --version  the versions of this package and of those below it

`erase COMMAND --help` lists every flag; with --print_config a command prints its settings, as YAML for its --config.

First try: erase train --pretrained_model_name_or_path canvas --concept cat
"""


def patch(
    patch_file: Annotated[Path, tyro.conf.Positional],
    *,
    pretrained_model_name_or_path: str,
    revision: str | None = None,
    variant: str | None = None,
    output_dir: Path,
    strength: float = 1.0,
) -> None:
    """Apply a patch to its base model and save the result as a diffusers pipeline.

    Args:
        patch_file: erase-patch.safetensors of a run.
        pretrained_model_name_or_path: the base that the patch was made from.
        revision: hub revision of the base.
        variant: weight variant of the base's files, such as fp16; the result is written under it too.
        output_dir: where the patched pipeline is written: a new or empty folder.
        strength: 1 is the erased model, 0 the base; between and beyond interpolate.
    """
    need_file("patch_file", patch_file)
    output = find(Claim(folder=output_dir, command="patch"))
    if output.state not in ("new", "begun"):
        raise ValueError(f"output_dir {output_dir} holds a result already; choose another.")
    check_model(pretrained_model_name_or_path)
    from .export import export_pipeline
    from .models import load_denoiser, resolve_model
    from .patch import apply_patch, load_patch

    load_patch(patch_file)
    base = resolve_model(pretrained_model_name_or_path, revision, variant)
    denoiser = load_denoiser(str(base), variant=variant)
    apply_patch(denoiser.pipeline, patch_file, strength)
    with output.writing():
        export_pipeline(denoiser, base, output_dir, variant)
    print(f"The patched pipeline is in {output_dir}.")


def report(folder: Annotated[Path, tyro.conf.Positional]) -> None:
    """Write report.html and report.json into a run's folder or an evaluation's.

    Args:
        folder: output_dir of `erase train` or `erase evaluate`.
    """
    need_folder("folder", folder)
    from .report import write_report

    with adding(folder):
        print(f"The report: {write_report(folder)}")


def statistics(
    pictures: Annotated[Path, tyro.conf.Positional],
    output_file: Annotated[Path, tyro.conf.Positional],
    *,
    inception_weights: Path | None = None,
    encoder: str | None = None,
    data_cache_dir: Path = Path("~/.cache/diffusers-erase"),
) -> None:
    """Write mean and covariance of real pictures' features, for `erase evaluate --fid_reference FILE.npz`.

    Args:
        pictures: folder of real pictures, searched in depth; any sizes.
        output_file: .npz with mu, sigma, n and the network and resize that made them.
        inception_weights: local weights of FID's network.
        encoder: another network instead, a transformers vision model by hub id or folder (then it is not FID).
        data_cache_dir: where the features are kept, so that they are made once.
    """
    need_folder("pictures", pictures)
    need_file("--inception_weights", inception_weights)
    if output_file.suffix != ".npz" or output_file.exists():
        raise ValueError(f"{output_file} must be a new file that ends in .npz.")
    from .evaluate.encoders import EncoderScorer, InceptionScorer
    from .evaluate.fidelity import Reference, write_statistics

    scorer = EncoderScorer(encoder) if encoder else InceptionScorer(inception_weights)
    scorer.fingerprint()
    moments = Reference(pictures, data_cache_dir).moments(scorer)
    write_statistics(output_file, moments, scorer)
    print(f"The statistics of {moments.n} pictures are in {output_file}.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `erase`; expected errors are one message and exit status 2, a stop one line and the signal's."""
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
        with terminable(), explained(lambda: "What was finished is kept, and nothing is half written."):
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
    """What a report of a fault should name, in a line."""
    below = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "transformers", "accelerate"))
    return f"diffusers-erase {__version__} (Python {platform.python_version()}, {below})"


def _dispatch(command: str, rest: list[str]) -> None:
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"unknown command {command!r}.{hint} The commands are {', '.join(COMMANDS)}.")
    COMMANDS[command](rest)


def _train(rest: list[str]) -> None:
    config = parse(EraseConfig, "erase train", rest)
    check_erase(config)
    from .run import erase

    erase(config)


def _mask(rest: list[str]) -> None:
    """Of a classifier where a data set is named, else of a denoiser."""
    if value_of(rest, "dataset") is not None:
        from .classifiers.config import ClassifyConfig

        classify = parse(ClassifyConfig, "erase mask", rest)
        from .classifiers.run import build_classifier_mask

        print(f"The mask is in {build_classifier_mask(classify)}.")
        return
    config = parse(EraseConfig, "erase mask", rest)
    check_erase(config)
    from .run import build_only_mask

    print(f"The mask is in {build_only_mask(config)}.")


def _generate(rest: list[str]) -> None:
    from .evaluate.generate import GenerateConfig, run_generate

    config = parse(GenerateConfig, "erase generate", rest)
    check_generate(config)
    run_generate(config)


def _evaluate(rest: list[str]) -> None:
    from .evaluate.config import EvaluateConfig

    config = parse(EvaluateConfig, "erase evaluate", rest)
    check_evaluate(config)
    from .evaluate.run import run_evaluate

    run_evaluate(config)


def _compare(rest: list[str]) -> None:
    from .compare import CompareConfig, run_compare

    run_compare(parse(CompareConfig, "erase compare", rest))


def _classify(rest: list[str]) -> None:
    from .classifiers.config import ClassifyConfig

    config = parse(ClassifyConfig, "erase classify", rest)
    from .classifiers.run import run_classify

    run_classify(config)


def _completion(rest: list[str]) -> None:
    from .completion import completion

    run_function(completion, rest)


def _concepts(rest: list[str]) -> None:
    from .listings import concepts

    run_function(concepts, rest)


def _methods(rest: list[str]) -> None:
    from .listings import methods

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
