"""U-Net, as in the recipe, and with an encoder that was trained before."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from seglab.core.errors import InputError
from seglab.core.text import sanitize_text
from seglab.core.validation import check_number
from seglab.networks.blocks import Encoder, UpBlock, upsample
from seglab.networks.encoders import ENCODERS, IMAGENET, load_weights


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


class EncoderUNet(nn.Module):
    """U-Net's decoder over the encoder of a network that tells ImageNet's pictures apart.

    Args:
        encoder: A name of `seglab.networks.encoders.ENCODERS`.
        decoder: Channels of the decoder's four levels, from 1/16 of the edges to 1/2.
        weights: What `load_weights` loads: 'imagenet', a path, or None for weights from scratch.
            Building the network reads nothing. BatchNorm of a pretrained encoder keeps its
            statistics: those of small batches are worse.
        freeze: Of a pretrained encoder's five halvings of the picture, the first so many keep
            their weights: what they learnt of edges and colours suits any picture.
        classes: Channels of the logits; 1 for lesion against background.
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
        check_number("model.freeze", freeze, int, 0, 5)
        if encoder not in tuple(ENCODERS):
            raise InputError(f"model.encoder={encoder}: expected one of {', '.join(ENCODERS)}")
        levels = list(decoder) if isinstance(decoder, Sequence) else []
        if len(levels) != 4 or not all(type(n) is int and 0 < n <= 4096 for n in levels):
            raise InputError(
                f"model.decoder={sanitize_text(str(decoder))}: expected four numbers of channels, each "
                "from 1 to 4096"
            )
        if not isinstance(weights, str | None):
            raise InputError(
                f"model.weights={weights}: expected {IMAGENET}, the path of a file of weights, or "
                "null"
            )
        self.weights = weights
        self.encoder = ENCODERS[encoder]()
        *skips, deepest = self.encoder.channels  # type: ignore[misc]
        below = [deepest, *decoder[:-1]]
        self.decoder = nn.ModuleList(
            UpBlock(b + skip, out)
            for b, skip, out in zip(below, reversed(skips), decoder, strict=True)
        )
        self.head = nn.Conv2d(decoder[-1], classes, 1)
        for stage in self.encoder.stages[: freeze if weights else 0]:
            stage.requires_grad_(False)

    def train(self, mode: bool = True) -> EncoderUNet:
        """Sets the mode, but for BatchNorm of a pretrained encoder."""
        super().train(mode)
        if self.weights is not None:
            for module in self.encoder.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def forward(self, image: Tensor) -> Tensor:
        """From images (N, 3, H, W) in [0, 1] to logits (N, classes, H, W).

        Raises:
            InputError: H or W is no multiple of 32.
        """
        for edge in image.shape[-2:]:
            if edge % 32 or not edge:
                raise InputError(
                    f"data.size={edge}: {type(self.encoder).__name__} takes multiples of 32, such "
                    f"as {edge // 32 * 32 + 32}"
                )
        *skips, x = self.encoder(image)
        for block, skip in zip(self.decoder, reversed(skips), strict=True):
            x = block(x, skip)
        return upsample(self.head(x))

    def load_weights(self) -> None:
        """Loads the encoder's weights, if any are asked for.

        Raises:
            InputError: As `seglab.networks.encoders.load_weights`.
        """
        if self.weights is not None:
            load_weights(self.encoder, self.weights)  # type: ignore[arg-type]
