"""What every launcher does: plan jobs, skip finished ones, go on, log a table. Jobs are fakes."""

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock
from helpers.sweeps import states_of
from helpers.tiny import REPO, Ended
from hydra.core.override_parser.overrides_parser import OverridesParser

from seglab.core.files import read_json
from seglab.runs.overrides import quote_value
from seglab.runs.paths import FORMAT
from seglab.sweeps import jobs as jobs_module
from seglab.sweeps.jobs import Job
from seglab.sweeps.local import LocalLauncher

Sweep = Callable[..., Ended]


def files_of(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Returns content and time of every file."""
    return {
        str(file.relative_to(folder)): (file.read_bytes(), file.stat().st_mtime_ns)
        for file in folder.rglob("*")
        if file.is_file()
    }


def test_the_printed_command_starts_what_did_not_finish(
    fake_sweep: Sweep,
    script: Sweep,
    started: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "sweep"
    with monkeypatch.context() as patched:
        failing = staticmethod(lambda c: [0.5] if c["seed"] else [float("nan")])
        patched.setattr(LocalLauncher, "curve", failing)
        ended = fake_sweep("model=nonsense,unet", "seed=0,1")
    assert ended.code == 1
    assert started == ["model-unet_seed-0", "model-unet_seed-1"]  # the others cannot be composed
    statuses = {"model-nonsense_seed-0": "failed", "model-nonsense_seed-1": "failed"}
    statuses |= {"model-unet_seed-0": "failed", "model-unet_seed-1": "finished"}
    assert states_of(folder) == statuses
    lines = ended.err.splitlines()
    assert "4 jobs: 3 failed, 1 finished" in lines
    assert re.search(r"^model-unet_seed-0 +failed  loss is nan in epoch 1$", ended.err, re.M)
    assert re.search(r"^model-nonsense_seed-0 +failed  .*'model/nonsense'", ended.err, re.M)
    assert re.search(r"^model-unet_seed-1 +finished  val/dice_\w+ 0.5000$", ended.err, re.M)
    for name, status in statuses.items():
        record = read_json(folder / name / "run.json")
        assert (record["status"], record["format"]) == (status, FORMAT)
        assert set(record["varies"]) == {"model", "seed"}

    before, started[:] = files_of(folder / "model-unet_seed-1"), []
    (command,) = re.findall(r"3 of 4 jobs did not finish; to go on: (python .*)$", lines[-1])
    _, path, *arguments = shlex.split(command)
    assert Path(path).name == "train.py"
    ended = script("train", *arguments)
    assert started == ["model-unet_seed-0"]
    assert files_of(folder / "model-unet_seed-1") == before
    assert "4 jobs: 2 failed, 2 finished" in ended.err
    assert ended.code == 1


def test_a_longer_list_extends_a_sweep(
    fake_sweep: Sweep, started: list[str], tmp_path: Path
) -> None:
    assert fake_sweep("seed=0,1,1").code == 0
    assert started == ["seed-0", "seed-1"]  # two jobs of one name are one
    before = files_of(tmp_path / "sweep" / "seed-1")
    assert fake_sweep("seed=1,2").code == 0
    assert started == ["seed-0", "seed-1", "seed-2"]
    assert states_of(tmp_path / "sweep") == dict.fromkeys(("seed-1", "seed-2"), "finished")
    assert files_of(tmp_path / "sweep" / "seed-1") == before


def test_a_run_of_another_config_is_refused_and_kept(
    fake_sweep: Sweep, started: list[str], tmp_path: Path
) -> None:
    assert fake_sweep("seed=0,1").code == 0
    before = files_of(tmp_path)
    ended = fake_sweep("seed=0,1", "data.size=64")
    (line,) = ended.err.splitlines()
    assert ended.code == 1
    assert line.startswith(f"error: {tmp_path}/sweep/seed-0: holds a run of another config (data.s")
    assert files_of(tmp_path) == before
    assert started == ["seed-0", "seed-1"]


def test_of_two_sweeps_in_a_folder_one_is_refused(
    fake_sweep: Sweep, started: list[str], tmp_path: Path
) -> None:
    (tmp_path / "sweep").mkdir()
    with FileLock(tmp_path / "sweep" / ".lock"):
        ended = fake_sweep("seed=0,1")
    (line,) = ended.err.splitlines()
    assert ended.code == 1
    assert line.startswith(f"error: {tmp_path}/sweep: another process is at work on this sweep")
    assert not started
    assert fake_sweep("seed=0,1").code == 0


def test_a_job_that_left_no_status_has_failed(
    fake_sweep: Sweep, started: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A process that is killed while it starts must not leave an earlier status to be read."""
    assert fake_sweep("seed=0").code == 0
    run = tmp_path / "sweep" / "0"
    record = read_json(run / "run.json")
    (run / "run.json").write_text(json.dumps(record | {"status": "interrupted"}))
    monkeypatch.setattr(LocalLauncher, "run_job", lambda self, job: iter(()))
    ended = fake_sweep("seed=0")
    assert ended.code == 1
    assert states_of(tmp_path / "sweep") == {"0": "failed"}
    assert read_json(run / "run.json") == record | {"status": "failed", "error": "gone"}


@pytest.mark.parametrize("name", ["run.json", "config.yaml"])
def test_a_damaged_file_fails_its_job_alone(
    name: str, fake_sweep: Sweep, started: list[str], tmp_path: Path
) -> None:
    assert fake_sweep("seed=0,1").code == 0
    file = tmp_path / "sweep" / "seed-1" / name
    file.write_text("{")
    ended = fake_sweep("seed=0,1,2")
    assert ended.code == 1
    assert f"failed  {file}: " in ended.err
    assert file.read_text() == "{"
    assert started == ["seed-0", "seed-1", "seed-2"]


def test_a_full_disk_costs_the_job_that_meets_it(
    fake_sweep: Sweep, started: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = jobs_module.write_json

    def write_unless_full(path: Path, value: object) -> None:
        if path.parent.name == "seed-1":
            raise OSError(28, "No space left on device", str(path))
        write(path, value)

    monkeypatch.setattr(jobs_module, "write_json", write_unless_full)
    ended = fake_sweep("seed=0,1,2")
    assert ended.code == 1
    assert started == ["seed-0", "seed-2"]
    assert "seed-1/run.json: No space left on device" in ended.err
    assert "3 jobs: 1 failed, 2 finished" in ended.err
    monkeypatch.setattr(jobs_module, "write_json", write)
    assert fake_sweep("seed=0,1,2").code == 0
    assert started == ["seed-0", "seed-2", "seed-1"]


def test_jobs_read_the_configs_that_the_sweep_reads(
    fake_sweep: Sweep, started: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    start = LocalLauncher.start

    def record_commands(self: LocalLauncher, jobs: list[Job]) -> None:
        commands.extend(job.command() for job in jobs)
        start(self, jobs)

    monkeypatch.setattr(LocalLauncher, "start", record_commands)
    assert fake_sweep("seed=0").code == 0
    more, config_copy = tmp_path / "more", tmp_path / "conf"
    more.mkdir()
    shutil.copytree(REPO / "conf", config_copy)
    for option in (f"--config-dir={more}", f"--config-path={config_copy}"):
        shutil.rmtree(tmp_path / "sweep")
        assert fake_sweep(option, "seed=0").code == 0
        assert option in commands[-1]
        assert commands[-1][2:] == [option, *commands[0][2:]]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seed=0,1", "no_such_key=1"], "no_such_key: unknown config key"),
        (["seed=0,1", "model=nonsense"], "model=nonsense: expected one of segnet"),
        (["--cfg", "job", "seed=0,1"], "Only one of --run, --multirun, --cfg"),
        (["seed=0,1", "hydra.launcher.n_jobs=0"], "hydra.launcher.n_jobs=0: expected an integer"),
        (["seed=0,1", "hydra/launcher=basic"], "hydra/launcher: expected local"),
        (["seed=range(3,3)"], "nothing to run"),
        (["seed=0,1", "run_dir=/elsewhere"], "run_dir: each job has its own"),
        (["sweep=models,folds"], "sweep: expected one named sweep"),
        (["task.optimizer.lr=interval(0.1,1)"], "task.optimizer.lr: a grid takes lists"),
        (["+hydra.sweeper.jobs.a=x"], "hydra.sweeper.jobs.a=x: expected a list"),
    ],
    ids=str,
)
def test_bad_sweeps_are_refused_in_one_line(
    overrides: list[str], message: str, fake_sweep: Sweep, started: list[str]
) -> None:
    ended = fake_sweep(*overrides)
    (line,) = ended.err.splitlines()
    assert ended.code == 1
    assert line.startswith("error: ")
    assert message in line
    assert not started


def test_commands_of_a_sweep_can_be_pasted_wherever_it_lies(
    script: Callable[..., Ended],
    started: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    folder, root = tmp_path / "it's a [test], n=1 ü", tmp_path / "data (1), ü=2"
    monkeypatch.setattr(LocalLauncher, "curve", staticmethod(lambda c: [float("nan")]))
    lists = ("seed=0,1", "+trainer.profiler=null,'a=[1]/x'", "name=a")
    paths = (f"hydra.sweep.dir={quote_value(folder)}", f"data.root={quote_value(root)}")
    ended = script("train", *lists, "-m", *paths)
    names = [f"seed-{seed}_profiler-{value}" for seed in "01" for value in ("null", "_a__1__x_")]
    assert started == names
    assert {p.name for p in folder.iterdir() if p.is_dir()} == {*names}
    compare = re.findall("^compare +(.*)$", ended.err, re.M)
    assert shlex.split(*compare) == ["python", "scripts/compare.py", str(folder)]
    (command,) = re.findall("; to go on: python (.*)$", ended.err, re.M)
    parser = OverridesParser.create()
    words = [word for word in shlex.split(command) if word.startswith(("hydra.", "data."))]
    values = {o.key_or_group: o.value() for o in parser.parse_overrides(words)}
    assert values == {"hydra.sweep.dir": str(folder), "data.root": str(root)}
    started.clear()
    assert script("train", *shlex.split(command)[1:]).code == 1
    assert started == names
    for name in names:
        assert read_json(folder / name / "run.json")["config"]["data"]["root"] == str(root)
        assert parser.parse_override(f"data.split.file={name}").value() == name
        # What is below a folder without such signs needs no quotes.
        path = f"runs/{name}/splits.json"
        assert parser.parse_override(f"data.split.file={path}").value() == path
