"""Erasure at inference time: a stock pipeline that is steered away from a concept while it draws, no weight changed.

A guard lives for one call of the pipeline: it changes the call's arguments or hooks the denoiser, and leaves nothing
behind. `negative-prompt` and `sld-*` act through classifier-free guidance, `safree` on the prompt's embeddings.
"""

import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from torch.nn import functional as F

Call = dict[str, Any]
"""Keyword arguments of a pipeline's call; `prompt` is a list of B prompts."""


class Guard(ABC):
    """A way to draw a prompt without a concept."""

    serves: ClassVar[tuple[str, ...]]
    """Pipeline classes that it works with."""
    needs_guidance: ClassVar[bool] = True
    """Whether it acts through classifier-free guidance, which a guidance_scale of 1 or less turns off."""

    @abstractmethod
    def drawing(self, pipe: Any, denoiser: nn.Module, words: str, call: Call) -> AbstractContextManager[Call]:
        """While it is open, calling `pipe` with what it gives draws the call's prompts without `words`."""

    def can_serve(self, pipeline: type[DiffusionPipeline]) -> bool:
        """Whether a pipeline of this class can draw under the guard."""
        return pipeline.__name__ in self.serves


class GuardedPipeline:
    """A stock pipeline, every call of which is guarded; for the rest it is that pipeline."""

    def __init__(self, pipe: Any, denoiser: nn.Module, name: str, words: str):
        self.pipe, self.denoiser, self.name, self.words = pipe, denoiser, name, words

    def __call__(self, *, prompt: list[str], guidance_scale: float, **others: Any) -> Any:
        check_guidance(self.name, guidance_scale, "the call")
        call = {"prompt": prompt, "guidance_scale": guidance_scale} | others
        with GUARDS[self.name].drawing(self.pipe, self.denoiser, self.words, call) as guarded:
            return self.pipe(**guarded)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pipe, name)


# Negative prompt


@dataclass(frozen=True, kw_only=True)
class NegativePrompt(Guard):
    """The concept's words in place of the empty prompt: f_S + s_g·(f_c − f_S)."""

    serves: ClassVar[tuple[str, ...]] = ("every pipeline with classifier-free guidance and a negative prompt",)

    def can_serve(self, pipeline: type[DiffusionPipeline]) -> bool:
        parameters = inspect.signature(pipeline.__call__).parameters
        # With a true_cfg_scale of its own, guidance_scale is an input of the network, and there is no second branch.
        return "negative_prompt" in parameters and "true_cfg_scale" not in parameters

    @contextmanager
    def drawing(self, pipe: Any, denoiser: nn.Module, words: str, call: Call) -> Iterator[Call]:
        yield call | {"negative_prompt": [words] * len(call["prompt"])}


# Safe latent diffusion


@dataclass(frozen=True, kw_only=True)
class SafeLatentDiffusion(Guard):
    """SLD (arXiv 2211.05105): a third branch, for the concept, whose direction is taken out of the guidance.

    The stock pipeline receives [f_∅, f_c − γ], so that its own guidance gives f_∅ + s_g·(f_c − f_∅ − γ).
    """

    serves: ClassVar[tuple[str, ...]] = (
        "StableDiffusionPipeline",
        "StableDiffusionXLPipeline",
        "StableDiffusion3Pipeline",
    )

    warmup_steps: int
    """Denoising steps before γ is subtracted; momentum gathers from the first step on."""
    scale: float
    """s_S: how soon μ reaches 1."""
    threshold: float
    """λ: where f_c − f_S is not below it, the picture is taken to be leaving the concept already."""
    momentum_scale: float
    """s_m: weight of ν in γ."""
    momentum_beta: float
    """β: share of ν that is kept from step to step."""

    @contextmanager
    def drawing(self, pipe: Any, denoiser: nn.Module, words: str, call: Call) -> Iterator[Call]:
        count = len(call["prompt"])
        concept = _encode(pipe, words)
        step, momentum = 0, torch.zeros(())

        def subtract(module: nn.Module, args: tuple[Any, ...], kwargs: Call, output: tuple[Tensor]) -> tuple[Tensor]:
            nonlocal step, momentum
            uncond, cond = output[0].chunk(2)
            # A forward of its own: in a batch of three, rounding would change the other two branches.
            away = module.forward(*_last(args, count), **_conditioned(_last(kwargs, count), *concept, count))[0]
            gamma, momentum = sld_guidance(uncond, cond, away, momentum.to(cond.device), self)
            if step >= self.warmup_steps:
                cond = (cond.float() - gamma).to(cond.dtype)
            step += 1
            return (torch.cat([uncond, cond]),)

        handle = denoiser.register_forward_hook(subtract, with_kwargs=True)
        try:
            yield call
        finally:
            handle.remove()


