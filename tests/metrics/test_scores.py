"""Counts and scores against sets of pixels, torchmetrics and values worked out by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from torchmetrics.functional.classification import (
    binary_accuracy,
    binary_calibration_error,
    binary_f1_score,
    binary_jaccard_index,
    binary_recall,
    binary_specificity,
    confusion_matrix,
)
from torchmetrics.functional.segmentation import dice_score, mean_iou

from seglab.metrics.scores import (
    COUNT_METRICS,
    calibration_counts,
    calibration_error,
    class_scores,
    confusion_counts,
    mean_terms,
    ratio_of_sums,
    score_terms,
    scores,
)


@st.composite
def mask_pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and targets (N, H, W), some of them empty or full."""
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5)))
    pair = []
    for _ in range(2):
        masks = draw(arrays(bool, shape))
        for i in range(shape[0]):
            fill = draw(st.sampled_from([None, None, False, True]))
            if fill is not None:
                masks[i] = fill
        pair.append(masks)
    return pair[0], pair[1]


def lesions(mask: np.ndarray) -> set[tuple[int, int]]:
    return {(y, x) for y, row in enumerate(mask.tolist()) for x, lesion in enumerate(row) if lesion}


def by_hand(pred: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """Scores of (N, H, W) by their definitions, with sets of pixels."""
    n, height, width = pred.shape
    ious, dices, pools = [], [], [set(), set()]
    for i in range(n):
        a, b = lesions(pred[i]), lesions(target[i])
        ious.append(len(a & b) / len(a | b) if a | b else 1.0)
        dices.append(2 * len(a & b) / (len(a) + len(b)) if a or b else 1.0)
        for pool, pixels in zip(pools, (a, b), strict=True):
            pool |= {(i, *pixel) for pixel in pixels}
    a, b = pools
    grid = {(i, y, x) for i in range(n) for y in range(height) for x in range(width)}
    right = {pixel for pixel in grid if (pixel in a) == (pixel in b)}
    return {
        "pixel_accuracy": len(right) / len(grid),
        "iou_per_image": float(np.mean(ious)),
        "dice_per_image": float(np.mean(dices)),
        "iou_pooled": len(a & b) / len(a | b) if a | b else 1.0,
        "dice_pooled": 2 * len(a & b) / (len(a) + len(b)) if a or b else 1.0,
        "sensitivity": len(a & b) / len(b) if b else 1.0,
        "specificity": len(grid - a - b) / len(grid - b) if grid - b else 1.0,
        "thresholded_iou": float(np.mean([iou if iou >= 0.65 else 0 for iou in ious])),
    }


def count(pred: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Counts (N, 4) of masks (N, H, W)."""
    return np.stack([confusion_counts(*pair) for pair in zip(pred, target, strict=True)])


def class_counts(pred: np.ndarray, target: np.ndarray, classes: int) -> np.ndarray:
    """Counts (N, K, 4) of class numbers (N, H, W)."""
    return np.stack([count(pred == k, target == k) for k in range(classes)], 1)


def test_confusion_counts_by_hand() -> None:
    pred = np.array([[1, 1, 0], [0, 0, 0]], bool)
    target = np.array([[1, 0, 1], [1, 0, 0]], bool)
    counts = confusion_counts(pred, target)
    assert counts.dtype == np.int64
    assert counts.tolist() == [1, 1, 2, 2]
    assert confusion_counts(np.ones((2, 3), bool), np.zeros((2, 3), bool)).tolist() == [0, 6, 0, 0]


@settings(deadline=None, max_examples=40)
@given(mask_pairs())
def test_scores_are_those_of_sets(pair: tuple[np.ndarray, np.ndarray]) -> None:
    values = scores(count(*pair))
    assert tuple(values) == COUNT_METRICS
    assert values == pytest.approx(by_hand(*pair), rel=1e-12, abs=0)
    assert all(0 <= value <= 1 for value in values.values())


@settings(deadline=None, max_examples=40)
@given(mask_pairs())
def test_scores_are_torchmetrics_own(pair: tuple[np.ndarray, np.ndarray]) -> None:
    pred, target = (torch.from_numpy(mask).long() for mask in pair)
    values = scores(count(*pair))
    pooled = {"pixel_accuracy": binary_accuracy(pred, target).item()}
    if target.any():
        pooled["sensitivity"] = binary_recall(pred, target).item()
    if not target.all():
        pooled["specificity"] = binary_specificity(pred, target).item()
    if pred.any() or target.any():
        pooled["iou_pooled"] = binary_jaccard_index(pred, target).item()
        pooled["dice_pooled"] = binary_f1_score(pred, target).item()
    assert {name: values[name] for name in pooled} == pytest.approx(pooled, abs=1e-6)
    options = {"num_classes": 2, "include_background": False, "input_format": "index"}
    # Nothing over nothing is undefined there, 1 here.
    dice = dice_score(pred, target, **options).nan_to_num(1).mean()
    iou = mean_iou(pred, target, **options).nan_to_num(1).mean()
    assert values["dice_per_image"] == pytest.approx(dice.item(), abs=1e-6)
    assert values["iou_per_image"] == pytest.approx(iou.item(), abs=1e-6)


@pytest.mark.parametrize(
    "counts, overlap", [((0, 0, 0, 9), 1.0), ((0, 4, 0, 5), 0.0), ((0, 0, 4, 5), 0.0)]
)
def test_empty_masks(counts: tuple[int, int, int, int], overlap: float) -> None:
    values = scores(np.array([counts]))
    for name in ("iou_per_image", "dice_per_image", "iou_pooled", "dice_pooled", "thresholded_iou"):
        assert values[name] == overlap


def test_thresholded_iou_fails_an_image_below_065_alone() -> None:
    # All ways to write 13 / 20, and the nearest below.
    for k in range(1, 2000):
        at = scores(np.array([[13 * k, 7 * k, 0, 1]]))
        assert at["thresholded_iou"] == at["iou_per_image"] == 0.65
        below = scores(np.array([[13 * k - 1, 0, 7 * k + 1, 1]]))
        assert below["thresholded_iou"] == 0 < below["iou_per_image"] < 0.65
    values = scores(np.array([[65, 35, 0, 0], [6_499_999, 3_500_001, 0, 0], [9, 1, 0, 5]]))
    assert values["thresholded_iou"] == pytest.approx((0.65 + 0 + 0.9) / 3, rel=1e-15)


def test_counts_beyond_float32_are_exact() -> None:
    # 2 ** 24 + 1 is no float32.
    assert scores(np.array([[2**24 + 1, 0, 0, 0]]))["iou_pooled"] == 1
    assert scores(np.array([[2**24 + 1, 1, 0, 2**40]]))["iou_pooled"] == (2**24 + 1) / (2**24 + 2)


def test_terms_score_every_subset() -> None:
    counts = np.random.default_rng(0).integers(1, 10_000, (2, 3, 6, 4))
    counts[1, 2, 4:] = 0  # two images that were not tested
    all_terms = score_terms(counts)
    assert tuple(all_terms) == COUNT_METRICS
    for i, j in np.ndindex(2, 3):
        alone = scores(counts[i, j, :4] if (i, j) == (1, 2) else counts[i, j])
        assert {name: ratio_of_sums(terms[i, j]) for name, terms in all_terms.items()} == alone
    values = np.array([1e16, 1.0, -1e16, 7.0])
    assert ratio_of_sums(mean_terms(values, np.array([True, True, True, False]))) == 1 / 3


@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_scores_of_several_classes_are_those_of_torchmetrics(data: st.DataObject) -> None:
    shape = data.draw(array_shapes(min_dims=3, max_dims=3, max_side=5))
    elements = st.integers(0, 3)
    pred, target = (data.draw(arrays(np.int64, shape, elements=elements)) for _ in range(2))
    values = class_scores(class_counts(pred, target, 4))
    tensors = torch.from_numpy(pred), torch.from_numpy(target)
    matrix = confusion_matrix(*tensors, "multiclass", num_classes=4).numpy()
    assert values["pixel_accuracy"] == pytest.approx(matrix.trace() / matrix.sum(), abs=1e-12)
    tp = np.diag(matrix)[1:]
    union = (matrix.sum(0) + matrix.sum(1))[1:] - tp
    iou = np.where(union > 0, tp / np.maximum(union, 1), 1)
    assert values["iou_pooled"] == pytest.approx(iou.mean(), abs=1e-12)


def test_scores_of_several_classes_by_hand() -> None:
    target = np.array([[0, 1, 1, 2], [0, 0, 0, 1]])
    pred = np.array([[0, 1, 2, 2], [0, 0, 1, 1]])
    values = class_scores(class_counts(pred, target, 3))
    # Class 1: 2/3 and 2/3. Class 2: 2/3, and in the second image nowhere: 1.
    assert values["dice_per_image"] == pytest.approx((2 / 3 + 2 / 3 + 2 / 3 + 1) / 4)
    assert values["dice_pooled"] == pytest.approx((4 / 6 + 2 / 3) / 2)
    assert values["pixel_accuracy"] == 6 / 8


def ece_by_hand(prob: np.ndarray, target: np.ndarray) -> float:
    """15 bins [k / 15, (k + 1) / 15), the last one closed."""
    error = 0.0
    for k in range(15):
        upper = prob <= 1 if k == 14 else prob < (k + 1) / 15
        inside = (prob >= k / 15) & upper
        if inside.any():
            error += inside.mean() * abs(prob[inside].mean() - target[inside].mean())
    return float(error)


@settings(deadline=None, max_examples=40)
@given(
    prob=arrays(np.float32, (2, 4, 3), elements=st.integers(0, 1024).map(lambda k: k / 1024)),
    target=arrays(bool, (2, 4, 3)),
)
def test_ece_is_the_textbooks(prob: np.ndarray, target: np.ndarray) -> None:
    ours = calibration_error(calibration_counts(prob, target))
    assert ours == pytest.approx(ece_by_hand(prob.astype(float), target), abs=1e-12)
    assert 0 <= ours <= 1
    counts = [calibration_counts(*pair) for pair in zip(prob, target, strict=True)]
    assert calibration_error(counts[0] + counts[1]) == ours


def test_ece_is_that_of_torchmetrics() -> None:
    random = np.random.default_rng(0)
    prob = random.random((7, 40, 40), np.float32)
    target = random.random(prob.shape) < prob**2
    ours = calibration_error(calibration_counts(prob, target))
    tensors = torch.from_numpy(prob).double(), torch.from_numpy(target).int()
    theirs = binary_calibration_error(*tensors, n_bins=15, norm="l1")
    assert ours == pytest.approx(theirs.item(), abs=1e-7)
    assert ours > 0.01


def test_calibration_counts_by_hand() -> None:
    prob = np.array([[0.0, 1.0, 0.5, 0.5, 0.125]], np.float32)
    counts = calibration_counts(prob, np.array([[0, 1, 1, 0, 1]], bool))
    assert counts.dtype == np.int64
    assert counts.shape == (15, 3)
    unit = 2**24
    filled = {0: [1, 0, 0], 1: [1, 1, unit // 8], 7: [2, 1, unit], 14: [1, 1, unit]}
    assert counts.tolist() == [filled.get(k, [0, 0, 0]) for k in range(15)]
    assert calibration_error(np.zeros((15, 3), int)) == 0
