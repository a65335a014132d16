"""Turns probabilities into masks at native resolution, and masks into instances. No torch."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.ndimage import label

from seglab.core.errors import InputError
from seglab.data.classes import ONE_CLASS, Classes
from seglab.metrics.boundary import EIGHT_NEIGHBOURS
from seglab.metrics.confidence import pairwise_dice, soft_dice_confidence
from seglab.schema import DEFAULT_INFERENCE, Inference

MAX_INSTANCES = 65535  # instances are numbered in 16 bits


@dataclass(frozen=True)
class Prediction:
    """Probability of each channel's class at each pixel of an image.

    Probabilities are float32 (C, H, W) in [0, 1]. C is the number of logit channels: 1 in the
    binary case, else the number of classes.

    Attributes:
        compute: Returns the probabilities; the network has run before, at its own size.
        views: One function for each flip and turn of test-time augmentation, or for each member of
            an ensemble, that returns the probabilities of it alone; empty where there is only one.
            They are called one by one, so that no two large arrays lie in memory together.
    """

    compute: Callable[[], np.ndarray]
    views: tuple[Callable[[], np.ndarray], ...] = ()

    @cached_property
    def prob(self) -> np.ndarray:
        """The probabilities, the mean of all views."""
        return self.compute()


# Maps an image, uint8 (H, W, 3). Not in predictor.py because that module imports torch.
Predictor = Callable[[np.ndarray], Prediction]


def clean(
    mask: np.ndarray, largest_component: bool = False, fill_holes: bool = False
) -> np.ndarray:
    """Remove small components of a mask, and fill its holes.

    Foreground has 8-connectivity and background 4-connectivity, because of two digital curves that
    cross only one may be unbroken (Rosenfeld 1970). The largest component is chosen before holes
    are filled: a thin ring around the image would otherwise become all of it.

    Args:
        mask: bool (H, W).
        largest_component: Keep only the component with most pixels, of equal ones the topmost.
        fill_holes: Fill background that foreground encloses.

    Returns:
        bool (H, W).
    """
    if largest_component:
        components, n = label(mask, EIGHT_NEIGHBOURS)
        if n > 1:
            mask = components == np.bincount(components.ravel())[1:].argmax() + 1
    return _fill_holes(mask) if fill_holes else mask


def _fill_holes(mask: np.ndarray) -> np.ndarray:
    """As SciPy's `binary_fill_holes`, whose dilations take four times as long on large masks."""
    regions, n = label(~mask)
    is_filled = np.ones(n + 1, bool)
    for edge in (regions[0], regions[-1], regions[:, 0], regions[:, -1]):
        is_filled[edge] = False
    is_filled[0] = True  # 0 is the mask itself
    return is_filled[regions]


def predicted_mask(
    prob: np.ndarray, threshold: float, inference: Inference = DEFAULT_INFERENCE
) -> np.ndarray:
    """Turn probabilities into a mask of class numbers.

    Args:
        prob: Float (C, H, W) in [0, 1], see `Prediction`.
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


def measure_confidence(
    prediction: Prediction, mask: np.ndarray, threshold: float
) -> list[dict[str, float | None]]:
    """Measure the confidence in each class of a predicted mask.

    Args:
        prediction: Of the image.
        mask: Class numbers, uint8 (H, W), that `predicted_mask` made of it.
        threshold: See `predicted_mask`.

    Returns:
        A row for each of `Classes.names`, with `CONFIDENCE_COLUMNS`: `confidence`, see
        `soft_dice_confidence`; `view_dice`, see `pairwise_dice`, of the masks of all views before
        post-processing, or None where there are no views.
    """
    views = [predicted_mask(view(), threshold) for view in prediction.views]
    confidences = class_confidences(prediction.prob, mask)
    return [
        {
            "confidence": confidence,
            "view_dice": pairwise_dice([view == number for view in views]) if views else None,
        }
        for number, confidence in enumerate(confidences, int(len(confidences) == 1))
    ]


def class_confidences(prob: np.ndarray, mask: np.ndarray) -> list[float]:
    """Return the Soft Dice Confidence of each of `Classes.names`, in [0, 1].

    `prob` is float (C, H, W), and `mask` the class numbers, uint8 (H, W), of `predicted_mask`.
    """
    first = int(len(prob) == 1)  # in the binary case background has no channel
    return [soft_dice_confidence(p, mask == number) for number, p in enumerate(prob, first)]


def number_instances(mask: np.ndarray) -> np.ndarray:
    """Number the connected lesions of a mask: semantic to instance segmentation.

    Args:
        mask: Class numbers, uint8 (H, W). Each connected region of one class, other than
            background, is an instance.

    Returns:
        uint16 (H, W): 0 for background, then from 1 by falling area, equal ones from the top.

    Raises:
        InputError: There are more than `MAX_INSTANCES`.
    """
    components, n = np.zeros(mask.shape, np.int32), 0
    for number in range(1, int(mask.max()) + 1):
        more, m = label(mask == number, EIGHT_NEIGHBOURS)
        components, n = np.where(more, more + n, components), n + m
    if n > MAX_INSTANCES:
        raise InputError(f"{n:,} lesions; expected at most {MAX_INSTANCES:,} in one mask")
    areas = np.bincount(components.ravel(), minlength=n + 1)[1:]
    by_size = np.zeros(n + 1, np.uint16)
    by_size[1 + np.argsort(-areas, kind="stable")] = np.arange(1, n + 1)
    return by_size[components]


def measure_instances(
    instances: np.ndarray, mask: np.ndarray, prob: np.ndarray, classes: Classes = ONE_CLASS
) -> list[dict[str, Any]]:
    """Measure the instances of an image, by scikit-image's `regionprops`.

    Args:
        instances: uint16 (H, W), of `number_instances`.
        mask: Class numbers, uint8 (H, W), that the instances were made of.
        prob: float32 (C, H, W), see `Prediction`.
        classes: Classes of the mask.

    Returns:
        One row for each instance: `lesion`, its number; with several classes `class`; `area` in
        pixels; `centroid_x` and `centroid_y` in pixels, 0 at the centre of the first pixel;
        `left`, `top`, `right` and `bottom`, its first column and row and the first ones beyond it;
        `mean_probability` of its class; `touches_frame`.
    """
    from skimage.measure import regionprops  # takes long to import, and masks do not need it

    height, width = instances.shape
    # Probability of each pixel's own class; values at background pixels are not used.
    channel = np.searchsorted(classes.numbers, mask)
    prob_of_class = np.take_along_axis(prob, channel[None], 0)[0]
    rows = []
    for region in regionprops(instances, prob_of_class):
        (y, x), (top, left, bottom, right) = region.centroid, region.bbox
        metadata: dict[str, Any] = {"lesion": int(region.label)}
        if classes.is_multiclass:
            metadata["class"] = classes.names[mask[tuple(region.coords[0])]]
        rows.append(
            metadata
            | {
                "area": int(region.num_pixels),
                "centroid_x": float(x),
                "centroid_y": float(y),
                "left": left,
                "top": top,
                "right": right,
                "bottom": bottom,
                "mean_probability": float(region.intensity_mean),
                "touches_frame": not (left and top and right < width and bottom < height),
            }
        )
    return rows
