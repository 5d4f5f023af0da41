"""What people name as a model (`canvas`, a folder, a hub id), and what a folder must hold before anything is loaded.

Neither torch nor diffusers is imported here, so that a wrong name or folder is answered at once.
"""

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from ..canvas import PIPELINE_DIR
from ..config import CANVAS, EraseConfig
from ..layout import CONFIG_FILE
from ..suggest import meant
from .single_file import conversion, is_checkpoint, refuse_file

INDEX_FILE = "model_index.json"
ADVICE = (
    f"Give a diffusers folder (the one that holds {INDEX_FILE}), a hub id (OWNER/NAME), or `{CANVAS}`, the small model "
    "that ships with this package."
)
NOT_LOADED = ("safety_checker",)
"""Components that are never loaded, so that nothing is asked of their files."""
_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?:\.(?P<variant>\w+?))?(?:-\d{5}-of-\d{5})?"
    r"(?:\.(?P<sharded>\w+))?\.(?P<form>safetensors|bin|pt|pth|ckpt)"
)
"""diffusers' and transformers' names of weight files; `sharded` is where shards once had their variant."""


def local_folder(name: str, on_top: bool = False) -> Path | None:
    """The folder that `name` means, None for a hub id; ValueError for a file and for what cannot be either.

    `on_top`: whether the command also takes weights that go on top of a model (--patch, --unet_weights).
    """
    if name == CANVAS:
        return PIPELINE_DIR
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        refuse_file(path, on_top)
    if not is_hub_id(name):
        raise ValueError(f"There is no model {name!r}: no folder has that path.{near_models(name)} {ADVICE}")
    return None


def check_model(name: str, on_top: bool = False) -> None:
    """ValueError for a name that is wrong whatever the hub has: a typo, a file, a folder that is no pipeline."""
    if folder := local_folder(name, on_top):
        read_index(folder)


def is_hub_id(name: str) -> bool:
    """Whether the hub could have a pipeline of that name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name


def near_models(name: str) -> str:
    """The known models and the neighbouring folders that are spelled nearly so, as a sentence; empty without any."""
    parent = Path(name).expanduser().parent
    folders = [entry for entry in parent.iterdir() if entry.is_dir()] if parent.is_dir() else []
    known = {model.casefold(): model for model in (CANVAS, EraseConfig.pretrained_model_name_or_path)}
    beside = {folder.name.casefold(): str(folder) for folder in folders}
    near = [known[match] for match in _near(name, known)] + [beside[match] for match in _near(Path(name).name, beside)]
    return meant(near, quoted=True)


def _near(word: str, known: Iterable[str]) -> list[str]:
    return difflib.get_close_matches(word.casefold(), known, cutoff=0.6)


def hub_reason(error: BaseException, revision: str | None = None) -> str:
    """Why the hub did not give a model, in words."""
    from huggingface_hub import errors

    known = {
        errors.GatedRepoError: "its owner asks for consent: accept the terms on its page, then `hf auth login`",
        errors.RevisionNotFoundError: f"the hub has no revision {revision!r} of it",
        errors.RepositoryNotFoundError: "it is not a local folder, and the hub has no such model (or a private one: "
        "`hf auth login`)",
        errors.RemoteEntryNotFoundError: f"the hub's repository of that name holds no {INDEX_FILE}",
    }
    # What is raised says that the cache does not have it either; its causes say what the hub had answered.
    chain = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    first = (str(chain[-1]).strip().splitlines() or [type(chain[-1]).__name__])[0].rstrip(".")
    said = (reason for kind, reason in known.items() if any(isinstance(link, kind) for link in chain))
    return next(said, f"it is not a local folder, and the hub did not give it ({first})")


def run_settings(model: str | Path) -> Mapping[str, Any]:
    """config.yaml of the `erase train` run in the folder `model`; empty for every other model."""
    path = Path(model).expanduser() / CONFIG_FILE
    if str(model) == CANVAS or not path.is_file():
        return {}
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML ({error}); mend it, or move it away if it is no run's.") from error
    # Published models have a config.yaml of another kind beside them.
    is_run = isinstance(settings, dict) and {"concept", "pretrained_model_name_or_path"} <= settings.keys()
    return settings if is_run else {}


def read_index(folder: Path) -> dict[str, Any]:
    """model_index.json of a pipeline's folder, whose `_class_name` is text; ValueError says what is there instead."""
    path = folder / INDEX_FILE
    if not path.is_file():
        raise ValueError(
            f"{folder} holds no {INDEX_FILE}, so it is not a diffusers pipeline folder. {_instead(folder)}"
        )
    again = "Copy or download it again, or save the pipeline anew with diffusers' `save_pretrained`."
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        what = "is empty" if path.stat().st_size == 0 else f"is not JSON ({error})"
        raise ValueError(f"{path} {what}. {again}") from error
    if not isinstance(index, dict):
        raise ValueError(
            f"{path} holds a {type(index).__name__}, where an object with `_class_name` was expected. {again}"
        )
    name = index.get("_class_name")
    if isinstance(name, list):
        raise ValueError(
            f"{path} names a pipeline with code of its own ({', '.join(map(str, name))}); only diffusers' own "
            "pipelines are run here."
        )
    if not isinstance(name, str) or not name:
        raise ValueError(f"{path} does not say which pipeline it is: `_class_name` is {name!r}. {again}")
    return index


