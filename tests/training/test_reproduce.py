"""reproduce.py: the same, nearly the same, something else; and what it leaves alone."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.tiny import AUGMENT, Ended, write_tiny_ph2
from PIL import Image

from seglab.core.files import read_csv, write_csv

Script = Callable[..., Ended]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reproduce")


@pytest.fixture
def data(folder: Path) -> Path:
    """A PH2 of its own, put back after a test has spoilt it."""
    shutil.rmtree(folder / "PH2Dataset", ignore_errors=True)
    return write_tiny_ph2(folder / "PH2Dataset", 12)


@pytest.fixture
def run(folder: Path, data: Path, tiny_train: Script, tmp_path: Path) -> Path:
    """A copy of a finished run, to be spoilt."""
    first = folder / "run"
    if not first.exists():
        ended = tiny_train(first, f"data.root={data}", AUGMENT)
        assert ended.code == 0, ended.err
    shutil.copytree(first, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level("INFO")
    return caplog


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def edit(file: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_a_run_repeated_is_identical(run: Path, script: Script, tmp_path: Path) -> None:
    before = contents(run)
    out = tmp_path / "again"
    ended = script("reproduce", run, "--out", out)
    assert ended.code == 0, ended.err
    assert script("reproduce", run, "--check").code == 0
    assert contents(run) == before
    report = json.loads((out / "reproduction.json").read_text())
    assert report["verdict"] == "identical"
    assert report["values_that_differ"] == {}
    # Two checkpoints; the scores; every cell of four tables.
    summary = json.loads((run / "summary.json").read_text())
    scores = len(summary["val"]) + len(summary["test"])
    scores += sum(map(len, summary["baselines"].values()))
    names = ("metrics.csv", "val_cases.csv", "test_cases.csv", "baseline_cases.csv")
    cells = sum(len(row) for name in names for row in read_csv(run / name))
    assert report["values_compared"] == 2 + scores + cells
    assert (out / "metrics.csv").read_bytes() == (run / "metrics.csv").read_bytes()


def test_an_image_that_lost_a_pixel_is_named(
    run: Path, data: Path, script: Script, said: pytest.LogCaptureFixture
) -> None:
    (file,) = data.rglob("IMD007.bmp")
    stat = file.stat()
    with Image.open(file) as picture:
        changed = picture.copy()
    changed.putpixel((5, 5), (0, 0, 0))
    changed.save(file)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file.stat().st_size == stat.st_size
    for arguments in ([], ["--check"]):
        said.clear()
        assert script("reproduce", run, *arguments).code == 4
        assert f"{file} changed" in said.text
        assert "different" in said.text
        assert not (run / "reproductions").exists()  # nothing was trained on other data


def test_missing_and_new_files_are_named(
    run: Path, data: Path, script: Script, said: pytest.LogCaptureFixture
) -> None:
    for path in sorted(data.rglob("*IMD003*"), reverse=True):  # files before their folder
        path.rename(path.with_name(path.name.replace("IMD003", "IMD900")))
    assert script("reproduce", run, "--check").code == 4
    assert "IMD900.bmp is new" in said.text
    assert "IMD003_lesion.bmp is missing" in said.text


def test_what_else_has_changed_is_said(
    run: Path, script: Script, said: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    changed = {"versions": "torch", "machine": "cpu_capability", "git": "source_sha256"}
    for key, name in changed.items():
        edit(run / "run.json", lambda record, key=key, name=name: record[key].update({name: "1.0"}))
    assert script("reproduce", run, "--check").code == 3
    assert all(f"{name} 1.0 then" in said.text for name in changed.values())
    # What counts is what comes out.
    assert script("reproduce", run, "--out", tmp_path / "again").code == 0


@pytest.mark.parametrize(
    ("gaps", "code"),
    # A tolerance of 0.01 is 10 pixels of HD95.
    [({"dice_per_image": 0.004, "hd95": 9}, 3), ({"hd95": 11}, 4)],
)
def test_scores_are_held_against_a_tolerance(
    gaps: dict[str, float], code: int, run: Path, script: Script, tmp_path: Path
) -> None:
    def shift(summary: dict) -> None:
        for score, gap in gaps.items():
            summary["test"][score] += gap

    edit(run / "summary.json", shift)
    out = tmp_path / "again"
    assert script("reproduce", run, "--out", out).code == code
    report = json.loads((out / "reproduction.json").read_text())
    differ = {
        name.removeprefix("summary.json test "): then - now
        for name, (then, now) in report["values_that_differ"].items()
    }
    assert differ == pytest.approx(gaps)
    assert report["verdict"] == {3: "within tolerance", 4: "different"}[code]


def test_a_value_beside_the_scores_is_no_identity(run: Path, script: Script) -> None:
    rows = read_csv(run / "test_cases.csv")
    rows[0]["tp"] = str(int(rows[0]["tp"]) + 1)
    write_csv(run / "test_cases.csv", rows)
    assert script("reproduce", run).code == 3
    assert script("reproduce", run, "--tolerance", "0").code == 3  # no score differs


def test_code_of_ones_own_is_compared(
    data: Path,
    tiny_train: Script,
    script: Script,
    said: pytest.LogCaptureFixture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = tmp_path / "own_losses.py"
    module.write_text("from seglab.losses import bce as mine\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    run, loss = tmp_path / "run", "task.loss._target_=own_losses.mine"
    ended = tiny_train(run, f"data.root={data}", loss, "trainer.max_epochs=1")
    assert ended.code == 0, ended.err
    trust = ("--check", "--trust", "own_losses.mine")
    assert script("reproduce", run, *trust).code == 0
    module.write_text("from seglab.losses import bce as mine  # changed\n")
    assert script("reproduce", run, *trust).code == 3
    assert "own_losses " in said.text


def test_a_broken_summary_is_found_before_training(run: Path, script: Script) -> None:
    (run / "summary.json").write_text('{"val": {}, "best_epoch": 3}')
    ended = script("reproduce", run)
    assert ended.code == 1
    assert "summary.json" in ended.err
    assert not (run / "reproductions").exists()


def test_a_strangers_text_cannot_write_to_the_terminal(
    run: Path, script: Script, said: pytest.LogCaptureFixture
) -> None:
    edit(run / "run.json", lambda r: r["versions"].update(python="\x1b[2J\nidentical"))
    edit(run / "data.json", lambda d: d["files"].update({"\x1b[31mx\nsplit     the same": "0"}))
    assert script("reproduce", run, "--check").code == 4
    assert "\x1b" not in said.text
    assert "\nsplit" not in said.text and "\nidentical" not in said.text


def test_data_may_have_moved(run: Path, data: Path, script: Script, tmp_path: Path) -> None:
    data.rename(tmp_path / "moved")
    assert script("reproduce", run, "--check").code == 1
    assert script("reproduce", run, "--data", tmp_path / "moved").code == 0


def test_another_split_is_different(
    run: Path, script: Script, said: pytest.LogCaptureFixture
) -> None:
    config = run / "config.yaml"
    config.write_text(
        config.read_text().replace("    seed: 42\n    file", "    seed: 41\n    file")
    )
    assert "seed: 41" in config.read_text()
    assert script("reproduce", run).code == 4
    assert "this config gives another one today" in said.text


@pytest.mark.parametrize("content", ["[]", "{}", '{"files": []}'])
def test_damaged_hashes_of_the_data_are_refused(
    content: str, run: Path, data: Path, script: Script, tiny_train: Script
) -> None:
    (run / "data.json").write_text(content)
    ended = script("reproduce", run, "--check")
    assert ended.code == 1 and "data.json: damaged" in ended.err
    edit(run / "run.json", lambda record: record.update(status="interrupted"))
    ended = tiny_train(run, f"data.root={data}", AUGMENT)
    assert ended.code == 1 and "data.json: damaged" in ended.err


def test_a_run_that_did_not_end_and_missing_data_are_one_line(
    run: Path, data: Path, script: Script
) -> None:
    edit(run / "run.json", lambda record: record.update(status="interrupted"))
    ended = script("reproduce", run)
    assert ended.code == 1 and "is not finished (status interrupted)" in ended.err
    edit(run / "run.json", lambda record: record.update(status="finished"))
    shutil.rmtree(data)
    ended = script("reproduce", run)
    assert ended.code == 1 and str(data) in ended.err
    assert "Traceback" not in ended.err
    assert not (run / "reproductions").exists()
