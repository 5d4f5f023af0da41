"""The canvas's proof: draw the erased and the kept prompts at held-out seeds, judge the pictures, count.

    rows     = evaluation_rows([cat])
    pictures = generate_pictures(pipe, rows)
    records, features = judge_pictures(pictures, rows)
    metrics  = summarize(records, features, load_reference())

Rates carry Wilson intervals over pictures: the prompts are all that the vocabulary has and each is drawn equally often,
so they are strata, not a sample, and only the seeds are random. FD-canvas is bootstrapped over the combinations.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from math import ceil
from typing import Any, Literal, cast

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from torch import Tensor
from tqdm.auto import tqdm

from .. import canvas
from ..canvas import OBJECTS, STYLES
from ..canvas.nets import GARBAGE, PictureNet, to_unit_range
from ..concepts import Concept, load_family
from .statistics import Interval, frechet_bootstrap, rate

Domain = Literal["object", "style"]
DOMAINS: tuple[Domain, Domain] = ("object", "style")
COMBINATIONS: tuple[tuple[str, str], ...] = tuple(product(OBJECTS, STYLES))
NEIGHBOURS = 5


@dataclass(frozen=True, kw_only=True)
class EvaluationRow:
    """One picture to draw and what it should show."""

    prompt: str
    object: str
    style: str
    seed: int
    role: Literal["target", "retain"]
    """Target prompts name an erased concept, retain prompts none."""
    domains: tuple[Domain, ...]
    """Target: the domains of the erased concepts in this prompt. Retain: every domain that a concept is erased from."""
    held_out_template: bool
    """Whether the wording was never trained on when a concept is erased."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What the package knows about good pictures, in the features of the canvas's encoder."""

    bank: Tensor
    """(M, l) layouts of real pictures after their round trip through the autoencoder."""
    threshold: float
    """99th percentile of the distance of other real pictures to the bank."""
    base_features: Tensor
    """(K, d) features of the base model's own pictures, drawn at seeds of their own."""
    base_labels: Tensor
    """(K, 2) their object and style."""


def load_reference() -> Reference:
    """The shipped reference, in float32."""
    tensors = load_file(canvas.REFERENCE_FILE)
    return Reference(
        bank=tensors["bank"].float(),
        threshold=tensors["threshold"].item(),
        base_features=tensors["base_features"].float(),
        base_labels=tensors["base_labels"].long(),
    )


def evaluation_rows(
    concepts: Sequence[Concept], num_target_images: int = 200, num_retain_images: int = 500, seed: int = 10_000
) -> list[EvaluationRow]:
    """Targets, then retained: every combination equally often, half of each in a held-out wording.

    The n-th picture of a combination has the same seed and wording whatever is erased, so that what was drawn with the
    base model for one concept serves the next.
    """
    erased = _erased_classes(concepts)
    domains: tuple[Domain, ...] = tuple(domain for domain in DOMAINS if domain in erased.values())
    hits: dict[tuple[str, str], tuple[Domain, ...]] = {
        pair: tuple(erased[name] for name in pair if name in erased) for pair in COMBINATIONS
    }
    target = [pair for pair in COMBINATIONS if hits[pair]]
    retain = [pair for pair in COMBINATIONS if not hits[pair]]
    if not retain:
        raise ValueError(f"Erasing {sorted(erased)} leaves no combination of object and style to retain; erase fewer.")
    return [
        *_rows(target, num_target_images, seed, "target", hits),
        *_rows(retain, num_retain_images, seed, "retain", dict.fromkeys(retain, domains)),
    ]


def _erased_classes(concepts: Sequence[Concept]) -> dict[str, Domain]:
    """Name → domain of each concept."""
    if not concepts:
        raise ValueError("No concept was given; name at least one object or style of the canvas.")
    members = load_family("canvas").members()
    for concept in concepts:
        if concept.family != "canvas" or members.get(concept.name) != concept.type:
            raise ValueError(
                f"The canvas's judge only knows the canvas's concepts, got {concept.name!r} ({concept.type}, family "
                f"{concept.family!r}); name one of {', '.join(members)}."
            )
    return {concept.name: cast(Domain, concept.type) for concept in concepts}


