"""Names and paths that are nearly right: what was meant, and errors that say so before anything heavy is loaded."""

import difflib
from collections.abc import Collection, Iterable
from pathlib import Path

MASKS = ("salient", "random", "none")
"""What --mask may be, beside a file."""


def did_you_mean(name: str, known: Iterable[str], *, n: int = 3, cutoff: float = 0.6, quoted: bool = False) -> str:
    """The known names that are spelled most like `name`, at most n of them and at least `cutoff` alike (0–1), as the
    sentence ` Did you mean X or Y?` to put after another; empty where none is.
    """
    return meant(difflib.get_close_matches(name, list(known), n=n, cutoff=cutoff), quoted=quoted)


def meant(near: Iterable[str], *, quoted: bool = False) -> str:
    """The sentence of `did_you_mean` for names that were found in another way; each is said once."""
    names = [repr(name) if quoted else name for name in dict.fromkeys(near)]
    return f" Did you mean {' or '.join(names)}?" if names else ""


def need_name(kind: str, name: str, known: Iterable[str]) -> None:
    """ValueError for a name that is none of the known ones."""
    known = list(known)
    if name not in known:
        raise ValueError(f"Unknown {kind} {name!r}.{did_you_mean(name, known, n=2)} There are {', '.join(known)}.")


def refuse_near(flag: str, name: str | None, known: Collection[str]) -> None:
    """ValueError for what is no path and no OWNER/NAME of the hub but nearly one of the known names."""
    if name is None or "/" in name or name in known or Path(name).exists():
        return
    if hint := did_you_mean(name, known, n=1, cutoff=0.8):
        raise ValueError(f"{flag} {name}: nothing here has that name.{hint}")


def need_mask(mask: str | None) -> None:
    """ValueError unless it is unset, one of MASKS, or a file."""
    if mask not in (None, *MASKS) and not Path(mask).expanduser().is_file():
        hint = did_you_mean(mask, MASKS, n=1)
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
    if parent != path.absolute().parent:
        return f"there is no {kind} {path}; of its path, {parent} is there."
    return f"there is no {kind} {path}.{did_you_mean(path.name, (one.name for one in parent.iterdir()), n=2)}"
