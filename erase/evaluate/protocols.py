"""Protocols: which prompts, seeds, sampler, size, metrics and how many pictures; one YAML each in configs/protocols/.

A protocol's prompts come from a table (I2P, COCO captions: a file or a hub id) or from a family of classes (Imagenette,
UnlearnCanvas, the canvas), where every combination of classes is drawn and those of an erased class are the target.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from math import ceil
from pathlib import Path
from typing import Any

import yaml

from ..concepts.concept import Concept, Family, load_family
from ..config import CONFIGS_DIR
from ..draw.prompts import PromptColumns, PromptFilter, PromptRow, load_prompts
from ..suggest import meant

PROTOCOLS_DIR = CONFIGS_DIR / "protocols"
RENAMED = {"num_retain_images": "num_kept_images"}
"""Old keys: of `erase train` it is the number of retained pictures to train on."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How pictures are made and scored, so that two people who name it get comparable numbers."""

    name: str
    """Name, as in `--protocol`; a subset is `name/subset`."""
    description: str
    """What it measures, in a sentence."""
    source: str
    """Where it was published (arXiv id)."""
    metrics: tuple[str, ...]
    """Names of metrics, in the order of the table."""
    num_inference_steps: int
    """Denoising steps."""
    guidance_scale: float
    """Guidance in diffusers' convention, where the prompt's row has none of its own."""
    scheduler: str = "default"
    """Sampler; default is the model's own."""
    height: int | None = None
    """Pixels; None is the model's own, or the row's."""
    width: int | None = None
    """Pixels; None is the model's own, or the row's."""
    prompts: str | None = None
    """Table of prompts: a hub id or a file."""
    columns: Mapping[str, Any] | None = None
    """Which of the table's columns hold the prompt, seed, guidance and size."""
    subsets: Mapping[str, Sequence[str]] | None = None
    """Subset name → conditions on the table's columns, such as `nudity_percentage > 50`."""
    num_images: int | None = None
    """N of the published protocol; another N is reported beside it."""
    role: str = "target"
    """What the table's prompts are: `target` asks for what was erased, `retain` for something else."""
    family: str | None = None
    """Family of classes whose combinations are the prompts."""
    templates: tuple[str, ...] = ()
    """Prompt templates instead of the family's own evaluation templates."""
    images_per_combination: int | None = None
    """This many pictures of every combination, target or retained; or else:"""
    num_target_images: int = 0
    """At least this many pictures of target combinations, each equally often."""
    num_kept_images: int = 0
    """At least this many of retained ones."""
    first_seed: int = 0
    """Seed of the first picture of a family, and of table rows without a seed."""
    sensitive: bool = False
    """Whether pictures are blurred in the report until somebody asks to see them."""


def load_protocol(name: str) -> tuple[Protocol, str | None]:
    """The protocol and subset of a shipped name (`i2p`, `i2p/sexual`) or of a YAML file's path."""
    stem, _, subset = name.partition("/") if not name.endswith((".yaml", ".yml")) else (name, "", "")
    path = Path(name) if not subset and name.endswith((".yaml", ".yml")) else PROTOCOLS_DIR / f"{stem}.yaml"
    if not path.is_file():
        shipped = ", ".join(sorted(p.stem for p in PROTOCOLS_DIR.glob("*.yaml")))
        raise ValueError(f"No protocol {name!r}. Give a YAML file, or one of the shipped ones: {shipped}.")
    protocol = _parsed(path)
    if subset and subset not in (protocol.subsets or {}):
        raise ValueError(f"{stem} has no subset {subset!r}; it has {', '.join(protocol.subsets or {}) or 'none'}.")
    return protocol, subset or None


def _parsed(path: Path) -> Protocol:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    known = {field.name for field in fields(Protocol)}
    if not isinstance(values, dict) or set(values) - known:
        odd = sorted(set(values) - known) if isinstance(values, dict) else type(values).__name__
        hint = meant(RENAMED[key] for key in odd if key in RENAMED)
        raise ValueError(f"{path}: unknown keys {odd}.{hint} A protocol has {', '.join(sorted(known))}.")
    try:
        lists: dict[str, Any] = {key: tuple(values.get(key, ())) for key in ("metrics", "templates")}
        protocol = Protocol(**values | lists)
    except TypeError as error:
        raise ValueError(f"{path}: {error}") from error
    if (protocol.prompts is None) == (protocol.family is None):
        raise ValueError(f"{path}: give either `prompts` (a table) or `family` (classes), not both.")
    if not protocol.metrics:
        raise ValueError(f"{path}: `metrics` is empty; nothing would be measured.")
    return protocol


