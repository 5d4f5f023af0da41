"""Training data made once by the base model: latents straight from its sampler, and encoded prompts, cached by content.

A cache entry is a folder named by the hash of its manifest (model, prompts, seeds, settings). Batches of latents are
written one by one, so that an interrupted job goes on where it stopped and several processes share the work.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from .concepts import Concept
from .config import EraseConfig
from .files import write_json
from .models.base import Conditioning, Denoiser
from .packing import atomic_save, read_safetensors

logger = get_logger(__name__)
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
CONTACT_SHEET_TILES = 64


@dataclass(frozen=True, kw_only=True)
class LatentSet:
    """N pictures as clean latents, with the prompt rows that go with them in training."""

    latents: Tensor
    """(N, C, h, w), as the denoiser sees them."""
    prompts: Tensor
    """(N,) row of each picture's training prompt in the shared conditioning."""
    anchors: Tensor
    """(N,) row of its anchor prompt; equal to `prompts` for retained pictures."""


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """All that training reads: no text encoder, no VAE, no pictures."""

    concept: LatentSet
    """The concept's pictures."""
    anchor: LatentSet | None
    """The anchor's pictures, trained with the concept's prompts."""
    retain: LatentSet
    """Pictures of what stays."""
    conditioning: Conditioning
    """Every prompt once, encoded; `LatentSet.prompts` and `.anchors` index its rows."""
    empty: int
    """Row of the empty prompt."""

    def prompt(self, rows: Tensor, device: torch.device) -> Conditioning:
        """Conditioning of the given prompt rows, on `device`."""
        return {key: value[rows].to(device) for key, value in self.conditioning.items()}


def build_training_data(
    denoiser: Denoiser, concepts: Sequence[Concept], config: EraseConfig, base_hash: str, accelerator: Accelerator
) -> TrainingData:
    """Make or load everything that `config` asks for; contact sheets land in output_dir."""
    forget = [prompt for concept in concepts for prompt in concept.forget]
    anchors = [prompt for concept in concepts for prompt in concept.anchor]
    retain = sorted({prompt for concept in concepts for prompt in concept.retain})
    texts = list(dict.fromkeys(["", *forget, *anchors, *retain]))
    row = {text: index for index, text in enumerate(texts)}
    cache = Cache(config.data_cache_dir, base_hash, accelerator)

    def latents(role: str, prompts: Sequence[str], count: int, folder: Path | None, offset: int) -> Tensor:
        if folder is not None:
            return encode_folder(denoiser, folder, cache, config.data_batch_size)
        chosen = [prompts[i % len(prompts)] for i in range(count)]
        return sample_latents(denoiser, role, chosen, config, cache, first_seed=config.seed * 10**6 + offset)

    def with_rows(x: Tensor, prompts: Sequence[str], targets: Sequence[str]) -> LatentSet:
        named = torch.tensor([row[prompts[i % len(prompts)]] for i in range(len(x))])
        wanted = torch.tensor([row[targets[i % len(targets)]] for i in range(len(x))])
        return LatentSet(latents=x, prompts=named, anchors=wanted)

    concept_x = latents("concept", forget, config.num_concept_images, config.concept_data_dir, 0)
    anchor_x = latents("anchor", anchors, config.num_anchor_images, None, 100_000) if config.num_anchor_images else None
    retain_x = latents("retain", shuffled(retain), config.num_retain_images, config.retain_data_dir, 200_000)
    return TrainingData(
        concept=with_rows(concept_x, forget, anchors),
        anchor=None if anchor_x is None else with_rows(anchor_x, forget, anchors),
        retain=with_rows(retain_x, shuffled(retain), shuffled(retain)),
        conditioning=encode_prompts(denoiser, texts, cache),
        empty=row[""],
    )


def shuffled(prompts: Sequence[str]) -> list[str]:
    """A fixed shuffle, so that a sample smaller than the list is not one corner of it."""
    order = np.random.default_rng(0).permutation(len(prompts))
    return [prompts[i] for i in order]


