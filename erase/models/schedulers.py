"""The one way to sample a pipeline with another scheduler, for pictures to train on and for pictures to score."""

from typing import Any

import diffusers

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "pndm": "PNDMScheduler",
    "lms": "LMSDiscreteScheduler",
}
# What Stable Diffusion's own scheduler config says, for configs that say nothing: diffusers' defaults are for pixels.
LATENT_DEFAULTS = {"clip_sample": False, "set_alpha_to_one": False, "skip_prk_steps": True}


def set_scheduler(pipe: Any, name: str) -> None:
    """Sample with another scheduler, made from the config of the pipeline's own; `default` leaves it as it is.

    ValueError for a name that is unknown, or a scheduler for another kind of noise.
    """
    if name == "default":
        return
    if name not in SCHEDULERS:
        raise ValueError(f"Unknown scheduler {name!r}; choose default, {', '.join(SCHEDULERS)}.")
    chosen, stock = getattr(diffusers, SCHEDULERS[name]), pipe.scheduler
    # Of diffusers' schedulers only those of the same kind of noise can be made from another's config.
    if chosen.__name__ not in stock._compatibles:
        raise ValueError(
            f"{type(pipe).__name__} samples with {type(stock).__name__}, which {name} cannot stand in for; leave it at "
            "`default`."
        )
    unsaid = {*LATENT_DEFAULTS} - {*stock.config} | {*LATENT_DEFAULTS} & {*stock.config.get("_use_default_values", ())}
    try:
        pipe.scheduler = chosen.from_config(stock.config, **{key: LATENT_DEFAULTS[key] for key in unsaid})
    except ImportError as error:
        raise ValueError(f"The scheduler {name} needs scipy. pip install scipy") from error