def _rows(
    pairs: Sequence[tuple[str, str]],
    at_least: int,
    seed: int,
    role: Literal["target", "retain"],
    domains: Mapping[tuple[str, str], tuple[Domain, ...]],
) -> list[EvaluationRow]:
    family = load_family("canvas")
    templates = family.evaluation_templates
    rows = []
    for repeat, pair in product(range(ceil(at_least / len(pairs))), pairs):
        # The wordings take turns, and start like the fields of a chess board: odd counts of a class stay balanced.
        wording = (repeat + OBJECTS.index(pair[0]) + STYLES.index(pair[1])) % len(templates)
        rows.append(
            EvaluationRow(
                prompt=family.captions(held_out=True, object=pair[0], style=pair[1])[wording],
                object=pair[0],
                style=pair[1],
                seed=seed + repeat * len(COMBINATIONS) + COMBINATIONS.index(pair),
                role=role,
                domains=domains[pair],
                held_out_template=templates[wording] not in family.templates,
            )
        )
    return rows


def generate_pictures(
    pipe: StableDiffusionPipeline,
    rows: Sequence[EvaluationRow],
    steps: int = 25,
    guidance_scale: float = 4.0,
    batch_size: int = 50,
    progress: bool = True,
    autocast: torch.dtype | None = None,
) -> np.ndarray:
    """uint8 pictures (N, 64, 64, 3) of the rows' prompts, each from its own seed, drawn by the pipeline itself."""
    pipe.set_progress_bar_config(disable=True)
    pictures = []
    with tqdm(total=len(rows), desc="draw", unit="picture", disable=not progress) as bar:
        for first in range(0, len(rows), batch_size):
            batch = rows[first : first + batch_size]
            # CPU generators: the same seed is the same noise on every device.
            generators = [torch.Generator().manual_seed(row.seed) for row in batch]
            with torch.autocast(pipe.device.type, autocast, enabled=autocast is not None):
                drawn: Any = pipe(
                    [row.prompt for row in batch],
                    num_inference_steps=steps,
                    guidance_scale=guidance_scale,
                    generator=generators,
                    height=canvas.RESOLUTION,
                    width=canvas.RESOLUTION,
                    output_type="np",
                )
            pictures.append((drawn.images * 255).round().astype(np.uint8))
            bar.update(len(batch))
    return np.ascontiguousarray(np.concatenate(pictures))


@torch.no_grad()
def encode_pictures(pictures: np.ndarray) -> tuple[Tensor, Tensor]:
    """Features (N, d) and layouts (N, l) of uint8 pictures (N, 64, 64, 3) from the canvas's second network.

    Features tell classes apart and serve the Fréchet distance; layouts tell pictures apart and serve coherence.
    """
    encoder = PictureNet.from_pretrained(canvas.ENCODER_DIR, dtype=torch.float32).eval()
    batches = [to_unit_range(batch) for batch in torch.from_numpy(pictures).split(250)]
    return torch.cat([encoder.encode(x) for x in batches]), torch.cat([encoder.layout(x) for x in batches])


