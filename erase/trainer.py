"""The training loop: an objective, a mask and accelerate.

What a step sees is a function of (seed, step) alone: no sampler or RNG state has to survive, so a resumed run and a run
on two processes with half the batch each see the same rows, noise and timesteps.
"""

import copy
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from diffusers.optimization import get_scheduler
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm.auto import tqdm

from .checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from .config import EraseConfig
from .data import LatentSet, TrainingData
from .models.base import Conditioning, Denoiser
from .objectives import Batch, salun
from .optim import MaskedAdamW, clip_grad_norm, proximal_quantile, proximal_step
from .saliency import SaliencyMask

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
    forget = _forget_rows(data, config, step, total)
    retain = _take(data.retain, positions(step, total, len(data.retain.latents), config.seed + 2))
    dropped = evenly(config.retain_prompt_dropout, total)
    retain = replace(retain, prompts=torch.where(dropped, data.empty, retain.prompts))
    drawn = []
    for latents in (forget.latents, retain.latents):
        noise = torch.randn(latents.shape, generator=generator)
        drawn.append((noise, denoiser.sample_timesteps(total, generator)))
    for index in range(micro):
        first = (index * accelerator.num_processes + accelerator.process_index) * rows
        yield _batch(denoiser, data, forget, retain, drawn, slice(first, first + rows))


def evenly(share: float, total: int) -> Tensor:
    """Bool (total,): `share` of the rows, spread over them."""
    return torch.tensor([math.floor((row + 1) * share) > math.floor(row * share) for row in range(total)])


def _take(source: LatentSet, index: Tensor) -> LatentSet:
    return LatentSet(latents=source.latents[index], prompts=source.prompts[index], anchors=source.anchors[index])


def _forget_rows(data: TrainingData, config: EraseConfig, step: int, total: int) -> LatentSet:
    """Concept rows, every so often one that starts from the anchor's picture, spread evenly over the batch."""
    concept = _take(data.concept, positions(step, total, len(data.concept.latents), config.seed))
    if data.anchor is None or config.anchor_image_fraction == 0:
        return concept
    anchor = _take(data.anchor, positions(step, total, len(data.anchor.latents), config.seed + 1))
    chosen = evenly(config.anchor_image_fraction, total)
    return LatentSet(
        latents=torch.where(chosen[:, None, None, None], anchor.latents, concept.latents),
        prompts=torch.where(chosen, anchor.prompts, concept.prompts),
        anchors=torch.where(chosen, anchor.anchors, concept.anchors),
    )


def _batch(
    denoiser: Denoiser,
    data: TrainingData,
    forget: LatentSet,
    retain: LatentSet,
    drawn: list[tuple[Tensor, Tensor]],
    rows: slice,
) -> Batch:
    device = denoiser.device
    (forget_noise, forget_t), (retain_noise, retain_t) = (
        (noise[rows].to(device), t[rows].to(device)) for noise, t in drawn
    )
    retain_x0 = retain.latents[rows].to(device)
    return Batch(
        forget_x=denoiser.add_noise(forget.latents[rows].to(device), forget_noise, forget_t),
        forget_t=forget_t,
        concept=data.prompt(forget.prompts[rows], device),
        anchor=data.prompt(forget.anchors[rows], device),
        retain_x=denoiser.add_noise(retain_x0, retain_noise, retain_t),
        retain_t=retain_t,
        retain=data.prompt(retain.prompts[rows], device),
        retain_y=denoiser.target(retain_x0, retain_noise, retain_t),
    )


