"""Scores at native resolution, for networks and for trivial baselines."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from skimage.color import rgb2gray
from skimage.filters import threshold_otsu

from seglab.data.cases import Case
from seglab.data.classes import Classes
from seglab.data.resizing import resize_probabilities
from seglab.data.sets import join_sets
from seglab.inference.postprocessing import (
    Prediction,
    Predictor,
    measure_confidence,
    predicted_mask,
)
from seglab.inference.predictor import predict_cases
from seglab.metrics.boundary import boundary_scores
from seglab.metrics.confidence import RISK_METRICS, risk_scores
from seglab.metrics.scores import (
    BOUNDARY_METRICS,
    COUNT_METRICS,
    PIXEL_COUNTS,
    calibration_counts,
    calibration_error,
    class_scores,
    confusion_counts,
    scores,
)
from seglab.schema import DEFAULT_INFERENCE, Inference

_CASE_METRICS = [name for name in COUNT_METRICS if not name.endswith("_pooled")]
_SET_COLUMNS = (*PIXEL_COUNTS, *BOUNDARY_METRICS, "confidence", "dice_per_image")


@dataclass(frozen=True)
class PredictedCase:
    """A case with its prediction."""

    case: Case
    image: np.ndarray  # uint8 (H, W, 3)
    target: np.ndarray  # class numbers, uint8 (H, W)
    prob: np.ndarray  # float32 (C, H, W); (0, H, W) where it is unknown, as of all cases then
    pred: np.ndarray  # class numbers, uint8 (H, W)
    confidence: list[dict[str, float | None]]  # see `measure_confidence`


@dataclass(frozen=True)
class ScoredCase(PredictedCase):
    """A case with its prediction and its scores."""

    rows: list[dict[str, Any]]  # of test_cases.csv, one for each of `Classes.names`

    @property
    def dice(self) -> float:
        """Dice, the mean over all classes but background."""
        return self.mean("dice_per_image")

    def mean(self, column: str) -> float:
        """Return the mean of a column of `rows` over all classes but background."""
        numbers = self.case.classes.numbers
        return fmean(row[column] for k, row in zip(numbers, self.rows, strict=True) if k)


class Scores(NamedTuple):
    """Scores of a set of cases."""

    # Of all cases: id, diagnosis, with several classes the class (background included), pixel
    # counts, the scores of this case alone, and the confidence in its mask.
    rows: list[dict[str, Any]]
    # Of the whole set, by the names of `METRIC_DEFINITIONS`.
    values: dict[str, float]
    # int64 (15, 3), `calibration_counts` of all pixels. Those of several sets may be added. None
    # without probabilities; `values` then lack what needs them.
    ece_bins: np.ndarray | None
    # `values` of each class but background against the rest; empty in the binary case.
    classes: dict[str, dict[str, float]]


def baseline_predictors(mean_mask: np.ndarray) -> dict[str, Predictor]:
    """Make predictors that need no network: `all_background`, `mean_mask` and, if binary, `otsu`.

    `mean_mask`, float (C, S, S), is the share of training cases that have each channel's class at
    each pixel. `otsu` finds what is darker than Otsu's threshold of the grey image (Otsu 1979).
    """
    mean_prob = np.asarray(mean_mask, np.float32)
    is_binary = len(mean_prob) == 1
    background = np.zeros_like(mean_prob)
    if not is_binary:
        background[0] = 1

    def resize(prob: np.ndarray, image: np.ndarray) -> Prediction:
        return Prediction(partial(resize_probabilities, prob, image.shape[:2]))

    def otsu(image: np.ndarray) -> Prediction:
        grey = rgb2gray(image)
        dark = grey <= threshold_otsu(grey) if grey.min() < grey.max() else np.zeros_like(grey)
        return Prediction(lambda: dark[None].astype(np.float32))

    return {
        "all_background": partial(resize, background),
        "mean_mask": partial(resize, mean_prob),
        **({"otsu": otsu} if is_binary else {}),
    }


def score_cases(
    predict: Predictor,
    cases: Sequence[Case],
    threshold: float,
    inference: Inference = DEFAULT_INFERENCE,
    name: str = "scoring",
    on_case: Callable[[ScoredCase], None] | None = None,
) -> Scores:
    """Score predictions against the cases' untouched masks.

    Args:
        predict: Maps an image to its prediction.
        cases: At least one, all with the same classes.
        threshold: See `predicted_mask`.
        inference: Its post-processing is applied to the masks; calibration is that of the
            probabilities all the same.
        name: For the progress bar.
        on_case: Called with each case after it is scored, in the order of `cases`.

    Raises:
        InputError: A case cannot be read or predicted.
    """

    def predicted() -> Iterator[PredictedCase]:
        for case, image, target, prediction in predict_cases(predict, cases, name):
            pred = predicted_mask(prediction.prob, threshold, inference)
            confidence = measure_confidence(prediction, pred, threshold)
            yield PredictedCase(case, image, target, prediction.prob, pred, confidence)

    return score_predictions(predicted(), on_case)


def score_predictions(
    predicted: Iterable[PredictedCase], on_case: Callable[[ScoredCase], None] | None = None
) -> Scores:
    """Score predicted masks, of at least one case, against the cases' untouched masks.

    A thread scores cases while the next are predicted. `on_case` is called as by `score_cases`.
    """
    rows: list[dict[str, Any]] = []
    bins: np.ndarray | None = None
    waiting: deque[tuple[PredictedCase, Future[Any]]] = deque()

    def take() -> None:
        """Add the scores of the first case that is waiting."""
        nonlocal bins, rows
        found, scored = waiting.popleft()
        case_rows, counts = scored.result()
        rows += case_rows
        if counts is not None:
            bins = counts if bins is None else bins + counts
        if on_case is not None:
            on_case(ScoredCase(**vars(found), rows=case_rows))

    with ThreadPoolExecutor(1) as pool:
        for found in predicted:
            waiting.append((found, pool.submit(_score_case, found)))
            if len(waiting) > 2:  # each is a picture in memory
                take()
        classes = found.case.classes
        while waiting:
            take()
    values, by_class = _score_set(rows, classes)
    if bins is not None:
        values["ece"] = calibration_error(bins)
    return Scores(rows, values, bins, by_class if classes.is_multiclass else {})


def score_sets(
    predict: Predictor,
    cases: Sequence[Case],
    threshold: float,
    inference: Inference = DEFAULT_INFERENCE,
    name: str = "scoring",
    on_case: Callable[[ScoredCase], None] | None = None,
) -> dict[str, Scores]:
    """Score the cases of each data set apart, as `score_cases` does; by `Case.set`."""
    by_set: dict[str, list[Case]] = {}
    for case in cases:
        by_set.setdefault(case.set, []).append(case)
    return {
        data_set: score_cases(
            predict, own, threshold, inference, f"{name} {data_set}".rstrip(), on_case
        )
        for data_set, own in by_set.items()
    }


def summarize_sets(by_set: Mapping[str, Scores]) -> dict[str, Any]:
    """Return the parts of summary.json that hold test scores of each data set."""
    bins = {
        data_set: scored.ece_bins.tolist()
        for data_set, scored in by_set.items()
        if scored.ece_bins is not None
    }
    classes = {
        class_name: join_sets({name: scored.classes[class_name] for name, scored in by_set.items()})
        for class_name in next(iter(by_set.values())).classes
    }
    return {
        "test": join_sets({name: scored.values for name, scored in by_set.items()}),
        **({"calibration": {"test": bins.get("", bins)}} if bins else {}),
        **({"classes": classes} if classes else {}),
    }


def join_rows(by_set: Mapping[str, Scores]) -> list[dict[str, Any]]:
    """Join the rows of all data sets."""
    return [row for scored in by_set.values() for row in scored.rows]


def _score_set(
    rows: list[dict[str, Any]], classes: Classes
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Score all cases by their rows; returns the scores, and those of each foreground class."""
    channels = len(classes.names)
    columns = {name: np.array([row[name] for row in rows]) for name in _SET_COLUMNS}
    counts = np.stack([columns[name] for name in PIXEL_COUNTS], -1).reshape(-1, channels, 4)
    by_class = {}
    for number, class_name in classes.foreground.items():
        of_class = slice(classes.numbers.index(number), None, channels)
        boundary = {name: fmean(columns[name][of_class]) for name in BOUNDARY_METRICS}
        of_cases = scores(counts[:, of_class.start]) | boundary
        if None not in columns["confidence"]:
            confidence = columns["confidence"][of_class].astype(float)
            of_cases |= risk_scores(confidence, columns["dice_per_image"][of_class])
        by_class[class_name] = of_cases
    values = class_scores(counts) if classes.is_multiclass else scores(counts[:, 0])
    for name in (*BOUNDARY_METRICS, *RISK_METRICS):
        if all(name in scored for scored in by_class.values()):
            values[name] = fmean(scored[name] for scored in by_class.values())
    return values, by_class


def _score_case(found: PredictedCase) -> tuple[list[dict[str, Any]], np.ndarray | None]:
    """Score one case: rows, one for each class against the rest, and `calibration_counts`."""
    rows, case, classes = [], found.case, found.case.classes
    bins = None
    if len(found.prob):
        if classes.is_multiclass:
            is_right = np.array(classes.numbers, np.uint8)[found.prob.argmax(0)] == found.target
            bins = calibration_counts(found.prob.max(0), is_right)
        else:
            bins = calibration_counts(found.prob[0], found.target == 1)
    channels = zip(classes.numbers, classes.names, found.confidence, strict=True)
    for number, class_name, columns in channels:
        pred_k, target_k = found.pred == number, found.target == number
        counts = confusion_counts(pred_k, target_k)
        overlap = scores(counts[None])
        rows.append(
            {
                "id": case.id,
                **({"set": case.set} if case.set else {}),
                "diagnosis": case.diagnosis,
                **({"class": class_name} if case.classes.is_multiclass else {}),
                **dict(zip(PIXEL_COUNTS, counts.tolist(), strict=True)),
                **{metric: overlap[metric] for metric in _CASE_METRICS},
                **boundary_scores(pred_k, target_k),
                **columns,
            }
        )
    return rows, bins
