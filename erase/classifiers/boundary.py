"""Boundary unlearning (Chen et al., arXiv 2303.11570): a class more for the forgotten, or the nearest wrong one."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..saliency.scores import eval_mode
from .examples import Examples
from .nets import head_of, logits_of
from .training import EVALUATION_BATCH


def expanded(
    model: nn.Module, num_classes: int, masks: Mapping[str, Tensor] | None, seed: int
) -> tuple[nn.Module, dict[str, Tensor] | None]:
    """A copy whose last layer has one class more, drawn at random, and the masks for it: the new row may change."""
    model = copy.deepcopy(model)
    parent, name, head = head_of(model, num_classes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        wide = nn.Linear(head.in_features, num_classes + 1, bias=head.bias is not None).to(head.weight)
    with torch.no_grad():
        wide.weight[:num_classes] = head.weight
        if head.bias is not None:
            wide.bias[:num_classes] = head.bias
    setattr(parent, name, wide)
    if masks is None:
        return model, None
    shapes = {key: p.shape for key, p in model.named_parameters()}
    return model, {key: _with_row(mask) if mask.shape != shapes[key] else mask for key, mask in masks.items()}


def _with_row(mask: Tensor) -> Tensor:
    return torch.cat([mask, torch.ones_like(mask[:1])])


def narrowed(model: nn.Module, num_classes: int) -> nn.Module:
    """Drop the extra class again, in place."""
    parent, name, wide = head_of(model, num_classes + 1)
    head = nn.Linear(wide.in_features, num_classes, bias=wide.bias is not None).to(wide.weight)
    with torch.no_grad():
        head.weight.copy_(wide.weight[:num_classes])
        if head.bias is not None:
            head.bias.copy_(wide.bias[:num_classes])
    setattr(parent, name, head)
    return model


def nearest_wrong_labels(model: nn.Module, examples: Examples, epsilon: float) -> Tensor:
    """(N,) for each example the class, other than its own, that it is taken for after one FGSM step of length ε.

    x' = x + ε·sign(∇ₓ CE(f(x), y)); y' = argmax over the classes but y of f(x'). The model is left as it was.
    """
    device, found = next(model.parameters()).device, []
    with eval_mode(model):
        for rows in torch.arange(len(examples)).split(EVALUATION_BATCH):
            inputs, labels = examples.batch(rows, device).requires_grad_(), examples.labels[rows].to(device)
            (slope,) = torch.autograd.grad(cross_entropy(logits_of(model, inputs), labels), inputs)
            with torch.no_grad():
                logits = logits_of(model, inputs + epsilon * slope.sign())
                found.append(logits.scatter(1, labels[:, None], -torch.inf).argmax(1).cpu())
    return torch.cat(found)
