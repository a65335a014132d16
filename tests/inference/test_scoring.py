"""Scores at native resolution, of predictors with known answers and of baselines."""

import math
from pathlib import Path

import numpy as np
import pytest
from helpers.predicting import make_lookup_predictor, write_cases
from skimage.color import rgb2gray
from skimage.filters import threshold_otsu

from seglab.data.cases import Case
from seglab.inference.postprocessing import Prediction, measure_confidence, predicted_mask
from seglab.inference.scoring import ScoredCase, baseline_predictors, score_cases
from seglab.metrics.scores import calibration_error
from seglab.schema import DEFAULT_INFERENCE, Inference

# Sizes differ from case to case, and no image is square.
SHAPES = ((20, 30), (21, 28), (18, 33), (25, 24))


def disc(shape: tuple[int, int], y: float, x: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return (rows - y) ** 2 + (columns - x) ** 2 < radius**2


# The last case has no lesion.
MASKS = [disc(shape, 8 + i, 12, 4 + i) for i, shape in enumerate(SHAPES[:3])]
MASKS.append(np.zeros(SHAPES[3], bool))
ROLLED = [np.roll(mask, 3, axis=1) for mask in MASKS]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    return write_cases(tmp_path_factory.mktemp("PH2Dataset"), MASKS)


def test_rows_hold_the_counts_by_hand(tmp_path: Path) -> None:
    mask = np.zeros((4, 6), bool)
    mask[:2, :3] = True
    prob = np.full((4, 6), 0.5, np.float32)  # at the threshold: background
    prob[1:3, :2] = 0.51
    cases = write_cases(tmp_path, [mask])
    rows, values, calibration, _ = score_cases(make_lookup_predictor([prob]), cases, 0.5)
    scores = {
        "pixel_accuracy": 18 / 24,
        "iou_per_image": 2 / 8,
        "dice_per_image": 4 / 10,
        "sensitivity": 2 / 6,
        "specificity": 16 / 18,
        "thresholded_iou": 0.0,
        # Every lesion pixel is surface. From the mask's six: 0, 0, 1, 1, 1, root of 2; the 95th
        # percentile is at rank 4.75 of 5. From the prediction's four: 0, 0, 1, 1.
        "hd95": pytest.approx(1 + 0.75 * (math.sqrt(2) - 1), rel=1e-12),
        "surface_dice": 1.0,
    }
    outlines = {
        # The prediction's lie 0, 0, 1 and 1 beyond the mask; the mask's lie beyond the prediction.
        "outline_shift": pytest.approx((0 + 0 + 1 + 1 - 0 - 0 - 3 - math.sqrt(2)) / 10),
        "missed_pieces": 0,
        "extra_pieces": 0,
    }
    counts = {"tp": 2, "fp": 2, "fn": 4, "tn": 16}
    # Twice the 4 pixels of 0.51 in the mask, over all probabilities and the mask's 4 pixels.
    sdc = pytest.approx(2 * 4 * 0.51 / (20 * 0.5 + 4 * 0.51 + 4), abs=1e-7)
    confidence = {"confidence": sdc, "view_dice": None}
    expected = {"id": "IMD000", "diagnosis": "unknown"} | counts | scores | outlines | confidence
    assert rows == [expected]
    # 20 pixels at 0.5, of which 4 are lesion, and 4 at 0.51, of which 2: one bin, [7/15, 8/15).
    ece = abs((20 * 0.5 + 4 * 0.51) - 6) / 24
    pooled = {"iou_pooled": 2 / 8, "dice_pooled": 4 / 10, "ece": pytest.approx(ece, abs=1e-7)}
    pooled |= dict.fromkeys(("aurc", "aurc_random", "aurc_oracle"), 1 - 4 / 10)
    assert values == scores | pooled
    order = ["hd95", "surface_dice", "aurc", "aurc_random", "aurc_oracle", "ece"]
    assert list(values)[-7:] == ["thresholded_iou", *order]
    in_one_bin = [24, 6, 20 * 2**23 + 4 * round(float(np.float32(0.51)) * 2**24)]
    assert calibration.dtype == np.int64
    assert calibration.tolist() == [in_one_bin if k == 7 else [0, 0, 0] for k in range(15)]


def test_set_values_are_those_of_the_rows(cases: list[Case]) -> None:
    predict = make_lookup_predictor([rolled * 0.8 + 0.1 for rolled in ROLLED])
    rows, values, calibration, _ = score_cases(predict, cases, 0.5)
    tp, fp, fn, tn = (np.array([row[k] for row in rows]) for k in ("tp", "fp", "fn", "tn"))
    for row, mask, rolled, *counts in zip(rows, MASKS, ROLLED, tp, fp, fn, tn, strict=True):
        hand = [mask & rolled, rolled & ~mask, mask & ~rolled, ~mask & ~rolled]
        assert counts == [np.count_nonzero(region) for region in hand]
        overlap = (mask & rolled).sum() / (mask | rolled).sum() if mask.any() else 1
        assert row["iou_per_image"] == overlap
    for name in ("iou_per_image", "dice_per_image", "thresholded_iou", "hd95", "surface_dice"):
        assert values[name] == pytest.approx(np.mean([row[name] for row in rows]), rel=1e-15)
    assert values["iou_pooled"] == tp.sum() / (tp + fp + fn).sum()
    assert values["dice_pooled"] == 2 * tp.sum() / (2 * tp + fp + fn).sum()
    assert values["pixel_accuracy"] == (tp + tn).sum() / (tp + fp + fn + tn).sum()
    assert values["sensitivity"] == tp.sum() / (tp + fn).sum()
    assert values["specificity"] == tn.sum() / (tn + fp).sum()
    high, low = (tp + fp).sum(), (fn + tn).sum()
    ece = (abs(0.9 * high - tp.sum()) + abs(0.1 * low - fn.sum())) / (high + low)
    assert values["ece"] == pytest.approx(ece, abs=1e-6)
    # Counts of sets add up, as those of folds must.
    calibrations = [score_cases(predict, subset, 0.5).ece_bins for subset in (cases[:1], cases[1:])]
    assert np.array_equal(calibrations[0] + calibrations[1], calibration)
    assert calibration_error(calibration) == values["ece"]


def test_order_of_cases_changes_nothing(cases: list[Case]) -> None:
    random = np.random.default_rng(1)
    predict = make_lookup_predictor(
        [0.6 * random.random(mask.shape) + 0.4 * mask for mask in MASKS]
    )
    rows, values, calibration, _ = score_cases(predict, cases, 0.5)
    assert 0 < values["iou_per_image"] < 1
    other = score_cases(predict, cases[::-1], 0.5)
    assert other.values == values
    assert other.rows == rows[::-1]
    assert np.array_equal(other.ece_bins, calibration)


def test_each_case_is_handed_over_with_its_prediction_and_scores(cases: list[Case]) -> None:
    predict = make_lookup_predictor([rolled * 0.8 + 0.1 for rolled in ROLLED])
    handed: list[ScoredCase] = []
    rows = score_cases(predict, cases, 0.5, on_case=handed.append).rows
    assert [scored.case for scored in handed] == cases
    assert [row for scored in handed for row in scored.rows] == rows
    for i, scored in enumerate(handed):
        assert (scored.image == i).all() and np.array_equal(scored.target, MASKS[i])
        assert np.array_equal(scored.prob, predict(scored.image).prob)
        assert np.array_equal(scored.pred, ROLLED[i])
        assert scored.dice == scored.rows[0]["dice_per_image"]


def test_all_background_finds_nothing(cases: list[Case]) -> None:
    predict = baseline_predictors(np.ones((1, 4, 4)))["all_background"]
    rows, values, *_ = score_cases(predict, cases, 0.5)
    assert all(row["tp"] == row["fp"] == 0 for row in rows)
    assert [row["dice_per_image"] for row in rows] == [0, 0, 0, 1]
    assert (values["sensitivity"], values["specificity"]) == (0, 1)
    share = sum(row["fn"] for row in rows) / sum(row["fn"] + row["tn"] for row in rows)
    assert values["ece"] == pytest.approx(share, rel=1e-12)
    diagonals = [math.hypot(*shape) for shape in SHAPES]
    assert [row["hd95"] for row in rows] == [*diagonals[:3], 0]


def test_mean_mask_is_resized_to_the_image() -> None:
    mean = np.array([[[0.9, 0.4], [0.4, 0.4]]])
    predict = baseline_predictors(mean)["mean_mask"]
    along = np.array([1, 1, 0.875, 0.625, 0.375, 0.125, 0, 0])
    prob = predict(np.zeros((8, 2, 3), np.uint8)).prob
    np.testing.assert_allclose(prob, 0.4 + 0.5 * np.outer(along, [1, 0])[None], atol=1e-6)


def test_otsu_is_skimages() -> None:
    predict = baseline_predictors(np.zeros((1, 2, 2)))["otsu"]
    bright = np.random.default_rng(0).integers(200, 250, (*SHAPES[0], 3), np.uint8)
    image = np.where(MASKS[0][..., None], bright - np.uint8(120), bright)
    light = rgb2gray(image)
    assert np.array_equal(predict(image).prob[0], light <= threshold_otsu(light))
    assert np.array_equal(predict(image).prob[0], MASKS[0])
    for value in (0, 93, 255):  # a constant image has no threshold
        assert not predict(np.full((6, 8, 3), value, np.uint8)).prob.any()


def test_scores_are_of_cleaned_masks_and_calibration_of_probabilities(tmp_path: Path) -> None:
    lesion = np.zeros((12, 12), bool)
    lesion[2:8, 2:8] = True
    prob = lesion * 0.9
    prob[4, 4], prob[11, 11] = 0.1, 0.9
    cases = write_cases(tmp_path, [lesion])
    rough, cleaned = (
        score_cases(make_lookup_predictor([prob]), cases, 0.5, inference)
        for inference in (DEFAULT_INFERENCE, Inference(largest_component=True, fill_holes=True))
    )
    pixels = [[s.rows[0][k] for k in ("tp", "fp", "fn", "tn")] for s in (rough, cleaned)]
    assert pixels == [[35, 1, 1, 107], [36, 0, 0, 108]]
    assert (cleaned.values["hd95"], cleaned.values["surface_dice"]) == (0, 1)
    assert rough.values["surface_dice"] < 1
    assert np.array_equal(rough.ece_bins, cleaned.ece_bins)


def test_views_are_compared_before_postprocessing(tmp_path: Path) -> None:
    lesion = np.zeros((12, 12), bool)
    lesion[2:8, 2:8] = True
    spotted = lesion.copy()
    spotted[10:, 10:] = True
    views = [mask[None] * np.float32(0.9) for mask in (lesion, lesion, spotted)]
    mean = sum(views) / np.float32(3)
    prediction = Prediction(lambda: mean, tuple(lambda v=view: v for view in views))
    cases = write_cases(tmp_path, [lesion])
    inference = Inference(largest_component=True)
    (row,) = score_cases(lambda _: prediction, cases, 0.2, inference).rows
    assert (row["tp"], row["fp"]) == (36, 0)  # without the spot, whose mean is 0.3
    assert row["confidence"] == pytest.approx(2 * 36 * 0.9 / (36 * 0.9 + 4 * 0.3 + 36), abs=1e-7)
    assert row["view_dice"] == pytest.approx((1 + 2 * 72 / (36 + 40)) / 3, rel=1e-12)


def test_each_class_has_a_confidence() -> None:
    prob = np.array([[[0.6, 0.2, 0.1]], [[0.3, 0.7, 0.1]], [[0.1, 0.1, 0.8]]], np.float32)
    other = prob[[0, 2, 1]]
    views = (lambda: prob, lambda: other)
    rows = measure_confidence(Prediction(lambda: prob, views), predicted_mask(prob, 0.5), 0.5)
    expected = [2 * p / (total + 1) for p, total in ((0.6, 0.9), (0.7, 1.1), (0.8, 1.0))]
    assert [row["confidence"] for row in rows] == pytest.approx(expected, abs=1e-7)
    assert [row["view_dice"] for row in rows] == [1, 0, 0]
