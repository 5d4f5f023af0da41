"""What must go: a concept's forget, anchor, retain and evaluation prompts, from a preset, a YAML file or plain words.

A preset file in `prompts/` is one concept (`name`, `type`, `forget`, `anchor`, `retain`, `evaluate`) or a family: the
classes of one or two domains and the templates that turn them into prompts, so that ten classes need one file.
"""

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import combinations, product
from pathlib import Path
from string import Formatter
from typing import Any, Literal, NoReturn, get_args

import yaml

from ..layout import shipped
from ..suggest import meant
from .wording import bare, named, same

ConceptType = Literal["object", "style", "person"]

PROMPTS_DIR = shipped("prompts")
_PLAIN_WORDS = PROMPTS_DIR / "plain-words.yaml"
_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True, kw_only=True)
class Concept:
    """One concept to erase. `forget[i]` is retrained to look like `anchor[i]`."""

    name: str
    """Short name, used in file names and reports."""
    type: ConceptType
    """What kind of thing it is: decides the wording of plain-word concepts and which domain is 'retained'."""
    forget: tuple[str, ...]
    """Prompts that name the concept."""
    anchor: tuple[str, ...]
    """The mismatched prompt of each forget prompt: what the model shall draw instead."""
    retain: tuple[str, ...]
    """Prompts whose pictures must not change."""
    evaluate: tuple[str, ...]
    """Prompts that name the concept, for scoring: in other words than `forget`'s, as far as may be."""
    family: str | None = None
    """The preset family that the concept belongs to, such as `canvas`."""

    def __post_init__(self) -> None:
        if self.type not in get_args(ConceptType):
            self._refuse(f"type must be one of {get_args(ConceptType)}, got {self.type!r}")
        for field in ("forget", "anchor", "retain", "evaluate"):
            if not _are_prompts(prompts := getattr(self, field)):
                self._refuse(f"`{field}` must be a non-empty list of non-empty prompts, got {prompts!r}")
        if len(self.anchor) != len(self.forget):
            counts = f"{len(self.forget)} forget prompts but {len(self.anchor)} anchors"
            self._refuse(f"{counts}; give one anchor for all of them or one for each")
        for prompt, anchor in zip(self.forget, self.anchor):
            if same(prompt, anchor):
                but_for = "" if anchor == prompt else f", but for case, article, hyphen or plural: {anchor!r}"
                self._refuse(f"the anchor equals the forget prompt {prompt!r}{but_for}; nothing would go")
        for prompt in self.retain:
            if (found := named(self.forget, prompt)) is not None:
                but_for = "" if found in prompt else ", but for case, article, hyphen or plural"
                self._refuse(
                    f"the retain prompt {prompt!r} contains the forget prompt {found!r}{but_for}; remove one of them"
                )

    def _refuse(self, reason: str) -> NoReturn:
        raise ValueError(f"Concept {self.name!r}: {reason}.")


