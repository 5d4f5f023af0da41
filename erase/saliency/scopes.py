"""Which parameters of a module a scope names. Scopes and masks compose: a mask chooses within its scope."""

from collections.abc import Callable

from ..methods import Scope

ENDS = ("time_embedding", "conv_norm_out", "conv_out")
"""Layers of a UNet before its first block and after its last, but for the convolution that takes the latents in."""


def _layer(name: str) -> str:
    """Name of the layer that a parameter belongs to: `norm1` of `down_blocks.0.resnets.0.norm1.weight`."""
    return name.rpartition(".")[0].rpartition(".")[2]


SCOPES: dict[Scope, Callable[[str], bool]] = {
    "full": lambda name: True,
    "cross-attention": lambda name: ".attn2." in name,
    "cross-attention-kv": lambda name: ".attn2.to_k." in name or ".attn2.to_v." in name,
    "self-attention": lambda name: ".attn1." in name,
    "all-but-cross-attention": lambda name: ".attn2." not in name,
    # ESD-u: what the authors' current code trains (Linear and Conv2d layers), and what their first code trained.
    "all-but-cross-attention-and-norms": lambda name: ".attn2." not in name and "norm" not in _layer(name),
    "all-but-cross-attention-and-ends": lambda name: ".attn2." not in name and name.split(".")[0] not in ENDS,
    # The text encoder is a module of its own, and all of it is meant.
    "text-encoder": lambda name: True,
}
"""Scope → whether a parameter of the trained module, by its name in diffusers, belongs to it."""
