"""Training data: latents straight from the base model's sampler or of pictures of one's own, and encoded prompts.

All of it is made once and kept by content (`store.py`).
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image, ImageOps
from torch import Tensor

from ..concepts.concept import Concept
from ..config import EraseConfig
from ..files import atomic_path, file_sha256, weights_hash
from ..methods import METHODS
from ..models.base import Conditioning, Denoiser
from ..models.schedulers import set_scheduler
from ..runtime.progress import OnStep
from .captions import TrainingPicture, concept_pictures, retained_pictures
from .pictures import read_picture
from .store import OpenStore, Store

CONTACT_SHEET_TILES = 64


@dataclass(frozen=True, kw_only=True)
class LatentSet:
    """N latents with the prompt rows that go with them in training."""

    latents: Tensor
    """(N, C, h, w), as the denoiser sees them: pictures without noise, or half-denoised ones."""
    prompts: Tensor
    """(N,) row of each picture's training prompt in the shared conditioning."""
    anchors: Tensor
    """(N,) row of its anchor prompt; equal to `prompts` for retained pictures."""
    timesteps: Tensor | None = None
    """(N,) of half-denoised latents; None for pictures, to which training adds noise."""


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """All that training reads: no text encoder, no VAE, no pictures."""

    concept: LatentSet | None
    """The concept's pictures, for the mask; None where nothing asks for them."""
    forget: LatentSet | None
    """What forgetting starts from: the concept's pictures, or trajectories of its prompts; None for closed forms."""
    anchor: LatentSet | None
    """The same from the anchor's prompts; trained with the concept's."""
    retain: LatentSet | None
    """Pictures of what stays; None without a retain loss."""
    conditioning: Conditioning
    """Every prompt once, encoded; `LatentSet.prompts` and `.anchors` index its rows."""
    empty: int
    """Row of the empty prompt."""
    tokens: Tensor | None = None
    """(P, T) bool, row by row of `conditioning`: which tokens name the concept; for losses on attention."""

    def sha256(self) -> str:
        """Of everything that training reads: a run continues with the very same data or not at all."""
        sets = {name: getattr(self, name) for name in ("concept", "forget", "anchor", "retain")}
        parts = [(f"{name}.{f.name}", getattr(s, f.name)) for name, s in sets.items() if s for f in fields(s)]
        parts += [(f"conditioning.{name}", value) for name, value in self.conditioning.items()]
        parts += [("tokens", self.tokens)]
        return weights_hash([(name, value) for name, value in parts if value is not None], torch.float32)

    def prompt(self, rows: Tensor, device: torch.device) -> Conditioning:
        """Conditioning of the given prompt rows, on `device`."""
        return {key: value[rows].to(device) for key, value in self.conditioning.items()}


def build_training_data(
    denoiser: Denoiser, concepts: Sequence[Concept], config: EraseConfig, base_hash: str, accelerator: Accelerator
) -> TrainingData:
    """Make or load everything that `config` asks for, and nothing else; contact sheets land in output_dir."""
    forget = [prompt for concept in concepts for prompt in concept.forget]
    anchors = [prompt for concept in concepts for prompt in concept.anchor]
    retain = in_fixed_order({prompt for concept in concepts for prompt in concept.retain})
    own = concept_pictures(concepts, config) if config.concept_data_dir else []
    kept = retained_pictures(concepts, config) if config.retain_data_dir else []
    captions = [text for picture in (*own, *kept) for text in (picture.prompt, picture.anchor)]
    texts = list(dict.fromkeys(["", *forget, *anchors, *retain, *captions]))
    make = _Sources(denoiser, config, texts, accelerator, partial(Store, config.data_cache_dir, base_hash, accelerator))
    method = METHODS[config.method]
    trained, from_pictures = method.kind == "trained", config.forget_x == "pictures"
    from_concept = trained and config.anchor_image_fraction < 1
    concept = concept_paths = anchor = retained = None
    if trained and (config.mask == "salient" or (from_concept and from_pictures)):
        concept = make.pictures("concept", forget, forget, anchors, config.num_concept_images, own)
    if from_concept and not from_pictures:
        concept_paths = make.trajectories("concept", forget, forget, anchors, config.num_concept_images)
    if trained and config.anchor_image_fraction > 0 and from_pictures:
        anchor = make.pictures("anchor", anchors, forget, anchors, config.num_anchor_images)
    elif trained and config.anchor_image_fraction > 0:
        anchor = make.trajectories("anchor", anchors, forget, anchors, config.num_anchor_images)
    if trained and config.alpha > 0:
        retained = make.pictures("retain", retain, retain, retain, config.num_retain_images, kept)
    pairs = [*zip(forget, anchors), *((picture.prompt, picture.anchor) for picture in own)]
    return TrainingData(
        concept=concept,
        forget=concept_paths or concept if from_concept else None,
        anchor=anchor,
        retain=retained,
        conditioning=encode_prompts(denoiser, texts, make.opened),
        empty=texts.index(""),
        tokens=_named_tokens(denoiser, texts, pairs) if method.objective == "attention" else None,
    )


