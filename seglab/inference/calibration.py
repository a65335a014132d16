"""Expected Dice of a mask from its confidence, and a bound that a stated share keeps. No torch."""

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import isotonic_regression

from seglab.core.errors import InputError, printable
from seglab.core.files import hash_file, read_json, write_json
from seglab.inference.familiarity import N_FEATURES, Familiarity
from seglab.runs.paths import RunPaths, refuse_damaged
from seglab.runs.tables import parse_number
from seglab.schema import Inference, read_inference

log = logging.getLogger(__name__)

LEVEL = 0.9  # share of like images for which a lower bound holds, unless another is asked for
# Added to 1 - confidence, so that a confidence of 1 does not promise a Dice of 1.
MARGIN = 0.02


class CalibrationCase(NamedTuple):
    """A case that a network was not trained on; both values are means over foreground classes."""

    id: str
    confidence: float
    dice: float


class Assessment(NamedTuple):
    """What a calibration says of a mask; columns of the CSV files that `evaluate` writes.

    The first two hold only where `familiar` is True: the image looks like the training images.
    """

    expected_dice: float
    lower_bound: float
    familiar: bool


@dataclass(frozen=True)
class Calibration:
    """What the confidence of a mask says about its Dice, from cases whose Dice is known.

    Both hold for pictures like these cases, and for masks of the same networks and settings.

    Attributes:
        cases: At least one.
        networks: SHA-256 of the checkpoints that predicted them.
        inference: Settings that they were predicted with.
        features: `picture_features` of the images that the networks were trained on.
    """

    cases: tuple[CalibrationCase, ...]
    networks: tuple[str, ...]
    inference: Inference
    features: tuple[tuple[float, ...], ...]

    def expected_dice(self, confidence: ArrayLike) -> np.ndarray:
        """Return the Dice to expect, float64 of the shape of `confidence`.

        Isotonic regression of Dice on confidence, linear between the cases. Below the lowest
        confidence of a case a straight line leads to 0.
        """
        return np.interp(np.asarray(confidence, float), *self._curve)

    def lower_bound(self, confidence: ArrayLike, level: float = LEVEL) -> np.ndarray:
        """Return a bound that the Dice exceeds or equals, float64 of the shape of `confidence`.

        Split conformal prediction (Vovk et al. 2005; Lei et al. 2018), one-sided: if the cases and
        a new one are exchangeable, the bound holds with a probability of at least `level`. The
        score (1 - Dice) / (1 - confidence + 0.02) needs no fit, so all cases count for the bound;
        it makes the bound wider where the confidence is low. It is never above the expected Dice.

        Raises:
            InputError: There are too few cases for this level, or it is not between 0 and 1.
        """
        if not 0 < level < 1:
            raise InputError(f"level={level}: expected a share between 0 and 1, such as 0.9")
        n = len(self.cases)
        rank = math.ceil(round((n + 1) * level, 9))  # rounded: 20 * 0.55 is above 11 in float64
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

    def assess(self, confidence: float, image: np.ndarray, level: float = LEVEL) -> Assessment:
        """Assess the mask of an image, uint8 (H, W, 3), by its confidence."""
        return Assessment(
            float(self.expected_dice(confidence)),
            float(self.lower_bound(confidence, level)),
            self.familiarity.is_familiar(image),
        )

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
        if points[0] == 0:
            return points, fit
        return np.concatenate([[0.0], points]), np.concatenate([[0.0], fit])

    def to_json(self) -> dict[str, Any]:
        """Return plain containers, for :func:`parse_calibration`."""
        return {
            "networks": list(self.networks),
            "inference": asdict(self.inference),
            "cases": [case._asdict() for case in self.cases],
            "features": [list(values) for values in self.features],
        }


def cases_needed(level: float) -> int:
    """Return the least number of cases for which `Calibration.lower_bound` has this level."""
    return math.ceil(round(level / (1 - level), 9))


def parse_calibration(stored: Mapping[str, Any], file: Path) -> Calibration:
    """Read a calibration from plain containers of an untrusted file.

    Raises:
        InputError: Its inference settings are wrong, see `read_inference`.
        ValueError, LookupError, TypeError: Another value is missing or wrong.
    """
    cases = tuple(
        CalibrationCase(
            printable(str(case["id"])), parse_number(case["confidence"]), parse_number(case["dice"])
        )
        for case in stored["cases"]
    )
    if not cases or not all(0 <= value <= 1 for case in cases for value in case[1:]):
        raise ValueError("expected cases with confidence and Dice from 0 to 1")
    features = tuple(tuple(map(parse_number, values)) for values in stored["features"])
    if len(features) < 2 or {*map(len, features)} != {N_FEATURES}:
        raise ValueError(f"expected {N_FEATURES} features of each image, and two images")
    networks = tuple(map(str, stored["networks"]))
    return Calibration(cases, networks, read_inference(stored["inference"], file), features)


def find_calibration(checkpoint: Path, inference: Inference) -> Calibration | None:
    """Find the calibration of a run's checkpoint, in its sweep's folder or its own.

    Raises an InputError if one is damaged.
    """
    folders = reversed(checkpoint.absolute().parents[1:3])  # the sweep's before the run's
    found = {RunPaths(folder).calibration: read_calibration(folder) for folder in folders}
    known = {file: calibration for file, calibration in found.items() if calibration}
    return choose_calibration(known, hash_file(checkpoint), inference)


def choose_calibration(
    known: Mapping[Path, Calibration], sha256: str, inference: Inference
) -> Calibration | None:
    """Return the first that holds for a checkpoint and settings; a warning says if none does.

    Args:
        known: Calibrations, by the files that hold them.
        sha256: Of the checkpoint.
        inference: Settings that it predicts with.
    """
    mismatches = []
    for file, calibration in known.items():
        changed = [
            f"inference.{key}={value}"
            for key, value in asdict(calibration.inference).items()
            if value != getattr(inference, key)
        ]
        if sha256 not in calibration.networks:
            mismatches.append(f"{file}: was made for other networks")
        elif changed:
            mismatches.append(f"{file}: was made with {', '.join(changed)}")
        else:
            return calibration
    for mismatch in mismatches:
        _warn_once(f"{mismatch}, so it is not used")
    return None


@cache
def _warn_once(message: str) -> None:
    """Log a warning that each member of an ensemble gives rise to."""
    log.warning("%s", message)


def read_calibration(folder: Path) -> Calibration | None:
    """Read calibration.json of a run or sweep; None if there is none.

    Raises:
        InputError: It is damaged.
    """
    paths = RunPaths(folder)
    if not paths.calibration.exists():
        return None
    with refuse_damaged(paths.calibration) as file:
        return parse_calibration(read_json(file), file)


def write_calibration(folder: Path, calibration: Calibration, **results: Any) -> None:
    """Write calibration.json of a run or sweep, with results about it that nothing reads."""
    write_json(RunPaths(folder).calibration, calibration.to_json() | results)
