"""Scores at native resolution, for networks and trivial baselines, and a network's cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.seed import isolate_rng
from skimage.color import rgb2gray
from skimage.filters import threshold_otsu
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from seglab.boundary import boundary_scores
from seglab.data.cache import read_pair
from seglab.data.cases import Case
from seglab.data.images import image_to_network_size
from seglab.errors import InputError
from seglab.metrics import (
    CALIBRATION_BINS,
    calibration_counts,
    calibration_error,
    confusion_counts,
    scores,
)
from seglab.nets.blocks import as_written

# From an image uint8 (H, W, 3) to lesion probability float32 (H, W) in [0, 1].
Predictor = Callable[[np.ndarray], np.ndarray]


class Scored(NamedTuple):
    """What `score_cases` finds.

    Attributes:
        rows: One a case: id, diagnosis, pixel counts and its own scores.
        values: Scores of the whole set, as `seglab.metrics.scores` and `boundary_scores` name
            them (of the latter the means over images), and `ece`.
        calibration: int64 (15, 3), `calibration_counts` of all pixels. Those of several sets may
            be added, which their `ece` may not.
    """

    rows: list[dict[str, Any]]
    values: dict[str, float]
    calibration: torch.Tensor


def network_predictor(net: nn.Module, size: int, device: torch.device | str = "cpu") -> Predictor:
    """Makes a predictor of a network: resize, network, sigmoid, resize back.

    Images pass one by one and in float32, so that a value depends on nothing but the image.

    Args:
        net: From images (1, 3, S, S) in [0, 1] to logits (1, 1, S, S); put into eval mode.
        size: S, in pixels.
        device: Where to compute.
    """
    net = net.to(device).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    @torch.inference_mode()
    def predict(image: np.ndarray) -> np.ndarray:
        small = torch.from_numpy(image_to_network_size(image, size)).to(device)
        with torch.backends.cudnn.flags(deterministic=True):
            logits = net(small[None].permute(0, 3, 1, 2).float() / 255)
        return _resized(torch.sigmoid(logits.float()), image.shape[:2])

    return predict


@torch.no_grad()
def multiply_adds(net: nn.Module, size: int) -> int:
    """Counts the multiply-adds of one image's forward pass, in eval mode.

    They are those of convolutions, matrix products and attention; biases, normalisation,
    activations and pooling are not counted, as is usual, and nothing is taken off for how seglab's
    own networks save some of them (`seglab.nets.blocks.convolve_upsampled`). The network stays as
    it is, and so do all random generators.

    Args:
        net: From images (1, 3, S, S) to logits, on any device.
        size: S, in pixels.
    """
    image = torch.zeros(1, 3, size, size, device=next(net.parameters()).device)
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    training = [module for module in net.modules() if module.training]
    net.eval()
    counter = FlopCounterMode(display=False)
    with isolate_rng(include_cuda=image.is_cuda), as_written(), counter:
        functional_call(net, buffers, image)
    for module in training:
        module.training = True
    # It counts two operations a multiply-add.
    return counter.get_total_flops() // 2


def baseline_predictors(mean_mask: np.ndarray) -> dict[str, Predictor]:
    """What a network must beat.

    Args:
        mean_mask: float (S, S): share of training cases with lesion at each pixel.

    Returns:
        Predictors by name: `all_background`; `mean_mask`, the training masks' mean; `otsu`, what
        is darker than Otsu's threshold of the grey image (Otsu 1979).
    """
    mean = torch.from_numpy(np.asarray(mean_mask, np.float32))[None, None]

    def otsu(image: np.ndarray) -> np.ndarray:
        grey = rgb2gray(image)
        if grey.min() == grey.max():
            return np.zeros(grey.shape, np.float32)
        return (grey <= threshold_otsu(grey)).astype(np.float32)

    return {
        "all_background": lambda image: np.zeros(image.shape[:2], np.float32),
        "mean_mask": lambda image: _resized(mean, image.shape[:2]),
        "otsu": otsu,
    }


def score_cases(
    predict: Predictor, cases: Sequence[Case], threshold: float, name: str = "scoring"
) -> Scored:
    """Scores cases against their untouched masks.

    Args:
        predict: From image to lesion probability, both at native size.
        cases: At least one.
        threshold: Probability above which a pixel is lesion.
        name: For the progress bar.

    Raises:
        InputError: A case cannot be read, or its prediction is not finite.
    """
    rows, every, outlines = [], [], []
    bins = torch.zeros(CALIBRATION_BINS, 3, dtype=torch.int64)
    for case in tqdm(cases, name, unit="case", disable=None, leave=False):
        image, mask = read_pair(case)
        prob, target = torch.from_numpy(predict(image)), torch.from_numpy(mask)
        if not prob.isfinite().all():
            raise InputError(
                f"{case.image}: the network gives no number for some of its pixels; its weights "
                "are ruined, train it again"
            )
        pred = prob > threshold
        counts = confusion_counts(pred[None], target[None])
        bins += calibration_counts(prob, target)
        every.append(counts)
        outlines.append(boundary_scores(pred.numpy(), mask))
        own = {k: v for k, v in scores(counts).items() if not k.endswith("_pooled")}
        pixels = dict(zip(("tp", "fp", "fn", "tn"), counts[0].tolist(), strict=True))
        rows.append({"id": case.id, "diagnosis": case.diagnosis} | pixels | own | outlines[-1])
    # fsum is exactly rounded, so the order of the cases does not matter.
    means = {key: math.fsum(one[key] for one in outlines) / len(cases) for key in outlines[0]}
    values = scores(torch.cat(every)) | means | {"ece": calibration_error(bins)}
    return Scored(rows, values, bins)


def _resized(prob: torch.Tensor, shape: tuple[int, ...]) -> np.ndarray:
    """From (1, 1, S, S) to (H, W), bilinearly."""
    large = F.interpolate(prob, shape[:2], mode="bilinear", align_corners=False)
    return large[0, 0].cpu().numpy()
