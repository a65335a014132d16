"""Confusion counts, overlap scores and calibration error in NumPy.

Every score from pixel counts is defined here; those of outlines are in `boundary.py`, and
`modules.py` counts in torch and scores with these functions. Scores are computed from integers
(confusion counts of each image, fixed-point sums of probability), so that no value depends on the
batch size, the number of devices or the order of the images. Where target and prediction are both
empty, Dice and IoU are 1; where only one of them is empty, they are 0.
"""

import math
from collections.abc import Sequence
from statistics import fmean

import numpy as np

from seglab.metrics.confidence import RISK_METRICS

# Of the metrics that tables, reports and model cards show, in their order.
METRIC_DEFINITIONS = {
    "dice_per_image": "Dice (F1) of each image, then the mean over images",
    "iou_per_image": "intersection over union of each image, then the mean over images",
    "pixel_accuracy": "correctly classified pixels over all pixels",
    "iou_pooled": "intersection over union of all pixels of all images",
    "dice_pooled": "Dice of all pixels of all images",
    "sensitivity": "true positive pixels over foreground pixels, pooled",
    "specificity": "true negative pixels over background pixels, pooled",
    "thresholded_iou": "ISIC 2018: IoU of each image, 0 where under 0.65, then the mean",
    "hd95": "95th percentile of the distances between outlines, in pixels; lower is better",
    "surface_dice": "share of the outlines within 2 pixels of each other",
    "ece": "expected calibration error of the probabilities, 15 bins; lower is better",
    "aurc": "mean of 1 - Dice over the k most confident images, then over k; lower is better",
    "aurc_random": "what `aurc` is on average for a random order: the mean of 1 - Dice",
    "aurc_oracle": "what `aurc` would be for the order of the Dice itself, its least value",
}
METRICS = tuple(METRIC_DEFINITIONS)
DEFAULT_METRICS = METRICS[:3]
# From confusion counts, in the order of the result files.
COUNT_METRICS = (
    "pixel_accuracy",
    "iou_per_image",
    "dice_per_image",
    "iou_pooled",
    "dice_pooled",
    "sensitivity",
    "specificity",
    "thresholded_iou",
)
# One value per image, from its masks: the keys of `seglab.metrics.boundary.boundary_scores`.
BOUNDARY_METRICS = ("hd95", "surface_dice")
# How the outlines of an image's two masks differ, see `seglab.metrics.boundary`; no scores.
OUTLINE_COLUMNS = ("outline_shift", "missed_pieces", "extra_pieces")
# Means over images of one value per image.
PER_IMAGE = ("dice_per_image", "iou_per_image", "thresholded_iou", *BOUNDARY_METRICS)
IN_PIXELS = frozenset({"hd95"})  # distances; other metrics are in [0, 1]
LOWER_IS_BETTER = IN_PIXELS | {"ece", *RISK_METRICS}
PIXEL_COUNTS = ("tp", "fp", "fn", "tn")  # columns of `confusion_counts`
# ISIC 2018, task 1: an image whose IoU is below this counts as failed.
ISIC_THRESHOLD = 0.65
CALIBRATION_BINS = 15
PROBABILITY_UNIT = 2**-24  # float32's resolution just below 1


