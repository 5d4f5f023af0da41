"""Contract: maps are the softmax that the UNet's cross-attention layers really use, with gradients, and cost no change.

They equal a float64 recomputation, reproduce the layers' own outputs and have the gradients of diffusers' processor;
rows and positions are slices of the whole. The concept's tokens are whole words that the anchor lacks.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from transformers import CLIPTokenizer

from drawing import TinyFolder
from erase.canvas import PIPELINE_DIR
from erase.data.concept_tokens import concept_tokens
from erase.models.loading import Denoiser, load_denoiser
from erase.trained.adapters import add_adapter
from erase.trained.attention import attention_loss, cross_attention_layers, cross_attention_maps

PROMPTS, ANCHORS = ["a cat sat", "my fine dog"], ["a dog sat", "my fine cat"]
UNETS = pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])


@pytest.fixture(params=["sd1", "sdxl"])
def denoiser(request: pytest.FixtureRequest, tiny: TinyFolder) -> Denoiser:
    return load_denoiser(str(tiny(request.param)))


@pytest.fixture(scope="module")
def canvas_tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(PIPELINE_DIR / "tokenizer")


def predict(denoiser: Denoiser, rows: int = 2) -> Tensor:
    """One forward of the first rows; its prompts differ."""
    generator = torch.Generator().manual_seed(0)
    dtype = next(denoiser.module.parameters()).dtype
    x = torch.randn(2, 4, 8, 8, generator=generator, dtype=torch.float64)[:rows].to(dtype)
    with torch.no_grad():
        conditioning = {key: value[:rows].to(dtype) for key, value in denoiser.encode(PROMPTS).items()}
    return denoiser.predict(x, torch.tensor([100, 700])[:rows], conditioning)


def tokens_of(denoiser: Denoiser) -> Tensor:
    return concept_tokens(denoiser.pipeline.tokenizer, PROMPTS, ANCHORS)


@contextmanager
def watched(module: nn.Module) -> Iterator[list[dict[str, Any]]]:
    """What goes into and comes out of every cross-attention layer."""
    seen: list[dict[str, Any]] = []

    def look(layer: nn.Module, inputs: tuple[Tensor, ...], keywords: dict[str, Any], output: Tensor) -> None:
        hidden, text = inputs[0], keywords["encoder_hidden_states"]
        seen.append({"layer": layer, "hidden": hidden.detach(), "text": text.detach(), "output": output.detach()})

    handles = [
        layer.register_forward_hook(look, with_kwargs=True)
        for name, layer in module.named_modules()
        if name.endswith(".attn2")
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def naive_map(layer: Attention, hidden: np.ndarray, text: np.ndarray) -> np.ndarray:
    """(B, heads, N, T) in float64, row by row and head by head."""
    queries, keys = hidden @ array(layer.to_q.weight).T, text @ array(layer.to_k.weight).T  # type: ignore[union-attr]
    width = queries.shape[-1] // layer.heads
    rows = []
    for query, key in zip(queries, keys):
        heads = []
        for head in range(layer.heads):
            part = slice(head * width, (head + 1) * width)
            scores = query[:, part] @ key[:, part].T / np.sqrt(width)
            exponentials = np.exp(scores - scores.max(-1, keepdims=True))
            heads.append(exponentials / exponentials.sum(-1, keepdims=True))
        rows.append(heads)
    return np.array(rows)


def test_maps_equal_a_recomputation_and_give_the_layers_outputs(denoiser: Denoiser) -> None:
    with watched(denoiser.module) as seen, cross_attention_maps(denoiser.module) as maps:
        predict(denoiser)
    assert len(maps) == len(seen) > 2
    for found, call in zip(maps, seen, strict=True):
        layer, hidden, text = call["layer"], array(call["hidden"]), array(call["text"])
        expected = naive_map(layer, hidden, text)
        np.testing.assert_allclose(array(found), expected, rtol=2e-4, atol=1e-6)
        values = np.stack(np.split(text @ array(layer.to_v.weight).T, layer.heads, axis=-1), axis=1)
        mixed = np.concatenate(list(np.moveaxis(array(found) @ values, 1, 0)), axis=-1)
        output = mixed @ array(layer.to_out[0].weight).T + array(layer.to_out[0].bias)
        np.testing.assert_allclose(array(call["output"]), output, rtol=1e-3, atol=1e-4)


class KeepingProcessor:
    """Diffusers' own attention scores, kept: the way that replaces processors."""

    def __init__(self, kept: list[Tensor]):
        self.kept = kept

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: Any) -> Tensor:
        query, key, value = (
            attn.head_to_batch_dim(project(source))
            for project, source in (
                (attn.to_q, hidden_states),
                (attn.to_k, encoder_hidden_states),
                (attn.to_v, encoder_hidden_states),
            )
        )
        scores = attn.get_attention_scores(query, key)
        self.kept.append(scores.unflatten(0, (-1, attn.heads)))
        return attn.to_out[0](attn.batch_to_head_dim(scores @ value))


