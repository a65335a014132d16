"""The transfer table against compare, evaluate and means by hand."""

import base64
import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.fake_runs import read_page
from helpers.tiny import Ended, refused, write_ph2_case
from PIL import Image

from seglab.analysis.compare import compare
from seglab.analysis.transfer import transfer
from seglab.core.files import read_csv
from seglab.inference import predictor
from seglab.inference.evaluate import evaluate

pytestmark = pytest.mark.usefixtures("few_resamples")


@pytest.fixture
def sweep(swept: Path) -> Path:
    """Two folds of six cases each."""
    return swept / "one"


@pytest.fixture
def own(swept: Path) -> Path:
    """The data of the sweep."""
    return swept.parent / "PH2Dataset"


@pytest.fixture
def other(own: Path, tmp_path: Path) -> Path:
    """Ten new cases, and one brighter copy of a case of the sweep."""
    random, root = np.random.default_rng(5), tmp_path / "other"
    for i in range(10):
        y, x = np.mgrid[:50, :70]
        mask = (y - random.uniform(15, 35)) ** 2 + (x - random.uniform(20, 50)) ** 2 < 150
        image = np.where(mask[..., None], 90, 190) + random.normal(0, 12, (50, 70, 3))
        write_ph2_case(root, f"N{i}", image.clip(0, 255).astype(np.uint8), mask)
    files = sorted(own.rglob("IMD003*.bmp"))
    image, mask = (np.asarray(Image.open(file)) for file in files)
    write_ph2_case(root, "COPY", (image * 0.98).astype(np.uint8), mask)
    return root


def read_cells(out: Path) -> dict[tuple[str, str], dict[str, str]]:
    return {(row["row"], row["set"]): row for row in read_csv(out / "transfer.csv")}


