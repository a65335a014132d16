"""Calibrates the confidence of masks with the Dice of cases that finished runs have scored."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from seglab.analysis.figures import save_calibration
from seglab.core.errors import InputError
from seglab.core.files import expand_user, hash_file, write_json
from seglab.data.images import read_image
from seglab.inference.calibration import LEVEL, Calibration, CalibrationCase, cases_needed
from seglab.inference.evaluate import read_cases
from seglab.inference.familiarity import image_features
from seglab.inference.models import find_members
from seglab.metrics.scores import score_terms
from seglab.runs.paths import RunPaths
from seglab.runs.records import Run, open_run
from seglab.runs.tables import CASE_COLUMNS, read_case_values
from seglab.schema import read_inference

log = logging.getLogger(__name__)

LEVELS = (0.8, LEVEL, 0.95)
VAL_PARTS = 5  # of the val cases of a single run, which have no folds


def calibrate(
    path: str | Path, trust: tuple[str, ...] = (), moved_to: str | Path | None = None
) -> Calibration:
    """Calibrate the networks of a sweep or of a run, and write calibration.json and .png there.

    Args:
        path: A sweep that has finished all folds, whose test cases of all data sets count, each
            predicted by a network that was not trained on it; or a run directory, whose val cases
            count.
        trust: See `open_run`.
        moved_to: Where the data of the runs is today; None for where it was.

    Raises:
        InputError: A fold is missing, there are too few cases, or a file cannot be read.
    """
    folder = expand_user(path)
    runs = [open_run(member, trust, moved_to) for member in find_members(folder)]
    parts = _read_parts(folder, runs)
    cases = tuple(case for part in parts for case in part)
    if len(cases) < cases_needed(LEVEL):
        raise InputError(
            f"{folder}: {len(cases)} cases, of which the bound for {LEVEL:.0%} needs "
            f"{cases_needed(LEVEL)}; expected a sweep over data.split.fold, or a run with more val"
        )
    seen = {id for run in runs for part in ("train", "val") for id in run.ids[part]}
    images = [case.image for case in read_cases(runs[0]) if case.id in seen]
    calibration = Calibration(
        cases,
        tuple(hash_file(run.paths.best_checkpoint) for run in runs),
        read_inference(runs[0].config.get("inference"), runs[0].paths.config),
        tuple(tuple(image_features(read_image(image)).tolist()) for image in images),
    )
    results = cross_fit(calibration, parts)
    file = RunPaths(folder).calibration
    write_json(file, calibration.to_json() | {"cross_fitted": results})
    save_calibration(file.with_suffix(".png"), calibration, LEVEL)
    log.info("%d cases, each part of them bounded by the others:", len(cases))
    for level in LEVELS:
        text = "too few cases"
        if level in results:
            text = "held for {coverage:.1%}, mean {bound:.3f}, {gap:.3f} below the expected Dice"
        log.info("bound for %.0f%%: %s", 100 * level, text.format(**results.get(level, {})))
    log.info("written to %s and %s", file, file.with_suffix(".png").name)
    return calibration


def cross_fit(
    calibration: Calibration, parts: Sequence[Sequence[CalibrationCase]]
) -> dict[float, dict[str, float]]:
    """Bound the cases of each part by those of the others, as if they were new.

    Returns:
        For each of `LEVELS` that the number of cases allows: `coverage`, the share of cases whose
        Dice is not below its bound, `bound`, its mean, and `gap` between it and expected Dice.
    """
    n_others = sum(map(len, parts)) - max(map(len, parts))
    results = {}
    for level in [level for level in LEVELS if cases_needed(level) <= n_others]:
        columns = []
        for part in parts:
            others = tuple(case for cases in parts if cases is not part for case in cases)
            fitted = replace(calibration, cases=others)
            _, confidence, dice = zip(*part, strict=True)
            bound = fitted.lower_bound(confidence, level)
            columns.append((dice, bound, fitted.expected_dice(confidence)))
        dice, bound, expected = np.concatenate(columns, axis=1)
        means = (dice >= bound).mean(), bound.mean(), (expected - bound).mean()
        results[level] = dict(zip(("coverage", "bound", "gap"), map(float, means), strict=True))
    return results


def _read_parts(folder: Path, runs: Sequence[Run]) -> list[list[CalibrationCase]]:
    """Read test cases by fold, as means over runs; those of several folds are dealt out.

    So are the val cases of a single run.
    """
    is_run = runs[0].folder == folder
    missing = {*map(str, range(runs[0].folds))} - {run.fold for run in runs}
    if not is_run and missing:
        raise InputError(
            f"{folder}: fold {', '.join(sorted(missing))} is not finished; expected a sweep over "
            "data.split.fold that has ended, or a single run, whose val cases then count"
        )
    if is_run and not runs[0].ids["val"]:
        raise InputError(
            f"{folder}: has no val cases (data.split.val=0); calibrate its sweep over "
            "data.split.fold, or a run with val cases"
        )
    pairs: dict[str, list[tuple[float, float]]] = defaultdict(list)
    folds: dict[str, set[str]] = defaultdict(set)
    for run in runs:
        table = run.tested
        if is_run:
            table = read_case_values(run.paths.val_cases, run.sha256, run.classes)[""]
        for case, values in table.items():
            foreground = values[1:] if len(values) > 1 else values
            confidence = foreground[:, CASE_COLUMNS.index("confidence")].mean()
            dice = score_terms(foreground[:, :4])["dice_per_image"][:, 0].mean()
            pairs[case.id].append((confidence, dice))
            folds[case.id].add(run.fold)
    parts: dict[str, list[CalibrationCase]] = defaultdict(list)
    n_parts = VAL_PARTS if is_run else runs[0].folds
    for i, (id, found) in enumerate(pairs.items()):
        is_of_one_fold = len(folds[id]) == 1 and not is_run
        part = folds[id].pop() if is_of_one_fold else str(i % n_parts)
        parts[part].append(CalibrationCase(id, *np.mean(found, 0).tolist()))
    return [part for _, part in sorted(parts.items())]
