"""Calibrates the confidence of masks with the Dice of cases that finished runs have scored."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np

from seglab.analysis.figures import save_calibration
from seglab.analysis.tables import Table, format_plain
from seglab.core.errors import InputError
from seglab.core.files import expand_user, hash_file
from seglab.data.images import read_image
from seglab.inference.calibration import (
    LEVEL,
    Calibration,
    CalibrationCase,
    cases_needed,
    write_calibration,
)
from seglab.inference.evaluate import read_cases
from seglab.inference.familiarity import picture_features
from seglab.inference.models import find_members
from seglab.metrics.scores import score_terms
from seglab.runs.paths import RunPaths
from seglab.runs.records import Run, open_run
from seglab.runs.tables import CASE_COLUMNS, CaseValues, read_case_values
from seglab.schema import read_inference

log = logging.getLogger(__name__)

LEVELS = (0.8, 0.9, 0.95)
VAL_PARTS = 5  # of the val cases of a single run, which have no folds


def calibrate(
    path: str | Path, trust: tuple[str, ...] = (), moved_to: str | Path | None = None
) -> Calibration:
    """Calibrate the networks of a sweep or of a run, and write calibration.json and .png there.

    Of a sweep over folds the cases are its test cases, each predicted by a network that was not
    trained on it; over several seeds their values are averaged. Of a run they are its val cases,
    by which its epoch was chosen, so that they score a little higher than new ones.

    Args:
        path: A sweep that has finished all folds, or a run directory.
        trust: See `open_run`.
        moved_to: Where the data of the runs is today; None for where it was.

    Raises:
        InputError: A fold is missing, there are no val cases, or a file cannot be read.
    """
    folder = expand_user(path)
    runs = [open_run(member, trust, moved_to) for member in find_members(folder)]
    is_run = runs[0].folder == folder
    parts = _split_val(runs[0]) if is_run else _split_folds(folder, runs)
    kind = "val" if is_run else "out-of-fold"
    n = sum(map(len, parts))
    if n < cases_needed(LEVEL):
        raise InputError(
            f"{folder}: has {n} {kind} cases; expected at least {cases_needed(LEVEL)}, which the "
            f"bound for {LEVEL:.0%} needs: more cases, or a sweep over data.split.fold"
        )
    seen = {id for run in runs for part in ("train", "val") for id in run.ids[part]}
    calibration = Calibration(
        tuple(case for part in parts for case in part),
        tuple(hash_file(run.paths.best_checkpoint) for run in runs),
        read_inference(runs[0].config.get("inference"), runs[0].paths.config),
        tuple(
            tuple(picture_features(read_image(case.image)).tolist())
            for case in read_cases(runs[0])
            if case.id in seen
        ),
    )
    results = cross_fit(calibration, parts)
    write_calibration(folder, calibration, cross_fitted=results)
    file = RunPaths(folder).calibration
    save_calibration(file.with_suffix(".png"), calibration, LEVEL)
    log.info("%s", format_plain(_make_table(file, calibration, results, kind), width=None))
    return calibration


def cross_fit(
    calibration: Calibration, parts: Sequence[Sequence[CalibrationCase]]
) -> list[dict[str, float]]:
    """Bound the cases of each part by those of the others, as if they were new.

    Returns:
        For each of `LEVELS` that the number of cases allows: `level`, `coverage`, the share of the
        cases whose Dice is not below its bound, `bound`, its mean, and `below_expected`, the mean
        distance of the bound from the expected Dice.
    """
    fitted = []
    for part in parts:
        others = tuple(case for cases in parts if cases is not part for case in cases)
        _, confidence, dice = zip(*part, strict=True)
        fitted.append((replace(calibration, cases=others), confidence, dice))
    results = []
    for level in LEVELS:
        if any(len(others.cases) < cases_needed(level) for others, _, _ in fitted):
            continue
        columns = [
            (dice, others.lower_bound(confidence, level), others.expected_dice(confidence))
            for others, confidence, dice in fitted
        ]
        dice, bound, expected = np.concatenate(columns, axis=1)
        result = {"coverage": (dice >= bound).mean(), "bound": bound.mean()}
        result |= {"below_expected": (expected - bound).mean()}
        results.append({"level": level} | {name: float(value) for name, value in result.items()})
    return results


def _split_folds(folder: Path, runs: Sequence[Run]) -> list[list[CalibrationCase]]:
    """Return the test cases of each fold."""
    by_fold = defaultdict(list)
    for run in runs:
        by_fold[run.fold].append(run.tested)
    missing = [str(k) for k in range(runs[0].folds) if str(k) not in by_fold]
    if "" in by_fold:
        raise InputError(
            f"{folder}: its runs have no folds; expected a sweep over data.split.fold, or name a "
            "single run, whose val cases then count"
        )
    if missing:
        raise InputError(
            f"{folder}: fold {', '.join(missing)} is not finished; expected all "
            f"{runs[0].folds} folds: the command that trained the sweep goes on with it"
        )
    return [_average_seeds(tables) for _, tables in sorted(by_fold.items())]


def _split_val(run: Run) -> list[list[CalibrationCase]]:
    if not run.ids["val"]:
        raise InputError(
            f"{run.folder}: has no val cases (data.split.val=0); name a sweep over data.split.fold"
        )
    values = read_case_values(run.paths.val_cases, run.sha256, run.classes)[""]
    cases = _average_seeds([values])
    return [part for i in range(VAL_PARTS) if (part := cases[i::VAL_PARTS])]


def _average_seeds(tables: Sequence[CaseValues]) -> list[CalibrationCase]:
    """Return the mean confidence and Dice of each case over tables and foreground classes."""
    pairs = defaultdict(list)
    for table in tables:
        for key, values in table.items():
            foreground = values[1:] if len(values) > 1 else values
            dice = score_terms(foreground[:, :4])["dice_per_image"][:, 0].mean()
            confidence = foreground[:, CASE_COLUMNS.index("confidence")].mean()
            pairs[key.id].append((float(confidence), float(dice)))
    return [
        CalibrationCase(id, *map(fmean, zip(*values, strict=True))) for id, values in pairs.items()
    ]


def _make_table(
    file: Path, calibration: Calibration, results: Sequence[dict[str, float]], kind: str
) -> Table:
    _, confidence, dice = zip(*calibration.cases, strict=True)
    levels = [result["level"] for result in results]
    return Table(
        f"lower bounds of Dice from {len(dice)} {kind} cases, each bounded by other cases",
        ["level", "held for", "mean bound", "below expected Dice"],
        0,
        [
            [f"{r['level']:.0%}", f"{r['coverage']:.1%}"]
            + [f"{r[name]:.3f}" for name in ("bound", "below_expected")]
            for r in results
        ],
        [
            *(
                f"level {level:.0%} needs {cases_needed(level)} other cases"
                for level in LEVELS
                if level not in levels
            ),
            f"mean confidence {fmean(confidence):.3f}, mean Dice {fmean(dice):.3f}",
            f"written to {file} and {file.with_suffix('.png').name}",
        ],
    )
