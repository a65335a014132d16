"""Expected Dice and its bound: against hand-computed values and by simulation."""

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from helpers.spoil import damage
from helpers.tiny import Ended

from seglab import load_model
from seglab.core.errors import InputError
from seglab.core.files import hash_file, read_csv, write_json
from seglab.data.images import read_image
from seglab.data.layouts import find_cases
from seglab.inference.calibration import (
    Calibration,
    CalibrationCase,
    read_calibration,
)
from seglab.inference.familiarity import N_FEATURES, Familiarity, image_features
from seglab.inference.models import ensemble
from seglab.schema import Inference


def make_calibration(*pairs: tuple[float, float]) -> Calibration:
    """Make a calibration of pairs of confidence and Dice."""
    cases = (CalibrationCase(f"case{i}", *map(float, pair)) for i, pair in enumerate(pairs))
    features = np.random.default_rng(0).normal(size=(30, N_FEATURES)).tolist()
    return Calibration(tuple(cases), ("a", "b"), Inference(tta=True), tuple(map(tuple, features)))


def draw_pairs(random: np.random.Generator, n: int) -> np.ndarray:
    """Draw pairs with errors that grow as confidence falls, some of them gross; float64 (n, 2)."""
    confidence = 1 - random.beta(1, 8, n)
    shortfall = (1 - confidence) * random.gamma(2, 0.8, n) + (random.random(n) < 0.03) * 0.5
    return np.stack([confidence, (1 - shortfall).clip(0, 1)], 1)


def test_expected_dice_pools_adjacent_violators() -> None:
    # 0.9 then 0.6, 0.7 violate: their mean over three cases, (0.9 + 0.6 + 0.7 + 0.6) / 4 with 0.6
    # after them; the tie at 0.8 counts as two cases with the mean 0.65.
    pairs = [(0.9, 0.95), (0.7, 0.9), (0.8, 0.7), (0.8, 0.6), (0.85, 0.6), (0.5, 0.4)]
    calibration = make_calibration(*pairs)
    pooled = (0.9 + 0.7 + 0.6 + 0.6) / 4
    expected = {0.5: 0.4, 0.7: pooled, 0.8: pooled, 0.85: pooled, 0.9: 0.95, 1.0: 0.95}
    for confidence, dice in expected.items():
        assert calibration.expected_dice(confidence) == pytest.approx(dice, rel=1e-12)
    # Linear between the cases, and to 0 below them.
    assert calibration.expected_dice(0.6) == pytest.approx((0.4 + pooled) / 2)
    assert calibration.expected_dice([[0.25], [0.0]]) == pytest.approx(np.array([[0.2], [0]]))


def test_expected_dice_is_that_of_scikit_learn() -> None:
    isotonic = pytest.importorskip("sklearn.isotonic")
    pairs = draw_pairs(np.random.default_rng(1), 200).round(2)  # with ties
    fit = isotonic.IsotonicRegression().fit(pairs[:, 0], pairs[:, 1])
    confidence = np.linspace(pairs[:, 0].min(), pairs[:, 0].max(), 999)
    found = make_calibration(*pairs).expected_dice(confidence)
    np.testing.assert_allclose(found, fit.predict(confidence), atol=1e-12)


def test_the_bound_is_that_of_the_right_order_statistic() -> None:
    # Confidence 0.98, so that the score is (1 - Dice) / 0.04; the Dice of the fit is their mean.
    dice = [0.96, 0.92, 0.88, 0.84]
    calibration = make_calibration(*((0.98, value) for value in dice))
    # (4 + 1) * level, rounded up, is the rank of the score that counts.
    for level, rank in ((0.8, 4), (0.6, 3), (0.61, 4)):
        expected = min(dice[rank - 1], np.mean(dice))
        assert calibration.lower_bound(0.98, level) == pytest.approx(expected), level
    # Scores 1, 2, 3 and 4: 1 - 3 * (1 - 0.88 + 0.02), and never below 0.
    assert calibration.lower_bound([0.88, 0.1], 0.6) == pytest.approx([1 - 3 * 0.14, 0])


