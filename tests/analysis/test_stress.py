"""stress.py: Dice of worse test cases against plain loops; a second call goes on."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.calibrated import write_fold_sweep
from helpers.spoil import change_checkpoint, put_at
from helpers.tiny import Ended, refused
from PIL import Image

from seglab.analysis import stress as module
from seglab.core.files import read_csv
from seglab.data.corruptions import CORRUPTIONS, corrupt
from seglab.data.layouts import find_cases
from seglab.inference.models import load_model
from seglab.runs.records import open_run

TWO = ("--only", "blur,contrast")


@pytest.fixture
def sweep(predicting_runs: tuple[Path, Path], tmp_path: Path) -> Path:
    """Two folds of ten cases each, whose checkpoints are of these splits."""
    sweep = write_fold_sweep(tmp_path / "sweep", predicting_runs[0], folds=2)
    for member in sweep.iterdir():
        hash = open_run(member).provenance.split_hash
        change_checkpoint(member, put_at("seglab.split_hash", hash))
    return sweep


def dice_of(pred: np.ndarray, target: np.ndarray) -> float:
    return 2 * (pred & target).sum() / (pred.sum() + target.sum())


def by_hand(sweep: Path, tiny_ph2: Path, name: str) -> dict[str, list[float]]:
    """Dice of each case, as stored and of its corrupted versions, by the network of its fold."""
    found = {}
    cases = {case.id: case for case in find_cases(tiny_ph2)}
    for folder in sorted(sweep.iterdir()):
        model, hashes = load_model(folder), open_run(folder).sha256
        for row in read_csv(folder / "test_cases.csv"):
            case, (tp, fp, fn) = cases[row["id"]], (int(row[k]) for k in ("tp", "fp", "fn"))
            image, target = (
                np.asarray(Image.open(case.image)),
                np.asarray(Image.open(case.mask)) > 0,
            )
            found[case.id] = [2 * tp / (2 * tp + fp + fn)]
            for k in (1, 2, 3):
                worse = corrupt(image, name, k, hashes[case.id])
                found[case.id].append(dice_of(model.predict(worse) > 0, target))
    return found


def test_each_case_is_corrupted_for_the_network_that_was_tested_on_it(
    sweep: Path, tiny_ph2: Path, script: Callable[..., Ended], tmp_path: Path
) -> None:
    ended = script("stress", sweep, *TWO, "--out", tmp_path / "out")
    assert ended.code == 0, ended.err
    expected = {name: by_hand(sweep, tiny_ph2, name) for name in ("blur", "contrast")}
    cases = read_csv(tmp_path / "out" / "stress_cases.csv")
    assert len(cases) == 3 * 4 * 20
    for row in (row for row in cases if row["corruption"] != "mean"):
        value = expected[row["corruption"]][row["id"]][int(row["severity"])]
        assert float(row["dice_per_image"]) == pytest.approx(value, abs=1e-12)
    expected["mean"] = {
        id: np.mean([expected[n][id] for n in expected], 0) for id in expected["blur"]
    }
    lines = read_csv(tmp_path / "out" / "stress.csv")
    assert [(line["corruption"], line["severity"]) for line in lines] == [
        (name, str(k)) for name in ("blur", "contrast", "mean") for k in range(4)
    ]
    random = np.random.default_rng(1)
    for line in lines:
        dice = np.array([*expected[line["corruption"]].values()])[:, [0, int(line["severity"])]]
        drawn = dice[random.integers(20, size=(2000, 20))].mean(1)
        for column, values in (
            ("dice_per_image", drawn[:, 1]),
            ("drop", drawn[:, 0] - drawn[:, 1]),
        ):
            mean = dice.mean(0) @ ([0, 1] if column == "dice_per_image" else [1, -1])
            assert float(line[column]) == pytest.approx(mean, abs=1e-12)
            spread = np.quantile(values, [0.025, 0.975])
            ends = [float(line[f"{column}_{end}"]) for end in ("low", "high")]
            np.testing.assert_allclose(ends, spread, atol=0.01 + 0.3 * np.ptp(spread))
        assert line["n"] == "20"
    for name in ("stress.md", "stress.tex"):
        assert "contrast" in (tmp_path / "out" / name).read_text()
    assert "severities: blur (0.005, 0.01, 0.02), contrast (0.7, 0.5, 0.35);" in ended.out
    for name in ("stress.png", "corruptions.png"):
        assert min(Image.open(tmp_path / "out" / name).size) > 300


def test_a_second_call_scores_what_the_first_one_lacks(
    sweep: Path, script: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = script("stress", sweep, *TWO)
    scored: list[str] = []

    def score_case(case: object, model: object, name: str, key: str) -> list[float]:
        scored.append(name)
        return [0.5, 0.5, 0.5]

    monkeypatch.setattr(module, "_score_case", score_case)
    assert script("stress", sweep, *TWO).out == first.out
    assert scored == []
    (sweep / "seed-0-fold-1" / "evaluations" / "stress" / "blur.json").unlink()
    script("stress", sweep, "--only", "blur,contrast,hair")
    assert sorted(scored) == ["blur"] * 10 + ["hair"] * 20


def test_rows_are_those_of_compare(
    sweep: Path, predicting_runs: tuple[Path, Path], script: Callable[..., Ended], tmp_path: Path
) -> None:
    shutil.copytree(predicting_runs[1], tmp_path / "other" / "seed-0")
    ended = script("stress", sweep, tmp_path / "other", "--only", "hair", "--out", tmp_path / "out")
    assert ended.code == 0, ended.err
    with (tmp_path / "out" / "stress.csv").open() as file:
        sizes = {row["label"]: row["n"] for row in csv.DictReader(file)}
    assert sorted(sizes.values()) == ["2", "20"]
    assert all(label in ended.out for label in sizes)
    assert "rows were not tested on the same cases" in ended.out


def test_refusals_are_one_line(
    sweep: Path, tiny_ph2: Path, script: Callable[..., Ended], tmp_path: Path
) -> None:
    ended = script("stress", sweep, "--only", "blur,rain")
    refused(ended, None, f"--only rain: expected some of {', '.join(CORRUPTIONS)}")
    refused(script("stress", sweep, "--out", sweep / "seed-0-fold-0"), None, "belongs to the run")
    moved = Path(shutil.copytree(tiny_ph2, tmp_path / "PH2Dataset"))
    case = find_cases(moved)[0]
    Image.fromarray(np.zeros((45, 60, 3), np.uint8)).save(case.image)
    ended = script("stress", sweep, "--moved-to", moved, *TWO)
    refused(ended, None, f"case {case.id} has changed since the run")
