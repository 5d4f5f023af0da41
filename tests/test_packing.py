"""Contract: a mask survives its encodings bit for bit; damage is refused; a saved file is whole or absent.

Bits take one bit a weight, gaps far less where few weights are set, and `encode_mask` never takes more than bits.
"""

import errno
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from erase.files import atomic_save, read_safetensors
from erase.saliency.packing import decode_gaps, decode_mask, encode_gaps, encode_mask, pack_bits, unpack_bits

SHAPES = [(), (1,), (7,), (8,), (3, 5), (4, 3, 3, 3), (0,), (2, 0, 3)]


def random_mask(shape: tuple[int, ...], density: float, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("density", [0.0, 0.01, 0.3, 1.0])
def test_every_encoding_round_trips(shape: tuple[int, ...], density: float) -> None:
    mask = random_mask(shape, density)
    assert torch.equal(unpack_bits(pack_bits(mask), shape), mask)
    assert torch.equal(decode_gaps(encode_gaps(mask), shape), mask)
    assert torch.equal(decode_mask(*encode_mask(mask), shape), mask)


@pytest.mark.parametrize("gap", [0, 1, 253, 254, 255, 256, 509, 510, 511, 70_000])
def test_gaps_around_the_escape_byte(gap: int) -> None:
    mask = torch.zeros(2 * gap + 3, dtype=torch.bool)
    mask[gap] = mask[2 * gap + 1] = True
    code = encode_gaps(mask)
    assert code.tolist() == 2 * ([255] * (gap // 255) + [gap % 255])
    assert torch.equal(decode_gaps(code, mask.shape), mask)


def test_encoding_follows_flat_order_of_a_strided_mask() -> None:
    mask = random_mask((6, 5, 3, 3), 0.3)
    strided = mask.contiguous(memory_format=torch.channels_last)
    assert torch.equal(pack_bits(strided), pack_bits(mask))
    assert torch.equal(encode_gaps(strided), encode_gaps(mask))


def test_the_smaller_encoding_is_chosen() -> None:
    sparse, dense = random_mask((100_000,), 0.005), random_mask((100_000,), 0.5)
    assert encode_mask(sparse)[0] == "gaps"
    assert encode_mask(dense)[0] == "bits"
    assert encode_mask(sparse)[1].numel() < 4 * sparse.numel() / 50
    assert encode_mask(dense)[1].numel() == 12_500


@pytest.mark.parametrize("density", [0.05, 0.1, 0.12, 0.125, 0.2])
def test_never_more_than_one_bit_a_weight(density: float) -> None:
    mask = random_mask((8000,), density)
    assert encode_mask(mask)[1].numel() <= 1000


@pytest.mark.parametrize(
    ("code", "message"),
    [([3, 255], "escape"), ([255, 0], "position 255"), ([10], "position 10"), ([0] * 11, "position 10")],
)
def test_corrupt_gap_codes_are_refused(code: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_gaps(torch.tensor(code, dtype=torch.uint8), (2, 5))


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="takes 2 bytes, got 1"):
        unpack_bits(torch.zeros(1, dtype=torch.uint8), (9,))
    with pytest.raises(ValueError, match="uint8 vector"):
        unpack_bits(torch.zeros(1), (8,))
    with pytest.raises(ValueError, match="torch.bool"):
        pack_bits(torch.zeros(3))
    with pytest.raises(ValueError, match="Unknown mask encoding 'runs'"):
        decode_mask("runs", torch.zeros(1, dtype=torch.uint8), (8,))


def test_atomic_save_round_trips_and_leaves_nothing_else(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).reshape(2, 3).T, "empty": torch.zeros(0, dtype=torch.uint8)}
    atomic_save(tensors, tmp_path / "new" / "file.safetensors", {"concept": "cat"})
    loaded, metadata = read_safetensors(tmp_path / "new" / "file.safetensors")
    assert torch.equal(loaded["a"], tensors["a"]) and loaded["empty"].shape == (0,)
    assert metadata == {"concept": "cat"}
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["file.safetensors"]


@pytest.mark.parametrize("kind", ["OSError", "SafetensorError"])
def test_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    path = tmp_path / "file.safetensors"
    atomic_save({"a": torch.ones(3)}, path)

    def full_disk(tensors: dict[str, Tensor], name: Path, metadata: dict[str, str]) -> None:
        Path(name).write_bytes(b"half")
        if kind == "OSError":
            raise OSError(errno.ENOSPC, "No space left on device")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", full_disk)
    with pytest.raises(OSError) as caught:
        atomic_save({"a": torch.zeros(3)}, path)
    assert caught.value.errno == errno.ENOSPC
    assert [p.name for p in tmp_path.iterdir()] == ["file.safetensors"]
    assert read_safetensors(path)[0]["a"].tolist() == [1, 1, 1]


def test_missing_truncated_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_safetensors(path)
    atomic_save({"a": torch.ones(1000)}, path)
    whole = path.read_bytes()
    for content in (whole[:-1], whole[:2000], whole[:20], whole[:3], b"", b"not safetensors at all"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a whole safetensors file"):
            read_safetensors(path)
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        read_safetensors(tmp_path)
