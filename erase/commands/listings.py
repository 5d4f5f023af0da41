"""`erase concepts` and `erase methods`: what there is to erase and to erase it with, in a line each."""

import textwrap
from collections.abc import Iterable

from ..parsing import is_main_process

WIDTH = 100
OWN_CONCEPT = """
Your own, in words:

  erase train --concept "a zebra" --concept_type object        (or style, or person)

Your own, with prompts of your choice: write zebra.yaml and give --concept zebra.yaml.

  name: zebra
  type: object
  forget: [a photo of a zebra, a zebra on a savanna]      # prompts that name it
  anchor: [a photo of a horse, a horse on a savanna]      # what to generate in place of each; or one for all
  retain: [a photo of a lion, a photo of a giraffe]       # what must stay as it is
  evaluate: [a zebra drinking from a river]               # other words for it, to score with"""
KINDS = {
    "trained": "Trained: erase train --method NAME",
    "closed-form": "Solved in closed form, in seconds: erase train --method NAME",
    "inference": "No weight changes: erase generate (or evaluate) --guard NAME",
}


def concepts() -> None:
    """List every concept that ships with this package, and say how to write one."""
    from ..concepts.concept import known_concepts, load_concepts, load_family

    known = known_concepts()
    lines = ["Concepts: erase train --concept NAME", ""]
    for name in (name for name in known if "/" not in name):
        (concept,) = load_concepts([name])
        example = f"{concept.forget[0]!r} becomes {concept.anchor[0]!r}"
        lines.append(_line(name, f"{concept.type}; {len(concept.forget)} prompts: {example}"))
    lines += ["", "Families of concepts: erase train --concept FAMILY/NAME", ""]
    for name in dict.fromkeys(name.partition("/")[0] for name in known if "/" in name):
        family = load_family(name)
        counts = " and ".join(f"{len(classes)} {domain}s" for domain, classes in family.domains.items())
        short = f"; with --pretrained_model_name_or_path {family.model} NAME is enough" if family.model else ""
        lines += [_line(name, f"{counts}{short}"), _wrapped(family.members()), ""]
    _say([*lines[:-1], OWN_CONCEPT])


def methods() -> None:
    """List every method: what it does, and the arXiv id of its paper or where it comes from."""
    from ..classifiers.settings import DESCRIPTIONS
    from ..methods import METHODS

    lines = []
    for kind, title in KINDS.items():
        lines += [title, ""]
        for name, method in METHODS.items():
            if method.kind == kind:
                names = method.guards if kind == "inference" else (name,)
                lines.append(_line(", ".join(names), method.summary + _source(method.source)))
        lines.append("")
    lines += ["For classifiers: erase classify --methods NAME,NAME", ""]
    lines += [_line(name, one.summary + _source(one.source)) for name, one in DESCRIPTIONS.items()]
    _say([*lines, "", "The settings of a method: erase train --method NAME --concept nudity --print_config"])


def _source(source: str) -> str:
    """In brackets, an arXiv id named as one; nothing for what comes from no paper."""
    return f" (arXiv {source})" if source[:4].isdigit() else f" ({source})" if source else ""


def _line(name: str, text: str) -> str:
    """A name and what it is, continued below the text where that is long; a long name has a line of its own."""
    indent = " " * 21
    filled = textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
    return f"  {name:<19}" + filled[21:] if len(name) < 19 else f"  {name}\n{filled}"


def _wrapped(names: Iterable[str]) -> str:
    indent = " " * 21
    return textwrap.fill(", ".join(names), WIDTH, initial_indent=indent, subsequent_indent=indent)


def _say(lines: Iterable[str]) -> None:
    if is_main_process():
        print("\n".join(lines))