@dataclass(frozen=True)
class _Sources:
    """Makes the latents of one run and names the prompts of their rows."""

    denoiser: Denoiser
    config: EraseConfig
    texts: Sequence[str]
    accelerator: Accelerator
    opened: "OpenStore"

    def pictures(
        self,
        role: str,
        drawn: Sequence[str],
        prompts: Sequence[str],
        anchors: Sequence[str],
        count: int,
        own: Sequence[TrainingPicture] = (),
    ) -> LatentSet:
        """Latents of `count` pictures of the prompts `drawn`, or of `own` pictures; the first on a contact sheet."""
        if own:
            prompts, anchors = [picture.prompt for picture in own], [picture.anchor for picture in own]
            paths = [picture.path for picture in own]
            x = encode_pictures(self.denoiser, paths, self.opened, self.config.data_batch_size)
        else:
            x = sample_latents(self.denoiser, role, cycled(drawn, count), self.config, self.opened)
        if self.accelerator.is_main_process:
            tiles = self.denoiser.decode(x[:CONTACT_SHEET_TILES].to(self.denoiser.device))
            with atomic_path(self.config.output_dir / f"data_{role}.png") as temporary:
                contact_sheet(tiles).save(temporary)
        return self.named(x, prompts, anchors)

    def trajectories(
        self, role: str, drawn: Sequence[str], prompts: Sequence[str], anchors: Sequence[str], count: int
    ) -> LatentSet:
        """Half-denoised latents on the way to `count` pictures of the prompts `drawn`."""
        x, t = sample_trajectories(self.denoiser, role, cycled(drawn, count), self.config, self.opened)
        rows = self.named(x, prompts, anchors)
        points = x.shape[1]
        return LatentSet(
            latents=x.flatten(0, 1),
            prompts=rows.prompts.repeat_interleave(points),
            anchors=rows.anchors.repeat_interleave(points),
            timesteps=t.flatten(),
        )

    def named(self, x: Tensor, prompts: Sequence[str], anchors: Sequence[str]) -> LatentSet:
        """The latents with their training prompts and anchors, both taken in turn."""
        row = {text: index for index, text in enumerate(self.texts)}
        rows = [torch.tensor([row[text] for text in cycled(texts, len(x))]) for texts in (prompts, anchors)]
        return LatentSet(latents=x, prompts=rows[0], anchors=rows[1])


def _named_tokens(denoiser: Denoiser, texts: Sequence[str], pairs: Sequence[tuple[str, str]]) -> Tensor:
    """(P, T) bool, row by row of `texts`: the tokens of the forget prompts, here with their anchors, that name it."""
    from .concept_tokens import concept_tokens

    named = concept_tokens(denoiser.pipeline.tokenizer, *map(list, zip(*pairs)))
    rows = torch.zeros(len(texts), named.shape[1], dtype=torch.bool)
    rows[torch.tensor([texts.index(prompt) for prompt, _ in pairs])] = named
    return rows


def cycled(prompts: Sequence[str], count: int) -> list[str]:
    """`count` prompts, each as often as the others."""
    return [prompts[index % len(prompts)] for index in range(count)]


def in_fixed_order(prompts: Collection[str]) -> list[str]:
    """Shuffled by their own hashes: any prefix is a fair sample, and much the same one for neighbouring concepts."""
    return sorted(prompts, key=lambda prompt: hashlib.sha256(prompt.encode()).digest())


def picture_seeds(prompts: Sequence[str], seed: int) -> list[int]:
    """A seed for each row, made from the prompt and how often it came before; above 10⁶, where no scored picture is."""
    seen: Counter[str] = Counter()
    seeds = []
    for prompt in prompts:
        digest = hashlib.sha256(f"{seed}/{seen[prompt]}/{prompt}".encode()).digest()
        seeds.append(10**6 + int.from_bytes(digest[:4], "big") % (2**31 - 10**6))
        seen[prompt] += 1
    return seeds


def sample_latents(
    denoiser: Denoiser, role: str, prompts: Sequence[str], config: EraseConfig, opened: OpenStore
) -> Tensor:
    """Latents (N, C, h, w) of N prompts from the base model's sampler, with no decode and re-encode between."""
    settings = _sampler_settings(denoiser, config, config.data_guidance_scale)

    def make(batch: _Drawn, on_step: OnStep) -> dict[str, Tensor]:
        x = denoiser.sample_latents(
            *batch, config.data_num_inference_steps, config.data_guidance_scale, config.data_solver, on_step=on_step
        )
        return {"latents": x}

    return _sampled("latents", role, prompts, config, opened, settings, make)["latents"]