@pytest.mark.parametrize(("level", "n"), [(0.8, 4), (0.9, 9), (0.95, 19), (0.55, 2), (0.5, 1)])
def test_a_level_needs_so_many_cases(level: float, n: int) -> None:
    pairs = [(0.9, 0.9)] * n
    assert make_calibration(*pairs).lower_bound(0.9, level) == pytest.approx(0.9)
    if n > 1:
        line = rf"\Alevel={level}: needs {n} calibration cases, there are {n - 1}; "
        with pytest.raises(InputError, match=line):
            make_calibration(*pairs[1:]).lower_bound(0.9, level)


@pytest.mark.parametrize("level", [0, 1, 90, float("nan")])
def test_a_level_is_a_share(level: float) -> None:
    with pytest.raises(InputError, match=f"level={level}: expected a share between 0 and 1"):
        make_calibration((0.9, 0.9)).lower_bound(0.9, level)


@pytest.mark.parametrize("n", [9, 39])
def test_coverage_of_exchangeable_cases(n: int) -> None:
    """At least the level, and at most 1 / (n + 1) above it without ties (Lei et al. 2018)."""
    random, level, trials = np.random.default_rng(2), 0.9, 1000
    held = 0
    for _ in range(trials):
        pairs = draw_pairs(random, n + 1)
        calibration = make_calibration(*pairs[:n])
        held += bool(pairs[n, 1] >= calibration.lower_bound(pairs[n, 0], level))
    error = 3 * (level * (1 - level) / trials) ** 0.5
    # The clip at the expected Dice can only add.
    assert level - error <= held / trials <= level + 1 / (n + 1) + error + 0.01


def test_the_bound_never_exceeds_the_expected_dice_and_rises_with_confidence() -> None:
    calibration = make_calibration(*draw_pairs(np.random.default_rng(3), 60))
    confidence = np.linspace(0, 1, 501)
    expected = calibration.expected_dice(confidence)
    assert (np.diff(expected) >= 0).all()
    for level in (0.5, 0.9):
        bound = calibration.lower_bound(confidence, level)
        assert (bound <= expected).all() and (np.diff(bound) >= 0).all()
        assert (bound >= 0).all() and (expected <= 1).all()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert read_calibration(tmp_path) is None
    calibration = make_calibration(*draw_pairs(np.random.default_rng(4), 30))
    file = tmp_path / "calibration.json"
    write_json(file, calibration.to_json() | {"coverage": 0.91})
    assert read_calibration(tmp_path) == calibration
    whole = file.read_bytes()
    for number in range(100):
        file.write_bytes(damage(Random(number), whole))
        try:
            found = read_calibration(tmp_path)
        except InputError as error:
            assert str(file) in str(error) and "\n" not in str(error)
        else:
            assert 0 <= found.expected_dice(0.9) <= 1


