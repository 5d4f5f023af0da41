"""Multimodal diffusion transformers on rectified flow (arXiv 2403.03206): Stable Diffusion 3."""

import inspect
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from .base import Conditioning, Denoiser
from .tokens import TextReader


class SD3Denoiser(Denoiser):
    """SD3: x_t = (1−σ)·x0 + σ·ε with σ = t/1000, predicting the velocity ε − x0; t is a float in (0, 1000]."""

    component = "transformer"

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        embeds, _, pooled, _ = self.pipeline.encode_prompt(
            list(prompts), None, None, device=self.device, do_classifier_free_guidance=False
        )
        return {"encoder_hidden_states": embeds, "pooled_projections": pooled}

    def text_readers(self) -> list[TextReader]:
        """T5's part of the prompt is as long as the pipeline asks for, whatever its tokenizer says."""
        readers = super().text_readers()
        if self.pipeline.text_encoder_3 is not None:
            length = inspect.signature(self.pipeline.encode_prompt).parameters["max_sequence_length"].default
            readers[-1] = replace(readers[-1], limit=length)
        return readers

    def sample_timesteps(self, n: int, generator: torch.Generator) -> Tensor:
        """Logit-normal over the scheduler's shifted timesteps, as SD3 was trained (arXiv 2403.03206, eq. 19)."""
        position = torch.randn(n, generator=generator).sigmoid()
        count = self.pipeline.scheduler.config.num_train_timesteps
        sigma = 1 - (position * count).floor() / count
        shift = self.pipeline.scheduler.config.shift
        return count * shift * sigma / (1 + (shift - 1) * sigma)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        sigma = self._sigma(t, x0)
        return (1 - sigma) * x0 + sigma * noise

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return noise - x0

    def predict(self, x_t: Tensor, t: Tensor, conditioning: Conditioning, module: nn.Module | None = None) -> Tensor:
        return (module or self.module)(x_t, timestep=t, **conditioning, return_dict=False)[0]

    def _sigma(self, t: Tensor, like: Tensor) -> Tensor:
        sigma = t.to(like) / self.pipeline.scheduler.config.num_train_timesteps
        return sigma.reshape(-1, *[1] * (like.dim() - 1))
