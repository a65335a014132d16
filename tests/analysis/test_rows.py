"""Rows of the results table: grouping, labels, scores and paired tests, by hand."""

import csv
import math
import re
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from helpers.fake_runs import (
    CASES,
    FOLDS,
    SEEDS,
    assert_values,
    bins_of,
    boundary_of,
    by_hand,
    cases_of,
    counts_of,
    read_table,
    table_of,
    write_run,
    write_sweep,
)
from helpers.tiny import Ended

from seglab.analysis import rows as rows_module
from seglab.analysis import statistics as stats
from seglab.analysis.compare import compare
from seglab.analysis.grouping import make_rows
from seglab.core.errors import InputError
from seglab.core.files import read_csv, write_csv, write_json
from seglab.metrics.scores import BOUNDARY_METRICS
from seglab.runs import tables
from seglab.runs.paths import FORMAT
from seglab.runs.records import find_runs
from seglab.runs.tables import CASE_COLUMNS

Script = Callable[..., Ended]
pytestmark = pytest.mark.usefixtures("few_resamples", "no_figures")


def test_folds_seeds_and_models_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "RESAMPLES", 9_999)
    everything = table_of(tmp_path / "out", write_sweep(tmp_path / "sweep"), by_diagnosis=True)
    assert list(everything)[:3] == ["SegNet", "SegNet, common nevus", "SegNet, melanoma"]
    table = {label: record for label, record in everything.items() if ", " not in label}
    assert list(table) == ["SegNet", "UNet", "all_background", "otsu"]
    for model in ("SegNet", "UNet"):
        record = table[model]
        assert_values(record, by_hand(model, SEEDS, list(CASES)))
        eces = []
        for seed in SEEDS:
            bins = np.array([bins_of(seed, fold) for fold in range(FOLDS)], float).sum(0)
            eces.append(abs(bins[:, 2] / 2**24 - bins[:, 1]).sum() / bins[:, 0].sum())
        assert float(record["ece"]) == pytest.approx(np.mean(eces), abs=1e-12)
        assert float(record["ece_sd"]) == pytest.approx(np.std(eces, ddof=1), abs=1e-12)
        assert record["ece_low"] == ""
        counts = np.array([[counts_of(model, s, id) for id in CASES] for s in SEEDS], float)
        tp, fp, fn, _ = np.moveaxis(counts, -1, 0)
        plain = scipy.stats.bootstrap(
            ((2 * tp / (2 * tp + fp + fn)).mean(0),), np.mean, random_state=np.random.default_rng(0)
        ).confidence_interval
        ends = [float(record[f"dice_per_image_{end}"]) for end in ("low", "high")]
        # Rounding breaks ties there that are ties here.
        assert ends == pytest.approx([*plain], abs=1e-3)
        by_seed = by_hand(model, SEEDS, list(CASES))
        for name in ("dice_per_image", "dice_pooled", "hd95", "aurc"):
            value, low, high, *both = (
                float(record[f"{name}{end}"])
                for end in ("", "_low", "_high", "_seeds_cases_low", "_seeds_cases_high")
            )
            # Distances to the ends in squares: those over cases, and Student's over seeds.
            student = scipy.stats.ttest_1samp(by_seed[name], 0).confidence_interval()
            margin = (student.high - student.low) / 2
            ends = [
                value - math.hypot(value - low, margin),
                value + math.hypot(high - value, margin),
            ]
            assert both == pytest.approx(np.clip(ends, 0, math.inf if name == "hd95" else 1))
        assert record["ece_seeds_cases_low"] == ""
        assert (record["n"], record["runs"], record["finished"]) == ("9", "6", "6")
        assert [float(record[k]) for k in ("parameters", "multiply_adds")] == [1000, 5e6]
        assert float(record["training_seconds"]) == 11
        assert float(record["images_per_second"]) == 20.5
    for name in ("all_background", "otsu"):
        assert_values(table[name], by_hand(name, (0,), list(CASES)))
        assert table[name]["status"] == "baseline"
        assert table[name]["dice_per_image_seeds_cases_low"] == ""
    for name, seeds in (("UNet", SEEDS), ("otsu", (0,))):
        for diagnosis in ("common nevus", "melanoma"):
            record = everything[f"{name}, {diagnosis}"]
            ids = [id for id, named in CASES.items() if named == diagnosis]
            assert_values(record, by_hand(name, seeds, ids))
            assert (record["n"], record["ece"]) == (str(len(ids)), "")


