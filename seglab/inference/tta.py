"""Test-time augmentation: views of a square image, and the way back from their predictions."""

from functools import partial

import numpy as np

from seglab.data.resizing import resize_probabilities
from seglab.inference.postprocessing import Prediction


def make_views(image: np.ndarray) -> np.ndarray:
    """Return the eight flips and quarter turns, uint8 (8, S, S, 3), of an image (S, S, 3)."""
    return np.stack([np.rot90(x, k) for x in (image, image[:, ::-1]) for k in range(4)])


def undo_views(prob: np.ndarray) -> np.ndarray:
    """Turn predictions of `make_views`, float32 (8, C, S, S), back to where the image has them."""
    turned = [np.rot90(view, -(i % 4), (1, 2)) for i, view in enumerate(prob)]
    return np.stack(turned[:4] + [view[..., ::-1] for view in turned[4:]])


def merge_views(prob: np.ndarray, shape: tuple[int, int]) -> Prediction:
    """Make the prediction for an image of shape (H, W) from those at the network's size.

    `prob` is float32 (8, C, S, S), of `make_views`, or (1, C, S, S), of the image alone.
    """
    resize = partial(resize_probabilities, shape=shape)
    if len(prob) == 1:
        return Prediction(partial(resize, prob[0]))
    views = undo_views(prob)
    return Prediction(partial(resize, views.mean(0)), tuple(partial(resize, v) for v in views))
