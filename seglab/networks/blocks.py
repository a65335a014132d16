"""What SegNet and U-Net share."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seglab.core.errors import InputError

_AS_WRITTEN = ContextVar("reference_ops", default=False)


@contextmanager
def reference_ops() -> Iterator[None]:
    """Within it decoders upsample, then convolve, as they are drawn: to count what that takes."""
    token = _AS_WRITTEN.set(True)
    try:
        yield
    finally:
        _AS_WRITTEN.reset(token)


class Conv3x3(nn.Conv2d):
    """`nn.Conv2d(in_channels, out_channels, 3, padding=1)`, by `convolve`."""

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
    """`ConvBlock` of `upsample(x)` and, concatenated to it, a skip.

    (N, C, H, W) and (N, in_channels - C, 2 H, 2 W), if any, to (N, out_channels, 2 H, 2 W). A
    convolution of a concatenation is the sum of a convolution of each part.
    """

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """Convolves, rectifies, normalises."""
        conv, relu, norm = cast(tuple[nn.Conv2d, nn.ReLU, nn.BatchNorm2d], tuple(self))
        bias = cast(Tensor, conv.bias)
        if skip is None:
            y = convolve_upsampled(x, conv.weight) + bias[:, None, None]
        else:
            of_x, of_skip = conv.weight.split([x.shape[1], skip.shape[1]], 1)
            y = convolve(skip, of_skip, bias).add_(convolve_upsampled(x, of_x))
        return norm(relu(y))


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
        self.bottleneck = Conv3x3(channels[-1], 2 * channels[-1])

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


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.conv2d(x, weight, bias, padding=1)`, the faster way to its gradient where there is one.

    Args:
        x: (N, C, H, W).
        weight: (D, C, 3, 3).
        bias: (D,).

    Returns:
        (N, D, H, W).
    """
    # Of few channels the matrices are narrow; bfloat16 and other devices have fast gradients.
    narrow, half = len(weight[0]) < 32, torch.is_autocast_enabled("cpu") or x.dtype.itemsize < 4
    if narrow or half or x.device.type != "cpu" or not torch.is_grad_enabled():
        return F.conv2d(x, weight, bias, padding=1)
    return _Convolution.apply(x, weight, bias)


class _Convolution(torch.autograd.Function):
    """A convolution whose weights' gradient is three matrix products.

    On CPUs without AVX-512 oneDNN takes up to four times as long for that gradient as for the
    convolution itself.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, padding=1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            where = [True, False, False]
            of_x, _, _ = torch.ops.aten.convolution_backward(
                grad, x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, where
            )
        (n, channels, height, width), out = x.shape, len(weight)
        pixels = grad.permute(0, 2, 3, 1).reshape(n, height * width, out)
        if ctx.needs_input_grad[1]:
            # Three neighbours to a row of a matrix: a row of taps is one product with its shift.
            padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
            rows = padded.unfold(2, 3, 1).transpose(3, 4)
            rows = rows.reshape(n, (height + 2) * width, 3 * channels)
            shifts = [rows[:, tap * width : (tap + height) * width] for tap in range(3)]
            taps = torch.stack([torch.bmm(pixels.transpose(1, 2), s).sum(0) for s in shifts])
            of_weight = taps.view(3, out, 3, channels).permute(1, 3, 0, 2)
        if ctx.needs_input_grad[2]:
            of_bias = pixels.sum((0, 1))
        return of_x, of_weight, of_bias


def convolve_upsampled(x: Tensor, weight: Tensor) -> Tensor:
    """`F.conv2d(upsample(x), weight, padding=1)` at about a third of its cost.

    A convolution mixes channels, tap by tap, and shifts the taps' results over each other.
    Upsampling mixes rows and columns, so it can wait until the channels are mixed: that is then
    done where there is a quarter of the pixels, and as one matrix product.

    Args:
        x: (N, C, H, W), fastest in channels_last.
        weight: (D, C, 3, 3).

    Returns:
        (N, D, 2 H, 2 W), in channels_last.
    """
    if _AS_WRITTEN.get():
        return F.conv2d(upsample(x), weight, padding=1)
    (n, channels, height, width), out = x.shape, len(weight)
    taps = weight.permute(1, 3, 2, 0).reshape(channels, 9 * out)
    y = x.permute(0, 2, 3, 1).reshape(n * height * width, channels) @ taps
    # Rows of pixels, then columns: each time the three taps and the pixels become pixels.
    y = _interpolate(y.view(n * height, width * 3, 3 * out))
    y = y.view(n, height, 2 * width, 3, out).transpose(2, 3)
    y = _interpolate(y.reshape(n, height * 3, 2 * width * out))
    return y.view(n, 2 * height, 2 * width, out).permute(0, 3, 1, 2)


def _interpolate(x: Tensor) -> Tensor:
    """(N, 3 * pixels, C) to (N, 2 * pixels, C): what `upsample` and a padded tap do to an axis."""
    # Without a gradient as plain operations, for a traced network to be saved.
    return _Interpolation.apply(x) if torch.is_grad_enabled() else _multiply(x, transposed=False)


class _Interpolation(torch.autograd.Function):
    """`_interpolate`, whose gradient is as cheap: slices' own would each fill a whole tensor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _multiply(x, transposed=False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _multiply(grad.contiguous(), transposed=True)


def _multiply(x: Tensor, transposed: bool) -> Tensor:
    """The matrix of `_interpolate`, or its transpose, times (N, rows, C)."""
    bands = _bands(x.shape[1] // (2 if transposed else 3), transposed, x.dtype, x.device)
    parts = [torch.matmul(matrix, x[:, start:end]) for start, end, matrix in bands]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


@lru_cache(maxsize=64)
def _bands(
    pixels: int, transposed: bool, dtype: torch.dtype, device: torch.device
) -> list[tuple[int, int, Tensor]]:
    """The matrix of `_interpolate`, (2 * pixels, 3 * pixels), a band of 16 rows at a time.

    Each band comes with the stretch of columns that it does not leave zero: few of them.
    """
    source = np.linspace(0, pixels - 1, 2 * pixels)
    weights = np.stack([np.interp(source, np.arange(pixels), one) for one in np.eye(pixels)], 1)
    padded = np.pad(weights, ((1, 1), (0, 0)))
    taps = [padded[tap : tap + 2 * pixels] for tap in range(3)]
    matrix = np.stack(taps, 2).reshape(2 * pixels, 3 * pixels)
    if transposed:
        matrix = matrix.T
    bands = []
    for row in range(0, len(matrix), 16):
        band = matrix[row : row + 16]
        used = np.flatnonzero(band.any(0))
        start, end = int(used[0]), int(used[-1]) + 1
        bands.append((start, end, torch.tensor(band[:, start:end], dtype=dtype, device=device)))
    return bands
