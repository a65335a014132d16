"""From probabilities to masks at native resolution, and from masks to instances. No torch."""

from __future__ import annotations

from collections.abc import Callable
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

from seglab.config import DEFAULT_INFERENCE, Inference
from seglab.core.errors import InputError
from seglab.data.classes import ONE_CLASS, Classes

# From an image, uint8 (H, W, 3), to the probability of each channel's class, float32 (C, H, W) in
# [0, 1]. C is the number of logit channels: 1 in the binary case, else the number of classes.
Predictor = Callable[[np.ndarray], np.ndarray]

# Lesion pixels touch by edges and by corners.
_TOUCHING = generate_binary_structure(2, 2)
MAX_INSTANCES = 65535  # what 16 bits hold
# Told from skin, hair, lesion and street alike, by the colour-blind too.
CONTOUR, OUTSIDE = (0, 255, 255), (0, 0, 0)


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


def predicted_mask(
    prob: np.ndarray, threshold: float, inference: Inference = DEFAULT_INFERENCE
) -> np.ndarray:
    """Turns probabilities into a mask of class numbers.

    Args:
        prob: Float (C, H, W) in [0, 1], as a `Predictor` returns.
        threshold: In the binary case, the probability above which a pixel is of class 1. With
            several classes the most probable one is taken instead, of equal ones the first.
        inference: Says whether `clean` is applied, to each class but background: pixels that it
            removes become background, and it fills background pixels alone.

    Returns:
        Class numbers, uint8 (H, W).
    """
    is_binary = len(prob) == 1
    raw = (prob[0] > threshold if is_binary else prob.argmax(0)).astype(np.uint8)
    if not (inference.largest_component or inference.fill_holes):
        return raw
    mask = raw.copy()
    for number in range(1, max(2, len(prob))):
        before = raw == number
        after = clean(before, inference.largest_component, inference.fill_holes)
        mask[before & ~after] = 0
        mask[after & (mask == 0)] = number
    return mask


def number_instances(mask: np.ndarray) -> np.ndarray:
    """Gives each connected lesion a number of its own: from semantic to instance.

    Args:
        mask: Class numbers, uint8 (H, W). Each connected region of one class, other than
            background, is an instance.

    Returns:
        uint16 (H, W): 0 for background, 1 for the largest lesion; of equal ones the topmost first.

    Raises:
        InputError: More lesions than 16 bits number.
    """
    components, n = np.zeros(mask.shape, np.int32), 0
    for number in range(1, int(mask.max()) + 1):
        more, m = label(mask == number, _TOUCHING)
        components, n = np.where(more, more + n, components), n + m
    if n > MAX_INSTANCES:
        raise InputError(f"{n:,} lesions, where a mask numbers {MAX_INSTANCES:,}")
    areas = np.bincount(components.ravel(), minlength=n + 1)[1:]
    by_size = np.zeros(n + 1, np.uint16)
    by_size[1 + np.argsort(-areas, kind="stable")] = np.arange(1, n + 1)
    return by_size[components]


def measure_instances(
    instances: np.ndarray, mask: np.ndarray, prob: np.ndarray, classes: Classes = ONE_CLASS
) -> list[dict[str, Any]]:
    """Measures each lesion of a picture, as scikit-image's `regionprops` does.

    Args:
        instances: Of `number_instances`.
        mask: That they are of.
        prob: Probability of each channel's class, float32 (C, H, W).
        classes: Of the mask.

    Returns:
        A row a lesion: `lesion`, its number; of several classes `class`; `area` in pixels;
        `centroid_x` and `centroid_y`, 0 at the first pixel's centre; `left`, `top`, `right` and
        `bottom`, columns and rows, the last two the first that are beyond it; `mean_probability`,
        of its class; `touches_frame`.
    """
    from skimage.measure import regionprops  # heavy, not needed for masks

    height, width = instances.shape
    # Of each pixel's own class; what background pixels get is not looked at.
    channel = np.searchsorted(classes.numbers, mask)
    own_prob = np.take_along_axis(prob, channel[None], 0)[0]
    rows = []
    for region in regionprops(instances, own_prob):
        (y, x), (top, left, bottom, right) = region.centroid, region.bbox
        metadata: dict[str, Any] = {"lesion": int(region.label)}
        if classes.is_multiclass:
            metadata["class"] = classes.names[mask[tuple(region.coords[0])]]
        rows.append(
            metadata
            | {
                "area": int(region.num_pixels),
                **{"centroid_x": float(x), "centroid_y": float(y)},
                **{"left": left, "top": top, "right": right, "bottom": bottom},
                "mean_probability": float(region.intensity_mean),
                "touches_frame": not (left and top and right < width and bottom < height),
            }
        )
    return rows


def draw_contours(image: np.ndarray, mask: np.ndarray, classes: Classes = ONE_CLASS) -> np.ndarray:
    """Draws a mask's outline into its image: bright, between dark edges.

    Args:
        image: uint8 (H, W, 3).
        mask: Class numbers, uint8 (H, W); each class is outlined in its colour, in the binary case
            in `CONTOUR`.
        classes: Of the mask.

    Returns:
        uint8 (H, W, 3).
    """
    width = max(1, round(max(mask.shape) / 500))
    palette = classes.palette if classes.is_multiclass else np.array([OUTSIDE, CONTOUR])
    parts = [(mask == number, palette[number]) for number in classes.foreground]
    out = image.copy()
    for part, _ in parts:
        out[binary_dilation(part, _TOUCHING, width) & ~part] = OUTSIDE
    # Of classes that touch, neither's dark edge hides the other's line.
    for part, colour in parts:
        out[part & ~binary_erosion(part, _TOUCHING, width, border_value=1)] = colour
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
