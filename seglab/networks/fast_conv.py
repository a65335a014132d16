"""Convolutions that are faster than PyTorch's on CPUs, with equal values up to rounding."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

_USE_REFERENCE_OPS = ContextVar("use_reference_ops", default=False)


@contextmanager
def reference_ops() -> Iterator[None]:
    """Upsample and then convolve while the body runs, with PyTorch's own operators.

    Used to count the multiply-adds of a network as it is drawn, and for the ONNX export.
    """
    token = _USE_REFERENCE_OPS.set(True)
    try:
        yield
    finally:
        _USE_REFERENCE_OPS.reset(token)


def upsample(x: Tensor) -> Tensor:
    """Double both edges bilinearly with `align_corners=True`, as in the recipe."""
    if x.device.type != "cuda" or _USE_REFERENCE_OPS.get():
        return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)
    # CUDA's deterministic gradient of F.interpolate is slow.
    rows, columns = (_upsampling(pixels, x.dtype, x.device) for pixels in x.shape[2:])
    return rows @ x @ columns.T


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute `F.conv2d(x, weight, bias, padding=1)`, with a faster gradient where there is one.

    From x (N, C, H, W), weight (D, C, 3, 3) and bias (D,) to (N, D, H, W).
    """
    # With few channels the matrices are narrow; bfloat16 and other devices have fast gradients.
    is_narrow = weight.shape[1] < 32
    is_half = torch.is_autocast_enabled("cpu") or x.dtype.itemsize < 4
    if is_narrow or is_half or x.device.type != "cpu" or not torch.is_grad_enabled():
        return F.conv2d(x, weight, bias, padding=1)
    return _Convolution.apply(x, weight, bias)


class _Convolution(torch.autograd.Function):
    """Convolution that computes the gradient of its weights by three matrix products.

    On CPUs without AVX-512, oneDNN takes up to four times as long for this gradient as for the
    convolution itself.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, padding=1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            output_mask = [True, False, False]
            grad_x, _, _ = torch.ops.aten.convolution_backward(
                grad, x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, output_mask
            )
        (n, channels, height, width), out = x.shape, len(weight)
        pixels = grad.permute(0, 2, 3, 1).reshape(n, height * width, out)
        if ctx.needs_input_grad[1]:
            # Each matrix row holds three horizontal neighbours, so one product gives the gradient
            # of a row of the kernel.
            padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
            rows = padded.unfold(2, 3, 1).transpose(3, 4)
            rows = rows.reshape(n, (height + 2) * width, 3 * channels)
            shifts = [rows[:, tap * width : (tap + height) * width] for tap in range(3)]
            taps = torch.stack([torch.bmm(pixels.transpose(1, 2), s).sum(0) for s in shifts])
            grad_weight = taps.view(3, out, 3, channels).permute(1, 3, 0, 2)
        if ctx.needs_input_grad[2]:
            grad_bias = pixels.sum((0, 1))
        return grad_x, grad_weight, grad_bias


def convolve_normalized(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    """Compute `norm(conv(x))` of a convolution without bias and dilation.

    With fixed statistics, as in eval mode, the normalization is a scale and a shift of each
    channel, which become part of the convolution: no pass over the features is left of it.

    From x (N, C, H, W) to (N, D, H / stride, W / stride).
    """
    if norm.training:
        return norm(_convolve(x, conv, conv.weight, None))
    return _convolve(x, conv, *_fold(conv, norm))


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return weight and bias of `conv` with the fixed statistics of `norm` folded in."""
    mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    scale = norm.weight * torch.rsqrt(variance + norm.eps)
    return conv.weight * scale[:, None, None, None], norm.bias - mean * scale


