"""bundle.py: the archive gives the bytes of its runs elsewhere, and its checklist their figures."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.fake_runs import CASES, HOSTILE, contents, read_page, write_run, write_sweep
from helpers.tiny import ONE_THREAD, REPO, Ended, files_below, refused

from seglab.analysis.bundle import bundle
from seglab.analysis.compare import compare
from seglab.analysis.grouping import make_rows
from seglab.core.errors import InputError
from seglab.core.files import read_csv, read_json, write_json
from seglab.runs.paths import FORMAT
from seglab.runs.records import find_runs

Script = Callable[..., Ended]


def opened(file: Path, where: Path) -> Path:
    """Unpacks an archive; returns its only folder, which has the archive's name."""
    with zipfile.ZipFile(file) as archive:
        archive.extractall(where)
    (folder,) = where.iterdir()
    assert folder.name == file.stem
    return folder


def edit_record(run: Path, **values: Any) -> None:
    record = read_json(run / "run.json")
    write_json(run / "run.json", record | values)


def run_compare(*arguments: object, cwd: Path) -> str:
    """What compare.py prints in a process of its own."""
    ended = subprocess.run(
        [sys.executable, str(REPO / "scripts" / "compare.py"), *map(str, arguments)],
        cwd=cwd,
        env=os.environ | ONE_THREAD | {"PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


@pytest.fixture
def sweep(swept: Path, tmp_path: Path) -> Path:
    """Two rows of two trained folds each, and a run that failed."""
    root = tmp_path / "here" / "sweep"
    shutil.copytree(swept, root)
    config = yaml.safe_load((root / "one" / "0" / "config.yaml").read_text())
    config["task"]["optimizer"]["lr"] = 9.0
    failed = {"status": "failed", "error": "RuntimeError: out of memory", "config": config}
    (root / "three" / "0").mkdir(parents=True)
    write_json(root / "three" / "0" / "run.json", {"format": FORMAT} | failed)
    return root


@pytest.fixture
def trained(sweep: Path) -> dict[str, str]:
    """Labels of its finished rows by the folders of their runs."""
    rows = make_rows(find_runs([sweep]))[0]
    return {row.runs[0].folder.parent.name: row.label for row in rows if row.finished_runs}


def test_the_opened_archive_gives_the_same_bytes_elsewhere(
    sweep: Path, trained: dict[str, str], script: Script, tmp_path: Path
) -> None:
    versus = ["--versus", *trained.values()]
    options = ["--metrics", "all", "--slices", *versus, "--power", "0.01", "--out"]
    printed = run_compare(sweep, *options, tmp_path / "tables", cwd=tmp_path)
    plain = run_compare(sweep, "--by-diagnosis", cwd=tmp_path)
    ended = script("bundle", sweep, *versus)
    assert ended.code == 0, ended.err
    assert not (sweep / "report.html").exists()
    shutil.rmtree(sweep)

    folder = opened(sweep.with_name("sweep.zip"), tmp_path / "there")
    assert run_compare("runs", *options, tmp_path / "again", cwd=folder) == printed
    assert run_compare(folder / "runs", "--by-diagnosis", cwd=Path("/")) == plain
    assert (folder / "tables.txt").read_text() == printed
    assert contents(folder / "tables") == contents(tmp_path / "again")
    assert contents(folder / "tables") == contents(tmp_path / "tables")
    assert {"table.tex", "versus.csv", "power.md", "slices.tex"} <= contents(
        folder / "tables"
    ).keys()
    readme = (folder / "README.md").read_text()
    (line,) = re.findall(r"^seglab (compare runs .*) --out again > again.txt$", readme, re.M)
    assert [*map(line.count, ("--slices", "--versus", "--power 0.01"))] == [1, 1, 1]

    page = read_page(folder / "report.html")
    assert any(
        "prediction" in row for case in page["gallery"]["cases"] for row in case["rows"].values()
    )
    ended = script("report", folder / "runs")
    assert ended.code == 0
    notes = read_page(folder / "runs" / "report.html")["gallery"]["notes"]
    assert sum("no predictions are shown" in note and "best.ckpt" in note for note in notes) == 4


def test_what_the_archive_holds(sweep: Path, script: Script, tmp_path: Path) -> None:
    run = sweep / "one" / "0"
    (run / "masks").mkdir()
    (run / "masks" / "IMD001.png").write_bytes(b"mask")
    (run / "code.diff").write_text("a change")
    for name in ("evaluations/other/summary.json", "evaluations/other/scores-1.json"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("{}")
    (sweep / "one" / "jobs.csv").write_text("job,status\n")
    out = tmp_path / "for reviewers.zip"
    assert script("bundle", sweep, "--out", out).code == 0
    folder = opened(out, tmp_path / "there")
    assert {path.name for path in folder.iterdir()} == {
        *("README.md", "REPORTING.md", "SHA256SUMS", "environment.txt", "report.html"),
        *("runs", "tables", "tables.txt"),
    }
    packed = files_below(folder / "runs")
    of_run = {name.removeprefix("one/0/") for name in packed if name.startswith("one/0/")}
    assert of_run >= {
        *("run.json", "config.yaml", "splits.json", "data.json", "code.diff", "metrics.csv"),
        *("val_cases.csv", "test_cases.csv", "baseline_cases.csv", "case_attributes.csv"),
        *("summary.json", "MODEL_CARD.md", "figures/worst.png", "masks/IMD001.png"),
        "evaluations/other/summary.json",
    }
    assert "one/jobs.csv" in packed and "three/0/run.json" in packed
    for name in packed:  # as they were: labels and hashes are of them
        assert (folder / "runs" / name).read_bytes() == (sweep / name).read_bytes()
    assert not re.findall(r"\S*(?:ckpt|events|train\.log|\.npy|scores-1)\S*", "\n".join(packed))
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    sums = {name: sha256 for sha256, name in (line.split("  ") for line in lines)}
    assert {*sums} == files_below(folder) - {"SHA256SUMS"}
    for name, sha256 in sums.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == sha256

    again = tmp_path / "again" / out.name
    again.parent.mkdir()
    bundle([sweep], again)
    assert again.read_bytes() == out.read_bytes()


@pytest.mark.usefixtures("few_resamples", "no_figures")
def test_the_checklist_has_the_figures_of_the_runs(
    sweep: Path, trained: dict[str, str], tmp_path: Path
) -> None:
    versus = (trained["one"], trained["two"])
    out = bundle([sweep], tmp_path / "a.zip", versus=[versus])
    folder = opened(out, tmp_path / "there")
    text = (folder / "REPORTING.md").read_text()
    table = {row["label"]: row for row in read_csv(folder / "tables" / "table.csv")}
    for name, label in trained.items():
        runs = [sweep / name / fold for fold in "01"]
        cases = [case for run in runs for case in read_csv(run / "test_cases.csv")]
        dice = [float(case["dice_per_image"]) for case in cases]
        mean, low, high = (
            float(table[label][f"dice_per_image{end}"]) for end in ("", "_low", "_high")
        )
        assert mean == pytest.approx(sum(dice) / len(dice))
        assert f"| {label} | {len(cases)} | {mean:.3f} [{low:.3f}, {high:.3f}] |" in text
        assert f"below 0.8 in {sum(value < 0.8 for value in dice)} of {len(dice)} cases" in text
        counts = Counter(case["diagnosis"] for case in cases)
        assert ", ".join(f"{n} `{d}`" for d, n in sorted(counts.items())) in text
    record, split = (read_json(runs[0] / f"{name}.json") for name in ("run", "splits"))
    sizes = ", ".join(f"{len(split[part])} {part}" for part in ("train", "val", "test"))
    assert f"Cases in a single run: {sizes}." in text
    assert record["git"]["source_sha256"] in text
    assert record["data_fingerprint"][:12] in text
    assert "Nothing was monitored: the weights are those of the last epoch (`2`)" in text
    assert "1 pair of rows was tested" in text and "Holm" in text
    assert "in each run that records its training cases (4): no id, and no content" in text
    assert "- run `three/0`: failed (`RuntimeError: out of memory`)" in text
    assert "No rows were tested" not in text
    unknown = text.partition("## Unknown")[2]
    assert "of which patient a case is" in unknown
    assert "intervals over fewer than 50 cases are too narrow" in text
    for commit in {record["git"]["commit"]} - {None}:
        assert f"commit `{commit}`" in text
        assert f"`git checkout {commit}`" in (folder / "README.md").read_text()


@pytest.fixture
def bare(tmp_path: Path, few_resamples: None, no_figures: None) -> Path:
    """A sweep that no training wrote."""
    return write_sweep(tmp_path / "sweep", ("UNet",))


def test_records_that_differ_are_told(bare: Path, tmp_path: Path) -> None:
    runs = sorted(bare.iterdir())
    versions = {"python": "3.12.1", "seglab": "0.1.0", "torch": "2.13.0+cpu", "numpy": "2.4.6"}
    for run in runs:
        edit_record(run, versions=versions, machine={"host": "vm", "processor": "P", "cores": 2})
    git = {"commit": "c0ffee", "source_sha256": "code", "dirty": True}
    command = ["/home/me/python", "/home/me/scripts/train.py", "name=a b"]
    other = versions | {"torch": "2.14.0+cpu", "-r": "evil", "evil": "1 --index-url=x", "new": "1"}
    edit_record(runs[0], versions=other, git=git, command=command, directory="/home/me")
    (runs[0] / "code.diff").write_text("a change")
    split = read_json(runs[1] / "splits.json")
    split["train"] = split["test"][:1]
    write_json(runs[1] / "splits.json", split)
    folder = opened(bundle([bare]), tmp_path / "there")

    lines = (folder / "environment.txt").read_text().splitlines()
    assert [line for line in lines if line and line[0] != "#"] == [
        *("torch==2.13.0+cpu", "numpy==2.4.6", "new==1")
    ]
    for line in (
        "# python==3.12.1",
        "# torch 2.14.0+cpu in: UNet-0-0",
        "# -r==evil",
        "# evil==1 --index-url=x",
        "# new not installed in: UNet-0-1, UNet-1-0, UNet-1-1, UNet-2-0, UNet-2-1",
    ):
        assert line in lines
    readme = (folder / "README.md").read_text()
    assert "- `git checkout c0ffee`, then `git apply` with `runs/UNet-0-0/code.diff`" in readme
    assert "no git commit is recorded" in readme
    assert '# UNet-0-0\npython scripts/train.py "name=a b"\n' in readme
    assert "`/data/PH2`, `/home/me`, `vm`" in readme
    assert "-c environment.txt --extra-index-url https://download.pytorch.org/whl/cpu" in readme
    text = (folder / "REPORTING.md").read_text()
    assert "commit `c0ffee`, with uncommitted changes, in `code.diff`" in text
    assert "In `UNet-0-1` a case of test or val is in train" in text
    assert "\n- the commit of the code, in `UNet-0-1`, " in text
    assert "the epoch with the highest `val/dice_per_image_net` (`3`)" in text
    assert "standard deviation over 3 seeds" in text
    assert f"Its {len(CASES)} test cases by diagnosis: 6 `common nevus`, 3 `melanoma`." in text


def test_several_settings_flatter_the_best(bare: Path, tmp_path: Path) -> None:
    for i in range(2):
        varies = {"task.optimizer.lr": str(i)}
        write_run(bare / f"lr-{i}", task__optimizer__lr=float(i), varies=varies)
    write_run(bare / "lr-2", status="pruned", task__optimizer__lr=2.0, varies=varies)
    folder = opened(bundle([bare]), tmp_path / "there")
    text = (folder / "REPORTING.md").read_text()
    assert "Runs of 4 settings are here, which differ in `protocol`, `task.optimizer.lr`." in text
    assert "as the highest of 4" in text
    assert "stopped early, by their val values: 1." in text


def test_folders_of_several_sweeps_keep_their_labels(bare: Path, tmp_path: Path) -> None:
    other = write_sweep(tmp_path / "more" / "other", ("SegNet",))
    out = bundle([bare, other], tmp_path / "both.zip")
    folder = opened(out, tmp_path / "there")
    assert compare([folder / "runs"]) == compare([bare, other])
    labels = [run.label for run in find_runs([folder / "runs"])]
    assert labels == [run.label for run in find_runs([bare, other])]
    with pytest.raises(InputError, match="--out: name the file to write"):
        bundle([bare, other])


def test_a_single_run_is_packed(bare: Path, tmp_path: Path) -> None:
    run = bare / "UNet-0-0"
    folder = opened(bundle([run]), tmp_path / "there")
    assert compare([folder / "runs"]) == compare([run])
    assert "missing: seed 0 fold 1" in (folder / "REPORTING.md").read_text()


def test_markup_of_a_stranger_stays_text(bare: Path, tmp_path: Path) -> None:
    run = bare / "UNet-0-0"
    versions = dict.fromkeys(("seglab", "torch", "python"), HOSTILE)
    git = {"commit": HOSTILE, "source_sha256": HOSTILE}
    edit_record(run, versions=versions, git=git, warnings=[HOSTILE], directory=HOSTILE)
    write_run(bare / "gone", status="failed", error=HOSTILE, name=HOSTILE)
    folder = opened(bundle([bare]), tmp_path / "there")
    for name in ("README.md", "REPORTING.md"):
        assert "<img" not in (folder / name).read_text()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda run: (run / "run.json").write_text("{"), ("run.json", "damaged")),
        (lambda run: (run / "splits.json").unlink(), ("splits.json", "no such file")),
        (lambda run: (run / "test_cases.csv").write_text("id\n"), ("test_cases.csv", "damaged")),
        (lambda run: (run / "summary.json").unlink(), ("summary.json", "no such file")),
        (lambda run: (run / "data.json").symlink_to("/etc/hosts"), ("data.json", "no link")),
        (lambda run: (run / "figures").symlink_to("/etc"), ("figures", "no link")),
        (lambda run: (run / "code.diff").mkdir(), ("code.diff", "a regular file")),
        (lambda run: run.parent.with_name("sweep.zip").touch(), ("sweep.zip", "a new file")),
    ],
)
def test_damaged_runs_give_one_line(
    spoil: Callable[[Path], object],
    words: tuple[str, ...],
    bare: Path,
    script: Script,
) -> None:
    spoil(bare / "UNet-1-0")
    refused(script("bundle", bare), None, *words)
    archive = bare.with_name("sweep.zip")
    assert not archive.exists() or not archive.stat().st_size
    assert not list(bare.parent.glob(".*"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--out", "a.tar"], ("a.tar", "ends in .zip")),
        (["--out", "nowhere/a.zip"], ("nowhere/a.zip", "cannot be written")),
        (["--out", "sweep/UNet-0-0/checkpoints/a.zip"], ("belongs to the run",)),
        (["--versus", "baseline", "no"], ("--versus 'no'",)),
    ],
)
def test_bad_options_give_one_line(
    options: list[str],
    words: tuple[str, ...],
    bare: Path,
    script: Script,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(bare.parent)
    refused(script("bundle", "sweep", *options), None, *words)
    assert not list(bare.parent.rglob("*.zip"))


def test_runs_that_all_failed_are_refused(tmp_path: Path, script: Script) -> None:
    write_run(tmp_path / "sweep" / "a", status="failed", error="RuntimeError: lr")
    refused(script("bundle", tmp_path / "sweep"), None, "holds no finished run")
    (tmp_path / "empty").mkdir()
    refused(script("bundle", tmp_path / "empty"), None, "holds no run")