def attention_context(device: torch.device) -> AbstractContextManager[Any]:
    """Plain-matmul attention on a CPU, where the fused kernel's backward is many times slower; elsewhere SDPA's."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


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
        if "frozen" in (config.target, config.retain_target) or config.method == "salun-soft":
            self.base = copy.deepcopy(module).requires_grad_(False).eval()
        if config.gradient_checkpointing:
            module.enable_gradient_checkpointing()  # type: ignore[operator]
        self.optimizer = MaskedAdamW(
            module.named_parameters(),
            self.mask.tensors,
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_epsilon,
            weight_decay=config.adam_weight_decay,
        )
        self.trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
        device = self.denoiser.device
        self.masks = {name: self.mask.tensors[name].to(device) for name in self.trainable}
        self.schedule = self._schedule_after(0)
        self.forward, self.prepared = self.accelerator.prepare(module, self.optimizer)

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of this very run; anything else is refused."""
        self.step, self.history = load_checkpoint(
            checkpoint, self.trainable, self.masks, self.optimizer, self.identity, self.accelerator.scaler
        )
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
            save_checkpoint(
                self.config.output_dir, self.step, self.history, self.trainable, self.masks, self.optimizer,
                self.identity, self.accelerator.scaler, self.config.checkpoints_total_limit,
            )  # fmt: skip
        self.accelerator.wait_for_everyone()

    def train(self) -> list[dict[str, float]]:
        """Run to `max_train_steps`; returns the losses of every step."""
        total = self.config.max_train_steps
        bar = tqdm(
            range(self.step, total), "erase", total, initial=self.step, disable=not self.accelerator.is_main_process
        )
        self.denoiser.module.train()
        with attention_context(self.denoiser.device):
            for _ in bar:
                losses = self._step()
                bar.set_postfix({key: f"{value:.4f}" for key, value in losses.items()})
                self.accelerator.log(losses, step=self.step)
                if self.step % self.config.checkpointing_steps == 0 and self.step < total:
                    self.save()
        self.denoiser.module.eval()
        return self.history

    def _step(self) -> dict[str, float]:
        logged: list[Tensor] = []
        teacher = self._frozen if self.config.target == "frozen" else self._current
        keeper = self._frozen if self.config.retain_target == "frozen" else None
        for batch in step_batches(self.denoiser, self.data, self.config, self.step, self.accelerator):
            with self.accelerator.accumulate(self.forward):
                with self.accelerator.autocast():
                    losses = salun(self._predict, teacher, batch, keeper)
                logged.append(torch.stack([losses["forget"].detach(), losses["retain"].detach()]))
                self._refuse_divergence(logged[-1])
                self.accelerator.backward(losses["forget"] + self.config.alpha * losses["retain"])
                self._update()
        mean: Any = self.accelerator.reduce(torch.stack(logged).mean(0), "mean")
        forget, retain = mean.tolist()
        self.step += 1
        record = {"step": self.step, "forget": forget, "retain": retain, "lr": self.schedule.get_last_lr()[0]}
        self.history.append(record)
        self.schedule.step()
        return {key: record[key] for key in ("forget", "retain")}

    def _update(self) -> None:
        if self.accelerator.sync_gradients and self.config.max_grad_norm > 0:
            self.accelerator.unscale_gradients(self.prepared)
            clip_grad_norm(self.trainable.items(), self.masks, self.config.max_grad_norm)
        self.prepared.step()
        self.prepared.zero_grad()
        if self.accelerator.sync_gradients and self.config.method == "salun-soft":
            self._proximal_step()

    def _proximal_step(self) -> None:
        assert self.base is not None
        quantile = proximal_quantile(self.step, self.config.max_train_steps, self.config.soft_quantile)
        proximal_step(self.trainable, dict(self.base.named_parameters()), quantile)

    def _predict(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        return self.denoiser.predict(x, t, conditioning, self.forward)

    def _current(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        return self.denoiser.predict(x, t, conditioning)

    def _frozen(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        return self.denoiser.predict(x, t, conditioning, self.base)

    def _refuse_divergence(self, losses: Tensor) -> None:
        finite: Any = self.accelerator.reduce(torch.isfinite(losses).all().float(), "sum")
        if finite.item() < self.accelerator.num_processes:
            self.save()
            raise TrainingDiverged(
                f"The loss became {losses.tolist()} at step {self.step}. The weights before it are kept in "
                f"{self.config.output_dir / f'checkpoint-{self.step}'}. Lower --learning_rate or --alpha, or try "
                "--mixed_precision no."
            )