def sample_trajectories(
    denoiser: Denoiser, role: str, prompts: Sequence[str], config: EraseConfig, opened: OpenStore
) -> tuple[Tensor, Tensor]:
    """Half-denoised latents (N, P, C, h, w) and their timesteps (N, P) on the base model's way to N pictures.

    ESD (arXiv 2303.07345) trains on these: on what the model meets when it is asked for the concept.
    """
    guidance = config.trajectory_guidance_scale
    settings = _sampler_settings(denoiser, config, guidance) | {"points": config.trajectory_points}

    def make(batch: _Drawn, on_step: OnStep) -> dict[str, Tensor]:
        steps, solver, points = config.data_num_inference_steps, config.data_solver, config.trajectory_points
        x, t = denoiser.sample_trajectories(*batch, steps, guidance, solver, points, on_step=on_step)
        return {"latents": x, "timesteps": t}

    found = _sampled("trajectories", role, prompts, config, opened, settings, make)
    return found["latents"], found["timesteps"]


_Drawn = tuple[list[str], list[int]]
"""Prompts and seeds of a batch."""


def _sampler_settings(denoiser: Denoiser, config: EraseConfig, guidance_scale: float) -> dict[str, Any]:
    return {
        "steps": config.data_num_inference_steps,
        "guidance_scale": guidance_scale,
        "scheduler": _scheduler(denoiser, config.data_solver),
        "resolution": denoiser.resolution,
    }


def _scheduler(denoiser: Denoiser, solver: str) -> dict[str, Any]:
    """Class and configuration of the scheduler that samples: a solver's name alone would not say how it is set."""
    stock = denoiser.pipeline.scheduler
    set_scheduler(denoiser.pipeline, solver)
    chosen, denoiser.pipeline.scheduler = denoiser.pipeline.scheduler, stock
    return json.loads(chosen.to_json_string())


def _sampled(
    kind: str,
    role: str,
    prompts: Sequence[str],
    config: EraseConfig,
    opened: OpenStore,
    settings: dict[str, Any],
    make: Callable[[_Drawn, OnStep], dict[str, Tensor]],
) -> dict[str, Tensor]:
    """Rows of a store, one for each prompt at a seed of its own; ValueError when the base model makes NaN."""
    seeds = picture_seeds(prompts, config.seed)
    store = opened(kind, settings)

    def checked(rows: list[int], on_step: OnStep) -> dict[str, Tensor]:
        with store.accelerator.autocast():
            made = make(([prompts[row] for row in rows], [seeds[row] for row in rows]), on_step)
        if not torch.isfinite(made["latents"]).all():
            raise ValueError(f"The base model made non-finite latents for {role} pictures; try --mixed_precision no.")
        return {name: tensor.cpu() for name, tensor in made.items()}

    keys = [json.dumps([prompt, seed]) for prompt, seed in zip(prompts, seeds)]
    return store.fetch(keys, config.data_batch_size, checked)


def encode_prompts(denoiser: Denoiser, texts: Sequence[str], opened: OpenStore, batch_size: int = 32) -> Conditioning:
    """Encode each prompt once; rows follow `texts`."""

    def make(rows: list[int], on_step: OnStep) -> dict[str, Tensor]:
        with torch.no_grad():
            encoded = denoiser.encode([texts[row] for row in rows])
        return {key: value.cpu().contiguous() for key, value in encoded.items()}

    settings = {"resolution": denoiser.resolution, "for": denoiser.component}
    return opened("prompts", settings).fetch(texts, batch_size, make)


def encode_pictures(denoiser: Denoiser, paths: Sequence[Path], opened: OpenStore, batch_size: int) -> Tensor:
    """Latents (N, C, h, w) of picture files, centre-cropped to a square and resized, encoded once."""
    keys = [file_sha256(path) for path in paths]

    def make(rows: list[int], on_step: OnStep) -> dict[str, Tensor]:
        pictures = np.stack([_square(paths[row], denoiser.resolution) for row in rows])
        return {"latents": denoiser.encode_images(pictures).cpu()}

    settings = {"resolution": denoiser.resolution, "pillow": version("pillow")}
    return opened("encoded", settings).fetch(keys, batch_size, make)["latents"]


def _square(path: Path, side: int) -> np.ndarray:
    picture = Image.fromarray(read_picture(path))
    return np.asarray(ImageOps.fit(picture, (side, side), Image.Resampling.LANCZOS))


def contact_sheet(pictures: np.ndarray, columns: int = 16, gap: int = 2) -> Image.Image:
    """Tile uint8 pictures (N, H, W, 3) into one picture."""
    count, height, width, _ = pictures.shape
    columns = min(columns, count)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, -(-count // columns) * (height + gap) - gap), "white")
    for index, picture in enumerate(pictures):
        place = (index % columns * (width + gap), index // columns * (height + gap))
        sheet.paste(Image.fromarray(picture), place)
    return sheet
