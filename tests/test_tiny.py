"""Contract of tests/tiny.py: every toy pipeline loads and draws in a plain diffusers process, and heeds its prompt."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from tiny import FAMILIES, RESOLUTION, each_family


def draw(pipeline: DiffusionPipeline, prompt: str) -> np.ndarray:
    generator = torch.Generator().manual_seed(0)
    return pipeline(prompt, num_inference_steps=2, output_type="np", generator=generator).images  # type: ignore[operator]


@each_family
def test_loads_draws_and_heeds_the_prompt(tiny: Callable[[str], Path], family: str) -> None:
    pipeline = DiffusionPipeline.from_pretrained(tiny(family))
    cat, dog = draw(pipeline, "a cat"), draw(pipeline, "a dog")
    assert cat.shape == (1, RESOLUTION, RESOLUTION, 3)
    assert np.isfinite(cat).all()
    assert np.abs(cat - dog).mean() > 0.01


@each_family
def test_is_small_and_built_alike_each_time(tiny: Callable[[str], Path], family: str, tmp_path: Path) -> None:
    first = {path.relative_to(tiny(family)): path.read_bytes() for path in tiny(family).rglob("*.*") if path.is_file()}
    assert sum(map(len, first.values())) < 1_000_000
    FAMILIES[family](tmp_path / family)
    assert first == {path: (tmp_path / family / path).read_bytes() for path in first}
