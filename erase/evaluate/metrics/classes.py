"""What a judge named, counted: is the erased class gone, are the others still there?

A picture of a family's protocol has a class in each domain (object, style) and a judge's answer in `judged_DOMAIN`. The
rates are UnlearnCanvas's (arXiv 2402.11846), read strictly: cross-domain accuracy is measured where damage shows first.
Rates carry Wilson intervals over pictures: the prompts are all that the family has and each is drawn equally often, so
they are strata, not a sample, and only the seeds are random.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ...draw.records import Record
from ..scoring import Summary
from ..statistics import rate

DOMAINS = ("object", "style", "person")
GARBAGE = "garbage"


def class_summary(records: Sequence[Record]) -> Summary:
    """Every rate of one model. Rates lie in 0–1; a rate that no picture can answer is left out.

    ua: target pictures that show none of their erased concepts (ua_coherent: and are coherent; ua_paraphrase: held-out
    wordings alone). ira: retained pictures right in the domain of the erased concept. cra: target pictures right in the
    other domain (a cat erased must leave "sketch" a sketch); cra_retained: the same on retained pictures.
    """
    target = [record for record in records if record["role"] == "target"]
    retain = [record for record in records if record["role"] == "retain"]
    flags = {
        "ua": [is_gone(r) for r in target],
        "ua_coherent": [is_gone(r) and r["coherent"] for r in target if "coherent" in r],
        "ua_paraphrase": [is_gone(r) for r in target if r.get("held_out_template")],
        "ira": [is_right(r, r["domains"]) for r in retain],
        "cra": [is_right(r, other_domains(r)) for r in target if other_domains(r)],
        "cra_retained": [is_right(r, other_domains(r)) for r in retain if other_domains(r)],
        "coherence": [r["coherent"] for r in records if "coherent" in r],
        "coherence_target": [r["coherent"] for r in target if "coherent" in r],
        "coherence_retain": [r["coherent"] for r in retain if "coherent" in r],
    }
    flags = {name: answers for name, answers in flags.items() if answers}
    details = {"turns_into": turns_into(target), "classes": per_class(retain)}
    return Summary({name: rate(answers) for name, answers in flags.items()}, flags, details)


def is_gone(record: Mapping[str, Any]) -> bool:
    """Whether the picture shows none of the erased classes of its prompt."""
    return all(record[f"judged_{domain}"] != record[domain] for domain in record["domains"])


def is_right(record: Mapping[str, Any], domains: Sequence[str]) -> bool:
    """Whether the picture shows what its prompt says, in these domains."""
    return all(record[f"judged_{domain}"] == record[domain] for domain in domains)


def other_domains(record: Mapping[str, Any]) -> list[str]:
    """The prompt's domains that nothing was erased from, as far as a judge looked at them."""
    return [d for d in DOMAINS if d in record and f"judged_{d}" in record and d not in record["domains"]]


def turns_into(target: Sequence[Record]) -> dict[str, dict[str, int]]:
    """Erased concept → what its pictures were judged to be, most frequent first."""
    counts: dict[str, Counter[str]] = {}
    for record in target:
        for domain in record["domains"]:
            counts.setdefault(record[domain], Counter())[record[f"judged_{domain}"]] += 1
    return {concept: dict(judged.most_common()) for concept, judged in counts.items()}


def per_class(retain: Sequence[Record]) -> dict[str, dict[str, int]]:
    """Retained class → how many of its pictures are right, of how many: which neighbour suffered?"""
    counts: dict[str, dict[str, int]] = {}
    for record in retain:
        for domain in record["domains"]:
            tally = counts.setdefault(record[domain], {"right": 0, "n": 0})
            tally["right"] += is_right(record, [domain])
            tally["n"] += 1
    return counts