@pytest.fixture
def run(predicting_runs: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the run whose inference settings are all off, as the only one of a sweep."""
    ignore = shutil.ignore_patterns("network.onnx")
    return Path(shutil.copytree(predicting_runs[1], tmp_path / "sweep" / "run", ignore=ignore))


def calibrate_by_hand(folder: Path, run: Path, tiny_ph2: Path, **changes: Any) -> Calibration:
    """Write a calibration for a run, without any of its cases."""
    pairs = draw_pairs(np.random.default_rng(5), 30)
    images = [read_image(case.image) for case in find_cases(tiny_ph2)]
    values: dict[str, Any] = {
        "networks": ("other", hash_file(run / "checkpoints" / "best.ckpt")),
        "inference": Inference(),
        "features": tuple(tuple(image_features(image).tolist()) for image in images),
    }
    calibration = replace(make_calibration(*pairs), **values | changes)
    write_json(folder / "calibration.json", calibration.to_json())
    return calibration


def test_a_model_has_the_calibration_that_holds_for_it(run: Path, tiny_ph2: Path) -> None:
    assert load_model(run).calibration is None
    own = calibrate_by_hand(run, run, tiny_ph2)
    for path in (run, run / "checkpoints" / "best.ckpt"):
        assert load_model(path).calibration == own
    # That of the sweep comes first, unless it is of other networks.
    of_sweep = calibrate_by_hand(run.parent, run, tiny_ph2, features=own.features[:9])
    assert load_model(run).calibration == load_model(run.parent).calibration == of_sweep != own
    calibrate_by_hand(run.parent, run, tiny_ph2, networks=("other",))
    assert load_model(run).calibration == own
    assert load_model(run, tta=True).calibration is None
    other = Path(shutil.copytree(run, run.parent / "other"))
    calibrate_by_hand(other, run, tiny_ph2, features=own.features[:8])
    models = [load_model(path) for path in (run, other)]
    assert ensemble(models[:1] * 2).calibration == own
    assert ensemble(models).calibration is None


def test_an_exported_network_carries_its_calibration(
    run: Path,
    tiny_ph2: Path,
    pictures: Path,
    script: Callable[..., Ended],
) -> None:
    pytest.importorskip("onnxruntime")
    calibration = calibrate_by_hand(run.parent, run, tiny_ph2)
    file = run / "network.onnx"
    assert script("export", run, "--images", pictures, "--out", file).code == 0
    assert load_model(file).calibration == calibration
    assert load_model(file, fill_holes=True).calibration is None


def test_evaluate_compares_what_was_expected_with_what_is(
    run: Path,
    tiny_ph2: Path,
    script: Callable[..., Ended],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    plain, out = tmp_path / "plain", tmp_path / "out"
    assert script("evaluate", run, "--data", tiny_ph2, "--out", plain).code == 0
    calibration = calibrate_by_hand(run, run, tiny_ph2)
    caplog.set_level(logging.INFO)
    assert script("evaluate", run, "--data", tiny_ph2, "--out", out).code == 0
    before, rows = (read_csv(folder / "test_cases.csv") for folder in (plain, out))
    summary = json.loads((out / "summary.json").read_text())
    familiarity = Familiarity(np.array(calibration.features))
    images = {case.id: read_image(case.image) for case in find_cases(tiny_ph2)}
    held, gaps = [], []
    for old, row in zip(before, rows, strict=True):
        added = {name: value for name, value in row.items() if name not in old}
        assert row == old | added
        confidence, dice = float(row["confidence"]), float(row["dice_per_image"])
        assert float(added.pop("expected_dice")) == calibration.expected_dice(confidence)
        bound = float(added.pop("lower_bound"))
        assert bound == calibration.lower_bound(confidence, 0.9)
        assert added == {"familiar": str(familiarity.is_familiar(images[row["id"]]))}
        held.append(dice >= bound)
        gaps.append(confidence - dice)
    found = summary["quality"]
    assert found["level"] == 0.9 and found["bound_held"] == pytest.approx(np.mean(held))
    assert found["confidence_minus_dice"] == pytest.approx(np.mean(gaps))
    assert found["familiar"] == np.mean([row["familiar"] == "True" for row in rows])
    line = f"the bound for 90% of the cases held for {np.mean(held):.1%}; on average, "
    assert f"{line}confidence minus Dice is {np.mean(gaps):+.3f}, expected" in caplog.text
    assert {k: v for k, v in summary.items() if k != "quality"} == json.loads(
        (plain / "summary.json").read_text()
    )
    assert "the bound fails" not in caplog.text
    cases = [(x, 1.0) for x in np.linspace(0, 1, 30)]  # so all masks should be perfect
    write_json(
        run / "calibration.json",
        replace(calibration, cases=make_calibration(*cases).cases).to_json(),
    )
    assert script("evaluate", run, "--data", tiny_ph2, "--out", out).code == 0
    assert "the bound fails on such images: " in caplog.text
    # The run's own test cases may be among those of the calibration.
    assert script("evaluate", run, "--moved-to", tiny_ph2, "--out", plain).code == 0
    assert "quality" not in json.loads((plain / "summary.json").read_text())
