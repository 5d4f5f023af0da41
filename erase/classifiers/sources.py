"""Data sets by name: scikit-learn's bundled ones, the canvas's pictures, CIFAR and others by hub id or local path."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled
from PIL import Image
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample

from ..canvas import OBJECTS, RESOLUTION, SHEET_FILE, STYLES
from ..data.pictures import as_rgb, list_pictures, read_picture
from .examples import Examples, Normalization, as_array, from_arrays
from .settings import DATASETS

INSTALL = 'pip install "diffusers-erase[classify]"'
TEST_SHARE = 1 / 9
"""Of scikit-learn's sets, which come without a test set: 200 of the 1,797 digits."""
CANVAS_COUNT, CANVAS_TEST = 10_000, 2_000
CANVAS_SIZE = 16
NOISE = 0.1
"""Standard deviation of the noise on them, in −1…1."""
COVER = 4
"""Side of the square that hides a part of each, in pixels."""
CIFAR_BYTES = 3 * 32 * 32
IMAGENET = Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
CIFAR = Normalization(mean=(0.4914, 0.4822, 0.4465), std=(0.2471, 0.2435, 0.2616))

Split = tuple[Examples, Examples, tuple[str, ...]]
"""Training set, test set, names of the classes."""


def load_source(source: str, label_column: str | None = None) -> Split:
    """Training and test set by name, path or hub id.

    Names: digits, breast-cancer, wine (scikit-learn's), canvas-pictures. Paths: an .npz with x_train, y_train, x_test,
    y_test; a folder with CIFAR's binary files, with parquet files of a hub data set, or with train/CLASS/PICTURE and
    test/CLASS/PICTURE. Anything else is a hub id. Raises ValueError with what was found and what was expected.
    """
    path = Path(source).expanduser()
    if source in ("digits", "breast-cancer", "wine"):
        return _bundled(source)
    if source == "canvas-pictures":
        return canvas_pictures()
    if path.suffix == ".npz":
        return _from_npz(path)
    if path.is_dir() and any(path.glob("*.bin")):
        return _from_cifar_binary(path)
    if path.is_dir() and (path / "train").is_dir() and not any(path.rglob("*.parquet")):
        return _from_folders(path)
    if path.exists() and not path.is_dir():
        raise ValueError(f"{source} is a file; expected an .npz, a folder or a hub id.")
    return _from_hub(source, label_column)


def as_examples(data: Any, name: str) -> Examples:
    """Examples from what a user has: Examples, (inputs, labels), a folder, or a sequence of (input, label).

    inputs: array or tensor; float for any network, uint8 for pictures, which are scaled to 0–1. A `datasets.Dataset`
    and a torch dataset are sequences; a folder holds one folder of pictures a class. `name` is for error messages.
    Raises ValueError for an empty set and for anything else.
    """
    examples = _converted(data, name)
    if not len(examples):
        raise ValueError(f"The {name} set is empty.")
    return examples


def _converted(data: Any, name: str) -> Examples:
    if isinstance(data, Examples):
        return data
    if isinstance(data, str | Path):
        return picture_folder(Path(data))
    if hasattr(data, "features") and hasattr(data, "column_names"):
        return from_columns(data)
    pair = isinstance(data, tuple) and len(data) == 2 and hasattr(data[0], "shape") and np.ndim(data[0]) > 1
    inputs, labels = data if pair else _columns(data, name)
    return from_arrays(inputs, labels, name)


def _columns(data: Any, name: str) -> tuple[Any, Any]:
    """Inputs and labels of a sequence of pairs."""
    if not hasattr(data, "__getitem__") or not hasattr(data, "__len__"):
        raise ValueError(
            f"The {name} set is a {type(data).__name__}. Expected (inputs, labels), a folder with a folder of pictures "
            "for each class, a datasets.Dataset, or a sequence of (input, label)."
        )
    pairs = [data[row] for row in range(len(data))]
    inputs = np.stack([as_array(pair[0]) for pair in pairs]) if pairs else np.zeros((0, 1))
    return inputs, np.asarray([pair[1] for pair in pairs], dtype=None if pairs else int)


