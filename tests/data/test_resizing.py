"""Resizing to network size: as scikit-image resizes, and the class that covers most of a pixel."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from skimage.transform import resize

from seglab.data.resizing import image_to_network_size, resize_probabilities, to_network_size


def noise(height: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A random image and a random binary mask."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    return image, (rng.random((height, width)) < 0.5).astype(np.uint8)


EDGES, SEEDS = st.integers(1, 40), st.integers(0, 999)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(EDGES, EDGES, st.integers(1, 32), SEEDS)
@example(3, 22, 15, 0)  # many a pixel of the mask is one half
@example(34, 23, 30, 0)
@example(28, 12, 25, 0)
@example(30, 20, 10, 0)
@example(553, 765, 256, 0)
@example(30, 64, 30, 0)  # one edge stays
@example(1, 765, 32, 0)
def test_network_size_is_the_recipes(height: int, width: int, size: int, seed: int) -> None:
    image, mask = noise(height, width, seed)
    before = image.copy(), mask.copy()
    small, small_mask = to_network_size(image, mask, size)
    assert small.dtype == np.uint8
    assert small.shape == (size, size, 3)
    assert small_mask.dtype == np.uint8
    assert small_mask.shape == (size, size)
    assert np.array_equal(image, before[0])
    assert np.array_equal(mask, before[1])

    recipe = resize(image / 255, (size, size), anti_aliasing=True)
    assert np.abs(small / 255 - recipe).max() <= 0.51 / 255  # rounded, not cut off
    recipe_mask = resize(mask.astype(float), (size, size), order=1, anti_aliasing=False) > 0.5
    assert np.array_equal(small_mask, recipe_mask)
    assert np.array_equal(image_to_network_size(image, size), small)


@pytest.mark.parametrize("size", [1, 7, 32])
def test_a_pair_at_network_size_stays_as_it_is(size: int) -> None:
    image, mask = noise(size, size, 0)
    small, small_mask = to_network_size(image, mask, size)
    assert np.array_equal(small, image)
    assert np.array_equal(small_mask, mask)


def test_masks_keep_their_area_and_place() -> None:
    mask = np.zeros((60, 80), np.uint8)
    mask[12:36, 40:60] = 1  # a fifth to three fifths down, a half to three quarters across
    _, small = to_network_size(np.zeros((60, 80, 3), np.uint8), mask, 20)
    expected = np.zeros((20, 20), np.uint8)
    expected[4:12, 10:15] = 1
    assert np.array_equal(small, expected)


def test_a_pixel_takes_the_class_that_covers_most_of_it() -> None:
    mask = np.zeros((4, 4), np.uint8)
    mask[:2, :2] = [[1, 1], [2, 1]]
    mask[2:, 2:] = [[2, 2], [2, 0]]
    mask[:2, 2:] = [[0, 1], [1, 2]]
    image = np.zeros((4, 4, 3), np.uint8)
    _, small = to_network_size(image, mask, 2)
    assert small.dtype == np.uint8
    assert small.tolist() == [[1, 1], [0, 2]]


@pytest.mark.parametrize("shape", [(553, 765), (20, 30), (16, 16), (7, 40), (1, 3)])
def test_probabilities_are_resized_as_torch_does(shape: tuple[int, int]) -> None:
    prob = np.random.default_rng(0).random((2, 16, 16), np.float32)
    before = prob.copy()
    resized = resize_probabilities(prob, shape)
    tensor = torch.from_numpy(prob)[None]
    expected = F.interpolate(tensor, shape, mode="bilinear", align_corners=False)[0].numpy()
    assert resized.dtype == np.float32 and resized.shape == (2, *shape)
    np.testing.assert_allclose(resized, expected, rtol=0, atol=1e-5)
    assert np.array_equal(prob, before)
    assert (resize_probabilities(np.ones((1, 16, 16), np.float32), shape) == 1).all()
