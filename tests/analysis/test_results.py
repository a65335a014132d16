"""Results as plain rows: what run directories hold, as compare.py writes it."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.fake_runs import CASES, SEEDS, counts_of, write_run, write_sweep
from helpers.tiny import REPO

from seglab import load_results
from seglab.analysis.compare import compare
from seglab.core.errors import InputError


def test_rows_of_a_sweep(tmp_path: Path) -> None:
    root = write_sweep(tmp_path / "runs")
    write_run(root / "failed", fold=0, status="failed", error="E", task__optimizer__lr=0.5)
    compare([root], out=tmp_path / "out")
    results = load_results(root)
    written = list(csv.DictReader((tmp_path / "out" / "runs.csv").open(newline="")))
    for row, line in zip(results.runs, written, strict=True):
        assert [*row] == ["directory", *line]
        assert row["directory"] == str(root / row["run"])
        for name, text in line.items():
            assert str("" if row[name] is None else row[name]) == text.strip("-")
    keys = ("run", "experiment", "model", "lr", "seed", "fold", "status", "error")
    first, failed = ([row[key] for key in keys] for row in (results.runs[0], results.runs[-1]))
    assert first == ["SegNet-0-0", "baseline", "SegNet", 0.001, 0, 0, "finished", ""]
    assert failed == ["failed", "baseline", "UNet", 0.5, 0, 0, "failed", "E"]
    expected = [0.5, 0.5, 1.5, 1.5, 2.5, 2.5]
    assert [row["val/dice_per_image"] for row in results.runs] == [*expected, *expected, None]

    assert len(results.cases) == 2 * 3 * len(CASES)
    cases = [case for case in results.cases if case["run"].startswith("UNet-1-")]
    assert {case["id"]: case["diagnosis"] for case in cases} == CASES
    assert {(case["class"], case["subset"]) for case in cases} == {("lesion", "test")}
    for case in cases:
        counts = tuple(case[name] for name in ("tp", "fp", "fn", "tn"))
        assert counts == counts_of("UNet", 1, case["id"])


def test_it_answers_without_torch_and_says_what_is_missing(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "a")
    code = """
        import sys
        sys.modules["pandas"] = None
        import seglab
        results = seglab.load_results("runs")
        assert "torch" not in sys.modules
        try:
            results.to_pandas()
        except ValueError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", "if True:" + code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (
        0,
        "to_pandas: pandas is missing; pip install pandas\n",
    )
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: holds no run"):
        load_results(tmp_path / "runs", tmp_path / "empty")


def test_data_frames_hold_the_same(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    write_sweep(tmp_path / "a")
    write_run(tmp_path / "b" / "planned", status="planned", seed=9)
    results = load_results(tmp_path / "a", tmp_path / "b")
    runs, cases = results.to_pandas()
    assert (len(runs), len(cases)) == (len(results.runs), len(results.cases)) == (13, 54)
    assert runs["test/dice_per_image"].dtype == cases["hd95"].dtype == float
    assert cases["tp"].dtype == int
    assert runs["test/dice_per_image"].isna().sum() == 1
    joined = cases.merge(runs, on="run")  # no column but `run` is in both
    assert {*joined.columns} == {*runs.columns} | {*cases.columns}
    assert joined.groupby("model")["tp"].sum()["UNet"] == sum(
        counts_of("UNet", seed, id)[0] for seed in SEEDS for id in CASES
    )
