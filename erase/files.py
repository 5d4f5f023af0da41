"""Files that are whole or absent, and hashes that identify a model."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from .ledger import note

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

SKIPPED_SUFFIXES = (".bin", ".ckpt", ".msgpack", ".onnx", ".onnx_data", ".pb", ".h5", ".pt", ".pth", ".pkl", ".xml")
"""Other frameworks' and pickled weights: an export holds safetensors only."""


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary name beside `path`, renamed to `path` when the block succeeds and removed when it fails.

    A reader sees the old file or the new one, never a part. Missing folders are made. The suffix is kept, and the file
    has the permissions that the user's umask gives, whatever library wrote it.
    """
    with _taking_place(Path(path)) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())


@contextmanager
def _taking_place(target: Path) -> Iterator[Path]:
    """A name beside `target` for something that the block makes, which then takes the target's place and is noted."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.tmp{target.suffix}")
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    note(target)


def copy(source: Path, target: Path) -> None:
    """Copy a file; `target` is whole or absent."""
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)


def link(source: Path, target: Path) -> None:
    """Give a file a second name, or a copy where the file system has no links; `target` is whole or absent."""
    with _taking_place(target) as temporary:
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def atomic_save(tensors: "Mapping[str, Tensor]", path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file that is whole or absent; equal contents give equal bytes.

    Raises OSError (ENOSPC included) with nothing left behind.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        with atomic_path(path) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, dict(metadata or {}))
            _sort_metadata(temporary)
    except SafetensorError as error:
        # safetensors wraps the operating system's error and keeps its number only in the text.
        full = f"os error {errno.ENOSPC}" in str(error)
        advice = "the disk is full: free some space and save again" if full else "check that the folder can be written"
        raise OSError(
            errno.ENOSPC if full else errno.EIO, f"cannot be written ({error}); {advice}", str(path)
        ) from error


def _sort_metadata(path: Path) -> None:
    """Put the metadata of a safetensors file in order: the library writes it as its hash table happens to be."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        if "__metadata__" not in header:
            return
        ordered = {"__metadata__": dict(sorted(header.pop("__metadata__").items()))} | header
        text = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) > size:
            raise OSError(errno.EIO, f"the header of {len(text)} bytes does not fit into {size}", str(path))
        file.seek(8)
        file.write(text.ljust(size))


def read_safetensors(path: str | Path) -> "tuple[dict[str, Tensor], dict[str, str]]":
    """Tensors and metadata of a safetensors file, on the CPU.

    Raises FileNotFoundError when it is missing, ValueError when it is cut off, damaged or cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).exists():
        raise FileNotFoundError(f"{path} does not exist. Check the path, or make the file first.")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is not a whole safetensors file ({error}). It may have been cut off while it was copied: "
            "make or download it again."
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write JSON under a temporary name, then rename."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text under a temporary name, then rename."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def append_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append JSON objects, one a line, flushed to the disk; half a line that a crash left is cut off first."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        _cut_half_line(file)
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())
    note(path, grows=True)


def _cut_half_line(file: BinaryIO) -> None:
    """Truncate a file to its last newline, reading backwards from the end."""
    end = place = file.seek(0, os.SEEK_END)
    while place > 0:
        start = max(0, place - 65536)
        file.seek(start)
        found = file.read(place - start).rfind(b"\n")
        if found >= 0:
            place = start + found + 1
            break
        place = start
    if place < end:
        file.truncate(place)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file; half a last line that a crash left is not counted."""
    lines = path.read_text(encoding="utf-8").split("\n")
    rows = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number} is not JSON ({error}); mend or remove that line.") from error
    return rows


def pipeline_files(folder: Path) -> list[Path]:
    """The files of a diffusers folder that its pipeline needs, relative to it: model_index.json and its components'."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    components = sorted(name for name in index if not name.startswith("_") and (folder / name).is_dir())
    files = [path for name in components for path in sorted((folder / name).rglob("*")) if path.is_file()]
    kept = [path for path in files if path.suffix not in SKIPPED_SUFFIXES]
    return [path.relative_to(folder) for path in [folder / "model_index.json", *kept]]


def file_sha256(path: Path) -> str:
    """sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_hash(folder: Path, variant: str | None = None) -> str:
    """sha256 over the names and bytes of a pipeline folder's files and the variant: what its pictures depend on."""
    digest = hashlib.sha256(f"variant {variant}\n".encode() if variant else b"")
    for path in pipeline_files(folder):
        digest.update(path.as_posix().encode())
        digest.update(bytes.fromhex(file_sha256(folder / path)))
    return digest.hexdigest()


def weights_hash(weights: "nn.Module | Iterable[tuple[str, Tensor]]", dtype: "torch.dtype | None" = None) -> str:
    """sha256 over the names, shapes and bytes of weights cast to `dtype`, by default float32."""
    import torch

    dtype = dtype or torch.float32
    named = sorted(weights.named_parameters() if isinstance(weights, torch.nn.Module) else weights)
    digest = hashlib.sha256()
    for name, tensor in named:
        digest.update(f"{name}:{tuple(tensor.shape)}".encode())
        raw = tensor.detach().to("cpu", dtype).contiguous().view(torch.uint8)
        digest.update(raw.reshape(-1).numpy().data)
    return digest.hexdigest()
