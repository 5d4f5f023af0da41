"""Encoders: pictures to feature vectors. Inception v3 for FID and KID, CLIP for CMMD, any vision model of transformers.

Every network comes from a hub id or a local path, so all of it runs where there is no hub. Weights are safetensors; the
one exception is the published Inception file, which is read only when its hash is the published one.
"""

import hashlib
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from ...draw.answers import Answers, Scorer
from ...draw.records import Record
from ...files import file_sha256, read_safetensors
from ...models.folder import hub_reason
from .encoder_kinds import Need, need_clip_vision, need_vision
from .inception import DIMENSIONS, Inception, prepared

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_SHA256 = "6726825d"
"""The file's name ends in the first eight digits of its sha256, as torch.hub's do."""
INCEPTION_SOURCE = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/" + INCEPTION_FILE
CMMD_CLIP = "openai/clip-vit-large-patch14-336"
"""The encoder that CMMD is defined with (arXiv 2401.09603)."""
CHECKPOINT_FILES = ("*.json", "*.txt", "*.safetensors")


def default_device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class EncoderSource:
    """A model of transformers by hub id or local folder, with everything that reads pictures or text for it."""

    name: str
    """Hub id, or a folder that `save_pretrained` wrote."""
    flag: str
    """The option that gives it, for messages."""
    need: Need
    """What kind of model that option takes."""

    @cached_property
    def folder(self) -> Path:
        """The local folder; a hub id is downloaded, safetensors only. ValueError when there is nothing to load."""
        given = Path(self.name).expanduser()
        path = given if given.is_dir() else self._downloaded()
        whole = ("model.safetensors", "model.safetensors.index.json")
        if not (path / "config.json").is_file() or not any((path / name).is_file() for name in whole):
            held = ", ".join(sorted(file.name for file in path.iterdir())[:8]) or "nothing"
            raise ValueError(
                f"{path} holds no model.safetensors with its config.json (it holds {held}). Give {self.flag} a folder "
                "of transformers; pickled weights are not read: convert them once with "
                f"`AutoModel.from_pretrained({self.name!r}).save_pretrained(FOLDER, safe_serialization=True)`."
            )
        return path

    def _downloaded(self) -> Path:
        from huggingface_hub import snapshot_download

        if Path(self.name).expanduser().is_file():
            raise ValueError(
                f"{self.flag} {self.name} is a file; give the folder that holds it beside its config.json."
            )
        try:
            return Path(snapshot_download(self.name, allow_patterns=list(CHECKPOINT_FILES)))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"Cannot find the model {self.name!r}: {hub_reason(error)}. Without a network, copy "
                f"https://huggingface.co/{self.name} (config.json, preprocessor_config.json, *.safetensors) and give "
                f"{self.flag} that folder."
            ) from error

    @cached_property
    def sha256(self) -> str:
        """Over the names and bytes of configuration, tokenizer and weights."""
        _ = self.config  # a model of the wrong kind is refused before anything is drawn for it
        digest = hashlib.sha256()
        for path in sorted(path for pattern in CHECKPOINT_FILES for path in self.folder.glob(pattern)):
            digest.update(f"{path.name}:{file_sha256(path)}\n".encode())
        return digest.hexdigest()

    @cached_property
    def config(self) -> Any:
        """Its configuration, without its weights; ValueError where the option takes another kind of model."""
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(self.folder)
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.folder / 'config.json'} is of no model that transformers has ({error}). Give "
                             f"{self.flag} a folder that its `save_pretrained` wrote.") from error  # fmt: skip
        self.need(self.folder, config)
        return config

    @cached_property
    def processor(self) -> Any:
        """What resizes and normalises pictures: PIL's resampling, whether torchvision is installed or not."""
        from transformers import AutoImageProcessor

        try:
            return AutoImageProcessor.from_pretrained(self.folder, backend="pil")
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.folder} says not how pictures are prepared ({error}); copy the "
                             "preprocessor_config.json that belongs to the model into it.") from error  # fmt: skip

    def pixels(self, pictures: Sequence[np.ndarray], device: torch.device) -> Tensor:
        """(B, 3, h, w) network input of uint8 pictures (H, W, 3), each of any size."""
        made = self.processor(images=list(pictures), return_tensors="pt", input_data_format="channels_last")
        return made["pixel_values"].to(device)

    def load(self, model_class: str, device: torch.device, may_lack: tuple[str, ...] = (), **options: Any) -> Any:
        """The model in float32; a weight that the file lacks would be random, and is an error unless it starts so."""
        import transformers

        try:
            model, report = getattr(transformers, model_class).from_pretrained(
                self.folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **options
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"Cannot load {self.folder} as {model_class}: {error}. Check {self.flag}.") from error
        if missing := sorted(name for name in report["missing_keys"] if not name.startswith(may_lack)):
            raise ValueError(
                f"{self.folder} is no {model_class}: it lacks {', '.join(missing[:4])}, which would be random. "
                f"Give {self.flag} a model that was trained for this."
            )
        return model.to(device).eval()


