"""Corruptions: the same every time, worse at each severity, alike at every resolution."""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from seglab.data.corruptions import CORRUPTIONS, GRAINS, SEVERITIES, corrupt


def make_picture(edge: int = 256) -> np.ndarray:
    """A dark disc on striped skin, with the same course at every size."""
    y, x = (np.mgrid[:edge, : edge * 4 // 3] + 0.5) / edge
    inside = 1 / (1 + np.exp(200 * (np.hypot(y - 0.45, x - 0.6) - 0.25)))
    skin = np.stack([200 + 10 * np.sin(90 * x), 160 - 20 * y, 130 + 10 * x], -1)
    return np.round(skin - 90 * inside[..., None]).astype(np.uint8)


PICTURE = make_picture()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_severity_is_worse_than_the_one_before(name: str) -> None:
    before = PICTURE.copy()
    for key in ("a", "b"):
        worse = [corrupt(PICTURE, name, severity, key) for severity in SEVERITIES]
        assert all(w.shape == PICTURE.shape and w.dtype == np.uint8 for w in worse)
        error = [abs(w.astype(float) - PICTURE).mean() for w in worse]
        assert 0 < error[0] < error[1] < error[2]
        np.testing.assert_array_equal(worse[2], corrupt(PICTURE, name, 3, key))
    np.testing.assert_array_equal(PICTURE, before)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_picture_of_four_times_the_size_gets_the_same(name: str) -> None:
    clean, large = make_picture(512), make_picture(1024)
    small = corrupt(clean, name, 3, "key").astype(float)
    size = clean.shape[1::-1]
    reduced = Image.fromarray(corrupt(large, name, 3, "key")).resize(size, Image.Resampling.BOX)
    assert abs(small - reduced).mean() < 0.2 * abs(small - clean).mean()


def test_what_is_drawn_depends_on_the_key_and_not_on_the_severity() -> None:
    for name in ("noise", "colour_cast", "hair", "dark_corners"):
        assert (corrupt(PICTURE, name, 2, "a") != corrupt(PICTURE, name, 2, "b")).any()
    for name in ("blur", "jpeg", "low_resolution", "contrast"):
        np.testing.assert_array_equal(
            corrupt(PICTURE, name, 2, "a"), corrupt(PICTURE, name, 2, "b")
        )
    few, many = (corrupt(PICTURE, "hair", severity, "a") for severity in (1, 3))
    assert ((few != PICTURE) <= (many != PICTURE)).all()
    weak, strong = (
        corrupt(np.full_like(PICTURE, 128), "noise", severity, "a") - 128.0 for severity in (1, 3)
    )
    np.testing.assert_allclose(strong, (4 * weak).clip(-128, 127), atol=2.5)
    assert weak.std() == pytest.approx(0.04 * 255, rel=0.02)
    assert min(PICTURE.shape[:2]) == GRAINS  # so no interpolation has smoothed them


def test_strengths_are_what_their_units_say() -> None:
    sigma = 0.02 * 256
    blurred = ndimage.gaussian_filter(PICTURE.astype(float), (sigma, sigma, 0), mode="nearest")
    assert abs(corrupt(PICTURE, "blur", 3, "") - blurred).mean() < 1
    mean = PICTURE.mean((0, 1))
    expected = np.rint(mean + 0.5 * (PICTURE - mean))
    assert abs(corrupt(PICTURE, "contrast", 2, "") - expected).max() <= 1
    found = {
        round(corrupt(PICTURE, "brightness", 2, f"{i}").mean() / PICTURE.mean(), 2)
        for i in range(8)
    }
    assert min(found) == pytest.approx(1 / 1.35, abs=0.01)
    assert 1.2 < max(found) <= 1.35  # white stays white
    grey = np.full_like(PICTURE, 100)
    for i in range(8):
        red, _, blue = corrupt(grey, "colour_cast", 3, f"{i}")[0, 0] / 100
        assert abs(np.log(red)) == pytest.approx(0.24, abs=0.01)
        assert np.log(blue) == pytest.approx(-np.log(red), abs=0.01)
    small = Image.fromarray(PICTURE).resize((43, 32), Image.Resampling.BOX)
    np.testing.assert_array_equal(
        corrupt(PICTURE, "low_resolution", 3, ""),
        small.resize((341, 256), Image.Resampling.BICUBIC),
    )
    y, x = np.mgrid[:256, :341]
    distance = np.hypot(y - 127.5, x - 170) / np.hypot(128, 170.5)
    corners = corrupt(PICTURE, "dark_corners", 3, "")
    assert (corners[distance > 0.8] < 10).all()
    np.testing.assert_array_equal(corners[distance < 0.68], PICTURE[distance < 0.68])
