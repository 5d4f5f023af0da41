"""Which parameters of a module a scope names. Scopes and masks compose: a mask chooses within its scope."""

from collections.abc import Callable

from .methods import Scope

SCOPES: dict[Scope, Callable[[str], bool]] = {
    "full": lambda name: True,
    "cross-attention": lambda name: ".attn2." in name,
    "cross-attention-kv": lambda name: ".attn2.to_k." in name or ".attn2.to_v." in name,
    "self-attention": lambda name: ".attn1." in name,
    "all-but-cross-attention": lambda name: ".attn2." not in name,
    # The text encoder is a module of its own, and all of it is meant.
    "text-encoder": lambda name: True,
}
"""Scope → whether a parameter of the trained module, by its name in diffusers, belongs to it."""
