"""How far apart two outlines lie, in pixels of the native resolution."""

from __future__ import annotations

import math

import numpy as np
from scipy.ndimage import binary_erosion, find_objects
from scipy.spatial import KDTree


def boundary_scores(
    pred: np.ndarray, target: np.ndarray, tolerance: float = 2.0
) -> dict[str, float]:
    """Scores the outline of one image's mask.

    A mask's surface is its lesion pixels that have background, or the image's edge, above, below,
    left or right of them. Distances are Euclidean, from each surface pixel of one mask to the
    nearest of the other; there are those from `pred` and those from `target`.

    Args:
        pred: bool (H, W), True for lesion.
        target: bool (H, W), likewise.
        tolerance: Greatest distance that counts as agreement, in pixels.

    Returns:
        `hd95`: the larger of the two 95th percentiles, in pixels, interpolated between ranks
        (Huttenlocher et al. 1993, partial distance). Masks both empty: 0; one of them: the
        image's diagonal.
        `surface_dice`: share, in [0, 1], of all surface pixels within the tolerance (Nikolov et
        al. 2021, who weight by length where this counts pixels). Masks both empty: 1; one of
        them: 0.
    """
    if not pred.any() or not target.any():
        equal = pred.any() == target.any()
        return {
            "hd95": 0.0 if equal else math.hypot(*pred.shape),
            "surface_dice": 1.0 if equal else 0.0,
        }
    # Outside of both masks is background, so nothing else need be looked at.
    (window,) = find_objects((pred | target).view(np.int8))
    one, other = (
        np.argwhere(mask[window] & ~binary_erosion(mask[window])) for mask in (pred, target)
    )
    distances = KDTree(other).query(one)[0], KDTree(one).query(other)[0]
    return {
        "hd95": max(float(np.percentile(directed, 95)) for directed in distances),
        "surface_dice": float(np.mean(np.concatenate(distances) <= tolerance)),
    }
