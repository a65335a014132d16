"""Brings an image and its mask to the size of the network's input, and probabilities back."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_array

# Pixel values that are turned to float32 at a time: 4 MB, which fit the cache of a core.
_BLOCK = 2**20


def to_network_size(
    image: np.ndarray, mask: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Resizes an image with anti-aliasing and its mask by the class that covers most of a pixel.

    Args:
        image: uint8 (H, W, 3).
        mask: uint8 (H, W), class numbers.
        size: Edge of the square result, in pixels.

    Returns:
        uint8 (size, size, 3) and uint8 (size, size). Where two classes cover a pixel equally, it
        is of the lower number.
    """
    return image_to_network_size(image, size), mask_to_network_size(mask, size)


def mask_to_network_size(mask: np.ndarray, size: int) -> np.ndarray:
    """Resizes class numbers, uint8 (H, W), to (size, size) as `to_network_size` does."""
    if mask.shape == (size, size):
        return mask
    from skimage.transform import resize  # slow to import, not needed with a cache

    def coverage(pixels: np.ndarray) -> np.ndarray:
        return resize(pixels.astype(np.float64), (size, size), order=1, anti_aliasing=False)

    highest = mask.max()
    if highest <= 1:
        # Many pixels are covered by exactly one half. The recipe compares with 0.5, and the
        # rounding errors of two coverages would decide some of them otherwise.
        return (coverage(mask) > 0.5).astype(np.uint8)
    coverages = [coverage(mask == number) for number in range(highest + 1)]
    return np.argmax(coverages, axis=0).astype(np.uint8)


def image_to_network_size(image: np.ndarray, size: int) -> np.ndarray:
    """Resizes an image, uint8 (H, W, 3), to uint8 (size, size, 3), rounded.

    As scikit-image's `resize` does with anti-aliasing, many times faster.
    """
    height, width, channels = image.shape
    if height == width == size:
        return image
    # The resizing is linear along each axis, so two products with sparse matrices. float32 is
    # precise enough, because the result is rounded to uint8.
    flat, vertical = image.reshape(height, -1), _resize_matrix(height, size)
    step = max(1, _BLOCK // height)
    starts = range(0, flat.shape[1], step)
    rows = np.hstack([vertical @ flat[:, i : i + step].astype(np.float32) for i in starts])
    small = (_resize_matrix(width, size, channels) @ rows.T).T
    return np.rint(small).astype(np.uint8, order="C").reshape(size, size, channels)


def resize_probabilities(prob: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Resizes probabilities, float32 (C, S, S), to (C, H, W), bilinearly.

    As torch's `interpolate` with `align_corners=False`, twice as fast on one thread.
    """
    (channels, size, _), (height, width) = prob.shape, shape
    columns = _interpolation_matrix(size, width) @ prob.reshape(-1, size).T
    rows = columns.reshape(width, channels, size).T.reshape(size, -1)
    resized = _interpolation_matrix(size, height) @ rows
    return resized.reshape(height, channels, width).swapaxes(0, 1)


@lru_cache(maxsize=128)
def _interpolation_matrix(length: int, size: int) -> csr_array:
    """Computes the matrix, (size, length), of linear interpolation along an axis."""
    from scipy.sparse import csr_array  # slow to import, not needed with a cache

    position = ((np.arange(size) + 0.5) * (length / size) - 0.5).clip(0, length - 1)
    left = position.astype(int)
    fraction = (position - left).astype(np.float32)
    weights = np.stack([1 - fraction, fraction], 1)
    columns = np.stack([left, np.minimum(left + 1, length - 1)], 1)
    return csr_array((weights.ravel(), columns.ravel(), 2 * np.arange(size + 1)), (size, length))


@lru_cache(maxsize=128)
def _resize_matrix(length: int, size: int, channels: int = 1) -> csr_array:
    """Computes the matrix that scikit-image's anti-aliased `resize` applies along an axis.

    A Gaussian of sigma (length / size - 1) / 2, cut at 4 sigma, then linear interpolation. Beyond
    its ends the axis continues as its mirror image. float32 (size * channels, length * channels),
    for `channels` interleaved values at each position of the axis.
    """
    from scipy.sparse import csr_array, eye_array, kron  # slow to import, not needed with a cache

    scale = length / size
    sigma = (scale - 1) / 2
    radius = int(4 * sigma + 0.5) if sigma > 0 else 0
    offsets = np.arange(-radius, radius + 1)
    gaussian = np.exp(-0.5 * (offsets / sigma) ** 2) if radius else np.ones(1)
    gaussian /= gaussian.sum()
    position = (np.arange(size) + 0.5) * scale - 0.5
    left = np.floor(position).astype(int)
    fraction = (position - left)[:, None]
    weights = np.zeros((size, 2 * radius + 2), np.float32)
    weights[:, :-1] = (1 - fraction) * gaussian
    weights[:, 1:] += fraction * gaussian
    # `left` is -1 or more, so the leftmost source pixel is -1 - radius: index 0 of `source`.
    source = np.pad(np.arange(length), radius + 1, "reflect")
    columns = source[left[:, None] + 1 + np.arange(2 * radius + 2)]
    starts = np.arange(size + 1) * weights.shape[1]
    matrix = csr_array((weights.ravel(), columns.ravel(), starts), (size, length))
    return csr_array(kron(matrix, eye_array(channels, dtype=np.float32)))
