"""How much each weight matters to SalUn's forgetting loss on the concept's pictures (arXiv 2310.12508, eq. 3 and 4)."""

from collections.abc import Callable, Container, Iterator

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm

from ..config import EraseConfig
from ..data.training_data import TrainingData
from ..models.base import Denoiser
from ..saliency.scores import saliency_scores
from .objectives import forgetting_loss, guided


def forgetting_scores(
    denoiser: Denoiser, data: TrainingData, config: EraseConfig, accelerator: Accelerator, within: Container[str]
) -> dict[str, Tensor]:
    """Name → score of each parameter in `within`, shape of the parameter; the same on every process."""
    assert config.mask_score != "pursuit"  # the config has seen to that
    losses = forgetting_losses(denoiser, data, config, accelerator)
    return saliency_scores(denoiser.module, losses, config.mask_score, within, reduce=summed_over(accelerator))


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


def summed_over(accelerator: Accelerator) -> Callable[[Tensor], object] | None:
    """In-place sum of a gradient over all processes; nothing to do for one."""
    if accelerator.num_processes == 1:
        return None
    return lambda gradient: torch.distributed.all_reduce(gradient)