def _bundled(name: str) -> Split:
    """One of scikit-learn's data sets, split by class with a fixed seed; measurements are scaled to variance 1."""
    try:
        from sklearn import datasets
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ValueError(f"{name} comes with scikit-learn, which is not installed: {INSTALL}") from error
    data: Any = {"digits": datasets.load_digits, "breast-cancer": datasets.load_breast_cancer,
                 "wine": datasets.load_wine}[name]()  # fmt: skip
    parts = train_test_split(data.data, data.target, test_size=TEST_SHARE, random_state=0, stratify=data.target)
    train, test = (torch.tensor(part, dtype=torch.float32) for part in parts[:2])
    if name == "digits":
        train, test = ((part / 8 - 1).reshape(-1, 1, 8, 8) for part in (train, test))
    else:
        mean, std = train.mean(0), train.std(0)
        train, test = (train - mean) / std, (test - mean) / std
    labels = [torch.tensor(part) for part in parts[2:]]
    names = tuple(str(target) for target in data.target_names)
    return from_arrays(train, labels[0], name), from_arrays(test, labels[1], name), names


def canvas_pictures(count: int = CANVAS_COUNT, test: int = CANVAS_TEST, seed: int = 0) -> Split:
    """Hard pictures (3, 16, 16) of the canvas's twenty objects, the last `test` of `count` for testing.

    Each is one of the 120 pictures on the canvas's sheet (20 objects in 6 styles), turned, scaled, moved, mirrored,
    small, partly covered and noisy: a small network names about 92 % of new ones and learns the training set by heart.
    """
    from ..evaluate.grid import sheet_pictures

    generator = torch.Generator().manual_seed(seed)
    sheet = torch.from_numpy(sheet_pictures(SHEET_FILE, len(OBJECTS), len(STYLES), RESOLUTION))
    kinds = torch.randint(len(sheet), (count,), generator=generator)
    clean = sheet.permute(0, 3, 1, 2).float() / 127.5 - 1
    inputs = torch.cat([spoiled(clean[part], generator) for part in kinds.split(1000)])
    labels = kinds // len(STYLES)
    return (
        from_arrays(inputs[:-test], labels[:-test], "canvas-pictures"),
        from_arrays(inputs[-test:], labels[-test:], "canvas-pictures"),
        OBJECTS,
    )