def test_an_added_boundary_metric_is_read_and_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "run")
    for name in ("test_cases.csv", "baseline_cases.csv"):
        table = [row | {"assd": i % 9 / 8} for i, row in enumerate(read_csv(run / name))]
        write_csv(run / name, table)
    names = ("assd", *BOUNDARY_METRICS)
    for module in (tables, rows_module):
        monkeypatch.setattr(module, "BOUNDARY_METRICS", names)
        monkeypatch.setattr(module, "CASE_COLUMNS", (*CASE_COLUMNS, "assd"))
    (row, *baselines), _ = make_rows(find_runs([run]))
    assert len(baselines) == 2
    scores = row.scores(["assd"])
    assert (scores["assd"].value, scores["assd"].low is None) == (0.5, False)
    assert [scores["hd95"].value] == pytest.approx(by_hand("UNet", (0,), list(CASES))["hd95"])


def test_a_sweep_that_keeps_to_one_fold_lacks_no_other(tmp_path: Path, script: Script) -> None:
    for fold in (0, 1):
        for model in ("UNet", "SegNet"):
            for seed in (0, 1):
                folder = tmp_path / f"sweep{fold}" / f"{model}-{seed}"
                write_run(folder, model, seed, fold, varies={"model": model, "seed": seed})
    ended = script("compare", tmp_path / "sweep1")
    first, *lines = ended.out.splitlines()
    assert first.startswith("4 test cases; fold 1 of 2; split seed 42; ")
    assert "missing" not in ended.out
    assert not any(line.startswith("*") for line in lines)
    ended = script("compare", tmp_path / "sweep0", tmp_path / "sweep1")
    assert ended.out.startswith("9 test cases; 2 folds, each case out of fold once; ")
    write_run(tmp_path / "sweep1" / "UNet-1-0", "UNet", 1, 0, "interrupted", varies={"seed": 1})
    ended = script("compare", tmp_path / "sweep1")
    assert ended.out.startswith("4 test cases; 2 folds, each case out of fold once; ")
    assert "missing" in ended.out


def test_values_are_of_seeds_that_tested_the_same_cases(tmp_path: Path) -> None:
    root = write_sweep(tmp_path / "runs", ("UNet",))
    options: dict[str, Any] = {"versus": [("baseline, unet", "otsu")]}
    # A fold that no seed should have is a cell and a note, and no gap.
    write_run(root / "odd", "UNet", 0, 7, "failed", "no such fold", {"data.split.fold": 7})
    text = compare([root], out=tmp_path / "out", **options)
    table = read_table(tmp_path / "out" / "table.csv")
    assert_values(table["baseline, UNet"], by_hand("UNet", SEEDS, list(CASES)))
    assert " 6 of 7 " in text
    assert "UNet: failed (no such fold): seed 0 fold 7\n" in text
    assert "*" not in text
    # A seed that tested fewer cases than another is left out.
    shutil.rmtree(root / "UNet-1-1")
    few = dict(list(CASES.items())[:-2])
    write_run(root / "UNet-1-1", "UNet", 1, 1, cases=few, varies={"seed": 1})
    text = compare([root], out=tmp_path / "out", **options)
    table = read_table(tmp_path / "out" / "table.csv")
    complete_seeds = (0, 2)
    assert_values(table["baseline, UNet"], by_hand("UNet", complete_seeds, list(CASES)))
    assert table["baseline, UNet"]["status"] == "incomplete"
    assert table["baseline, UNet"]["training_seconds"] == "11.0"
    assert "left out of the values, as incomplete: seed 1 (8 of 9 cases)" in text
    (test,) = csv.DictReader((tmp_path / "out" / "versus.csv").open(newline=""))
    dice, otsu = (
        by_hand(who, seeds, list(CASES))["dice_per_image"]
        for who, seeds in (("UNet", complete_seeds), ("otsu", (0,)))
    )
    difference = statistics.mean(dice) - otsu[0]
    assert float(test["difference"]) == pytest.approx(difference, abs=1e-12)
    assert re.search(r"^baseline, UNet\* +otsu +9 +2, 1 ", text, re.M)
    assert "\n- \\* incomplete: the" in (tmp_path / "out" / "versus.md").read_text()
    # Seed 0 has the first fold, seeds 1 and 2 have the second: a case counts once.
    for name in ("UNet-0-1", "UNet-1-0", "UNet-2-0", "UNet-1-1"):
        shutil.rmtree(root / name)
    write_run(root / "UNet-1-1", "UNet", 1, 1, varies={"seed": 1})
    text = compare([root], "all", out=tmp_path / "out", **options)
    record = read_table(tmp_path / "out" / "table.csv")["baseline, UNet"]
    seeds_and_ids = [((0,), cases_of(0)), ((1, 2), cases_of(1))]
    by_case = [[by_hand("UNet", seeds, [id]) for id in ids] for seeds, ids in seeds_and_ids]
    for name in ("dice_per_image", "hd95"):
        values = [statistics.mean(found[name]) for group in by_case for found in group]
        assert float(record[name]) == pytest.approx(statistics.mean(values), abs=1e-12)
    counts = [
        np.mean([counts_of("UNet", seed, id) for seed in seeds], axis=0)
        for seeds, ids in seeds_and_ids
        for id in ids
    ]
    tp, fp, fn, _ = np.sum(counts, axis=0)
    assert float(record["dice_pooled"]) == pytest.approx(2 * tp / (2 * tp + fp + fn), abs=1e-12)
    assert (record["n"], record["dice_per_image_sd"], record["ece"]) == ("9", "", "")
    assert "no seed is complete: values are means over those that have a case" in text


