"""Rows of runs of several data sets: one for each set, never a mean over sets."""

import csv
import re
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.fake_runs import (
    CASES,
    assert_values,
    bins_of,
    by_hand,
    read_table,
    table_of,
    write_run,
    write_sets_run,
)

from seglab import load_results
from seglab.analysis.compare import compare
from seglab.analysis.grouping import make_rows
from seglab.core.errors import InputError
from seglab.core.files import read_csv, read_json, write_csv, write_json
from seglab.runs.records import find_runs

pytestmark = pytest.mark.usefixtures("few_resamples", "no_figures")
ISIC = {f"I{i}": ("nevus", "keratosis")[i % 2] for i in range(6)}
SETS = {"ph2": CASES, "isic": ISIC}


def write_folds(root: Path, seeds: tuple[int, ...] = (0,), **more: Any) -> Path:
    """Two folds of PH2 with the same cases of ISIC in both."""
    for seed in seeds:
        for fold in (0, 1):
            varies = {"seed": seed, "data.split.fold": fold}
            folder = root / f"{seed}-{fold}"
            write_sets_run(folder, SETS, ("isic",), seed=seed, fold=fold, varies=varies, **more)
    return root


def test_each_set_is_a_row_with_its_own_values(tmp_path: Path) -> None:
    write_folds(tmp_path / "runs")
    table = table_of(tmp_path / "out", tmp_path / "runs", by_diagnosis=True)
    rows = [label for label in table if not re.search(r", (melanoma|\w* ?nevus|keratosis)$", label)]
    isic, ph2 = (f"baseline, UNet, set={name}" for name in ("isic", "ph2"))
    baselines = [f"{b} (set={s})" for s in ("isic", "ph2") for b in ("all_background", "otsu")]
    assert rows == [isic, ph2, *baselines]
    assert (table[ph2]["set"], table[ph2]["n"], table[ph2]["runs"]) == ("ph2", "9", "2")
    assert_values(table[ph2], by_hand("UNet", (0,), [*CASES]))
    # Both folds test the same cases of the other set: two networks, as of two seeds.
    assert (table[isic]["set"], table[isic]["n"], table[isic]["runs"]) == ("isic", "6", "2")
    networks = ("0 fold 0", "0 fold 1")
    assert_values(table[isic], by_hand("UNet", networks, [*ISIC]))
    assert_values(table[f"{isic}, nevus"], by_hand("UNet", networks, [*ISIC][::2]))
    assert [float(table[row]["val_dice_per_image"]) for row in (ph2, isic)] == [0.5, 1.5]
    for row, name in ((ph2, "ph2"), (isic, "isic")):
        bins = [np.array(bins_of(f"0 {name}", fold), float) for fold in (0, 1)]
        bins = bins if name == "isic" else [sum(bins)]
        eces = [abs(b[:, 2] / 2**24 - b[:, 1]).sum() / b[:, 0].sum() for b in bins]
        assert float(table[row]["ece"]) == pytest.approx(statistics.mean(eces), abs=1e-12)
    assert_values(table["otsu (set=ph2)"], by_hand("otsu", (0,), [*CASES]))
    assert table["otsu (set=ph2)"]["set"] == "ph2"
    text = compare([tmp_path / "runs"])
    assert text.splitlines()[0].startswith(
        "6 to 9 test cases; 2 folds, each case out of fold once and holdout; split seed 42; "
    )
    assert f"{isic}: every fold tests the same cases, so folds count as seeds: ± and the " in text
    assert "interval are over 2 networks, whose training cases differ in part" in text
    assert "seed 0: mean ± standard deviation over networks [95 % interval over networks " in text
    assert "another seed" not in text
    assert "rows were not tested on the same cases" in text


def test_seeds_and_folds_of_a_set_held_out_in_each(tmp_path: Path) -> None:
    write_folds(tmp_path / "runs", (0, 1))
    (tmp_path / "runs" / "1-1" / "run.json").unlink()
    text = compare([tmp_path / "runs"], out=tmp_path / "out")
    table = read_table(tmp_path / "out" / "table.csv")
    isic, ph2 = (table[f"baseline, UNet, set={name}"] for name in ("isic", "ph2"))
    assert_values(ph2, by_hand("UNet", (0,), [*CASES]))
    assert ph2["status"] == isic["status"] == "incomplete"
    networks = ("0 fold 0", "0 fold 1", "1 fold 0")
    assert_values(isic, by_hand("UNet", networks, [*ISIC]))
    assert (isic["runs"], isic["finished"]) == ("4", "3")
    assert "* baseline, UNet, set=isic: missing: seed 1 fold 1" in text.splitlines()
    # One fold alone is no repetition.
    for seed in (0, 1):
        more = {"varies": {"seed": seed}}
        write_sets_run(tmp_path / "one" / f"{seed}", SETS, ("isic",), fold=1, seed=seed, **more)
    row = make_rows(find_runs([tmp_path / "one"]))[0][0]
    assert (row.set, [*row.cells], row.folds_are_seeds) == ("isic", [("0", "1"), ("1", "1")], False)


