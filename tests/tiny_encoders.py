"""Real encoders at toy size with random weights, and folders of pictures for them to look at."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from erase.draw.answers import Answers, Scorer
from erase.draw.records import Record
from erase.evaluate.metrics.inception import Inception
from tiny import _clip_config, _clip_tokenizer

WIDTH, SIDE = 16, 32


def build_clip(path: Path) -> Path:
    """A CLIPModel with tokenizer and processor."""
    vision = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokenizer = _clip_tokenizer()
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(
            text_config=_clip_config(tokenizer).to_dict(),
            vision_config=vision | {"image_size": SIDE, "patch_size": 8, "initializer_factor": 5.0},
            projection_dim=WIDTH,
            initializer_factor=5.0,
        )
    )
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}).save_pretrained(path)
    return path


def build_classifier(path: Path, labels: Sequence[str]) -> Path:
    """A ViT classifier with these classes."""
    torch.manual_seed(1)
    config = ViTConfig(
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=8,
        initializer_range=0.5,
        id2label=dict(enumerate(labels)),
        label2id={label: at for at, label in enumerate(labels)},
    )
    ViTForImageClassification(config).save_pretrained(path)
    ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(path)
    return path


def build_inception(path: Path) -> Path:
    """FID's network with random weights, and the classifier that its file also holds."""
    torch.manual_seed(2)
    weights = {k: v for k, v in Inception().state_dict().items() if not k.endswith("num_batches_tracked")}
    weights |= {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    save_file(weights, path)
    return path


def build_lpips(path: Path) -> Path:
    """LPIPS's weights at their real sizes."""
    rng = torch.Generator().manual_seed(3)
    sizes = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
    weights = {}
    for k, (number, (outputs, inputs, kernel)) in enumerate(sizes.items()):
        shape = (outputs, inputs, kernel, kernel)
        weights[f"features.{number}.weight"] = torch.randn(shape, generator=rng) * (inputs * kernel**2) ** -0.5
        weights[f"features.{number}.bias"] = torch.randn(outputs, generator=rng) * 0.1
        weights[f"lin{k}.weight"] = torch.rand(1, outputs, 1, 1, generator=rng)
    save_file(weights, path)
    return path


def write_pictures(folder: Path, pictures: Sequence[np.ndarray], rows: Sequence[Mapping[str, Any]] = ()) -> Path:
    """A folder as `erase generate` leaves it."""
    (folder / "images").mkdir(parents=True)
    records = []
    for at, picture in enumerate(pictures):
        file = f"images/{at:05d}.png"
        Image.fromarray(picture).save(folder / file)
        row = {"id": f"{at:05d}", "prompt": f"prompt {at}", "seed": at, "file": file}
        records.append(row | dict(rows[at] if rows else {}))
    (folder / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def noise(n: int, side: int = 40, seed: int = 0) -> list[np.ndarray]:
    """n pictures of coarse noise, each of its own brightness."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (n, 4, 4, 3)) * rng.uniform(0.3, 1, (n, 1, 1, 1))
    repeat = -(-side // 4)
    return list(coarse.astype(np.uint8).repeat(repeat, 1).repeat(repeat, 2)[:, :side, :side])


class RandomFeatures(Scorer):
    """A fixed random projection of the picture, shrunk to 8×8."""

    name: ClassVar[str] = "random"

    def __init__(self, dimensions: int = 12, seed: int = 0):
        self.dimensions, self.seed, self.seen = dimensions, seed, 0

    def fingerprint(self) -> dict[str, Any]:
        return {"sha256": f"random {self.seed}", "resize": "8×8", "dimensions": self.dimensions}

    def score(self, pictures: Sequence[np.ndarray], records: Sequence[Record]) -> Answers:
        self.seen += len(pictures)
        small = [np.asarray(Image.fromarray(p).resize((8, 8)), np.float32).reshape(-1) / 255 for p in pictures]
        projection = np.random.default_rng(self.seed).normal(size=(192, self.dimensions)) / 14
        return Answers([{} for _ in records], (np.stack(small) @ projection).astype(np.float32))
