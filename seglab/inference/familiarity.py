"""Tells from its colours whether an image looks like those that a network trained on. No torch."""

import math
from functools import cached_property

import numpy as np

from seglab.data.resizing import image_to_network_size

# Of images like the training images, this share is called unfamiliar.
FALSE_ALARM_RATE = 0.05
N_FEATURES = 9
# All images are compared at this size, so that resolution and height by width play no part.
_SIZE = 64
# Part of the covariance that is replaced by that of independent features: few images do not
# determine it. Any value from 0.1 to 0.3 finds nearly as many ISIC images unfamiliar.
_SHRINKAGE = 0.2
# Added to the variances, about that of rounding to 8 bits: a grey image has no colour to compare.
_ROUNDING = 0.25


def image_features(image: np.ndarray) -> np.ndarray:
    """Compute colour and contrast of an image: mean and log-covariance of its pixels in CIE Lab.

    Flips and quarter turns of the image do not change them.

    Args:
        image: uint8 (H, W, 3).

    Returns:
        float64 (9,): means of L*, a*, b*; the upper triangle of the logarithm, row by row.
    """
    from skimage.color import rgb2lab  # takes long to import, and masks do not need it

    pixels = rgb2lab(image_to_network_size(image, _SIZE)).reshape(-1, 3)
    variances, axes = np.linalg.eigh(np.cov(pixels.T) + _ROUNDING * np.eye(3))
    log_covariance = (axes * np.log(variances)) @ axes.T
    return np.concatenate([pixels.mean(0), log_covariance[np.triu_indices(3)]])


def conformal_rank(n: int, level: float) -> int:
    """Return which of n sorted values, from 1, a new one does not exceed with this probability.

    All n + 1 are exchangeable. It is above n where these are too few for the level.
    """
    return math.ceil(round((n + 1) * level, 9))  # rounded: 20 * 0.55 is above 11 in float64


class Familiarity:
    """Distance of an image's features from those of the training images, and its limit.

    The distance is Mahalanobis's, with the covariance shrunk by a fixed part. The limit is the
    conformal quantile of each training image's distance from the others, so that of new images of
    the same kind at most 5 % lie beyond; with fewer than 19 training images, one in n + 1.
    """

    def __init__(self, features: np.ndarray) -> None:
        """Take `image_features` of at least two training images, float64 (n, 9)."""
        self._features, self._mean = features, features.mean(0)
        self._scale = features.std(0) + 1e-6  # a feature may be the same in all images
        covariance = np.cov(((features - self._mean) / self._scale).T, bias=True)
        shrunk = (1 - _SHRINKAGE) * covariance + _SHRINKAGE * np.eye(len(covariance))
        self._inverse = np.linalg.inv(shrunk)

    def distance(self, features: np.ndarray) -> float:
        """Return the distance, 0 or more, of `image_features` from those of the training images."""
        z = (features - self._mean) / self._scale
        return math.sqrt(z @ self._inverse @ z)

    @cached_property
    def limit(self) -> float:
        """Distance above which an image is unfamiliar."""
        n = len(self._features)
        from_others = [
            Familiarity(np.delete(self._features, i, 0)).distance(self._features[i])
            for i in range(n)
        ]
        return sorted(from_others)[min(conformal_rank(n, 1 - FALSE_ALARM_RATE), n) - 1]

    def is_familiar(self, image: np.ndarray) -> bool:
        """Whether an image, uint8 (H, W, 3), looks like the training images."""
        return self.distance(image_features(image)) <= self.limit