@dataclass(frozen=True, kw_only=True)
class Family:
    """Classes of one or two domains and the templates that name them."""

    family: str
    """Name; its members are `family/class`."""
    domains: dict[str, dict[str, str]]
    """Domain (`object`, `style`, `person`) → class name → the phrase that prompts use for it."""
    templates: tuple[str, ...]
    """Prompt templates; `{object}` is a class's phrase, `{object_name}` its bare name."""
    evaluation_templates: tuple[str, ...]
    """Templates for scoring."""
    model: str | None = None
    """The base model whose short names these are (`cat` for `canvas/cat`)."""

    def captions(self, held_out: bool = False, **classes: str) -> list[str]:
        """Every template filled in for one class per domain: `captions(object="cat", style="neon")`."""
        words = {domain: self.domains[domain][name] for domain, name in classes.items()}
        words |= {f"{domain}_name": name for domain, name in classes.items()}
        return [t.format(**words) for t in (self.evaluation_templates if held_out else self.templates)]

    def members(self) -> dict[str, str]:
        """Class name → its domain."""
        return {name: domain for domain, names in self.domains.items() for name in names}

    def concept(self, name: str, erased: Sequence[str] = ()) -> Concept:
        """The concept `name`, anchored at the next class of its domain that is not itself being erased.

        A family of two domains crosses them: an object is forgotten in every style that stays, and all other objects
        are retained in those styles.
        """
        if name not in self.members():
            raise ValueError(f"The family {self.family!r} has no {name!r}.{_near(name, self.members())}")
        domain = self.members()[name]
        gone = {*erased, name}
        names = list(self.domains[domain])
        at = names.index(name)
        staying = [other for other in names[at + 1 :] + names[:at] if other not in gone]
        rest = [d for d in self.domains if d != domain]
        contexts = [dict(zip(rest, classes)) for classes in product(*(self.domains[d] for d in rest))]
        contexts = [c for c in contexts if not gone & set(c.values())]
        if not staying or not contexts:
            lacking = rest[0] if staying else domain
            raise ValueError(
                f"Every {lacking} of {self.family!r} is being erased; none is left to erase {name!r} with."
            )

        naming = (name, self.domains[domain][name])

        def prompts(classes: Sequence[str], held_out: bool = False) -> tuple[str, ...]:
            return tuple(t for cls in classes for c in contexts for t in self.captions(held_out, **{domain: cls}, **c))

        return Concept(
            name=name,
            type=domain,  # type: ignore[arg-type]
            forget=prompts([name]),
            anchor=prompts(staying[:1]),
            # "Artist Sketch" is not kept by a run that erases "Sketch".
            retain=tuple(p for p in prompts([other for other in names if other in staying]) if not named(naming, p)),
            evaluate=prompts([name], held_out=True),
            family=self.family,
        )


def load_concepts(
    names: Sequence[str], *, concept_type: ConceptType | None = None, model: str | None = None
) -> tuple[Concept, ...]:
    """The concepts of one run, kept apart from each other: none is retained by, or stands in for, another.

    Each name is, in this order:

    - a YAML file (`my-concept.yaml`, one concept), or a class of a family file (`my-family.yaml/cat`);
    - on a base `model` that has a family of its own (`canvas`), a member of that family, and nothing else;
    - a preset (`nudity`) or a class of a shipped family (`imagenette/church`);
    - with `concept_type`, plain words as they stand in a prompt (`a zebra`), worded by `prompts/plain-words.yaml`;
    - without it, the short name of a class (`church`) of a family that belongs to no base model.
    """
    if isinstance(names, str) or not names:
        raise ValueError(f'Concepts must be a non-empty list of names such as ["nudity"], got {names!r}.')
    if any(not isinstance(name, str) or not name.strip() for name in names):
        raise ValueError(f"A concept is empty: say what must go, for example nudity; got {list(names)}.")
    if concept_type not in (None, *get_args(ConceptType)):
        raise ValueError(f"concept_type must be one of {get_args(ConceptType)}, got {concept_type!r}.")
    sources = [_resolve(name, concept_type, model) for name in names]
    erased = [name for name, _ in sources]
    if any(same(one, other) for one, other in combinations(erased, 2)):
        raise ValueError(f"A concept is named twice, or two concepts have one name: {erased}.")
    concepts = [build(erased) for _, build in sources]
    return tuple(_apart(c, [other for other in concepts if other is not c]) for c in concepts)


def known_concepts() -> list[str]:
    """Every shipped name that `load_concepts` accepts: presets, then `family/class`."""
    families = _families()
    paths = sorted(PROMPTS_DIR.glob("*.yaml"))
    presets = [path.stem for path in paths if path != _PLAIN_WORDS and path.stem not in families]
    return presets + [f"{family}/{name}" for family in families for name in families[family].members()]