def test_loss_has_the_gradients_of_diffusers_own_processor(denoiser: Denoiser) -> None:
    module, tokens = denoiser.module.double(), tokens_of(denoiser)
    with cross_attention_maps(module) as maps:
        predict(denoiser)
    loss = attention_loss(maps, tokens)
    loss.backward()
    found = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()

    kept: list[Tensor] = []
    for layer in cross_attention_layers(module).values():
        layer.set_processor(KeepingProcessor(kept))  # type: ignore[arg-type]
    predict(denoiser)
    total = torch.zeros((), dtype=torch.float64)
    for scores in kept:
        rows, heads, queries, _ = scores.shape
        for row, head in np.ndindex(rows, heads):
            total = total + (scores[row, head][:, tokens[row]] ** 2).sum() / (rows * heads * queries)
    expected = total / len(kept)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
    reached = {name: p.grad for name, p in module.named_parameters() if p.grad is not None and p.grad.any()}
    assert {name for name, grad in found.items() if grad.any()} == set(reached)
    assert any(".attn2.to_k." in name for name in reached)
    for name, grad in reached.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-6, atol=1e-12)


def test_rows_and_positions_are_slices_of_the_whole(denoiser: Denoiser) -> None:
    positions = torch.tensor([0, 3, 7])
    with cross_attention_maps(denoiser.module) as whole:
        predict(denoiser)
    with cross_attention_maps(denoiser.module, slice(1, 2), positions) as kept:
        predict(denoiser)
    assert [part.shape[0] for part in kept] == [1] * len(whole) and [part.shape[-1] for part in kept] == [3] * len(
        whole
    )
    for part, full in zip(kept, whole, strict=True):
        assert torch.equal(part, full[1:2][..., positions])


def test_loss_on_kept_positions_equals_loss_on_all(denoiser: Denoiser) -> None:
    tokens = tokens_of(denoiser)
    positions = tokens.any(0).nonzero().flatten()
    assert 0 < len(positions) < tokens.shape[1] and not torch.equal(tokens[0], tokens[1])
    with cross_attention_maps(denoiser.module) as whole:
        predict(denoiser)
    with cross_attention_maps(denoiser.module, slice(0, 2), positions) as kept:
        predict(denoiser)
    torch.testing.assert_close(attention_loss(kept, tokens[:, positions]), attention_loss(whole, tokens))


@UNETS
def test_recording_changes_no_bit_and_leaves_no_hook(tiny: TinyFolder, family: str) -> None:
    denoiser = load_denoiser(str(tiny(family)))
    before = predict(denoiser)
    with cross_attention_maps(denoiser.module) as maps:
        during = predict(denoiser)
    count = len(maps)
    assert torch.equal(before, during) and torch.equal(before, predict(denoiser)) and len(maps) == count
    with pytest.raises(RuntimeError, match="stop"), cross_attention_maps(denoiser.module):
        raise RuntimeError("stop")
    assert not any(module._forward_hooks for module in denoiser.module.modules())


def test_training_on_the_loss_takes_attention_from_the_concept_alone(denoiser: Denoiser) -> None:
    module, tokens = denoiser.module, tokens_of(denoiser)
    module.requires_grad_(False)
    trained = [p.requires_grad_() for name, p in module.named_parameters() if ".attn2." in name]
    optimizer = torch.optim.AdamW(trained, lr=2e-2)
    shares = []
    for _ in range(8):
        with cross_attention_maps(module) as maps:
            predict(denoiser)
        chosen = tokens[:, None, None]
        shares.append(torch.stack([(each * chosen).sum(-1).mean() for each in maps]).mean().item())
        optimizer.zero_grad()
        attention_loss(maps, tokens).backward()
        optimizer.step()
    assert shares[-1] < 0.3 * shares[0]
    assert all(torch.allclose(each.sum(-1), torch.ones(())) for each in maps)  # the other tokens have the rest


def test_maps_of_an_adapter_are_those_of_the_adapted_weights(denoiser: Denoiser) -> None:
    adapter = add_adapter(denoiser.module, 2, lambda name: ".attn2.to_k." in name, seed=0)
    with torch.no_grad(), cross_attention_maps(denoiser.module) as before:
        predict(denoiser)
    for parameter in adapter.values():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    with cross_attention_maps(denoiser.module) as after:
        predict(denoiser)
    assert not torch.allclose(before[0], after[0], atol=1e-3)
    attention_loss(after, tokens_of(denoiser)).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in adapter.values())


