"""Picture files as every viewer shows them: one lister and one reader for training, evaluation and classifiers."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def list_pictures(folder: Path) -> list[Path]:
    """The pictures in a folder and its folders, sorted by relative path; ValueError when there are none.

    Hidden files and folders (`._0.png`, `.thumbnails/`) are what editors and file managers leave, and do not count.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give one that holds pictures ({', '.join(PICTURE_SUFFIXES)}).")
    found = [path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in PICTURE_SUFFIXES]
    shown = [path for path in sorted(found) if not is_hidden(path) and (folder / path).is_file()]
    if not shown:
        raise ValueError(f"{folder} holds no pictures; expected files ending in {', '.join(PICTURE_SUFFIXES)}.")
    return [folder / path for path in shown]


def is_hidden(path: Path) -> bool:
    """Whether a relative path is a hidden file, or lies in a hidden folder."""
    return any(part.startswith(".") for part in path.parts)


def picture_ids(folder: Path, pictures: Sequence[Path]) -> list[str]:
    """A name for each picture of a folder: its relative path, without the suffix where no other has that name."""
    names = [path.relative_to(folder) for path in pictures]
    stems = [name.with_suffix("").as_posix() for name in names]
    taken = Counter([*stems, *(name.as_posix() for name in names)])
    return [stem if taken[stem] == 1 else name.as_posix() for stem, name in zip(stems, names)]


def read_picture(path: Path) -> np.ndarray:
    """uint8 RGB (H, W, 3) of a picture file, as `as_rgb`; ValueError names a file that cannot be read."""
    try:
        with Image.open(path) as picture:
            return as_rgb(picture)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as a picture ({error}); mend, replace or remove it.") from error


def as_rgb(picture: Image.Image) -> np.ndarray:
    """uint8 RGB (H, W, 3) of an opened picture: turned as its EXIF says, on white where it is transparent.

    16-bit greyscale is scaled to 8 bits. Embedded colour profiles are not applied, as in the field's tools.
    """
    turned = ImageOps.exif_transpose(picture)
    if turned.mode.startswith("I"):
        turned = _eight_bits(turned)
    elif turned.mode == "F":
        raise ValueError("its pixels are floating-point numbers of no known range; save it with 8 or 16 bits")
    if turned.has_transparency_data:
        white = Image.new("RGBA", turned.size, "white")
        turned = Image.alpha_composite(white, turned.convert("RGBA"))
    return np.asarray(turned.convert("RGB"))


def _eight_bits(picture: Image.Image) -> Image.Image:
    """16-bit greyscale, values 0 … 65,535, in 8 bits; its transparent value, if it has one, is white."""
    values = np.asarray(picture).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"its values lie in {values.min()} … {values.max()}; expected 16-bit greyscale, 0 … 65535")
    values[values == picture.info.get("transparency", -1)] = 65535
    return Image.fromarray((values * 255 / 65535).round().astype(np.uint8))