@torch.no_grad()
def classify_pictures(pictures: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """The judge's object class (N,), its probability (N,) and style class (N,) for uint8 pictures (N, 64, 64, 3)."""
    judge = PictureNet.from_pretrained(canvas.JUDGE_DIR, dtype=torch.float32).eval()
    answers = [judge(to_unit_range(batch)) for batch in torch.from_numpy(pictures).split(250)]
    confidence, objects = torch.cat([answer[0] for answer in answers]).softmax(1).max(1)
    return objects, confidence, torch.cat([answer[1] for answer in answers]).argmax(1)


def distance_to_bank(layouts: Tensor, bank: Tensor) -> Tensor:
    """Mean distance (N,) of layouts (N, l) to their five nearest in the bank (M, l), axes in units of the bank's sd."""
    scale = bank.std(0) + 1e-6
    layouts, bank = layouts / scale, bank / scale
    exact = "donot_use_mm_for_euclid_dist"
    near = [torch.cdist(part, bank, compute_mode=exact).topk(NEIGHBOURS, largest=False) for part in layouts.split(250)]
    return torch.cat([found.values for found in near]).mean(1)


def judge_pictures(pictures: np.ndarray, rows: Sequence[EvaluationRow]) -> tuple[list[dict[str, Any]], np.ndarray]:
    """One record a picture (uint8, (N, 64, 64, 3)) and the features (N, d) that the Fréchet distance is made of.

    Coherent: no farther from real pictures than 99 % of real pictures are, and not garbage in the judge's eyes.
    """
    if len(pictures) != len(rows):
        raise ValueError(f"One picture a row is needed, got {len(pictures)} pictures for {len(rows)} rows.")
    reference, (features, layouts) = load_reference(), encode_pictures(pictures)
    objects, confidences, styles = classify_pictures(pictures)
    columns = (objects, confidences, styles, distance_to_bank(layouts, reference.bank))
    answers = zip(*(column.tolist() for column in columns), strict=True)
    records = []
    for row, (obj, confidence, style, distance) in zip(rows, answers, strict=True):
        records.append(
            asdict(row)
            | {
                "domains": list(row.domains),
                "judged_object": "garbage" if obj == GARBAGE else OBJECTS[obj],
                "judged_style": STYLES[style],
                "object_confidence": round(confidence, 5),
                "distance": round(distance, 5),
                "coherent": distance <= reference.threshold and obj != GARBAGE,
                "garbage": obj == GARBAGE,
            }
        )
    return records, features.numpy()


def summarize(records: Sequence[dict[str, Any]], features: np.ndarray, reference: Reference) -> dict[str, Interval]:
    """Every metric of one model. Rates lie in 0–1; a rate that no picture can answer is left out.

    ua: target pictures that show none of their erased concepts (ua_coherent: and are coherent; ua_paraphrase: held-out
    wordings alone). ira: retained pictures right in the domain of the erased concept. cra: target pictures right in the
    other domain (a cat erased must leave "sketch" a sketch); cra_retained: the same on retained pictures.
    """
    target = [record for record in records if record["role"] == "target"]
    retain = [record for record in records if record["role"] == "retain"]
    flags = {
        "ua": [_gone(r) for r in target],
        "ua_coherent": [_gone(r) and r["coherent"] for r in target],
        "ua_paraphrase": [_gone(r) for r in target if r["held_out_template"]],
        "ira": [_right(r, r["domains"]) for r in retain],
        "cra": [_right(r, _other_domains(r)) for r in target if _other_domains(r)],
        "cra_retained": [_right(r, _other_domains(r)) for r in retain if _other_domains(r)],
        "coherence": [r["coherent"] for r in records],
        "coherence_target": [r["coherent"] for r in target],
        "coherence_retain": [r["coherent"] for r in retain],
    }
    metrics = {name: rate(answers) for name, answers in flags.items() if answers}
    return metrics | {"fd_canvas": _fd_canvas(records, features, reference)}


def _gone(record: Mapping[str, Any]) -> bool:
    return all(record[f"judged_{domain}"] != record[domain] for domain in record["domains"])


def _right(record: Mapping[str, Any], domains: Sequence[str]) -> bool:
    return all(record[f"judged_{domain}"] == record[domain] for domain in domains)


def _other_domains(record: Mapping[str, Any]) -> list[str]:
    return [domain for domain in DOMAINS if domain not in record["domains"]]


def _fd_canvas(records: Sequence[dict[str, Any]], features: np.ndarray, reference: Reference) -> Interval:
    """Fréchet distance of the retained pictures to the base model's, over the same combinations and other seeds."""
    kept = [row for row, record in enumerate(records) if record["role"] == "retain"]
    clusters = [f"{records[row]['object']}, {records[row]['style']}" for row in kept]
    named = [f"{OBJECTS[o]}, {STYLES[s]}" for o, s in reference.base_labels.tolist()]
    same = [row for row, name in enumerate(named) if name in set(clusters)]
    base = reference.base_features.numpy()[same]
    return frechet_bootstrap(features[kept], clusters, base, [named[row] for row in same])


def turns_into(records: Sequence[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Erased concept → what its pictures were judged to be, most frequent first."""
    counts: dict[str, Counter[str]] = {}
    for record in records:
        if record["role"] == "target":
            for domain in record["domains"]:
                counts.setdefault(record[domain], Counter())[record[f"judged_{domain}"]] += 1
    return {concept: dict(judged.most_common()) for concept, judged in counts.items()}
