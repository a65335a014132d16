"""Masks and instances, compared with scikit-image and with examples worked out by hand."""

import numpy as np
import pytest
import skimage.measure
from helpers.predicting import clean_by_skimage
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from seglab.core.errors import InputError
from seglab.data.classes import Classes
from seglab.inference.postprocessing import (
    clean,
    measure_instances,
    number_instances,
    predicted_mask,
)
from seglab.schema import Inference


def test_of_equal_instances_the_topmost_is_first() -> None:
    mask = np.array([[1, 0, 0, 0, 1], [0, 0, 0, 0, 0], [1, 1, 0, 0, 1]], bool)
    assert number_instances(mask).tolist() == [[2, 0, 0, 0, 3], [0] * 5, [1, 1, 0, 0, 4]]


def test_more_instances_than_a_mask_numbers_are_refused() -> None:
    dots = np.zeros((512, 514), bool)
    dots[::2, ::2] = True
    with pytest.raises(InputError, match=r"65,792 lesions; expected at most 65,535"):
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
    assert [second[key] for key in ("lesion", "area", "touches_frame")] == [2, 1, True]
    none = np.zeros((3, 3), bool)
    assert measure_instances(number_instances(none), none, np.zeros((1, 3, 3))) == []


def test_the_most_probable_class_is_taken_of_equal_ones_the_first() -> None:
    prob = np.array([[[0.2, 0.4]], [[0.5, 0.4]], [[0.3, 0.2]]], np.float32)
    mask = predicted_mask(prob, 0.5)
    assert mask.dtype == np.uint8 and mask.tolist() == [[1, 0]]


def test_each_class_is_cleaned_by_itself() -> None:
    mask = np.array(
        [
            [1, 1, 1, 0, 2],
            [1, 0, 1, 0, 0],
            [1, 1, 1, 0, 1],
            [0, 0, 0, 0, 0],
            [2, 2, 2, 2, 2],
            [2, 0, 2, 1, 2],
            [2, 2, 2, 2, 2],
        ]
    )
    prob = np.stack([mask == k for k in range(3)]).astype(np.float32)
    cleaned = predicted_mask(prob, 0.5, Inference(largest_component=True, fill_holes=True))
    assert cleaned.tolist() == [
        [1, 1, 1, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 0, 0],
        [0, 0, 0, 0, 0],
        [2, 2, 2, 2, 2],
        [2, 2, 2, 2, 2],  # what was of class 1 there was removed before
        [2, 2, 2, 2, 2],
    ]
    assert predicted_mask(prob, 0.5).tolist() == mask.tolist()


@settings(deadline=None, max_examples=60)
@given(
    mask=arrays(
        np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 3)
    )
)
def test_instances_are_scikit_images(mask: np.ndarray) -> None:
    numbered = number_instances(mask)
    expected, n = skimage.measure.label(mask, background=0, connectivity=2, return_num=True)
    assert numbered.max() == n and numbered.dtype == np.uint16
    pairs = {*zip(numbered.ravel().tolist(), expected.ravel().tolist(), strict=True)}
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
    sizes = np.bincount(numbered.ravel())[1:]
    assert (np.diff(sizes) <= 0).all() and np.array_equal(numbered > 0, mask > 0)
    classes = Classes(("none", "a", "b", "c"))
    prob = np.stack([np.full(mask.shape, (k + 1) / 8, np.float32) for k in range(4)])
    for row in measure_instances(numbered, mask, prob, classes):
        (number,) = np.unique(mask[numbered == row["lesion"]])
        assert row["class"] == classes.names[number]
        assert row["mean_probability"] == pytest.approx((number + 1) / 8)


def test_holes_are_filled_after_the_largest_component_is_chosen() -> None:
    # A blob of 49 pixels in a ring of 40, such as a lens leaves: filled, it would be all there is.
    blob = np.pad(np.ones((7, 7), bool), 2)
    ring = np.pad(np.zeros((9, 9), bool), 1, constant_values=True)
    assert np.array_equal(clean(blob | ring, largest_component=True, fill_holes=True), blob)
    assert clean(blob | ring, fill_holes=True).all()


@given(
    arrays(bool, st.tuples(*[st.integers(1, 9)] * 2), elements=st.booleans()),
    st.booleans(),
    st.booleans(),
)
def test_clean_is_scikit_images(mask: np.ndarray, largest: bool, fill: bool) -> None:
    before = mask.copy()
    ours = clean(mask, largest, fill)
    assert ours.dtype == bool
    assert np.array_equal(ours, clean_by_skimage(mask, largest, fill))
    assert np.array_equal(mask, before)
    assert np.array_equal(clean(ours, largest, fill), ours)
