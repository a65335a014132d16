"""Metric classes of torchmetrics: equal to the NumPy functions, however the images come."""

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
import torch
import torch.distributed as dist
from helpers.tiny import DEVICES
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import seglab
from seglab.metrics.modules import (
    PerImageMean,
    count_calibration,
    count_confusion,
    segmentation_metrics,
)
from seglab.metrics.scores import (
    COUNT_METRICS,
    calibration_counts,
    calibration_error,
    class_scores,
    confusion_counts,
    network_metric_names,
    scores,
)

CLASSES = ("background", "lesion", "streaks")


def random_masks(
    seed: int = 0, n: int = 7, edge: int = 9, classes: int = 1
) -> tuple[Tensor, Tensor]:
    """Probabilities and masks (n, 1, edge, edge); there is no lesion in the last image."""
    generator = torch.Generator().manual_seed(seed)
    prob = torch.rand(n, classes, edge, edge, generator=generator)
    if classes == 1:
        target = (torch.rand(n, 1, edge, edge, generator=generator) < prob).int()
        prob[-1] *= 0.4
    else:
        prob = torch.softmax(4 * prob, 1)
        target = torch.randint(classes, (n, 1, edge, edge), generator=generator)
    target[-1] = 0
    return prob, target


def confusion(pred: Tensor, target: Tensor) -> np.ndarray:
    """Counts (N, 4) by the NumPy function, image by image."""
    return np.stack(
        [confusion_counts(p.numpy(), t.numpy()) for p, t in zip(pred, target, strict=True)]
    )


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32), n=st.integers(1, 4), edge=st.integers(1, 9))
def test_counting_on_the_device_is_counting_in_numpy(seed: int, n: int, edge: int) -> None:
    prob, target = random_masks(seed, n, edge)
    prob[0, 0, 0, 0] = seed % 2
    pred, target = prob > 0.5, target > 0
    counts = count_confusion(pred, target)
    assert counts.dtype == torch.int64
    assert np.array_equal(counts.numpy(), confusion(pred, target))
    for same, device in itertools.product((prob, prob.double()), DEVICES):
        bins = count_calibration(same.to(device), target.to(device))
        assert bins.dtype == torch.int64
        assert np.array_equal(bins.cpu(), calibration_counts(same.numpy(), target.numpy()))


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
    names = [f"{name}_net" for name in (*COUNT_METRICS, "ece")]
    assert sorted(metrics.keys()) == sorted(network_metric_names(["lesion"])) == sorted(names)
    val = metrics.clone(prefix="val/")
    assert sorted(val.keys()) == sorted(f"val/{name}" for name in names)
    metrics = segmentation_metrics(0.5, CLASSES)
    more = [f"{m}_per_image_{c}_net" for m in ("dice", "iou") for c in CLASSES[1:]]
    assert sorted(metrics.keys()) == sorted(network_metric_names(CLASSES)) == sorted(names + more)


def test_collection_gives_what_the_functions_give() -> None:
    prob, target = random_masks()
    values = collected(prob, target, [range(7)], threshold=0.3)
    expected = scores(confusion(prob > 0.3, target > 0))
    expected["ece"] = calibration_error(calibration_counts(prob.numpy(), target.numpy() > 0))
    assert values == {f"{name}_net": value for name, value in expected.items()}


def test_collection_of_several_classes_gives_what_the_functions_give() -> None:
    prob, target = random_masks(classes=3)
    metrics = segmentation_metrics(0.5, CLASSES)
    metrics.update(prob[:3], target[:3])
    metrics.update(prob[3:], target[3:].float())
    values = {name: value.item() for name, value in metrics.compute().items()}
    confidence, pred = (array.numpy() for array in prob.max(1))
    masks = target[:, 0].numpy()
    counts = np.stack([confusion(prob.argmax(1) == k, target[:, 0] == k) for k in range(3)], 1)
    expected = class_scores(counts)
    expected["ece"] = calibration_error(calibration_counts(confidence, pred == masks))
    for k, name in enumerate(CLASSES[1:], 1):
        for metric in ("dice_per_image", "iou_per_image"):
            expected[f"{metric}_{name}"] = scores(counts[:, k])[metric]
    assert values == {f"{name}_net": value for name, value in expected.items()}


def test_a_probability_at_the_threshold_is_background() -> None:
    prob, target = torch.full((1, 1, 2, 2), 0.5), torch.zeros(1, 1, 2, 2).int()
    assert collected(prob, target, [[0]])["pixel_accuracy_net"] == 1
    above = torch.nextafter(prob, torch.ones(()))
    assert collected(above, target, [[0]])["pixel_accuracy_net"] == 0


@settings(deadline=None, max_examples=15)
@given(order=st.permutations(range(7)), cuts=st.sets(st.integers(1, 6)))
def test_batches_and_order_change_no_bit(order: list[int], cuts: set[int]) -> None:
    prob, target = random_masks()
    edges = [0, *sorted(cuts), 7]
    batches = [order[a:b] for a, b in itertools.pairwise(edges)]
    assert collected(prob, target, batches) == collected(prob, target, [range(7)])


@settings(deadline=None, max_examples=40)
@given(
    values=st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=9),
    cut=st.integers(0, 9),
)
def test_mean_is_exactly_rounded(values: list[float], cut: int) -> None:
    metric = PerImageMean()
    for batch in (values[:cut], values[cut:]):
        if batch:
            metric.update(torch.tensor(batch, requires_grad=True))
    assert not any(value.requires_grad for value in metric.values)
    assert metric.compute().item() == math.fsum(values) / len(values)


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
        "from seglab.metrics.modules import PerImageMean, segmentation_metrics\n"
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