class EncoderScorer(Scorer):
    """Features of any vision model of transformers: its [CLS] token where it has tokens, else the mean over places."""

    name: ClassVar[str] = "encoder"

    need: ClassVar[Need] = need_vision

    def __init__(self, model: str, device: torch.device | None = None, flag: str = "--encoder"):
        self.checkpoint, self.device = EncoderSource(model, flag, type(self).need), device or default_device()

    def fingerprint(self) -> dict[str, Any]:
        return {"model_type": self.checkpoint.config.model_type, "sha256": self.checkpoint.sha256, "resize": "pil"}

    @property
    def dimensions(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """d, as the model's configuration says."""
        config = self.checkpoint.config
        return config.hidden_size if hasattr(config, "hidden_size") else config.hidden_sizes[-1]

    @cached_property
    def network(self) -> Any:
        """The model, loaded when first asked for."""
        return self.checkpoint.load("AutoModel", self.device, may_lack=("pooler",))

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, d) of network input (B, 3, h, w)."""
        hidden = self.network(pixel_values=pixels).last_hidden_state
        return hidden[:, 0] if hidden.ndim == 3 else hidden.mean((2, 3))

    @torch.no_grad()
    def score(self, pictures: Sequence[np.ndarray], records: Sequence[Record]) -> Answers:
        features = self.encode(self.checkpoint.pixels(pictures, self.device))
        return Answers([{} for _ in records], features.float().cpu().numpy())


class ClipImageScorer(EncoderScorer):
    """CLIP's projected picture embeddings, for CMMD (not normalised)."""

    name: ClassVar[str] = "clip"
    need: ClassVar[Need] = need_clip_vision

    def __init__(self, model: str = CMMD_CLIP, device: torch.device | None = None, flag: str = "--cmmd_model"):
        super().__init__(model, device, flag)

    @property
    def dimensions(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Width of the projection."""
        return self.checkpoint.config.projection_dim

    @property
    def is_published(self) -> bool:
        """Whether this is, by its shape, the ViT-L/14 at 336 pixels that CMMD names."""
        vision = getattr(self.checkpoint.config, "vision_config", self.checkpoint.config)
        return (vision.image_size, vision.patch_size, vision.num_hidden_layers) == (336, 14, 24)

    @cached_property
    def network(self) -> Any:
        """The vision tower and its projection; the text tower stays on the disk."""
        vision = deepcopy(getattr(self.checkpoint.config, "vision_config", self.checkpoint.config))
        vision.projection_dim = self.dimensions  # the tower's own entry is not always filled in
        return self.checkpoint.load("CLIPVisionModelWithProjection", self.device, config=vision)

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, d) of network input (B, 3, h, w)."""
        return self.network(pixel_values=pixels).image_embeds


class InceptionScorer(Scorer):
    """The 2,048 features that FID and KID are made of, equal to torch-fidelity's without torchvision.

    Pictures of mixed sizes are fine: each is resized to 299×299 by itself, as pytorch-fid does with batches of one
    (in torchmetrics, `antialias=False`).
    """

    name: ClassVar[str] = "inception"
    dimensions = DIMENSIONS

    def __init__(self, weights: Path | None = None, device: torch.device | None = None):
        """`weights`: the published file, or a copy of its tensors as .safetensors, which nobody can check."""
        self.weights, self.device = weights, device or default_device()

    @property
    def is_published(self) -> bool:
        """Whether the hash proves these to be the weights that FID is defined with."""
        return self._sha256.startswith(INCEPTION_SHA256)

    def fingerprint(self) -> dict[str, Any]:
        return {
            "network": "Inception v3, TensorFlow 2015-12-05, last average pool",
            "sha256": self._sha256,
            "resize": "bilinear to 299×299 as TensorFlow 1, no antialiasing",
        }

    @cached_property
    def _sha256(self) -> str:
        advice = f"Download {INCEPTION_SOURCE} and give its path with --inception_weights."
        if self.weights is None or not self.weights.is_file():
            found = "no path was given" if self.weights is None else f"{self.weights} does not exist"
            raise ValueError(
                f"FID and KID need the weights of the Inception network, {INCEPTION_FILE}: {found}. {advice}"
            )
        digest = file_sha256(self.weights)
        if self.weights.suffix != ".safetensors" and not digest.startswith(INCEPTION_SHA256):
            raise ValueError(
                f"{self.weights} is not the published file: its sha256 begins with {digest[:8]}, not with "
                f"{INCEPTION_SHA256}; it was not opened. It may be cut off. {advice}"
            )
        return digest

    @cached_property
    def network(self) -> Inception:
        """The network, loaded when first asked for and only after its hash was checked."""
        assert self._sha256 and self.weights is not None
        if self.weights.suffix == ".safetensors":
            weights = read_safetensors(self.weights)[0]
        else:
            # A pickle, but the published one (its hash was checked), and nothing but tensors is taken from it.
            weights = torch.load(self.weights, map_location="cpu", weights_only=True)
        network = Inception()
        network.load(weights)
        return network.to(self.device)

    @torch.no_grad()
    def score(self, pictures: Sequence[np.ndarray], records: Sequence[Record]) -> Answers:
        tensors = (torch.from_numpy(picture.copy()).to(self.device) for picture in pictures)
        x = torch.cat([prepared(picture.permute(2, 0, 1)[None]) for picture in tensors])
        return Answers([{} for _ in records], self.network(x).cpu().numpy())