def test_maps_stay_float32_under_autocast(denoiser: Denoiser) -> None:
    with torch.autocast("cpu", torch.bfloat16), cross_attention_maps(denoiser.module) as maps:
        assert predict(denoiser).dtype == torch.bfloat16
    for each in maps:
        assert each.dtype == torch.float32
        torch.testing.assert_close(each.sum(-1), torch.ones(each.shape[:-1]), rtol=1e-5, atol=0)


def test_models_without_cross_attention_are_refused_by_name(tiny: TinyFolder) -> None:
    module = load_denoiser(str(tiny("sd3"))).module
    refusal = pytest.raises(ValueError, match="SD3Transformer2DModel has no cross-attention.*SDXL")
    with refusal, cross_attention_maps(module):
        pass


def test_gradient_checkpointing_is_refused(denoiser: Denoiser) -> None:
    module: Any = denoiser.module
    module.enable_gradient_checkpointing()
    with pytest.raises(ValueError, match="gradient_checkpointing"), cross_attention_maps(module):
        pass


def test_loss_refuses_maps_of_other_rows_or_positions(denoiser: Denoiser) -> None:
    tokens = tokens_of(denoiser)
    with cross_attention_maps(denoiser.module, positions=torch.tensor([1, 2])) as maps:
        predict(denoiser)
    with pytest.raises(ValueError, match=r"\(2, 40\).*\(2, 2\)"):
        attention_loss(maps, tokens)
    with pytest.raises(ValueError, match="got \\[\\]"):
        attention_loss([], tokens)


def named(tokenizer: Any, prompt: str, anchor: str, **options: Any) -> list[str]:
    """The tokens, as the pipeline pads them, that are taken for the concept's."""
    row = concept_tokens(tokenizer, [prompt], [anchor], **options)[0]
    ids = tokenizer(
        prompt, padding="max_length", truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt"
    ).input_ids[0]
    assert row.shape == ids.shape and row.dtype == torch.bool
    return tokenizer.convert_ids_to_tokens(ids[row].tolist())


@pytest.mark.parametrize(
    ("prompt", "anchor", "expected"),
    [
        ("a watercolor of a cat", "a watercolor of a dog", ["cat</w>"]),
        ("a cat in photo style", "an octopus in photo style", ["cat</w>"]),
        ("a neon sign of a cat", "a blueprint of a cat", ["neon</w>", "sign</w>"]),
        ("a cat on a cat", "a dog on a dog", ["cat</w>", "cat</w>"]),
        ("a photo of a nude cat", "a photo of a cat in a house", ["n", "u", "d", "e</w>"]),
        # Pieces that two words share do not save a part of the concept's word.
        ("cats", "cars", ["c", "a", "t", "s</w>"]),
        # The anchor is read to its end, beyond what the model reads of it.
        ("cat photo " * 9 + "apple", "dog photo " * 20 + "apple", ["cat</w>"] * 9),
    ],
)
def test_concept_tokens(canvas_tokenizer: CLIPTokenizer, prompt: str, anchor: str, expected: list[str]) -> None:
    assert named(canvas_tokenizer, prompt, anchor) == expected


def test_concept_tokens_row_by_row_letter_by_letter(tiny: TinyFolder) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(Path(tiny("sd1")) / "tokenizer")
    rows = concept_tokens(tokenizer, PROMPTS, ANCHORS)
    assert rows.shape == (2, 40)
    assert [row.nonzero().flatten().tolist() for row in rows] == [[2, 3, 4], [7, 8, 9]]


def test_end_token_takes_in_the_padding_where_it_is_the_same_token(canvas_tokenizer: CLIPTokenizer) -> None:
    end = "<|endoftext|>"
    assert named(canvas_tokenizer, "a cat", "a dog", end_token=True) == ["cat</w>"] + [end] * 21
    other = CLIPTokenizer.from_pretrained(
        PIPELINE_DIR / "tokenizer", pad_token="a</w>"
    )  # as "!" is Stable Diffusion 2's
    assert named(other, "a cat", "a dog", end_token=True) == ["cat</w>", end]
    full = "cat " * 30
    assert named(canvas_tokenizer, full, "a dog", end_token=True) == ["cat</w>"] * 22 + [end]


@pytest.mark.parametrize(("prompt", "anchor"), [("a cat", "a cat in the house"), ("cat " * 22 + "dog", "cat " * 22)])
def test_prompts_without_words_of_their_own_are_refused(
    canvas_tokenizer: CLIPTokenizer, prompt: str, anchor: str
) -> None:
    with pytest.raises(ValueError, match="no word that its anchor.*Choose an anchor"):
        concept_tokens(canvas_tokenizer, [prompt], [anchor])