def sld_guidance(
    uncond: Tensor, cond: Tensor, concept: Tensor, momentum: Tensor, settings: SafeLatentDiffusion
) -> tuple[Tensor, Tensor]:
    """γ and the next ν of SLD (arXiv 2211.05105), in the denoiser's own output space, float32.

        μ = min(1, |s_S·(f_c − f_S)|) where f_c − f_S < λ, else 0
        γ = μ·(f_S − f_∅) + s_m·ν        ν ← β·ν + (1 − β)·γ

    `uncond`, `cond`, `concept`: f_∅, f_c, f_S (B, C, h, w); `momentum`: ν of the same shape, zero at the first step.
    """
    uncond, cond, concept = uncond.float(), cond.float(), concept.float()
    towards = cond - concept
    strength = torch.where(towards < settings.threshold, (settings.scale * towards).abs().clamp(max=1), 0)
    gamma = strength * (concept - uncond) + settings.momentum_scale * momentum
    return gamma, settings.momentum_beta * momentum + (1 - settings.momentum_beta) * gamma


def _encode(pipe: Any, words: str) -> tuple[Tensor, Tensor | None]:
    """Hidden states (1, L, D) of the concept's words and, where the family has it, their pooled embedding (1, P)."""
    others = {"prompt_2", "prompt_3"} & inspect.signature(pipe.encode_prompt).parameters.keys()
    encoded = pipe.encode_prompt(
        prompt=[words],
        device=pipe.device,
        num_images_per_prompt=1,
        do_classifier_free_guidance=False,
        **dict.fromkeys(others),
    )
    return encoded[0], encoded[2] if len(encoded) > 2 else None


def _last(values: Any, count: int) -> Any:
    """The last `count` rows (the prompts' half) of every tensor that has both halves."""
    if isinstance(values, Tensor):
        return values[-count:] if values.dim() and len(values) == 2 * count else values
    if isinstance(values, Mapping):
        return {name: _last(value, count) for name, value in values.items()}
    return tuple(_last(value, count) for value in values) if isinstance(values, tuple) else values


def _conditioned(kwargs: Call, hidden: Tensor, pooled: Tensor | None, count: int) -> Call:
    """The denoiser's arguments with the same conditioning (1, …) for all `count` rows."""
    changed = kwargs | {"encoder_hidden_states": hidden.expand(count, -1, -1)}
    if pooled is not None and "pooled_projections" in kwargs:
        changed["pooled_projections"] = pooled.expand(count, -1)
    elif pooled is not None:
        changed["added_cond_kwargs"] = kwargs["added_cond_kwargs"] | {"text_embeds": pooled.expand(count, -1)}
    return changed


# SAFREE


