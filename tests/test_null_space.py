"""Contract of SPEED in erase.null_space (arXiv 2503.07392): noisy copies, and the constraint on the empty prompt.

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
from erase.closed_form import EditSettings, edit, edited_weights
from erase.edit_tokens import edit_tokens
from erase.forgetting import edit_settings
from erase.null_space import cluster_centers, directed_copies, invariants, null_space, prior_filter, speed_update

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


def edits(**settings: float) -> dict[str, Tensor]:
    denoiser = load_denoiser("canvas")
    return edit(denoiser, load_concepts(["cat"], model="canvas"), EditSettings(method="speed", **settings))


def test_the_edit_holds_the_empty_prompt_as_it_is_told() -> None:
    denoiser, concepts = load_denoiser("canvas"), load_concepts(["cat"], model="canvas")
    base = {name: weight.detach().clone().double() for name, weight in edited_weights(denoiser.module).items()}
    with torch.no_grad():
        empty = edit_tokens(denoiser, concepts, "all").empty
    for centers in (0, 3):
        new = edits(augmentations=0, empty_centers=centers, regularization=50.0)
        for name, weight in base.items():
            moved = (new[name].double() - weight).norm()
            held = (invariants(empty, centers) @ (new[name].double() - weight).T).norm()
            assert held < 1e-4 * moved, (name, centers)


def test_without_refinements_it_is_the_plain_null_space_edit() -> None:
    denoiser, concepts = load_denoiser("canvas"), load_concepts(["cat"], model="canvas")
    base = {name: weight.detach().clone() for name, weight in edited_weights(denoiser.module).items()}
    with torch.no_grad():
        t = edit_tokens(denoiser, concepts, "all")
    new = edits(augmentations=0, empty_centers=0)
    for name, weight in base.items():
        basis = null_space(prior_filter(weight, t.concepts, t.anchors, t.preserve), t.empty, 0.1)
        plain = speed_update(weight, t.concepts, t.anchors, basis, erase_weight=1.0, regularization=0.5)
        torch.testing.assert_close(new[name], plain)
    copied = edits(empty_centers=0)
    assert all(not torch.equal(copied[name], new[name]) for name in new)


def test_a_run_passes_its_settings_and_seed(tmp_path: Path) -> None:
    config = EraseConfig.load(None, concept="nudity", method="speed", seed=3, output_dir=tmp_path)
    settings = edit_settings(config)
    assert (settings.augmentations, settings.empty_centers, settings.seed) == (10, 3, 3)
    assert edit_settings(replace(config, edit_augmentations=0, edit_empty_centers=0)).augmentations == 0
