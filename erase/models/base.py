"""The denoiser contract: what the rest of the package may know of a diffusion model, whatever its family."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from ..methods import Scope
from ..runtime.progress import OnStep, step_callback
from .schedulers import set_scheduler
from .tokens import TextReader

Conditioning = dict[str, Tensor]
"""Keyword arguments of the denoiser, leading dimension B."""


def cat(*parts: Conditioning) -> Conditioning:
    """Concatenate conditionings along the batch."""
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def rows(conditioning: Conditioning, index: Tensor | slice) -> Conditioning:
    """Select batch rows of a conditioning."""
    return {key: value[index] for key, value in conditioning.items()}


class Denoiser(ABC):
    """A stock diffusers pipeline seen as one function `predict(x_t, t, conditioning)` in its native output space.

    A family overrides how prompts are encoded, how noise is mixed in, and how its network is called; nothing else.
    """

    component: ClassVar[str]
    """The pipeline's folder that holds the trained module: `unet`, `transformer` or `text_encoder`."""
    needed: ClassVar[tuple[str, ...]] = ()
    """Parts that predictions need besides it; `release` keeps them."""
    scopes: ClassVar[tuple[Scope, ...]] = ("full",)
    """What --scope may be for this family."""
    cross_attention: ClassVar[bool] = False
    """Whether the text comes in through cross-attention layers of its own."""
    load_kwargs: ClassVar[dict[str, Any]] = {}
    """Extra arguments of the pipeline's `from_pretrained`."""

    def __init__(self, pipeline: DiffusionPipeline, resolution: int | None = None):
        self.pipeline: Any = pipeline
        self.module: nn.Module = getattr(pipeline, self.component)
        native = self.sample_size * pipeline.vae_scale_factor  # type: ignore[attr-defined]
        self.resolution = resolution or native
        if self.resolution % pipeline.vae_scale_factor:  # type: ignore[attr-defined]
            raise ValueError(f"resolution must be a multiple of {pipeline.vae_scale_factor}, got {resolution}.")  # type: ignore[attr-defined]
        pipeline.set_progress_bar_config(disable=True)

    @property
    def sample_size(self) -> int:
        """Side of the latents that the model was trained on."""
        return self.module.config.sample_size  # type: ignore[return-value]

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @abstractmethod
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Prompts → conditioning with leading dimension `len(prompts)`; "" is the family's unconditional input."""

    def text_readers(self) -> list[TextReader]:
        """What reads a prompt: each of the pipeline's text encoders, while `release` has not dropped it."""
        parts = self.pipeline.components
        pairs = [(parts.get(f"tokenizer{n}"), parts.get(f"text_encoder{n}")) for n in ("", "_2", "_3")]
        return [TextReader(tokenizer=t, limit=t.model_max_length) for t, encoder in pairs if t and encoder]

    @abstractmethod
    def sample_timesteps(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw (n,) training timesteps in the family's own units, on the CPU."""

    @abstractmethod
    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t of clean latents x0 (B, C, h, w)."""

    @abstractmethod
    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network is trained to output at x_t: ε, v or flow velocity; shape of x0."""

    @abstractmethod
    def predict(self, x_t: Tensor, t: Tensor, conditioning: Conditioning, module: nn.Module | None = None) -> Tensor:
        """The network's output at (x_t, t), shape of x_t; `module` stands in for it (a wrapped or frozen one)."""

    @torch.no_grad()
    def sample_latents(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        steps: int,
        guidance_scale: float,
        solver: str = "default",
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Run the pipeline and return its final latents (B, C, h, w); row i starts from `seeds[i]`'s noise.

        `on_step` hears after each step which share of them is done.
        """
        return self._sample(prompts, seeds, steps, guidance_scale, solver, **step_callback(on_step))

    @torch.no_grad()
    def sample_trajectories(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        steps: int,
        guidance_scale: float,
        solver: str = "default",
        points: int = 10,
        on_step: OnStep | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Half-denoised latents (B, P, C, h, w) of `sample_latents` and their timesteps (B, P).

        Row i holds P of the steps between the first and the last, chosen by `seeds[i]`; P = min(points, steps − 1).
        """
        if steps < 2:
            raise ValueError(f"A trajectory has no half-denoised latents in {steps} step; give at least 2.")
        passed: list[Tensor] = []
        times: list[Tensor] = []

        def keep(pipe: Any, step: int, t: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
            if step + 1 < len(pipe.scheduler.timesteps):
                # Schedulers in units of σ hand the network a scaled input, which is what it is trained on.
                scaled = getattr(pipe.scheduler, "scale_model_input", lambda x, _: x)
                passed.append(scaled(state["latents"], pipe.scheduler.timesteps[step + 1]).float().cpu())
                times.append(pipe.scheduler.timesteps[step + 1].cpu())
            return {}

        self._sample(prompts, seeds, steps, guidance_scale, solver, **step_callback(on_step, keep))
        x, t = torch.stack(passed, 1), torch.stack(times)
        chosen = torch.stack(
            [
                torch.randperm(len(t), generator=torch.Generator().manual_seed(seed))[:points].sort().values
                for seed in seeds
            ]
        )
        return x[torch.arange(len(x))[:, None], chosen], t[chosen]

    def _sample(
        self, prompts: Sequence[str], seeds: Sequence[int], steps: int, guidance_scale: float, solver: str, **call: Any
    ) -> Tensor:
        stock = self.pipeline.scheduler
        set_scheduler(self.pipeline, solver)
        try:
            return self.pipeline(
                prompt=list(prompts),
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                num_inference_steps=steps,
                guidance_scale=guidance_scale,
                height=self.resolution,
                width=self.resolution,
                output_type="latent",
                **call,
            ).images.float()
        finally:
            self.pipeline.scheduler = stock

    @torch.no_grad()
    def encode_images(self, pictures: np.ndarray) -> Tensor:
        """uint8 pictures (B, H, W, 3) → latents (B, C, h, w): the posterior's mode, scaled for the denoiser."""
        vae = self.pipeline.vae
        x = torch.from_numpy(pictures).permute(0, 3, 1, 2).to(self.device, vae.dtype) / 127.5 - 1
        return (vae.encode(x).latent_dist.mode().float() - self._shift) * vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> np.ndarray:
        """Latents (B, C, h, w) → uint8 pictures (B, H, W, 3)."""
        vae = self.pipeline.vae
        x = vae.decode((latents / vae.config.scaling_factor + self._shift).to(vae.dtype)).sample.float()
        return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()

    @property
    def _shift(self) -> float:
        return getattr(self.pipeline.vae.config, "shift_factor", None) or 0.0

    def release(self) -> None:
        """Drop all but what predicts: prompts and pictures are encoded by now."""
        for name in self.pipeline.components:
            if name.startswith(("text_encoder", "vae", "image_encoder")) and name not in (self.component, *self.needed):
                setattr(self.pipeline, name, None)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
