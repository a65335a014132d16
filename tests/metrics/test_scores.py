"""Metrics against sets, numpy and torchmetrics; bit-equal however the images come."""

from __future__ import annotations

import inspect
import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor
from torchmetrics.functional.classification import (
    binary_accuracy,
    binary_calibration_error,
    binary_f1_score,
    binary_jaccard_index,
    binary_recall,
    binary_specificity,
)
from torchmetrics.functional.segmentation import dice_score, mean_iou

import seglab
from seglab.metrics.scores import (
    CalibrationError,
    PerImageMean,
    calibration_counts,
    calibration_error,
    confusion_counts,
    scores,
    segmentation_metrics,
)

NAMES = {
    "pixel_accuracy",
    "iou_per_image",
    "dice_per_image",
    "iou_pooled",
    "dice_pooled",
    "sensitivity",
    "specificity",
    "thresholded_iou",
}


@st.composite
def mask_pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Predictions and targets (N, H, W), some of them empty or full."""
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5)))
    pair = []
    for _ in range(2):
        masks = draw(arrays(bool, shape))
        for i in range(shape[0]):
            fill = draw(st.sampled_from([None, None, False, True]))
            if fill is not None:
                masks[i] = fill
        pair.append(torch.from_numpy(masks))
    return pair[0], pair[1]


def random_masks(seed: int = 0, n: int = 7, edge: int = 9) -> tuple[Tensor, Tensor]:
    """Probabilities float32 and targets int, (N, 1, edge, edge); the last image has no lesion."""
    generator = torch.Generator().manual_seed(seed)
    prob = torch.rand(n, 1, edge, edge, generator=generator)
    target = (torch.rand(n, 1, edge, edge, generator=generator) < prob).int()
    prob[-1] *= 0.4
    target[-1] = 0
    return prob, target


def lesions(mask: Tensor) -> set[tuple[int, int]]:
    return {(y, x) for y, row in enumerate(mask.tolist()) for x, lesion in enumerate(row) if lesion}


def by_hand(pred: Tensor, target: Tensor) -> dict[str, float]:
    """Scores of (N, H, W) as evaluation.md defines them, with sets of pixels."""
    n, height, width = pred.shape
    ious, dices, everywhere = [], [], [set(), set()]
    for i in range(n):
        a, b = lesions(pred[i]), lesions(target[i])
        ious.append(len(a & b) / len(a | b) if a | b else 1.0)
        dices.append(2 * len(a & b) / (len(a) + len(b)) if a or b else 1.0)
        for pool, pixels in zip(everywhere, (a, b), strict=True):
            pool |= {(i, *pixel) for pixel in pixels}
    a, b = everywhere
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


def row(tp: int, fp: int, fn: int, tn: int) -> Tensor:
    return torch.tensor([[tp, fp, fn, tn]])


def image_pair(tp: int, fp: int, fn: int, tn: int) -> tuple[Tensor, Tensor]:
    """Prediction and target (1, 1, pixels) with these counts."""
    pred = [True] * (tp + fp) + [False] * (fn + tn)
    target = [True] * tp + [False] * fp + [True] * fn + [False] * tn
    return torch.tensor([[pred]]), torch.tensor([[target]])


def test_confusion_counts_by_hand() -> None:
    pred = torch.tensor([[[1, 1, 0], [0, 0, 0]], [[1, 1, 1], [1, 1, 1]]]).bool()
    target = torch.tensor([[[1, 0, 1], [1, 0, 0]], [[0, 0, 0], [0, 0, 0]]]).bool()
    counts = confusion_counts(pred, target)
    assert counts.dtype == torch.int64
    assert counts.tolist() == [[1, 1, 2, 2], [0, 6, 0, 0]]
    assert confusion_counts(pred[:, None], target[:, None]).equal(counts)


@settings(deadline=None, max_examples=40)
@given(mask_pairs())
def test_scores_are_those_of_sets(pair: tuple[Tensor, Tensor]) -> None:
    values = scores(confusion_counts(*pair))
    assert set(values) == NAMES
    assert values == pytest.approx(by_hand(*pair), rel=1e-12, abs=0)
    assert all(0 <= value <= 1 for value in values.values())


@settings(deadline=None, max_examples=40)
@given(mask_pairs())
def test_scores_are_torchmetrics_own(pair: tuple[Tensor, Tensor]) -> None:
    pred, target = (mask.long() for mask in pair)
    values = scores(confusion_counts(*pair))
    pooled = {"pixel_accuracy": binary_accuracy(pred, target).item()}
    if target.any():
        pooled["sensitivity"] = binary_recall(pred, target).item()
    if not target.all():
        pooled["specificity"] = binary_specificity(pred, target).item()
    if pred.any() or target.any():
        pooled["iou_pooled"] = binary_jaccard_index(pred, target).item()
        pooled["dice_pooled"] = binary_f1_score(pred, target).item()
    assert {name: values[name] for name in pooled} == pytest.approx(pooled, abs=1e-6)
    ask = {"num_classes": 2, "include_background": False, "input_format": "index"}
    # Nothing over nothing is undefined there, 1 here.
    dice = dice_score(pred, target, **ask).nan_to_num(1).mean()
    iou = mean_iou(pred, target, **ask).nan_to_num(1).mean()
    assert values["dice_per_image"] == pytest.approx(dice.item(), abs=1e-6)
    assert values["iou_per_image"] == pytest.approx(iou.item(), abs=1e-6)


@settings(deadline=None, max_examples=40)
@given(mask_pairs())
def test_dice_is_bounded_by_iou(pair: tuple[Tensor, Tensor]) -> None:
    values = scores(confusion_counts(*pair))
    bound = {k: 2 * values[k] / (1 + values[k]) for k in ("iou_per_image", "iou_pooled")}
    assert values["dice_per_image"] <= bound["iou_per_image"] + 1e-12
    assert values["dice_pooled"] == pytest.approx(bound["iou_pooled"], rel=1e-12)
    assert values["iou_per_image"] <= values["dice_per_image"] + 1e-12
    assert values["thresholded_iou"] <= values["iou_per_image"]


@pytest.mark.parametrize(
    "counts, overlap, sensitivity, specificity",
    [
        ((0, 0, 0, 9), 1.0, 1.0, 1.0),  # both empty
        ((0, 4, 0, 5), 0.0, 1.0, 5 / 9),  # nothing there, something found
        ((0, 0, 4, 5), 0.0, 0.0, 1.0),  # something there, nothing found
        ((9, 0, 0, 0), 1.0, 1.0, 1.0),  # all lesion
        ((0, 9, 0, 0), 0.0, 1.0, 0.0),
    ],
)
def test_empty_masks(
    counts: tuple[int, int, int, int], overlap: float, sensitivity: float, specificity: float
) -> None:
    pair = image_pair(*counts)
    assert confusion_counts(*pair).tolist() == [list(counts)]
    values = scores(confusion_counts(*pair))
    for name in ("iou_per_image", "dice_per_image", "iou_pooled", "dice_pooled", "thresholded_iou"):
        assert values[name] == overlap
    assert values["sensitivity"] == sensitivity
    assert values["specificity"] == specificity
    assert values["pixel_accuracy"] == (counts[0] + counts[3]) / 9


def test_pooled_and_per_image_values_are_different_things() -> None:
    # A large lesion found, a small one missed.
    values = scores(torch.tensor([[80, 10, 10, 0], [0, 0, 10, 90]]))
    assert values["iou_per_image"] == pytest.approx((0.8 + 0) / 2)
    assert values["iou_pooled"] == pytest.approx(80 / 110)
    assert values["dice_per_image"] == pytest.approx((160 / 180 + 0) / 2)
    assert values["dice_pooled"] == pytest.approx(160 / 190)
    assert values["sensitivity"] == pytest.approx(80 / 100)
    assert values["specificity"] == pytest.approx(90 / 100)
    assert values["pixel_accuracy"] == pytest.approx(170 / 200)
    assert values["thresholded_iou"] == pytest.approx(0.4)


def test_thresholded_iou_fails_an_image_below_065_alone() -> None:
    # All ways to write 13 / 20, and the nearest below.
    for k in range(1, 2000):
        at = scores(row(13 * k, 7 * k, 0, 1))
        assert at["thresholded_iou"] == at["iou_per_image"] == 0.65
        below = scores(row(13 * k - 1, 0, 7 * k + 1, 1))
        assert below["thresholded_iou"] == 0 < below["iou_per_image"] < 0.65
    values = scores(torch.tensor([[65, 35, 0, 0], [6_499_999, 3_500_001, 0, 0], [9, 1, 0, 5]]))
    assert values["thresholded_iou"] == pytest.approx((0.65 + 0 + 0.9) / 3, rel=1e-15)


def test_counts_beyond_float32_are_exact() -> None:
    # 2 ** 24 + 1 is no float32.
    assert scores(row(2**24 + 1, 0, 0, 0))["iou_pooled"] == 1
    assert scores(row(2**24 + 1, 1, 0, 2**40))["iou_pooled"] == (2**24 + 1) / (2**24 + 2)


def ece_by_hand(prob: np.ndarray, target: np.ndarray) -> float:
    """15 bins [k / 15, (k + 1) / 15), the last one closed."""
    error = 0.0
    for k in range(15):
        upper = prob <= 1 if k == 14 else prob < (k + 1) / 15
        held = (prob >= k / 15) & upper
        if held.any():
            error += held.mean() * abs(prob[held].mean() - target[held].mean())
    return float(error)


@settings(deadline=None, max_examples=40)
@given(
    prob=arrays(np.float32, (2, 4, 3), elements=st.integers(0, 1024).map(lambda k: k / 1024)),
    target=arrays(bool, (2, 4, 3)),
)
def test_ece_is_the_textbooks(prob: np.ndarray, target: np.ndarray) -> None:
    ours = calibration_error(calibration_counts(torch.from_numpy(prob), torch.from_numpy(target)))
    assert ours == pytest.approx(ece_by_hand(prob.astype(float), target), abs=1e-12)
    assert 0 <= ours <= 1
    metric = CalibrationError()
    metric.update(torch.from_numpy(prob[:1, None]), torch.from_numpy(target[:1, None]).int())
    metric.update(torch.from_numpy(prob[1:, None]), torch.from_numpy(target[1:, None]).float())
    assert metric.compute().item() == ours


@pytest.mark.parametrize("seed", range(3))
def test_ece_is_that_of_lesion_probability_in_torchmetrics_too(seed: int) -> None:
    prob, target = random_masks(seed, edge=40)
    ours = calibration_error(calibration_counts(prob, target > 0))
    np.testing.assert_allclose(ours, ece_by_hand(prob.double().numpy(), target.numpy()), atol=1e-7)
    theirs = binary_calibration_error(prob.double(), target, n_bins=15, norm="l1")
    assert ours == pytest.approx(theirs.item(), abs=1e-7)
    assert ours > 0.01


def test_ece_by_hand() -> None:
    def ece(prob: list[float], target: list[int]) -> float:
        return calibration_error(calibration_counts(torch.tensor(prob), torch.tensor(target) > 0))

    assert ece([0.0, 1.0, 1.0], [0, 1, 1]) == 0
    assert ece([0.0, 1.0, 1.0], [1, 0, 0]) == 1
    assert ece([0.5, 0.5], [0, 1]) == 0
    assert ece([0.25, 0.25, 0.25, 0.75], [0, 0, 1, 1]) == pytest.approx((0.25 + 0.25) / 4)
    # 1 and 31 / 32 share the last bin, 0 and 1 / 32 the first: errors cancel there, not between.
    assert ece([1.0, 0.96875], [0, 1]) == pytest.approx(0.484375)
    assert ece([0.0, 0.03125], [0, 1]) == pytest.approx(0.484375)
    assert ece([0.0, 1.0], [1, 0]) == 1


def test_calibration_counts_by_hand() -> None:
    prob = torch.tensor([[0.0, 1.0, 0.5, 0.5, 0.125]])
    counts = calibration_counts(prob, torch.tensor([[0, 1, 1, 0, 1]]).bool())
    assert counts.dtype == torch.int64
    assert counts.shape == (15, 3)
    unit = 2**24
    filled = {0: [1, 0, 0], 1: [1, 1, unit // 8], 7: [2, 1, unit], 14: [1, 1, unit]}
    assert counts.tolist() == [filled.get(k, [0, 0, 0]) for k in range(15)]
    assert calibration_error(torch.zeros(15, 3).long()) == 0


def collected(
    prob: Tensor, target: Tensor, cuts: Sequence[Sequence[int]], threshold: float = 0.5
) -> dict[str, float]:
    """Values after updates with these images, batch by batch."""
    metrics = segmentation_metrics(threshold)
    for batch in cuts:
        metrics.update(prob[list(batch)], target[list(batch)])
    return {name: value.item() for name, value in metrics.compute().items()}


def test_names_say_the_stage_and_the_size() -> None:
    metrics = segmentation_metrics(0.5)
    assert set(metrics.keys()) == {f"{name}_net" for name in NAMES | {"ece"}}
    val = metrics.clone(prefix="val/")
    assert set(val.keys()) == {f"val/{name}_net" for name in NAMES | {"ece"}}
    assert not {"iou", "dice", "IoU", "Dice"} & {name.split("/")[-1] for name in val}


@pytest.mark.parametrize("threshold", [0.5, 0.3])
def test_collection_gives_what_the_functions_give(threshold: float) -> None:
    prob, target = random_masks()
    values = collected(prob, target, [range(7)], threshold)
    expected = scores(confusion_counts(prob > threshold, target > 0))
    assert expected == pytest.approx(by_hand((prob > threshold)[:, 0], target[:, 0]), rel=1e-12)
    ece = calibration_error(calibration_counts(prob, target > 0))
    assert values == {f"{k}_net": v for k, v in (expected | {"ece": ece}).items()}


def test_a_probability_at_the_threshold_is_background() -> None:
    prob, target = torch.full((1, 1, 2, 2), 0.5), torch.zeros(1, 1, 2, 2).int()
    assert collected(prob, target, [[0]])["dice_per_image_net"] == 1
    assert collected(prob, target, [[0]])["pixel_accuracy_net"] == 1
    above = torch.nextafter(prob, torch.ones(()))
    assert collected(above, target, [[0]])["dice_per_image_net"] == 0
    assert collected(above, target, [[0]])["pixel_accuracy_net"] == 0


@settings(deadline=None, max_examples=15)
@given(order=st.permutations(range(7)), cuts=st.sets(st.integers(1, 6)))
def test_batches_and_order_change_no_bit(order: list[int], cuts: set[int]) -> None:
    prob, target = random_masks()
    edges = [0, *sorted(cuts), 7]
    batches = [order[a:b] for a, b in itertools.pairwise(edges)]
    assert collected(prob, target, batches) == collected(prob, target, [range(7)])


def test_a_new_epoch_starts_from_nothing() -> None:
    metrics = segmentation_metrics(0.5)
    prob, target = random_masks(1)
    metrics.update(*random_masks(2))
    metrics.compute()
    metrics.reset()
    metrics.update(prob, target)
    values = {name: value.item() for name, value in metrics.compute().items()}
    assert values == collected(prob, target, [range(7)])


@settings(deadline=None, max_examples=40)
@given(
    values=st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=9),
    cut=st.integers(0, 9),
)
def test_mean_is_exactly_rounded(values: list[float], cut: int) -> None:
    metric = PerImageMean()
    for part in (values[:cut], values[cut:]):
        if part:
            metric.update(torch.tensor(part))
    assert metric.compute().item() == math.fsum(values) / len(values)


def test_mean_keeps_no_graph() -> None:
    metric = PerImageMean()
    loss = torch.tensor([1e8, 1.0, -1e8], requires_grad=True)
    metric.update(2 * loss)
    assert not any(value.requires_grad for value in metric.values)
    assert metric.compute().item() == 2 / 3


def as_device(rank: int, folder: Path, share: list[list[int]]) -> dict[str, float]:
    """Values that one of two devices reports, of which each updates with its own share."""
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", store, timedelta(seconds=120), rank=rank, world_size=2)
    try:
        prob, target, loss = torch.load(folder / "data.pt")
        metrics, mean = segmentation_metrics(0.5), PerImageMean()
        for batch in share:
            metrics.update(prob[batch], target[batch])
            mean.update(loss[batch])
        every = dict(metrics.items()) | {"loss": mean}
        return {name: metric.compute().item() for name, metric in every.items()}
    finally:
        dist.destroy_process_group()


def test_two_devices_with_uneven_shares_change_no_bit(tmp_path: Path) -> None:
    prob, target = random_masks()
    loss = torch.rand(7, generator=torch.Generator().manual_seed(0))
    torch.save((prob, target, loss), tmp_path / "data.pt")
    paths = [str(Path(seglab.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
    code = (
        "import json, sys; from datetime import timedelta; from pathlib import Path\n"
        "import torch; import torch.distributed as dist\n"
        "from seglab.metrics.scores import PerImageMean, segmentation_metrics\n"
        f"{inspect.getsource(as_device)}\n"
        "print(json.dumps(as_device(1, Path(sys.argv[1]), [[4, 2]])))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    other = subprocess.Popen(command, env=env, stdout=subprocess.PIPE)
    try:
        one = as_device(0, tmp_path, [[6, 0], [3], [1, 5]])
        two = json.loads(other.communicate(timeout=120)[0])
    finally:
        other.kill()
        other.wait()
    mean = PerImageMean()
    mean.update(loss)
    alone = collected(prob, target, [range(7)]) | {"loss": mean.compute().item()}
    assert one == alone
    assert two == alone
