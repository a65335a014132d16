"""Names of the files in a run directory, and their protection against other commands."""

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.tiny import Ended, files_below, refused

from seglab.core.errors import InputError
from seglab.runs.paths import RunPaths, refuse_run_files


def test_every_file_has_the_documented_name(tmp_path: Path) -> None:
    paths = vars(RunPaths(tmp_path))
    assert paths.pop("folder") == tmp_path
    names = {path.relative_to(tmp_path).as_posix() for path in paths.values()}
    assert names == {
        *("config.yaml", "run.json", "splits.json", "data.json", "code.diff", "thumbnails.npy"),
        *("checkpoints/best.ckpt", "checkpoints/last.ckpt", "train.log", "job.log"),
        *(
            "metrics.csv",
            "case_attributes.csv",
            "val_cases.csv",
            "test_cases.csv",
            "baseline_cases.csv",
        ),
        *("summary.json", "csv", "tensorboard", "wandb", "calibration.json"),
        *(
            "MODEL_CARD.md",
            "figures",
            "masks",
            "evaluations",
            "evaluations/stress",
            "reproductions",
            "reproduction.json",
        ),
    }


@pytest.fixture(params=["run.json", "checkpoints/last.ckpt"])
def bare_run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder that holds one file of a run."""
    run = tmp_path / "runs" / "mine"
    (run / request.param).parent.mkdir(parents=True)
    (run / request.param).touch()
    return run


def test_places_in_a_run_are_refused_however_they_are_named(
    bare_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bare_run.parent / "link").symlink_to(bare_run)
    monkeypatch.chdir(bare_run.parent)
    for out in (
        *(bare_run, f"{bare_run}/", "mine", "mine/.", "link", "mine/figures/..", "../runs/mine"),
        *(
            "mine/checkpoints",
            "link/figures/new",
            "mine/summary.json",
            "mine/checkpoints/best.ckpt",
        ),
        *("mine/evaluations", "mine/reproductions/", "mine/tensorboard", "mine/evaluations/../"),
    ):
        with pytest.raises(InputError, match=rf"\A{out}: belongs to the run {bare_run}"):
            refuse_run_files(out)
    for out in (
        *("mine/evaluations/x", "mine/reproductions/x", "mine/network.onnx", "mine/report.html"),
        *("mine/predictions", "other", "other/checkpoints", ".", "/", "mine-2"),
    ):
        refuse_run_files(out)


@pytest.mark.parametrize(
    "command",
    [
        ("evaluate", "{run}", "--out", "{run}"),
        ("predict", "{run}", "{run}/figures", "--out", "{run}/checkpoints"),
        ("export", "{run}", "--out", "{run}/checkpoints/best.ckpt", "--overwrite"),
        ("compare", "{run}", "--out", "{run}/figures"),
        ("report", "{run}", "--out", "{run}/summary.json"),
        ("reproduce", "{run}", "--out", "{run}"),
        ("reproduce", "{run}", "--out", "{run}/evaluations"),
        ("prepare_ph2", "--check", "{run}", "--json", "{run}/run.json"),
        ("prepare_ph2", "--check", "{run}", "--show", "1", "--figure", "{run}/summary.json"),
    ],
)
def test_no_command_writes_over_the_files_of_a_run(
    command: tuple[str, ...], run: Path, script: Callable[..., Ended]
) -> None:
    content = {name: (run / name).stat().st_mtime_ns for name in files_below(run)}
    refused(script(*(word.format(run=run) for word in command)), None, "belongs to the run")
    assert {name: (run / name).stat().st_mtime_ns for name in files_below(run)} == content


def test_an_earlier_evaluation_is_replaced(run: Path, script: Callable[..., Ended]) -> None:
    out = run / "evaluations" / "mine"
    for _ in range(2):
        assert script("evaluate", run, "--out", out).code == 0
        assert files_below(out) == {
            *("summary.json", "test_cases.csv", "case_attributes.csv"),
            *("run.json", "config.yaml", "splits.json"),
        }
        (out / "summary.json").write_text("old")
    assert script("evaluate", run, "--out", out).code == 0
    assert (out / "summary.json").read_text() != "old"
