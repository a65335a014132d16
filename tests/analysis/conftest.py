"""Fixtures of the tests on tables, and reports of runs that are trained once."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.fake_runs import HOSTILE
from helpers.tiny import Ended, write_tiny_ph2

from seglab.analysis import statistics
from seglab.analysis.grouping import make_rows
from seglab.analysis.report import report
from seglab.runs.records import find_runs

Script = Callable[..., Ended]
PLAIN = ["logger=none", "callbacks.pictures=null", "monitor=null", "model.width=2"]


@pytest.fixture
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 99)


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take half a second."""
    monkeypatch.setattr("seglab.analysis.figures.save_boxes", lambda *args: None)


@pytest.fixture(scope="session")
def report_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("report")


@pytest.fixture
def swept(report_folder: Path, tiny_train: Script) -> Path:
    """Two rows of two folds each; read-only by agreement."""
    data, runs = report_folder / "PH2Dataset", report_folder / "runs"
    if not runs.exists():
        write_tiny_ph2(data, 12)
        for name, more in (("one", ["inference.tta=true"]), ("two", ["model.depth=1"])):
            for fold in (0, 1):
                split = [f"data.split.fold={fold}", "data.split.folds=2", f"data.root={data}"]
                more = [*more, "inference.largest_component=true", "task.optimizer.lr=0.02"]
                ended = tiny_train(runs / name / str(fold), *PLAIN, *split, *more)
                assert ended.code == 0, ended.err
    return runs


@pytest.fixture
def labels(swept: Path) -> list[str]:
    """Of the two rows."""
    return [row.label for row in make_rows(find_runs([swept]))[0] if row.finished_runs]


@pytest.fixture
def page(report_folder: Path, swept: Path, labels: list[str]) -> Path:
    """Of both rows, the second against the first."""
    out = report_folder / "both.html"
    return out if out.exists() else report([swept], out, versus=[(labels[1], labels[0])])


@pytest.fixture
def hostile(swept: Path, tmp_path: Path) -> Path:
    """A page of a run whose files hold markup wherever they hold text."""
    run = tmp_path / "run"
    shutil.copytree(swept / "one" / "0", run)
    for name, old in {
        "test_cases.csv": "IMD",
        "splits.json": "IMD",
        "baseline_cases.csv": "IMD",
        "config.yaml": "name: baseline",
    }.items():
        text = (run / name).read_text()
        assert old in text
        new = f"name: '{HOSTILE}'" if old[0] == "n" else f"{HOSTILE}IMD"
        (run / name).write_text(text.replace(old, new).replace("nevus", f"nevus {HOSTILE}"))
    record = json.loads((run / "run.json").read_text())
    record["git"]["commit"] = record["versions"]["seglab"] = HOSTILE
    (run / "run.json").write_text(json.dumps(record))
    return report([run], tmp_path / "hostile.html")
