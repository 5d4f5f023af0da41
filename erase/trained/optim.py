"""Updates of salient weights only: AdamW and SGD with compact state, gradient clipping, SalUn-soft's proximal step."""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from ..saliency.packing import pack_bits
from ..saliency.topk import kth_largest


class MaskedOptimizer(torch.optim.Optimizer):
    """An optimiser of the salient weights alone: decay and momentum too leave every other weight bit-equal.

    masks: name → bool tensor, as `SaliencyMask.tensors`; None trains everything. State exists for salient weights only,
    in float32 (float64 for float64 weights): vectors in flat order, or the parameter's shape where all is salient.
    A parameter with no salient weight leaves the optimiser and gets requires_grad = False.
    Raises ValueError when a mask is missing, has another shape, matches no parameter, or when nothing is left to train.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, Parameter]],
        masks: Mapping[str, Tensor] | None,
        defaults: dict[str, Any],
    ) -> None:
        named = dict(named_parameters)
        if masks is not None:
            _check_masks(named, masks)
        salient = {name: p for name, p in named.items() if masks is None or bool(masks[name].any())}
        if not salient:
            raise ValueError(
                f"None of the {len(named)} parameters has a salient weight: raise the density or check the scope."
            )
        for name, parameter in named.items():
            if name not in salient:
                parameter.requires_grad_(False)
        # In the group, so that it travels with the state: a state is of use only under the mask that it was made under.
        group = {"params": list(salient.values()), "mask_sha256": _fingerprint(salient, masks)}
        super().__init__([group], defaults)
        self._indices = {p: None if masks is None else _salient_indices(masks[name]) for name, p in salient.items()}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every salient weight that has a gradient; returns the closure's loss."""
        with torch.enable_grad():
            loss = closure() if closure else None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: Parameter, group: dict[str, Any]) -> None:
        """Gather the salient weights, let torch's own optimiser move them, scatter them back."""
        index = self._index_of(parameter)
        wide = torch.promote_types(parameter.dtype, torch.float32)
        weights, gradient = _gather(parameter, index, wide), _gather(parameter.grad, index, wide)
        self._move(weights, gradient, self.state[parameter], group)
        if weights is not parameter:
            _scatter(parameter, index, weights)

    def _move(self, weights: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        """One update of `weights` in place; `state` is empty at the first."""
        raise NotImplementedError

    def _index_of(self, parameter: Parameter) -> Tensor | None:
        """The parameter's indices on its device, moved once."""
        index = self._indices[parameter]
        if index is not None and index.device != parameter.device:
            index = self._indices[parameter] = index.to(parameter.device)
        return index

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but the moments keep their own dtype. Raises ValueError for a state made under another mask."""
        own, saved = (
            [g.get("mask_sha256") for g in groups] for groups in (self.param_groups, state_dict["param_groups"])
        )
        if own != saved:
            raise ValueError(
                "This optimiser state was made under another mask or for other parameters (mask_sha256 differs). "
                "Resume with the mask of the first run, or start afresh."
            )
        super().load_state_dict(state_dict)
        indices = [index for group in state_dict["param_groups"] for index in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for index, parameter in zip(indices, parameters, strict=True):
            # torch casts a state to its parameter's dtype, which would round float32 moments to bfloat16.
            for key, value in state_dict["state"].get(index, {}).items():
                self.state[parameter][key] = value.to(parameter.device, copy=True)


class MaskedAdamW(MaskedOptimizer):
    """AdamW (arXiv 1711.05101) on the salient weights alone; masks and errors as in `MaskedOptimizer`.

    w ← w − lr·λ·w;  m ← β₁m + (1−β₁)g;  v ← β₂v + (1−β₂)g²;  w ← w − lr·m̂ / (√v̂ + ε)
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, Parameter]],
        masks: Mapping[str, Tensor] | None,
        lr: float = 1e-5,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        if lr < 0 or eps < 0 or weight_decay < 0 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(
                f"Expected lr, eps, weight_decay ≥ 0 and betas in [0, 1); got lr={lr}, betas={betas}, eps={eps}, "
                f"weight_decay={weight_decay}."
            )
        super().__init__(named_parameters, masks, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def _move(self, weights: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=weights.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weights), torch.zeros_like(weights)
        moments = state["exp_avg"], state["exp_avg_sq"]
        # The fused kernel walks memory linearly: with unlike strides it would pair the wrong elements in silence.
        alike = len({tensor.stride() for tensor in (weights, gradient, *moments)}) == 1
        beta1, beta2 = group["betas"]
        adamw(
            [weights], [gradient], [moments[0]], [moments[1]], [], [state["step"]],
            foreach=False, fused=alike, amsgrad=False, maximize=False, beta1=beta1, beta2=beta2,
            lr=group["lr"], weight_decay=group["weight_decay"], eps=group["eps"],
        )  # fmt: skip


class MaskedSGD(MaskedOptimizer):
    """SGD with momentum and weight decay on the salient weights alone; masks and errors as in `MaskedOptimizer`.

    g ← g + λ·w;  b ← μ·b + g  (b = g at the first step);  w ← w − lr·b
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, Parameter]],
        masks: Mapping[str, Tensor] | None,
        lr: float = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        if lr < 0 or weight_decay < 0 or not 0 <= momentum < 1:
            raise ValueError(
                f"Expected lr, weight_decay ≥ 0 and momentum in [0, 1); got lr={lr}, momentum={momentum}, "
                f"weight_decay={weight_decay}."
            )
        super().__init__(named_parameters, masks, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    def _move(self, weights: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        buffers = [state.get("momentum_buffer")]
        sgd(
            [weights], [gradient], buffers, foreach=False, fused=False, lr=group["lr"], momentum=group["momentum"],
            weight_decay=group["weight_decay"], dampening=0.0, nesterov=False, maximize=False,
        )  # fmt: skip
        if buffers[0] is not None:
            state["momentum_buffer"] = buffers[0]


def clip_grad_norm(
    named_parameters: Iterable[tuple[str, Parameter]], masks: Mapping[str, Tensor] | None, max_norm: float
) -> Tensor:
    """Scale all gradients in place by min(1, max_norm / ‖g‖₂), the norm being over the salient weights alone.

    Returns ‖g‖₂ before the scaling, float32 (). Raises ValueError when there is no gradient.
    """
    gradients = {name: p.grad for name, p in named_parameters if p.grad is not None}
    if not gradients:
        raise ValueError("No parameter has a gradient, so there is nothing to clip: call backward first.")
    salient = (g if masks is None else g[masks[name].to(g.device)] for name, g in gradients.items())
    norms = [torch.linalg.vector_norm(kept.float()) for kept in salient]
    norm = torch.linalg.vector_norm(torch.stack([n.to(norms[0].device) for n in norms]))
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients.values():
        gradient.mul_(scale.to(gradient.device))
    return norm


class _Changes(Mapping[str, Tensor]):
    """|θ − θ_o| of the salient weights, made one tensor at a time so that the whole is never in memory."""

    def __init__(
        self, parameters: Mapping[str, Tensor], base: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None
    ) -> None:
        self.parameters, self.base, self.masks = parameters, base, masks

    def __getitem__(self, name: str) -> Tensor:
        change = _change(self.parameters[name], self.base[name]).abs_()
        return change if self.masks is None else change[self.masks[name].to(change.device)]

    def __iter__(self) -> Iterator[str]:
        return iter(self.parameters)

    def __len__(self) -> int:
        return len(self.parameters)


@torch.no_grad()
def proximal_step(
    parameters: Mapping[str, Tensor],
    base: Mapping[str, Tensor],
    quantile: float,
    masks: Mapping[str, Tensor] | None = None,
) -> float:
    """SalUn-soft's soft threshold in place: θ ← θ_o + sign(δ)·max(|δ| − γ, 0), δ = θ − θ_o (arXiv 2310.12508).

    γ: the smallest value that at least a share `quantile` (0..1) of all |δ| do not exceed; 0 at quantile 0. A weight
    with |δ| ≤ γ gets the base's bits back; with γ = 0 nothing changes. With masks, only salient weights count and move.
    Returns γ. Raises ValueError for a quantile out of range.
    """
    if not 0 <= quantile <= 1:
        raise ValueError(f"A quantile is a share in [0, 1], got {quantile}.")
    n = sum(p.numel() if masks is None else int(masks[name].sum()) for name, p in parameters.items())
    rank = math.ceil(quantile * n)
    gamma = kth_largest(_Changes(parameters, base, masks), n - rank + 1).value if rank else 0.0
    if gamma > 0:
        for name, parameter in parameters.items():
            _shrink(parameter, base[name], gamma, None if masks is None else masks[name])
    return gamma


def proximal_quantile(step: int, total: int, start: float) -> float:
    """q(step) = start · (1 − step / total): the quantile's linear way from `start` at step 0 to 0 at step `total`."""
    if total < 1 or not 0 <= step <= total:
        raise ValueError(f"Expected 0 ≤ step ≤ total and total ≥ 1, got step={step}, total={total}.")
    return start * (1 - step / total)


def _change(parameter: Tensor, base: Tensor) -> Tensor:
    """δ = θ − θ_o in float32 (float64 for float64 weights), on the parameter's device."""
    wide = torch.promote_types(parameter.dtype, torch.float32)
    return parameter.detach().to(wide) - base.to(parameter.device, wide)


def _shrink(parameter: Tensor, base: Tensor, gamma: float, mask: Tensor | None) -> None:
    """Move one tensor's changes towards the base by γ, and to the base's bits where they are no larger than that."""
    base = base.to(parameter.device)
    change = _change(parameter, base)
    shrunk = (base + change.sign() * (change.abs() - gamma)).to(parameter.dtype)
    moved = torch.where(change.abs() > gamma, shrunk, base.to(parameter.dtype))
    parameter.copy_(moved if mask is None else torch.where(mask.to(parameter.device), moved, parameter))


def _check_masks(named: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """ValueError unless every parameter has a mask of its shape and every mask with a salient weight a parameter."""
    for name, parameter in named.items():
        given = tuple(masks[name].shape) if name in masks else "absent"
        if given != tuple(parameter.shape):
            raise ValueError(
                f"The mask of {name!r} is {given}, expected {tuple(parameter.shape)}. Is it another model's mask?"
            )
    for name, mask in masks.items():
        if name not in named and bool(mask.any()):
            raise ValueError(
                f"The mask selects weights of {name!r}, which is not among the {len(named)} parameters given."
            )


def _fingerprint(salient: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None) -> str:
    """SHA-256 of the trained parameters' names, shapes and masks."""
    digest = hashlib.sha256()
    for name, parameter in salient.items():
        digest.update(f"{name} {tuple(parameter.shape)}\n".encode())
        if masks is not None and not bool(masks[name].all()):
            digest.update(pack_bits(masks[name]).numpy().tobytes())
    return digest.hexdigest()


def _salient_indices(mask: Tensor) -> Tensor | None:
    """Flat positions (n,) of the salient weights; None where all are.

    Found once: to search a bool mask at every step takes longer than the update. int32 where it suffices, so that a
    half-dense mask takes 2 bytes a weight.
    """
    if bool(mask.all()):
        return None
    return mask.flatten().nonzero().squeeze(1).to(torch.int32 if mask.numel() < 2**31 else torch.int64)


def _gather(tensor: Tensor | None, index: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The indexed elements as a vector, or the tensor itself."""
    assert tensor is not None
    return (tensor if index is None else tensor.reshape(-1).index_select(0, index)).to(dtype)


def _scatter(parameter: Tensor, index: Tensor | None, values: Tensor) -> None:
    """Write the indexed elements and no other."""
    if index is None:
        parameter.copy_(values)
        return
    flat = parameter.reshape(-1).scatter_(0, index.long(), values.to(parameter.dtype))
    if flat.data_ptr() != parameter.data_ptr():  # of a tensor that is not contiguous, reshape makes a copy
        parameter.copy_(flat.view(parameter.shape))
