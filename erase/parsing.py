"""From what was typed to a command's settings: flags on top of `--config FILE.yaml` on top of presets, one parser."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import Field, field, fields, make_dataclass
from inspect import cleandoc
from typing import Annotated, Any, TypeVar, get_type_hints

import docstring_parser
import tyro
import yaml

from .config import EraseConfig, layered, plain_values, read_config, to_argv

T = TypeVar("T")
CONFIG, PRINT_CONFIG = "config", "print_config"
DECISIVE = ("pretrained_model_name_or_path", "method")
"""Flags of `erase train` that choose among the shipped presets."""


def parse(config: type[T], prog: str, tokens: Sequence[str]) -> T:
    """The settings that a command line asks for; with --print_config they are printed as YAML, and the program ends."""
    refuse_empty(tokens)
    flags: Any = tyro.cli(
        with_file(config),
        prog=prog,
        args=[*to_argv(_below(config, tokens)), *tokens],
        use_underscores=True,
        description=cleandoc(config.__doc__ or ""),
    )
    settings = config(**{of.name: getattr(flags, of.name) for of in fields(config)})  # type: ignore[arg-type]
    if flags.print_config:
        if is_main_process():
            print(as_yaml(settings, prog), end="")
        sys.exit(0)
    return settings


def run_function(function: Callable[..., object], tokens: Sequence[str]) -> None:
    """Call a function with what a command line gives for its parameters; the command is named like it."""
    refuse_empty(tokens)
    tyro.cli(function, prog=f"erase {function.__name__}", args=tokens, use_underscores=True)


def with_file(config: type) -> type:
    """The config class with the flags that are no settings: --config, unless it has one of its own, --print_config."""
    shipped = ", or the name of a shipped one such as salun-nsfw" if config is EraseConfig else ""
    source = f"A YAML file of these settings{shipped}; flags go on top of it."
    added = [(CONFIG, Annotated[str | None, tyro.conf.arg(help=source)], None)]
    words = "Print all settings as YAML, after presets, --config and flags, and end."
    shown = (PRINT_CONFIG, Annotated[bool, tyro.conf.arg(help=words), tyro.conf.FlagCreatePairsOff], False)
    return make_dataclass(
        config.__name__,
        [*_explained(config), *([] if _has_config(config) else added), shown],
        bases=(config,),
        namespace={"__post_init__": lambda flags: None},  # the config itself checks its values, in its own words
        frozen=True,
        kw_only=True,
    )


def _explained(config: type) -> list[tuple[str, Any, Any]]:
    """The fields with their docstrings as help, a paragraph each; tyro breaks the lines where the source does."""
    hints, parsed = get_type_hints(config, include_extras=True), docstring_parser.parse_from_object(config).params
    helps = {param.arg_name: " ".join((param.description or "").split()) for param in parsed}

    def explained(of: Field[Any]) -> tuple[str, Any, Any]:
        hint = Annotated[hints[of.name], tyro.conf.arg(help=helps[of.name])]
        like: dict[str, Any] = {"default": of.default, "default_factory": of.default_factory, "kw_only": of.kw_only}
        return of.name, hint, field(**like)

    return [explained(of) for of in fields(config) if helps.get(of.name)]


def _has_config(config: type) -> bool:
    return any(of.name == CONFIG for of in fields(config))


def _below(config: type, tokens: Sequence[str]) -> dict[str, Any]:
    """What presets and --config say of settings that no flag gives."""
    file = None if _has_config(config) else value_of(tokens, CONFIG)
    if config is EraseConfig:
        chosen = {name: value for name in DECISIVE if (value := value_of(tokens, name)) is not None}
        values = layered(file, chosen)
    else:
        values = read_config(file, config) if file else {}
    given = {_name(token) for token in tokens if token.startswith("--")}
    return {key: value for key, value in values.items() if not {key, f"no_{key}"} & given}


def value_of(tokens: Sequence[str], name: str) -> str | None:
    """The value of `--name VALUE` or `--name=VALUE`, the last one where there are several."""
    found = None
    for token, following in zip(tokens, [*tokens[1:], None]):
        if token.startswith("--") and _name(token) == name:
            found = token.partition("=")[2] or following
    return found


def _name(token: str) -> str:
    return token.partition("=")[0].lstrip("-").replace("-", "_")


def refuse_empty(tokens: Sequence[str]) -> None:
    """ValueError for `--flag ""` and `--flag=`: an empty folder name, for one, would be the current folder."""
    for before, token in zip([None, *tokens], tokens):
        flag, equals, value = token.partition("=") if token.startswith("--") else ("", "", "")
        if (equals and not value.strip()) or not token.strip():
            named = flag or (before if before and before.startswith("--") else "An argument")
            raise ValueError(
                f"{named} is empty. Give it a value, or leave it out; a shell variable that is not set is empty, too."
            )


def as_yaml(settings: Any, prog: str) -> str:
    """All settings as the YAML that --config reads."""
    head = f"# All settings of `{prog}`" + ("" if _has_config(type(settings)) else "; --config reads this file")
    # ASCII alone, the rest escaped: it must outlast a console or a pipe that writes another encoding.
    return f"{head}.\n{yaml.safe_dump(plain_values(settings), sort_keys=False, width=120)}"


def is_main_process() -> bool:
    """Whether this is the one of several processes (`accelerate launch`) that speaks; torch need not be loaded."""
    return os.environ.get("RANK", "0") == "0"
