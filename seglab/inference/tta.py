"""Test-time augmentation: views of a square image, and the way back from their predictions."""

import numpy as np


def make_views(image: np.ndarray) -> np.ndarray:
    """Return the eight flips and quarter turns of an image.

    Args:
        image: uint8 (S, S, 3).

    Returns:
        uint8 (8, S, S, 3); the first view is the image itself.
    """
    return np.stack([np.rot90(x, k) for x in (image, image[:, ::-1]) for k in range(4)])


def undo_views(prob: np.ndarray) -> np.ndarray:
    """Turn the predictions of the eight views back, so that pixels lie where the image has them.

    Args:
        prob: float32 (8, C, S, S), in the order of `make_views`.

    Returns:
        float32 (8, C, S, S).
    """
    turned = [np.rot90(view, -(i % 4), (1, 2)) for i, view in enumerate(prob)]
    return np.stack(turned[:4] + [view[..., ::-1] for view in turned[4:]])
