"""Two data sets in one run, end to end: trained once, and read by every command."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers.fake_runs import read_page
from helpers.tiny import Ended, write_tiny_classes, write_tiny_ph2
from PIL import Image

import seglab
from seglab.analysis.compare import compare
from seglab.analysis.report import report
from seglab.core.files import read_csv, read_json
from seglab.inference.calibration import read_calibration

pytestmark = pytest.mark.slow
Script = Callable[..., Ended]
SETTINGS = ["logger=none", "callbacks.pictures=null", "monitor=null", "task.optimizer.lr=0.02"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Set one has 12 cases of PH2, set two 15 pairs, whose masks hold two values for lesion."""
    folder = tmp_path_factory.mktemp("sets")
    write_tiny_ph2(folder / "data" / "one", 12)
    write_tiny_classes(folder / "data" / "two", n=15)
    return folder


@pytest.fixture
def sweep(folder: Path, script: Script, cache_dir: Path) -> Path:
    """Two folds of set one; of set two the same six cases are tested in both."""
    two = "{root: two, lesion_values: nonzero, split: {fold: null, test: 0.4}}"
    own = f"{{one: {{root: one, weight: 2}}, two: {two}}}"
    data = ["data=default", f"data.root={folder / 'data'}", f"+data.sets={own}"]
    data += ["data.split.folds=2", "data.split.val=0.3", "data.batch_size=4", "data.size=32"]
    for fold in (0, 1):
        run = folder / "sweep" / f"fold-{fold}"
        if not run.exists():
            network = ["model.width=4", "model.depth=2", "trainer.max_epochs=3"]
            more = [f"data.cache_dir={cache_dir}", f"data.split.fold={fold}"]
            ended = script("train", *data, *SETTINGS, *network, *more, f"hydra.run.dir={run}")
            assert ended.code == 0, ended.err
    return folder / "sweep"


def mean_dice(file: Path, data_set: str) -> float:
    rows = [row for row in read_csv(file) if row["set"] == data_set]
    assert all(row["id"].startswith(f"{data_set}/") for row in rows)
    counts = np.array([[int(row[name]) for name in ("tp", "fp", "fn")] for row in rows], float)
    return float((2 * counts[:, 0] / (2 * counts[:, 0] + counts[:, 1] + counts[:, 2])).mean())


def test_tables_results_and_report(sweep: Path, tmp_path: Path) -> None:
    compare([sweep], "all", by_diagnosis=True, slices=True, out=tmp_path / "out")
    lines = [row for row in read_csv(tmp_path / "out" / "table.csv") if row["diagnosis"] == "all"]
    rows = {row["set"]: row for row in lines if row["status"] == "finished"}
    assert {name: (row["n"], row["runs"]) for name, row in rows.items()} == {
        **{"one": ("12", "2"), "two": ("6", "2")}
    }
    means = [mean_dice(sweep / f"fold-{fold}" / "test_cases.csv", "two") for fold in (0, 1)]
    assert float(rows["two"]["dice_per_image"]) == pytest.approx(np.mean(means), abs=1e-12)
    assert float(rows["two"]["dice_per_image_sd"]) == pytest.approx(np.std(means, ddof=1))
    _, cases = seglab.load_results(sweep)
    assert len(cases) == 12 + 2 * 6
    page = read_page(report([sweep], tmp_path / "page.html", cases=2))
    drawn = [card["id"] for card in page["gallery"]["cases"]]
    assert {id.partition("/")[0] for id in drawn[:4]} == {"one", "two"}
    assert all(
        "prediction" in row for card in page["gallery"]["cases"] for row in card["rows"].values()
    )
    assert page["gallery"]["notes"][0].startswith(
        "shown are the 2 of 18 cases with the lowest Dice of each data"
    )


def test_model_card_and_summary(sweep: Path) -> None:
    run = sweep / "fold-0"
    text, summary = (run / "MODEL_CARD.md").read_text(), read_json(run / "summary.json")
    results = yaml.safe_load(text.split("---")[1])["model-index"][0]["results"]
    assert [result["dataset"]["name"] for result in results] == ["one", "two"]
    for result in results:
        name = result["dataset"]["name"]
        values = {metric["name"]: metric["value"] for metric in result["metrics"]}
        assert values["dice_per_image"] == summary["test"][f"{name}/dice_per_image"]
        assert values["dice_per_image"] == pytest.approx(mean_dice(run / "test_cases.csv", name))
        assert f"### Test cases of `{name}`" in text
    log = (run / "train.log").read_text()
    for name, n_val, n_test in (("one", 2, 6), ("two", 3, 6)):
        assert f"native resolution, {n_val} val and {n_test} test cases of {name}; " in log


def test_evaluate_reproduce_and_calibrate(
    sweep: Path, script: Script, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert script("evaluate", sweep / "fold-0", "--out", tmp_path / "again").code == 0
    again, first = (
        read_json(path / "summary.json") for path in (tmp_path / "again", sweep / "fold-0")
    )
    assert again["test"] == first["test"]
    assert again["calibration"] == first["calibration"]
    assert "two/dice_per_image " in caplog.text
    assert script("reproduce", sweep / "fold-0", "--out", tmp_path / "twice").code == 0
    assert script("calibrate", sweep).code == 0
    cases = {case.id: case for case in read_calibration(sweep).cases}
    assert len(cases) == 12 + 6
    rows = [row for f in (0, 1) for row in read_csv(sweep / f"fold-{f}" / "test_cases.csv")]
    of_case = [row for row in rows if row["id"] == "two/case00" or row["id"] == rows[-1]["id"]]
    dice = [float(row["dice_per_image"]) for row in of_case if row["id"] == rows[-1]["id"]]
    assert len(dice) == 2
    assert cases[rows[-1]["id"]].dice == pytest.approx(np.mean(dice))
    Image.new("RGB", (60, 45), "white").save(tmp_path / "picture.png")
    options = (tmp_path / "picture.png", "--out", tmp_path / "masks", "--quality")
    assert script("predict", sweep, *options).code == 0
    assert read_csv(tmp_path / "masks" / "quality.csv")[0]["picture"] == "picture"


def test_annotations_of_one_set_are_checked(sweep: Path, script: Script, tmp_path: Path) -> None:
    file, figure = tmp_path / "all.json", tmp_path / "check.png"
    options = ("--runs", sweep, "--json", file, "--show", 2, "--figure", figure)
    ended = script("prepare_ph2", "--check", sweep.parent / "data" / "one", *options)
    assert ended.code == 0, ended.err
    ids = [found["id"] for found in read_json(file)["annotations"]]
    assert sorted(ids) == [f"one/IMD{i:03}" for i in range(12)]
    assert "not ranked" not in ended.out
    assert figure.exists()
