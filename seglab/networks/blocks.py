"""Layers and the encoder that SegNet and U-Net share."""

import itertools
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from seglab.networks.fast_conv import convolve, convolve_upsampled


class Conv3x3(nn.Conv2d):
    """`nn.Conv2d(in_channels, out_channels, 3, padding=1)`, computed by `convolve`."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H, W)."""
        return convolve(x, self.weight, self.bias)


class ConvBlock(nn.Sequential):
    """Conv 3x3, ReLU, BatchNorm, in the recipe's order.

    (N, in_channels, H, W) to (N, out_channels, H, W).
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            Conv3x3(in_channels, out_channels),
            nn.ReLU(inplace=True),
            nn.BatchNorm2d(out_channels),
        )


class UpBlock(ConvBlock):
    """`ConvBlock` of the upsampled input, concatenated with a skip connection if there is one.

    (N, C, H, W) and (N, in_channels - C, 2 H, 2 W) to (N, out_channels, 2 H, 2 W). The
    convolution of a concatenation is computed as the sum of the convolutions of its parts.
    """

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """Upsample x, concatenate the skip connection, and apply the block."""
        conv, relu, norm = cast(tuple[nn.Conv2d, nn.ReLU, nn.BatchNorm2d], tuple(self))
        bias = cast(Tensor, conv.bias)
        if skip is None:
            y = convolve_upsampled(x, conv.weight) + bias[:, None, None]
        else:
            weight, skip_weight = conv.weight.split([x.shape[1], skip.shape[1]], 1)
            y = convolve(skip, skip_weight, bias).add_(convolve_upsampled(x, weight))
        return norm(relu(y))


class Encoder(nn.Module):
    """`depth` blocks of doubling width, each followed by pooling, then a bare convolution."""

    def __init__(self, in_channels: int, width: int, depth: int) -> None:
        super().__init__()
        if width < 1 or depth < 1:
            raise ValueError(f"width={width}, depth={depth}: expected at least 1 for both")
        self.factor = 2**depth
        channels = [in_channels, *(width * 2**level for level in range(depth))]
        self.blocks = nn.ModuleList(ConvBlock(a, b) for a, b in itertools.pairwise(channels))
        self.bottleneck = Conv3x3(channels[-1], 2 * channels[-1])

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """From (N, in_channels, H, W) to (N, width * 2 ** depth, H / 2 ** depth, W / 2 ** depth).

        The second value is each block's output before pooling, largest first.
        """
        check_edges(x, self.factor)
        skips = []
        for block in self.blocks:
            x = block(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        return self.bottleneck(x), skips


def check_edges(image: Tensor, factor: int) -> None:
    """Raise ValueError if an edge of (N, C, H, W) is not a multiple of what the network needs."""
    for edge in image.shape[-2:]:
        if edge % factor or edge == 0:
            lower = edge // factor * factor
            nearest = f"{lower} and {lower + factor}" if lower else f"{factor}"
            raise ValueError(
                f"its edge of {edge} pixels is not a multiple of {factor}; the nearest: {nearest}"
            )
