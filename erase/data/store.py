"""What the base model made, kept on disk: rows of tensors under content-addressed keys.

A store is a folder named by the hash of its manifest (model and settings); its rows are named by what they are made
from (prompt and seed). Rows are written in whole batches, so an interrupted job resumes where it stopped, several
processes share the work, and runs on the same base share the pictures.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import safe_open
from torch import Tensor

from ..files import atomic_save, read_safetensors, write_json
from ..runtime.progress import BatchProgress, OnStep, picture_bar

PACKAGES = ("torch", "diffusers", "transformers")
"""Libraries of which another version makes other numbers."""
LABELS = {"latents": "training pictures", "trajectories": "trajectories", "prompts": "prompts", "encoded": "pictures"}
"""What a progress bar calls each kind of row."""


class Store:
    """Rows of tensors under content-addressed keys, written by all processes in whole batches."""

    def __init__(self, root: Path, base_hash: str, accelerator: Accelerator, kind: str, settings: dict[str, Any]):
        manifest = {
            "kind": kind,
            "base_sha256": base_hash,
            "precision": str(accelerator.mixed_precision),
            "device": accelerator.device.type,
            "packages": {name: version(name) for name in PACKAGES},
        } | settings
        self.kind, self.accelerator = kind, accelerator
        self.folder = root / f"{kind}-{_digest(json.dumps(manifest, sort_keys=True))}"
        described = self.folder / "manifest.json"
        if accelerator.is_main_process and not described.exists():
            write_json(described, manifest)
        accelerator.wait_for_everyone()
        if json.loads(described.read_text(encoding="utf-8")) != manifest:
            raise ValueError(f"The cache {self.folder} is not what its name says; delete that folder and start again.")

    def fetch(
        self, keys: Sequence[str], batch_size: int, make: Callable[[list[int], OnStep], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """The rows named by `keys`, in their order; `make` gets the numbers of up to `batch_size` missing ones, and who
        wants to hear after each denoising step.
        """
        present = self._index()
        missing = [row for row, key in enumerate(keys) if key not in present]
        batches = [missing[first : first + batch_size] for first in range(0, len(missing), batch_size)]
        mine = batches[self.accelerator.process_index :: self.accelerator.num_processes]
        self.accelerator.wait_for_everyone()
        with picture_bar(len(missing), LABELS[self.kind], shown=self._speaks, unit="row") as bar:
            for batch in mine:
                names = json.dumps([keys[row] for row in batch])
                # The bar is the main process's: the others are taken to keep pace.
                moving = BatchProgress(bar, len(batch) * min(len(batches), self.accelerator.num_processes))
                atomic_save(make(batch, moving), self.folder / f"{_digest(names)}.safetensors", {"keys": names})
                moving.finish()
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
