"""learning_curve.py: fits of known power laws, intervals against simulations, tables of runs."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.fake_runs import contents, write_run, write_sets_run

from seglab.analysis import statistics
from seglab.analysis.compare import compare
from seglab.analysis.grouping import make_rows
from seglab.analysis.learning_curve import (
    find_learning_curves,
    fit_power_law,
    percentile_interval,
    resample_means,
    summarize_curve,
)
from seglab.core.errors import InputError
from seglab.core.files import read_csv, write_csv, write_json
from seglab.runs.records import find_runs

CASES = {f"C{i:03}": "nevus" for i in range(80)}
SHARES = {0.125: 14, 0.25: 28, 0.5: 56, 1: 112}


def true_error(n: float) -> float:
    return 0.3 * n**-0.6 + 0.035


def write_errors(run: Path, errors: dict[str, float], n_trained: int) -> None:
    """Changes the Dice of a run's test cases to 1 - error, and its number of training cases."""
    rows = read_csv(run / "test_cases.csv")
    for row in rows:
        error = errors[row["id"].rpartition("/")[2]]
        row |= {"tp": 10**7, "fp": round(2 * 10**7 * error / (1 - error)), "fn": 0, "tn": 9}
    write_csv(run / "test_cases.csv", rows)
    split = json.loads((run / "splits.json").read_text())
    trained = [f"T{i}" for i in range(n_trained)]
    split["train"], split["sha256"] = trained, split["sha256"] | dict.fromkeys(trained, "hash")
    write_json(run / "splits.json", split)


def write_curve(root: Path, shares: dict[float, int], is_rising: bool = False) -> Path:
    """Runs of two folds, whose cases differ in difficulty; their errors fall, or rise."""
    random = np.random.default_rng(0)
    difficulty = random.uniform(0.7, 1.3, len(CASES))
    difficulty /= difficulty.mean()
    for share, n in shares.items():
        for fold in (0, 1):
            varies = {"data.split.train_share": share, "data.split.fold": fold}
            more = {"data__split__train_share": share, "varies": varies, "cases": CASES}
            run = write_run(root / f"{share}-{fold}", fold=fold, **more)
            errors = true_error(126 - n if is_rising else n) * difficulty
            write_errors(run, dict(zip(CASES, errors.tolist(), strict=True)), n)
    return root


@pytest.mark.parametrize(("a", "b", "c"), [(0.3, 0.6, 0.035), (0.9, 0.4, 0.0), (2.0, 1.2, 0.05)])
def test_the_fit_recovers_a_power_law(a: float, b: float, c: float) -> None:
    sizes = np.array([14.0, 28, 56, 112, 224])
    fit = fit_power_law(sizes, (a * sizes**-b + c)[None])
    assert fit.dice(448)[0] == pytest.approx(1 - a * 448**-b - c, abs=5e-4)
    assert (fit.b[0], fit.c[0]) == (pytest.approx(b, rel=0.05), pytest.approx(c, abs=0.01))


def test_the_fit_has_no_negative_floor_and_never_rises() -> None:
    sizes = np.array([10.0, 20, 40, 80])
    falling, rising = fit_power_law(sizes, np.array([[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]])).c
    assert falling == 0 and rising > 0
    assert fit_power_law(sizes, np.array([[0.1, 0.2, 0.3, 0.4]])).a[0] == 0


def test_intervals_of_the_gain_hold_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated errors of five folds whose networks are 5 % better or worse by chance."""
    monkeypatch.setattr(statistics, "RESAMPLES", 99)
    random = np.random.default_rng(0)
    sizes, truth, held = np.array([*SHARES.values()], float), true_error(112) - true_error(224), 0
    folds = [str(i % 5) for i in range(140)]
    for _ in range(40):
        difficulty = random.gamma(3, 1 / 3, 140)
        luck = 1 + 0.05 * random.normal(size=(4, 5))[:, np.arange(140) % 5]
        noise = random.gamma(10, 1 / 10, (4, 140))
        errors = np.array([*map(true_error, sizes)])[:, None] * difficulty * luck * noise
        fit = fit_power_law(sizes, resample_means(errors, folds))
        low, high = percentile_interval(fit.dice(224) - fit.dice(112))
        held += low <= truth <= high
    assert held >= 36


@pytest.mark.usefixtures("no_figures")
def test_a_sweep_has_a_table_and_a_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 999)
    text = compare(
        [write_curve(tmp_path / "runs", SHARES)], learning_curve=True, out=tmp_path / "out"
    )
    records = read_csv(tmp_path / "out" / "learning_curve.csv")
    assert [record["train_share"] for record in records] == ["0.125", "0.25", "0.5", "1", "twice"]
    assert [float(record["train_cases"]) for record in records] == [14, 28, 56, 112, 224]
    for record, n in zip(records[:4], SHARES.values(), strict=True):
        assert float(record["dice_per_image"]) == pytest.approx(1 - true_error(n), abs=1e-6)
    gain = true_error(112) - true_error(224)
    assert float(records[4]["gain"]) == pytest.approx(gain, abs=3e-4)
    assert float(records[4]["fitted"]) == pytest.approx(1 - true_error(224), abs=3e-4)
    assert "without the largest size the fit foretells 0.947" in text
    assert "measured 0.947" in text and "is flat" not in text
    names = {f"learning_curve.{suffix}" for suffix in ("md", "tex", "csv", "png")}
    assert names <= {*contents(tmp_path / "out")}
    compare([tmp_path / "runs"], out=tmp_path / "out")
    assert not names & {*contents(tmp_path / "out")}


@pytest.mark.usefixtures("few_resamples")
def test_what_is_not_determined_is_said(tmp_path: Path) -> None:
    two = write_curve(tmp_path / "two", {0.5: 56, 1: 112})
    assert "no curve, expected 3 sizes" in compare([two], learning_curve=True)
    three = write_curve(tmp_path / "three", {0.25: 28, 0.5: 56, 1: 112})
    assert "3 sizes determine any such curve" in compare([three], learning_curve=True)
    flat = write_curve(tmp_path / "flat", SHARES, is_rising=True)
    assert "the curve is flat" in compare([flat], learning_curve=True)
    one = write_run(tmp_path / "one" / "run")
    with pytest.raises(InputError, match=r"no finished rows differ in data\.split\.train_share"):
        compare([one], learning_curve=True)


@pytest.mark.usefixtures("few_resamples")
def test_each_data_set_and_each_setting_has_its_curve(tmp_path: Path) -> None:
    few = {id: CASES[id] for id in [*CASES][:6]}
    for model in ("UNet", "SegNet"):
        for share, n in SHARES.items():
            run = tmp_path / f"{model}-{share}"
            more = {"model": model, "data__split__train_share": share}
            write_sets_run(run, {"ph2": few, "isic": few}, **more)
            write_errors(run, dict.fromkeys(few, true_error(n)), n)
    curves = find_learning_curves(make_rows(find_runs([tmp_path]))[0])
    labels = ["SegNet, isic", "SegNet, ph2", "UNet, isic", "UNet, ph2"]
    assert sorted(curve.label for curve in curves) == labels
    for curve in curves:
        assert [record["train_cases"] for record in summarize_curve(curve)] == [
            14,
            28,
            56,
            112,
            224,
        ]
