"""SegNet of the recipe."""

import itertools

from torch import Tensor, nn

from seglab.networks.blocks import Encoder, UpBlock
from seglab.networks.fast_conv import upsample


class SegNet(nn.Module):
    """Encoder and decoder without skip connections: images to logits.

    After Badrinarayanan et al. 2017 (arXiv 1511.00561), simplified: one convolution a level, and
    bilinear upsampling in place of unpooling. Without arguments it is the recipe's network, of
    780,865 parameters, registered in the order in which the forward pass uses them.

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
        channels = [width * 2**level for level in range(depth, 0, -1)]
        self.decoder = nn.ModuleList(UpBlock(a, b) for a, b in itertools.pairwise(channels))
        self.head = nn.Conv2d(channels[-1], classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """From images (N, in_channels, H, W) in [0, 1] to logits (N, classes, H, W)."""
        x, _ = self.encoder(image)
        for block in self.decoder:
            x = block(x)
        # A 1 x 1 convolution and bilinear upsampling commute: upsampling the logits is cheaper.
        return upsample(self.head(x))
