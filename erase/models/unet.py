"""UNet families: Stable Diffusion 1.x (ε), 2.x (v) and SDXL, on DDPM's discrete timesteps 0 … 999."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from torch import Tensor, nn

from .base import Conditioning, Denoiser


class UNetDenoiser(Denoiser):
    """Stable Diffusion 1.x and 2.x: x_t = √ᾱ_t·x0 + √(1−ᾱ_t)·ε, predicting ε or v by the scheduler's config."""

    component = "unet"
    cross_attention = True
    scopes = (
        "full",
        "cross-attention",
        "cross-attention-kv",
        "self-attention",
        "all-but-cross-attention",
        "all-but-cross-attention-and-norms",
        "all-but-cross-attention-and-ends",
    )
    load_kwargs: ClassVar[dict[str, Any]] = {"safety_checker": None, "requires_safety_checker": False}

    def __init__(self, pipeline: DiffusionPipeline, resolution: int | None = None):
        super().__init__(pipeline, resolution)
        self._noise: Any = DDPMScheduler.from_config(self.pipeline.scheduler.config)

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        embeds, _ = self.pipeline.encode_prompt(list(prompts), self.device, 1, do_classifier_free_guidance=False)
        return {"encoder_hidden_states": embeds}

    def sample_timesteps(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.randint(self._noise.config.num_train_timesteps, (n,), generator=generator)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return self._noise.add_noise(x0, noise, t)

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        kind = self._noise.config.prediction_type
        if kind == "epsilon":
            return noise
        if kind == "v_prediction":
            return self._noise.get_velocity(x0, noise, t)
        raise ValueError(f"prediction_type must be epsilon or v_prediction, got {kind!r}.")

    def predict(self, x_t: Tensor, t: Tensor, conditioning: Conditioning, module: nn.Module | None = None) -> Tensor:
        return (module or self.module)(x_t, t, **conditioning, return_dict=False)[0]


class TextEncoderDenoiser(UNetDenoiser):
    """Stable Diffusion 1.x and 2.x with the text encoder as the trained module; its conditioning is token ids."""

    component = "text_encoder"
    needed = ("unet",)
    scopes = ("text-encoder",)

    def __init__(self, pipeline: DiffusionPipeline, resolution: int | None = None):
        self.unet: nn.Module = pipeline.unet.requires_grad_(False)  # type: ignore[attr-defined]
        super().__init__(pipeline, resolution)

    @property
    def sample_size(self) -> int:
        return self.pipeline.unet.config.sample_size

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        tokenizer = self.pipeline.tokenizer
        ids = tokenizer(list(prompts), padding="max_length", truncation=True, max_length=tokenizer.model_max_length)
        return {"input_ids": torch.tensor(ids["input_ids"], device=self.device)}

    def predict(self, x_t: Tensor, t: Tensor, conditioning: Conditioning, module: nn.Module | None = None) -> Tensor:
        hidden = (module or self.module)(input_ids=conditioning["input_ids"])[0]
        return self.unet(x_t, t, encoder_hidden_states=hidden, return_dict=False)[0]


class SDXLDenoiser(UNetDenoiser):
    """SDXL: two text encoders, pooled text and size conditioning beside the hidden states."""

    load_kwargs: ClassVar[dict[str, Any]] = {}

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        embeds, _, pooled, _ = self.pipeline.encode_prompt(
            list(prompts), device=self.device, do_classifier_free_guidance=False
        )
        if self.pipeline.config.force_zeros_for_empty_prompt:
            named = torch.tensor([bool(prompt) for prompt in prompts], device=embeds.device)
            embeds, pooled = embeds * named[:, None, None], pooled * named[:, None]
        side = self.resolution
        size = torch.tensor([[side, side, 0, 0, side, side]], dtype=embeds.dtype, device=embeds.device)
        return {"encoder_hidden_states": embeds, "text_embeds": pooled, "time_ids": size.repeat(len(embeds), 1)}

    def predict(self, x_t: Tensor, t: Tensor, conditioning: Conditioning, module: nn.Module | None = None) -> Tensor:
        added = {key: conditioning[key] for key in ("text_embeds", "time_ids")}
        hidden = conditioning["encoder_hidden_states"]
        return (module or self.module)(x_t, t, hidden, added_cond_kwargs=added, return_dict=False)[0]
