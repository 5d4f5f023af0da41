"""Contract: an adapter is W + B·A on the layers in scope, starts as the identity and folds away without a trace.

Stock diffusers loads the saved file and draws what the merged model draws, in every family.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from drawing import TinyFolder
from erase.models.loading import Denoiser, load_denoiser
from erase.trained.adapters import ADAPTER_FILE, add_adapter, merge_adapter, save_adapter, without_adapter
from tiny import each_family

COMPONENTS = pytest.mark.parametrize(
    ("family", "component"),
    [("sd1", "unet"), ("sd2", "unet"), ("sdxl", "unet"), ("sd3", "transformer"), ("sd1", "text_encoder")],
)


def everything(name: str) -> bool:
    return True


def attention_only(name: str) -> bool:
    return ".attn" in name


def load(folder: Path) -> Any:
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def latents(pipe: Any) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return pipe("a cat", num_inference_steps=2, generator=generator, output_type="latent").images


def stir(adapter: dict[str, nn.Parameter], scale: float = 0.2) -> None:
    """Some adapter that training could have led to."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter.values():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=scale)


def prediction(denoiser: Denoiser) -> Tensor:
    """The denoiser's output for "a cat" at a fixed x_t."""
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    t = denoiser.sample_timesteps(1, torch.Generator().manual_seed(0))
    with torch.no_grad():
        conditioning = denoiser.encode(["a cat"])
    return denoiser.predict(x, t, conditioning)


def described(module: nn.Module) -> dict[str, Any]:
    tensors = {name: (tensor.shape, tensor.dtype) for name, tensor in module.state_dict().items()}
    return (
        tensors
        | {f"class of {name}": type(child) for name, child in module.named_modules()}
        | {"is": set(vars(module))}
    )


@each_family
def test_starts_as_the_identity_with_only_the_adapter_trainable(tiny: TinyFolder, family: str) -> None:
    denoiser = load_denoiser(str(tiny(family)))
    before = prediction(denoiser).detach()
    adapter = add_adapter(denoiser.module, 3, everything, seed=0)
    assert torch.equal(prediction(denoiser), before)
    named = dict(denoiser.module.named_parameters())
    assert [name for name, p in named.items() if p.requires_grad] == list(adapter)
    assert all(named[name] is parameter for name, parameter in adapter.items())
    for name, parameter in adapter.items():
        assert parameter.any() == (".lora_A." in name)
        assert parameter.shape[0 if ".lora_A." in name else 1] == 3


@COMPONENTS
def test_stock_pipeline_loads_the_file_and_draws_what_the_merged_model_draws(
    tiny: TinyFolder, tmp_path: Path, family: str, component: str
) -> None:
    pipe, stock = load(tiny(family)), load(tiny(family))
    base = latents(stock)
    adapter = add_adapter(getattr(pipe, component), 2, everything, seed=0)
    stir(adapter)
    adapted = latents(pipe)
    assert save_adapter(adapter, tmp_path, component) == tmp_path / "pytorch_lora_weights.safetensors"
    merge_adapter(getattr(pipe, component))
    merged = latents(pipe)
    stock.load_lora_weights(tmp_path)
    loaded = latents(stock)
    difference = (merged - base).abs().max()
    assert difference > 0.1
    for other in (adapted, loaded):
        assert (merged - other).abs().max() < 1e-4 * difference
    stock.unload_lora_weights()
    assert torch.equal(latents(stock), base)


@each_family
def test_merging_leaves_a_stock_module(tiny: TinyFolder, tmp_path: Path, family: str) -> None:
    denoiser = load_denoiser(str(tiny(family)))
    module: Any = denoiser.module
    before, parameters = described(module), dict(module.named_parameters())
    stir(add_adapter(module, 2, everything, seed=0))
    adapted = prediction(denoiser).detach()
    merge_adapter(module)
    assert described(module) == before
    assert all(parameters[name] is parameter for name, parameter in module.named_parameters())
    torch.testing.assert_close(prediction(denoiser), adapted, rtol=1e-3, atol=1e-3 * adapted.abs().max().item())
    module.save_pretrained(tmp_path / "merged")
    again = type(module).from_pretrained(tmp_path / "merged")
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, module.state_dict()[name])


def test_merged_weights_are_the_formula_and_others_keep_their_bits(tiny: TinyFolder) -> None:
    module = load_denoiser(str(tiny("sd1"))).module.double()
    base = {name: tensor.clone() for name, tensor in module.state_dict().items()}

    def scope(name: str) -> bool:
        return ".resnets." in name or ".attn2." in name

    adapter = add_adapter(module, 2, scope, seed=0)
    stir(adapter)
    factors = {name.replace(".default.", "."): p.detach().clone() for name, p in adapter.items()}
    merge_adapter(module)
    changed = {name.rpartition(".lora_")[0] + ".weight" for name in factors}
    assert {name for name in base if not torch.equal(module.state_dict()[name], base[name])} == changed
    assert changed == {name for name in base if scope(name) and name.endswith(".weight") and "norm" not in name}
    assert any(base[name].dim() == 4 for name in changed) and any(base[name].dim() == 2 for name in changed)
    for name in changed:
        a, b = (factors[name.removesuffix("weight") + f"lora_{factor}.weight"] for factor in "AB")
        product = torch.einsum("or,ri->oi", b.flatten(1), a.flatten(1)).reshape(base[name].shape)
        torch.testing.assert_close(module.state_dict()[name], base[name] + product, rtol=1e-12, atol=1e-12)


