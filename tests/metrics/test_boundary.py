"""Boundary metrics against hand counts, sets of pixels and scikit-image."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import distance_transform_edt
from skimage.metrics import hausdorff_distance

from seglab.metrics.boundary import boundary_scores
from seglab.metrics.scores import BOUNDARY_METRICS, OUTLINE_COLUMNS


def square(x: int, edge: int = 20, shape: tuple[int, int] = (40, 60), y: int = 10) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[y : y + edge, x : x + edge] = True
    return mask


def disc(radius: float, y: float = 50, x: float = 70) -> np.ndarray:
    rows, columns = np.mgrid[:100, :140]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def surface(mask: np.ndarray) -> list[tuple[int, int]]:
    lesion = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    return [
        (y, x)
        for y, x in sorted(lesion)
        if not {(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)} <= lesion
    ]


def count_pieces(pred: np.ndarray, target: np.ndarray) -> dict[str, int]:
    values = boundary_scores(pred, target)
    return {name: values[name] for name in ("missed_pieces", "extra_pieces")}


def percentile_95(values: list[float]) -> float:
    """Linear between ranks, from 0 to n - 1."""
    values = sorted(values)
    below, percent = divmod(95 * (len(values) - 1), 100)
    above = values[min(below + 1, len(values) - 1)]
    return values[below] + percent / 100 * (above - values[below])


def by_hand(pred: np.ndarray, target: np.ndarray, tolerance: float) -> dict[str, float]:
    outlines = surface(pred), surface(target)
    if not all(outlines):
        is_equal = outlines[0] == outlines[1]
        diagonal = math.sqrt(pred.shape[0] ** 2 + pred.shape[1] ** 2)
        return {"hd95": 0 if is_equal else diagonal, "surface_dice": float(is_equal)}
    forward, backward = (
        [min(math.dist(a, b) for b in second) for a in first]
        for first, second in (outlines, outlines[::-1])
    )
    near = sum(distance <= tolerance for distance in forward + backward)
    return {
        "hd95": max(percentile_95(forward), percentile_95(backward)),
        "surface_dice": near / len(forward + backward),
    }


@st.composite
def mask_pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Two masks of one shape, some of them empty or full."""
    shape = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    fill = st.sampled_from([False, True]).map(lambda value: np.full(shape, value))
    masks = st.one_of(arrays(bool, shape), arrays(bool, shape), fill)
    return draw(masks), draw(masks)


@settings(deadline=None, max_examples=200)
@given(mask_pairs(), st.sampled_from([0, 1, 1.5, 2, 5]))
def test_scores_are_those_of_sets(pair: tuple[np.ndarray, np.ndarray], tolerance: float) -> None:
    ours = boundary_scores(*pair, tolerance)
    shift = ours["outline_shift"]
    ours = {name: ours[name] for name in BOUNDARY_METRICS}
    assert (shift is None) == (not all(mask.any() for mask in pair))
    assert ours == pytest.approx(by_hand(*pair, tolerance), rel=1e-12, abs=0)
    assert all(type(value) is float for value in ours.values())


@pytest.mark.parametrize("shift", [0, 3, 30])
def test_hd95_of_shifted_squares_is_scikit_images_distance(shift: int) -> None:
    pred, target = square(0), square(shift)
    # The left edge, 20 of 76 surface pixels, is as far from the other as any pixel, until beyond
    # the other's left edge are nearer.
    assert boundary_scores(pred, target)["hd95"] == hausdorff_distance(pred, target) == shift


def test_surface_dice_of_shifted_squares_by_hand() -> None:
    # Of 76 surface pixels the left edge's 20 and the right edge's 14 in the middle are 3 away;
    # towards the corners it is 2 (4 pixels), 1 (4) and 0 (34).
    pred, target = square(10), square(13)
    for tolerance, near in ((0, 34), (0.9, 34), (1, 38), (2, 42), (2.9, 42), (3, 76)):
        assert boundary_scores(pred, target, tolerance)["surface_dice"] == near / 76
    assert boundary_scores(pred, target)["surface_dice"] == 42 / 76


