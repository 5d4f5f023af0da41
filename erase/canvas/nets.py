"""The canvas's judge (which object, which style, or garbage) and its Fréchet encoder: two small strided CNNs."""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from . import OBJECTS, STYLES

GARBAGE = len(OBJECTS)  # the object head's last class: noise, blur, half-denoised pictures


class PictureNet(ModelMixin, ConfigMixin):
    """Strided CNN with an object head (20 classes + garbage) and a style head (6 classes) over one feature vector.

    Saved and loaded like any diffusers model: `config.json` beside `diffusion_pytorch_model.safetensors`.
    """

    @register_to_config
    def __init__(self, channels: tuple[int, ...] = (32, 64, 96, 128), features: int = 64):
        super().__init__()
        blocks: list[nn.Module] = []
        for width_in, width_out in zip((3, *channels), channels):
            blocks.append(_block(width_in, width_out))
        self.trunk = nn.Sequential(*blocks)
        self.project = nn.Linear(channels[-1] * 4, features)
        self.object_head = nn.Linear(features, len(OBJECTS) + 1)
        self.style_head = nn.Linear(features, len(STYLES))

    def layout(self, pictures: Tensor) -> Tensor:
        """What is where (N, 4 · channels[-2]): the last block but one, averaged over each quarter of the picture.

        Not yet folded into classes, so real pictures differ here by place, size and angle as much as in kind.
        """
        return nn.functional.adaptive_avg_pool2d(self.trunk[:-1](pictures), 2).flatten(1)

    def encode(self, pictures: Tensor) -> Tensor:
        """Features (N, features) of pictures (N, 3, 64, 64) in [-1, 1]."""
        maps = nn.functional.adaptive_avg_pool2d(self.trunk(pictures), 2)
        return self.project(maps.flatten(1))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Object logits (N, 21), style logits (N, 6) and features (N, features) of pictures (N, 3, 64, 64)."""
        features = self.encode(pictures)
        hidden = nn.functional.gelu(features)
        return self.object_head(hidden), self.style_head(hidden), features


def _block(width_in: int, width_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width_in, width_out, 3, stride=2, padding=1),
        nn.GroupNorm(8, width_out),
        nn.GELU(),
        nn.Conv2d(width_out, width_out, 3, padding=1),
        nn.GroupNorm(8, width_out),
        nn.GELU(),
    )


def to_unit_range(pictures: Tensor) -> Tensor:
    """uint8 pictures (N, H, W, 3) → float (N, 3, H, W) in [-1, 1]."""
    if pictures.dtype != torch.uint8:
        raise TypeError(
            f"Pictures must be uint8 (N, H, W, 3), got {pictures.dtype}; convert from PIL, not from floats."
        )
    return pictures.permute(0, 3, 1, 2).float() / 127.5 - 1
