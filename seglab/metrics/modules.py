"""Torchmetrics classes that count on the device and score with `seglab.metrics.scores`."""

from collections.abc import Sequence
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.utilities.data import dim_zero_cat

from seglab.metrics.scores import (
    CALIBRATION_BINS,
    COUNT_METRICS,
    PROBABILITY_UNIT,
    calibration_error,
    class_metrics,
    class_scores,
    scores,
)


class SegmentationScore(Metric):
    """One of the scores of `seglab.metrics.scores`, accumulated as counts of each image.

    Args:
        name: One of `COUNT_METRICS`.
        threshold: Probability above which a pixel is lesion; not used with several classes.
        class_index: With several classes the one that is scored against the rest; None for the
            mean over all but background.
    """

    full_state_update = False
    counts: list[Tensor]

    def __init__(self, name: str, threshold: float, class_index: int | None = None) -> None:
        super().__init__()
        self.name = name
        self.threshold = threshold
        self.class_index = class_index
        self.add_state("counts", default=[], dist_reduce_fx="cat")

    def update(self, prob: Tensor, target: Tensor) -> None:
        """Add images: prob (N, C, H, W), target (N, 1, H, W) of class numbers."""
        classes = prob.shape[1]
        if classes == 1:
            self.counts.append(count_confusion(prob > self.threshold, target > 0))
        else:
            pred, target = prob.argmax(1), target[:, 0]
            one_vs_rest = [count_confusion(pred == k, target == k) for k in range(classes)]
            self.counts.append(torch.stack(one_vs_rest, 1))

    def compute(self) -> Tensor:
        """Return the score of all images that were added."""
        counts = dim_zero_cat(self.counts).cpu().numpy()
        if counts.ndim == 2:
            values = scores(counts)
        elif self.class_index is None:
            values = class_scores(counts)
        else:
            values = scores(counts[:, self.class_index])
        return torch.tensor(values[self.name], dtype=torch.float64)


class CalibrationError(Metric):
    """Expected calibration error of all pixels, by `seglab.metrics.scores.calibration_error`."""

    full_state_update = False
    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        zero = torch.zeros(CALIBRATION_BINS, 3, dtype=torch.int64)
        self.add_state("counts", default=zero, dist_reduce_fx="sum")

    def update(self, prob: Tensor, target: Tensor) -> None:
        """Add images: prob (N, C, H, W), target (N, 1, H, W) of class numbers.

        With C > 1 what counts is the probability of each pixel's most probable class, and whether
        this class is right.
        """
        if prob.shape[1] == 1:
            self.counts += count_calibration(prob, target > 0)
        else:
            confidence, pred = prob.max(1)
            self.counts += count_calibration(confidence, pred == target[:, 0])

    def compute(self) -> Tensor:
        """Return the error over all pixels that were added."""
        return torch.tensor(calibration_error(self.counts.cpu().numpy()), dtype=torch.float64)


class PerImageMean(Metric):
    """Mean over images of one value per image, such as a loss."""

    full_state_update = False
    values: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("values", default=[], dist_reduce_fx="cat")

    def update(self, values: Tensor) -> None:
        """Add float (N,)."""
        self.values.append(values.detach())

    def compute(self) -> Tensor:
        """Return the mean of all values that were added, exactly rounded."""
        values = dim_zero_cat(self.values).tolist()
        return torch.tensor(fmean(values), dtype=torch.float64)


def segmentation_metrics(
    threshold: float, classes: Sequence[str] = ("lesion",)
) -> MetricCollection:
    """Collect the metrics of a stage at network size, named as by `network_metric_names`."""
    metrics: dict[str, Metric | MetricCollection] = {
        name: SegmentationScore(name, threshold) for name in COUNT_METRICS
    }
    for name, (metric, class_index) in class_metrics(classes).items():
        metrics[name] = SegmentationScore(metric, threshold, class_index)
    return MetricCollection(metrics | {"ece": CalibrationError()}, postfix="_net")


def count_confusion(pred: Tensor, target: Tensor) -> Tensor:
    """`seglab.metrics.scores.confusion_counts`, (N, 4), of each image of bool (N, ...)."""
    pred, target = pred.flatten(1), target.flatten(1)
    tp = (pred & target).sum(1)
    fp = pred.sum(1) - tp
    fn = target.sum(1) - tp
    return torch.stack([tp, fp, fn, pred.shape[1] - tp - fp - fn], 1)


def count_calibration(prob: Tensor, target: Tensor) -> Tensor:
    """`seglab.metrics.scores.calibration_counts`, (15, 3), on the device."""
    prob, target = prob.flatten(), target.flatten()
    bins = (prob * CALIBRATION_BINS).int().clamp_(max=CALIBRATION_BINS - 1)
    units = (prob / PROBABILITY_UNIT).round_().long()
    # Twice the bins: first those where target is False, then those where it is True.
    bins.add_(target, alpha=CALIBRATION_BINS)
    out = _count_and_sum(bins, units, 2 * CALIBRATION_BINS)
    pixels, sums = out.unflatten(1, (2, CALIBRATION_BINS))
    return torch.stack([pixels.sum(0), pixels[1], sums.sum(0)], 1)


def _count_and_sum(bins: Tensor, values: Tensor, n_bins: int) -> Tensor:
    """Count and sum the values of each bin: int (M,) and int64 (M,) to int64 (2, n_bins)."""
    if bins.device.type != "cuda":
        out = values.new_zeros(2, n_bins)
        out[0].index_add_(0, bins, torch.ones_like(values))
        out[1].index_add_(0, bins, values)
        return out
    # CUDA's deterministic index_add_ adds one by one: 90 ms for 32 images of 256 px.
    bins, order = bins.sort()
    ends = torch.searchsorted(bins, torch.arange(n_bins, device=bins.device), right=True)
    sums = F.pad(values[order].cumsum(0), (1, 0))[ends]
    out = torch.stack([ends, sums])
    return out.diff(prepend=torch.zeros_like(out[:, :1]))
