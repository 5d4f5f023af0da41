"""Cross-attention maps of a UNet and the loss that starves a concept's words of them: Forget-Me-Not (arXiv 2303.17591).

    A = softmax(q kᵀ / √d)    q = W_q h (queries: places of the picture), k = W_k c (keys: tokens of the prompt)

Maps are made from what the layers' own `to_q` and `to_k` return, caught by forward hooks: attention processors stay as
they are, and with them the network's output, bit for bit.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn


def attention_map(query: Tensor, key: Tensor, heads: int, scale: float) -> Tensor:
    """softmax(scale · q kᵀ) over the keys, head by head: (B, N, C), (B, T, C) → (B, heads, N, T), at least float32."""
    wide = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast(query.device.type, enabled=False):
        q, k = (x.to(wide).unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key))
        return (scale * q @ k.transpose(-1, -2)).softmax(-1)


def attention_loss(maps: Sequence[Tensor], tokens: Tensor) -> Tensor:
    """Mean over layers, rows, heads and queries of Σ_k A[·, k]² over the concept's tokens k (arXiv 2303.17591, alg. 1).

    Squares, rather than the 2-norm over all layers at once that the paper's code takes: the gradient has no pole at 0,
    and means make a layer count the same at any resolution, batch size and number of heads. Adam hardly sees the scale.

    Args:
        maps: one (B, heads, N, T) tensor a layer, from `cross_attention_maps`; N differs between layers.
        tokens: (B, T) bool, True at the concept's tokens of each row; T as in the maps.
    """
    shapes = {(len(each), each.shape[-1]) for each in maps}
    if shapes != {tuple(tokens.shape)}:
        raise ValueError(
            f"Expected maps of (rows, tokens) {tuple(tokens.shape)} as `tokens` has, got {sorted(shapes)}; give "
            "cross_attention_maps and `tokens` the same rows and positions, and run the model in its block once."
        )
    chosen = tokens[:, None, None].to(maps[0].device)
    return torch.stack([(each * chosen).square().sum(-1).mean() for each in maps]).mean()


@contextmanager
def cross_attention_maps(
    module: nn.Module, rows: slice = slice(None), positions: Tensor | None = None
) -> Iterator[list[Tensor]]:
    """A list that every forward of `module` inside the block fills with its maps, layer by layer, with their graph.

        with cross_attention_maps(unet, slice(0, F), positions) as maps:
            predict(x_t, t, conditioning)
        loss = attention_loss(maps, tokens[:, positions])

    Args:
        module: a UNet, with or without an adapter; pass the bare module where a wrapper is what is called.
        rows: the rows of the batch whose maps are wanted; no others are computed.
        positions: (K,) token positions to keep, all by default.

    Each map is (rows, heads, queries, positions) in float32, or float64 for a float64 model. The hooks are gone after
    the block. Raises ValueError for a model without cross-attention, and under gradient checkpointing, whose second
    forward comes only with the backward pass.
    """
    layers = cross_attention_layers(module)
    if getattr(module, "is_gradient_checkpointing", False):
        raise ValueError(
            "Cross-attention maps cannot be kept under gradient checkpointing, which discards them: turn "
            "--gradient_checkpointing off and lower --train_batch_size if memory is short."
        )
    maps: list[Tensor] = []
    recorders = [_Recorder(layer, rows, positions, maps) for layer in layers.values()]
    handles = [handle for recorder in recorders for handle in recorder.attach()]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()


def cross_attention_layers(module: nn.Module) -> dict[str, Attention]:
    """The cross-attention layers of a UNet (`attn2`) by name; ValueError, naming the class, where there are none."""
    layers = {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, Attention) and layer.is_cross_attention
    }
    if not layers:
        raise ValueError(
            f"{type(module).__name__} has no cross-attention layers; in a transformer such as Stable Diffusion 3's, "
            "words and picture attend to each other jointly. Losses on attention maps, such as forget-me-not's, need a "
            "UNet: Stable Diffusion 1.x, 2.x or SDXL. Methods such as salun, esd-x or leco work on any model."
        )
    return layers


@dataclass
class _Recorder:
    """Turns what one layer's projections return into a map."""

    layer: Attention
    rows: slice
    positions: Tensor | None
    maps: list[Tensor]
    query: Tensor | None = None

    def attach(self) -> list[Any]:
        return [
            self.layer.to_q.register_forward_hook(self._see_query),
            self.layer.to_k.register_forward_hook(self._see_key),  # type: ignore[union-attr]
        ]

    def _see_query(self, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        self.query = output[self.rows]

    def _see_key(self, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        assert self.query is not None  # every processor of diffusers projects queries before keys
        full = attention_map(self.query, output[self.rows], self.layer.heads, self.layer.scale)
        self.maps.append(full if self.positions is None else full[..., self.positions.to(full.device)])
        self.query = None
