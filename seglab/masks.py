"""Lesion masks at native resolution: cleaned, counted, drawn. No torch, to go with exports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.ndimage import (
    binary_dilation,
    binary_erosion,
    binary_fill_holes,
    gaussian_filter,
    generate_binary_structure,
    label,
)

from seglab.errors import InputError

# From an image uint8 (H, W, 3) to lesion probability float32 (H, W) in [0, 1].
Predictor = Callable[[np.ndarray], np.ndarray]

# Lesion pixels touch by edges and by corners.
_TOUCHING = generate_binary_structure(2, 2)
MAX_INSTANCES = 65535  # what 16 bits hold
# Told from skin, hair, lesion and street alike, by the colour-blind too.
CONTOUR, OUTSIDE = (0, 255, 255), (0, 0, 0)


def mean_predictor(predictors: Sequence[Predictor]) -> Predictor:
    """Makes an ensemble's predictor: the mean probability of its members, at native size."""

    def predict(image: np.ndarray) -> np.ndarray:
        # One after the other: of a large image each is large too.
        total = predictors[0](image)
        for other in predictors[1:]:
            total = total + other(image)
        return total / np.float32(len(predictors))

    return predict


def clean(
    mask: np.ndarray, largest_component: bool = False, fill_holes: bool = False
) -> np.ndarray:
    """Removes what cannot be lesion, and adds what must be.

    Lesion pixels touch by edges and by corners, background by edges alone: of two digital curves
    that cross, one must yield (Rosenfeld 1970). The largest component is chosen first, by its own
    pixels: a ring around the picture, filled, would be all of it.

    Args:
        mask: bool (H, W), True for lesion.
        largest_component: Keep that of most pixels alone; of equal ones the topmost.
        fill_holes: Add background that is enclosed by lesion.

    Returns:
        bool (H, W).
    """
    if largest_component:
        components, n = label(mask, _TOUCHING)
        if n > 1:
            mask = components == np.bincount(components.ravel())[1:].argmax() + 1
    return binary_fill_holes(mask) if fill_holes else mask


def number_instances(mask: np.ndarray) -> np.ndarray:
    """Gives each connected lesion a number of its own: from semantic to instance.

    Args:
        mask: bool (H, W), True for lesion.

    Returns:
        uint16 (H, W): 0 for background, 1 for the largest lesion; of equal ones the topmost first.

    Raises:
        InputError: More lesions than 16 bits number.
    """
    components, n = label(mask, _TOUCHING)
    if n > MAX_INSTANCES:
        raise InputError(f"{n:,} lesions, where a mask numbers {MAX_INSTANCES:,}")
    areas = np.bincount(components.ravel(), minlength=n + 1)[1:]
    number = np.zeros(n + 1, np.uint16)
    number[1 + np.argsort(-areas, kind="stable")] = np.arange(1, n + 1)
    return number[components]


def measure_instances(instances: np.ndarray, prob: np.ndarray) -> list[dict[str, Any]]:
    """Measures each lesion of a picture, as scikit-image's `regionprops` does.

    Args:
        instances: Of `number_instances`.
        prob: Lesion probability, float32 (H, W).

    Returns:
        A row a lesion: `lesion`, its number; `area` in pixels; `centroid_x` and `centroid_y`, 0
        at the first pixel's centre; `left`, `top`, `right` and `bottom`, columns and rows, the
        last two the first that are beyond it; `mean_probability`; `touches_frame`.
    """
    from skimage.measure import regionprops  # heavy, not needed for masks

    height, width = instances.shape
    rows = []
    for region in regionprops(instances, prob):
        (y, x), (top, left, bottom, right) = region.centroid, region.bbox
        rows.append(
            {
                "lesion": int(region.label),
                "area": int(region.num_pixels),
                **{"centroid_x": float(x), "centroid_y": float(y)},
                **{"left": left, "top": top, "right": right, "bottom": bottom},
                "mean_probability": float(region.intensity_mean),
                "touches_frame": not (left and top and right < width and bottom < height),
            }
        )
    return rows


def draw_contours(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Draws a mask's outline into its image: bright, between dark edges.

    Args:
        image: uint8 (H, W, 3).
        mask: bool (H, W).

    Returns:
        uint8 (H, W, 3).
    """
    width = max(1, round(max(mask.shape) / 500))
    outside = binary_dilation(mask, _TOUCHING, width)
    inside = binary_erosion(mask, _TOUCHING, width, border_value=1)
    out = image.copy()
    out[outside & ~mask] = OUTSIDE
    out[mask & ~inside] = CONTOUR
    return out


def soft_mask(mask: np.ndarray) -> np.ndarray:
    """Softens a mask's edge, so that what is cut out does not look cut.

    Args:
        mask: bool (H, W).

    Returns:
        uint8 (H, W): opacity, 255 within, falling off over some thousandths of the larger edge.
    """
    sigma = max(0.5, max(mask.shape) / 1000)
    return np.rint(gaussian_filter(mask.astype(np.float32), sigma) * 255).astype(np.uint8)
