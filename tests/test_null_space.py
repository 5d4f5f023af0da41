"""Contract of SPEED in erase.closed_form.null_space (arXiv 2503.07392): noisy copies, and what holds the empty prompt.

1. Copies differ from their token along the one direction that the layer amplifies least, by standard normal noise.
2. Of the empty prompt the first token and the cluster centres of the others keep their outputs exactly.
3. Without copies and with all of the empty prompt's tokens held, the edit is the one without these refinements.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from erase import EraseConfig, load_concepts, load_denoiser
from erase.closed_form.edit import UPDATES, EditSettings, edit_settings, edited_weights
from erase.closed_form.null_space import (
    cluster_centers,
    directed_copies,
    invariants,
    null_space,
    prior_filter,
    speed_update,
)
from erase.closed_form.tokens import EditTokenSet, edit_tokens

WIDTH = 12


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("out", [5, WIDTH, 20])
def test_copies_differ_where_the_layer_amplifies_least(out: int) -> None:
    weight, preserve = normal(out, WIDTH, seed=1), normal(300, WIDTH, seed=2)
    copies = directed_copies(weight, preserve, 10, seeded())
    assert copies.shape == (3000, WIDTH)
    noise = copies - preserve.repeat(10, 1)
    values = np.linalg.svd(weight.numpy(), compute_uv=False)
    assert np.linalg.matrix_rank(noise.numpy()) == 1
    sizes = noise.norm(dim=1)
    torch.testing.assert_close((noise @ weight.T).norm(dim=1), sizes * values.min())
    assert abs(sizes.square().mean() - 1) < 0.1 and abs(noise.mean(dim=0)).max() < 0.06
    assert torch.equal(copies, directed_copies(weight, preserve, 10, seeded()))
    assert not torch.equal(copies, directed_copies(weight, preserve, 10, seeded(1)))


def test_what_the_copies_fill_is_not_free() -> None:
    weight, preserve = normal(WIDTH, WIDTH, seed=1), normal(40, WIDTH, seed=2)
    least = torch.linalg.svd(weight).Vh[-1]
    preserve = preserve - 0.99 * preserve @ least[:, None] * least  # next to nothing of the preserved lies along it
    alone = null_space(preserve, normal(0, WIDTH), threshold=0.1)
    both = torch.cat([preserve, directed_copies(weight, preserve, 10, seeded())])
    with pytest.raises(ValueError, match="raise --edit_null_threshold"):
        null_space(both, normal(0, WIDTH), threshold=0.1)
    assert alone.shape == (WIDTH, 1) and (alone[:, 0] @ least).abs() > 0.99


def test_centres_are_the_means_of_their_clusters() -> None:
    middles = 10 * normal(3, WIDTH, seed=3)
    points = torch.cat([middle + 0.1 * normal(7, WIDTH, seed=seed) for seed, middle in enumerate(middles)])
    expected = torch.stack([points[7 * k : 7 * k + 7].mean(dim=0) for k in range(3)])
    torch.testing.assert_close(cluster_centers(points, 3), expected)
    curve = torch.linspace(0, 1, 76, dtype=torch.float64)[:, None].expand(-1, WIDTH)
    torch.testing.assert_close(
        cluster_centers(curve, 3)[:, 0], torch.tensor([1 / 6, 1 / 2, 5 / 6]).double(), atol=0.01, rtol=0
    )


def test_what_of_the_empty_prompt_is_held() -> None:
    empty = normal(20, WIDTH, seed=4)
    assert torch.equal(invariants(empty, 0), empty)
    held = invariants(empty, 3)
    assert held.shape == (4, WIDTH) and torch.equal(held[0], empty[0])
    torch.testing.assert_close(held[1:], cluster_centers(empty[1:], 3))


@pytest.fixture(scope="module")
def cat() -> tuple[list[Tensor], EditTokenSet]:
    """The first layers of the canvas that read the text, and the tokens of its concept `cat`."""
    denoiser, concepts = load_denoiser("canvas"), load_concepts(["cat"], model="canvas")
    weights = [weight.detach().double() for weight in edited_weights(denoiser.module).values()]
    with torch.no_grad():
        return weights[:3], edit_tokens(denoiser, concepts, "all")


def edits(cat: tuple[list[Tensor], EditTokenSet], **settings: float) -> list[Tensor]:
    return list(UPDATES["speed"](*cat, EditSettings(method="speed", **settings)))


@pytest.mark.parametrize("centers", [0, 3])
def test_the_edit_holds_the_empty_prompt_as_it_is_told(cat: tuple[list[Tensor], EditTokenSet], centers: int) -> None:
    held = invariants(cat[1].empty, centers)
    for base, new in zip(cat[0], edits(cat, empty_centers=centers, augmentations=2)):
        moved = (new - base).norm()
        assert moved > 0.1 * base.norm() and (held @ (new - base).T).norm() < 1e-9 * moved


def test_without_refinements_it_is_the_plain_null_space_edit(cat: tuple[list[Tensor], EditTokenSet]) -> None:
    weights, t = cat
    plain, copied = (edits(cat, augmentations=copies, empty_centers=0) for copies in (0, 2))
    for base, new, other in zip(weights, plain, copied):
        basis = null_space(prior_filter(base, t.concepts, t.anchors, t.preserve), t.empty, 0.1)
        torch.testing.assert_close(
            new, speed_update(base, t.concepts, t.anchors, basis, erase_weight=1.0, regularization=0.5)
        )
        assert not torch.allclose(new, other, atol=1e-6)
    again, reseeded = (edits(cat, augmentations=2, empty_centers=0, seed=seed) for seed in (0, 1))
    assert all(torch.equal(one, other) for one, other in zip(copied, again))
    assert not torch.equal(copied[0], reseeded[0])


def test_a_run_passes_its_settings_and_seed(tmp_path: Path) -> None:
    config = EraseConfig.load(None, concept="nudity", method="speed", seed=3, output_dir=tmp_path)
    settings = edit_settings(config)
    assert (settings.augmentations, settings.empty_centers, settings.seed) == (10, 3, 3)
    assert edit_settings(replace(config, edit_augmentations=0, edit_empty_centers=0)).augmentations == 0