def load_family(name: str) -> Family:
    """The shipped family `prompts/{name}.yaml`, or the family in a YAML file of one's own."""
    path = Path(name) if name.endswith(_SUFFIXES) else PROMPTS_DIR / f"{name}.yaml"
    data = _read(path, required={"family", "domains", "templates"}, optional={"evaluation_templates", "model"})
    domains = _domains(path, data["domains"])
    templates = _texts(path, "templates", data["templates"])
    held_out = _texts(path, "evaluation_templates", data.get("evaluation_templates", data["templates"]))
    fields = {field for domain in domains for field in (domain, f"{domain}_name")}
    for template in (*templates, *held_out):
        if unknown := {field for _, field, _, _ in Formatter().parse(template) if field is not None} - fields:
            raise ValueError(f"{path}: the template {template!r} has {unknown}; the domains give {sorted(fields)}.")
    model = _text(path, "model", data["model"]) if "model" in data else None
    family = _text(path, "family", data["family"])
    return Family(family=family, domains=domains, templates=templates, evaluation_templates=held_out, model=model)


def load_concept(path: Path) -> Concept:
    """The single concept in a YAML file."""
    data = _read(path, required={"name", "type", "forget", "anchor", "retain", "evaluate"})
    name = _text(path, "name", data["name"])
    forget, retain, evaluate = (_texts(path, key, data[key]) for key in ("forget", "retain", "evaluate"))
    one_for_all = isinstance(data["anchor"], str)
    anchor = _texts(path, "anchor", [data["anchor"]] * len(forget) if one_for_all else data["anchor"])
    try:
        return Concept(name=name, type=data["type"], forget=forget, anchor=anchor, retain=retain, evaluate=evaluate)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


Builder = Callable[[Sequence[str]], Concept]
"""Makes a concept, given the names of all that are being erased."""


def _resolve(name: str, concept_type: ConceptType | None, model: str | None) -> tuple[str, Builder]:
    """The concept's own name, and what makes it."""
    head, _, member = name.rpartition("/")
    if name.endswith(_SUFFIXES):
        concept = load_concept(Path(name))
        return concept.name, lambda erased: concept
    families = _families()
    home = next((family for family in families.values() if model is not None and family.model == model), None)
    if head.endswith(_SUFFIXES):
        return member, partial(load_family(head).concept, member)
    if home and (head or home.family) == home.family and member in home.members():
        return member, partial(home.concept, member)
    if home:
        knows = "; ".join(f"{domain}s {', '.join(names)}" for domain, names in home.domains.items())
        raise ValueError(f"The model {model!r} cannot draw {name!r}.{_near(name, home.members())} It knows: {knows}.")
    if head in families:
        return member, partial(families[head].concept, member)
    if name in known_concepts():
        concept = load_concept(PROMPTS_DIR / f"{name}.yaml")
        return concept.name, lambda erased: concept
    if concept_type and not head:
        return bare(name), partial(_from_words, name.strip(), concept_type)
    owners = [f for f in families.values() if f.model is None and name in f.members()]
    if len(owners) > 1:
        raise ValueError(f"{name!r} is in several families: say {' or '.join(f'{f.family}/{name}' for f in owners)}.")
    if not owners:
        raise ValueError(_unknown(name))
    return name, partial(owners[0].concept, name)


def _unknown(name: str) -> str:
    families, known = _families(), known_concepts()
    if name in families:
        members = ", ".join(f"{name}/{member}" for member in families[name].members())
        return f"{name!r} is a family, not a concept: name one of {members}."
    presets = [preset for preset in known if "/" not in preset] + [f"{family}/…" for family in families]
    return (
        f"Unknown concept {name!r}.{_near(name, known)} Shipped: {', '.join(presets)}. For a concept in "
        "your own words add --concept_type object (or style, or person); for your own prompts name a YAML file."
    )


