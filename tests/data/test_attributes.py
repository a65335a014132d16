"""Attributes of drawn pictures, against counts and colours that are known from the drawing."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from skimage.color import deltaE_cie76, rgb2lab
from skimage.draw import disk, line

from seglab.data.attributes import FIXED_BOUNDS, describe_case, measure_attributes
from seglab.data.cases import Case

SKIN, LESION, BLACK = (225, 170, 140), (110, 60, 50), (5, 5, 5)
SHAPE = (192, 256)  # of the copy that is measured: nothing is resized


def draw(mask: np.ndarray, lesion: tuple[int, int, int] = LESION) -> np.ndarray:
    return np.where(mask[..., None] > 0, lesion, SKIN).astype(np.uint8)


def rectangle(rows: slice, columns: slice, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[rows, columns] = 1
    return mask


@pytest.fixture
def mask() -> np.ndarray:
    return rectangle(slice(60, 120), slice(80, 180))


def test_a_rectangle_on_plain_skin(mask: np.ndarray) -> None:
    found = measure_attributes(draw(mask), mask)
    assert {*FIXED_BOUNDS} < {*found}
    assert found["lesion_share"] == 60 * 100 / (192 * 256)
    assert (found["frame_share"], found["pieces"]) == (0, 1)
    assert (found["hair"], found["dark_corners"]) == (0, 0)
    skin, lesion = (rgb2lab(np.array(colour) / 255) for colour in (SKIN, LESION))
    assert found["contrast"] == pytest.approx(deltaE_cie76(skin, lesion), abs=1e-3)
    assert [found["surround_a"], found["surround_b"]] == pytest.approx(skin[1:], abs=1e-3)


def test_the_share_of_the_frame_and_pieces() -> None:
    mask = rectangle(slice(0, 50), slice(0, 40))
    mask[100, 100] = mask[101, 101] = mask[103, 103] = 1
    found = measure_attributes(draw(mask), mask)
    assert found["frame_share"] == (40 + 49) / (2 * 192 + 2 * 256 - 4)
    assert found["pieces"] == 3  # two pixels that touch with a corner are one


def test_all_classes_but_background_are_lesion(mask: np.ndarray) -> None:
    several = mask.copy()
    several[60:120, 130:180] = 2
    assert measure_attributes(draw(mask), several) == measure_attributes(draw(mask), mask)


def test_the_sharpness_of_a_straight_step() -> None:
    mask = rectangle(slice(None), slice(0, 128))
    # Pixels half a pixel to 3.5 px away on both sides, of colour 0 and 1: the slope of a line.
    offsets = np.array([0.5, 1.5, 2.5, 3.5])
    expected = offsets.sum() / (2 * (offsets**2).sum())
    for lesion in (LESION, (200, 150, 120), (225, 100, 140)):  # whatever the contrast
        found = measure_attributes(draw(mask, lesion), mask)["sharpness"]
        assert found == pytest.approx(expected, rel=1e-5)


def test_a_blurred_border_is_less_sharp(mask: np.ndarray) -> None:
    pictures = [gaussian_filter(draw(mask), (sigma, sigma, 0)) for sigma in (0, 2, 4, 8)]
    sharpness = [measure_attributes(picture, mask)["sharpness"] or 0 for picture in pictures]
    assert all(a > 1.1 * b > 0 for a, b in pairwise(sharpness)), sharpness


def hairs(mask: np.ndarray) -> Iterator[tuple[int, int]]:
    for row, column, to_row, to_column in (
        (20, 20, 180, 90),
        (10, 200, 50, 240),
        (160, 60, 160, 235),
    ):
        rows, columns = line(row, column, to_row, to_column)
        for width in (0, 1):
            yield from zip(rows.tolist(), (columns + width).tolist(), strict=True)


def test_hair_is_counted_and_dots_and_network_are_not(mask: np.ndarray) -> None:
    plain, hairy = draw(mask), draw(mask)
    pixels = {*hairs(mask)}
    for row, column in pixels:
        hairy[row, column] = (90, 60, 40) if not mask[row, column] else (50, 20, 15)
    share = measure_attributes(hairy, mask)["hair"]
    assert share == pytest.approx(len(pixels) / mask.size, rel=0.1)
    for row in range(64, 118, 7):  # a network: as dark and thin, but dense
        plain[row : row + 2, 82:178] = (50, 20, 15)
    for column in range(84, 178, 7):
        plain[62:118, column : column + 2] = (50, 20, 15)
    for row, column in ((30, 30), (30, 60), (150, 100)):
        plain[disk((row, column), 3.5)] = (50, 20, 15)
    plain[170:172, 40:65] = (50, 20, 15)  # shorter than 32 px
    plain[:, -1] = 0  # what the camera adds to the frame
    assert measure_attributes(plain, mask)["hair"] == 0


def test_dark_corners(mask: np.ndarray) -> None:
    rows, columns = np.indices(SHAPE)
    dark = np.hypot(rows - 95.5, columns - 127.5) > 140
    picture = draw(mask)
    picture[dark] = BLACK
    expected = measure_attributes(draw(mask), mask) | {"dark_corners": dark.mean()}
    assert measure_attributes(picture, mask) == pytest.approx(expected, abs=1e-6)
    picture[20:40, 120:140] = BLACK  # reaches no corner
    assert measure_attributes(picture, mask)["dark_corners"] == dark.mean()
    assert measure_attributes(picture, mask | dark)["dark_corners"] == 0


def test_dark_corners_are_no_surround() -> None:
    rows, columns = np.indices(SHAPE)
    mask = (np.hypot(rows - 95.5, columns - 127.5) <= 130).astype(np.uint8)
    picture = draw(mask)
    picture[mask == 0] = BLACK
    found = measure_attributes(picture, mask)
    assert (found["contrast"], found["sharpness"]) == (None, None)


def test_the_size_of_a_picture_plays_no_part(mask: np.ndarray) -> None:
    picture = draw(mask)
    for row, column in hairs(mask):
        picture[row, column] = (50, 20, 15)
    once = measure_attributes(picture, mask)
    large = measure_attributes(picture.repeat(3, 0).repeat(3, 1), mask.repeat(3, 0).repeat(3, 1))
    assert large == pytest.approx(once, rel=1e-3)


@pytest.mark.parametrize("value", [0, 1])
@pytest.mark.parametrize("shape", [SHAPE, (1, 1), (2, 300)])
def test_without_lesion_or_surround(value: int, shape: tuple[int, int]) -> None:
    mask = np.full(shape, value, np.uint8)
    found = measure_attributes(draw(mask), mask)
    absent = {"contrast", "sharpness", "surround_a", "surround_b"}
    assert {name for name, number in found.items() if number is None} == absent
    assert (found["lesion_share"], found["frame_share"], found["pieces"]) == (value,) * 3


def test_a_row_holds_what_tables_state_too(mask: np.ndarray, tmp_path: Path) -> None:
    case = Case("A", tmp_path, tmp_path, attributes={"scanner": "X"})
    row = describe_case(case, draw(mask), mask)
    assert row == {"id": "A", "scanner": "X"} | measure_attributes(draw(mask), mask)
