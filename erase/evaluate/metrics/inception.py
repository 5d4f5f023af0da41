"""The network of the Fréchet inception distance: Inception v3 as its TensorFlow release of 2015-12-05 runs it.

It differs from Inception v3 as it was published (arXiv 1512.00567) and from most libraries' copies: average pooling
leaves the padding out, the last block pools by maximum, and pictures are enlarged without half-pixel centres. The
classes and fields are named as in the weights that the field shares, so these load as they are.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

INPUT_SIZE = 299
DIMENSIONS = 2048

Branch = Callable[[Tensor], Tensor]


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int | tuple[int, int], stride: int = 1, same: bool = False):
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (sides[0] // 2, sides[1] // 2) if same else 0
        self.conv = nn.Conv2d(inputs, outputs, sides, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


def average_pool(x: Tensor) -> Tensor:
    """Mean of the 3×3 neighbourhood, of those pixels alone that exist."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def max_pool(x: Tensor) -> Tensor:
    """Maximum of the 3×3 neighbourhood."""
    return F.max_pool2d(x, 3, stride=1, padding=1)


class BlockA(nn.Module):
    """35×35: 1×1, 5×5, two 3×3, and pooling."""

    def __init__(self, inputs: int, pooled: int):
        super().__init__()
        self.branch1x1 = ConvNorm(inputs, 64, 1)
        self.branch5x5_1 = ConvNorm(inputs, 48, 1)
        self.branch5x5_2 = ConvNorm(48, 64, 5, same=True)
        self.branch3x3dbl_1 = ConvNorm(inputs, 64, 1)
        self.branch3x3dbl_2 = ConvNorm(64, 96, 3, same=True)
        self.branch3x3dbl_3 = ConvNorm(96, 96, 3, same=True)
        self.branch_pool = ConvNorm(inputs, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        single = self.branch5x5_2(self.branch5x5_1(x))
        return torch.cat([self.branch1x1(x), single, double, self.branch_pool(average_pool(x))], 1)


class BlockB(nn.Module):
    """35×35 → 17×17."""

    def __init__(self, inputs: int):
        super().__init__()
        self.branch3x3 = ConvNorm(inputs, 384, 3, stride=2)
        self.branch3x3dbl_1 = ConvNorm(inputs, 64, 1)
        self.branch3x3dbl_2 = ConvNorm(64, 96, 3, same=True)
        self.branch3x3dbl_3 = ConvNorm(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, stride=2)], 1)


class BlockC(nn.Module):
    """17×17: 1×1, one and two 7×7 as rows and columns, and pooling."""

    def __init__(self, width: int):
        super().__init__()
        row, column = (1, 7), (7, 1)
        self.branch1x1 = ConvNorm(768, 192, 1)
        self.branch7x7_1 = ConvNorm(768, width, 1)
        self.branch7x7_2 = ConvNorm(width, width, row, same=True)
        self.branch7x7_3 = ConvNorm(width, 192, column, same=True)
        self.branch7x7dbl_1 = ConvNorm(768, width, 1)
        self.branch7x7dbl_2 = ConvNorm(width, width, column, same=True)
        self.branch7x7dbl_3 = ConvNorm(width, width, row, same=True)
        self.branch7x7dbl_4 = ConvNorm(width, width, column, same=True)
        self.branch7x7dbl_5 = ConvNorm(width, 192, row, same=True)
        self.branch_pool = ConvNorm(768, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), single, double, self.branch_pool(average_pool(x))], 1)


class BlockD(nn.Module):
    """17×17 → 8×8."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1 = ConvNorm(768, 192, 1)
        self.branch3x3_2 = ConvNorm(192, 320, 3, stride=2)
        self.branch7x7x3_1 = ConvNorm(768, 192, 1)
        self.branch7x7x3_2 = ConvNorm(192, 192, (1, 7), same=True)
        self.branch7x7x3_3 = ConvNorm(192, 192, (7, 1), same=True)
        self.branch7x7x3_4 = ConvNorm(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), wide, F.max_pool2d(x, 3, stride=2)], 1)


class BlockE(nn.Module):
    """8×8: 1×1, 3×3 split into a row and a column, once and twice, and `pool`."""

    def __init__(self, inputs: int, pool: Branch):
        super().__init__()
        self.pool = pool
        self.branch1x1 = ConvNorm(inputs, 320, 1)
        self.branch3x3_1 = ConvNorm(inputs, 384, 1)
        self.branch3x3_2a = ConvNorm(384, 384, (1, 3), same=True)
        self.branch3x3_2b = ConvNorm(384, 384, (3, 1), same=True)
        self.branch3x3dbl_1 = ConvNorm(inputs, 448, 1)
        self.branch3x3dbl_2 = ConvNorm(448, 384, 3, same=True)
        self.branch3x3dbl_3a = ConvNorm(384, 384, (1, 3), same=True)
        self.branch3x3dbl_3b = ConvNorm(384, 384, (3, 1), same=True)
        self.branch_pool = ConvNorm(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        parts = [self.branch1x1(x), self.branch3x3_2a(single), self.branch3x3_2b(single)]
        parts += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)]
        return torch.cat([*parts, self.branch_pool(self.pool(x))], 1)


class Inception(nn.Module):
    """Pictures (B, 3, 299, 299) from `prepared` → features (B, 2048), the last average pool."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvNorm(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = ConvNorm(32, 32, 3)
        self.Conv2d_2b_3x3 = ConvNorm(32, 64, 3, same=True)
        self.Conv2d_3b_1x1 = ConvNorm(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvNorm(80, 192, 3)
        self.Mixed_5b = BlockA(192, 32)
        self.Mixed_5c = BlockA(256, 64)
        self.Mixed_5d = BlockA(288, 64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b = BlockC(128)
        self.Mixed_6c = BlockC(160)
        self.Mixed_6d = BlockC(160)
        self.Mixed_6e = BlockC(192)
        self.Mixed_7a = BlockD()
        self.Mixed_7b = BlockE(1280, average_pool)
        self.Mixed_7c = BlockE(2048, max_pool)
        self.eval()

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Take the published weights; their classifier and batch counts are of no use here. ValueError if any lack."""
        wanted = {name for name in self.state_dict() if not name.endswith("num_batches_tracked")}
        if missing := sorted(wanted - set(weights)):
            raise ValueError(
                f"{len(missing)} weights of the Inception network are missing ({', '.join(missing[:3])}, …): this is "
                "not a file of the FID network."
            )
        self.load_state_dict({name: weights[name] for name in wanted}, strict=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, stride=2))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return x.mean((2, 3))


def prepared(pictures: Tensor) -> Tensor:
    """uint8 pictures (B, 3, H, W) as the network's input (B, 3, 299, 299) in [−1, 1)."""
    return (resize_tensorflow(pictures.float(), INPUT_SIZE) - 128) / 128


def resize_tensorflow(x: Tensor, size: int) -> Tensor:
    """Bilinear resize of x (B, C, H, W) to (B, C, size, size) as TensorFlow 1 does it, without antialiasing.

    Pixel i of the result is read at i·H/size: corners, not centres, lie on each other.
    """
    for axis in (2, 3):
        place = torch.arange(size, device=x.device, dtype=torch.float32) * (x.shape[axis] / size)
        low = place.long()
        high = (low + 1).clamp(max=x.shape[axis] - 1)
        share = (place - low).view(-1, 1) if axis == 2 else place - low
        left, right = x.index_select(axis, low), x.index_select(axis, high)
        x = left + (right - left) * share
    return x
