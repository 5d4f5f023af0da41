"""When two prompts say the same: whole words, whatever their case, article, number, hyphen or Unicode form.

English articles are left out and English nouns count the same in the plural. In scripts that are written without
blanks (Chinese, Japanese, Thai, Lao, Khmer, Burmese), and in Korean, whose particles follow a noun without one, every
character is a word of its own, since nothing marks where a word ends.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache

Word = frozenset[str]
"""A word and what it may be the plural of: {"knives", "knive", "knife"}. Two words are the same if they share one."""

ARTICLES = {"a", "an", "the"}
IRREGULAR = {
    "children": "child", "dice": "die", "feet": "foot", "geese": "goose", "knives": "knife", "lice": "louse",
    "lives": "life", "mice": "mouse", "midwives": "midwife", "oxen": "ox", "people": "person", "quizzes": "quiz",
    "teeth": "tooth", "wives": "wife", "matrices": "matrix", "vertices": "vertex", "criteria": "criterion",
    "phenomena": "phenomenon", "bacteria": "bacterium", "men": "man",
}  # fmt: skip
ENDINGS = (
    ("men", "man"), ("eaux", "eau"), ("ies", "y"), ("ves", "f"), ("ses", "sis"), ("ses", "s"), ("xes", "x"),
    ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("oes", "o"), ("i", "us"), ("s", ""),
)  # fmt: skip
"""A plural's ending → its singular's. Every one that fits counts: one that makes no word meets no other word."""
NO_PLURAL = {"news", "series", "species"}
UNBROKEN = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1100, 0x11FF), (0x1780, 0x17FF), (0x3005, 0x3007), (0x3040, 0x30FF),
    (0x3130, 0x318F), (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xA9E0, 0xA9FF), (0xAA60, 0xAA7F),
    (0xAC00, 0xD7FF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF),
)  # fmt: skip
"""Ranges of characters that stand side by side without blanks: Thai and Lao, Burmese, Khmer, kana, Han, Hangul."""


@lru_cache(maxsize=2**14)
def words(text: str) -> tuple[Word, ...]:
    """The text's words without articles, each with what it may be the plural of; empty for a text of signs alone."""
    found = _split(text)
    kept = [word for word, follows in zip(found, [*found[1:], None]) if word not in ARTICLES or follows is None]
    return tuple(frozenset(_forms(word)) for word in kept)


def same(one: str, other: str) -> bool:
    """Whether two texts are the same words in the same order."""
    return one == other or (bool(words(one)) and _equal(words(one), words(other)))


def named(phrases: Sequence[str], text: str) -> str | None:
    """The phrase, of those given, whose words stand side by side in the text first, if any does."""
    there, starts = words(text), _starts(tuple(phrases))
    for at, word in enumerate(there):
        for phrase in (phrase for form in word for phrase in starts.get(form, ())):
            if _equal(there[at : at + len(words(phrase))], words(phrase)):
                return phrase
    return None


def bare(text: str) -> str:
    """The text without its leading article: `a zebra` → `zebra`."""
    first, _, rest = text.strip().partition(" ")
    return rest.strip() if first.casefold() in ARTICLES and rest.strip() else text.strip()


@lru_cache
def _starts(phrases: tuple[str, ...]) -> dict[str, list[str]]:
    """What a phrase may start with → those phrases."""
    starts: dict[str, list[str]] = {}
    for phrase in filter(words, phrases):
        for form in words(phrase)[0]:
            starts.setdefault(form, []).append(phrase)
    return starts


def _equal(one: tuple[Word, ...], other: tuple[Word, ...]) -> bool:
    return len(one) == len(other) and all(not here.isdisjoint(there) for here, there in zip(one, other))


def _forms(word: str) -> Iterator[str]:
    """The word, and the singulars that it may be the plural of."""
    yield word
    if word in IRREGULAR:
        yield IRREGULAR[word]
    if word in NO_PLURAL or word.endswith("ss"):
        return
    for plural, singular in ENDINGS:
        if word.endswith(plural) and len(word) > len(plural) + 1:
            yield word.removesuffix(plural) + singular


def _split(text: str) -> list[str]:
    """Runs of letters and digits, a possessive's s left out; characters of unbroken scripts and symbols one by one."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return "".join(map(_spaced, re.sub(r"(?<=\w)['’]s(?!\w)", "", text))).split()


def _spaced(sign: str) -> str:
    """The character with a blank on either side where it is a word of its own; a blank for what parts words."""
    kind = unicodedata.category(sign)
    if kind == "Cf" or 0xFE00 <= ord(sign) <= 0xFE0F:  # invisible: soft hyphens, joiners, how an emoji is shown
        return ""
    letter = kind[0] in "LNM"
    if kind[0] == "S" or (letter and _unbroken(sign)):
        return f" {sign} "
    return sign if letter else " "


def _unbroken(sign: str) -> bool:
    return any(first <= ord(sign) <= last for first, last in UNBROKEN)
