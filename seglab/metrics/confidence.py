"""Confidence in a predicted mask without an annotation, and what it is worth with one."""

import itertools
from collections.abc import Sequence
from statistics import fmean

import numpy as np

# Columns of `test_cases.csv`, in [0, 1].
CONFIDENCE_COLUMNS = ("confidence", "view_dice")
# The keys of `risk_scores`.
RISK_METRICS = ("aurc", "aurc_random", "aurc_oracle")


def soft_dice_confidence(prob: np.ndarray, mask: np.ndarray) -> float:
    """Return the Soft Dice Confidence of a mask (Borges et al. 2024, arXiv 2402.10665).

    It estimates the mask's Dice from the probabilities alone, as far as these are calibrated.

    Args:
        prob: Probability of the class at each pixel, float (H, W) in [0, 1].
        mask: Pixels that are predicted as the class, bool (H, W).

    Returns:
        2 * sum(p * m) / (sum(p) + sum(m)), in [0, 1]; 1 where both sums are 0.
    """
    both, total = prob[mask].sum(dtype=float), prob.sum(dtype=float) + np.count_nonzero(mask)
    return 2 * float(both) / float(total) if total else 1.0


def pairwise_dice(masks: Sequence[np.ndarray]) -> float:
    """Return the mean Dice of all pairs of masks (Zenk et al. 2025, arXiv 2406.03323).

    Args:
        masks: Two or more predictions of one class in one image, bool (H, W) each.

    Returns:
        The mean, in [0, 1]; the Dice of two empty masks is 1.
    """
    areas = [int(np.count_nonzero(mask)) for mask in masks]
    dice = []
    for (a, area_a), (b, area_b) in itertools.combinations(zip(masks, areas, strict=True), 2):
        total = area_a + area_b
        dice.append(2 * int(np.count_nonzero(a & b)) / total if total else 1.0)
    return fmean(dice)


def risk_coverage(confidence: np.ndarray, dice: np.ndarray) -> np.ndarray:
    """Return the risk at each coverage: the mean of 1 - Dice over the most confident cases.

    Args:
        confidence: Of each case, float (n,); cases of equal confidence stay in their order.
        dice: Of each case, float (n,).

    Returns:
        float64 (n,): the risk of the first k cases, for k = 1 to n. Its mean is the area under the
        risk-coverage curve, AURC (Zenk et al. 2025, arXiv 2406.03323).
    """
    by_confidence = np.argsort(-np.asarray(confidence), kind="stable")
    return np.cumsum(1.0 - np.asarray(dice)[by_confidence]) / np.arange(1, len(dice) + 1)


def risk_scores(confidence: np.ndarray, dice: np.ndarray) -> dict[str, float]:
    """Return how well the confidence, float (n,), sorts cases by their Dice, float (n,).

    `aurc` is the mean of `risk_coverage`, `aurc_random` that of a random order on average,
    `aurc_oracle` that of the order of the Dice itself, its least value.
    """
    return {
        "aurc": fmean(risk_coverage(confidence, dice)),
        "aurc_random": fmean(1.0 - np.asarray(dice)),
        "aurc_oracle": fmean(risk_coverage(dice, dice)),
    }
