"""`erase completion SHELL`: a script with which a shell completes the commands of `erase` and their flags."""

from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import shtab
import tyro

from ..parsing import is_main_process


def completion(shell: Annotated[Literal["bash", "zsh", "tcsh"], tyro.conf.Positional]) -> None:
    """Print a script with which a shell completes the commands of `erase` and their flags. Where to put it:

    bash: erase completion bash > ~/.local/share/bash-completion/completions/erase

    zsh: erase completion zsh > ~/.zfunc/_erase, and `fpath+=~/.zfunc` before `compinit` in ~/.zshrc

    tcsh: erase completion tcsh > ~/.erase.tcsh, and `source ~/.erase.tcsh` in ~/.tcshrc

    Args:
        shell: the shell that it is for.
    """
    if is_main_process():
        print(shtab.complete(_parser(), shell=shell))


def _parser() -> ArgumentParser:
    """Every command with the names of its flags, their choices, and where files are meant: what a shell completes."""
    parser = ArgumentParser(prog="erase")
    parser.add_argument("--version", action="store_true")
    each = parser.add_subparsers()
    for name, target in commands().items():
        command = each.add_parser(name, help=(target.__doc__ or name).split("\n")[0])
        for flag, hint in get_type_hints(target, include_extras=True).items():
            if flag != "return":
                _add(command, flag, hint)
    return parser


def _add(command: ArgumentParser, flag: str, hint: Any) -> None:
    parts = list(_parts(hint))
    if bool in parts:
        command.add_argument(f"--{flag}", f"--no_{flag}", dest=flag, action="store_true")
        return
    name = flag if tyro.conf.Positional in parts else f"--{flag}"
    argument = command.add_argument(name, choices=[part for part in parts if isinstance(part, str)] or None)
    if Path in parts or (str in parts and not argument.choices):
        argument.complete = shtab.FILE  # type: ignore[attr-defined]


def _parts(hint: Any) -> Iterator[Any]:
    """The types, choices and notes that an annotation is made of."""
    inside = (*get_args(hint), *getattr(hint, "__metadata__", ()))
    yield from chain.from_iterable(map(_parts, inside)) if inside else [hint]


def commands() -> dict[str, Callable[..., Any]]:
    """Every command of `erase` with the class or function that has its flags."""
    from ..classifiers.config import ClassifyConfig
    from ..compare.config import CompareConfig
    from ..config import EraseConfig
    from ..draw.generate import GenerateConfig
    from ..evaluate.config import EvaluateConfig
    from ..parsing import with_file
    from .functions import patch, report, statistics
    from .listings import concepts, methods

    configs = {
        "train": EraseConfig,
        "mask": EraseConfig,
        "generate": GenerateConfig,
        "evaluate": EvaluateConfig,
        "compare": CompareConfig,
        "classify": ClassifyConfig,
    }
    functions = (patch, report, statistics, concepts, methods, completion)
    return {name: with_file(config) for name, config in configs.items()} | {f.__name__: f for f in functions}
