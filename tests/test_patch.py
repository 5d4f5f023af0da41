"""A patch is small, exact in both directions and in every precision, and refuses what it was not made for."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from erase.export.patch import apply_patch, load_patch, make_patch, remove_patch, save_patch


def build(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(300, 300), nn.LayerNorm(300), nn.Linear(300, 40))


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def erased_copy(density: float) -> nn.Sequential:
    module = build()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            chosen = torch.rand(parameter.shape, generator=generator) < density
            parameter[chosen] += torch.randn(parameter.shape, generator=generator)[chosen]
    return module


@pytest.fixture(params=[0.005, 0.3])
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, nn.Sequential]:
    erased = erased_copy(request.param)
    save_patch(make_patch(weights(build()), weights(erased), "unet", {"model": "toy"}), tmp_path / "patch.safetensors")
    return tmp_path / "patch.safetensors", erased


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_there_and_back_bit_for_bit(saved: tuple[Path, nn.Sequential], dtype: torch.dtype) -> None:
    path, erased = saved
    pipe = SimpleNamespace(unet=build().to(dtype))
    apply_patch(pipe, path)
    for name, weight in weights(erased).items():
        assert torch.equal(dict(pipe.unet.named_parameters())[name], weight.to(dtype)), name
    remove_patch(pipe)
    for name, weight in weights(build()).items():
        assert torch.equal(dict(pipe.unet.named_parameters())[name], weight.to(dtype)), name


def test_strength_interpolates_and_starts_from_the_base_each_time(saved: tuple[Path, nn.Sequential]) -> None:
    path, erased = saved
    pipe = SimpleNamespace(unet=build())
    for strength in (1.0, 0.25, 0.0):
        apply_patch(pipe, path, strength=strength)
        for name, new in weights(erased).items():
            old = weights(build())[name]
            found = dict(pipe.unet.named_parameters())[name].detach()
            torch.testing.assert_close(found, old + strength * (new - old), rtol=1e-6, atol=1e-6)
    assert torch.equal(pipe.unet[0].weight, build()[0].weight)


def test_size_follows_the_density(tmp_path: Path) -> None:
    total = sum(4 * p.numel() for p in build().parameters())
    for density, share in ((0.005, 0.012), (0.02, 0.04)):
        path = tmp_path / f"{density}.safetensors"
        save_patch(make_patch(weights(build()), weights(erased_copy(density)), "unet", {}), path)
        assert path.stat().st_size < share * total


def test_another_base_is_refused(saved: tuple[Path, nn.Sequential]) -> None:
    pipe = SimpleNamespace(unet=build(seed=5))
    before = weights(pipe.unet)
    with pytest.raises(ValueError, match="made for another base"):
        apply_patch(pipe, saved[0])
    assert all(torch.equal(before[name], p) for name, p in pipe.unet.named_parameters())


def test_a_pipeline_without_that_component_is_refused(saved: tuple[Path, nn.Sequential]) -> None:
    with pytest.raises(ValueError, match="has none"):
        apply_patch(SimpleNamespace(transformer=build()), saved[0])


def test_truncated_and_foreign_files_are_refused(saved: tuple[Path, nn.Sequential], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    saved[0].write_bytes(saved[0].read_bytes()[:-10])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_patch(saved[0])
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="not an erase patch"):
        load_patch(tmp_path / "other.safetensors")


def test_equal_weights_make_no_patch() -> None:
    with pytest.raises(ValueError, match="nothing was erased"):
        make_patch(weights(build()), weights(build()), "unet", {})
