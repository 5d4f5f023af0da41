"""What a command is told to read, looked at before torch is loaded: a name with a typo is answered at once."""

import difflib
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .config import EraseConfig
    from .evaluate.config import EvaluateConfig
    from .evaluate.generate import GenerateConfig

MASKS = ("salient", "random", "none")


def check_erase(config: "EraseConfig") -> None:
    """ValueError for a concept, a mask or a data folder of `erase train` and `erase mask` that there is not."""
    from .concepts import load_concepts
    from .model_folder import check_model

    check_model(config.pretrained_model_name_or_path)  # first: what can be erased depends on it
    load_concepts(config.concept, concept_type=config.concept_type, model=config.pretrained_model_name_or_path)
    need_mask(config.mask)
    need_folder("--concept_data_dir", config.concept_data_dir)
    need_folder("--retain_data_dir", config.retain_data_dir)


def check_generate(config: "GenerateConfig") -> None:
    """ValueError for weights of `erase generate` that there are not; its prompts are read before torch is, anyway."""
    from .model_folder import check_model

    check_model(config.pretrained_model_name_or_path, on_top=True)
    need_file("--patch", config.patch)
    need_file("--unet_weights", config.unet_weights)


def check_evaluate(config: "EvaluateConfig") -> None:
    """ValueError for a protocol, metric, concept, file or folder of `erase evaluate` that there is not."""
    from .evaluate.config import BUILDERS
    from .evaluate.prompt_files import READERS
    from .evaluate.protocols import load_protocol
    from .model_folder import check_model

    protocol, _ = load_protocol(config.protocol)
    for name in config.metrics or protocol.metrics:
        need_name("metric", name, BUILDERS)
    config.concepts()
    for model in filter(None, (config.base, config.model)):
        check_model(model, on_top=True)
    for flag in ("patch", "unet_weights", "inception_weights", "lpips_weights"):
        need_file(f"--{flag}", getattr(config, flag))
    for flag in ("images", "base_images"):
        need_folder(f"--{flag}", getattr(config, flag))
    need_either("--fid_reference", config.fid_reference)
    if config.prompts and Path(config.prompts).suffix.lower() in READERS:
        need_file("--prompts", Path(config.prompts).expanduser())


def need_name(kind: str, name: str, known: Iterable[str]) -> None:
    """ValueError for a name that is none of the known ones."""
    known = list(known)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=2)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"Unknown {kind} {name!r}.{hint} There are {', '.join(known)}.")


def refuse_near(flag: str, name: str | None, known: Collection[str]) -> None:
    """ValueError for what is no path and no OWNER/NAME of the hub but nearly one of the known names."""
    if name is None or "/" in name or name in known or Path(name).exists():
        return
    if near := difflib.get_close_matches(name, known, n=1, cutoff=0.8):
        raise ValueError(f"{flag} {name}: nothing here has that name. Did you mean {near[0]}?")


def need_mask(mask: str | None) -> None:
    """ValueError unless it is unset, one of MASKS, or a file."""
    if mask not in (None, *MASKS) and not Path(mask).expanduser().is_file():
        near = difflib.get_close_matches(mask, MASKS)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(f"mask must be {', '.join(MASKS)} or a mask file; there is no file {mask}.{hint}")


def need_file(name: str, path: Path | None) -> None:
    """ValueError unless the path is unset or a file's."""
    if path is not None and not path.is_file():
        raise ValueError(f"{name}: {_absent('file', path)}")


def need_folder(name: str, path: Path | None) -> None:
    """ValueError unless the path is unset or a folder's."""
    if path is not None and not path.is_dir():
        raise ValueError(f"{name}: {_absent('folder', path)}")


def need_either(name: str, path: Path | None) -> None:
    """ValueError unless the path is unset or something is there."""
    if path is not None and not path.exists():
        raise ValueError(f"{name}: {_absent('file or folder', path)}")


def _absent(kind: str, path: Path) -> str:
    """`there is no folder photso.` with what lies nearest to it."""
    if path.exists():
        return f"{path} is a {'folder' if path.is_dir() else 'file'}; give a {kind}."
    parent = next(place for place in path.absolute().parents if place.is_dir())
    near = difflib.get_close_matches(path.name, [one.name for one in parent.iterdir()], n=2)
    if parent != path.absolute().parent:
        return f"there is no {kind} {path}; of its path, {parent} is there."
    return f"there is no {kind} {path}." + (f" Did you mean {' or '.join(near)}?" if near else "")