def test_holdout_sets_and_sets_that_are_trained_on_alone(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_sets_run(tmp_path / f"{seed}", SETS | {"more": {}}, seed=seed)
    table = table_of(tmp_path / "out", tmp_path)
    labels = [label for label, row in table.items() if row["status"] == "finished"]
    assert labels == ["baseline, UNet, set=isic", "baseline, UNet, set=ph2"]
    assert_values(table[labels[0]], by_hand("UNet", (0, 1), [*ISIC]))
    write_sets_run(tmp_path / "bad", SETS, seed=2, status="failed", error="E")
    rows, _ = make_rows(find_runs([tmp_path / "bad"]))
    assert [(row.set, row.status) for row in rows] == [("isic", "failed"), ("ph2", "failed")]


def test_a_run_of_one_set_meets_the_same_cases_of_a_run_of_several(tmp_path: Path) -> None:
    write_folds(tmp_path / "runs" / "several", name="dermoscopy", model="SegNet")
    for fold in (0, 1):
        write_run(tmp_path / "runs" / f"one-{fold}", fold=fold)
    versus = [("baseline", "dermoscopy, set=ph2"), ("baseline", "dermoscopy, set=isic")]
    text = compare([tmp_path / "runs"], versus=versus, out=tmp_path / "out")
    table = read_table(tmp_path / "out" / "table.csv")
    rows = ["baseline", "dermoscopy, set=isic", "dermoscopy, set=ph2"]
    names = ("all_background", "otsu")
    assert [*table] == [
        *rows,
        *(f"{name} (cases of baseline)" for name in names),
        *(f"{name} (set=isic)" for name in names),
    ]
    assert [table[row]["set"] for row in rows] == ["-", "isic", "ph2"]
    same, none = csv.DictReader((tmp_path / "out" / "versus.csv").open(newline=""))
    dice = [by_hand(who, (0,), [*CASES])["dice_per_image"][0] for who in ("UNet", "SegNet")]
    assert float(same["difference"]) == pytest.approx(dice[0] - dice[1], abs=1e-12)
    assert (same["n"], none["n"]) == ("9", "0")
    assert "of one protocol read different data" not in text
    # Equal contents are paired one by one.
    run = tmp_path / "runs" / "one-0"
    split = read_json(run / "splits.json")
    write_json(
        run / "splits.json", split | {"sha256": dict.fromkeys(split["sha256"], "hash of C0")}
    )
    compare([tmp_path / "runs"], versus=versus, out=tmp_path / "out")
    tests = [*csv.DictReader((tmp_path / "out" / "versus.csv").open(newline=""))]
    assert [test["n"] for test in tests] == ["5", "0"]  # C0 and the other fold's


def test_results_are_rows_of_runs_and_cases(tmp_path: Path) -> None:
    write_folds(tmp_path / "runs")
    runs, cases = load_results(tmp_path / "runs")
    assert [run["run"] for run in runs] == ["0-0", "0-1"]
    assert runs[0]["row"] == "baseline, UNet, set=isic | baseline, UNet, set=ph2"
    assert (runs[0]["test/ph2/dice_per_image"], runs[0]["test/isic/dice_per_image"]) == (0.25, 1.25)
    assert "set" not in runs[0]
    assert len(cases) == 9 + 2 * 6
    assert {case["set"] for case in cases} == {"ph2", "isic"}
    assert [case["id"] for case in cases if case["set"] == "isic"][:2] == ["isic/I0", "isic/I1"]


def test_sets_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    run = write_sets_run(tmp_path / "run", SETS)
    rows = read_csv(run / "test_cases.csv")
    for name in ("other", ""):
        write_csv(run / "test_cases.csv", [rows[0] | {"set": name}, *rows[1:]])
        with pytest.raises(InputError, match=r"test_cases\.csv: .*its data sets are not those of"):
            find_runs([run])
