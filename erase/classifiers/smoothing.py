"""What a model would say of an example that it had never seen: the targets of `salun-smoothed`.

A network that knows an example by heart is surer of it than of its surroundings. The mean of its answers around the
example is what generalisation alone would say, only never wrong; a model that was trained without the example also errs
on some, and those are the ones whose surroundings leave it unsure. Where a whole class is forgotten it would not even
know the name.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from .examples import Examples
from .training import predict


def smoothed_targets(
    model: nn.Module, examples: Examples, noise: float, copies: int, mistaken: float, generator: torch.Generator
) -> Tensor:
    """(N, classes) probabilities q = mean over ε ~ N(0, σ²) of softmax f(x + ε); the unsurest share named wrongly.

    noise: σ, in units of the network's inputs. copies: draws of ε for each example. mistaken: share in [0, 1] of the
    examples, those with the least q of their own class, whose own class and best other one change places where the own
    one is ahead; with 1, of a whole class, the own one has no part in q at all.
    """
    total = torch.zeros(())
    inputs = examples.batch(torch.arange(len(examples)), torch.device("cpu"))
    for _ in range(copies):
        noisy = inputs + noise * torch.randn(inputs.shape, generator=generator)
        total = total + predict(model, replace(examples, inputs=noisy, normalization=None)).softmax(1)
    q = total / copies
    return without_own(q, examples.labels) if mistaken == 1 else exchanged(q, examples.labels, round(mistaken * len(q)))


def without_own(q: Tensor, labels: Tensor) -> Tensor:
    """q (N, classes) given that the class is none of `labels` (N,): 0 there, the others in proportion."""
    # Of an example whose other classes are all 0 in floating point nothing is known: they are alike.
    others = (q + torch.finfo(q.dtype).tiny).scatter(1, labels[:, None], 0.0)
    return others / others.sum(1, keepdim=True)


def exchanged(q: Tensor, labels: Tensor, count: int) -> Tensor:
    """q (N, classes) in which the `count` rows with the least q of their label (N,) prefer another class."""
    own = q.gather(1, labels[:, None])
    rows = own.flatten().argsort()[:count]
    rows = rows[q[rows].argmax(1) == labels[rows]]
    other = q[rows].scatter(1, labels[rows, None], -1.0).argmax(1, keepdim=True)
    new = q.clone()
    new[rows] = q[rows].scatter(1, other, own[rows]).scatter(1, labels[rows, None], q[rows].gather(1, other))
    return new
