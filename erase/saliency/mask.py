"""Which weights may change: the mask that the largest scores make, combined, saved and shown.

Nothing here knows of diffusion: only of modules, losses and masks.
"""

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from ..files import atomic_path, atomic_save, read_safetensors
from .layers import LayerDensity, block_of, grouped
from .packing import pack_bits, unpack_bits
from .topk import top_k

MASK_FORMAT = "erase.mask/1"


@dataclass(frozen=True)
class SaliencyMask:
    """Which weights may be trained: parameter name → bool tensor on the CPU, True where the weight is salient.

    metadata: what the mask was made from, such as `concept`, `score`, `base_sha256`; `scope` (JSON list of names) is
    there when only some of the parameters could be chosen, `score_share` when weights with a score were left out: how
    much of the scores' sum the salient weights hold, 0..1. AdamW moves every weight about equally, so a step's effect
    on the loss goes by that share of |g|, and the learning rate that suits a mask by its inverse
    (docs/methods/salun.md).
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_scores(
        cls,
        scores: Mapping[str, Tensor],
        *,
        density: float | None = None,
        threshold: float | None = None,
        scope: Callable[[str], bool] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> "SaliencyMask":
        """m = 1(score ≥ γ) (arXiv 2310.12508, eq. 4): γ is `threshold`, or such that exactly k are in.

        k = max(1, round(density · n)) with density in (0, 1], where n counts the weights of the parameters in `scope`
        (default all); the others are False throughout, and ties are cut by position. Raises ValueError unless exactly
        one of density and threshold is given, when one is out of range, or when nothing is selected.
        """
        if (density is None) == (threshold is None):
            raise ValueError(
                f"Give exactly one of density and threshold; got density={density}, threshold={threshold}."
            )
        within = {name: score for name, score in scores.items() if scope is None or scope(name)}
        if threshold is None:
            chosen = top_k(within, _count(density or 0.0, sum(score.numel() for score in within.values())))
        else:
            chosen = {name: (score >= threshold).cpu() for name, score in within.items()}
        if not any(bool(mask.any()) for mask in chosen.values()):
            raise ValueError(
                f"No weight has a score of {threshold} or more: lower the threshold, or ask for a density."
            )
        how = {"density": str(density)} if density is not None else {"threshold": str(threshold)}
        tensors = {n: chosen[n] if n in chosen else torch.zeros(s.shape, dtype=torch.bool) for n, s in scores.items()}
        share = _share_entry(within, chosen)
        return cls(tensors, {**_scope_entry(set(within), tensors), **how, **share, **(metadata or {})})

    @classmethod
    def random(
        cls,
        module: nn.Module,
        *,
        density: float,
        seed: int,
        scope: Callable[[str], bool] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> "SaliencyMask":
        """max(1, round(density · n)) weights, chosen uniformly from the n of the module (or of `scope`)."""
        shapes = {name: p.shape for name, p in module.named_parameters()}
        within = {name: shape for name, shape in shapes.items() if scope is None or scope(name)}
        count = _count(density, sum(shape.numel() for shape in within.values()))
        about = {"density": str(density), **(metadata or {})}
        return cls._random(shapes, set(within), count, seed, about)

    def shuffled(self, seed: int, scope: Callable[[str], bool] | None = None) -> "SaliencyMask":
        """As many salient weights, chosen uniformly from the parameters that this mask chose from (or `scope`)."""
        names = {name for name in self.tensors if scope(name)} if scope else self.scope
        about = {k: v for k, v in self.metadata.items() if k not in ("scope", "threshold", "score_share")}
        return self._random({n: mask.shape for n, mask in self.tensors.items()}, names, self.count, seed, about)

    @classmethod
    def _random(
        cls, shapes: Mapping[str, torch.Size], names: set[str], count: int, seed: int, about: Mapping[str, str]
    ) -> "SaliencyMask":
        chosen = _draw({name: shape for name, shape in shapes.items() if name in names}, count, seed)
        tensors = {n: chosen[n] if n in chosen else torch.zeros(shape, dtype=torch.bool) for n, shape in shapes.items()}
        return cls(tensors, {**about, **_scope_entry(names, tensors), "score": "random", "seed": str(seed)})

    @classmethod
    def full(cls, module: nn.Module, scope: Callable[[str], bool] | None = None) -> "SaliencyMask":
        """Every weight of the module, or of its parameters in `scope`; ValueError when there are none."""
        tensors = {
            name: torch.full(p.shape, scope is None or scope(name), dtype=torch.bool)
            for name, p in module.named_parameters()
        }
        chosen = {name for name, mask in tensors.items() if bool(mask.any())}
        if not chosen:
            raise ValueError(f"None of the {len(tensors)} parameters is in scope, so nothing could be trained.")
        return cls(tensors, {**_scope_entry(chosen, tensors), "density": "1.0", "score": "none"})

    @property
    def scope(self) -> set[str]:
        """Names of the parameters that could be chosen from."""
        return set(json.loads(self.metadata["scope"])) if "scope" in self.metadata else set(self.tensors)

    @property
    def count(self) -> int:
        """Number of salient weights."""
        return sum(int(mask.sum()) for mask in self.tensors.values())

    @property
    def density(self) -> float:
        """Salient weights among all weights, 0..1."""
        return LayerDensity("", self.count, sum(mask.numel() for mask in self.tensors.values())).density

    def __or__(self, other: "SaliencyMask") -> "SaliencyMask":
        return self._combine(other, torch.logical_or, self.scope | other.scope)

    def __and__(self, other: "SaliencyMask") -> "SaliencyMask":
        return self._combine(other, torch.logical_and, self.scope & other.scope)

    def _combine(
        self, other: "SaliencyMask", join: Callable[[Tensor, Tensor], Tensor], scope: set[str]
    ) -> "SaliencyMask":
        """Keeps the metadata on which both agree, and both concepts' names."""
        _same_shapes(other, {name: mask.shape for name, mask in self.tensors.items()}, "the first mask")
        _same_base(other, self.metadata.get("base_sha256"))
        tensors = {name: join(mask, other.tensors[name]) for name, mask in self.tensors.items()}
        own = ("scope", "density", "score_share")
        shared = {k: v for k, v in self.metadata.items() if other.metadata.get(k) == v and k not in own}
        concepts = dict.fromkeys(m.metadata["concept"] for m in (self, other) if "concept" in m.metadata)
        names = {"concept": ", ".join(concepts)} if concepts else {}
        return SaliencyMask(tensors, {**shared, **names, **_scope_entry(scope, tensors)})

    def covering(self, module: nn.Module) -> "SaliencyMask":
        """The same choice over all of the module's parameters: those that were not scored become all False."""
        own = {name: p.shape for name, p in module.named_parameters()}
        known = {name: shape for name, shape in own.items() if name in self.tensors}
        _same_shapes(self, known, "the module")
        tensors = {n: self.tensors[n] if n in known else torch.zeros(s, dtype=torch.bool) for n, s in own.items()}
        return SaliencyMask(tensors, {**self.metadata, **_scope_entry(self.scope, tensors)})

    def check(self, module: nn.Module, base_hash: str | None = None) -> None:
        """ValueError unless names and shapes are the module's, the base is the one scored, and a weight is selected.

        base_hash: SHA-256 of the base model, compared with the metadata's `base_sha256` when both are known.
        """
        _same_shapes(self, {name: p.shape for name, p in module.named_parameters()}, "the module")
        _same_base(self, base_hash)
        if not any(bool(mask.any()) for mask in self.tensors.values()):
            raise ValueError("The mask selects no weight, so nothing would be trained: raise the density.")

    def save(self, path: str | Path) -> None:
        """One bit a weight, in safetensors, with shapes and metadata in the header; the file is whole or absent."""
        shapes = json.dumps({name: list(mask.shape) for name, mask in self.tensors.items()})
        packed = {name: pack_bits(mask) for name, mask in self.tensors.items()}
        atomic_save(packed, path, {**self.metadata, "format": MASK_FORMAT, "shapes": shapes})

    @classmethod
    def load(cls, path: str | Path) -> "SaliencyMask":
        """Inverse of `save`. Raises FileNotFoundError, or ValueError for a file that is damaged or no mask."""
        packed, metadata = read_safetensors(path)
        if metadata.get("format") != MASK_FORMAT:
            raise ValueError(
                f"{path} is no saliency mask: its header says format {metadata.get('format')!r}, expected "
                f"{MASK_FORMAT!r}. Make one with `erase mask`."
            )
        shapes: dict[str, list[int]] = json.loads(metadata["shapes"])
        if set(shapes) != set(packed):
            raise ValueError(f"{path} is damaged: it describes {len(shapes)} parameters and holds {len(packed)}.")
        tensors = {name: unpack_bits(packed[name], shape) for name, shape in shapes.items()}
        return cls(tensors, {k: v for k, v in metadata.items() if k not in ("format", "shapes")})

    def summary(self) -> list[LayerDensity]:
        """Salient weights of each parameter, in the module's order."""
        return [LayerDensity(name, int(mask.sum()), mask.numel()) for name, mask in self.tensors.items()]

    def by_block(self) -> list[LayerDensity]:
        """Salient weights of each block (`down_blocks.0`, `mid_block`, `transformer_blocks.3`), in module order."""
        return grouped((block_of(layer.name), layer) for layer in self.summary())

    def table(self) -> str:
        """The blocks as a plain-text table; under it the salient weights' share of the score where it is known."""
        rows = [*self.by_block(), LayerDensity("all", self.count, sum(m.numel() for m in self.tensors.values()))]
        width = max(len(row.name) for row in rows)
        lines = [f"{r.name:<{width}}  {r.salient:>13,}  {r.total:>13,}  {100 * r.density:>8.3f} %" for r in rows]
        share = self.metadata.get("score_share")
        held = [f"The salient weights hold {100 * float(share):.1f} % of the score."] if share else []
        return "\n".join([f"{'block':<{width}}  {'salient':>13}  {'weights':>13}  {'density':>10}", *lines, *held])

    def plot(self, path: str | Path) -> None:
        """A bar for each block's density and a dot for each kind of layer inside it, as PNG, SVG or PDF by suffix."""
        from .plots import mask_figure  # matplotlib is needed nowhere else

        with atomic_path(path) as temporary:
            about = [self.metadata[key] for key in ("concept", "score") if key in self.metadata]
            mask_figure(self.summary(), about).savefig(temporary, dpi=150)