def test_runs_without_a_config_are_notes(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "a")
    (tmp_path / "runs" / "b").mkdir()
    record = {"format": FORMAT, "status": "failed", "error": "E", "overrides": ["model=nets"]}
    write_json(tmp_path / "runs" / "b" / "run.json", record)
    table = table_of(tmp_path / "out", tmp_path / "runs")
    assert list(table) == ["baseline, UNet", "all_background", "otsu"]
    note = "b: failed before it had a config: E"
    assert note in compare([tmp_path / "runs"])
    _, run = csv.DictReader((tmp_path / "out" / "runs.csv").open(newline=""))
    assert (run["run"], run["row"], run["used"], run["status"]) == ("b", "", "False", "failed")
    with pytest.raises(InputError, match="failed before it had a config: E"):
        compare([tmp_path / "runs" / "b"])
    # A job of a sweep with trainer.fast_dev_run leaves what was planned, and that it finished.
    debug = {"format": FORMAT, "status": "finished", "config": {"seed": 0}, "varies": {"seed": "0"}}
    write_json(tmp_path / "runs" / "b" / "run.json", debug)
    assert "b: finished before it had a config: trainer.fast" in compare([tmp_path / "runs"])


def test_one_case_alone(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "a", cases={"C1": ""})
    table = table_of(tmp_path / "out", tmp_path / "runs", by_diagnosis=True)
    assert_values(table["baseline, UNet"], by_hand("UNet", (0,), ["C1"]))
    assert_values(table["baseline, UNet, -"], by_hand("UNet", (0,), ["C1"]))
    assert table["baseline, UNet"]["dice_per_image_sd"] == ""
    record = table["baseline, UNet"]
    assert record["dice_per_image"] == record["dice_per_image_low"]
    above = (tmp_path / "out" / "table.md").read_text()
    assert above.startswith("1 test case; holdout; split seed 42; scored at native resolution; ")
    assert "seed 0: value [95 % interval over cases]\n" in above


def test_seeds_that_rows_should_share(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    write_run(root / "a", data__split__val=0, varies={"seed": 0})
    write_run(root / "b", seed=1, varies={"seed": 1})
    write_run(root / "c", data__root="/elsewhere", seed=2)
    # Weights of one seed, batches of two: two cells.
    write_run(root / "d", data__root="/elsewhere", seed=2, data__seed=7)
    rows, notes = make_rows(find_runs([root]))
    cells = {
        row.label: [(*key, run.label if run else "") for key, run in row.cells.items()]
        for row in rows
        if row.finished_runs
    }
    assert cells == {
        "root=/data/PH2, data.split.val=0": [("0", "", "a"), ("1", "", "")],
        "root=/data/PH2, data.split.val=0.1": [("0", "", ""), ("1", "", "b")],
        "root=/elsewhere, data.split.val=0.1": [("2", "", "c"), ("2 (data.seed 7)", "", "d")],
    }
    assert notes == []
    # Jobs of another sweep, and single runs, were never meant to have these seeds.
    write_run(root / "other" / "e", task__optimizer__lr=1.0, seed=3, varies={"seed": 3})
    write_run(root / "f", task__optimizer__lr=2.0, seed=4)
    rows, _ = make_rows(find_runs([root]))
    assert {
        row.settings["task.optimizer.lr"]: [*row.cells] for row in rows if row.finished_runs
    } == {
        **{"1.0": [("3", "")], "2.0": [("4", "")]},
        "0.001": [("2", ""), ("2 (data.seed 7)", "")],
    }


def test_of_two_runs_of_one_config_one_is_used(tmp_path: Path, script: Script) -> None:
    root = tmp_path / "runs"
    for name in ("b", "a", "c/deep"):
        write_run(root / name)
    write_run(root / "0", status="failed", error="E")
    write_run(root / "1", status="interrupted", seed=1)
    write_run(root / "2", status="failed", error="E", seed=1)
    out = script("compare", root, "--out", tmp_path / "out").out
    assert "a and b have the same config: the first is used" in out
    assert "a and c/deep have the same config: the first is used" in out
    assert "* baseline, UNet: interrupted: seed 1" in out
    runs = list(csv.DictReader((tmp_path / "out" / "runs.csv").open(newline="")))
    assert [r["run"] for r in runs if r["used"] == "True"] == ["1", "a"]
    assert [r["row"] for r in runs if r["used"] == "False"] == [""] * 4


def test_folds_that_test_the_same_case_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "a", fold=0)
    write_run(tmp_path / "b", fold=1, cases=dict(list(CASES.items())[1:]))
    with pytest.raises(InputError, match="b: tests case C2, as another fold"):
        compare([tmp_path])


