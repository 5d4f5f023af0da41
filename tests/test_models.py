"""The denoiser contract on tiny real pipelines of each family, against the equations rather than the code."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from erase import Denoiser, load_denoiser
from erase.models.base import cat, rows
from tiny import FAMILIES

TinyFolder = Callable[[str], Path]


@pytest.fixture(params=FAMILIES)
def denoiser(request: pytest.FixtureRequest, tiny: TinyFolder) -> Denoiser:
    return load_denoiser(str(tiny(request.param)))


def noisy(denoiser: Denoiser) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0 = denoiser.sample_latents(["a cat", "a dog"], [1, 2], 1, 3.0)
    noise, t = torch.randn(x0.shape, generator=generator), denoiser.sample_timesteps(2, generator)
    return x0, noise, t, denoiser.add_noise(x0, noise, t)


def test_noise_and_target_invert_to_the_clean_latents(denoiser: Denoiser) -> None:
    """x0 from (x_t, target): ε: (x − σε)/α; v: αx − σv; flow: x − σ·v."""
    x0, noise, t, x = noisy(denoiser)
    target = denoiser.target(x0, noise, t)
    config = denoiser.pipeline.scheduler.config
    if denoiser.component == "transformer":
        recovered = x - (t / 1000).reshape(-1, 1, 1, 1) * target
    else:
        betas = torch.linspace(config.beta_start**0.5, config.beta_end**0.5, 1000, dtype=torch.float64) ** 2
        alpha_bar = (1 - betas).cumprod(0)[t].reshape(-1, 1, 1, 1)
        a, s = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        recovered = a * x - s * target if config.prediction_type == "v_prediction" else (x - s * target) / a
    torch.testing.assert_close(recovered.float(), x0, rtol=2e-3, atol=2e-3)


def test_prediction_is_batch_independent(denoiser: Denoiser) -> None:
    _, _, t, x = noisy(denoiser)
    conditioning = denoiser.encode(["a cat", "a dog"])
    with torch.no_grad():
        both = denoiser.predict(x, t, conditioning)
        one = denoiser.predict(x[1:], t[1:], rows(conditioning, slice(1, 2)))
    assert both.shape == x.shape
    torch.testing.assert_close(both[1:], one, rtol=1e-4, atol=1e-4)


def test_conditioning_concatenates_and_depends_on_the_prompt(denoiser: Denoiser) -> None:
    a, b = denoiser.encode(["a cat"]), denoiser.encode(["a dog"])
    both = denoiser.encode(["a cat", "a dog"])
    for key, value in cat(a, b).items():
        torch.testing.assert_close(value, both[key], rtol=1e-4, atol=1e-4)
    assert any(not torch.equal(a[key], b[key]) for key in a)


def test_latents_decode_and_encode(denoiser: Denoiser) -> None:
    pictures = denoiser.decode(denoiser.sample_latents(["a cat"], [0], 1, 3.0))
    assert pictures.dtype == np.uint8 and pictures.shape == (1, denoiser.resolution, denoiser.resolution, 3)
    assert denoiser.encode_images(pictures).shape == denoiser.sample_latents(["a cat"], [0], 1, 3.0).shape


def test_same_seed_same_latents_in_any_batch(denoiser: Denoiser) -> None:
    alone = denoiser.sample_latents(["a dog"], [2**40 + 7], 2, 3.0)
    batched = denoiser.sample_latents(["a cat", "a dog"], [5, 2**40 + 7], 2, 3.0)
    torch.testing.assert_close(batched[1:], alone, rtol=1e-3, atol=1e-3)


def test_unknown_solver_names_those_that_work(denoiser: Denoiser) -> None:
    with pytest.raises(ValueError, match="default"):
        denoiser.sample_latents(["a cat"], [0], 1, 3.0, solver="euler-ancestral")


def test_release_keeps_only_the_denoiser(denoiser: Denoiser) -> None:
    denoiser.release()
    left = [name for name, part in denoiser.pipeline.components.items() if isinstance(part, torch.nn.Module)]
    assert left == [denoiser.component]
