"""Training data made once by the base model: latents straight from its sampler and encoded prompts, cached by content.

A store is a folder named by the hash of its manifest (model and settings); its rows are named by what they are made
from (prompt and seed). Rows are written in whole batches, so an interrupted job goes on where it stopped, several
processes share the work, and runs on the same base share the pictures.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image, ImageOps, UnidentifiedImageError
from safetensors import safe_open
from torch import Tensor
from tqdm.auto import tqdm

from .concepts import Concept
from .config import EraseConfig
from .files import atomic_save, read_safetensors, write_json
from .methods import METHODS
from .models.base import Conditioning, Denoiser

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
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
    texts = list(dict.fromkeys(["", *forget, *anchors, *retain]))
    make = _Sources(denoiser, config, texts, accelerator, partial(Store, config.data_cache_dir, base_hash, accelerator))
    method = METHODS[config.method]
    trained, from_pictures = method.kind == "trained", config.forget_x == "pictures"
    from_concept = trained and config.anchor_image_fraction < 1
    concept = concept_paths = anchor = retained = None
    if trained and (config.mask == "salient" or (from_concept and from_pictures)):
        x = make.pictures("concept", forget, config.num_concept_images, config.concept_data_dir)
        concept = make.named(x, forget, anchors)
    if from_concept and not from_pictures:
        concept_paths = make.trajectories("concept", forget, forget, anchors, config.num_concept_images)
    if trained and config.anchor_image_fraction > 0 and from_pictures:
        anchor = make.named(make.pictures("anchor", anchors, config.num_anchor_images), forget, anchors)
    elif trained and config.anchor_image_fraction > 0:
        anchor = make.trajectories("anchor", anchors, forget, anchors, config.num_anchor_images)
    if trained and config.alpha > 0:
        x = make.pictures("retain", retain, config.num_retain_images, config.retain_data_dir)
        retained = make.named(x, retain, retain)
    return TrainingData(
        concept=concept,
        forget=concept_paths or concept if from_concept else None,
        anchor=anchor,
        retain=retained,
        conditioning=encode_prompts(denoiser, texts, make.opened),
        empty=texts.index(""),
        tokens=_named_tokens(denoiser, texts, forget, anchors) if method.objective == "attention" else None,
    )


@dataclass(frozen=True)
class _Sources:
    """Makes the latents of one run and names the prompts of their rows."""

    denoiser: Denoiser
    config: EraseConfig
    texts: Sequence[str]
    accelerator: Accelerator
    opened: "OpenStore"

    def pictures(self, role: str, prompts: Sequence[str], count: int, folder: Path | None = None) -> Tensor:
        """Latents of `count` pictures of the prompts, or of a folder's; the first of them on a contact sheet."""
        x = (
            encode_folder(self.denoiser, folder, self.opened, self.config.data_batch_size)
            if folder
            else sample_latents(self.denoiser, role, cycled(prompts, count), self.config, self.opened)
        )
        if self.accelerator.is_main_process:
            tiles = self.denoiser.decode(x[:CONTACT_SHEET_TILES].to(self.denoiser.device))
            contact_sheet(tiles).save(self.config.output_dir / f"data_{role}.png")
        return x

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


def _named_tokens(denoiser: Denoiser, texts: Sequence[str], forget: Sequence[str], anchors: Sequence[str]) -> Tensor:
    """(P, T) bool, row by row of `texts`: the tokens of the forget prompts that name the concept."""
    from .attention import concept_tokens

    named = concept_tokens(denoiser.pipeline.tokenizer, forget, anchors)
    rows = torch.zeros(len(texts), named.shape[1], dtype=torch.bool)
    rows[torch.tensor([texts.index(prompt) for prompt in forget])] = named
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


