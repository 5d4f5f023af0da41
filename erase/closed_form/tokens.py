"""Token embeddings that a closed-form edit reads: the concept's, each paired with its anchor's, and what stays."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, Literal

import torch
from torch import Tensor

from ..concepts.concept import Concept
from ..models.base import Denoiser

EditTokens = Literal["all", "last"]
ENCODING_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class EditTokenSet:
    """Token embeddings of one edit, one a row, in float64."""

    concepts: Tensor
    """(n, i) tokens of the forget prompts."""
    anchors: Tensor
    """(n, i) what each of them is mapped to."""
    preserve: Tensor
    """(m, i) tokens of the retain prompts and of the empty prompt."""
    empty: Tensor
    """(T, i) tokens of the empty prompt, which guidance reads at every step."""


def edit_tokens(denoiser: Denoiser, concepts: Sequence[Concept], which: EditTokens) -> EditTokenSet:
    """Encode all prompts once and pair the forget prompts' tokens with their anchors'."""
    forget = [prompt for concept in concepts for prompt in concept.forget]
    anchors = [prompt for concept in concepts for prompt in concept.anchor]
    retain = dict.fromkeys(prompt for concept in concepts for prompt in (*concept.retain, ""))
    encoded = _encode(denoiser, [*forget, *anchors, *retain])
    spans = _spans(denoiser, encoded[forget[0]].shape[0])
    from_, to = [], []
    for prompt, anchor in zip(forget, anchors):
        pairs = [pair for span in spans for pair in span.pairs(prompt, anchor, which)]
        if not pairs:
            raise ValueError(f"{prompt!r} has no token that its anchor {anchor!r} replaces; give another anchor.")
        here, there = (list(positions) for positions in zip(*pairs))
        from_.append(encoded[prompt][here])
        to.append(encoded[anchor][there])
    return EditTokenSet(
        concepts=torch.cat(from_),
        anchors=torch.cat(to),
        preserve=torch.cat([encoded[prompt] for prompt in retain]),
        empty=encoded[""],
    )


def _encode(denoiser: Denoiser, prompts: Sequence[str]) -> dict[str, Tensor]:
    """Prompt → (T, i) token embeddings in float64."""
    distinct = list(dict.fromkeys(prompts))
    batches = [distinct[at : at + ENCODING_BATCH] for at in range(0, len(distinct), ENCODING_BATCH)]
    parts = [denoiser.encode(batch)["encoder_hidden_states"] for batch in batches]
    return dict(zip(distinct, torch.cat(parts).double()))


@dataclass(frozen=True)
class _Span:
    """Positions of the text embedding that one tokenizer fills."""

    tokenizer: Any
    start: int
    length: int

    def pairs(self, prompt: str, anchor: str, which: EditTokens) -> list[tuple[int, int]]:
        ids = [
            self.tokenizer(text, padding="max_length", max_length=self.length, truncation=True).input_ids
            for text in (prompt, anchor)
        ]
        found = pair_tokens(ids[0], ids[1], self.tokenizer.eos_token_id, which)
        return [(self.start + here, self.start + there) for here, there in found]


def _spans(denoiser: Denoiser, length: int) -> list[_Span]:
    """SD3 puts T5's tokens after those of its two CLIP encoders, which share positions as SDXL's two do."""
    pipeline = denoiser.pipeline
    t5 = getattr(pipeline, "tokenizer_3", None)
    if t5 is None:
        return [_Span(pipeline.tokenizer, 0, length)]
    clip = pipeline.tokenizer.model_max_length
    return [_Span(pipeline.tokenizer, 0, clip), _Span(t5, clip, length - clip)]


def pair_tokens(prompt: Sequence[int], anchor: Sequence[int], end: int, which: EditTokens) -> list[tuple[int, int]]:
    """Positions of a prompt's tokens and, beside each, the position of the anchor's token that it is mapped to.

    prompt, anchor: token ids, padded to one length; end: id of the end-of-text token. Words that both share are paired
    with themselves; words that were replaced are paired from the last one backwards, any that are left over with the
    first of the anchor's (a word that was only dropped, with what follows it); from the end-of-text token on, equal
    distances from it. `last`: only the last token of the last words that were replaced or dropped.
    """
    stop, anchor_stop = _stop(prompt, end), _stop(anchor, end)
    blocks = SequenceMatcher(None, prompt[:stop], anchor[:anchor_stop], autojunk=False).get_opcodes()
    changed = [block for block in blocks if block[0] in ("replace", "delete")]
    if which == "last":
        return [_backwards(*changed[-1][1:])[-1]] if changed else []
    words = [pair for block in blocks for pair in _backwards(*block[1:])]
    rest = min(len(prompt) - stop, len(anchor) - anchor_stop)
    return words + [(stop + k, anchor_stop + k) for k in range(rest)]


def _stop(ids: Sequence[int], end: int) -> int:
    """Position of the end-of-text token; a prompt that was cut off has none."""
    return list(ids).index(end) if end in ids else len(ids)


def _backwards(start: int, stop: int, anchor_start: int, anchor_stop: int) -> list[tuple[int, int]]:
    """Positions start … stop − 1 with the anchor's, both read from their last."""
    shift = anchor_stop - stop
    return [(here, max(here + shift, anchor_start)) for here in range(start, stop)]
