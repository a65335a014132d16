"""Calibration of sweeps and runs, and what evaluate and load_model make of it."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.calibrated import write_fold_sweep
from helpers.tiny import Ended, refused
from PIL import Image

from seglab.core.files import hash_file, read_csv
from seglab.data.layouts import find_cases
from seglab.inference.calibration import Calibration, CalibrationCase, read_calibration
from seglab.inference.familiarity import image_features
from seglab.schema import Inference


@pytest.fixture
def sweep(predicting_runs: tuple[Path, Path], tmp_path: Path) -> Path:
    """Two folds of ten cases each."""
    return write_fold_sweep(tmp_path / "sweep", predicting_runs[0], folds=2)


def read_pairs(sweep: Path) -> dict[str, dict[str, tuple[float, float]]]:
    """Confidence and Dice by fold and id, from the tables."""
    pairs: dict[str, dict[str, tuple[float, float]]] = {}
    for file in sorted(sweep.glob("*/test_cases.csv")):
        of_fold = pairs.setdefault(file.parent.name[-1], {})
        for row in read_csv(file):
            tp, fp, fn = (int(row[name]) for name in ("tp", "fp", "fn"))
            of_fold[row["id"]] = float(row["confidence"]), 2 * tp / (2 * tp + fp + fn)
    return pairs


def make_calibration(pairs: dict[str, tuple[float, float]], like: Calibration) -> Calibration:
    cases = tuple(CalibrationCase(id, *pair) for id, pair in pairs.items())
    return Calibration(cases, like.networks, like.inference, like.features)


def test_a_sweep_is_calibrated_on_its_out_of_fold_cases(
    sweep: Path, tiny_ph2: Path, script: Callable[..., Ended], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    ended = script("calibrate", sweep)
    assert ended.code == 0, ended.err
    calibration = read_calibration(sweep)
    pairs = read_pairs(sweep)
    found = {case.id: case[1:] for case in calibration.cases}
    assert found.keys() == {case.id for case in find_cases(tiny_ph2)}
    for id, pair in (pairs["0"] | pairs["1"]).items():
        assert found[id] == pytest.approx(pair, rel=1e-12)
    checkpoint = hash_file(sweep / "seed-0-fold-0" / "checkpoints" / "best.ckpt")
    assert calibration.networks == (checkpoint, checkpoint)
    assert calibration.inference == Inference(tta=True, largest_component=True, fill_holes=True)
    expected = [image_features(np.asarray(Image.open(c.image))) for c in find_cases(tiny_ph2)]
    np.testing.assert_array_equal(calibration.features, expected)
    # Each fold bounded by the other.
    stored = json.loads((sweep / "calibration.json").read_text())["cross_fitted"]
    assert [*stored] == ["0.8", "0.9"]
    for level, row in stored.items():
        held, bounds, gaps = [], [], []
        for fold, other in (("0", "1"), ("1", "0")):
            fitted = make_calibration(pairs[other], calibration)
            for confidence, dice in pairs[fold].values():
                bound = float(fitted.lower_bound(confidence, float(level)))
                held.append(dice >= bound)
                bounds.append(bound)
                gaps.append(float(fitted.expected_dice(confidence)) - bound)
        means = [sum(values) / 20 for values in (held, bounds, gaps)]
        found = [row[name] for name in ("coverage", "bound", "gap")]
        assert found == pytest.approx(means, rel=1e-12)
    for line in (
        "20 cases, each part of them bounded by the others:",
        f"bound for 80%: held for {stored['0.8']['coverage']:.1%}, mean ",
        "bound for 95%: too few cases",
    ):
        assert line in caplog.text
    assert Image.open(sweep / "calibration.png").size[0] > 400
    content = (sweep / "calibration.json").read_bytes()
    assert script("calibrate", sweep).code == 0
    assert (sweep / "calibration.json").read_bytes() == content


def test_seeds_are_averaged_case_by_case(
    predicting_runs: tuple[Path, Path], script: Callable[..., Ended], tmp_path: Path
) -> None:
    both = write_fold_sweep(tmp_path / "both", predicting_runs[0], 2, seeds=(0, 1))
    assert script("calibrate", both).code == 0
    by_seed = []
    for seed in (0, 1):
        write_fold_sweep(tmp_path / f"{seed}", predicting_runs[0], 2, seeds=(seed,))
        pairs = read_pairs(tmp_path / f"{seed}")
        by_seed.append(pairs["0"] | pairs["1"])
    cases = read_calibration(both).cases
    assert len(cases) == 20
    for case in cases:
        mean = np.mean([pairs[case.id] for pairs in by_seed], 0)
        assert case[1:] == pytest.approx(mean)


def test_a_run_is_calibrated_on_its_val_cases(
    sweep: Path, script: Callable[..., Ended], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    run = sweep / "seed-0-fold-0"
    rows = read_csv(run / "test_cases.csv")
    shutil.copy(run / "test_cases.csv", run / "val_cases.csv")
    ended = script("calibrate", run)
    assert ended.code == 0, ended.err
    assert "10 cases, each part of them" in caplog.text
    calibration = read_calibration(run)
    assert [case.id for case in calibration.cases] != [row["id"] for row in rows]
    assert {case.id for case in calibration.cases} == {row["id"] for row in rows}
    assert len(calibration.features) == 10  # of train and val, not of test


def test_what_cannot_be_calibrated_is_refused_in_one_line(
    sweep: Path, predicting_runs: tuple[Path, Path], script: Callable[..., Ended], tmp_path: Path
) -> None:
    shutil.copytree(predicting_runs[1], tmp_path / "holdout" / "seed-0")
    refused(
        script("calibrate", tmp_path / "holdout"), None, "fold 0 is not finished; expected a sweep"
    )
    few = Path(shutil.copytree(predicting_runs[1], tmp_path / "few"))
    refused(script("calibrate", few), None, f"{few}: 2 cases, of which the bound for 90% needs 9")
    shutil.rmtree(sweep / "seed-0-fold-1")
    refused(script("calibrate", sweep), None, f"{sweep}: fold 1 is not finished; ")
    assert not [*tmp_path.rglob("calibration.*")]