def test_training_fits_a_target_and_leaves_the_base_alone(tiny: TinyFolder) -> None:
    denoiser = load_denoiser(str(tiny("sd1")))
    base = {name: tensor.clone() for name, tensor in denoiser.module.state_dict().items()}
    adapter = add_adapter(denoiser.module, 2, everything, seed=0)
    optimizer = torch.optim.AdamW(adapter.values(), lr=1e-2)
    target = 0.5 * prediction(denoiser).detach()
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = F.mse_loss(prediction(denoiser), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    frozen = {name.replace(".base_layer.", "."): tensor for name, tensor in denoiser.module.state_dict().items()}
    assert all(torch.equal(frozen[name], tensor) for name, tensor in base.items())


def test_without_adapter_is_the_base_and_training_goes_on_after_it(tiny: TinyFolder) -> None:
    denoiser = load_denoiser(str(tiny("sd1")))
    base = prediction(denoiser).detach()
    adapter = add_adapter(denoiser.module, 2, attention_only, seed=0)
    stir(adapter)
    adapted = prediction(denoiser)
    with torch.no_grad(), without_adapter(denoiser.module):
        assert torch.equal(prediction(denoiser), base)
    # A teacher may be asked between the student's forward and its backward.
    adapted.square().sum().backward()
    assert all(parameter.requires_grad and parameter.grad is not None for parameter in adapter.values())
    with pytest.raises(RuntimeError, match="stop"), without_adapter(denoiser.module):
        raise RuntimeError("stop")
    assert torch.equal(prediction(denoiser), adapted)


def test_seed_alone_decides_the_start(tiny: TinyFolder) -> None:
    def start(seed: int, disturb: int) -> dict[str, nn.Parameter]:
        torch.manual_seed(disturb)
        state = torch.get_rng_state()
        adapter = add_adapter(load_denoiser(str(tiny("sd1"))).module, 4, attention_only, seed)
        assert torch.equal(torch.get_rng_state(), state)
        return adapter

    first, again, other = start(5, disturb=1), start(5, disturb=2), start(6, disturb=1)
    assert list(first) == list(again)
    for name, parameter in first.items():
        assert torch.equal(parameter, again[name])
        if ".lora_A." in name:
            assert not torch.equal(parameter, other[name])
            assert parameter.abs().max() <= parameter[0].numel() ** -0.5


def test_scope_is_by_whole_names() -> None:
    """peft takes the names of a list as endings too; here `1` must not bring `0.1` along."""
    module = nn.Sequential(nn.Sequential(nn.Identity(), nn.Linear(2, 2)), nn.Linear(2, 2))
    adapter = add_adapter(module, 1, lambda name: name == "1.weight", seed=0)
    assert list(adapter) == ["1.lora_A.default.weight", "1.lora_B.default.weight"]


def test_file_holds_stock_names_and_its_rank(tiny: TinyFolder, tmp_path: Path) -> None:
    adapter = add_adapter(load_denoiser(str(tiny("sd1"))).module, 2, attention_only, seed=0)
    with safe_open(save_adapter(adapter, tmp_path / "new", "unet"), "pt") as file:
        assert set(file.keys()) == {f"unet.{name.replace('.default', '')}" for name in adapter}
        assert '"unet.r": 2' in file.metadata()["lora_adapter_metadata"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == [ADAPTER_FILE]


@pytest.mark.parametrize("rank", [0, -1])
def test_rank_must_be_positive(rank: int) -> None:
    with pytest.raises(ValueError, match=f"at least 1, got {rank}"):
        add_adapter(nn.Sequential(nn.Linear(2, 2)), rank, everything, seed=0)


@pytest.mark.parametrize(
    ("scope", "matched"),
    [(lambda name: "norm" in name, r"\d\d"), (lambda name: name == "conv_in.bias", "1"), (str.istitle, "0")],
)
def test_scope_without_layers_is_refused(tiny: TinyFolder, scope: Callable[[str], bool], matched: str) -> None:
    module = load_denoiser(str(tiny("sd1"))).module
    before = described(module)
    with pytest.raises(ValueError, match=f"holds {matched} parameters of this UNet2DConditionModel.*such as conv_in, "):
        add_adapter(module, 2, scope, seed=0)
    assert described(module) == before


def test_second_adapter_and_missing_adapter_are_refused() -> None:
    module = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="no adapter to merge; call add_adapter first"):
        merge_adapter(module)
    add_adapter(module, 1, everything, seed=0)
    with pytest.raises(ValueError, match="an adapter already; call merge_adapter first"):
        add_adapter(module, 1, everything, seed=0)


def test_broken_adapter_is_not_merged() -> None:
    module = nn.Sequential(nn.Linear(3, 3))
    for parameter in add_adapter(module, 1, everything, seed=0).values():
        nn.init.constant_(parameter, float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        merge_adapter(module)
