"""Scores at native resolution, for networks and trivial baselines, and a network's cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from skimage.color import rgb2gray
from skimage.filters import threshold_otsu

from seglab.data.cases import Case
from seglab.inference.postprocessing import Predictor, predicted_mask
from seglab.inference.predictor import predictions, resized
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
        mean_mask: float (S, S): share of training cases with lesion at each pixel; of several
            classes (K, S, S), of each.

    Returns:
        Predictors by name: `all_background`; `mean_mask`, the training masks' mean; of one class
        `otsu`, what is darker than Otsu's threshold of the grey image (Otsu 1979).
    """
    mean = torch.from_numpy(np.asarray(mean_mask, np.float32))[None]
    if mean.ndim == 4:
        background = torch.zeros_like(mean)
        background[:, 0] = 1
        return {
            "all_background": lambda image: resized(background, image.shape),
            "mean_mask": lambda image: resized(mean, image.shape),
        }
    mean = mean[None]

    def otsu(image: np.ndarray) -> np.ndarray:
        grey = rgb2gray(image)
        if grey.min() == grey.max():
            return np.zeros(grey.shape, np.float32)
        return (grey <= threshold_otsu(grey)).astype(np.float32)

    return {
        "all_background": lambda image: np.zeros(image.shape[:2], np.float32),
        "mean_mask": lambda image: resized(mean, image.shape[:2]),
        "otsu": otsu,
    }


def score_cases(
    predict: Predictor,
    cases: Sequence[Case],
    threshold: float,
    name: str = "scoring",
    postprocessing: Mapping[str, bool] = {},
) -> Scored:
    """Scores cases against their untouched masks.

    Args:
        predict: From image to probability, both at native size.
        cases: At least one, all of the same classes.
        threshold: Probability above which a pixel is lesion; of no use with several classes.
        name: For the progress bar.
        postprocessing: Of the masks, as in `seglab.inference.postprocessing.predicted_mask`; calibration is that of the
            probabilities all the same.

    Raises:
        InputError: A case cannot be read, or its prediction is not finite.
    """
    names = cases[0].classes.names
    is_multiclass = len(names) > 1
    rows: list[dict[str, Any]] = []
    every: list[list[np.ndarray]] = [[] for _ in names]
    outlines: list[list[dict[str, float]]] = [[] for _ in names]
    bins = np.zeros((CALIBRATION_BINS, 3), np.int64)
    for case, prob, mask in predictions(predict, cases, name):
        pred = predicted_mask(prob.numpy(), threshold, postprocessing)
        if is_multiclass:
            parts = [(pred == number, mask == number) for number in range(len(names))]
            bins += calibration_counts(prob.numpy().max(0), prob.numpy().argmax(0) == mask)
        else:
            parts = [(pred, mask)]
            bins += calibration_counts(prob.numpy(), mask)
        for number, (found, there) in enumerate(parts):
            counts = confusion_counts(found, there)
            every[number].append(counts)
            outlines[number].append(boundary_scores(found, there))
            own = {k: v for k, v in scores(counts[None]).items() if not k.endswith("_pooled")}
            pixels = dict(zip(("tp", "fp", "fn", "tn"), counts.tolist(), strict=True))
            metadata = {"id": case.id, "diagnosis": case.diagnosis}
            metadata |= {"class": names[number]} if is_multiclass else {}
            rows.append(metadata | pixels | own | outlines[number][-1])
    # fsum is exactly rounded, so the order of the cases does not matter.
    each = [
        scores(np.stack(counts))
        | {key: math.fsum(one[key] for one in lines) / len(cases) for key in lines[0]}
        for counts, lines in zip(every, outlines, strict=True)
    ]
    ece = {"ece": calibration_error(bins)}
    if not is_multiclass:
        return Scored(rows, each[0] | ece, bins, {})
    values = {key: math.fsum(own[key] for own in each[1:]) / len(each[1:]) for key in each[0]}
    values |= class_scores(np.stack([np.stack(counts) for counts in every], 1))
    return Scored(rows, values | ece, bins, dict(zip(names[1:], each[1:], strict=True)))
