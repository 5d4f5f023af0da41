"""What the words on a page mean, for readers who meet them for the first time: only those that the page uses."""

import re
from functools import cache
from html import unescape
from pathlib import Path

import yaml

from .markup import facts, note, section

GLOSSARY_FILE = Path(__file__).with_name("glossary.yaml")

Terms = dict[str, str]
"""Word → its meaning."""


def glossary(html: str, *files: Path) -> str:
    """The section with the words that a page's other sections use; `files` have a page's own, which go first."""
    used = used_terms(visible_text(html), *files)
    words = note("An arrow after a figure says which direction is better.")
    listed = f'<div class="glossary">{facts(used.items())}</div>'
    return section("glossary", "Words on this page", words, listed) if used else ""


def used_terms(words: str, *files: Path) -> Terms:
    """The terms that a text uses, in their order."""
    terms = [term for file in (*files, GLOSSARY_FILE) for term in load_terms(file) if re.search(term["finds"], words)]
    found: Terms = {}
    for term in terms:
        found.setdefault(term["word"], term["meaning"])
    return found


@cache
def load_terms(file: Path = GLOSSARY_FILE) -> list[dict[str, str]]:
    """`word`, `finds` and `meaning` of every term in a file."""
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def visible_text(html: str) -> str:
    """The words of a page without tags, pictures and the files that it quotes (`<pre>`)."""
    words = re.sub(r"<pre.*?</pre>|<[^>]*>", " ", html, flags=re.DOTALL)
    return re.sub(r"\s+", " ", unescape(words))
