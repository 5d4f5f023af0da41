"""Which tokens of a prompt name the concept: those that its anchor lacks."""

import difflib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

FUNCTION_WORDS = frozenset(["a", "an", "and", "at", "by", "for", "from", "in", "of", "on", "the", "to", "with"])
"""Words that name no concept, though a forget prompt and its anchor may differ in them: "a cat" and "an octopus"."""


def concept_tokens(
    tokenizer: Any, prompts: Sequence[str], anchors: Sequence[str], *, end_token: bool = False
) -> Tensor:
    """Which tokens of each forget prompt name the concept: (B, T) bool, T being the length that prompts are padded to.

    They are the words that the anchor, aligned word by word, lacks: `cat` of "a watercolor of a cat" beside "a
    watercolor of a dog", both words of "neon sign" beside "blueprint". A word's tokens go together, so that a piece
    which two words happen to share is no common ground. Function words (of, the, …) and the tokens for start, end and
    padding are left out.

    Args:
        tokenizer: the pipeline's CLIP tokenizer; SDXL's two give the same positions.
        prompts: B forget prompts.
        anchors: their B anchors.
        end_token: also the end token, to which CLIP's text encoder gives the meaning of the whole prompt, and the
            padding where it is the same token: `use_pooler` of the paper's code.

    Raises ValueError when a prompt, as far as it fits into T tokens, has no word that its anchor lacks.
    """
    return torch.stack([_concept_row(tokenizer, *pair, end_token) for pair in zip(prompts, anchors, strict=True)])


def _concept_row(tokenizer: Any, prompt: str, anchor: str, end_token: bool) -> Tensor:
    length = tokenizer.model_max_length
    words = _words(tokenizer, prompt)
    matcher = difflib.SequenceMatcher(None, _words(tokenizer, anchor), words, autojunk=False)
    row = [False]  # the start token
    for tag, _, _, first, last in matcher.get_opcodes():
        for word in words[first:last]:
            row += [tag != "equal" and "".join(word).removesuffix("</w>") not in FUNCTION_WORDS] * len(word)
    row = row[: length - 1]
    if not any(row):
        raise ValueError(
            f"The forget prompt {prompt!r} has no word that its anchor {anchor!r} lacks (within the {length} tokens "
            "that the model reads), so no word's attention can be taken from it. Choose an anchor that leaves out the "
            "words for the concept."
        )
    pads_alike = tokenizer.pad_token_id == tokenizer.eos_token_id
    ends = [end_token] + [end_token and pads_alike] * (length - 1 - len(row))
    return torch.tensor(row + ends)


def _words(tokenizer: Any, prompt: str) -> list[tuple[str, ...]]:
    """The prompt's tokens without start and end, grouped into words: CLIP marks a word's last token with `</w>`."""
    ids = tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids
    words: list[tuple[str, ...]] = []
    word: tuple[str, ...] = ()
    for token in tokenizer.convert_ids_to_tokens(ids):
        word += (token,)
        if token.endswith("</w>"):
            words.append(word)
            word = ()
    return [*words, word] if word else words
