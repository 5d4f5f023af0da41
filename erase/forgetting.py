"""Which weights carry a concept: SalUn's forgetting loss on its pictures, and the masks to compare it with."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm

from .closed_form import EditSettings, edited_weights
from .concepts import Concept
from .config import EraseConfig, public_name
from .data import TrainingData
from .edit_saliency import edit_saliency
from .methods import METHODS
from .models.base import Denoiser
from .objectives import forgetting_loss, guided
from .saliency import SaliencyMask, saliency_scores
from .scopes import SCOPES


def forgetting_losses(
    denoiser: Denoiser, data: TrainingData, config: EraseConfig, accelerator: Accelerator
) -> Iterator[Callable[[], Tensor]]:
    """One closure per batch over all of the concept's pictures (fp32); their sum is the mean over pictures.

    A picture's noise and timestep depend on the seed and its place alone, so neither the batch size nor the number of
    processes, which take every other batch, changes the sum.
    """
    assert data.concept is not None  # made whenever the mask is salient
    latents, device = data.concept.latents, denoiser.device
    generator = torch.Generator().manual_seed(config.seed)
    all_noise = torch.randn(latents.shape, generator=generator)
    all_t = denoiser.sample_timesteps(len(latents), generator)
    batches = torch.arange(len(latents)).split(config.train_batch_size)
    mine = batches[accelerator.process_index :: accelerator.num_processes]
    for rows in tqdm(mine, "saliency", disable=not accelerator.is_main_process):
        x0, noise, t = (tensor[rows].to(device) for tensor in (latents, all_noise, all_t))
        concept = data.prompt(data.concept.prompts[rows], device)
        empty = data.prompt(torch.full((len(rows),), data.empty), device)

        def loss(x0: Tensor = x0, noise: Tensor = noise, t: Tensor = t, c: dict = concept, e: dict = empty) -> Tensor:
            x_t = denoiser.add_noise(x0, noise, t)
            prediction = guided(denoiser.predict, x_t, t, c, e, config.mask_guidance_scale)
            return forgetting_loss(prediction, denoiser.target(x0, noise, t)) * (len(x0) / len(latents))

        yield loss


def build_mask(
    denoiser: Denoiser,
    data: TrainingData,
    concepts: Sequence[Concept],
    config: EraseConfig,
    base_hash: str,
    accelerator: Accelerator,
) -> SaliencyMask:
    """The mask that `config.mask` names, within `config.scope`; `none` lets every weight in scope change."""
    metadata = {
        "base_sha256": base_hash,
        "model": public_name(config.pretrained_model_name_or_path),
        "concept": ", ".join(concept.name for concept in concepts),
        "score": config.mask_score,
        "seed": str(config.seed),
    }
    scope = scope_of(denoiser, config)
    if config.mask == "none":
        mask = SaliencyMask.full(denoiser.module, scope)
        return SaliencyMask(mask.tensors, metadata | mask.metadata)
    if config.mask not in ("salient", "random"):
        mask = SaliencyMask.load(Path(config.mask))
        mask.check(denoiser.module, base_hash)
        return mask
    if config.mask == "random":
        shape_of = {name: torch.zeros(p.shape) for name, p in denoiser.module.named_parameters()}
        like = SaliencyMask.from_scores(
            shape_of, density=config.density, scope=scope, metadata=metadata | {"score": "random"}
        )
        return SaliencyMask.random(like, config.seed)
    if METHODS[config.method].kind == "closed-form":
        scores = edit_saliency(denoiser, concepts, edit_settings(config), config.mask_score, config.density)
    else:
        assert config.mask_score != "pursuit"  # the config has seen to that
        losses = forgetting_losses(denoiser, data, config, accelerator)
        within = {name for name, _ in denoiser.module.named_parameters() if scope(name)}
        scores = saliency_scores(denoiser.module, losses, config.mask_score, within, reduce=summed_over(accelerator))
    chosen = SaliencyMask.from_scores(scores, density=config.density, metadata=metadata)
    return chosen.covering(denoiser.module)


def scope_of(denoiser: Denoiser, config: EraseConfig) -> Callable[[str], bool]:
    """Which parameters may change: those in `config.scope`, and of a closed form only the ones that it edits."""
    if METHODS[config.method].kind == "closed-form":
        return edited_weights(denoiser.module).__contains__
    return SCOPES[config.scope]


def edit_settings(config: EraseConfig) -> EditSettings:
    """What of `config` a closed-form edit reads."""
    return EditSettings(
        method=config.method,  # type: ignore[arg-type]
        erase_weight=config.erase_weight,
        preserve_weight=config.preserve_weight,
        regularization=config.edit_regularization,
        rounds=config.edit_rounds,
        mu=config.edit_mu,
        null_threshold=config.edit_null_threshold,
        augmentations=config.edit_augmentations,
        empty_centers=config.edit_empty_centers,
        seed=config.seed,
        tokens=config.edit_tokens,
    )


def summed_over(accelerator: Accelerator) -> Callable[[Tensor], object] | None:
    """In-place sum of a gradient over all processes; nothing to do for one."""
    if accelerator.num_processes == 1:
        return None
    return lambda gradient: torch.distributed.all_reduce(gradient)
