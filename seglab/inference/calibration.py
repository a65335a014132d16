"""Expected Dice of a mask from its confidence, and a bound for a share of images. No torch."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import isotonic_regression

from seglab.core.errors import InputError, printable
from seglab.core.files import read_json
from seglab.inference.familiarity import N_FEATURES, Familiarity, conformal_rank
from seglab.runs.paths import RunPaths, refuse_damaged
from seglab.runs.tables import parse_number
from seglab.schema import Inference, read_inference

LEVEL = 0.9  # share of like images for which a lower bound holds, unless another is asked for
# Added to 1 - confidence, so that a confidence of 1 does not promise a Dice of 1.
MARGIN = 0.02


class CalibrationCase(NamedTuple):
    """A case that a network was not trained on; both values are means over foreground classes."""

    id: str
    confidence: float
    dice: float


@dataclass(frozen=True)
class Calibration:
    """What the confidence of a mask says about its Dice, for images like some known cases.

    Attributes:
        cases: At least one.
        networks: SHA-256 of the checkpoints that predicted them.
        inference: Settings that they were predicted with.
        features: `image_features` of the images that the networks were trained on.
    """

    cases: tuple[CalibrationCase, ...]
    networks: tuple[str, ...]
    inference: Inference
    features: tuple[tuple[float, ...], ...]

    def expected_dice(self, confidence: ArrayLike) -> np.ndarray:
        """Return the Dice to expect, float64 of the shape of `confidence`.

        Isotonic regression, linear between the cases and from the lowest of them down to 0.
        """
        return np.interp(np.asarray(confidence, float), *self._curve)

    def lower_bound(self, confidence: ArrayLike, level: float = LEVEL) -> np.ndarray:
        """Return what Dice is not below, float64 of the shape of `confidence`.

        One-sided split conformal prediction (Lei et al. 2018): if the cases and a new one are
        exchangeable, the bound holds with a probability of at least `level`. The score
        (1 - Dice) / (1 - confidence + MARGIN) needs no fit, so that all cases count for the bound.
        It is never above the expected Dice.

        Raises:
            InputError: There are too few cases for this level, or it is not between 0 and 1.
        """
        if not 0 < level < 1:
            raise InputError(f"level={level}: expected a share between 0 and 1, such as 0.9")
        n = len(self.cases)
        rank = conformal_rank(n, level)
        if rank > n:
            raise InputError(
                f"level={level}: needs {cases_needed(level)} calibration cases, there are {n}; "
                f"choose a level of at most {math.floor(1000 * n / (n + 1)) / 1000}, or calibrate "
                "on more cases"
            )
        _, known_confidence, dice = zip(*self.cases, strict=True)
        scores = (1 - np.array(dice)) / (1 - np.array(known_confidence) + MARGIN)
        bound = 1 - np.sort(scores)[rank - 1] * (1 - np.asarray(confidence) + MARGIN)
        return np.minimum(bound, self.expected_dice(confidence)).clip(0)

    def assess(
        self, confidence: float, image: np.ndarray, level: float = LEVEL
    ) -> tuple[float, float, bool]:
        """Return expected Dice and its bound, in [0, 1], and whether the image is familiar.

        `confidence` is that of its mask, in [0, 1]; `image` is uint8 (H, W, 3).
        """
        expected, bound = self.expected_dice(confidence), self.lower_bound(confidence, level)
        return float(expected), float(bound), self.familiarity.is_familiar(image)

    def holds_for(self, sha256: str, inference: Inference) -> bool:
        """Whether it was made of this checkpoint, with these settings."""
        return sha256 in self.networks and inference == self.inference

    @cached_property
    def familiarity(self) -> Familiarity:
        """Tells whether an image looks like those that the networks were trained on."""
        return Familiarity(np.array(self.features))

    @cached_property
    def _curve(self) -> tuple[np.ndarray, np.ndarray]:
        """Confidence, rising, and fitted Dice; the first point is (0, 0)."""
        _, confidence, dice = zip(*self.cases, strict=True)
        points, index, n = np.unique(confidence, return_inverse=True, return_counts=True)
        fit = isotonic_regression(np.bincount(index, dice) / n, weights=n).x
        return np.concatenate([[0.0], points]), np.concatenate([[0.0], fit])

    def to_json(self) -> dict[str, Any]:
        """Return plain containers, for :func:`parse_calibration`."""
        return asdict(self) | {"cases": [case._asdict() for case in self.cases]}


def cases_needed(level: float) -> int:
    """Return the least number of cases for which `Calibration.lower_bound` has this level."""
    return math.ceil(round(level / (1 - level), 9))


def parse_calibration(stored: Mapping[str, Any], file: Path) -> Calibration:
    """Read plain containers of an untrusted file; raises some exception where they are damaged."""
    cases = tuple(
        CalibrationCase(
            printable(str(case["id"])), parse_number(case["confidence"]), parse_number(case["dice"])
        )
        for case in stored["cases"]
    )
    features = tuple(tuple(map(parse_number, values)) for values in stored["features"])
    if not cases or not all(0 <= value <= 1 for case in cases for value in case[1:]):
        raise ValueError("expected cases with confidence and Dice from 0 to 1")
    if len(features) < 2 or {*map(len, features)} != {N_FEATURES}:
        raise ValueError(f"expected {N_FEATURES} features of at least two images")
    networks = tuple(map(str, stored["networks"]))
    return Calibration(cases, networks, read_inference(stored["inference"], file), features)


def read_calibration(folder: Path) -> Calibration | None:
    """Read calibration.json of a run or sweep, None without; raises InputError if it is damaged."""
    if not RunPaths(folder).calibration.exists():
        return None
    with refuse_damaged(RunPaths(folder).calibration) as file:
        return parse_calibration(read_json(file), file)


def find_calibration(checkpoint: Path, sha256: str, inference: Inference) -> Calibration | None:
    """Find what holds for a run's checkpoint and settings, in its sweep's folder or its own."""
    for folder in reversed(checkpoint.absolute().parents[1:3]):  # the sweep's before the run's
        found = read_calibration(folder)
        if found and found.holds_for(sha256, inference):
            return found
    return None
