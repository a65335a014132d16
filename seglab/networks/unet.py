"""U-Net of the recipe, and U-Net with a pretrained encoder."""

import itertools
from collections.abc import Sequence
from typing import Self

import torch.nn.functional as F
from torch import Tensor, nn

from seglab.networks.blocks import Encoder, UpBlock, check_edges
from seglab.networks.encoders import ENCODERS, load_weights
from seglab.networks.fast_conv import upsample


class UNet(nn.Module):
    """SegNet with skip connections from each encoder block to the decoder block of its size.

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
        # From 256 upsampled channels and 128 of the skip connection to 128, and so on.
        self.decoder = nn.ModuleList(
            UpBlock(below + skip, skip) for below, skip in itertools.pairwise(levels[:-1])
        )
        self.head = nn.Conv2d(levels[-2] + levels[-1], classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """From images (N, in_channels, H, W) in [0, 1] to logits (N, classes, H, W)."""
        x, skips = self.encoder(image)
        for block, skip in zip(self.decoder, reversed(skips[1:]), strict=True):
            x = block(x, skip)
        # The 1 x 1 head of a concatenation is the sum of the heads of its parts, and commutes with
        # upsampling: only the logits are upsampled, at half the cost of the recipe's order.
        weight, skip_weight = self.head.weight.split([x.shape[1], skips[0].shape[1]], 1)
        return upsample(F.conv2d(x, weight)) + F.conv2d(skips[0], skip_weight, self.head.bias)


class EncoderUNet(nn.Module):
    """U-Net's decoder on an image classifier's encoder (`seglab.networks.encoders`).

    Args:
        encoder: A name in `ENCODERS`.
        decoder: Channels of the decoder's four levels, from 1/16 of the image's edges to 1/2.
        weights: 'imagenet' or the path of a file for `load_weights`; None to train from scratch.
            The constructor reads nothing. BatchNorm of a pretrained encoder keeps its statistics:
            those of small batches are worse.
        freeze: Number of the encoder's five stages, from the image on, that keep their pretrained
            weights; from scratch none does.
        classes: Channels of the logits; 1 for lesion against background.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        encoder: str,
        decoder: Sequence[int],
        weights: str | None = None,
        freeze: int = 0,
        classes: int = 1,
    ) -> None:
        super().__init__()
        if encoder not in ENCODERS:
            raise ValueError(f"encoder={encoder}: expected one of {', '.join(ENCODERS)}")
        if not isinstance(decoder, Sequence) or len(decoder) != 4 or min(decoder) < 1:
            raise ValueError(
                f"decoder={decoder}: expected four numbers of channels, at least 1 each"
            )
        if not 0 <= freeze <= 5:
            raise ValueError(f"freeze={freeze}: expected a number of stages from 0 to 5")
        self.weights = weights
        self.freeze = freeze
        self.encoder = ENCODERS[encoder]()
        *skips, deepest = self.encoder.channels  # type: ignore[misc]
        inputs = [deepest, *decoder[:-1]]
        self.decoder = nn.ModuleList(
            UpBlock(channels + skip, out)
            for channels, skip, out in zip(inputs, reversed(skips), decoder, strict=True)
        )
        self.head = nn.Conv2d(decoder[-1], classes, 1)
        if weights:
            self.freeze_stages()

    def train(self, mode: bool = True) -> Self:
        """Set the mode; BatchNorm of a pretrained encoder stays in eval mode."""
        super().train(mode)
        if self.weights is not None:
            for module in self.encoder.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def forward(self, image: Tensor) -> Tensor:
        """From images (N, 3, H, W) in [0, 1] to logits (N, classes, H, W).

        Raises:
            ValueError: H or W is not a multiple of 32.
        """
        check_edges(image, 32)
        *skips, x = self.encoder(image)
        for block, skip in zip(self.decoder, reversed(skips), strict=True):
            x = block(x, skip)
        return upsample(self.head(x))

    def freeze_stages(self) -> None:
        """Let the first `freeze` stages of the encoder keep their weights in training."""
        for stage in self.encoder.stages[: self.freeze]:  # type: ignore[index]
            stage.requires_grad_(False)

    def load_weights(self) -> None:
        """Load the encoder's pretrained weights, if any; a ValueError if they cannot be read."""
        if self.weights is not None:
            load_weights(self.encoder, self.weights)  # type: ignore[arg-type]
