"""The training loop: an objective, a mask and accelerate.

What a step sees is a function of (seed, step) alone: no sampler or RNG state has to survive, so a resumed run and a run
on two processes with half the batch each see the same rows, noise and timesteps.
"""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from diffusers.optimization import get_scheduler
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm.auto import tqdm

from ..config import EraseConfig
from ..data.training_data import LatentSet, TrainingData
from ..methods import METHODS
from ..models.base import Denoiser
from ..runtime.stopping import Stopped, deferred
from ..saliency.mask import SaliencyMask
from ..saliency.scopes import SCOPES
from .attention import cross_attention_maps
from .balance import bilevel, project
from .checkpoint import Checkpoint, TrainState, load_checkpoint, save_checkpoint
from .objectives import OBJECTIVES, Batch, Losses, Models
from .optim import MaskedAdamW, clip_grad_norm, proximal_quantile, proximal_step

logger = get_logger(__name__)


class TrainingDiverged(FloatingPointError):
    """A loss became NaN or infinite; the weights before that step are in the last checkpoint."""


def positions(step: int, count: int, n: int, seed: int) -> Tensor:
    """`count` row numbers below n for a step: consecutive pieces of one shuffle per epoch, each row once an epoch."""
    place = torch.arange(step * count, (step + 1) * count)
    order = {
        epoch: torch.randperm(n, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
        for epoch in (place // n).unique().tolist()
    }
    return torch.stack([order[p // n][p % n] for p in place.tolist()])


def step_batches(
    denoiser: Denoiser, data: TrainingData, config: EraseConfig, step: int, accelerator: Accelerator
) -> Iterator[Batch]:
    """This process's micro-batches of one optimiser step: slices of one global draw."""
    rows, micro = config.train_batch_size, config.gradient_accumulation_steps
    total = rows * micro * accelerator.num_processes
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    sets = [_forget_rows(data, config, step, total)]
    if data.retain is not None:
        sets.append(_retain_rows(data, data.retain, config, step, total))
    drawn = []
    for latents in (source.latents for source in sets):
        noise = torch.randn(latents.shape, generator=generator)
        drawn.append((noise, denoiser.sample_timesteps(total, generator)))
    for index in range(micro):
        first = (index * accelerator.num_processes + accelerator.process_index) * rows
        yield _batch(denoiser, data, sets, drawn, slice(first, first + rows))


def _retain_rows(data: TrainingData, source: LatentSet, config: EraseConfig, step: int, total: int) -> LatentSet:
    """Retained rows, some of them without their prompts."""
    retain = _take(source, positions(step, total, len(source.latents), config.seed + 2))
    dropped = evenly(config.retain_prompt_dropout, total)
    return replace(retain, prompts=torch.where(dropped, data.empty, retain.prompts))


def evenly(share: float, total: int) -> Tensor:
    """Bool (total,): `share` of the rows, spread over them."""
    return torch.tensor([math.floor((row + 1) * share) > math.floor(row * share) for row in range(total)])


def _take(source: LatentSet, index: Tensor) -> LatentSet:
    return LatentSet(
        latents=source.latents[index],
        prompts=source.prompts[index],
        anchors=source.anchors[index],
        timesteps=None if source.timesteps is None else source.timesteps[index],
    )


def _forget_rows(data: TrainingData, config: EraseConfig, step: int, total: int) -> LatentSet:
    """Concept rows, every so often one that starts from the anchor's picture, spread evenly over the batch."""
    sources = (data.forget, data.anchor)
    taken = [
        _take(source, positions(step, total, len(source.latents), config.seed + at))
        for at, source in enumerate(sources)
        if source is not None
    ]
    if len(taken) == 1:
        return taken[0]
    concept, anchor = taken
    chosen = evenly(config.anchor_image_fraction, total)
    both = {name: torch.where(chosen, getattr(anchor, name), getattr(concept, name)) for name in ("prompts", "anchors")}
    times = None
    if concept.timesteps is not None and anchor.timesteps is not None:
        times = torch.where(chosen, anchor.timesteps, concept.timesteps)
    return LatentSet(
        latents=torch.where(chosen[:, None, None, None], anchor.latents, concept.latents),
        timesteps=times,
        **both,
    )


def _batch(
    denoiser: Denoiser,
    data: TrainingData,
    sets: list[LatentSet],
    drawn: list[tuple[Tensor, Tensor]],
    rows: slice,
) -> Batch:
    device, forget = denoiser.device, sets[0]
    x, t, y = _noisy(denoiser, forget, *drawn[0], rows)
    # Without retained pictures the retain part is empty; an empty slice of the forget set has the right shapes.
    retain, kept = (sets[1], rows) if len(sets) > 1 else (forget, slice(0))
    retain_x, retain_t, retain_y = _noisy(denoiser, replace(retain, timesteps=None), *drawn[-1], kept)
    return Batch(
        forget_x=x,
        forget_t=t,
        forget_y=None if forget.timesteps is not None else y,
        concept=data.prompt(forget.prompts[rows], device),
        anchor=data.prompt(forget.anchors[rows], device),
        empty=data.prompt(torch.full_like(forget.prompts[rows], data.empty), device),
        tokens=None if data.tokens is None else data.tokens[forget.prompts[rows]].to(device),
        retain_x=retain_x,
        retain_t=retain_t,
        retain=data.prompt(retain.prompts[kept], device),
        retain_y=retain_y,
    )


def _noisy(
    denoiser: Denoiser, source: LatentSet, noise: Tensor, t: Tensor, rows: slice
) -> tuple[Tensor, Tensor, Tensor]:
    """x_t, t and the training target of some rows; latents of a trajectory are noisy as they are."""
    x0, noise, t = (tensor[rows].to(denoiser.device) for tensor in (source.latents, noise, t))
    if source.timesteps is not None:
        return x0, source.timesteps[rows].to(denoiser.device), noise
    return denoiser.add_noise(x0, noise, t), t, denoiser.target(x0, noise, t)


def attention_context(device: torch.device) -> AbstractContextManager[Any]:
    """Plain-matmul attention on a CPU, where the fused kernel's backward is many times slower; elsewhere SDPA's."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def enable_gradient_checkpointing(module: nn.Module) -> None:
    """diffusers' models and transformers' have another name for it."""
    names = ("enable_gradient_checkpointing", "gradient_checkpointing_enable")
    next(getattr(module, name) for name in names if hasattr(module, name))()


@dataclass
class Trainer:
    """State of one run: module, optimiser, schedule and the losses so far."""

    denoiser: Denoiser
    data: TrainingData
    mask: SaliencyMask
    config: EraseConfig
    accelerator: Accelerator
    identity: dict[str, str]
    """What a checkpoint must agree with before it may be resumed: hashes of base, mask, data and settings."""
    history: list[dict[str, float]] = field(default_factory=list)
    step: int = 0

    def __post_init__(self) -> None:
        config, module = self.config, self.denoiser.module
        self.base: nn.Module | None = None
        if "frozen" in (config.target, config.retain_target) or METHODS[config.method].proximal:
            self.base = copy.deepcopy(module).requires_grad_(False).eval()
        if config.gradient_checkpointing:
            enable_gradient_checkpointing(module)
        named, masks = dict(module.named_parameters()), self.mask.tensors
        if config.lora_rank:
            from .adapters import add_adapter  # peft takes two seconds to import

            named = add_adapter(module, config.lora_rank, SCOPES[config.scope], config.seed)
            masks = {name: torch.ones(p.shape, dtype=torch.bool) for name, p in named.items()}
        self.optimizer = MaskedAdamW(
            named.items(),
            masks,
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_epsilon,
            weight_decay=config.adam_weight_decay,
        )
        self.trainable = {name: p for name, p in named.items() if p.requires_grad}
        device = self.denoiser.device
        self.masks = {name: masks[name].to(device) for name in self.trainable}
        self.schedule = self._schedule_after(0)
        self.forward, self.prepared = self.accelerator.prepare(module, self.optimizer)

    @property
    def state(self) -> TrainState:
        """What a checkpoint holds."""
        return TrainState(
            trainable=self.trainable,
            masks=self.masks,
            optimizer=self.optimizer,
            identity=self.identity,
            scaler=self.accelerator.scaler,
        )

    def resume(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint of this very run; anything else is refused."""
        self.step, self.history = load_checkpoint(checkpoint, self.state)
        self.schedule = self._schedule_after(self.step)

    def _schedule_after(self, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
        return get_scheduler(
            self.config.lr_scheduler,
            self.optimizer,
            num_warmup_steps=self.config.lr_warmup_steps,
            num_training_steps=self.config.max_train_steps,
            last_epoch=steps - 1,
        )

    def save(self) -> None:
        """Write checkpoint-{step} atomically and drop the oldest beyond the limit."""
        if self.accelerator.is_main_process:
            limit = self.config.checkpoints_total_limit
            save_checkpoint(self.config.output_dir, self.state, self.step, self.history, limit)
        self.accelerator.wait_for_everyone()

    def train(self) -> list[dict[str, float]]:
        """Run to `max_train_steps`; returns the losses of every step."""
        total = self.config.max_train_steps
        bar = tqdm(
            range(self.step, total), "erase", total, initial=self.step, disable=not self.accelerator.is_main_process
        )
        self.denoiser.module.train()
        with attention_context(self.denoiser.device), deferred() as asked:
            for _ in bar:
                losses = self._step()
                bar.set_postfix({key: f"{value:.4f}" for key, value in losses.items()})
                self.accelerator.log(losses, step=self.step)
                stop = self._stop(asked())
                # The last step too: what comes after it may be stopped as well.
                if stop or self.step % self.config.checkpointing_steps == 0 or self.step == total:
                    self.save()
                if stop:
                    raise stop
        self.denoiser.module.eval()
        if self.config.lora_rank:
            from .adapters import merge_adapter, save_adapter

            if self.accelerator.is_main_process:
                save_adapter(self.trainable, self.config.output_dir, self.denoiser.component)
            merge_adapter(self.denoiser.module)
        return self.history

    def _stop(self, asked: Stopped | None) -> Stopped | None:
        """What somebody stopped this process with, or any other: all of them stop after the same step."""
        if self.accelerator.num_processes == 1:
            return asked
        if asked:
            self.accelerator.set_trigger()
        return (asked or Stopped()) if self.accelerator.check_trigger() else None

    def _step(self) -> dict[str, float]:
        batches = list(step_batches(self.denoiser, self.data, self.config, self.step, self.accelerator))
        separate = self.config.balance != "sum"
        logged = self._balanced(batches) if separate else self._backward(batches, self._total)
        if separate:
            self._update()
        mean: Any = self.accelerator.reduce(logged, "mean")
        losses: dict[str, float] = dict(zip(("forget", "retain"), mean.tolist()))
        self.step += 1
        self.history.append({"step": self.step, **losses, "lr": float(self.schedule.get_last_lr()[0])})
        self.schedule.step()
        return losses

    def _total(self, losses: Losses) -> Tensor:
        return losses["forget"] + (self.config.alpha * losses["retain"] if "retain" in losses else 0)

    def _backward(self, batches: list[Batch], chosen: Callable[[Losses], Tensor], update: bool = True) -> Tensor:
        """Accumulate the gradient of what `chosen` makes of the losses; returns their means over the batches."""
        logged: list[Tensor] = []
        for batch in batches:
            with self.accelerator.accumulate(self.forward):
                with self.accelerator.autocast():
                    losses = OBJECTIVES[METHODS[self.config.method].objective](self.models, batch)
                logged.append(torch.stack([loss.detach() for loss in losses.values()]))
                self._refuse_divergence(logged[-1])
                self.accelerator.backward(chosen(losses))
                if update:
                    self._update()
        return torch.stack(logged).mean(0)

    def _balanced(self, batches: list[Batch]) -> Tensor:
        """Leave in `.grad` what the two losses' own gradients make together; each takes a forward of its own."""
        gradients = {}
        for key in ("forget", "retain"):
            logged = self._backward(batches, lambda losses, key=key: losses[key], update=False)
            gradients[key] = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in self.trainable.items()}
            gradients[key] = {name: gradient * self.masks[name] for name, gradient in gradients[key].items()}
            self.denoiser.module.zero_grad()
        forget, retain = gradients["forget"], gradients["retain"]
        joined = (
            bilevel(forget, retain, self.config.bilevel_eta)
            if self.config.balance == "bilevel"
            else project(forget, retain, self.config.alpha)
        )
        for name, parameter in self.trainable.items():
            parameter.grad = joined[name]
        return logged

    def _update(self) -> None:
        if self.accelerator.sync_gradients and self.config.max_grad_norm > 0:
            self.accelerator.unscale_gradients(self.prepared)
            clip_grad_norm(self.trainable.items(), self.masks, self.config.max_grad_norm)
        self.prepared.step()
        self.prepared.zero_grad()
        if self.accelerator.sync_gradients and METHODS[self.config.method].proximal:
            self._proximal_step()

    def _proximal_step(self) -> None:
        assert self.base is not None
        quantile = proximal_quantile(self.step, self.config.max_train_steps, self.config.soft_quantile)
        proximal_step(self.trainable, dict(self.base.named_parameters()), quantile, self.masks)

    @cached_property
    def models(self) -> Models:
        """Who predicts what, as the config says."""
        config, module = self.config, self.denoiser.module
        return Models(
            predict=partial(self.denoiser.predict, module=self.forward),
            teacher=partial(self.denoiser.predict, module=self.base if config.target == "frozen" else None),
            keeper=partial(self.denoiser.predict, module=self.base) if config.retain_target == "frozen" else None,
            negative_guidance=config.negative_guidance,
            attention_maps=partial(cross_attention_maps, getattr(self.denoiser.pipeline, "unet", module)),
        )

    def _refuse_divergence(self, losses: Tensor) -> None:
        finite: Any = self.accelerator.reduce(torch.isfinite(losses).all().float(), "sum")
        if finite.item() < self.accelerator.num_processes:
            self.save()
            raise TrainingDiverged(
                f"The loss became {losses.tolist()} at step {self.step}. The weights before it are kept in "
                f"{self.config.output_dir / f'checkpoint-{self.step}'}. Lower --learning_rate or --alpha, or try "
                "--mixed_precision no."
            )