@dataclass(frozen=True, kw_only=True)
class Safree(Guard):
    """SAFREE (arXiv 2410.12761), its text side: trigger tokens leave the concept's subspace in the early steps."""

    serves: ClassVar[tuple[str, ...]] = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
    needs_guidance: ClassVar[bool] = False

    alpha: float = 0.01
    """α ≥ 0: how much farther from the concept than the others a prompt must be without a token for it to be one."""
    filter_steps: float = 10
    """γ: the self-validating filter works for between γ/2 and 0.88·γ of the first denoising steps."""

    @contextmanager
    def drawing(self, pipe: Any, denoiser: nn.Module, words: str, call: Call) -> Iterator[Call]:
        prompts = call["prompt"]
        with torch.no_grad(), torch.autocast(pipe.device.type, enabled=False):
            concept = [_sentence(pipe, phrase) for phrase in words.split(",") if phrase.strip()]
            masked = [_masked_sentences(pipe, prompt) for prompt in prompts]
        spans = [span(torch.cat(parts)) for parts in zip(*concept)]
        plans: list[tuple[list[Tensor], int]] = []
        step = 0

        def filtered(module: nn.Module, args: tuple[Any, ...], kwargs: Call) -> tuple[tuple[Any, ...], Call]:
            nonlocal step
            conditioning = _text(kwargs)
            if not plans:
                own = [part[-len(prompts) :].double().cpu() for part in conditioning]
                plans.extend(self._plan([part[row] for part in own], masked[row], spans) for row in range(len(prompts)))
            changed = [part.clone() for part in conditioning]
            for row, (safe, until) in enumerate(plans):
                if step < until:
                    for part, instead in zip(changed, safe):
                        part[row - len(prompts)] = instead.to(part)
            step += 1
            return args, _with_text(kwargs, changed)

        handle = denoiser.register_forward_pre_hook(filtered, with_kwargs=True)
        try:
            yield call
        finally:
            handle.remove()

    def _plan(
        self, own: Sequence[Tensor], masked: Sequence[Tensor], concept: Sequence[Tensor]
    ) -> tuple[list[Tensor], int]:
        """A prompt's filtered conditioning, and the number of first steps that it is used for.

        `own`: hidden states (L, D) and, in SDXL, the pooled embedding (P,); `masked`: (N, D) and (N, P); `concept`:
        orthonormal rows of both spaces. A pooled embedding counts as a trigger when the prompt has one.
        """
        triggers = trigger_tokens(masked[0], concept[0], self.alpha)
        if not triggers.any():
            return [], 0
        words = slice(1, 1 + len(triggers))  # after the start token
        projected = safe_projection(own[0][words], concept[0], span(masked[0]))
        hidden = own[0].clone()
        hidden[words] = torch.where(triggers[:, None], projected, own[0][words])
        pooled = [safe_projection(part, c, span(m)) for part, m, c in zip(own[1:], masked[1:], concept[1:])]
        return [hidden, *pooled], filter_steps(own[0][words], projected, self.filter_steps)


RANK_TOLERANCE = 1e-4
"""Singular values below this share of the largest are rounding of a float32 text encoder, no direction of meaning."""


def span(vectors: Tensor) -> Tensor:
    """Orthonormal rows (r, D), float64, of the space that `vectors` (K, D) span.

    With V = vectorsᵀ and Q the result, V·(VᵀV)⁻¹·Vᵀ = QᵀQ where the vectors are independent.
    """
    _, values, rows = torch.linalg.svd(vectors.double(), full_matrices=False)
    return rows[values > RANK_TOLERANCE * values.max()]


def project(x: Tensor, basis: Tensor) -> Tensor:
    """The part of x (…, D) in the span of the orthonormal rows `basis` (r, D)."""
    return x @ basis.T @ basis


def trigger_tokens(masked: Tensor, concept: Tensor, alpha: float) -> Tensor:
    """Which tokens bring the prompt close to the concept (N,), bool: SAFREE's mask (arXiv 2410.12761, section 3.1).

        m_i = 1 where d_i > (1 + α)·mean_{j ≠ i} d_j,   d_i = ‖(I − P_C)·p̄_i‖₂

    `masked`: p̄_i (N, D), the prompt's embedding with its token i hidden; `concept`: orthonormal rows (r, D) that P_C
    projects on. A prompt of one token has nothing to be compared with, and no trigger.
    """
    if len(masked) < 2:
        return torch.zeros(len(masked), dtype=torch.bool)
    distance = (masked - project(masked, concept)).norm(dim=-1)
    others = (distance.sum() - distance) / (len(distance) - 1)
    return distance > (1 + alpha) * others


def safe_projection(embeddings: Tensor, concept: Tensor, prompt: Tensor) -> Tensor:
    """P_I·(I − P_C)·p (…, D): off the concept's subspace, and back into the prompt's (arXiv 2410.12761, section 3.2).

    `concept` and `prompt` are orthonormal rows (r, D) of the two subspaces.
    """
    return project(embeddings - project(embeddings, concept), prompt)


def filter_steps(embeddings: Tensor, projected: Tensor, gamma: float) -> int:
    """round(γ·sigmoid(1 − cos(p, p_proj))), the steps to filter (arXiv 2410.12761, section 3.3); p, p_proj: (N, D)."""
    cosine = F.cosine_similarity(embeddings.flatten(), projected.flatten(), dim=0)
    return round(gamma * torch.sigmoid(1 - cosine).item())


def _text(kwargs: Call) -> list[Tensor]:
    """What the denoiser reads of the prompt: hidden states and, in SDXL, the pooled embedding."""
    added = kwargs.get("added_cond_kwargs")
    return [kwargs["encoder_hidden_states"], *([added["text_embeds"]] if added else [])]


