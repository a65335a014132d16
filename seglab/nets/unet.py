"""U-Net, as in the recipe."""

from __future__ import annotations

import itertools

import torch.nn.functional as F
from torch import Tensor, nn

from seglab.nets.blocks import Encoder, UpBlock, upsample


class UNet(nn.Module):
    """SegNet whose decoder also sees each encoder block's output of its own size.

    After Ronneberger et al. 2015 (arXiv 1505.04597), with one convolution a level and padding.
    Without arguments it is the recipe's network, of 974,417 parameters, registered in the order
    in which the forward pass uses them. Each encoder block is computed once.

    Args:
        in_channels: Channels of the image.
        classes: Channels of the logits; 1 for lesion against background.
        width: Channels of the first block; each level doubles them.
        depth: Levels; the input's edges must be multiples of 2 ** depth.
    """

    def __init__(
        self, in_channels: int = 3, classes: int = 1, width: int = 16, depth: int = 4
    ) -> None:
        super().__init__()
        self.encoder = Encoder(in_channels, width, depth)
        levels = [width * 2**level for level in range(depth, -1, -1)]
        # Upsampled channels of the level below and the skip's: 256 + 128 become 128, and so on.
        self.decoder = nn.ModuleList(
            UpBlock(below + skip, skip) for below, skip in itertools.pairwise(levels[:-1])
        )
        self.head = nn.Conv2d(levels[-2] + levels[-1], classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """From images (N, in_channels, H, W) in [0, 1] to logits (N, classes, H, W)."""
        x, skips = self.encoder(image)
        for block, skip in zip(self.decoder, reversed(skips[1:]), strict=True):
            x = block(x, skip)
        # The head on a concatenation is the sum of a head on each part, and it commutes with
        # upsampling: only the logits are upsampled, at half the cost of the recipe's order.
        below, skip = self.head.weight.split([x.shape[1], skips[0].shape[1]], 1)
        return upsample(F.conv2d(x, below)) + F.conv2d(skips[0], skip, self.head.bias)