class Store:
    """Rows of tensors under content-addressed keys, written by all processes in whole batches."""

    def __init__(self, root: Path, base_hash: str, accelerator: Accelerator, kind: str, settings: dict[str, Any]):
        precision = str(accelerator.mixed_precision)
        manifest = {"kind": kind, "base_sha256": base_hash, "precision": precision} | settings
        self.kind, self.accelerator = kind, accelerator
        self.folder = root / f"{kind}-{_digest(json.dumps(manifest, sort_keys=True))}"
        described = self.folder / "manifest.json"
        if accelerator.is_main_process and not described.exists():
            write_json(described, manifest)
        accelerator.wait_for_everyone()
        if json.loads(described.read_text()) != manifest:
            raise ValueError(f"The cache {self.folder} is not what its name says; delete that folder and start again.")

    def fetch(
        self, keys: Sequence[str], batch_size: int, make: Callable[[list[int]], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """The rows named by `keys`, in their order; `make` gets the numbers of up to `batch_size` missing ones."""
        present = self._index()
        missing = [row for row, key in enumerate(keys) if key not in present]
        batches = [missing[first : first + batch_size] for first in range(0, len(missing), batch_size)]
        mine = batches[self.accelerator.process_index :: self.accelerator.num_processes]
        self.accelerator.wait_for_everyone()
        bar = tqdm(total=len(missing), desc=self.kind, unit="row", disable=not (missing and self._speaks))
        for batch in mine:
            names = json.dumps([keys[row] for row in batch])
            atomic_save(make(batch), self.folder / f"{_digest(names)}.safetensors", {"keys": names})
            bar.update(len(batch) * min(len(batches), self.accelerator.num_processes))
        bar.close()
        self.accelerator.wait_for_everyone()
        return self._read(keys)

    @property
    def _speaks(self) -> bool:
        return self.accelerator.is_main_process

    def _index(self) -> dict[str, tuple[Path, int]]:
        """Key → the file and the row in it."""
        found = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                keys = json.loads(file.metadata()["keys"])
            found |= {key: (path, row) for row, key in enumerate(keys)}
        return found

    def _read(self, keys: Sequence[str]) -> dict[str, Tensor]:
        index = self._index()
        files = {path: read_safetensors(path)[0] for path in {index[key][0] for key in keys}}
        places = [index[key] for key in keys]
        return {
            name: torch.stack([files[path][name][row] for path, row in places]) for name in next(iter(files.values()))
        }


OpenStore = Callable[[str, dict[str, Any]], Store]
"""(kind, settings) → the store of this base and cache folder."""


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def sample_latents(
    denoiser: Denoiser, role: str, prompts: Sequence[str], config: EraseConfig, opened: OpenStore
) -> Tensor:
    """Latents (N, C, h, w) of N prompts from the base model's sampler, with no decode and re-encode between."""
    settings = _sampler_settings(denoiser, config, config.data_guidance_scale)

    def make(batch: _Drawn) -> dict[str, Tensor]:
        x = denoiser.sample_latents(
            *batch, config.data_num_inference_steps, config.data_guidance_scale, config.data_solver
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

    def make(batch: _Drawn) -> dict[str, Tensor]:
        x, t = denoiser.sample_trajectories(
            *batch, config.data_num_inference_steps, guidance, config.data_solver, config.trajectory_points
        )
        return {"latents": x, "timesteps": t}

    found = _sampled("trajectories", role, prompts, config, opened, settings, make)
    return found["latents"], found["timesteps"]


_Drawn = tuple[list[str], list[int]]
"""Prompts and seeds of a batch."""


def _sampler_settings(denoiser: Denoiser, config: EraseConfig, guidance_scale: float) -> dict[str, Any]:
    return {
        "steps": config.data_num_inference_steps,
        "guidance_scale": guidance_scale,
        "solver": config.data_solver,
        "resolution": denoiser.resolution,
    }


def _sampled(
    kind: str,
    role: str,
    prompts: Sequence[str],
    config: EraseConfig,
    opened: OpenStore,
    settings: dict[str, Any],
    make: Callable[[_Drawn], dict[str, Tensor]],
) -> dict[str, Tensor]:
    """Rows of a store, one for each prompt at a seed of its own; ValueError when the base model makes NaN."""
    seeds = picture_seeds(prompts, config.seed)
    store = opened(kind, settings)

    def checked(rows: list[int]) -> dict[str, Tensor]:
        with store.accelerator.autocast():
            made = make(([prompts[row] for row in rows], [seeds[row] for row in rows]))
        if not torch.isfinite(made["latents"]).all():
            raise ValueError(f"The base model made non-finite latents for {role} pictures; try --mixed_precision no.")
        return {name: tensor.cpu() for name, tensor in made.items()}

    keys = [json.dumps([prompt, seed]) for prompt, seed in zip(prompts, seeds)]
    return store.fetch(keys, config.data_batch_size, checked)


def encode_prompts(denoiser: Denoiser, texts: Sequence[str], opened: OpenStore, batch_size: int = 32) -> Conditioning:
    """Encode each prompt once; rows follow `texts`."""

    def make(rows: list[int]) -> dict[str, Tensor]:
        with torch.no_grad():
            encoded = denoiser.encode([texts[row] for row in rows])
        return {key: value.cpu().contiguous() for key, value in encoded.items()}

    settings = {"resolution": denoiser.resolution, "for": denoiser.component}
    return opened("prompts", settings).fetch(texts, batch_size, make)


def list_pictures(folder: Path) -> list[Path]:
    """The pictures of a folder, by name; an error when there are none."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give one that holds pictures ({', '.join(PICTURE_SUFFIXES)}).")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES)
    if not found:
        raise ValueError(f"{folder} holds no pictures; expected files ending in {', '.join(PICTURE_SUFFIXES)}.")
    return found


def encode_folder(denoiser: Denoiser, folder: Path, opened: OpenStore, batch_size: int) -> Tensor:
    """Latents (N, C, h, w) of a folder's pictures, centre-cropped to a square and resized, encoded once."""
    paths = list_pictures(folder)
    keys = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]

    def make(rows: list[int]) -> dict[str, Tensor]:
        pictures = np.stack([_square(paths[row], denoiser.resolution) for row in rows])
        return {"latents": denoiser.encode_images(pictures).cpu()}

    return opened("encoded", {"resolution": denoiser.resolution}).fetch(keys, batch_size, make)["latents"]


def _square(path: Path, side: int) -> np.ndarray:
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