@dataclass(frozen=True)
class Cache:
    """Content-addressed folders under `root`, written by all processes, published by a manifest."""

    root: Path
    """Cache folder."""
    base_hash: str
    """Hash of the base model's files: part of every key."""
    accelerator: Accelerator
    """Shares the work between processes."""

    def fetch(
        self, kind: str, settings: dict[str, Any], batches: int, make: Callable[[int], dict[str, Tensor]]
    ) -> tuple[dict[str, Tensor], Path]:
        """Return all batches of an entry concatenated, making those that are missing with `make(batch)`."""
        manifest = {"kind": kind, "base": self.base_hash, "batches": batches} | settings
        key = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:20]
        folder = self.root / f"{kind}-{key}"
        whole, described = folder / "data.safetensors", folder / "manifest.json"
        if not described.exists():
            self._make_batches(folder, kind, batches, make)
            if self.accelerator.is_main_process:
                self._publish(folder, whole, described, manifest, batches)
        self.accelerator.wait_for_everyone()
        if json.loads(described.read_text()) != manifest:
            raise ValueError(f"The cache entry {folder} is not what its name says; delete that folder and start again.")
        return read_safetensors(whole)[0], folder

    def _make_batches(self, folder: Path, kind: str, batches: int, make: Callable[[int], dict[str, Tensor]]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        mine = range(self.accelerator.process_index, batches, self.accelerator.num_processes)
        missing = [batch for batch in mine if not _shard(folder, batch).exists()]
        for batch in tqdm(missing, f"{kind} data", disable=not self.accelerator.is_main_process):
            atomic_save(make(batch), _shard(folder, batch))
        self.accelerator.wait_for_everyone()

    @staticmethod
    def _publish(folder: Path, whole: Path, described: Path, manifest: dict[str, Any], batches: int) -> None:
        shards = [read_safetensors(_shard(folder, batch))[0] for batch in range(batches)]
        atomic_save({key: torch.cat([shard[key] for shard in shards]) for key in shards[0]}, whole)
        write_json(described, manifest)
        for batch in range(batches):
            _shard(folder, batch).unlink()


def _shard(folder: Path, batch: int) -> Path:
    return folder / f"shard-{batch:05d}.safetensors"


def sample_latents(
    denoiser: Denoiser, role: str, prompts: Sequence[str], config: EraseConfig, cache: Cache, first_seed: int
) -> Tensor:
    """Latents (N, C, h, w) of N prompts from the base model's sampler, with no decode and re-encode between."""
    size = config.data_batch_size
    precision = cache.accelerator.mixed_precision
    settings = {
        "prompts": list(prompts),
        "first_seed": first_seed,
        "steps": config.data_num_inference_steps,
        "guidance_scale": config.data_guidance_scale,
        "solver": config.data_solver,
        "resolution": denoiser.resolution,
        "batch_size": size,
        "precision": precision,
    }

    def make(batch: int) -> dict[str, Tensor]:
        chosen = prompts[batch * size : (batch + 1) * size]
        seeds = [first_seed + batch * size + row for row in range(len(chosen))]
        with cache.accelerator.autocast():
            x = denoiser.sample_latents(
                chosen, seeds, config.data_num_inference_steps, config.data_guidance_scale, config.data_solver
            )
        return {"latents": x.cpu()}

    tensors, folder = cache.fetch(role, settings, -(-len(prompts) // size), make)
    x = tensors["latents"]
    if not torch.isfinite(x).all():
        raise ValueError(f"The base model made non-finite latents for {role} pictures; try --mixed_precision no.")
    if cache.accelerator.is_main_process:
        sheet = folder / "contact_sheet.png"
        if not sheet.exists():
            contact_sheet(denoiser.decode(x[:CONTACT_SHEET_TILES].to(denoiser.device))).save(sheet)
        shutil.copy(sheet, config.output_dir / f"data_{role}.png")
    return x


def encode_prompts(denoiser: Denoiser, texts: Sequence[str], cache: Cache, batch_size: int = 32) -> Conditioning:
    """Encode each prompt once; rows follow `texts`."""

    def make(batch: int) -> dict[str, Tensor]:
        with torch.no_grad():
            encoded = denoiser.encode(texts[batch * batch_size : (batch + 1) * batch_size])
        return {key: value.cpu().contiguous() for key, value in encoded.items()}

    settings = {"prompts": list(texts), "resolution": denoiser.resolution}
    return cache.fetch("prompts", settings, -(-len(texts) // batch_size), make)[0]


def list_pictures(folder: Path) -> list[Path]:
    """The pictures of a folder, by name; an error when there are none."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give one that holds pictures ({', '.join(PICTURE_SUFFIXES)}).")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES)
    if not found:
        raise ValueError(f"{folder} holds no pictures; expected files ending in {', '.join(PICTURE_SUFFIXES)}.")
    return found


def encode_folder(denoiser: Denoiser, folder: Path, cache: Cache, batch_size: int) -> Tensor:
    """Latents (N, C, h, w) of a folder's pictures, centre-cropped to a square and resized, encoded once."""
    paths = list_pictures(folder)
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]

    def make(batch: int) -> dict[str, Tensor]:
        chosen = paths[batch * batch_size : (batch + 1) * batch_size]
        pictures = np.stack([_square(path, denoiser.resolution) for path in chosen])
        return {"latents": denoiser.encode_images(pictures).cpu()}

    settings = {"pictures": digests, "resolution": denoiser.resolution, "batch_size": batch_size}
    return cache.fetch("folder", settings, -(-len(paths) // batch_size), make)[0]["latents"]


def _square(path: Path, side: int) -> np.ndarray:
    from PIL import ImageOps, UnidentifiedImageError

    try:
        picture = Image.open(path).convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a picture ({error}); remove or replace it.") from error
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