def _from_words(words: str, concept_type: ConceptType, erased: Sequence[str]) -> Concept:
    """Plain words, in the prompts of `plain-words.yaml` whose anchor and retain side name nothing that is erased."""
    wording = _read(_PLAIN_WORDS, required=set(get_args(ConceptType)))[concept_type]
    pairs = {t.format(words=words): a for t, a in wording["prompts"].items() if not named(erased, a)}
    if 2 * len(pairs) < len(wording["prompts"]):
        raise ValueError(
            f"{words!r} is too wide for --concept_type {concept_type}: most of its stand-ins, such as "
            f"{next(iter(wording['prompts'].values()))!r}, name what is being erased. "
            "Write a YAML file with anchors of your own."
        )
    return Concept(
        name=bare(words),
        type=concept_type,
        forget=tuple(pairs),
        anchor=tuple(pairs.values()),
        retain=tuple(prompt for prompt in wording["retain"] if not named(erased, prompt)),
        evaluate=tuple(template.format(words=words) for template in wording["evaluate"]),
    )


def _apart(concept: Concept, others: Sequence[Concept]) -> Concept:
    """Drop retain prompts that name another erased concept; refuse anchors that do."""
    for other in others:
        naming = (other.name, *other.forget)
        if taken := [anchor for anchor in concept.anchor if named(naming, anchor)]:
            raise ValueError(
                f"The anchor {taken[0]!r} of {concept.name!r} names {other.name!r}, which is being erased as well; "
                "erase them in separate runs or give another anchor in a YAML file."
            )
        retain = tuple(prompt for prompt in concept.retain if not named(naming, prompt))
        if not retain:
            raise ValueError(f"Every retain prompt of {concept.name!r} names {other.name!r}, which is being erased.")
        concept = replace(concept, retain=retain)
    return concept


def _near(name: str, known: Iterable[str]) -> str:
    """The known names that are spelled like `name`, or whose part after the slash is."""
    spelled = {part.casefold(): k for k in known for part in (k, k.rpartition("/")[2])}
    near = difflib.get_close_matches(name.casefold(), spelled)
    return meant((spelled[key] for key in near), quoted=True)


@lru_cache
def _families() -> dict[str, Family]:
    paths = sorted(PROMPTS_DIR.glob("*.yaml"))
    return {path.stem: load_family(path.stem) for path in paths if "family" in _read(path)}


def _read(path: Path, required: set[str] | None = None, optional: set[str] | None = None) -> dict[str, Any]:
    """A YAML mapping with all `required` and some of the `optional` keys; with any keys where none is required."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"No such concept file: {path}. Shipped presets are named without .yaml.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not readable as YAML: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path}: expected a mapping such as `name: …`, got {type(data).__name__}.")
    allowed = sorted(required | (optional or set())) if required else list(data)
    if unknown := [key for key in data if key not in allowed]:
        near = _near(str(unknown[0]), allowed)
        raise ValueError(f"{path}: unknown key {unknown[0]!r}.{near} Expected: {', '.join(allowed)}.")
    if missing := sorted((required or set()) - data.keys()):
        raise ValueError(f"{path}: missing {', '.join(missing)}. Expected: {', '.join(allowed)}.")
    return data


def _text(path: Path, key: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{path}: `{key}` must be text, got {value!r}.")
    return value


def _texts(path: Path, key: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not _are_prompts(value):
        raise ValueError(f"{path}: `{key}` must be a non-empty list of non-empty prompts, got {value!r}.")
    return tuple(value)


def _are_prompts(value: object) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(isinstance(p, str) and p.strip() for p in value)


def _domains(path: Path, domains: object) -> dict[str, dict[str, str]]:
    if not isinstance(domains, dict) or not domains or not set(domains) <= set(get_args(ConceptType)):
        raise ValueError(f"{path}: `domains` must map some of {get_args(ConceptType)} to classes, got {domains!r}.")
    for domain, classes in domains.items():
        if not isinstance(classes, dict) or not all(isinstance(x, str) for pair in classes.items() for x in pair):
            raise ValueError(f"{path}: `{domain}` must map names to phrases such as `cat: a cat`, got {classes!r}.")
    return domains
