"""Influence functions (Koh & Liang, arXiv 1703.04730) with the inverse of a Fisher matrix made of few examples.

The Fisher matrix weighs the gradient of every class's log-probability by that probability. For a linear softmax model
it is the Hessian exactly; the one of true labels alone vanishes where the training data are known by heart.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .examples import Examples
from .nets import logits_of


def influence(
    model: nn.Module, forget: Examples, sample: Examples, retained: int, damping: float, batch_size: int = 256
) -> dict[str, Tensor]:
    """(H + λI)⁻¹ Σ_f ∇ℓ / N for each parameter: how leaving out the forget set would move the weights.

    H: mean over `sample` of J ᵀ(diag p − ppᵀ) J, the Fisher matrix (and generalised Gauss–Newton); N: number of
    retained examples; λ: `damping`. By Woodbury's identity only a matrix of (examples · classes)² is inverted.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.enable_grad():
        total = _loss_gradient(model, named, forget, batch_size) / retained
        rows = fisher_rows(model, named, sample)
    moved = inverse_times(rows, total, damping)
    sizes = [p.numel() for p in named.values()]
    parts = dict(zip(named, moved.split(sizes)))
    return {n: parts[n].view_as(p).to(p.dtype) if n in parts else torch.zeros_like(p) for n, p in
            model.named_parameters()}  # fmt: skip


def _loss_gradient(model: nn.Module, named: dict[str, nn.Parameter], data: Examples, batch_size: int) -> Tensor:
    """(P,) Σ ∇CE over all examples."""
    first = next(iter(named.values()))
    device, total = first.device, first.new_zeros(sum(p.numel() for p in named.values()))
    for rows in torch.arange(len(data)).split(batch_size):
        logits = logits_of(model, data.batch(rows, device))
        loss = cross_entropy(logits, data.labels[rows].to(device), reduction="sum")
        total += _flat(torch.autograd.grad(loss, list(named.values()), allow_unused=True), named)
    return total


def fisher_rows(model: nn.Module, named: dict[str, nn.Parameter], sample: Examples) -> Tensor:
    """(n·classes, P) rows √(p_k / n) ∇log p_k, whose outer products sum to the Fisher matrix of n examples."""
    device, rows = next(model.parameters()).device, []
    for at in range(len(sample)):
        logs = logits_of(model, sample.batch(torch.tensor([at]), device))[0].log_softmax(0)
        each = torch.eye(len(logs), dtype=logs.dtype, device=device)
        gradients = torch.autograd.grad(logs, list(named.values()), each, is_grads_batched=True, allow_unused=True)
        filled = [g if g is not None else p.new_zeros(len(logs), *p.shape)
                  for g, p in zip(gradients, named.values())]  # fmt: skip
        weights = (logs.detach().exp() / len(sample)).sqrt()
        rows.append(weights[:, None] * torch.cat([gradient.flatten(1) for gradient in filled], dim=1))
    return torch.cat(rows)


def inverse_times(rows: Tensor, vector: Tensor, damping: float) -> Tensor:
    """(GᵀG + λI)⁻¹ v = (v − Gᵀ(GGᵀ + λI)⁻¹ G v) / λ for G (m, P) and v (P,), in float64 but for G itself."""
    gram = (rows @ rows.mT).double()
    inner = torch.linalg.solve(
        gram + damping * torch.eye(len(rows), dtype=gram.dtype, device=gram.device), (rows @ vector).double()
    )
    return ((vector.double() - rows.mT.double() @ inner) / damping).to(vector.dtype)


def _flat(gradients: tuple[Tensor | None, ...], named: dict[str, nn.Parameter]) -> Tensor:
    filled = (g if g is not None else torch.zeros_like(p) for g, p in zip(gradients, named.values()))
    return torch.cat([gradient.flatten() for gradient in filled])
