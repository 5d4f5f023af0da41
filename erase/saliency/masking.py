"""The mask that a run asks for by name: salient, random, none, or a file."""

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor, nn

from ..config import EraseConfig
from .mask import SaliencyMask

Scores = Callable[[], Mapping[str, Tensor]]
"""Makes the scores of a salient mask; called only where one is asked for."""


def build_mask(
    module: nn.Module, config: EraseConfig, metadata: Mapping[str, str], scope: Callable[[str], bool], scores: Scores
) -> SaliencyMask:
    """The mask that `config.mask` names, among the parameters in `scope`; `none` lets every weight in scope change.

    metadata: what the mask is made from, with `base_sha256`, which a mask from a file is compared with.
    """
    if config.mask == "none":
        mask = SaliencyMask.full(module, scope)
        return SaliencyMask(mask.tensors, {**metadata, **mask.metadata})
    if config.mask not in ("salient", "random"):
        mask = SaliencyMask.load(Path(config.mask))
        mask.check(module, metadata["base_sha256"])
        return mask
    if config.mask == "random":
        return SaliencyMask.random(module, density=config.density, seed=config.seed, scope=scope, metadata=metadata)
    return SaliencyMask.from_scores(scores(), density=config.density, metadata=metadata).covering(module)
