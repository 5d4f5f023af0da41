"""What an evaluation does not show: sentences that depend on what was measured, and on how many pictures."""

from collections.abc import Iterator, Mapping
from typing import Any

from ..html.figures import NBSP, percent
from ..html.markup import facts, note, section
from ..methods import METHODS

SHARE_LEFT = {"ua": lambda low, high: 1 - low, "nudity_any_0.6": lambda low, high: high}
"""Figure of the erasure → the largest share of pictures that may still show the concept, from its interval's ends."""
RETENTION = ("ira", "cra_retained", "coherence_retain", "accuracy", "clip_score", "clip_score_retain", "fid", "kid",
             "cmmd", "fd_canvas", "fd_encoder", "fd_inception", "lpips_retain")  # fmt: skip
"""Figures that say what became of everything else."""

Report = Mapping[str, Any]
Limit = tuple[str, str]
"""A title and its sentences."""


def limits_section(report: Report) -> str:
    """The box on the page."""
    words = "The figures hold for the pictures that were made and for the question that was asked of them."
    found = [(title, said.replace(" %", f"{NBSP}%")) for title, said in limits(report)]
    return section("limits", "What this does not show", f'<div class="box">{note(words)}{facts(found)}</div>')


def limits(report: Report) -> list[Limit]:
    """Everything that a reader may not conclude from the figures."""
    name = " and ".join(report["concepts"]) or "the concept"
    measured = {row["key"]: row["erased"] for row in report["figures"] if row["erased"]}
    return [
        *_of_the_model(name, report["manifest"]),
        *_of_the_pictures(name, report["protocol"], report["sizes"]),
        *_of_the_figures(name, measured),
    ]


def _of_the_model(name: str, manifest: Mapping[str, Any]) -> Iterator[Limit]:
    yield (
        "Attacks",
        f"Nobody tried to bring {name} back. Prompts or embeddings that are optimised against a model often succeed, "
        "also where plain prompts find nothing.",
    )
    yield (
        "Further training",
        f"A few steps of fine-tuning, or a LoRA from elsewhere, may teach the model {name} again. That was not tried.",
    )
    method = METHODS.get(manifest.get("method", ""))
    if method and method.kind == "trained":
        yield (
            "Other training seeds",
            "This is one run. The same settings with another seed give other weights and somewhat other figures, which "
            "the intervals do not count; erase compare --seeds 3 measures it.",
        )


def _of_the_pictures(name: str, protocol: Mapping[str, Any], sizes: list[list[int]]) -> Iterator[Limit]:
    prompts, held_out = protocol.get("num_prompts"), protocol.get("held_out_wordings")
    asked = f"{prompts:,} different prompts were used" if prompts else "A fixed list of prompts was used"
    unseen = f"; {held_out:,} of the pictures are in wordings that the erasure never saw" if held_out else ""
    yield "Other wordings", f"{asked}{unseen}. Synonyms, misspellings and descriptions without the word were not tried."
    yield "Other languages", f"The same request in a language other than that of the prompts may still show {name}."
    settings = ", ".join(_settings(protocol, sizes))
    yield (
        "Other settings",
        f"{f'All pictures: {settings}. ' if settings else ''}Other sizes, samplers and guidance, image-to-image, "
        "inpainting and adapters were not tried.",
    )


def _settings(protocol: Mapping[str, Any], sizes: list[list[int]]) -> Iterator[str]:
    """How the pictures were made, as far as it is known."""
    if sizes:
        yield " and ".join(f"{width} × {height} pixels" for width, height in sizes)
    for key, words in (("scheduler", "sampler {}"), ("steps", "{} steps"), ("guidance_scale", "guidance {:g}")):
        if protocol.get(key) is not None:
            yield words.format(protocol[key])


def _of_the_figures(name: str, measured: Mapping[str, Mapping[str, Any]]) -> Iterator[Limit]:
    if any(figure["count"] is not None for figure in measured.values()):
        yield (
            "Errors of the judge",
            f"Whether a picture shows {name} is the answer of a network. Its mistakes are in every share, and no "
            "interval counts them.",
        )
    if key := next((key for key in SHARE_LEFT if key in measured), None):
        figure = measured[key]
        left = SHARE_LEFT[key](figure["low"], figure["high"])
        yield (
            "Rare cases",
            f"{figure['n']:,} pictures ask for {name}. By the 95 % interval, up to {percent(left)} of such pictures "
            "may still show it.",
        )
    if any(key in measured for key in RETENTION):
        yield "Everything else", "What no kept prompt asks for may have suffered unseen."
    else:
        yield "Everything else", "Nothing here measures what the erasure damaged on the way."
