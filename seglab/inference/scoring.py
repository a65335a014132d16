"""Scores at native resolution, for networks and trivial baselines, and a network's cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from skimage.color import rgb2gray
from skimage.filters import threshold_otsu

from seglab.data.cases import Case
from seglab.inference.postprocessing import Predictor, predicted_mask
from seglab.inference.predictor import predictions, resize_probabilities
from seglab.metrics.boundary import boundary_scores
from seglab.metrics.scores import (
    CALIBRATION_BINS,
    calibration_counts,
    calibration_error,
    class_scores,
    confusion_counts,
    scores,
)


class Scored(NamedTuple):
    """What `score_cases` finds.

    Attributes:
        rows: One a case: id, diagnosis, pixel counts and its own scores. Of several classes one a
            case and class, background too.
        values: Scores of the whole set, as `seglab.metrics.scores.scores` and `boundary_scores` name
            them (of the latter the means over images), and `ece`.
        calibration: int64 (15, 3), `calibration_counts` of all pixels. Those of several sets may
            be added, which their `ece` may not.
        classes: Of several classes, the scores of each but background, against the rest.
    """

    rows: list[dict[str, Any]]
    values: dict[str, float]
    calibration: np.ndarray
    classes: dict[str, dict[str, float]]


def baseline_predictors(mean_mask: np.ndarray) -> dict[str, Predictor]:
    """What a network must beat.

    Args:
        mean_mask: Float (C, S, S): share of training cases that have each channel's class at each
            pixel.

    Returns:
        Predictors by name: `all_background`; `mean_mask`, the training masks' mean; in the binary
        case also `otsu`, what is darker than Otsu's threshold of the grey image (Otsu 1979).
    """
    mean = torch.from_numpy(np.asarray(mean_mask, np.float32))[None]
    is_binary = mean.shape[1] == 1
    background = torch.zeros_like(mean)
    if not is_binary:
        background[:, 0] = 1

    def otsu(image: np.ndarray) -> np.ndarray:
        grey = rgb2gray(image)
        dark = grey <= threshold_otsu(grey) if grey.min() < grey.max() else np.zeros_like(grey)
        return dark[None].astype(np.float32)

    return {
        "all_background": lambda image: resize_probabilities(background, image.shape[:2]),
        "mean_mask": lambda image: resize_probabilities(mean, image.shape[:2]),
        **({"otsu": otsu} if is_binary else {}),
    }


def score_cases(
    predict: Predictor,
    cases: Sequence[Case],
    threshold: float,
    name: str = "scoring",
    postprocessing: Mapping[str, bool] = {},
    on_case: Callable[[Case, np.ndarray, np.ndarray, list[dict[str, Any]]], None] | None = None,
) -> Scored:
    """Scores cases against their untouched masks.

    Args:
        predict: From image to probability, both at native size.
        cases: At least one, all of the same classes.
        threshold: Probability above which a pixel is lesion; of no use with several classes.
        name: For the progress bar.
        postprocessing: Of the masks, as in `seglab.inference.postprocessing.predicted_mask`; calibration is that of the
            probabilities all the same.
        on_case: Called after each case with the case, its probabilities (C, H, W), its predicted
            mask (H, W) and its rows.

    Raises:
        InputError: A case cannot be read, or its prediction is not finite.
    """
    classes = cases[0].classes
    rows: list[dict[str, Any]] = []
    counts: dict[int, list[np.ndarray]] = {number: [] for number in classes.numbers}
    boundaries: dict[int, list[dict[str, float]]] = {number: [] for number in classes.numbers}
    bins = np.zeros((CALIBRATION_BINS, 3), np.int64)
    for case, prob, mask in predictions(predict, cases, name):
        pred = predicted_mask(prob, threshold, postprocessing)
        most_probable = np.array(classes.numbers, np.uint8)[prob.argmax(0)]
        bins += calibration_counts(prob.max(0), most_probable == mask)
        for number, class_name in zip(classes.numbers, classes.names, strict=True):
            pred_of_class, target = pred == number, mask == number
            pixels = confusion_counts(pred_of_class, target)
            boundary = boundary_scores(pred_of_class, target)
            counts[number].append(pixels)
            boundaries[number].append(boundary)
            overlaps = scores(pixels[None])
            rows.append(
                {
                    "id": case.id,
                    "diagnosis": case.diagnosis,
                    **({"class": class_name} if classes.is_multiclass else {}),
                    **dict(zip(("tp", "fp", "fn", "tn"), pixels.tolist(), strict=True)),
                    **{k: v for k, v in overlaps.items() if not k.endswith("_pooled")},
                    **boundary,
                }
            )
        if on_case is not None:
            on_case(case, prob, pred, rows[-len(classes.numbers) :])
    # fsum is exactly rounded, so the order of the cases does not matter.
    by_class = {
        class_name: scores(np.stack(counts[number]))
        | {
            key: math.fsum(one[key] for one in boundaries[number]) / len(cases)
            for key in boundaries[number][0]
        }
        for number, class_name in classes.foreground.items()
    }
    values = {
        key: math.fsum(own[key] for own in by_class.values()) / len(by_class)
        for key in next(iter(by_class.values()))
    }
    if classes.is_multiclass:
        values |= class_scores(np.stack([np.stack(each) for each in counts.values()], 1))
    ece = {"ece": calibration_error(bins)}
    return Scored(rows, values | ece, bins, by_class if classes.is_multiclass else {})
