"""Scores at native resolution, of predictors with known answers and of baselines."""

import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.predicting import make_lookup_predictor, write_cases
from helpers.tiny import write_ph2_case
from skimage.color import rgb2gray
from skimage.filters import threshold_otsu

from seglab.config import DEFAULT_INFERENCE, Inference
from seglab.core.errors import InputError
from seglab.data.cases import Case
from seglab.data.layouts import find_cases
from seglab.inference.postprocessing import Predictor
from seglab.inference.scoring import ScoredCase, baseline_predictors, score_cases
from seglab.metrics.scores import calibration_counts, calibration_error

Pictures = dict[str, tuple[np.ndarray, np.ndarray]]  # image and mask by id
# Sizes differ from case to case, and no image is square.
SHAPES = {"IMD001": (20, 30), "IMD002": (21, 28), "IMD003": (18, 33), "IMD004": (25, 24)}


def disc(shape: tuple[int, int], y: float, x: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return (rows - y) ** 2 + (columns - x) ** 2 < radius**2


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    """Dark discs on bright noise; the last case has no lesion."""
    random = np.random.default_rng(0)
    out = {}
    for i, (id, shape) in enumerate(SHAPES.items()):
        mask = disc(shape, 8 + i, 12, 4 + i) if i < 3 else np.zeros(shape, bool)
        image = random.integers(150, 250, (*shape, 3))
        out[id] = (np.where(mask[..., None], image - 120, image).astype(np.uint8), mask)
    return out


@pytest.fixture(scope="module")
def cases(pictures: Pictures, tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    root = tmp_path_factory.mktemp("PH2Dataset")
    for id, (image, mask) in pictures.items():
        write_ph2_case(root, id, image, mask)
    lines = [
        f"|| {id} || || {i % 3} || 0 | T | A | A | A | A || 3 ||" for i, id in enumerate(SHAPES)
    ]
    (root / "PH2_dataset.txt").write_text("\r\n".join(lines))
    return find_cases(root)


def case_of(folder: Path, image: np.ndarray, mask: np.ndarray) -> Case:
    write_ph2_case(folder, "IMD009", image, mask)
    return find_cases(folder)[0]


def knowing(pictures: Pictures, answer: Callable[[np.ndarray], np.ndarray]) -> Predictor:
    """A predictor that looks the image up and answers from its mask."""

    def predict(image: np.ndarray) -> np.ndarray:
        (mask,) = (m for i, m in pictures.values() if np.array_equal(i, image))
        return answer(mask)[None].astype(np.float32)

    return predict


def grey(pixels: int, shape: tuple[int, int] = (4, 6)) -> np.ndarray:
    return np.full((*shape, 3), pixels, np.uint8)


def test_rows_hold_the_counts_by_hand(tmp_path: Path) -> None:
    mask = np.zeros((4, 6), bool)
    mask[:2, :3] = True
    prob = np.full((4, 6), 0.5, np.float32)  # at the threshold: background
    prob[1:3, :2] = 0.51
    case = case_of(tmp_path, grey(7), mask)
    rows, values, calibration, _ = score_cases(lambda image: prob[None], [case], 0.5)
    own = {
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
    counts = {"tp": 2, "fp": 2, "fn": 4, "tn": 16}
    assert rows == [{"id": "IMD009", "diagnosis": "unknown"} | counts | own]
    # 20 pixels at 0.5, of which 4 are lesion, and 4 at 0.51, of which 2: one bin, [7/15, 8/15).
    ece = abs((20 * 0.5 + 4 * 0.51) - 6) / 24
    pooled = {"iou_pooled": 2 / 8, "dice_pooled": 4 / 10, "ece": pytest.approx(ece, abs=1e-7)}
    assert values == own | pooled
    assert list(values)[-4:] == ["thresholded_iou", "hd95", "surface_dice", "ece"]
    in_one_bin = [24, 6, 20 * 2**23 + 4 * round(float(np.float32(0.51)) * 2**24)]
    assert calibration.dtype == np.int64
    assert calibration.tolist() == [in_one_bin if k == 7 else [0, 0, 0] for k in range(15)]


def test_set_values_are_those_of_the_rows(cases: list[Case], pictures: Pictures) -> None:
    predict = knowing(pictures, lambda mask: np.roll(mask, 3, axis=1) * 0.8 + 0.1)
    rows, values, calibration, _ = score_cases(predict, cases, 0.5)
    assert [row["id"] for row in rows] == list(SHAPES)
    kinds = ["common nevus", "atypical nevus", "melanoma", "common nevus"]
    assert [row["diagnosis"] for row in rows] == kinds
    tp, fp, fn, tn = (np.array([row[k] for row in rows]) for k in ("tp", "fp", "fn", "tn"))
    for row, (_, mask), *counts in zip(rows, pictures.values(), tp, fp, fn, tn, strict=True):
        rolled = np.roll(mask, 3, axis=1)
        hand = [mask & rolled, rolled & ~mask, mask & ~rolled, ~mask & ~rolled]
        assert counts == [np.count_nonzero(part) for part in hand]
        assert sum(counts) == mask.size
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
    parts = [score_cases(predict, part, 0.5).calibration for part in (cases[:1], cases[1:])]
    assert np.array_equal(parts[0] + parts[1], calibration)
    assert calibration_error(calibration) == values["ece"]
    expected = sum(calibration_counts(predict(image)[0], mask) for image, mask in pictures.values())
    assert np.array_equal(calibration, expected)


def test_order_of_cases_changes_nothing(cases: list[Case], pictures: Pictures) -> None:
    random = np.random.default_rng(1)
    noise = {mask.shape: random.random(mask.shape) for _, mask in pictures.values()}
    predict = knowing(pictures, lambda mask: 0.6 * noise[mask.shape] + 0.4 * mask)
    rows, values, calibration, _ = score_cases(predict, cases, 0.5)
    assert 0 < values["iou_per_image"] < 1
    other = score_cases(predict, cases[::-1], 0.5)
    assert other.values == values
    assert other.rows == rows[::-1]
    assert np.array_equal(other.calibration, calibration)


def test_each_case_is_handed_over_with_its_prediction_and_scores(
    cases: list[Case], pictures: Pictures
) -> None:
    predict = knowing(pictures, lambda mask: np.roll(mask, 3, axis=1) * 0.8 + 0.1)
    handed: list[ScoredCase] = []
    rows = score_cases(predict, cases, 0.5, on_case=handed.append).rows
    assert [scored.case for scored in handed] == cases
    assert [row for scored in handed for row in scored.rows] == rows
    for scored, (image, mask) in zip(handed, pictures.values(), strict=True):
        assert np.array_equal(scored.image, image) and np.array_equal(scored.target, mask)
        assert np.array_equal(scored.prob, predict(image))
        assert scored.pred.dtype == np.uint8
        assert np.array_equal(scored.pred, np.roll(mask, 3, axis=1))
        assert scored.dice == scored.rows[0]["dice_per_image"]


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    case = case_of(tmp_path, grey(7, (4, 6)), np.zeros((6, 4), bool))
    with pytest.raises(InputError, match=re.escape(str(case.mask))):
        score_cases(lambda image: np.zeros((1, *image.shape[:2]), np.float32), [case], 0.5)


def test_all_background_finds_nothing(cases: list[Case]) -> None:
    predict = baseline_predictors(np.ones((1, 4, 4)))["all_background"]
    rows, values, *_ = score_cases(predict, cases, 0.5)
    assert all(row["tp"] == row["fp"] == 0 for row in rows)
    assert [row["dice_per_image"] for row in rows] == [0, 0, 0, 1]
    assert (values["sensitivity"], values["specificity"]) == (0, 1)
    share = sum(row["fn"] for row in rows) / sum(row["fn"] + row["tn"] for row in rows)
    assert values["ece"] == pytest.approx(share, rel=1e-12)
    diagonals = [math.hypot(*shape) for shape in SHAPES.values()]
    assert [row["hd95"] for row in rows] == [*diagonals[:3], 0]


def test_mean_mask_is_resized_to_the_image() -> None:
    mean = np.array([[[0.9, 0.4], [0.4, 0.4]]])
    predict = baseline_predictors(mean)["mean_mask"]
    along = np.array([1, 1, 0.875, 0.625, 0.375, 0.125, 0, 0])
    prob = predict(grey(7, (8, 2)))
    assert prob.dtype == np.float32
    np.testing.assert_allclose(prob, 0.4 + 0.5 * np.outer(along, [1, 0])[None], atol=1e-6)
    assert np.array_equal(predict(grey(0, (2, 2))), mean.astype(np.float32))


def test_otsu_is_skimages(pictures: Pictures) -> None:
    predict = baseline_predictors(np.zeros((1, 2, 2)))["otsu"]
    for id, (image, mask) in pictures.items():
        prob, light = predict(image), rgb2gray(image)
        assert prob.dtype == np.float32
        assert np.array_equal(prob, (light <= threshold_otsu(light))[None])
        assert (id == "IMD004") or np.array_equal(prob[0] > 0.5, mask)
    for value in (0, 93, 255):  # a constant image has no threshold
        assert not predict(grey(value, (6, 8))).any()


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
    assert np.array_equal(rough.calibration, cleaned.calibration)