def _instead(folder: Path) -> str:
    """What a folder without an index seems to be, and what to give in its place."""
    if (folder.parent / INDEX_FILE).is_file():
        return f"It is a part of the pipeline in {folder.parent}: give that folder."
    inside = sorted(path.parent for form in ("*", "snapshots/*") for path in folder.glob(f"{form}/{INDEX_FILE}"))
    if inside:
        return (
            f"There is one in {', '.join(map(str, inside[:5]))}: give {'that' if len(inside) == 1 else 'one of these'}."
        )
    if run_settings(folder):
        return (
            "It is a run of `erase train` that stopped before its model was written: finish it with "
            "`--resume_from_checkpoint latest`."
        )
    config = folder / "config.json"
    if config.is_file():
        return (
            f"It holds a single model ({config}), and a pipeline has several, in folders beside {INDEX_FILE}. {ADVICE}"
        )
    if files := sorted(path for path in folder.iterdir() if is_checkpoint(path)):
        return f"If {files[0].name} is a whole model in a single file: {conversion(files[0])}"
    return ADVICE


def check_weight_files(folder: Path, variant: str | None = None) -> None:
    """ValueError unless every model of the pipeline has safetensors, of the variant or without one.

    At least one of them must have the variant that was asked for, as diffusers demands.
    """
    parts = {name: _weight_files(folder / name) for name in _components(folder)}
    held = {name: {_variant(file) for file in files if file["form"] == "safetensors"} for name, files in parts.items()}
    for name, files in parts.items():
        if files and not held[name]:
            raise ValueError(_pickled(folder, f"{name}/{files[0][0]}", _variant(files[0])))
    there = set().union(*held.values())
    if variant is not None and variant not in there:
        others = ", ".join(sorted(f"--variant {found}" for found in there if found))
        plain = "weights without a variant (leave --variant out)" if None in there else ""
        found = " and ".join(filter(None, (plain, others))) or "no weights at all"
        raise ValueError(f"{folder} has no weights of the variant {variant!r}; it has {found}.")
    for name, variants in held.items():
        if variants and not variants & {variant, None}:
            choices = " or ".join(f"--variant {found}" for found in sorted(filter(None, variants)))
            raise ValueError(f"{folder / name} holds weights of a variant alone: give {choices}.")


def _components(folder: Path) -> list[str]:
    """Names of the folders that the pipeline loads."""
    listed = (name for name, kind in read_index(folder).items() if isinstance(kind, list) and kind[-1:] != [None])
    return [name for name in listed if name not in NOT_LOADED and (folder / name).is_dir()]


def _weight_files(folder: Path) -> list[re.Match[str]]:
    return [match for path in sorted(folder.iterdir()) if (match := _WEIGHTS.fullmatch(path.name))]


def _variant(file: re.Match[str]) -> str | None:
    return file["variant"] or file["sharded"]


def _pickled(folder: Path, file: str, variant: str | None) -> str:
    load = f"use_safetensors=False{f', variant={variant!r}' if variant else ''}"
    return (
        f"{folder} holds pickled weights alone ({file}), which can run any code when they are loaded, so they are not "
        "read here. Where you trust them, convert the folder once and give the new one:\n"
        f'  python -c "from diffusers import DiffusionPipeline as P; P.from_pretrained({str(folder)!r}, {load})'
        ".save_pretrained('FOLDER')\""
    )
