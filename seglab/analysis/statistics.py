"""Statistics over test cases: scores from counts, their intervals, paired tests.

Every score is a ratio of two sums over cases; `terms` holds what each case adds to either. So one
resampling of cases serves all scores and all seeds.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

PER_IMAGE = ("dice_per_image", "iou_per_image", "thresholded_iou", "hd95", "surface_dice")
RESAMPLES = 9_999
CONFIDENCE = 0.95
ISIC_THRESHOLD = 0.65  # as in seglab.metrics.scores, which imports torch
_FIXED_POINT = 2**24  # likewise
_BCA_CASES = 5_000
_BATCH = 2**22  # numbers that a batch of resamples holds


class Paired(NamedTuple):
    """How two rows differ on the same cases.

    Attributes:
        n: Cases.
        difference: Mean of first minus second.
        low: Lower end of the difference's 95 % interval.
        high: Upper end.
        p: Two-sided, of the null hypothesis that signs of differences are arbitrary.
    """

    n: int
    difference: float
    low: float
    high: float
    p: float


def score_terms(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Splits the scores of `seglab.metrics.scores.scores` into what each case adds to two sums.

    Args:
        counts: float64 (..., 4), whole numbers below 2 ** 53: true positive, false positive,
            false negative and true negative pixels of a case; all 0 where it was not tested.

    Returns:
        By the score's name float64 (..., 2): addends of numerator and denominator.
    """
    tp, fp, fn, tn = np.moveaxis(counts, -1, 0)
    tested = counts.sum(-1) > 0
    iou = _ratio(tp, tp + fp + fn)
    means = {
        "dice_per_image": _ratio(2 * tp, 2 * tp + fp + fn),
        "iou_per_image": iou,
        "thresholded_iou": np.where(iou >= ISIC_THRESHOLD, iou, 0.0),
    }
    pooled = {
        "pixel_accuracy": (tp + tn, tp + fp + fn + tn),
        "iou_pooled": (tp, tp + fp + fn),
        "dice_pooled": (2 * tp, 2 * tp + fp + fn),
        "sensitivity": (tp, tp + fn),
        "specificity": (tn, tn + fp),
    }
    return {name: mean_terms(values, tested) for name, values in means.items()} | {
        name: np.stack(parts, -1) for name, parts in pooled.items()
    }


def mean_terms(values: np.ndarray, tested: np.ndarray) -> np.ndarray:
    """As `terms`, of a score that is a mean over cases.

    Args:
        values: float64 (...), of each case.
        tested: bool (...), False where there is no value.
    """
    return np.stack([np.where(tested, values, 0.0), tested.astype(float)], -1)


def ratio_of_sums(terms: np.ndarray) -> float:
    """Score."""
    part, whole = (math.fsum(column) for column in terms.T.tolist())
    return part / whole if whole else 1.0


def intervals(parts: np.ndarray) -> np.ndarray:
    """95 % intervals of scores averaged over seeds: bootstrap over cases, BCa (Efron 1987).

    Above 5,000 cases, where the jackknife of BCa takes long (its work is quadratic) and corrects
    next to nothing, it is the interval of percentiles. Memory is bounded: cases are drawn in
    batches.

    The same cases are drawn for all seeds and scores, by a generator that always starts alike. So
    the interval is that of these networks on other cases; seeds are not drawn.

    Args:
        parts: float64 (K, S, n, 2) of `terms`, for K scores, S seeds and n cases.

    Returns:
        float64 (K, 2): lower and upper ends. Both are the value where there is one case alone, or
        where all cases have the same value.
    """
    n = parts.shape[2]
    # In steps of 2 ** -28 all sums are exact: no digit depends on the number of threads.
    addends = np.round(np.moveaxis(parts, 2, 0).reshape(n, -1) * 2**28) / 2**28

    def score(drawn: np.ndarray, axis: int = -1) -> np.ndarray:
        rows = drawn.reshape(-1, drawn.shape[-1])
        offsets = n * np.arange(len(rows))[:, None]
        times = np.bincount((rows + offsets).ravel(), minlength=n * len(rows))
        sums = times.reshape(-1, n).astype(float) @ addends
        sums = sums.reshape(len(rows), *parts.shape[:2], 2)
        # A score stands in memory alone, or SciPy would add it up in another order.
        values = np.ascontiguousarray(_ratio(sums[..., 0], sums[..., 1]).mean(-1).T)
        return values.reshape(len(parts), *drawn.shape[:-1])

    value = np.array([math.fsum(map(ratio_of_sums, seeds)) / len(seeds) for seeds in parts])
    own = _ratio(parts[..., 0], parts[..., 1])
    # Else rounding would be taken for spread.
    constant = (np.ptp(own, axis=-1) == 0).all(-1)
    ends = np.stack([value, value], -1)
    if n == 1 or constant.all():
        return ends
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        found = stats.bootstrap(
            (np.arange(n),),
            score,
            n_resamples=RESAMPLES,
            vectorized=True,
            confidence_level=CONFIDENCE,
            method="BCa" if n <= _BCA_CASES else "percentile",
            batch=max(1, _BATCH // max(n, addends.shape[1])),
            random_state=np.random.default_rng(0),
        )
    tail = (1 - CONFIDENCE) / 2
    plain = np.quantile(found.bootstrap_distribution, [tail, 1 - tail], axis=-1).T
    bca = np.stack(found.confidence_interval, -1)
    # BCa has no answer where all resamples lie on one side of the value.
    usable = np.where(np.isfinite(bca), bca, plain)
    return np.where(constant[:, None], ends, usable)


def paired_test(differences: np.ndarray) -> Paired:
    """Tests whether a mean difference is 0, by flipping signs (Fisher 1935).

    Args:
        differences: float64 (n,), n >= 1: of each case, first minus second.

    Returns:
        The mean, its interval as of `intervals`, and p: exact up to 13 cases, by 9,999 random
        flips beyond.
    """
    n = len(differences)
    ((low, high),) = intervals(mean_terms(differences, np.ones(n, bool))[None, None])
    mean = math.fsum(differences) / n
    if n == 1 or not differences.any():
        return Paired(n, mean, float(low), float(high), 1.0)
    test = stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, _BATCH // n),
        random_state=np.random.default_rng(0),
    )
    return Paired(n, mean, float(low), float(high), float(test.pvalue))


def correct_holm(p: Sequence[float]) -> list[float]:
    """Corrects p values for being several, by stepping down (Holm 1979).

    Args:
        p: Of m tests, in any order.

    Returns:
        In the same order; below 0.05 means that the chance of any false alarm is below 0.05.
    """
    corrected, least = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        least = max(least, min(1.0, (len(p) - rank) * p[i]))
        corrected[i] = least
    return corrected


def calibration_error(counts: np.ndarray) -> float:
    """As `seglab.metrics.scores.calibration_error`, of int64 (15, 3)."""
    gaps = [abs(fixed / _FIXED_POINT - lesion) for _, lesion, fixed in counts.tolist()]
    return math.fsum(gaps) / int(counts[:, 0].sum())


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.ones(np.shape(part)), where=whole != 0)
