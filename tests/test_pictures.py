"""Contract of erase.data.pictures: the whole package reads a picture as viewers show it, and counts the same files.

The expected arrays are worked out here by hand, never with the reader itself.
"""

import base64
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from erase.classifiers.sources import from_columns, picture_folder
from erase.data.pictures import as_rgb, list_pictures, picture_ids, read_picture
from erase.data.training_data import _square
from erase.evaluate.adopted import given_pictures
from erase.evaluate.metrics.reference import Reference
from erase.evaluate.scoring import decoded
from erase.report.gallery import data_uri

SIDE = 6
ORIENTATION = 274


def colours(height: int = SIDE, width: int = SIDE) -> np.ndarray:
    """A picture that looks different whichever way it is turned."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def turned(path: Path) -> np.ndarray:
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # the camera lay on its side: show it turned by 90° clockwise
    Image.fromarray(colours(SIDE, SIDE + 2)).save(path, exif=exif)
    return np.rot90(colours(SIDE, SIDE + 2), -1)


def grey_of_16_bits(path: Path) -> np.ndarray:
    values = np.linspace(0, 65535, SIDE * SIDE).reshape(SIDE, SIDE).astype(np.uint16)
    Image.fromarray(values).save(path)
    return np.round(values / 257).astype(np.uint8)[..., None].repeat(3, -1)


def half_transparent(path: Path) -> np.ndarray:
    alpha = np.full((SIDE, SIDE, 1), 51, np.uint8)  # a fifth
    Image.fromarray(np.concatenate([colours(), alpha], -1)).save(path)
    return np.round(0.2 * colours() + 0.8 * 255).astype(np.uint8)


def palette_with_a_hole(path: Path) -> np.ndarray:
    picture = Image.fromarray(np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE) % 3, "P")
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    picture.save(path, transparency=1)
    shown = np.array([[255, 0, 0], [255, 255, 255], [0, 0, 255]], np.uint8)
    return shown[np.arange(SIDE * SIDE).reshape(SIDE, SIDE) % 3]


def grey_with_a_hole(path: Path) -> np.ndarray:
    values = np.arange(SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE) * 257
    Image.fromarray(values).save(path, transparency=257)
    shown = (values // 257).astype(np.uint8)
    return np.where(shown == 1, 255, shown).astype(np.uint8)[..., None].repeat(3, -1)


def two_tones(path: Path) -> np.ndarray:
    bits = colours()[..., 0] > 127
    Image.fromarray(bits).save(path)
    return np.where(bits, 255, 0).astype(np.uint8)[..., None].repeat(3, -1)


@pytest.mark.parametrize(
    "write", [turned, grey_of_16_bits, half_transparent, palette_with_a_hole, grey_with_a_hole, two_tones]
)
def test_a_picture_is_read_as_viewers_show_it(write: Callable[[Path], np.ndarray], tmp_path: Path) -> None:
    expected = write(tmp_path / "a.png")
    read = read_picture(tmp_path / "a.png").astype(int)
    assert read.shape == expected.shape and abs(read - expected).max() <= 1


def test_print_colours_and_grey_jpegs_are_read(tmp_path: Path) -> None:
    Image.new("CMYK", (SIDE, SIDE), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=100)
    Image.new("L", (SIDE, SIDE), 90).save(tmp_path / "grey.jpg", quality=100)
    assert abs(read_picture(tmp_path / "red.jpg").astype(int) - (255, 0, 0)).max() <= 4
    assert abs(read_picture(tmp_path / "grey.jpg").astype(int) - 90).max() <= 1


def test_the_means_of_the_two_odd_pictures_are_right(tmp_path: Path) -> None:
    """A middle grey in 16 bits was read as white."""
    Image.fromarray(np.full((60, 80), 32768, np.uint16)).save(tmp_path / "grey16.png")
    assert read_picture(tmp_path / "grey16.png").mean() == 128
    turned(tmp_path / "exif6.jpg")
    assert read_picture(tmp_path / "exif6.jpg").shape == (SIDE + 2, SIDE, 3)


def readers(folder: Path, path: Path) -> dict[str, np.ndarray]:
    """The picture as each part of the package gets it."""
    class_folder = folder.parent / "classes" / "one"
    class_folder.mkdir(parents=True)
    (class_folder / path.name).write_bytes(path.read_bytes())
    uri, *_ = data_uri(path)
    shown = Image.open(BytesIO(base64.b64decode(uri.partition(",")[2])))
    side = read_picture(path).shape[0]
    return {
        "scoring": next(decoded(folder, [[{"file": path.name}]]))[0],
        "classifiers": picture_folder(class_folder.parent).inputs[0].permute(1, 2, 0).numpy(),
        "report": np.asarray(shown),
        "training": _square(path, side),
    }


@pytest.mark.parametrize("write", [turned, grey_of_16_bits])
def test_every_part_reads_the_same(write: Callable[[Path], np.ndarray], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "a.png"
    expected = write(path)
    for part, picture in readers(tmp_path / "in", path).items():
        if part == "training":  # cut to a square around the middle, then scaled
            assert picture.shape == (expected.shape[0],) * 2 + (3,)
        else:
            np.testing.assert_array_equal(picture, expected, part)


def test_training_cuts_and_scales_what_viewers_show(tmp_path: Path) -> None:
    expected = turned(tmp_path / "a.png")
    square = expected[1:-1]
    np.testing.assert_array_equal(_square(tmp_path / "a.png", SIDE), square)


def test_pictures_of_a_hub_data_set_are_read_the_same() -> None:
    datasets = pytest.importorskip("datasets")
    values = np.full((4, 4), 32768, np.uint16)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a"])})
    table = datasets.Dataset.from_dict({"image": [Image.fromarray(values)], "label": [0]}, features)
    assert from_columns(table).inputs.float().mean() == 128


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    Image.fromarray(colours(80, 80)).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:400])
    (tmp_path / "b.png").write_text("no picture")
    for name in ("a.png", "b.png", "absent.png"):
        with pytest.raises(ValueError, match=rf"{name} cannot be read as a picture"):
            read_picture(tmp_path / name)
    with pytest.raises(ValueError, match="floating-point numbers of no known range"):
        as_rgb(Image.new("F", (2, 2)))


# Which files are pictures


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Twelve pictures in two folders, and what editors and file managers leave beside them."""
    folder = tmp_path / "album"
    shown = [f"{kind}/{at}.{'png' if at % 2 else 'JPG'}" for kind in ("cat", "dog") for at in range(6)]
    for name in [*shown, "._0.png", "cat/.0.png", ".thumbnails/x.png", "dog/.cache/deep/y.png"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(colours()).save(folder / name)
    (folder / "cat/.1.png.swp").write_bytes(b"swap")
    (folder / "notes.txt").write_text("no picture")
    (folder / "folder.png").mkdir()
    return folder


def test_nested_folders_count_and_hidden_files_do_not(album: Path, tmp_path: Path) -> None:
    names = [path.relative_to(album).as_posix() for path in list_pictures(album)]
    assert names == sorted(names) and len(names) == 12 and not any("/." in f"/{name}" for name in names)
    assert len(Reference(album, tmp_path).pictures) == len(given_pictures(album, tmp_path / "out").records) == 12
    (album / "folder.png").rmdir()  # which would be a class
    examples = picture_folder(album)
    assert len(examples) == 12 and examples.labels.tolist() == [0] * 6 + [1] * 6


def test_a_hidden_folder_around_the_album_does_not_matter(album: Path) -> None:
    hidden = album.parent / ".next"
    album.rename(hidden)
    assert len(list_pictures(hidden)) == 12


def test_folders_without_pictures_are_refused(tmp_path: Path) -> None:
    (tmp_path / ".a.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"holds no pictures; expected files ending in \.png"):
        list_pictures(tmp_path)
    with pytest.raises(ValueError, match="is not a folder"):
        list_pictures(tmp_path / "absent")


def test_each_picture_has_a_name_of_its_own(tmp_path: Path) -> None:
    def ids(*names: str) -> list[str]:
        return picture_ids(tmp_path, [tmp_path / name for name in names])

    assert ids("0.png", "1.png", "cat/0.png") == ["0", "1", "cat/0"]
    assert ids("0.jpg", "0.png", "1.png") == ["0.jpg", "0.png", "1"]
    assert ids("0.jpg", "0.png", "0.png.png") == ["0.jpg", "0.png", "0.png.png"]