def confusion_counts(pred: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Count the pixels of one image.

    Args:
        pred: bool (H, W), True for lesion.
        target: bool (H, W), True for lesion.

    Returns:
        int64 (4,): true positive, false positive, false negative and true negative pixels.
    """
    tp, predicted, actual = (np.count_nonzero(mask) for mask in (pred & target, pred, target))
    tn = target.size - predicted - actual + tp
    return np.array([tp, predicted - tp, actual - tp, tn], np.int64)


def score_terms(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Split each score into what every image adds to its numerator and to its denominator.

    Args:
        counts: (..., 4) of `confusion_counts`; all four are 0 where an image was not tested, and
            it then adds nothing.

    Returns:
        For each name in `COUNT_METRICS` float64 (..., 2), as `ratio_of_sums` takes them.
    """
    tp, fp, fn, tn = np.moveaxis(np.asarray(counts, np.float64), -1, 0)
    pixels = tp + fp + fn + tn
    union, areas = tp + fp + fn, 2 * tp + fp + fn
    iou = ratio(tp, union)
    tested = pixels > 0
    return {
        "pixel_accuracy": np.stack([tp + tn, pixels], -1),
        "iou_per_image": mean_terms(iou, tested),
        "dice_per_image": mean_terms(ratio(2 * tp, areas), tested),
        "iou_pooled": np.stack([tp, union], -1),
        "dice_pooled": np.stack([2 * tp, areas], -1),
        "sensitivity": np.stack([tp, tp + fn], -1),
        "specificity": np.stack([tn, tn + fp], -1),
        "thresholded_iou": mean_terms(np.where(iou >= ISIC_THRESHOLD, iou, 0.0), tested),
    }


def mean_terms(values: np.ndarray, tested: np.ndarray) -> np.ndarray:
    """Return the terms (..., 2) of a mean over images: values (...), and which were tested."""
    return np.stack([np.where(tested, values, 0.0), tested], -1)


def ratio_of_sums(terms: np.ndarray) -> float:
    """Score a set of images from the terms (N, 2) of `score_terms` or `mean_terms`.

    The sums are exactly rounded, so the order of the images does not matter. A ratio of nothing
    to nothing is 1.
    """
    part, whole = (math.fsum(column) for column in terms.T.tolist())
    return part / whole if whole else 1.0


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Divide element by element; nothing of nothing is 1."""
    return np.divide(part, whole, out=np.ones(np.shape(part)), where=whole != 0)


def scores(counts: np.ndarray) -> dict[str, float]:
    """Return each of `COUNT_METRICS`, in [0, 1], of N >= 1 images with counts int64 (N, 4)."""
    return {name: ratio_of_sums(terms) for name, terms in score_terms(counts).items()}


def class_scores(counts: np.ndarray) -> dict[str, float]:
    """Average `scores` over all classes but background, each against the rest.

    Args:
        counts: `confusion_counts` of each image and class against the rest, int64 (N, K, 4), with
            N >= 1 and K >= 2; the first class is background.

    Returns:
        As `scores`; `pixel_accuracy` is the share of all pixels whose class is right.
    """
    by_class = [scores(counts[:, k]) for k in range(1, counts.shape[1])]
    values = {name: fmean(scored[name] for scored in by_class) for name in COUNT_METRICS}
    correct, pixels = int(counts[..., 0].sum()), int(counts[:, 0].sum())
    return values | {"pixel_accuracy": correct / pixels}


def calibration_counts(prob: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Count pixels by predicted probability, in 15 equal bins.

    Args:
        prob: float, in [0, 1], any shape.
        target: bool, of the same shape: whether the prediction came true.

    Returns:
        int64 (15, 3): pixels, pixels where `target` is True, and the sum of `prob` in units of
        2 ** -24.
    """
    bins = np.minimum((prob * CALIBRATION_BINS).astype(np.int16), CALIBRATION_BINS - 1)
    # Twice the bins: first those where target is False, then those where it is True.
    indices = (np.int16(CALIBRATION_BINS) * target + bins).ravel()
    units = np.rint(prob / prob.dtype.type(PROBABILITY_UNIT)).ravel()
    pixels = np.bincount(indices, minlength=2 * CALIBRATION_BINS).reshape(2, -1)
    # Sums of whole numbers in float64 are exact.
    sums = np.bincount(indices, units, 2 * CALIBRATION_BINS).reshape(2, -1)
    return np.stack([pixels.sum(0), pixels[1], sums.sum(0)], 1).astype(np.int64)


def calibration_error(counts: np.ndarray) -> float:
    """Return the expected calibration error, in [0, 1], from summed `calibration_counts`.

    See Naeini et al. 2015 and Guo et al. 2017.
    """
    pixels = int(counts[:, 0].sum())
    gaps = [abs(units * PROBABILITY_UNIT - correct) for _, correct, units in counts.tolist()]
    return math.fsum(gaps) / pixels if pixels else 0.0


def network_metric_names(classes: Sequence[str]) -> list[str]:
    """List the metrics that are logged in training, without the stage before each name.

    They end in `_net`, because a value at network size is not the value at native size.
    """
    names = [*COUNT_METRICS, *class_metrics(classes), "ece"]
    return [f"{name}_net" for name in names]


def class_metrics(classes: Sequence[str]) -> dict[str, tuple[str, int]]:
    """Map the name of each metric of a single class to the metric and the class number."""
    return {
        f"{name}_{class_name}": (name, k)
        for k, class_name in enumerate(classes)
        for name in ("dice_per_image", "iou_per_image")
        if k > 0
    }
