"""Confidence in masks and risk-coverage curves, by hand and by plain loops."""

import numpy as np
import pytest

from seglab.metrics.confidence import (
    RISK_METRICS,
    pairwise_dice,
    risk_coverage,
    risk_scores,
    soft_dice_confidence,
)


def test_soft_dice_confidence_by_hand() -> None:
    prob = np.array([[0.9, 0.75, 0.25], [0.5, 0.0, 0.1]], np.float32)
    mask = np.array([[True, True, False], [False, False, True]])
    # sum(p * m) = 0.9 + 0.75 + 0.1; sum(p) = 2.5; three pixels in the mask
    assert soft_dice_confidence(prob, mask) == pytest.approx(2 * 1.75 / (2.5 + 3), abs=1e-7)
    nothing, nowhere = np.zeros((2, 3), np.float32), np.zeros((2, 3), bool)
    assert soft_dice_confidence(nothing, nowhere) == 1
    assert soft_dice_confidence(prob, nowhere) == 0
    assert soft_dice_confidence(mask.astype(np.float32), mask) == 1


def test_it_is_the_dice_that_calibrated_probabilities_lead_to_expect() -> None:
    random = np.random.default_rng(0)
    prob = random.random((60, 70)) ** 3
    mask = prob > 0.4
    targets = random.random((500, 60, 70)) < prob
    dice = 2 * (targets & mask).sum((1, 2)) / (targets.sum((1, 2)) + mask.sum())
    assert soft_dice_confidence(prob, mask) == pytest.approx(dice.mean(), abs=2e-3)


def test_pairwise_dice_is_the_mean_over_pairs() -> None:
    masks = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 1]], bool).reshape(3, 2, 2)
    assert pairwise_dice([*masks]) == pytest.approx((4 / 5 + 0 + 0) / 3, rel=1e-15)
    empty = np.zeros((2, 2), bool)
    assert pairwise_dice([empty, empty]) == 1
    assert pairwise_dice([empty, masks[0]]) == 0


def test_the_risk_is_the_mean_over_the_most_confident_cases() -> None:
    # By confidence: 1 - Dice is 0.1, 0.5, then of the two at 0.3 the first, 0.2, and 0.8.
    confidence, dice = np.array([0.3, 0.9, 0.3, 0.6]), np.array([0.8, 0.9, 0.2, 0.5])
    curve = risk_coverage(confidence, dice)
    assert curve == pytest.approx([0.1, 0.6 / 2, 0.8 / 3, 1.6 / 4], rel=1e-12)
    assert risk_coverage(np.ones(4), dice) == pytest.approx([0.2, 0.15, 1.1 / 3, 0.4], rel=1e-12)
    assert risk_coverage(np.array([0.5]), np.array([1.0])).tolist() == [0]
    random = np.random.default_rng(1)
    confidence, dice = random.integers(0, 20, 50) / 20, random.random(50)
    cases = sorted(zip(-confidence, range(50), dice, strict=True))
    plain = [sum(1 - d for *_, d in cases[:k]) / k for k in range(1, 51)]
    assert risk_coverage(confidence, dice) == pytest.approx(plain, rel=1e-12)


def test_areas_lie_between_those_of_the_best_and_the_worst_order() -> None:
    found = risk_scores(np.array([0.3, 0.9, 0.3, 0.6]), np.array([0.8, 0.9, 0.2, 0.5]))
    # 1 - Dice by confidence: 0.1, 0.5, 0.2, 0.8; by Dice: 0.1, 0.2, 0.5, 0.8.
    expected = {"aurc": (0.1 + 0.3 + 0.8 / 3 + 0.4) / 4, "aurc_random": 0.4}
    expected["aurc_oracle"] = (0.1 + 0.15 + 0.8 / 3 + 0.4) / 4
    assert tuple(found) == RISK_METRICS
    assert found == pytest.approx(expected, rel=1e-12)
    random = np.random.default_rng(2)
    dice = random.random(12)
    # The mean over random orders is that of chance; no order is better than the oracle.
    areas = [risk_scores(random.random(12), dice)["aurc"] for _ in range(4000)]
    found = risk_scores(dice, dice)
    assert np.mean(areas) == pytest.approx(found["aurc_random"], abs=3 * np.std(areas) / 4000**0.5)
    assert found["aurc"] == found["aurc_oracle"] <= min(areas)
    assert max(areas) <= risk_scores(-dice, dice)["aurc"]
