"""Metrics that mean what they say: pure functions, and thin torchmetrics classes over them.

Everything is computed from integers (confusion counts of each image, fixed-point sums of
probability), so no value depends on the size of batches, the number of devices or any order.
Where target and prediction are both empty, Dice and IoU are 1; where one of them is, 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

CALIBRATION_BINS = 15
# ISIC 2018, task 1: an image whose IoU is below counts as failed.
ISIC_THRESHOLD = 0.65
_FIXED_POINT = 2**24  # float32's own resolution below 1


def confusion_counts(pred: Tensor, target: Tensor) -> Tensor:
    """Counts pixels of each image.

    Args:
        pred: bool (N, ...), True for lesion.
        target: bool (N, ...), likewise.

    Returns:
        int64 (N, 4): true positive, false positive, false negative and true negative pixels.
    """
    pred, target = pred.flatten(1), target.flatten(1)
    tp = (pred & target).sum(1)
    fp = pred.sum(1) - tp
    fn = target.sum(1) - tp
    return torch.stack([tp, fp, fn, pred.shape[1] - tp - fp - fn], 1)


def scores(counts: Tensor) -> dict[str, float]:
    """Scores a set of images.

    Args:
        counts: int64 (N, 4) of `confusion_counts`, N >= 1.

    Returns:
        `iou_per_image`, `dice_per_image` and `thresholded_iou`: means over images.
        `pixel_accuracy`, `iou_pooled`, `dice_pooled`, `sensitivity` and `specificity`: of all
        pixels in one confusion matrix. All in [0, 1]; a ratio of nothing to nothing is 1.
    """
    per_image = [_overlap(*row) for row in counts.tolist()]
    tp, fp, fn, tn = counts.sum(0).tolist()
    iou, dice = _overlap(tp, fp, fn, tn)
    return {
        "pixel_accuracy": _ratio(tp + tn, tp + fp + fn + tn),
        "iou_per_image": _mean([iou for iou, _ in per_image]),
        "dice_per_image": _mean([dice for _, dice in per_image]),
        "iou_pooled": iou,
        "dice_pooled": dice,
        "sensitivity": _ratio(tp, tp + fn),
        "specificity": _ratio(tn, tn + fp),
        "thresholded_iou": _mean([iou if iou >= ISIC_THRESHOLD else 0.0 for iou, _ in per_image]),
    }


def class_counts(pred: Tensor, target: Tensor, classes: int) -> Tensor:
    """Counts pixels of each image for each class, as one class against the rest.

    Args:
        pred: Class numbers (N, ...), 0 to `classes` - 1.
        target: The same.
        classes: K.

    Returns:
        int64 (N, K, 4), as `confusion_counts`.
    """
    return torch.stack([confusion_counts(pred == k, target == k) for k in range(classes)], 1)


def class_scores(counts: Tensor) -> dict[str, float]:
    """Scores a set of images of several classes.

    Args:
        counts: int64 (N, K, 4) of `class_counts`, N >= 1, K >= 2; the first class is background.

    Returns:
        What `scores` returns, as means over all classes but background, each against the rest; a
        class that is nowhere in an image, neither there nor predicted, has an overlap of 1 there.
        `pixel_accuracy` is the share of all pixels whose class is right, background or not.
    """
    each = [scores(own) for own in counts[:, 1:].unbind(1)]
    values = {name: _mean([own[name] for own in each]) for name in each[0]}
    right, pixels = int(counts[..., 0].sum()), int(counts[:, 0].sum())
    return values | {"pixel_accuracy": _ratio(right, pixels)}


def calibration_counts(prob: Tensor, target: Tensor) -> Tensor:
    """Counts pixels by lesion probability, in 15 equal bins.

    Args:
        prob: float, in [0, 1], any shape.
        target: bool, of the same shape.

    Returns:
        int64 (15, 3): pixels, lesion pixels and the sum of probability in units of 2 ** -24.
    """
    prob, target = prob.flatten(), target.flatten()
    bins = (prob * CALIBRATION_BINS).int().clamp_(max=CALIBRATION_BINS - 1)
    fixed = (prob * _FIXED_POINT).round_().long()
    # Twice the bins: background's, then lesion's.
    bins.add_(target, alpha=CALIBRATION_BINS)
    out = torch.zeros(2, 2 * CALIBRATION_BINS, dtype=torch.int64, device=prob.device)
    out[0].index_add_(0, bins, torch.ones_like(fixed))
    out[1].index_add_(0, bins, fixed)
    pixels, sums = out.unflatten(1, (2, CALIBRATION_BINS))
    return torch.stack([pixels.sum(0), pixels[1], sums.sum(0)], 1)


def calibration_error(counts: Tensor) -> float:
    """Expected calibration error, in [0, 1] (Naeini et al. 2015; Guo et al. 2017).

    Args:
        counts: int64 (15, 3) of `calibration_counts`, of one image or summed over several.
    """
    total = int(counts[:, 0].sum())
    gaps = [abs(fixed / _FIXED_POINT - lesion) for _, lesion, fixed in counts.tolist()]
    return math.fsum(gaps) / total if total else 0.0


class _Score(Metric):
    """One of `scores` at a threshold, or of `class_scores`; of the latter also for one class."""

    full_state_update = False
    higher_is_better = True
    counts: list[Tensor]

    def __init__(self, name: str, threshold: float, number: int | None = None) -> None:
        super().__init__()
        self.name = name
        self.threshold = threshold
        self.number = number
        self.add_state("counts", default=[], dist_reduce_fx="cat")

    def update(self, prob: Tensor, target: Tensor) -> None:
        k = prob.shape[1]
        if k == 1:
            self.counts.append(confusion_counts(prob > self.threshold, target > 0))
        else:
            self.counts.append(class_counts(prob.argmax(1), target[:, 0], k))

    def compute(self) -> Tensor:
        counts = torch.cat(list(self.counts)) if isinstance(self.counts, list) else self.counts
        if counts.ndim == 2:
            values = scores(counts)
        elif self.number is None:
            values = class_scores(counts)
        else:
            values = scores(counts[:, self.number])
        return torch.tensor(values[self.name], dtype=torch.float64)


class CalibrationError(Metric):
    """`calibration_error`, accumulated."""

    full_state_update = False
    higher_is_better = False
    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        zero = torch.zeros(CALIBRATION_BINS, 3, dtype=torch.int64)
        self.add_state("counts", default=zero, dist_reduce_fx="sum")

    def update(self, prob: Tensor, target: Tensor) -> None:
        """Adds float prob (N, 1, ...) in [0, 1] and target, of equal shape.

        Of several classes, prob (N, K, ...): how sure each pixel's class is, and if it is right.
        """
        if prob.shape[1] == 1:
            self.counts += calibration_counts(prob, target > 0)
        else:
            sure, pred = prob.max(1)
            self.counts += calibration_counts(sure, pred == target[:, 0])

    def compute(self) -> Tensor:
        """Returns the error over everything that was added."""
        return torch.tensor(calibration_error(self.counts), dtype=torch.float64)


class PerImageMean(Metric):
    """Mean over images of a value of each, such as a loss."""

    full_state_update = False
    values: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("values", default=[], dist_reduce_fx="cat")

    def update(self, values: Tensor) -> None:
        """Adds float (N,)."""
        self.values.append(values.detach())

    def compute(self) -> Tensor:
        """Returns the mean over everything that was added, exactly rounded."""
        values = torch.cat(list(self.values)) if isinstance(self.values, list) else self.values
        return torch.tensor(_mean(values.double().tolist()), dtype=torch.float64)


def segmentation_metrics(
    threshold: float, classes: Sequence[str] = ("lesion",)
) -> MetricCollection:
    """The metrics of every stage, at network size.

    In go probabilities (N, 1, H, W) and masks (N, 1, H, W) of 0 and 1; of K classes (N, K, H, W)
    and class numbers (N, 1, H, W). Names end in `_net`, because a value at network size is not the
    value at native size.

    Args:
        threshold: Probability above which a pixel is lesion; of no use with several classes.
        classes: One name, or several with background first. Of several, Dice and IoU of each
            besides: `dice_per_image_lesion_net`.
    """
    names = scores(torch.zeros(1, 4).long())
    metrics: dict[str, Any] = {name: _Score(name, threshold) for name in names}
    for number, own in enumerate(classes[1:], 1):
        for name in ("dice_per_image", "iou_per_image"):
            metrics[f"{name}_{own}"] = _Score(name, threshold, number)
    return MetricCollection(metrics | {"ece": CalibrationError()}, postfix="_net")


def _overlap(tp: int, fp: int, fn: int, tn: int) -> tuple[float, float]:
    return _ratio(tp, tp + fp + fn), _ratio(2 * tp, 2 * tp + fp + fn)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 1.0


def _mean(values: list[float]) -> float:
    # fsum is exactly rounded, so the order of the images does not matter.
    return math.fsum(values) / len(values)
