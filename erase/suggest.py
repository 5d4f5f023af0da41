"""Names and paths that are nearly right: what was meant, and errors that say so before anything heavy is loaded."""

import difflib
from collections.abc import Collection, Iterable
from pathlib import Path

MASKS = ("salient", "random", "none")
"""What --mask may be, beside a file."""


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
