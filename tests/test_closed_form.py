"""Closed-form edits equal a naive float64 recomputation, move what they are told to, and touch nothing else.

Updates are recomputed with numpy, pair by pair, from the papers' formulas; the minimisers are checked to be minimisers.
On every family only the layers that read the text change, by the update of the very tokens that were paired.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from erase import Concept, load_concepts, load_denoiser
from erase.closed_form.edit import (
    EditMethod,
    EditSettings,
    derive_concepts,
    edit,
    edited_weights,
    uce_update,
)
from erase.closed_form.null_space import null_space, prior_filter, speed_update
from erase.closed_form.tokens import edit_tokens, pair_tokens
from erase.models.loading import Denoiser
from erase.saliency.mask import SaliencyMask
from tiny import each_family

TinyFolder = Callable[[str], Path]
WIDTH, OUT = 12, 5
TINY = Concept(
    name="cat",
    type="object",
    forget=("a cat", "cat, neon"),
    anchor=("a fox", "hound, neon"),
    retain=("a fish", "a red car"),
    evaluate=("a cat",),
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problem(n: int = 3, m: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weight, concepts, anchors, preserve."""
    return normal(OUT, WIDTH, seed=1), normal(n, WIDTH, seed=2), normal(n, WIDTH, seed=3), normal(m, WIDTH, seed=4)


def outer(rows: Tensor, others: Tensor) -> np.ndarray:
    """Σ_k rows_k others_kᵀ, one pair at a time."""
    total = np.zeros((rows.shape[1], others.shape[1]))
    for row, other in zip(rows.numpy(), others.numpy()):
        total += np.outer(row, other)
    return total


def naive_uce(w: Tensor, c: Tensor, a: Tensor, p: Tensor, e: float, k: float, reg: float) -> np.ndarray:
    """The paper's two sums with the outputs v* = W a and W p as they stand there."""
    weight = w.numpy()
    wanted, present = reg * weight, reg * np.eye(weight.shape[1])
    for concept, anchor in zip(c.numpy(), a.numpy()):
        wanted = wanted + e * np.outer(weight @ anchor, concept)
        present = present + e * np.outer(concept, concept)
    for kept in p.numpy():
        wanted = wanted + k * np.outer(weight @ kept, kept)
        present = present + k * np.outer(kept, kept)
    return np.linalg.solve(present.T, wanted.T).T


def test_uce_equals_the_papers_formula() -> None:
    w, c, a, p = problem()
    new = uce_update(w, c, a, p, erase_weight=0.7, preserve_weight=1.3, regularization=0.5)
    np.testing.assert_allclose(new.numpy(), naive_uce(w, c, a, p, 0.7, 1.3, 0.5), rtol=1e-9, atol=1e-12)


def test_uce_is_the_minimum_of_its_least_squares() -> None:
    w, c, a, p = problem()

    def loss(new: Tensor) -> Tensor:
        erased, kept = (c @ new.T - a @ w.T).square().sum(), (p @ (new - w).T).square().sum()
        return 0.7 * erased + 1.3 * kept + 0.5 * (new - w).square().sum()

    new = uce_update(w, c, a, p, erase_weight=0.7, preserve_weight=1.3, regularization=0.5).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(new), new)
    assert gradient.abs().max() < 1e-10 < torch.autograd.grad(loss(w.requires_grad_()), w)[0].abs().max()


def test_a_masked_edit_is_the_minimum_over_its_weights() -> None:
    w, c, a, p = problem()
    chosen = normal(OUT, WIDTH, seed=9) > 0
    chosen[0], chosen[1] = False, True
    new = uce_update(w, c, a, p, erase_weight=0.7, preserve_weight=1.3, regularization=0.5, chosen=chosen)
    assert torch.equal(new[~chosen], w[~chosen])
    free = new.clone().requires_grad_()
    erased, kept = (c @ free.T - a @ w.T).square().sum(), (p @ (free - w).T).square().sum()
    (gradient,) = torch.autograd.grad(0.7 * erased + 1.3 * kept + 0.5 * (free - w).square().sum(), free)
    assert gradient[chosen].abs().max() < 1e-10 < gradient[~chosen].abs().max()
    np.testing.assert_allclose(new[1].numpy(), naive_uce(w, c, a, p, 0.7, 1.3, 0.5)[1], rtol=1e-9, atol=1e-12)