def _with_text(kwargs: Call, text: Sequence[Tensor]) -> Call:
    changed = kwargs | {"encoder_hidden_states": text[0]}
    if len(text) > 1:
        changed["added_cond_kwargs"] = kwargs["added_cond_kwargs"] | {"text_embeds": text[1]}
    return changed


def _sentence(pipe: Any, prompt: str) -> list[Tensor]:
    """A prompt's embedding at its end token (1, D) and, in SDXL, its pooled one (1, P); float64 on the CPU."""
    return _embedded(pipe, prompt, lambda count: torch.zeros(1, count))


def _masked_sentences(pipe: Any, prompt: str) -> list[Tensor]:
    """The same with each of the prompt's N tokens hidden in turn: (N, D) and (N, P)."""
    return _embedded(pipe, prompt, torch.eye)


def _embedded(pipe: Any, prompt: str, hide: Any) -> list[Tensor]:
    """`hide(N)` (n, N) says which of the prompt's N tokens the attention of the text encoders may not see."""
    is_xl = getattr(pipe, "text_encoder_2", None) is not None
    ends, pooled = [], []
    for suffix in ("", "_2")[: 1 + is_xl]:
        tokenizer, encoder = getattr(pipe, f"tokenizer{suffix}"), getattr(pipe, f"text_encoder{suffix}")
        ids = tokenizer(
            prompt,
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        end = int((ids[0] == tokenizer.eos_token_id).int().argmax())
        hidden = hide(end - 1)
        seen = torch.ones(len(hidden), ids.shape[1])
        seen[:, 1:end] -= hidden
        found = encoder(
            ids.expand(len(hidden), -1).to(pipe.device), attention_mask=seen.to(pipe.device), output_hidden_states=True
        )
        states = found.hidden_states[-2] if is_xl else found.last_hidden_state
        ends.append(states[:, end].double().cpu())
        pooled = [found.text_embeds.double().cpu()] if suffix else []
    return [torch.cat(ends, dim=-1), *pooled]


# Names


GUARDS: dict[str, Guard] = {
    "negative-prompt": NegativePrompt(),
    "sld-medium": SafeLatentDiffusion(
        warmup_steps=10, scale=1000, threshold=0.01, momentum_scale=0.3, momentum_beta=0.4
    ),
    "sld-strong": SafeLatentDiffusion(
        warmup_steps=7, scale=2000, threshold=0.025, momentum_scale=0.5, momentum_beta=0.7
    ),
    "sld-max": SafeLatentDiffusion(warmup_steps=0, scale=5000, threshold=1.0, momentum_scale=0.5, momentum_beta=0.7),
    "safree": Safree(),
}


def check_pipeline(name: str, pipeline: type[DiffusionPipeline], folder: Path) -> None:
    """ValueError when a pipeline of this class, or this one in particular, cannot draw under the guard."""
    guard = GUARDS[name]
    if not guard.can_serve(pipeline):
        able = [other for other in GUARDS if GUARDS[other].can_serve(pipeline)]
        raise ValueError(
            f"{folder} is a {pipeline.__name__}, which the guard {name!r} cannot serve; it serves "
            f"{', '.join(guard.serves)}. This pipeline can be guarded by {', '.join(able) or 'none'}."
        )
    config = folder / "unet" / "config.json"
    settings = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    is_distilled = settings.get("time_cond_proj_dim") is not None
    if guard.needs_guidance and is_distilled:
        raise ValueError(
            f"{folder} is distilled: its guidance_scale is an input of the network (time_cond_proj_dim), so it has no "
            f"classifier-free guidance for the guard {name!r} to act through; --guard safree needs none."
        )


def check_guidance(name: str, guidance_scale: float, who: str) -> None:
    """ValueError when a guard that acts through guidance is to draw without any."""
    if GUARDS[name].needs_guidance and guidance_scale <= 1:
        raise ValueError(
            f"The guard {name!r} acts through classifier-free guidance, which guidance_scale {guidance_scale:g} of "
            f"{who} turns off; set it above 1, or use --guard safree, which needs no guidance."
        )


def guard_identity(name: str, words: str) -> str:
    """Everything about a guard that the pictures depend on, as one line."""
    guard: Any = GUARDS[name]
    return json.dumps({"guard": name, "settings": asdict(guard), "concept": words}, sort_keys=True)
