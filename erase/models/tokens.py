"""How much of a prompt a model reads, and whether what tells a concept from its anchor is in that part."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any

from ..concepts.concept import Concept

if TYPE_CHECKING:
    from .base import Denoiser


@dataclass(frozen=True, kw_only=True)
class TextReader:
    """One text encoder's tokenizer and how many tokens of it the pipeline takes in."""

    tokenizer: Any
    """A transformers tokenizer."""
    limit: int
    """Tokens that are read, those for start and end included."""

    def ids(self, prompt: str) -> list[int]:
        """Token ids of the whole prompt, without start and end."""
        return self.tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids

    @property
    def room(self) -> int:
        """Tokens that are left for the prompt."""
        return self.limit - self.tokenizer.num_special_tokens_to_add()

    def cut(self, prompt: str) -> str:
        """The end of the prompt that is not read; empty for a prompt that fits."""
        return self.tokenizer.decode(self.ids(prompt)[self.room :]).strip()

    def misses(self, prompt: str, anchor: str) -> bool:
        """Whether words of the prompt that its anchor lacks are cut off, or what is read of both is the same."""
        ids, anchor_ids = self.ids(prompt), self.ids(anchor)
        blocks = SequenceMatcher(None, ids, anchor_ids, autojunk=False).get_opcodes()
        lost = any(kind in ("replace", "delete") and stop > self.room for kind, _, stop, _, _ in blocks)
        return lost or ids[: self.room] == anchor_ids[: self.room]


def check_prompts_fit(denoiser: "Denoiser", concepts: Sequence[Concept]) -> list[str]:
    """Lines that warn of prompts whose end no text encoder reads; call it while the tokenizers are loaded.

    ValueError where that end, or words in it, is what tells a forget prompt from its anchor: nothing would be erased.
    """
    readers = denoiser.text_readers()
    furthest = max(readers, key=lambda reader: reader.room)
    for concept in concepts:
        for prompt, anchor in zip(concept.forget, concept.anchor):
            if all(reader.misses(prompt, anchor) for reader in readers):
                raise ValueError(_missed(concept, prompt, anchor, furthest))
    prompts = dict.fromkeys(p for c in concepts for p in (*c.forget, *c.anchor, *c.retain, *c.evaluate))
    long = [prompt for prompt in prompts if all(reader.cut(prompt) for reader in readers)]
    if not long:
        return []
    return [
        f"Prompts longer than the {furthest.limit} tokens that this model reads are cut off ({len(long)} of "
        f"{len(prompts)}), for example {furthest.cut(long[0])!r} of {long[0]!r}."
    ]


def _missed(concept: Concept, prompt: str, anchor: str, reader: TextReader) -> str:
    pair = f"Concept {concept.name!r}: the forget prompt {prompt!r}"
    if lost := reader.cut(prompt):
        return (
            f"{pair} is longer than the {reader.limit} tokens that this model reads: {lost!r} is cut off, and with it "
            f"words that its anchor {anchor!r} lacks. Shorten both, or put the concept's words first."
        )
    return (
        f"{pair} and its anchor {anchor!r} are the same to this model, which reads {reader.limit} tokens: nothing "
        "would be erased. Give an anchor in other words, and no longer than that."
    )