def test_a_speck_far_away_is_passed_over() -> None:
    target = disc(30)
    pred = target.copy()
    pred[2, 2] = True
    assert hausdorff_distance(pred, target) > 50
    assert boundary_scores(pred, target)["hd95"] == 0
    n = len(surface(target))
    assert boundary_scores(pred, target)["surface_dice"] == 2 * n / (2 * n + 1)
    # It is the larger direction that counts: much of the target's outline has nothing near.
    half = target.copy()
    half[:, 71:] = False
    assert boundary_scores(half, target)["hd95"] > 15


def test_empty_and_full_masks() -> None:
    empty, full, dot = np.zeros((3, 4), bool), np.ones((3, 4), bool), np.zeros((3, 4), bool)
    dot[1, 1] = True
    unlike = {"hd95": 5, "surface_dice": 0, "outline_shift": None}
    for mask in (empty, full, dot):
        shift = 0 if mask.any() else None
        equal = {"hd95": 0, "surface_dice": 1, "outline_shift": shift}
        equal |= {"missed_pieces": 0, "extra_pieces": 0}
        assert boundary_scores(mask, mask) == equal
        assert tuple(boundary_scores(mask, empty)) == (*BOUNDARY_METRICS, *OUTLINE_COLUMNS)
    missed, extra = {"missed_pieces": 1, "extra_pieces": 0}, {"missed_pieces": 0, "extra_pieces": 1}
    assert boundary_scores(empty, dot) == unlike | missed
    assert boundary_scores(full, empty) == unlike | extra
    # A full mask's outline is the image's edge: 10 of 12 pixels.
    assert boundary_scores(full, dot, 1)["surface_dice"] == (3 + 1) / 11


@pytest.mark.parametrize("grown", [1, 5, 8.5])
def test_the_shift_of_a_grown_disc_is_how_far_it_grew(grown: float) -> None:
    tight, loose = disc(30), disc(30 + grown)
    shift = boundary_scores(loose, tight)["outline_shift"]
    assert shift == pytest.approx(grown, abs=0.3)  # pixels of a circle lie up to 0.5 beside it
    assert boundary_scores(tight, loose)["outline_shift"] == pytest.approx(-shift)


@settings(deadline=None, max_examples=50)
@given(mask_pairs())
def test_the_shift_is_that_of_distance_transforms(pair: tuple[np.ndarray, np.ndarray]) -> None:
    if not all(mask.any() for mask in pair):
        return
    signed = []
    for (mask, other), sign in ((pair, 1), (pair[::-1], -1)):
        outlines = [np.zeros(mask.shape, bool) for _ in range(2)]
        for outline, of in zip(outlines, (mask, other), strict=True):
            outline[tuple(np.transpose(surface(of)))] = True
        distance = distance_transform_edt(~outlines[1])
        signed += (sign * np.where(other, -distance, distance))[outlines[0]].tolist()
    assert boundary_scores(*pair)["outline_shift"] == pytest.approx(np.mean(signed), abs=1e-12)


def test_a_moved_square_has_no_shift() -> None:
    assert boundary_scores(square(3), square(10))["outline_shift"] == 0
    # Half as wide, and inside: 20 of 76 + 56 outline pixels are up to 10 apart.
    half = square(10)
    half[:, 20:] = False
    assert boundary_scores(half, square(10))["outline_shift"] < -1


def test_pieces_that_the_other_mask_does_not_touch_are_counted() -> None:
    target, pred = np.zeros((30, 40), bool), np.zeros((30, 40), bool)
    target[5:15, 5:15] = pred[10:20, 10:20] = True  # overlap
    target[25, 1] = True  # missed
    pred[28, 30:35] = pred[29, 35] = True  # extra: one piece, joined at a corner
    pred[1, 39] = True  # extra
    target[5:15, 25:30], pred[5:15, 30:33] = True, True  # side by side: missed, and extra
    assert count_pieces(pred, target) == {"missed_pieces": 2, "extra_pieces": 3}
    assert count_pieces(target, pred) == {"missed_pieces": 3, "extra_pieces": 2}
    # One piece that bridges two is an extra piece of none.
    pred[:] = target.any()
    assert count_pieces(pred, target) == {"missed_pieces": 0, "extra_pieces": 0}