def _convolve(x: Tensor, conv: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve with other weights than those of `conv`."""
    stride, padding, groups = conv.stride[0], int(conv.padding[0]), conv.groups
    if x.device.type == "cpu" and not _USE_REFERENCE_OPS.get():
        if conv.kernel_size == (1, 1) and stride == 1:
            # With one thread, PyTorch's own convolution leaves channels_last for this.
            y = F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias)
            return y.permute(0, 3, 1, 2)
        is_slow = conv.kernel_size == (5, 5) and groups == len(weight)
        if is_slow and torch.is_grad_enabled() and torch.backends.mkldnn.is_available():
            return _DepthwiseConvolution.apply(x, weight, bias, stride, padding)
    return F.conv2d(x, weight, bias, stride, padding, groups=groups)


class _DepthwiseConvolution(torch.autograd.Function):
    """Depthwise convolution that computes the gradient of its weights as a convolution.

    The image is convolved, the gradient of the output is the kernel. oneDNN has fast code for the
    gradient of depthwise weights only up to 3 x 3; for larger ones it takes up to thirty times as
    long.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, bias, stride, padding, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = (saved.to(grad.dtype) for saved in ctx.saved_tensors)  # under autocast half
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            edges = [ctx.stride] * 2, [ctx.padding] * 2, [1, 1], False, [0, 0]
            grad_x, _, _ = torch.ops.aten.convolution_backward(
                grad, x, weight, None, *edges, len(weight), [True, False, False]
            )
        if ctx.needs_input_grad[1]:
            grad_weight = _depthwise_weight_gradient(grad, x, weight, ctx.stride, ctx.padding)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum((0, 2, 3))
        return grad_x, grad_weight, grad_bias, None, None


def _depthwise_weight_gradient(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int
) -> Tensor:
    """Return the gradient of a depthwise convolution's weights, (D, 1, K, K)."""
    n, channels = x.shape[:2]
    kernels = grad.reshape(n * channels, 1, *grad.shape[2:])
    if stride > 1:
        x, padding = F.pad(x, [padding] * 4), 0
    out = torch.empty_like(weight)
    # With a stride, a tap of the kernel meets every stride-th pixel, from an offset (i, j) on.
    for i, j in itertools.product(range(stride), repeat=2):
        pixels, taps = x[:, :, i::stride, j::stride], out[:, :, i::stride, j::stride]
        pixels = pixels.reshape(1, n * channels, *pixels.shape[2:])
        products = F.conv2d(pixels, kernels, padding=padding, groups=n * channels)
        products = products.view(n, channels, 1, *products.shape[2:])
        taps[:] = products[..., : taps.shape[2], : taps.shape[3]].sum(0)
    return out


def expand(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d, padding: Sequence[int]) -> Tensor:
    """Compute `F.pad(F.relu6(norm(conv(x))), padding)` of a 1 x 1 convolution without bias.

    `padding` is (left, right, top, bottom), in pixels.
    """
    is_plain = norm.training or _USE_REFERENCE_OPS.get() or not torch.is_grad_enabled()
    if is_plain or x.device.type != "cpu":
        y = convolve_normalized(x, conv, norm)
        y = F.relu6(y, inplace=not torch.is_grad_enabled())
        return F.pad(y, [*padding]) if any(padding) else y
    weight, bias = _fold(conv, norm)
    return _Expansion.apply(x, weight.flatten(1), bias, padding)


class _Expansion(torch.autograd.Function):
    """`expand` that works in place, and sets only the border of the padded tensor to 0."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, padding: Sequence[int]
    ) -> Tensor:
        (n, channels, height, width), (left, right, top, bottom) = x.shape, padding
        pixels = x.permute(0, 2, 3, 1).reshape(-1, channels)
        y = torch.mm(pixels, weight.T).add_(bias).clamp_(0, 6).view(n, height, width, -1)
        if any(padding):
            out = y.new_empty(n, top + height + bottom, left + width + right, len(weight))
            for edge in (out[:, :top], out[:, top + height :]):
                edge.zero_()
            for edge in (out[:, :, :left], out[:, :, left + width :]):
                edge.zero_()
            out[:, top : top + height, left : left + width] = y
            y = out
        ctx.inside = (..., slice(top, top + height), slice(left, left + width))
        y = y.permute(0, 3, 1, 2)
        ctx.save_for_backward(x, weight, y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, y = (saved.to(grad.dtype) for saved in ctx.saved_tensors)
        grad = torch.ops.aten.hardtanh_backward(grad[ctx.inside], y[ctx.inside], 0, 6)
        n, _, height, width = grad.shape
        grad = grad.permute(0, 2, 3, 1).reshape(-1, len(weight))
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.mm(grad, weight).view(n, height, width, -1).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[1]:
            pixels = x.permute(0, 2, 3, 1).reshape(len(grad), -1)
            grad_weight = torch.mm(grad.T, pixels)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum(0)
        return grad_x, grad_weight, grad_bias, None


def convolve_upsampled(x: Tensor, weight: Tensor) -> Tensor:
    """Compute `F.conv2d(upsample(x), weight, padding=1)` at about a third of its cost.

    A 3 x 3 convolution mixes channels for each of its nine taps, and then adds the shifted
    results. Upsampling mixes rows and columns only, so the two commute: channels are mixed first,
    at a quarter of the pixels, as one matrix product.

    From x (N, C, H, W), fastest in channels_last, and weight (D, C, 3, 3) to (N, D, 2 H, 2 W) in
    channels_last.
    """
    if _USE_REFERENCE_OPS.get():
        return F.conv2d(upsample(x), weight, padding=1)
    (n, channels, height, width), out = x.shape, len(weight)
    taps = weight.permute(1, 3, 2, 0).reshape(channels, 9 * out)
    y = x.permute(0, 2, 3, 1).reshape(n * height * width, channels) @ taps
    # Interpolate along rows, then along columns, each time summing three taps.
    y = _interpolate(y.view(n * height, width * 3, 3 * out))
    y = y.view(n, height, 2 * width, 3, out).transpose(2, 3)
    y = _interpolate(y.reshape(n, height * 3, 2 * width * out))
    return y.view(n, 2 * height, 2 * width, out).permute(0, 3, 1, 2)


def _interpolate(x: Tensor) -> Tensor:
    """Upsample one axis and sum three padded taps: (N, 3 * pixels, C) to (N, 2 * pixels, C)."""
    # Plain operations where no gradient is needed, so that a traced network can be saved.
    return _Interpolation.apply(x) if torch.is_grad_enabled() else _multiply(x, transposed=False)


class _Interpolation(torch.autograd.Function):
    """`_interpolate` with a cheap gradient; autograd's of slices would fill a tensor for each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _multiply(x, transposed=False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _multiply(grad.contiguous(), transposed=True)


def _multiply(x: Tensor, transposed: bool) -> Tensor:
    """Multiply the matrix of `_interpolate`, or its transpose, with (N, rows, C)."""
    bands = _bands(x.shape[1] // (2 if transposed else 3), transposed, x.dtype, x.device)
    parts = [torch.matmul(matrix, x[:, start:end]) for start, end, matrix in bands]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


@lru_cache(maxsize=64)
def _upsampling(pixels: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the matrix that upsamples one axis, (2 * pixels, pixels)."""
    return torch.tensor(_weights(pixels), dtype=dtype, device=device)


@lru_cache(maxsize=64)
def _bands(
    pixels: int, transposed: bool, dtype: torch.dtype, device: torch.device
) -> list[tuple[int, int, Tensor]]:
    """Return the matrix of `_interpolate`, (2 * pixels, 3 * pixels), in bands of rows.

    On a CPU a band has 16 rows; on a GPU, where one product is faster, all of them. Each band is
    (start, end, matrix) of the few columns that are not all zero.
    """
    padded = np.pad(_weights(pixels), ((1, 1), (0, 0)))
    taps = [padded[tap : tap + 2 * pixels] for tap in range(3)]
    matrix = np.stack(taps, 2).reshape(2 * pixels, 3 * pixels)
    if transposed:
        matrix = matrix.T
    bands = []
    height = 16 if device.type == "cpu" else len(matrix)
    for row in range(0, len(matrix), height):
        band = matrix[row : row + height]
        used = np.flatnonzero(band.any(0))
        start, end = int(used[0]), int(used[-1]) + 1
        bands.append((start, end, torch.tensor(band[:, start:end], dtype=dtype, device=device)))
    return bands


def _weights(pixels: int) -> np.ndarray:
    """Return the matrix that upsamples one axis, (2 * pixels, pixels)."""
    source = np.linspace(0, pixels - 1, 2 * pixels)
    return np.stack([np.interp(source, np.arange(pixels), one) for one in np.eye(pixels)], 1)
