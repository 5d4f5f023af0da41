"""`erase completion SHELL`: a script with which a shell completes the commands of `erase` and their flags."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

import tyro
from tyro.extras import subcommand_cli_from_dict


def completion(shell: Annotated[Literal["bash", "zsh", "tcsh"], tyro.conf.Positional]) -> None:
    """Print a script with which a shell completes the commands of `erase` and their flags. Where to put it:

    bash: erase completion bash > ~/.local/share/bash-completion/completions/erase

    zsh: erase completion zsh > ~/.zfunc/_erase, and `fpath+=~/.zfunc` before `compinit` in ~/.zshrc

    tcsh: erase completion tcsh > ~/.erase.tcsh, and `source ~/.erase.tcsh` in ~/.tcshrc

    Args:
        shell: the shell that it is for.
    """
    arguments = ["--tyro-print-completion", shell]
    subcommand_cli_from_dict(commands(), prog="erase", args=arguments, use_underscores=True)


def commands() -> dict[str, Callable[..., Any]]:
    """Every command of `erase` with the class or function that has its flags."""
    from .classifiers.config import ClassifyConfig
    from .cli import patch, report, statistics
    from .compare.config import CompareConfig
    from .config import EraseConfig
    from .evaluate.config import EvaluateConfig
    from .evaluate.generate import GenerateConfig
    from .listings import concepts, methods
    from .parsing import with_file

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
