"""Instances, outlines and cut-outs, held against scikit-image and what is drawn by hand."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.measure
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from seglab.core.errors import InputError
from seglab.inference.postprocessing import (
    CONTOUR,
    OUTSIDE,
    draw_contours,
    measure_instances,
    number_instances,
    soft_mask,
)

MASKS = arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))


@given(MASKS)
def test_instances_are_the_connected_components_by_size(mask: np.ndarray) -> None:
    instances = number_instances(mask)
    assert instances.dtype == np.uint16
    assert np.array_equal(instances > 0, mask)
    expected, n = skimage.measure.label(mask, connectivity=2, return_num=True)
    assert instances.max() == n
    pairs = set(zip(instances[mask].tolist(), expected[mask].tolist(), strict=True))
    assert len(pairs) == n  # one number for each of theirs, and one of theirs for each number
    areas = np.bincount(instances.ravel())[1:]
    assert (np.diff(areas) <= 0).all()


def test_of_equal_instances_the_topmost_is_first() -> None:
    mask = np.array([[1, 0, 0, 0, 1], [0, 0, 0, 0, 0], [1, 1, 0, 0, 1]], bool)
    assert number_instances(mask).tolist() == [[2, 0, 0, 0, 3], [0] * 5, [1, 1, 0, 0, 4]]


def test_more_instances_than_a_mask_numbers_are_refused() -> None:
    dots = np.zeros((512, 514), bool)
    dots[::2, ::2] = True
    with pytest.raises(InputError, match=r"65,792 lesions, where a mask numbers 65,535"):
        number_instances(dots)
    assert number_instances(dots[:510]).max() == 255 * 257


def test_measures_by_hand() -> None:
    mask = np.zeros((6, 8), bool)
    mask[1:3, 2:5] = True  # six pixels, inside
    mask[5, 7] = True  # one, in the corner
    prob = np.zeros((6, 8), np.float32)
    prob[1, 2:5] = 0.5
    prob[2, 2:5] = 1
    prob[5, 7] = 0.75
    first, second = measure_instances(number_instances(mask), mask, prob[None])
    assert first == {
        "lesion": 1,
        "area": 6,
        "centroid_x": 3.0,
        "centroid_y": 1.5,
        **{"left": 2, "top": 1, "right": 5, "bottom": 3},
        "mean_probability": 0.75,
        "touches_frame": False,
    }
    assert second == {
        "lesion": 2,
        "area": 1,
        "centroid_x": 7.0,
        "centroid_y": 5.0,
        **{"left": 7, "top": 5, "right": 8, "bottom": 6},
        "mean_probability": 0.75,
        "touches_frame": True,
    }
    none = np.zeros((3, 3), bool)
    assert measure_instances(number_instances(none), none, np.zeros((1, 3, 3))) == []


@pytest.mark.parametrize("place", [(0, 3), (5, 3), (3, 0), (3, 7), (3, 3)])
def test_every_edge_is_the_frame(place: tuple[int, int]) -> None:
    mask = np.zeros((6, 8), bool)
    mask[place] = True
    (row,) = measure_instances(number_instances(mask), mask, mask[None].astype(np.float32))
    assert row["touches_frame"] == (place != (3, 3))


def test_an_outline_is_drawn_on_both_sides_of_the_edge_alone() -> None:
    image = np.random.default_rng(0).integers(1, 255, (40, 60, 3), np.uint8)
    mask = np.zeros((40, 60), bool)
    mask[10:30, :25] = True  # reaches the frame, where there is no edge
    out = draw_contours(image, mask.astype(np.uint8))
    edge = (out == CONTOUR).all(2)
    around = (out == OUTSIDE).all(2)
    expected = np.zeros((40, 60), bool)
    expected[10, :25] = expected[29, :25] = expected[10:30, 24] = True
    assert np.array_equal(edge, expected)
    assert around.any() and not (around & mask).any()
    same = ~edge & ~around
    assert np.array_equal(out[same], image[same])
    for full in (0, 1):
        mask = np.full((40, 60), full, np.uint8)
        assert np.array_equal(draw_contours(image, mask), image)


def test_a_cut_out_is_opaque_within_and_clear_without() -> None:
    mask = np.zeros((600, 1000), bool)
    mask[100:400, 300:700] = True
    opacity = soft_mask(mask)
    assert opacity.dtype == np.uint8
    assert (opacity[105:395, 305:695] == 255).all()
    outside = np.ones_like(mask)
    outside[95:405, 295:705] = False
    assert (opacity[outside] == 0).all()
    # A half at the edge itself, on either side of it.
    assert 128 <= opacity[250, 300] < 255
    assert 0 < opacity[250, 299] < 128
    assert opacity[250, 300] + opacity[250, 299] == pytest.approx(255, abs=1)