def test_a_small_lambda_maps_concepts_to_anchors_and_keeps_the_preserved() -> None:
    w, c, a, p = problem()
    new = uce_update(w, c, a, p, erase_weight=1, preserve_weight=1, regularization=1e-9)
    torch.testing.assert_close(c @ new.T, a @ w.T, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(p @ new.T, p @ w.T, rtol=1e-6, atol=1e-6)


def test_a_large_lambda_changes_nothing_and_nothing_need_be_preserved() -> None:
    w, c, a, p = problem(m=0)
    held = uce_update(w, c, a, p, erase_weight=1, preserve_weight=1, regularization=1e12)
    torch.testing.assert_close(held, w, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(
        uce_update(w, c, a, p, erase_weight=1, preserve_weight=1, regularization=0.5).numpy(),
        naive_uce(w, c, a, p, 1, 1, 0.5),
        rtol=1e-9,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_weights_are_edited_in_double_and_rounded_once(dtype: torch.dtype) -> None:
    w, c, a, p = problem()
    rounded = w.to(dtype)
    new = uce_update(rounded, c, a, p, erase_weight=1, preserve_weight=1, regularization=0.1)
    expected = naive_uce(rounded.double(), c, a, p, 1, 1, 0.1)
    assert new.dtype == dtype
    torch.testing.assert_close(new, torch.from_numpy(expected).to(dtype), rtol=0, atol=0)


def test_derived_concepts_equal_the_papers_formula_summed_over_layers() -> None:
    base = [normal(4, WIDTH, seed=5), normal(6, WIDTH, seed=6)]
    edited = [weight + 0.3 * normal(*weight.shape, seed=7) for weight in base]
    c = normal(3, WIDTH, seed=8)
    now, cross = 0.1 * np.eye(WIDTH), np.zeros((WIDTH, WIDTH))
    for before, after in zip(base, edited):
        now += outer(after, after)
        cross += outer(after, before)
    expected = np.stack([np.linalg.solve(now, cross @ concept) for concept in c.numpy()])
    np.testing.assert_allclose(derive_concepts(base, edited, c, mu=0.1).numpy(), expected, rtol=1e-9)


def test_a_derived_concept_brings_back_in_the_edited_layers_what_the_base_made_of_it() -> None:
    base, c, a, p = problem()
    square = normal(WIDTH, WIDTH, seed=9)
    new = uce_update(square, c, a, p, erase_weight=1, preserve_weight=1, regularization=0.5)
    back = derive_concepts([square], [new], c, mu=1e-12)
    torch.testing.assert_close(back @ new.T, c @ square.T, rtol=1e-5, atol=1e-5)
    assert derive_concepts([square], [new], c, mu=10.0).norm() < back.norm()
    # One c' serves both layers: not the mean of one for each, nor a solution of either alone.
    two = derive_concepts([square, base], [new, base], c, mu=0.1)
    assert not torch.allclose(two, derive_concepts([square], [new], c, mu=0.1), atol=1e-3)


def test_prior_filter_keeps_what_an_unconstrained_edit_moves_more_than_the_mean() -> None:
    w, c, a, p = problem(m=30)
    delta = w.numpy() @ (outer(a, c) - outer(c, c)) @ np.linalg.inv(np.eye(WIDTH) + outer(c, c))
    moved = [np.linalg.norm(delta @ kept) for kept in p.numpy()]
    expected = [kept for kept, length in zip(p.numpy(), moved) if length > np.mean(moved)]
    assert 0 < len(expected) < 30
    np.testing.assert_allclose(prior_filter(w, c, a, p).numpy(), np.stack(expected))


def test_null_space_is_where_preserved_tokens_have_next_to_no_energy() -> None:
    p = normal(40, WIDTH, seed=10)
    p[:, 7:] *= 1e-2  # five directions of 10⁻⁴ of the energy
    basis = null_space(p, normal(0, WIDTH), threshold=0.1)
    torch.testing.assert_close(basis.T @ basis, torch.eye(5, dtype=torch.float64))
    assert (p @ basis).square().sum(0).max() < 0.1 * p.square().sum() / WIDTH
    assert null_space(1e3 * p, normal(0, WIDTH), threshold=0.1).shape == basis.shape  # a share, not a squared length
    assert null_space(p, normal(0, WIDTH), threshold=1e3).shape == (WIDTH, WIDTH)


def test_null_space_leaves_out_the_invariant_directions() -> None:
    p, empty = normal(5, WIDTH, seed=11), normal(2, WIDTH, seed=12)
    basis = null_space(p, empty, threshold=1e-6)
    assert basis.shape == (WIDTH, WIDTH - 5 - 2)
    assert (p @ basis).abs().max() < 1e-6 and (empty @ basis).abs().max() < 1e-9


def test_a_full_null_space_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="raise --edit_null_threshold"):
        null_space(normal(40, WIDTH), normal(2, WIDTH), threshold=1e-6)
    with pytest.raises(ValueError, match=r"10 are below.*10 of them are used"):
        null_space(normal(2, WIDTH), normal(10, WIDTH, seed=1), threshold=1e-6)


def test_speed_equals_the_papers_formula_with_its_constraint() -> None:
    """Δ = W(A−C)Cᵀ P Q M with M = (CCᵀP + λI)⁻¹, Q = I − M C₂(C₂ᵀPMC₂)⁻¹C₂ᵀP, P of the preserved tokens alone."""
    w, c, a, p = problem()
    empty = normal(2, WIDTH, seed=13)
    free = null_space(p, normal(0, WIDTH), threshold=1e-6).numpy()
    project, c2 = free @ free.T, empty.numpy().T
    inverse = np.linalg.inv(outer(c, c) @ project + 0.5 * np.eye(WIDTH))
    inner = np.linalg.inv(c2.T @ project @ inverse @ c2)
    constrain = np.eye(WIDTH) - inverse @ c2 @ inner @ c2.T @ project
    delta = w.numpy() @ (outer(a, c) - outer(c, c)) @ project @ constrain @ inverse
    new = speed_update(w, c, a, null_space(p, empty, threshold=1e-6), erase_weight=1, regularization=0.5)
    np.testing.assert_allclose(new.numpy(), w.numpy() + delta, rtol=1e-8, atol=1e-10)


def test_speed_keeps_the_preserved_exactly_whatever_lambda_and_moves_the_concepts() -> None:
    w, c, a, p = problem()
    empty = normal(2, WIDTH, seed=13)
    basis = null_space(p, empty, threshold=1e-6)
    new = speed_update(w, c, a, basis, erase_weight=2, regularization=1e-9)
    torch.testing.assert_close(torch.cat([p, empty]) @ new.T, torch.cat([p, empty]) @ w.T, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(c @ new.T, a @ w.T, rtol=1e-6, atol=1e-6)  # 3 concepts fit into 12 − 4 − 2 directions
    weaker = speed_update(w, c, a, basis, erase_weight=2, regularization=4)
    stronger = speed_update(w, c, a, basis, erase_weight=20, regularization=4)
    gap = [(c @ moved.T - a @ w.T).norm() for moved in (w, weaker, stronger)]
    assert gap[0] > gap[1] > gap[2]


END = 9
PAIRS = {
    "one word for one": ([1, 2, 3, END, END, END], [1, 2, 4, END, END, END], [(2, 2)], (2, 2)),
    "two words for one": ([1, 5, 6, 3, END, END], [1, 7, 3, END, END, END], [(1, 1), (2, 1), (3, 2)], (2, 1)),
    "one word for two": ([1, 5, 3, END, END, END], [1, 6, 7, 3, END, END], [(1, 2), (2, 3)], (1, 2)),
    "a word dropped inside": ([1, 5, 3, END, END, END], [1, 3, END, END, END, END], [(1, 1), (2, 1)], (1, 1)),
    "a word dropped at the end": ([1, 3, 5, END, END, END], [1, 3, END, END, END, END], [(2, 2)], (2, 2)),
    "two places": ([5, 2, 6, END, END, END], [7, 2, 8, END, END, END], [(0, 0), (2, 2)], (2, 2)),
}


@pytest.mark.parametrize("case", PAIRS)
def test_tokens_are_paired_by_meaning_then_by_distance_from_the_end(case: str) -> None:
    prompt, anchor, words, last = PAIRS[case]
    pairs = pair_tokens(prompt, anchor, END, "all")
    assert set(words) <= set(pairs)
    assert [here for here, _ in pairs] == list(range(len(pairs)))
    stop, anchor_stop = prompt.index(END), anchor.index(END)
    rest = min(6 - stop, 6 - anchor_stop)
    assert pairs[stop:] == [(stop + k, anchor_stop + k) for k in range(rest)]
    assert pair_tokens(prompt, anchor, END, "last") == [last]


def test_a_prompt_that_was_cut_off_has_no_end() -> None:
    assert pair_tokens([1, 2, 3], [1, 4, 3], END, "all") == [(0, 0), (1, 1), (2, 2)]


def originals(denoiser: Denoiser) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in denoiser.module.named_parameters()}


@each_family
@pytest.mark.parametrize("method", ["recommended", "uce", "rece", "speed"])
def test_only_the_layers_that_read_the_text_change(tiny: TinyFolder, family: str, method: EditMethod) -> None:
    denoiser = load_denoiser(str(tiny(family)))
    before = originals(denoiser)
    new = edit(denoiser, [TINY], EditSettings(method=method, null_threshold=50.0))
    read = [n for n in before if ".attn2.to_k." in n or ".attn2.to_v." in n or n == "context_embedder.weight"]
    assert list(new) == read and len(read) == (1 if family == "sd3" else 2 * layers(denoiser.module))
    for name, weight in denoiser.module.named_parameters():
        assert torch.equal(weight, before[name]) == (name not in read), name
        assert weight.requires_grad and torch.isfinite(weight).all()
        if name in new:
            assert torch.equal(weight, new[name])


def layers(module: nn.Module) -> int:
    return sum(name.endswith(".attn2") for name, _ in module.named_modules())


def test_speed_without_room_changes_nothing_and_says_why(tiny: TinyFolder) -> None:
    denoiser = load_denoiser(str(tiny("sd3")))
    before = originals(denoiser)
    with pytest.raises(ValueError, match="fills all 32 directions"):
        edit(denoiser, [TINY], EditSettings(method="speed", empty_centers=0))
    assert all(torch.equal(weight, before[name]) for name, weight in denoiser.module.named_parameters())


@each_family
def test_the_edit_is_the_update_of_the_tokens_that_are_paired(tiny: TinyFolder, family: str) -> None:
    denoiser = load_denoiser(str(tiny(family)))
    before = originals(denoiser)
    new = edit(denoiser, [TINY], EditSettings(method="uce", preserve_weight=0.3, regularization=5.0))
    texts = (*TINY.forget, *TINY.anchor, *TINY.retain, "")
    with torch.no_grad():
        e = dict(zip(texts, denoiser.encode(texts)["encoder_hidden_states"].double()))
    c, a = paired_by_hand(family, e)
    p = torch.cat([e[text] for text in (*TINY.retain, "")])
    for name, weight in new.items():
        expected = naive_uce(before[name].double(), c, a, p, 1.0, 0.3, 5.0)
        np.testing.assert_allclose(weight.numpy(), expected, rtol=1e-4, atol=1e-5)


# One token a letter. BOS a c a t EOS … beside BOS a f o x EOS …: the same places throughout; `cat, neon` beside
# `hound, neon`: BOS, then c a t beside u n d (the last three of five), then the rest two places further on.
SAME = [(k, k) for k in range(40)]
LONGER = [(0, 0), *((k, k + 2) for k in range(1, 38))]
T5_SAME = [(k, k) for k in range(256)]
T5_LONGER = [(0, 0), *((k, k + 2) for k in range(1, 254))]


def paired_by_hand(family: str, e: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Rows of concepts and anchors; T5's stand after CLIP's 40, with a word boundary where CLIP has BOS."""
    pairs = [SAME, LONGER]
    if family == "sd3":
        later = [[(here + 40, there + 40) for here, there in part] for part in (T5_SAME, T5_LONGER)]
        pairs = [clip + t5 for clip, t5 in zip(pairs, later)]
    c = [e[prompt][here] for prompt, part in zip(TINY.forget, pairs) for here, _ in part]
    a = [e[anchor][there] for anchor, part in zip(TINY.anchor, pairs) for _, there in part]
    return torch.stack(c), torch.stack(a)


def test_last_pairs_one_token_of_each_prompt(tiny: TinyFolder) -> None:
    denoiser = load_denoiser(str(tiny("sd1")))
    with torch.no_grad():
        tokens = edit_tokens(denoiser, [TINY], "last")
        e = denoiser.encode([*TINY.forget, *TINY.anchor])["encoder_hidden_states"].double()
    torch.testing.assert_close(tokens.concepts, torch.stack([e[0][4], e[1][3]]))  # t of `a cat`, t of `cat`
    torch.testing.assert_close(tokens.anchors, torch.stack([e[2][4], e[3][5]]))  # x of `a fox`, d of `hound`
    assert tokens.preserve.shape == (3 * 40, 16) and tokens.empty.shape == (40, 16)


def test_prompts_without_a_replaced_word_are_refused(tiny: TinyFolder) -> None:
    grown = replace(TINY, forget=("a cat",), anchor=("a cat in a hat",))
    with pytest.raises(ValueError, match="give another anchor"):
        edit(load_denoiser(str(tiny("sd1"))), [grown], EditSettings(method="uce", tokens="last"))


def test_several_concepts_are_one_edit(tiny: TinyFolder) -> None:
    other = replace(TINY, name="bee", forget=("a bee",), anchor=("a fly",), retain=("a red car", "a hut"))
    denoiser = load_denoiser(str(tiny("sd1")))
    with torch.no_grad():
        both = edit_tokens(denoiser, [TINY, other], "all")
        one, two = (edit_tokens(denoiser, [concept], "all") for concept in (TINY, other))
    torch.testing.assert_close(both.concepts, torch.cat([one.concepts, two.concepts]))
    torch.testing.assert_close(both.anchors, torch.cat([one.anchors, two.anchors]))
    assert len(both.preserve) == 4 * 40  # a fish, a red car (once), the empty prompt, a hut


def test_rece_edits_away_what_uce_leaves_open(tiny: TinyFolder) -> None:
    """The naive loop, and its purpose: the derived embeddings bring the concept back less than they did after UCE."""
    denoiser = load_denoiser(str(tiny("sdxl")))
    base = {name: w.detach().clone().double() for name, w in edited_weights(denoiser.module).items()}
    with torch.no_grad():
        t = edit_tokens(denoiser, [TINY], "all")
    new = edit(denoiser, [TINY], EditSettings(method="rece", rounds=2, mu=0.3, regularization=5.0))

    def edited(c: Tensor, a: Tensor) -> dict[str, Tensor]:
        return {n: torch.from_numpy(naive_uce(w, c, a, t.preserve, 1, 1, 5.0)) for n, w in base.items()}

    def derived(weights: dict[str, Tensor]) -> Tensor:
        return derive_concepts(list(base.values()), list(weights.values()), t.concepts, mu=0.3)

    def gap(weights: dict[str, Tensor]) -> float:
        """How far what brought the concept back after UCE is from the anchor."""
        return sum(((first @ weights[n].T.double() - t.anchors @ w.T) ** 2).sum().item() for n, w in base.items())

    first = derived(edited(t.concepts, t.anchors))
    second = derived(edited(torch.cat([t.concepts, first]), torch.cat([t.anchors] * 2)))
    expected = edited(torch.cat([t.concepts, first, second]), torch.cat([t.anchors] * 3))
    for name, weight in new.items():
        np.testing.assert_allclose(weight.double().numpy(), expected[name].numpy(), rtol=1e-3, atol=1e-5)
    assert gap(new) < 0.9 * gap(edited(t.concepts, t.anchors))


def test_a_mask_bounds_the_edit(tiny: TinyFolder) -> None:
    folder = str(tiny("sd1"))
    before = originals(load_denoiser(folder))
    mask = SaliencyMask.from_scores({n: torch.rand_like(w) for n, w in before.items()}, density=0.3)
    for method in ("recommended", "uce", "rece"):
        denoiser = load_denoiser(folder)
        masked = edit(denoiser, [TINY], EditSettings(method=method), mask)
        for name, weight in denoiser.module.named_parameters():
            assert torch.equal(weight[~mask.tensors[name]], before[name][~mask.tensors[name]]), name
            assert (name in masked) == (not torch.equal(weight, before[name])), name


def test_half_precision_stays_half(tiny: TinyFolder) -> None:
    denoiser = load_denoiser(str(tiny("sd1")))
    denoiser.module.to(torch.bfloat16)
    new = edit(denoiser, [TINY], EditSettings(method="uce"))
    assert {weight.dtype for weight in new.values()} == {torch.bfloat16}


def test_what_cannot_be_edited_is_refused_before_anything_moves(tiny: TinyFolder) -> None:
    denoiser = load_denoiser(str(tiny("sd1")))
    before = originals(denoiser)
    elsewhere = {n: torch.full(w.shape, "attn2" not in n) for n, w in before.items()}
    with pytest.raises(ValueError, match=r"no weight of the .* layers .*--scope cross-attention-kv"):
        edit(denoiser, [TINY], EditSettings(method="uce"), SaliencyMask(elsewhere))
    with pytest.raises(ValueError, match=r"Sequential has neither .*attn2\.to_k.*Stable Diffusion 1, 2, XL and 3"):
        edited_weights(nn.Sequential(nn.Linear(2, 2)))
    assert all(torch.equal(weight, before[name]) for name, weight in denoiser.module.named_parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "esd"}, "method must be one of recommended, uce, rece, speed; got 'esd'"),
        ({"tokens": "first"}, "tokens must be one of all, last"),
        ({"regularization": 0.0}, "regularization must be above 0"),
        ({"erase_weight": -1.0}, "erase_weight must be above 0"),
        ({"mu": 0.0}, "mu must be above 0"),
        ({"null_threshold": 0.0}, "null_threshold must be above 0"),
        ({"augmentations": -1}, "augmentations must be at least 0"),
        ({"empty_centers": -1}, "empty_centers must be at least 0"),
        ({"preserve_weight": -0.1}, "preserve_weight must be at least 0"),
        ({"rounds": 0}, "rounds must be at least 1"),
    ],
)
def test_settings_out_of_range_say_so(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EditSettings(**dict[str, Any](method="uce") | changes)


def test_uce_moves_the_canvas_cat_to_its_anchor_and_leaves_the_others_in_two_seconds() -> None:
    """Held-out wording: none of these prompts was among those that the edit saw."""
    denoiser, concepts = load_denoiser("canvas"), load_concepts(["cat"], model="canvas")
    before = {name: w.detach().clone() for name, w in edited_weights(denoiser.module).items()}
    started = time.process_time()
    after = edit(denoiser, concepts, EditSettings(method="uce"))
    assert time.process_time() - started < 2
    styles = ("photo", "sketch", "watercolor", "neon")
    with torch.no_grad():
        cat, dog, apple = (
            denoiser.encode([f"{name}, {style}" for style in styles])["encoder_hidden_states"]
            for name in ("a cat", "a dog", "an apple")
        )
    for name, weight in after.items():
        base = before[name]
        erased = (cat @ weight.T - dog @ base.T).norm() / ((cat - dog) @ base.T).norm()
        kept = (apple @ (weight - base).T).norm() / ((apple - cat) @ base.T).norm()
        assert erased < 0.5 and kept < 0.1, (name, erased, kept)
