"""Predictors, test-time augmentation and the choice of the threshold."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.predicting import clean_by_skimage, make_lookup_predictor, write_cases
from skimage.transform import resize
from torch import Tensor, nn

from seglab.core.errors import InputError
from seglab.inference.predictor import make_predictor, tune_threshold
from seglab.inference.scoring import score_cases
from seglab.networks import UNet
from seglab.schema import DEFAULT_INFERENCE, Inference

POSTPROCESSING = Inference(largest_component=True, fill_holes=True)


class Fixed(nn.Module):
    """Answers every image with these probabilities, as logits."""

    def __init__(self, prob: list[list[float]]) -> None:
        super().__init__()
        self.logits = torch.logit(torch.tensor(prob))[None, None]

    def forward(self, image: Tensor) -> Tensor:
        assert image.shape == (1, 3, *self.logits.shape[2:])
        return self.logits


def test_probabilities_are_resized_and_then_cut(tmp_path: Path) -> None:
    # Weight of the first of two samples at 8 pixels, each sample in the middle of its half.
    along = np.array([1, 1, 0.875, 0.625, 0.375, 0.125, 0, 0])
    weight = np.outer(along, along)
    first_resized = 0.4 + 0.5 * weight > 0.5
    first_cut = weight > 0.5
    assert first_resized.sum() > first_cut.sum() + 5
    cases = write_cases(tmp_path, [first_resized])
    sure = make_predictor(Fixed([[0.999, 0.1], [0.1, 0.1]]), 2)(np.zeros((8, 8, 3), np.uint8)).prob
    np.testing.assert_allclose(sure, 0.1 + 0.899 * weight[None], atol=1e-6)  # not logits
    predict = make_predictor(Fixed([[0.9, 0.4], [0.4, 0.4]]), 2)
    rows, values, *_ = score_cases(predict, cases, 0.5)
    assert [rows[0][k] for k in ("tp", "fp", "fn")] == [first_resized.sum(), 0, 0]
    assert values["iou_per_image"] == 1


def test_unusable_weights_are_named() -> None:
    predict = make_predictor(Fixed([[float("nan")]]), 1)
    with pytest.raises(InputError, match="NaN"):
        predict(np.zeros((3, 3, 3), np.uint8))


class Noisy(nn.Module):
    """A network that gives other values in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 3, padding=1)
        self.norm = nn.BatchNorm2d(1)
        self.drop = nn.Dropout(0.5)

    def forward(self, image: Tensor) -> Tensor:
        return self.drop(self.norm(self.conv(image)))


def test_network_predictor_is_the_plain_computation() -> None:
    torch.manual_seed(0)
    net = Noisy()
    net.conv.weight.data.mul_(5)
    net.norm.running_mean.fill_(0.3)
    plain = copy.deepcopy(net).eval()
    predict = make_predictor(net.train(), 16)
    # Twice, and large ones after small ones: an image's value depends on nothing but the image.
    random = np.random.default_rng(0)
    shapes = [(20, 30), (21, 28), (18, 33), (16, 16)]
    images = [random.integers(30, 250, (*shape, 3)).astype(np.uint8) for shape in shapes]
    for image in [*images, *reversed(images)]:
        small = resize(image.astype(np.float32), (16, 16), order=1, anti_aliasing=True)
        x = torch.tensor(np.rint(small) / 255).permute(2, 0, 1)[None].float()
        with torch.no_grad():
            prob = torch.sigmoid(plain(x))
        size = image.shape[:2]
        expected = F.interpolate(prob, size, mode="bilinear", align_corners=False)[0].numpy()
        ours = predict(image).prob
        assert ours.dtype == np.float32
        assert np.ptp(expected) > 0.05
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)
    assert int(net.norm.num_batches_tracked) == 0


def test_tta_is_the_mean_of_eight_passes() -> None:
    torch.manual_seed(0)
    unet = UNet(width=4, depth=2)
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    plain, tta = make_predictor(unet, 32), make_predictor(unet, 32, tta=True)
    passes = []
    for k in range(4):
        passes.append(np.rot90(plain(np.rot90(image, k).copy()).prob[0], -k))
        mirrored = np.rot90(image[:, ::-1], k).copy()
        passes.append(np.rot90(plain(mirrored).prob[0], -k)[:, ::-1])
    assert np.ptp(passes, axis=0).max() > 0.01
    np.testing.assert_allclose(tta(image).prob[0], np.mean(passes, axis=0), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("default", "inference"),
    [(0.5, DEFAULT_INFERENCE), (0.42, POSTPROCESSING)],
    ids=["plain", "cleaned"],
)
def test_the_threshold_is_the_best_of_all(
    default: float, inference: Inference, tmp_path: Path
) -> None:
    random = np.random.default_rng(3)
    masks = [random.random((14, 17 + i)) < 0.3 for i in range(5)]
    masks[4][:] = False
    # On the thresholds' own values too: these pixels are background.
    probs = [
        np.round(0.5 * random.random(mask.shape) + 0.25 * mask, 2 if i % 2 else 6)
        for i, mask in enumerate(masks)
    ]
    cases = write_cases(tmp_path, masks)
    predict = make_lookup_predictor(probs)
    dice = {}
    for threshold in [*(k * 5 / 100 for k in range(1, 20)), default]:
        of_cases = []
        for prob, mask in zip(probs, masks, strict=True):
            pred = prob.astype(np.float32) > np.float32(threshold)
            pred = clean_by_skimage(pred, True, True) if inference.fill_holes else pred
            both = pred.sum() + mask.sum()
            of_cases.append(2 * (pred & mask).sum() / both if both else 1.0)
        dice[threshold] = np.mean(of_cases)
    found = tune_threshold(predict, cases, default, inference)
    assert type(found) is float
    assert dice[found] == pytest.approx(max(dice.values()), abs=1e-12)
    assert sum(value > max(dice.values()) - 1e-9 for value in dice.values()) == 1
    scored = score_cases(predict, cases, found, inference).values
    assert scored["dice_per_image"] == pytest.approx(dice[found], abs=1e-12)


def test_of_equal_thresholds_the_nearest_is_taken(tmp_path: Path) -> None:
    lesion = np.zeros((4, 4), bool)
    lesion[1:3, 1:3] = True
    cases = write_cases(tmp_path, [lesion, np.zeros((4, 4), bool)])
    sure = make_lookup_predictor([lesion * 1.0, np.zeros((4, 4))])
    for default in (0.5, 0.33, 0.97):
        assert tune_threshold(sure, cases, default, DEFAULT_INFERENCE) == default
    # A lesion that is found below 0.48, and a false alarm up to 0.52: 0.45 and 0.55 are as good.
    torn = make_lookup_predictor([lesion * 0.48, lesion * 0.52])
    assert tune_threshold(torn, cases, 0.5, DEFAULT_INFERENCE) == 0.45
    assert tune_threshold(torn, cases, 0.53, DEFAULT_INFERENCE) == 0.53
    assert tune_threshold(torn, cases, 0.51, DEFAULT_INFERENCE) == 0.55