def test_baselines_of_every_set_of_cases(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    write_sweep(root / "folds", ("UNet",))
    few = dict(list(CASES.items())[:4])
    write_run(root / "holdout", cases=few)
    text = compare([root], out=tmp_path / "out")
    table = read_table(tmp_path / "out" / "table.csv")
    assert list(table)[:2] == ["2 folds", "holdout"]
    assert_values(table["otsu (cases of 2 folds)"], by_hand("otsu", (0,), list(CASES)))
    assert_values(table["otsu (cases of holdout)"], by_hand("otsu", (0,), list(few)))
    assert "rows were not tested on the same cases" in text
    assert "4 to 9 test cases; 2 folds, each case out of fold once and holdout; " in text
    # Rows that lack folds need no baselines of their own.
    shutil.rmtree(root / "holdout")
    write_run(root / "part", "SegNet", 0, 0)
    table = table_of(tmp_path / "out", root)
    assert list(table) == ["SegNet", "UNet", "all_background", "otsu"]
    shutil.rmtree(root / "folds")
    table = table_of(tmp_path / "out", root)
    assert_values(table["otsu"], by_hand("otsu", (0,), cases_of(0)))


def test_equal_ids_of_other_pictures_are_other_cases(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    write_run(root / "a")
    write_run(root / "b", "SegNet")
    split = {"train": [], "val": [], "test": [*CASES]}
    write_json(root / "b" / "splits.json", split | {"sha256": {id: "other" for id in CASES}})
    text = compare([root], versus=[("unet", "segnet")])
    assert "rows were not tested on the same cases" in text
    assert re.search(r"UNet +SegNet +0 +1, 1 +- +- +-$", text, re.M)


def test_paired_tests(tmp_path: Path, script: Script) -> None:
    root = write_sweep(tmp_path / "runs")
    write_run(root / "gone", "Other", 0, 0, "failed", "E")
    out = tmp_path / "out"
    options = ("--versus", "unet", "otsu", "--versus", "UNet", "seg", "--versus", "other", "unet")
    ended = script("compare", root, *options, "--metric", "hd95", "--out", out)
    assert (ended.code, ended.err) == (0, "")
    tests = list(csv.DictReader((out / "versus.csv").open(newline="")))
    assert [(t["a"], t["b"]) for t in tests] == [
        *(("UNet", "otsu"), ("UNet", "SegNet"), ("Other", "UNet"))
    ]
    mean = {
        who: np.mean([[boundary_of(who, s, id)[0] for id in CASES] for s in seeds], axis=0)
        for who, seeds in (("UNet", SEEDS), ("SegNet", SEEDS), ("otsu", (0,)))
    }
    for test, other in zip(tests, ("otsu", "SegNet"), strict=False):
        differences = mean["UNet"] - mean[other]
        plain = stats.paired_test(differences)
        assert int(test["n"]) == 9
        for key, value in plain._asdict().items():
            assert float(test[key]) == pytest.approx(value, abs=1e-9)
    first, second = sorted(float(t["p"]) for t in tests[:2])
    holm = sorted(float(t["p_holm"]) for t in tests[:2])
    assert holm == pytest.approx([min(1, 2 * first), max(min(1, 2 * first), second)])
    assert (tests[2]["n"], tests[2]["p"]) == ("0", "")
    for text in ((out / "versus.md").read_text(), (out / "versus.tex").read_text(), ended.out):
        assert "intervals are over cases; seeds are averaged. So they are for these trained" in text
        assert "less is better" in text
    assert re.search(r"UNet +otsu +9 +3, 1 ", ended.out)
    # A pair is tested once, in whatever order.
    versus = [("otsu", "UNet"), ("unet", "otsu")]
    assert len(re.findall(r"^otsu +UNet |^UNet +otsu ", compare([root], versus=versus), re.M)) == 1
    for name, dice in (("a", 900), ("b", 1)):
        counts = {"tp": dice, "fp": 9, "tn": 1, "hd95": 1, "surface_dice": 1}
        counts |= {"outline_shift": 1, "missed_pieces": 0, "extra_pieces": 0}
        counts |= {"confidence": 1, "view_dice": ""}
        rows = [{"id": id, "diagnosis": "", "fn": i} | counts for i, id in enumerate(CASES)]
        write_csv(write_run(tmp_path / "apart" / name, name) / "test_cases.csv", rows)
    # Of 99 random flips none was as extreme: p is 2 / 100 or less.
    text = compare([tmp_path / "apart"], versus=[("a", "b")])
    assert re.search(r"\]  <= 0.0200  <= 0.0200$", text, re.M)


def test_columns_are_what_tells_rows_apart(tmp_path: Path) -> None:
    def columns(name: str, *runs: dict[str, Any]) -> list[list[str]]:
        for i, options in enumerate(runs):
            write_run(tmp_path / name / str(i), **options)
        rows, _ = make_rows(find_runs([tmp_path / name]))
        return [list(rows[0].labels), *([row.label] for row in rows if row.finished_runs)]

    assert columns("one", {}) == [["experiment", "model"], ["baseline, UNet"]]
    lr = {"task__optimizer__lr": 1e-05, "model": "SegNet", "name": "x", "model__width": 8}
    # Each tells both rows apart: the first in order does.
    assert columns("first", {}, lr) == [["experiment"], ["baseline"], ["x"]]
    rates = [{"task__optimizer__lr": rate} for rate in (0.1, 0.01, 10.0, 2.0, 1e-05)]
    assert columns("rates", *rates) == [
        *(["lr"], ["lr=1e-05"], ["lr=0.01"], ["lr=0.1"], ["lr=2.0"], ["lr=10.0"])
    ]
    losses = [{"task__loss___target_": name} for name in ("a.bce", "a.dice")]
    assert columns("losses", *losses) == [["loss"], ["bce"], ["dice"]]
    losses = [{"task__loss___target_": name} for name in ("a.bce", "b.bce")]
    assert columns("full", *losses) == [["loss"], ["a.bce"], ["b.bce"]]
    # What a sweep varied is shown, even where less would tell rows apart.
    models = [("UNet", "unet", 1), ("SegNet", "segnet", 2)]
    swept = [
        {"model": m, "data__size": n, "name": m, "varies": {"model": low, "data.size": n}}
        for m, low, n in models
    ]
    assert columns("all", *swept) == [["model", "size"], ["SegNet, size=2"], ["UNet, size=1"]]
    # Equal last names, and names that the table has already.
    sizes = [
        {"data__size": a, "model__size": b, "data__n": c}
        for a, b, c in ((1, 1, 1), (1, 2, 1), (2, 1, 1), (1, 1, 2))
    ]
    assert columns("sizes", *sizes)[0] == ["data.n", "data.size", "model.size"]


def test_runs_that_start_from_the_run_of_their_fold_and_seed_are_one_row(tmp_path: Path) -> None:
    for seed in (0, 1):
        for fold in (0, 1):
            for name, init in (
                ("own", f"/runs/first/seed-{seed}_fold-{fold}"),
                ("fixed", "/runs/first/seed-0_fold-1"),
                ("other", f"/runs/second/fold-{fold}"),
                ("older", None),  # without the key
            ):
                more: dict[str, Any] = {"init": init} if init else {}
                more["varies"] = {"seed": seed, "data.split.fold": fold}
                write_run(tmp_path / name / f"{seed}{fold}", seed=seed, fold=fold, **more)
    labels = {row.label: row for row in make_rows(find_runs([tmp_path]))[0] if row.finished_runs}
    assert {label: len(row.finished_runs) for label, row in labels.items()} == {
        "init=first/seed-*_fold-*": 4,
        "init=first/seed-0_fold-1": 4,
        "init=null": 4,
        "init=second/fold-*": 4,
    }
