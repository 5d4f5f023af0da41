"""The command line: `erase COMMAND`; a command's flags are the fields of its config."""

import difflib
import os
import sys
from collections.abc import Sequence
from inspect import cleandoc
from pathlib import Path
from typing import Annotated, TypeVar

import tyro

from .config import EraseConfig, layered, to_argv

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

`erase COMMAND --help` lists every flag. First try: erase train --pretrained_model_name_or_path canvas --concept cat
"""

T = TypeVar("T")
LAYERS = "\n\nFlags go on top of --config FILE.yaml (a path, or the name of a shipped one)."


def patch(
    patch_file: Annotated[Path, tyro.conf.Positional],
    *,
    pretrained_model_name_or_path: str,
    output_dir: Path,
    strength: float = 1.0,
) -> None:
    """Apply a patch to its base model and save the result as a diffusers pipeline.

    Args:
        patch_file: erase-patch.safetensors of a run.
        pretrained_model_name_or_path: the base that the patch was made from.
        output_dir: where the patched pipeline is written; must not exist.
        strength: 1 is the erased model, 0 the base; between and beyond interpolate.
    """
    from .export import export_pipeline
    from .models import load_denoiser, resolve_model
    from .patch import apply_patch, load_patch

    load_patch(patch_file)
    if output_dir.exists():
        raise ValueError(f"output_dir {output_dir} exists; choose another.")
    base = resolve_model(pretrained_model_name_or_path)
    denoiser = load_denoiser(str(base))
    apply_patch(denoiser.pipeline, patch_file, strength)
    output_dir.mkdir(parents=True)
    export_pipeline(denoiser, base, output_dir)
    print(f"The patched pipeline is in {output_dir}.")


def report(folder: Annotated[Path, tyro.conf.Positional]) -> None:
    """Write report.html and report.json into a run's folder or an evaluation's.

    Args:
        folder: output_dir of `erase train` or `erase evaluate`.
    """
    from .report import write_report

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
    from .evaluate.encoders import EncoderScorer, InceptionScorer
    from .evaluate.fidelity import Reference, write_statistics

    if output_file.suffix != ".npz" or output_file.exists():
        raise ValueError(f"{output_file} must be a new file that ends in .npz.")
    scorer = EncoderScorer(encoder) if encoder else InceptionScorer(inception_weights)
    scorer.fingerprint()
    moments = Reference(pictures, data_cache_dir).moments(scorer)
    write_statistics(output_file, moments, scorer)
    print(f"The statistics of {moments.n} pictures are in {output_file}.")


def parse_config(arguments: Sequence[str], prog: str) -> EraseConfig:
    """Flags on top of `--config FILE.yaml` on top of the base's preset, all through one parser."""
    rest, config = _take_option(list(arguments), "--config")
    given = {token.split("=")[0].lstrip("-").replace("-", "_") for token in rest if token.startswith("--")}
    decisive = {
        name: _take_option(list(arguments), f"--{name}")[1] for name in ("pretrained_model_name_or_path", "method")
    }
    values = layered(config, {name: value for name, value in decisive.items() if value})
    below = {key: v for key, v in values.items() if key not in given and key.removeprefix("no_") not in given}
    below = {key: value for key, value in below.items() if f"no_{key}" not in given}
    return tyro.cli(
        EraseConfig,
        prog=prog,
        args=[*to_argv(below), *rest],
        use_underscores=True,
        description=cleandoc(EraseConfig.__doc__ or "") + LAYERS,
    )


def _take_option(tokens: list[str], name: str) -> tuple[list[str], str | None]:
    """Remove `--name VALUE` or `--name=VALUE` from the tokens; returns what is left and the value."""
    for at, token in enumerate(tokens):
        key, _, value = token.partition("=")
        if key.replace("-", "_") == name.replace("-", "_"):
            if value:
                return tokens[:at] + tokens[at + 1 :], value
            if at + 1 == len(tokens):
                raise ValueError(f"{name} needs a value.")
            return tokens[:at] + tokens[at + 2 :], tokens[at + 1]
    return tokens, None


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `erase`; expected errors are one message and exit status 2."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    command, rest = (tokens[0], tokens[1:]) if tokens else ("--help", [])
    if command in ("-h", "--help"):
        print(DESCRIPTION)
        return
    # Without torchvision, transformers warns at import about image processors that no denoiser needs.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        _dispatch(command, rest)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"erase: {error}", file=sys.stderr)
        sys.exit(2)


def _dispatch(command: str, rest: list[str]) -> None:
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"unknown command {command!r}.{hint} The commands are {', '.join(COMMANDS)}.")
    COMMANDS[command](rest)


def _train(rest: list[str]) -> None:
    config = parse_config(rest, "erase train")
    from .run import erase

    erase(config)


def _mask(rest: list[str]) -> None:
    """Of a classifier where a data set is named, else of a denoiser."""
    if any(token.partition("=")[0] == "--dataset" for token in rest):
        from .classifiers.config import ClassifyConfig
        from .classifiers.run import build_classifier_mask

        print(f"The mask is in {build_classifier_mask(_flags(ClassifyConfig, 'erase mask', rest))}.")
        return
    config = parse_config(rest, "erase mask")
    from .run import build_only_mask

    print(f"The mask is in {build_only_mask(config)}.")


def _patch(rest: list[str]) -> None:
    tyro.cli(patch, prog="erase patch", args=rest, use_underscores=True)


def _generate(rest: list[str]) -> None:
    from .evaluate.generate import GenerateConfig, run_generate

    run_generate(_flags(GenerateConfig, "erase generate", rest))


def _evaluate(rest: list[str]) -> None:
    from .evaluate.config import EvaluateConfig, run_evaluate

    run_evaluate(_flags(EvaluateConfig, "erase evaluate", rest))


def _compare(rest: list[str]) -> None:
    from .compare import CompareConfig, run_compare

    run_compare(_flags(CompareConfig, "erase compare", rest))


def _classify(rest: list[str]) -> None:
    from .classifiers.config import ClassifyConfig
    from .classifiers.run import run_classify

    run_classify(_flags(ClassifyConfig, "erase classify", rest))


def _report(rest: list[str]) -> None:
    tyro.cli(report, prog="erase report", args=rest, use_underscores=True)


def _statistics(rest: list[str]) -> None:
    tyro.cli(statistics, prog="erase statistics", args=rest, use_underscores=True)


def _flags(config: type[T], prog: str, rest: list[str]) -> T:
    return tyro.cli(config, prog=prog, args=rest, use_underscores=True, description=cleandoc(config.__doc__ or ""))


COMMANDS = {
    "train": _train,
    "mask": _mask,
    "patch": _patch,
    "generate": _generate,
    "evaluate": _evaluate,
    "compare": _compare,
    "classify": _classify,
    "report": _report,
    "statistics": _statistics,
}
