import numpy as np
import pytest
from PIL import Image
from scipy.linalg import logm
from scipy.ndimage import zoom
from scipy.spatial.distance import mahalanobis
from skimage.color import rgb2lab
from skimage.transform import resize

from seglab.inference.familiarity import Familiarity, image_features


def draw_picture(rng: np.random.Generator, skin: tuple[int, ...] = (215, 160, 120)) -> Image.Image:
    """Draw a dark disc on skin of uneven colour, 240 x 320 pixels."""
    y, x = np.mgrid[:240, :320]
    disc = np.hypot(y - rng.uniform(100, 140), x - 160) < rng.uniform(50, 80)
    uneven = zoom(rng.normal(0, 8, (6, 8, 3)), (40, 40, 1), order=1)
    pixels = np.array(skin) + rng.normal(0, 6, 3) + uneven
    pixels[disc] -= rng.uniform(60, 90)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def features():
    rng = np.random.default_rng(1)
    return np.array([image_features(np.asarray(draw_picture(rng))) for _ in range(25)])


def test_features_are_mean_and_log_covariance_in_lab():
    image = np.asarray(draw_picture(np.random.default_rng(0)))
    small = np.rint(resize(image, (64, 64), anti_aliasing=True, preserve_range=True))
    pixels = rgb2lab(small.astype(np.uint8)).reshape(-1, 3)
    log = logm(np.cov(pixels, rowvar=False) + 0.25 * np.eye(3))
    upper = log[[0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]]
    expected = [*pixels.mean(0), *upper]
    np.testing.assert_allclose(image_features(image), expected, rtol=1e-3)


def test_features_of_a_grey_and_of_a_one_coloured_image_are_finite():
    for image in (np.zeros((9, 7, 3), np.uint8), np.full((300, 20, 3), 255, np.uint8)):
        assert np.isfinite(image_features(image)).all()


def test_distance_is_mahalanobis_with_a_shrunk_covariance():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 9)) @ rng.normal(size=(9, 9)) + 5
    z = (x - x.mean(0)) / x.std(0)
    shrunk = 0.8 * np.corrcoef(x, rowvar=False) + 0.2 * np.eye(9)
    new = rng.normal(size=9)
    expected = mahalanobis((new - x.mean(0)) / x.std(0), z.mean(0), np.linalg.inv(shrunk))
    assert Familiarity(x).distance(new) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("n", "lowest"), [(20, 0.01), (140, 0.035)])
def test_at_most_5_percent_of_pictures_of_the_same_kind_are_unfamiliar(n, lowest):
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(9, 9))
    rates = []
    for _ in range(12):
        known = Familiarity(rng.normal(size=(n, 9)) @ mixing)
        new = rng.normal(size=(100, 9)) @ mixing
        rates.append(np.mean([known.distance(x) > known.limit for x in new]))
    assert lowest < np.mean(rates) < 0.06


def test_fewer_than_19_pictures_have_the_largest_distance_as_limit(features):
    few = features[:5]
    others = [Familiarity(np.delete(few, i, 0)).distance(few[i]) for i in range(5)]
    assert Familiarity(few).limit == max(others)


def test_other_colours_are_unfamiliar_and_other_resolutions_are_not(features):
    known = Familiarity(features)
    rng = np.random.default_rng(2)
    same = [draw_picture(rng) for _ in range(10)]
    blue = [draw_picture(rng, (120, 160, 215)) for _ in range(10)]
    assert sum(known.is_familiar(np.asarray(picture)) for picture in same) >= 9
    assert not any(known.is_familiar(np.asarray(picture)) for picture in blue)
    for size in ((160, 120), (800, 600), (256, 256)):
        resized = [np.asarray(picture.resize(size)) for picture in same]
        assert sum(map(known.is_familiar, resized)) >= 8, size
    turned = np.asarray(same[0].transpose(Image.Transpose.ROTATE_90))
    difference = image_features(turned) - image_features(np.asarray(same[0]))
    np.testing.assert_allclose(difference, 0, atol=1e-9)