def test_a_row_is_scored_out_of_fold_or_by_its_ensemble(
    sweep: Path,
    other: Path,
    own: Path,
    script: Callable[..., Ended],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    out = tmp_path / "out"
    command = ("transfer", sweep, "--on", f"own={own}", f"other={other}", "--out", out)
    ended = script(*command)
    assert ended.code == 0, ended.err
    assert (
        "other: nearly the same as training images of baseline, and left out: COPY" in caplog.text
    )
    cells = read_cells(out)
    compare([sweep], out=tmp_path / "compared")
    row = read_csv(tmp_path / "compared" / "table.csv")[0]
    cell = cells["baseline", "own"]
    assert (cell["n"], cell["out_of_fold"], cell["networks"]) == ("12", "12", "2")
    found = cell["dice_per_image"], cell["low"], cell["high"]
    assert found == tuple(row[f"dice_per_image{end}"] for end in ("", "_low", "_high"))
    evaluate(sweep, other, tmp_path / "evaluated")
    dice = {
        case["id"]: case["dice_per_image"]
        for case in read_csv(tmp_path / "evaluated" / "test_cases.csv")
    }
    cases = [case for case in read_csv(out / "transfer_cases.csv") if case["set"] == "other"]
    assert {case["id"]: case["dice_per_image"] for case in cases} == dice | {"COPY": ""}
    assert {case["id"]: case["how"] for case in cases} == dict.fromkeys(dice, "new") | {
        "COPY": "near-duplicate"
    }
    mean = np.mean([float(dice[f"N{i}"]) for i in range(10)])
    assert float(cells["baseline", "other"]["dice_per_image"]) == pytest.approx(mean, abs=1e-12)
    assert re.search(r"own \(n 12\) +other \(n 10\)\nbaseline +2 .*\]† .*\]\n", ended.out)
    assert "other: 1 of 11 cases are left out in each row" in ended.out
    assert Image.open(out / "transfer.png").size[0] > 300
    page = tmp_path / "report.html"
    assert script("report", sweep, "--cases", 0, "--transfer", out, "--out", page).code == 0
    shown = read_page(page)["transfer"]
    assert shown["body"][0][:2] == ["baseline", "2"]
    assert base64.b64decode(shown["figure"].split(",")[1]) == (out / "transfer.png").read_bytes()
    content = {file.name: file.read_bytes() for file in out.iterdir()}
    monkeypatch.setattr(predictor, "predict_cases", None)  # the second call predicts nothing
    assert script(*command).out == ended.out
    assert content == {file.name: file.read_bytes() for file in out.iterdir()}


def test_a_column_has_the_cases_that_no_row_was_trained_on(
    sweep: Path, swept: Path, own: Path, other: Path, tmp_path: Path
) -> None:
    single = shutil.copytree(swept / "two" / "0", tmp_path / "single")
    sets = [f"own={own}", str(other)]
    text = transfer([sweep, f"one={single}"], sets)
    ids = json.loads((single / "splits.json").read_text())["test"]
    rows = read_csv(single / "test_cases.csv")
    mean = np.mean([float(row["dice_per_image"]) for row in rows])
    assert re.search(rf"one +1 +{mean:.3f} ", text)
    assert f"own (n {len(ids)})" in text
    assert (
        f"own: {12 - len(ids)} of 12 cases are left out in each row; in train or val of: "
        f"one {12 - len(ids)}\n" in text
    )
    assert len([*single.glob("evaluations/scores-*.json")]) == 1


def test_a_network_that_was_not_trained_to_its_end_is_named(
    swept: Path, other: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    single = shutil.copytree(swept / "two" / "0", tmp_path / "single")
    record = json.loads((single / "run.json").read_text()) | {"status": "interrupted"}
    (single / "run.json").write_text(json.dumps(record))
    transfer([f"one={single}"], [str(other)], limit=2)
    assert "one: not finished (interrupted)" in caplog.text


def test_an_interrupted_command_goes_on(
    sweep: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(next(other.rglob("COPY")))
    arguments = ([sweep], [f"other={other}"], tmp_path / "out")
    predict_cases = predictor.predict_cases
    predicted = []

    def predict_some(predict, cases, name):
        for case in predict_cases(predict, cases, name):
            predicted.append(case[0].id)
            yield case
            if len(predicted) == 4:
                raise KeyboardInterrupt

    monkeypatch.setattr(predictor, "predict_cases", predict_some)
    with pytest.raises(KeyboardInterrupt):
        transfer(*arguments)
    text = transfer(*arguments)
    assert predicted == [f"N{i}" for i in range(10)]
    monkeypatch.undo()
    assert text == transfer(*arguments[:2], tmp_path / "again")


def test_limit_draws_a_stable_sample(sweep: Path, other: Path, tmp_path: Path) -> None:
    drawn = {}
    for n in (3, 6):
        text = transfer([sweep], [f"other={other}"], tmp_path / "out", n)
        assert f"other: {n} of 10 cases are tested, drawn by the hash of their ids" in text
        cases = read_csv(tmp_path / "out" / "transfer_cases.csv")
        drawn[n] = {case["id"] for case in cases if case["dice_per_image"]}
    assert len(drawn[3]) == 3
    assert drawn[3] < drawn[6]


def test_what_cannot_be_tested_is_refused_in_one_line(
    sweep: Path, own: Path, script: Callable[..., Ended]
) -> None:
    refused(
        script("transfer", sweep, sweep, "--on", f"a={own}"),
        None,
        "baseline, baseline: expected different names; write NAME=PATH",
    )
    refused(
        script("transfer", sweep, "--on", f"a={own}", f"a={own}"), None, "a, a: expected different"
    )
    refused(script("transfer", sweep, "--on", "a=nowhere"), None, "--on a=nowhere: no such folder")
    refused(script("transfer", sweep, "--on", f"a={own}", "--limit", 0), None, "--limit=0")
    refused(
        script("report", sweep, "--transfer", own), None, "holds no transfer.json; name the --out"
    )
    member = sweep / "0"
    refused(script("transfer", sweep, "--on", f"a={own}", "--out", member), None, "belongs to")
