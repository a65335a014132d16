"""What SegNet and U-Net share."""

from __future__ import annotations

import itertools

import torch.nn.functional as F
from torch import Tensor, nn

from seglab.errors import InputError


class ConvBlock(nn.Sequential):
    """Conv 3x3, ReLU, BatchNorm, in the recipe's order.

    (N, in_channels, H, W) to (N, out_channels, H, W).
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.BatchNorm2d(out_channels),
        )


class Encoder(nn.Module):
    """Blocks of doubling width, each followed by pooling, then the bottleneck's bare convolution.

    Args:
        in_channels: Channels of the image.
        width: Channels of the first block.
        depth: Number of blocks; the input's edges must be multiples of 2 ** depth.
    """

    def __init__(self, in_channels: int, width: int, depth: int) -> None:
        super().__init__()
        if width < 1 or depth < 1:
            raise InputError(
                f"model.width={width}, model.depth={depth}: expected at least 1 of each"
            )
        self.factor = 2**depth
        channels = [in_channels, *(width * 2**level for level in range(depth))]
        self.blocks = nn.ModuleList(ConvBlock(a, b) for a, b in itertools.pairwise(channels))
        self.bottleneck = nn.Conv2d(channels[-1], 2 * channels[-1], 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Encodes.

        Args:
            x: (N, in_channels, H, W).

        Returns:
            (N, width * 2 ** depth, H / 2 ** depth, W / 2 ** depth), and each block's output
            before pooling, largest first.

        Raises:
            InputError: H or W is no multiple of 2 ** depth.
        """
        for edge in x.shape[-2:]:
            if edge % self.factor or not edge:
                below = edge // self.factor * self.factor
                near = [size for size in (below, below + self.factor) if size]
                raise InputError(
                    f"data.size={edge}: a network of depth {self.factor.bit_length() - 1} takes "
                    f"multiples of {self.factor}; the nearest are {' and '.join(map(str, near))}"
                )
        skips = []
        for block in self.blocks:
            x = block(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        return self.bottleneck(x), skips


def upsample(x: Tensor) -> Tensor:
    """Doubles both edges, bilinearly, corner pixels kept in place as in the recipe."""
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)