def _count(density: float, n: int) -> int:
    """k = max(1, round(density · n)); ValueError for a density outside (0, 1] or an empty scope."""
    if not 0 < density <= 1:
        raise ValueError(f"A density is a share in (0, 1], got {density}. For half of the weights say 0.5, not 50.")
    if not n:
        raise ValueError(
            "No parameter is in scope, so no weight can be chosen: compare the scope with the module's names."
        )
    return max(1, round(density * n))


def _scope_entry(names: set[str], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The metadata's `scope`, absent when it is every parameter."""
    return {} if names == set(tensors) else {"scope": json.dumps([name for name in tensors if name in names])}


def _share_entry(scores: Mapping[str, Tensor], chosen: Mapping[str, Tensor]) -> dict[str, str]:
    """The metadata's `score_share`, absent where no weight with a score was left out."""
    total = sum(float(score.sum(dtype=torch.float32)) for score in scores.values())
    held = sum(float(s.mul(chosen[n].to(s.device)).sum(dtype=torch.float32)) for n, s in scores.items())
    return {"score_share": f"{held / total:.4f}"} if held < total else {}


def _draw(shapes: Mapping[str, torch.Size], k: int, seed: int) -> dict[str, Tensor]:
    """k weights chosen uniformly from all subsets of that size, in the memory of the mask and one tensor.

    A coin for each weight comes out near k; the surplus or lack is then put right at uniformly chosen places. Given its
    size, a set of fair coins is uniform, and both steps treat all weights alike, so the result is uniform too.
    """
    n = sum(shape.numel() for shape in shapes.values())
    if k > n:
        raise ValueError(f"Cannot choose {k} random weights among the {n} in scope: widen the scope.")
    generator = torch.Generator().manual_seed(seed)
    masks = {name: torch.rand(shape, generator=generator) < k / max(n, 1) for name, shape in shapes.items()}
    count = sum(int(mask.sum()) for mask in masks.values())
    surplus = count > k
    ranks = torch.tensor(sorted(random.Random(seed).sample(range(count if surplus else n - count), abs(count - k))))
    start = 0
    for mask in masks.values():
        places = (mask.view(-1) == surplus).nonzero().view(-1)
        local = ranks[(ranks >= start) & (ranks < start + len(places))] - start
        mask.view(-1)[places[local.long()]] = not surplus
        start += len(places)
    return masks


def _same_shapes(mask: SaliencyMask, shapes: Mapping[str, torch.Size], owner: str) -> None:
    """ValueError at the first parameter whose presence or shape differs."""
    for name in [*shapes, *(name for name in mask.tensors if name not in shapes)]:
        own = tuple(mask.tensors[name].shape) if name in mask.tensors else None
        other = tuple(shapes[name]) if name in shapes else None
        if own != other:
            raise ValueError(
                f"This is a mask for another model: {name!r} is {_shown(own)} in the mask and {_shown(other)} in "
                f"{owner}. Make a mask for this model, or use `mask.covering(module)` if only some of its parameters "
                "were scored."
            )


def _shown(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else str(shape)


def _same_base(mask: SaliencyMask, base_hash: str | None) -> None:
    """ValueError when the mask was made from other weights; unknown hashes pass."""
    known = mask.metadata.get("base_sha256")
    if known and base_hash and known != base_hash:
        raise ValueError(
            f"This is a mask for another model: it was made from weights with SHA-256 {known[:12]}…, these have "
            f"{base_hash[:12]}…. Make the mask again from this base."
        )
