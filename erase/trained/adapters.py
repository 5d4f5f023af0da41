"""Low-rank adapters: another parameterisation of a denoiser, whose weights W become W + B·A with W frozen (LoRA).

Built on peft's `inject_adapter_in_model` rather than on diffusers' `add_adapter`: it serves the models of diffusers and
of transformers alike and leaves no flags on them, so that folding the adapter in gives back a stock module.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from ..files import atomic_save

ADAPTER_FILE = "pytorch_lora_weights.safetensors"
"""The name that `pipe.load_lora_weights(folder)` looks for."""
ADAPTABLE = (nn.Linear, nn.Conv2d)
"""Layers that can carry an adapter; norms and embeddings stay as they are."""
_NAME = "default"


def add_adapter(module: nn.Module, rank: int, scope: Callable[[str], bool], seed: int = 0) -> dict[str, nn.Parameter]:
    """Give every linear and convolution layer in scope a low-rank term: W ← W + B·A (arXiv 2106.09685, α = rank).

    B starts at 0, so the module's output is bit for bit what it was; A is uniform in ±1/√fan_in. Everything else is
    frozen, biases included.

    Args:
        module: a UNet, a transformer or a text encoder, changed in place.
        rank: r ≥ 1 of A (r, in, …) and B (out, r, …); a convolution's A has its kernel, its B is 1×1.
        scope: which parameter names of the stock module may change; a layer is in by its `weight`.
        seed: of A. The same seed gives the same A on any device, and the global random state is left alone.

    Returns:
        The trainable parameters by their names in `module.named_parameters()`, in that order.

    Raises ValueError for rank < 1, a scope without such a layer, and a module that has an adapter already.
    """
    if rank < 1:
        raise ValueError(f"The rank of an adapter must be at least 1, got {rank}.")
    if _layers(module):
        raise ValueError(f"This {type(module).__name__} has an adapter already; call merge_adapter first.")
    # A pattern rather than a list, whose entries peft would also match as endings of longer names.
    targets = "|".join(map(re.escape, _targets(module, scope)))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets), module, _NAME)
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


@contextmanager
def without_adapter(module: nn.Module) -> Iterator[None]:
    """The module as it was before `add_adapter`, for the block: the frozen base at no memory of its own."""
    layers = _layers(module).values()
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def merge_adapter(module: nn.Module) -> None:
    """Fold the adapter into the weights, W ← W + B·A, and take every wrapper away: a stock module again, in place.

    Names, shapes and types are those before `add_adapter`; all parameters stay frozen. Raises ValueError when there is
    no adapter or when its weights are not finite.
    """
    layers = _layers(module)
    if not layers:
        raise ValueError(f"This {type(module).__name__} has no adapter to merge; call add_adapter first.")
    for layer in layers.values():
        layer.merge(safe_merge=True)
    for name, layer in layers.items():
        module.set_submodule(name, layer.get_base_layer())
    del module.peft_config


def save_adapter(tensors: Mapping[str, Tensor], folder: Path, component: str) -> Path:
    """Write an adapter as `pipe.load_lora_weights(folder)` of the stock pipeline reads it; returns the file.

    Args:
        tensors: what `add_adapter` returned, trained; merging the adapter first or later makes no difference.
        folder: where `pytorch_lora_weights.safetensors` goes; the file is whole or absent.
        component: the pipeline's part that the adapter belongs to, such as `unet` or `transformer`.
    """
    stock = {name.replace(f".{_NAME}.", "."): tensor.detach() for name, tensor in tensors.items()}
    rank = next(len(tensor) for name, tensor in stock.items() if ".lora_A." in name)
    layers = sorted({name.partition(".lora_")[0] for name in stock})
    # Only what LoraConfig cannot do without: another release of peft refuses fields that it does not know.
    config = {f"{component}.r": rank, f"{component}.lora_alpha": rank, f"{component}.target_modules": layers}
    named = {f"{component}.{name}": tensor for name, tensor in stock.items()}
    atomic_save(named, folder / ADAPTER_FILE, {"format": "pt", "lora_adapter_metadata": json.dumps(config)})
    return folder / ADAPTER_FILE


def _layers(module: nn.Module) -> dict[str, LoraLayer]:
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, LoraLayer)}


def _targets(module: nn.Module, scope: Callable[[str], bool]) -> list[str]:
    """Names of the layers that the adapter goes to; ValueError when there are none."""
    able = [name for name, layer in module.named_modules() if isinstance(layer, ADAPTABLE)]
    if chosen := [name for name in able if scope(f"{name}.weight")]:
        return chosen
    matched = sum(scope(name) for name, _ in module.named_parameters())
    raise ValueError(
        f"The scope holds {matched} parameters of this {type(module).__name__} but no linear or convolution layer's "
        f"weight, which is where an adapter goes. Choose one with layers such as {', '.join(able[:3])}, "
        "or train the weights themselves (lora_rank 0)."
    )
