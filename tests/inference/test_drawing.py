"""Contours of masks that are drawn by hand."""

import numpy as np

from seglab.data.classes import Classes
from seglab.inference.drawing import CONTOUR, OUTSIDE, REVIEW, draw_contours, draw_review_mark


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


def test_each_class_is_outlined_in_its_colour() -> None:
    classes = Classes(("skin", "disc", "square"), ("#000000", "#ff0080", "#00ff00"))
    image = np.full((40, 60, 3), 77, np.uint8)
    mask = np.zeros((40, 60), np.uint8)
    mask[5:35, 5:30], mask[5:35, 30:55] = 1, 2
    out = draw_contours(image, mask, classes)
    assert (out[5:35, 29] == classes.palette[1]).all()  # where they touch, too
    assert (out[5:35, 30] == classes.palette[2]).all()
    assert (out[15, 10:25] == 77).all() and (out[0] == 77).all()


def test_a_review_mark_fills_a_corner_alone() -> None:
    for height, width in ((100, 160), (2000, 1500), (3, 5)):
        image = np.full((height, width, 3), 77, np.uint8)
        drawn = draw_review_mark(image)
        assert (drawn[0, 0] == REVIEW).all() and (image == 77).all()
        y, x = np.nonzero((drawn != 77).any(2))
        assert (y + x).max() <= max(8, min(height, width) / 5) * 1.06 + 1
