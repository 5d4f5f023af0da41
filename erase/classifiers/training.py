"""Ordinary training of a classifier, and the pieces that forgetting is made of: batches, descent, logits."""

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from ..saliency.scores import eval_mode
from ..trained.optim import MaskedSGD
from .examples import Examples
from .nets import logits_of
from .settings import TrainSettings

LabelledBatch = tuple[Tensor, Tensor]
EVALUATION_BATCH = 1000
SHORT = 10
"""Seconds after which training shows how far it is."""


def batches(
    examples: Examples, batch_size: int, generator: torch.Generator, device: torch.device, share: float = 1.0
) -> Iterator[LabelledBatch]:
    """One pass over a share of the examples in random order."""
    order = torch.randperm(len(examples), generator=generator)[: share_of(len(examples), share)]
    for rows in order.split(batch_size):
        yield examples.batch(rows, device, generator), examples.labels[rows].to(device)


def share_of(count: int, share: float) -> int:
    """At least one of `count` examples."""
    return max(1, round(share * count))


def descend(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Iterable[LabelledBatch],
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
    after: Callable[[], object] | None = None,
) -> None:
    """One step a batch down `loss(logits, labels)`; `after` runs after each."""
    for inputs, labels in data:
        optimizer.zero_grad(set_to_none=True)
        loss(logits_of(model, inputs), labels).backward()
        optimizer.step()
        if after:
            after()


def train(model: nn.Module, examples: Examples, settings: TrainSettings, seed: int) -> nn.Module:
    """Train in place from the weights that it has; returns the model, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = MaskedSGD(
        model.named_parameters(), None, settings.learning_rate, settings.momentum, settings.weight_decay
    )
    steps = settings.epochs * math.ceil(len(examples) / settings.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    device = next(model.parameters()).device
    model.train()
    for _ in tqdm(range(settings.epochs), desc="train", unit="epoch", leave=False, delay=SHORT):
        data = batches(examples, settings.batch_size, generator, device)
        descend(model, optimizer, data, after=schedule.step)
    return model.eval()


@torch.no_grad()
def predict(model: nn.Module, examples: Examples) -> Tensor:
    """(N, classes) logits on the CPU, in eval mode."""
    device, parts = next(model.parameters()).device, torch.arange(len(examples)).split(EVALUATION_BATCH)
    with eval_mode(model):
        return torch.cat([logits_of(model, examples.batch(rows, device)).float().cpu() for rows in parts])
