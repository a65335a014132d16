"""Boundary distances: HD95 and surface Dice, in pixels of the native resolution."""

import math

import numpy as np
from scipy.ndimage import binary_erosion, find_objects
from scipy.spatial import KDTree


def boundary_scores(
    pred: np.ndarray, target: np.ndarray, tolerance: float = 2.0
) -> dict[str, float]:
    """Score the outline of one image's mask.

    A mask's surface is its lesion pixels that have background, or the image's edge, above, below,
    left or right of them. Distances are Euclidean, from each surface pixel of `pred` to the nearest
    one of `target`, and from each surface pixel of `target` to the nearest one of `pred`.

    Args:
        pred: bool (H, W), True for lesion.
        target: bool (H, W), True for lesion.
        tolerance: Greatest distance that counts as agreement, in pixels.

    Returns:
        `hd95`: the larger of the two 95th percentiles, in pixels, interpolated between ranks
        (Huttenlocher et al. 1993, partial distance). Masks both empty: 0; one of them: the
        image's diagonal.
        `surface_dice`: share, in [0, 1], of all surface pixels within the tolerance (Nikolov et
        al. 2021, but pixels are counted instead of weighted by length). Masks both empty: 1; one
        of them: 0.
    """
    if not pred.any() or not target.any():
        equal = pred.any() == target.any()
        return {
            "hd95": 0.0 if equal else math.hypot(*pred.shape),
            "surface_dice": 1.0 if equal else 0.0,
        }
    # Only the bounding box of both masks holds surface pixels.
    (window,) = find_objects((pred | target).view(np.int8))
    pred_surface, target_surface = (
        np.argwhere(mask[window] & ~binary_erosion(mask[window])) for mask in (pred, target)
    )
    distances = (
        KDTree(target_surface).query(pred_surface)[0],
        KDTree(pred_surface).query(target_surface)[0],
    )
    return {
        "hd95": max(float(np.percentile(directed, 95)) for directed in distances),
        "surface_dice": float(np.mean(np.concatenate(distances) <= tolerance)),
    }