def spoiled(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """(B, 3, 64, 64) in −1…1 → (B, 3, 16, 16): turned by ±15°, scaled, moved, mirrored, covered, noisy."""
    count = len(pictures)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    angle, scale = uniform(-15, 15) * math.pi / 180, uniform(0.82, 1.15)
    mirror = uniform(-1, 1).sign()
    rows = torch.stack([angle.cos() * scale * mirror, -angle.sin() * scale, uniform(-0.1, 0.1),
                        angle.sin() * scale * mirror, angle.cos() * scale, uniform(-0.1, 0.1)], dim=1)  # fmt: skip
    grid = affine_grid(rows.view(-1, 2, 3), [count, 3, RESOLUTION, RESOLUTION], align_corners=False)
    turned = grid_sample(pictures, grid, padding_mode="reflection", align_corners=False)
    small = avg_pool2d(turned, RESOLUTION // CANVAS_SIZE)
    small = small * uniform(0.6, 1.2, 1, 1, 1) + uniform(-0.2, 0.2, 3, 1, 1)
    covered = _covered(count, generator)
    small = torch.where(covered[:, None], uniform(-1, 1, 3, 1, 1), small)
    return small + NOISE * torch.randn(small.shape, generator=generator)


def _covered(count: int, generator: torch.Generator) -> Tensor:
    """(B, 16, 16) bool: a square at a random place."""
    at = torch.arange(CANVAS_SIZE)
    corner = torch.randint(-COVER // 2, CANVAS_SIZE - COVER // 2, (2, count, 1), generator=generator)
    inside = (at >= corner) & (at < corner + COVER)
    return inside[0][:, :, None] & inside[1][:, None, :]


def _from_npz(path: Path) -> Split:
    wanted = ("x_train", "y_train", "x_test", "y_test")
    if not path.is_file():
        raise ValueError(f"There is no file {path}.")
    with np.load(path, allow_pickle=False) as arrays:
        missing = [name for name in wanted if name not in arrays]
        if missing:
            raise ValueError(f"{path} lacks {', '.join(missing)}; it holds {', '.join(arrays) or 'nothing'}.")
        x_train, y_train, x_test, y_test = (arrays[name] for name in wanted)
    train, test = from_arrays(x_train, y_train, "training"), from_arrays(x_test, y_test, "test")
    return train, test, tuple(map(str, range(1 + int(max(train.labels.max(), test.labels.max())))))


def _from_cifar_binary(folder: Path) -> Split:
    """CIFAR's binary version: records of one label byte (CIFAR-100: two, coarse and fine) and 3,072 pixels."""
    fine = (folder / "train.bin").is_file()
    files = [folder / "train.bin"] if fine else sorted(folder.glob("data_batch_*.bin"))
    test = folder / ("test.bin" if fine else "test_batch.bin")
    if not files or not test.is_file():
        found = ", ".join(sorted(file.name for file in folder.glob("*.bin")))
        raise ValueError(
            f"{folder} holds {found}. Expected data_batch_1.bin … and test_batch.bin (CIFAR-10), or train.bin and "
            "test.bin (CIFAR-100), as in the binary version's archive."
        )
    head = 2 if fine else 1
    parts = [np.concatenate([_records(file, head) for file in group]) for group in (files, [test])]
    train, held = (
        Examples(
            inputs=torch.from_numpy(part[:, head:].reshape(-1, 3, 32, 32).copy()),
            labels=torch.from_numpy(part[:, head - 1].astype(np.int64)),
            normalization=CIFAR,
            padding=padding,
        )
        for part, padding in zip(parts, (4, 0))
    )
    names_file = folder / ("fine_label_names.txt" if fine else "batches.meta.txt")
    if names_file.is_file():
        return train, held, tuple(names_file.read_text(encoding="utf-8").split())
    return train, held, tuple(map(str, range(100 if fine else 10)))


def _records(file: Path, head: int) -> np.ndarray:
    content, size = np.fromfile(file, np.uint8), head + CIFAR_BYTES
    if len(content) == 0 or len(content) % size:
        raise ValueError(f"{file} is cut off or no CIFAR file: {len(content)} bytes are no multiple of {size}.")
    return content.reshape(-1, size)


def _from_folders(folder: Path) -> Split:
    """train/CLASS/… and test/CLASS/… (or val/); pictures in any depth below a class, as Tiny-ImageNet has them."""
    held = next((folder / name for name in ("test", "val") if (folder / name).is_dir()), None)
    if held is None:
        raise ValueError(f"{folder} has train/ but neither test/ nor val/.")
    classes = _folders(folder / "train")
    annotations = held / "val_annotations.txt"
    test = _annotated(held, annotations, classes) if annotations.is_file() else picture_folder(held, classes)
    train = picture_folder(folder / "train", classes)
    return _augmented(train), test, tuple(classes)


def picture_folder(folder: Path, classes: list[str] | None = None) -> Examples:
    """Pictures of a folder that has a folder for each class, in the order of `classes` (default: by name)."""
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}.")
    found = _folders(folder)
    classes = classes or found
    unknown = sorted(set(found) - set(classes))
    if not found or unknown:
        what = f"the classes {', '.join(unknown)}, which the training set lacks" if unknown else "no folder of a class"
        raise ValueError(f"{folder} holds {what}; expected {folder.name}/CLASS/PICTURE.")
    files = [(p, at) for at, name in enumerate(classes) if name in found for p in list_pictures(folder / name)]
    return _read([file for file, _ in files], [label for _, label in files])


def _folders(folder: Path) -> list[str]:
    """Names of the folders in a folder; hidden ones are a file manager's."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _annotated(folder: Path, annotations: Path, classes: list[str]) -> Examples:
    """Tiny-ImageNet's validation set: one folder of pictures and a table of file name and class."""
    places = {name: at for at, name in enumerate(classes)}
    lines = [line.split("\t")[:2] for line in annotations.read_text(encoding="utf-8").splitlines() if line]
    return _read([folder / "images" / file for file, _ in lines], [places[name] for _, name in lines])


def _read(files: list[Path], labels: list[int]) -> Examples:
    inputs = _stacked(map(read_picture, files))
    return Examples(inputs=inputs, labels=torch.tensor(labels), normalization=IMAGENET)


def _opened(pictures: Iterable[Image.Image]) -> Iterator[np.ndarray]:
    """uint8 (H, W, 3) of opened pictures, each closed when it has been read."""
    for row, picture in enumerate(pictures):
        try:
            with picture:
                yield as_rgb(picture)
        except (OSError, ValueError) as error:
            raise ValueError(f"The picture of row {row} cannot be read ({error}).") from error


def _stacked(pictures: Iterable[np.ndarray]) -> Tensor:
    """(N, 3, H, W) uint8 of pictures (H, W, 3) that are all of one size."""
    arrays = list(pictures)
    sizes = sorted({array.shape for array in arrays})
    if len(sizes) != 1:
        shown = ", ".join(f"{shape[1]}×{shape[0]}" for shape in sizes[:5]) or "none"
        raise ValueError(f"Pictures must all be of one size; found {shown}.")
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def _augmented(examples: Examples) -> Examples:
    """With the shifts of an eighth of the picture that training on photographs uses (CIFAR's 4 of 32 pixels)."""
    return replace(examples, padding=examples.inputs.shape[-1] // 8)


def _from_hub(source: str, label_column: str | None) -> Split:
    try:
        from datasets import load_dataset
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise ValueError(f"Reading {source} needs the datasets library: {INSTALL}") from error
    try:
        splits: Any = load_dataset(source)
    except (DatasetsError, OSError, ValueError, HFValidationError, OfflineModeIsEnabled) as error:
        raise ValueError(
            f"{source!r} is neither a known name ({', '.join(DATASETS)}), nor a local path, nor "
            f"a data set that could be loaded from the hub: {error}"
        ) from error
    held = next((name for name in ("test", "validation", "valid") if name in splits), None)
    if "train" not in splits or held is None:
        raise ValueError(f"{source} has the splits {', '.join(splits)}; expected train and test (or validation).")
    train, test = (from_columns(splits[name], label_column) for name in ("train", held))
    names = splits["train"].features[_label_column(splits["train"], label_column)].names
    return _augmented(train), test, tuple(names)


def from_columns(table: Any, label_column: str | None = None) -> Examples:
    """Examples of a `datasets.Dataset` with one column of pictures and one of class labels."""
    label = _label_column(table, label_column)
    pictures = [name for name, feature in table.features.items() if type(feature).__name__ == "Image"]
    if len(pictures) != 1:
        raise ValueError(f"Expected one column of pictures, found {pictures or 'none'} in {table.column_names}.")
    inputs = _stacked(_opened(table[pictures[0]]))
    normalization = CIFAR if inputs.shape[-1] == 32 else IMAGENET
    return Examples(inputs=inputs, labels=torch.tensor(table[label]), normalization=normalization)


def _label_column(table: Any, wanted: str | None) -> str:
    columns: Mapping[str, Any] = table.features
    labels = [name for name, feature in columns.items() if type(feature).__name__ == "ClassLabel"]
    if wanted is not None:
        labels = [name for name in labels if name == wanted]
    if len(labels) != 1:
        raise ValueError(
            f"Expected one column of class labels{f' named {wanted}' if wanted else ''}, found {labels or 'none'} in "
            f"{', '.join(columns)}; choose with label_column."
        )
    return labels[0]