def protocol_rows(
    protocol: Protocol, subset: str | None = None, concepts: Sequence[Concept] = (), prompts: str | None = None
) -> list[PromptRow]:
    """The pictures to draw; `prompts` stands in for the table's own source (a local copy of it)."""
    if protocol.family is not None:
        if prompts is not None:
            raise ValueError(f"The prompts of {protocol.name} are those of its family of classes; leave out --prompts.")
        family = load_family(protocol.family)
        if protocol.templates:
            family = replace(family, evaluation_templates=protocol.templates)
        return family_rows(protocol, family, concepts)
    assert protocol.prompts is not None
    conditions = (protocol.subsets or {}).get(subset, ()) if subset else ()
    rows = load_prompts(
        prompts or protocol.prompts,
        columns=PromptColumns(**protocol.columns or {}),
        filters=[PromptFilter.parse(condition) for condition in conditions],
        seed=protocol.first_seed,
        num_inference_steps=protocol.num_inference_steps,
        guidance_scale=protocol.guidance_scale,
        height=protocol.height,
        width=protocol.width,
    )
    return [row.with_extra(role=protocol.role) for row in rows]


def family_rows(protocol: Protocol, family: Family, concepts: Sequence[Concept]) -> list[PromptRow]:
    """Targets, then retained: every combination equally often, the evaluation templates in turn.

    The n-th picture of a combination has the same seed and wording whatever is erased, so that what was drawn with the
    base model for one concept serves the next.
    """
    erased = _erased_classes(family, concepts)
    domains = [domain for domain in family.domains if domain in erased.values()]
    pairs = [dict(zip(family.domains, classes)) for classes in product(*family.domains.values())]
    hits = [[erased[name] for name in pair.values() if name in erased] for pair in pairs]
    target = [at for at, hit in enumerate(hits) if hit]
    retain = [at for at, hit in enumerate(hits) if not hit]
    if not retain:
        raise ValueError(f"Erasing {sorted(erased)} leaves nothing of {family.family!r} to retain; erase fewer.")
    return [
        *_combinations(protocol, family, pairs, target, "target", hits),
        *_combinations(protocol, family, pairs, retain, "retain", [domains] * len(pairs)),
    ]


def _erased_classes(family: Family, concepts: Sequence[Concept]) -> dict[str, str]:
    """Name → domain of each concept."""
    if not concepts:
        raise ValueError(f"No concept was given; say which of {family.family!r} was erased with --concept.")
    members = family.members()
    for concept in concepts:
        if concept.family != family.family or members.get(concept.name) != concept.type:
            raise ValueError(
                f"The judge of {family.family!r} only knows its own classes, got {concept.name!r} ({concept.type}, "
                f"family {concept.family!r}); name one of {', '.join(members)}."
            )
    return {concept.name: concept.type for concept in concepts}


def _combinations(
    protocol: Protocol,
    family: Family,
    pairs: Sequence[dict[str, str]],
    chosen: Sequence[int],
    role: str,
    domains: Sequence[Sequence[str]],
) -> list[PromptRow]:
    at_least = protocol.num_target_images if role == "target" else protocol.num_kept_images
    repeats = protocol.images_per_combination or ceil(at_least / len(chosen))
    templates, rows = family.evaluation_templates, []
    for repeat, at in product(range(repeats), chosen):
        pair = pairs[at]
        # The wordings take turns, and start like the fields of a chess board: odd counts of a class stay balanced.
        places = (list(family.domains[domain]).index(name) for domain, name in pair.items())
        wording = (repeat + sum(places)) % len(templates)
        extra = pair | {
            "role": role,
            "domains": list(domains[at]),
            "held_out_template": templates[wording] not in family.templates,
        }
        rows.append(
            PromptRow(
                id=f"{slug(*pair.values())}-{repeat:04d}",
                prompt=family.captions(held_out=True, **pair)[wording],
                seed=protocol.first_seed + repeat * len(pairs) + at,
                num_inference_steps=protocol.num_inference_steps,
                guidance_scale=protocol.guidance_scale,
                height=protocol.height,
                width=protocol.width,
                extra=extra,
            )
        )
    return rows


def slug(*words: str) -> str:
    """Words as a file name: lower case, hyphens for everything else."""
    return re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")
