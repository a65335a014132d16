"""Test-time augmentation: views of a square image, and the way back from their predictions."""

import numpy as np


def make_views(image: np.ndarray) -> np.ndarray:
    """Return the eight flips and quarter turns, uint8 (8, S, S, 3), of an image (S, S, 3)."""
    return np.stack([np.rot90(x, k) for x in (image, image[:, ::-1]) for k in range(4)])


def undo_views(prob: np.ndarray) -> np.ndarray:
    """Turn predictions of `make_views`, float32 (8, C, S, S), back to where the image has them."""
    turned = [np.rot90(view, -(i % 4), (1, 2)) for i, view in enumerate(prob)]
    return np.stack(turned[:4] + [view[..., ::-1] for view in turned[4:]])
