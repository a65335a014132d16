"""Figures of test cases, collected while they are scored."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from seglab.analysis.figures import (
    ERROR_LEGEND,
    ERROR_LEGEND_OF_CLASSES,
    colorize_mask,
    error_map,
    save_cases,
)
from seglab.data.classes import Classes
from seglab.inference.scoring import ScoredCase

FIRST_CASES = 5
WORST_CASES = 10
MAX_EDGE = 1000  # pixels; a figure shows no more


class CasePicture(NamedTuple):
    """Pictures of one scored case.

    Attributes:
        label: Id, diagnosis and Dice.
        dice: Dice; with several classes the mean over all but background.
        columns: Pictures by the title of their column, as in `save_cases`.
    """

    label: str
    dice: float
    columns: dict[str, np.ndarray]


class CasePictures:
    """Keeps pictures of the first test cases and of those with the lowest Dice.

    Args:
        classes: Classes of the masks.
    """

    def __init__(self, classes: Classes) -> None:
        self.classes = classes
        self.first: list[CasePicture] = []
        self.worst: list[CasePicture] = []

    def add(self, scored: ScoredCase) -> None:
        """Keeps a case's pictures as long as it is among those to be drawn."""
        dice = scored.dice
        is_first = len(self.first) < FIRST_CASES
        is_worst = len(self.worst) < WORST_CASES or dice < self.worst[-1].dice
        if not is_first and not is_worst:
            return
        step = 1 + max(scored.pred.shape) // MAX_EDGE
        image, target, pred, confidence = (
            array[::step, ::step].copy()
            for array in (scored.image, scored.target, scored.pred, scored.prob.max(0))
        )
        columns = {
            "image": image,
            "target": colorize_mask(target, self.classes),
            "prediction": colorize_mask(pred, self.classes),
            "confidence" if self.classes.is_multiclass else "probability": confidence,
            "errors": error_map(pred, target),
        }
        case = scored.case
        picture = CasePicture(f"{case.id}\n{case.diagnosis}\nDice {dice:.3f}", dice, columns)
        if is_first:
            self.first.append(picture)
        self.worst = sorted([*self.worst, picture], key=lambda p: p.dice)[:WORST_CASES]

    def save(self, folder: Path) -> None:
        """Writes predictions.png and worst.png."""
        legend = ERROR_LEGEND_OF_CLASSES if self.classes.is_multiclass else ERROR_LEGEND
        for name, pictures in (("predictions", self.first), ("worst", self.worst)):
            columns = {
                title: [picture.columns[title] for picture in pictures]
                for title in pictures[0].columns
            }
            save_cases(
                folder / f"{name}.png",
                columns,
                [picture.label for picture in pictures],
                note=f"errors: {legend}",
                legend=self.classes,
            )
