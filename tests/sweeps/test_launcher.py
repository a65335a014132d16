"""Sweeps: no job takes another along, the same command goes on, values are those of single runs.

Real jobs are few; most here are fakes that write what real ones do.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock
from helpers.tiny import ONE_THREAD, REPO, TINY, Ended, FakeJobs, end_of, wait_until
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from seglab.core.files import read_csv, read_json
from seglab.runs.checkpoints import hash_weights
from seglab.sweeps import launcher as sweep
from seglab.sweeps.launcher import LocalLauncher

# What fixtures hand out.
Command = Callable[..., subprocess.Popen]
Sweep = Callable[..., Ended]
Mixed = tuple[Path, Ended]

FILES = ("metrics.csv", "test_cases.csv", "splits.json")


def outcome(run: Path) -> dict[str, Any]:
    """All that an interruption, or the company of other jobs, must not change."""
    assert read_json(run / "run.json")["status"] == "finished"
    weights = {n: hash_weights(run / "checkpoints" / n) for n in ("best.ckpt", "last.ckpt")}
    return weights | {name: (run / name).read_bytes() for name in FILES}


def files_of(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of every file."""
    return {
        str(file.relative_to(folder)): (file.read_bytes(), file.stat().st_mtime_ns)
        for file in folder.rglob("*")
        if file.is_file()
    }


def states_of(folder: Path) -> dict[str, str]:
    return {row["job"]: row["status"] for row in read_csv(folder / "jobs.csv")}


def told_command(err: str) -> list[str]:
    """The command that the last line of a sweep's stderr gives to go on."""
    (command,) = re.findall(r"to go on: (python .*?)\)?$", err.splitlines()[-1])
    return shlex.split(command)


@pytest.fixture(scope="module")
def command(tiny_ph2: Path, cache_dir: Path) -> Command:
    """Starts a sweep as a user does, two jobs at once: command(folder, *overrides)."""

    def start(folder: Path, *overrides: str) -> subprocess.Popen:
        arguments = [
            *(sys.executable, str(REPO / "scripts" / "train.py"), "-m"),
            *(f"data.root={tiny_ph2}", f"data.cache_dir={cache_dir}", *TINY, *overrides),
            *("hydra.launcher.n_jobs=2", "hydra.launcher.threads=1", f"hydra.sweep.dir={folder}"),
        ]
        environment = os.environ | ONE_THREAD
        return subprocess.Popen(
            arguments, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
        )

    return start


# Four cannot be composed, one meets a NaN, one is refused by its optimizer.
MIXED = [
    *("model=nonsense,unet", "task.optimizer.lr=1e30,-1,1e-3,2e-3"),
    "callbacks.pictures=null",  # they take most of a tiny run's time
]
FINISHED = ["model=unet,lr=0.001", "model=unet,lr=0.002"]
REASONS = {f"model=nonsense,lr={lr}": "'model/nonsense'" for lr in ("1e+30", -1, 0.001, 0.002)}
REASONS |= {"model=unet,lr=1e+30": "loss is nan", "model=unet,lr=-1": "Invalid learning rate: -1"}


@pytest.fixture(scope="module")
def mixed(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Mixed:
    """A real sweep whose jobs fail in every way, but for two."""
    folder = tmp_path_factory.mktemp("sweeps") / "a sweep"
    return folder, end_of(command(folder, *MIXED))


def test_jobs_that_fail_say_why_and_leave_the_others_alone(mixed: Mixed) -> None:
    folder, ended = mixed
    assert ended.code == 1
    lines = ended.err.splitlines()
    table = {row["job"]: row for row in read_csv(folder / "jobs.csv")}
    assert set(table) == {*FINISHED, *REASONS}
    assert "Traceback" not in ended.err
    for name, row in table.items():
        run, record = folder / name, read_json(folder / name / "run.json")
        assert record["status"] == row["status"] == ("failed" if name in REASONS else "finished")
        model, lr = re.fullmatch("model=(.*),lr=(.*)", name).groups()  # type: ignore[union-attr]
        assert record["varies"] == {"model": model, "task.optimizer.lr": lr}
        begins = re.compile(f"{re.escape(name)} +{row['status']} ")
        (told,) = (line for line in lines if begins.match(line))
        log = (run / "job.log").read_text()
        if name in REASONS:
            for text in (told, row["error"], record["error"], log.splitlines()[-1]):
                assert REASONS[name] in text
            assert "Traceback (most recent call last)" in log
            known = run / "config.yaml"
            config = yaml.safe_load(known.read_text()) if known.exists() else record["config"]
            assert model == "nonsense" or config["task"]["optimizer"]["lr"] == float(lr)
        else:
            assert "Traceback" not in log
            value = float(row["val/dice_per_image_net"])
            assert f"val/dice_per_image_net {value:.4f}" in told
            curve = [r["val/dice_per_image_net"] for r in read_csv(run / "metrics.csv")]
            assert value == max(map(float, curve))
    assert "8 jobs: 6 failed, 2 finished" in lines
    assert lines[-1].startswith("error: 6 of 8 jobs did not finish; to go on: python ")


def test_the_last_job_has_the_values_of_a_run_of_its_own(mixed: Mixed, tmp_path: Path) -> None:
    run, alone = mixed[0] / FINISHED[-1], tmp_path / "alone"
    record = read_json(run / "run.json")
    arguments = [a for a in record["command"] if not a.startswith("hydra.run.dir=")]
    assert len(arguments) == len(record["command"]) - 1
    subprocess.run(
        [*arguments, f"hydra.run.dir={alone}"],
        check=True,
        capture_output=True,
        env=os.environ | ONE_THREAD,
    )
    assert outcome(run) == outcome(alone)


def test_tensorboard_compares_the_jobs_by_val(mixed: Mixed) -> None:
    keys = []
    for name in FINISHED:
        run = mixed[0] / name
        events = EventAccumulator(str(run / "tensorboard"), {"tensors": 0, "scalars": 0}).Reload()
        start = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
        hparams = HParamsPluginData.FromString(start).session_start_info.hparams
        keys.append(set(hparams))
        assert hparams["model"].string_value == "unet"
        assert f"lr={hparams['lr'].number_value}" in name
        received_signal = events.SummaryMetadata("_hparams_/experiment").plugin_data.content
        metrics = HParamsPluginData.FromString(received_signal).experiment.metric_infos
        val = read_json(run / "summary.json")["val"]
        shown = [metric.name.tag for metric in metrics]
        assert shown == ["hp/val_dice_per_image", "hp/val_iou_per_image", "hp/val_pixel_accuracy"]
        for tag in shown:
            (point,) = events.Scalars(tag)
            assert point.value == pytest.approx(val[tag.removeprefix("hp/val_")], rel=1e-6)
        assert "custom_scalars__config__" in events.Tags()["tensors"]
        # A choice made here has not seen the test.
        assert not any("test" in tag for tag in events.Tags()["scalars"])
    assert keys[0] == keys[1]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the jobs that were started; they are fakes from here on."""
    names: list[str] = []
    for name, value in vars(FakeJobs).items():
        if not name.startswith("__") and name != "room":
            monkeypatch.setattr(LocalLauncher, name, value, raising=False)
    monkeypatch.setattr(LocalLauncher, "started", names, raising=False)
    monkeypatch.setattr(sweep, "_PAUSE", 0)
    for name, value in ONE_THREAD.items():
        monkeypatch.setenv(name, value)
    return names


@pytest.fixture
def sweeps(script: Sweep, started: list[str], tmp_path: Path) -> Sweep:
    """Sweeps with fake jobs in this process: sweeps(*overrides)."""
    return lambda *given: script("train", "-m", *given, f"hydra.sweep.dir={tmp_path / 'sweep'}")


def test_the_same_command_starts_what_did_not_finish(
    mixed: Mixed, script: Sweep, started: list[str]
) -> None:
    folder, ended = mixed
    before = {name: files_of(folder / name) for name in FINISHED}
    _, path, *arguments = told_command(ended.err)
    assert Path(path) == REPO / "scripts" / "train.py"
    ended = script("train", *arguments)
    assert sorted(started) == sorted(REASONS), ended.err
    assert {name: files_of(folder / name) for name in FINISHED} == before
    lines = ended.err.splitlines()
    assert [line for line in lines if "finished before" in line] == [
        f"{name}: finished before" for name in FINISHED
    ]
    # The fake jobs of unet finish; those of no network cannot.
    assert "8 jobs: 4 failed, 4 finished (2 of them before)" in lines
    assert ended.code == 1


def test_a_sweep_that_is_extended_takes_in_what_is_there(
    sweeps: Sweep, started: list[str], tmp_path: Path
) -> None:
    assert sweeps("seed=0,1,1").code == 0
    assert started == ["seed=0", "seed=1"]  # two that are equal are one
    before = files_of(tmp_path / "sweep" / "seed=1")
    started.clear()
    # Now the threshold varies too; seed=1,threshold=0.5 ran as seed=1.
    ended = sweeps("seed=1,2", "task.threshold=0.5,0.6")
    assert ended.code == 0, ended.err
    assert started == ["seed=1,threshold=0.6", "seed=2,threshold=0.5", "seed=2,threshold=0.6"]
    names = ["seed=1,threshold=0.5", *started]
    assert states_of(tmp_path / "sweep") == dict.fromkeys(names, "finished")
    assert "4 jobs: 4 finished (1 of them before)" in ended.err
    assert files_of(tmp_path / "sweep" / "seed=1") == before


def test_a_run_of_another_config_is_refused_and_kept(
    sweeps: Sweep, started: list[str], tmp_path: Path
) -> None:
    assert sweeps("seed=0,1").code == 0
    before = files_of(tmp_path)
    ended = sweeps("seed=0,1", "data.size=64")
    (line,) = ended.err.splitlines()
    assert ended.code == 1
    assert line.startswith(f"error: {tmp_path}/sweep/seed=0: holds a run of another config (data.s")
    assert files_of(tmp_path) == before
    assert started == ["seed=0", "seed=1"]


def test_of_two_sweeps_in_a_folder_one_is_refused(
    sweeps: Sweep, started: list[str], tmp_path: Path
) -> None:
    (tmp_path / "sweep").mkdir()
    with FileLock(tmp_path / "sweep" / ".lock"):
        ended = sweeps("seed=0,1")
    (line,) = ended.err.splitlines()
    assert ended.code == 1
    assert line.startswith(f"error: {tmp_path}/sweep: another process is at work on this sweep")
    assert not started
    assert sweeps("seed=0,1").code == 0


@pytest.mark.parametrize("finishes", [True, False])
def test_a_job_that_another_process_runs_is_waited_for(
    finishes: bool,
    sweeps: Sweep,
    started: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """It is not run twice, unless the other process leaves it unfinished."""
    assert sweeps("seed=0,1").code == 0
    run = tmp_path / "sweep" / "seed=0"
    record = read_json(run / "run.json")
    (run / "run.json").write_text(json.dumps(record | {"status": "running"}))
    started.clear()
    lock, looks = FileLock(run / ".lock"), iter(range(3))

    def sleep(seconds: float) -> None:
        if next(looks, None) is None and lock.is_locked:
            status = "finished" if finishes else "interrupted"
            (run / "run.json").write_text(json.dumps(record | {"status": status}))
            lock.release()

    monkeypatch.setattr(sweep.time, "sleep", sleep)
    lock.acquire()
    ended = sweeps("seed=0,1")
    assert ended.code == 0, ended.err
    assert ended.err.count("another process is at work on this run; waiting for it") == 1
    assert started == ([] if finishes else ["seed=0"])


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["task.optimizer.lr=interval(0.1,1)"], "task.optimizer.lr: a grid takes lists"),
        (["seed=0,1", "no_such_key=1"], "no_such_key: unknown config key"),
        (["seed=0,1", "model=nonsense"], "Could not find 'model/nonsense'"),
        (["--cfg", "job", "seed=0,1"], "Only one of --run, --multirun, --cfg"),
        (["seed=0,1", "hydra.launcher.n_jobs=0"], "hydra.launcher.n_jobs=0: expected an integer"),
        (["seed=0,1", "hydra.launcher.threads=0"], "hydra.launcher.threads=0: expected an integer"),
        (["seed=0,1", "hydra/launcher=basic"], "hydra/launcher: expected local"),
        (["sweep=tpe", "monitor=null"], "monitor=None: a search needs a value of val"),
        (["sweep=tpe", "monitor=test/dice_per_image"], "monitor=test/dice_per_image: a search"),
        (["hydra/sweeper=tpe"], "hydra.sweeper.params: nothing to search"),
        (["seed=range(3,3)"], "nothing to run"),
        (["seed=0,1", "run_dir=/elsewhere"], "run_dir: each job has its own"),
        (["sweep=models,lr"], "sweep: expected one named sweep"),
        (["hydra.sweeper.params=3"], "hydra.sweeper.params=3: expected keys"),
        (
            ["seed=0,1", "hydra.launcher.threads=1.5"],
            "hydra.launcher.threads=1.5: expected an integ",
        ),
        (
            ["sweep=tpe", "hydra.sweeper.n_trials=2.5"],
            "hydra.sweeper.n_trials=2.5: expected an int",
        ),
        (
            ["sweep=tpe", "hydra.sweeper.startup=-1"],
            "hydra.sweeper.startup=-1: expected an integer",
        ),
        (["sweep=tpe", "hydra.sweeper.seed=-5"], "hydra.sweeper.seed=-5: expected an integer"),
        (["sweep=tpe", "model.width=interval(8,4)"], "model.width=interval(8,4): "),
        (["sweep=tpe", "seed=0,1"], "seed: a search would choose the luckiest"),
        (["sweep=tpe", "data.split.fold=range(5)"], "data.split.fold: a search would choose"),
    ],
    ids=str,
)
def test_a_sweep_that_cannot_be_is_refused_in_a_line(
    overrides: list[str], told: str, sweeps: Sweep, started: list[str]
) -> None:
    ended = sweeps(*overrides)
    (line,) = ended.err.splitlines()
    assert ended.code == 1
    assert line.startswith("error: ")
    assert told in line
    assert not started


MODELS, FOLDS = ("model=segnet", "model=unet"), range(5)
RATES = ("0.0001", "0.0003", "0.001", "0.003", "0.01")


def of(pattern: str) -> list[str]:
    return sorted(file.stem for file in REPO.glob(f"conf/experiment/{pattern}.yaml"))


SHIPPED = {
    "models": [f"{model},seed={seed}" for model in MODELS for seed in range(3)],
    "folds": [f"{model},fold={fold}" for model in MODELS for fold in FOLDS],
    "lr": [f"lr={rate}" for rate in RATES],
    "tpe": [f"trial={number:03}" for number in range(40)],
    "ablation": [f"experiment={step},seed={seed}" for step in of("step*") for seed in range(3)],
    "tried": [
        f"experiment={name},seed={seed}"
        for name in ("best", *(f"_best,tried_{trial}_" for trial in of("tried/*")))
        for seed in range(3)
    ],
}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_sweep_starts_what_its_file_promises_without_m(
    name: str, script: Sweep, started: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert {path.stem for path in REPO.glob("conf/sweep/*.yaml")} == {*SHIPPED, "grid"}
    compose, composed = LocalLauncher._compose, []

    def compose_first(self: LocalLauncher, job: sweep.Job) -> Exception | None:
        """Composing takes time; the others of a sweep are of the same kind."""
        if not composed:
            composed.append(job)
            return compose(self, job)
        job.config = {"name": job.name}
        return None

    monkeypatch.setattr(LocalLauncher, "_compose", compose_first)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    ended = script("train", f"sweep={name}", f"hydra.sweep.dir={tmp_path}")
    assert ended.code == 0, ended.err
    assert [job[:9] if name == "tpe" else job for job in started] == SHIPPED[name]
    if name == "tpe":
        keys = ["task.optimizer.lr", "task.optimizer.weight_decay", "task.loss.lesion_weight"]
        varies = read_json(tmp_path / started[-1] / "run.json")["varies"]
        assert list(varies) == [*keys, "model.width"]


PLAIN = ["data.batch_size=2", "trainer.max_epochs=12", "logger=null", "callbacks.pictures=null"]
SEEDS = ["seed=0,1,2", *PLAIN]
NAMES = ("seed=0", "seed=1", "seed=2")


@pytest.fixture(scope="module")
def undisturbed(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweeps") / "undisturbed"
    ended = end_of(command(folder, *SEEDS))
    assert ended.code == 0, ended.err
    return folder


def assert_ends_undisturbed(ended: Ended, folder: Path, undisturbed: Path) -> None:
    assert ended.code == 0, ended.err
    assert states_of(folder) == states_of(undisturbed) == dict.fromkeys(NAMES, "finished")
    for name in NAMES:
        assert outcome(folder / name) == outcome(undisturbed / name), name
        # Each came to its end once.
        log = (folder / name / "train.log").read_text()
        assert log.count("look at it     tensorboard") == 1


def processes_of(run: Path | str) -> list[int]:
    """Processes of a run, by what they were started with."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if str(run) in file.read_text().replace("'", ""):
                found.append(int(file.parent.name))
    return found


linux = pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at /proc")


@linux
@pytest.mark.long
def test_ctrl_c_in_the_middle_of_an_epoch_and_then_a_job_that_is_killed(
    command: Command, undisturbed: Path, tmp_path: Path
) -> None:
    process = command(tmp_path, *SEEDS)
    wait_until((tmp_path / "seed=0" / "metrics.csv").exists)
    process.send_signal(signal.SIGINT)
    ended = end_of(process)
    assert ended.code == 130, ended.err
    assert ended.err.splitlines()[-1].startswith("interrupted (to go on: python ")
    assert list(states_of(tmp_path).values())[::2] == ["interrupted", "planned"]
    assert re.search("^3 jobs: [12] interrupted, [12] planned$", ended.err, re.MULTILINE)
    assert not processes_of(tmp_path)

    process = command(tmp_path, *SEEDS)
    wait_until(lambda: "going on after step" in (tmp_path / "seed=0" / "train.log").read_text())
    (pid,) = processes_of(tmp_path / "seed=0")
    os.kill(pid, signal.SIGKILL)
    ended = end_of(process)
    assert ended.code == 1, ended.err
    assert list(states_of(tmp_path).values()) == ["failed", "finished", "finished"]
    assert "killed by SIGKILL; was the memory full?" in ended.err

    before = files_of(tmp_path / "seed=1")
    assert_ends_undisturbed(end_of(command(tmp_path, *SEEDS)), tmp_path, undisturbed)
    assert len(read_json(tmp_path / "seed=0" / "run.json")["resumed"]) == 2
    assert files_of(tmp_path / "seed=1") == before


@linux
@pytest.mark.long
def test_a_sweep_that_is_killed_again_and_again(
    command: Command, undisturbed: Path, tmp_path: Path
) -> None:
    # A second Ctrl-C kills at once, even jobs that do not listen.
    process = command(tmp_path, *SEEDS)
    wait_until(lambda: len(processes_of(f"hydra.run.dir={tmp_path}")) == 2)
    for pid in processes_of(f"hydra.run.dir={tmp_path}"):
        os.kill(pid, signal.SIGSTOP)
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    ended = Ended(process.wait(5), "", process.communicate()[1])
    assert ended.code == 130
    assert "3 jobs: 3 planned" in ended.err
    wait_until(lambda: not processes_of(f"hydra.run.dir={tmp_path}"), 5)

    process = command(tmp_path, *SEEDS)
    wait_until((tmp_path / "seed=0" / "metrics.csv").exists)
    process.kill()
    process.communicate()
    # The jobs notice that nobody is there any more.
    wait_until(lambda: not processes_of(f"hydra.run.dir={tmp_path}"), 20)
    states = [read_json(tmp_path / name / "run.json")["status"] for name in NAMES]
    assert states[0] == "interrupted" and states[1] in ("interrupted", "planned"), states
    process = command(tmp_path, *SEEDS)
    wait_until((tmp_path / "seed=2" / "metrics.csv").exists)
    process.kill()
    process.communicate()
    # At once: what is still being saved is waited for.
    assert_ends_undisturbed(end_of(command(tmp_path, *SEEDS)), tmp_path, undisturbed)


@pytest.mark.slow
def test_a_distributed_job_starts_its_processes_and_no_second_sweep(
    tiny_ph2: Path, cache_dir: Path, tmp_path: Path
) -> None:
    sweep = tmp_path / "sweep"
    done = subprocess.run(
        [
            *(sys.executable, str(REPO / "scripts" / "train.py"), "-m", *TINY),
            *(f"data.root={tiny_ph2}", f"data.cache_dir={cache_dir}", f"hydra.sweep.dir={sweep}"),
            *("seed=0,1", "trainer=ddp", "trainer.accelerator=cpu"),
        ],
        cwd=tmp_path,
        env=os.environ | ONE_THREAD,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    runs = [sweep / "seed=0", sweep / "seed=1"]
    assert sorted(file.parent for file in tmp_path.rglob("run.json")) == runs
    for run in runs:
        assert read_json(run / "run.json")["status"] == "finished"
        assert len((run / "metrics.csv").read_text().splitlines()) == 3  # the head, two epochs
        log = (run / "job.log").read_text()
        assert "MEMBER: 1/2" in log and "MEMBER: 2/2" in log


def test_a_finished_job_that_lacks_something_has_failed_and_says_what(
    sweeps: Sweep, started: list[str], tmp_path: Path
) -> None:
    jobs = [f"seed={seed}" for seed in range(5)]
    assert sweeps("seed=0,1,2,3,4").code == 0
    folder = tmp_path / "sweep"
    (folder / "seed=1" / "summary.json").write_text("{")
    (folder / "seed=2" / "checkpoints" / "best.ckpt").unlink()
    (folder / "seed=3" / "test_cases.csv").unlink()
    started.clear()
    ended = sweeps("seed=0,1,2,3,4")
    assert ended.code == 1
    assert not started
    status = {row["job"]: (row["status"], row["error"]) for row in read_csv(folder / "jobs.csv")}
    assert [status[job][0] for job in jobs] == ["finished", *["failed"] * 3, "finished"]
    for job, name in zip(jobs[1:4], ("summary.json", "best.ckpt", "test_cases.csv"), strict=True):
        assert name in status[job][1] and job in status[job][1]
    assert "5 jobs: 3 failed, 2 finished (2 of them before)" in ended.err


def test_a_disk_that_takes_no_more_costs_the_job_that_meets_it(
    sweeps: Sweep, started: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = sweep.write_json

    def full(path: Path, value: object) -> None:
        if path.parent.name == "seed=1":
            raise OSError(28, "No space left on device", str(path))
        write(path, value)

    monkeypatch.setattr(sweep, "write_json", full)
    ended = sweeps("seed=0,1,2")
    assert ended.code == 1
    assert started == ["seed=0", "seed=2"]
    assert "seed=1/run.json: No space left on device" in ended.err
    assert "3 jobs: 1 failed, 2 finished" in ended.err
    monkeypatch.setattr(sweep, "write_json", write)
    assert sweeps("seed=0,1,2").code == 0
    assert started == ["seed=0", "seed=2", "seed=1"]


def test_combinations_that_are_the_same_run_once_and_are_counted(
    sweeps: Sweep, started: list[str]
) -> None:
    ended = sweeps("task.optimizer.lr=0.001,1e-3,0.002")
    assert ended.code == 0, ended.err
    assert len(started) == 2
    assert "1 of 3 combinations are the same as others, and run once" in ended.err


def test_jobs_read_the_configs_that_the_sweep_reads(
    sweeps: Sweep, started: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    start = LocalLauncher.start

    def observed(self: LocalLauncher, jobs: list[sweep.Job]) -> None:
        commands.extend(job.command() for job in jobs)
        start(self, jobs)

    monkeypatch.setattr(LocalLauncher, "start", observed)
    assert sweeps("seed=0").code == 0
    more, own = tmp_path / "more", tmp_path / "conf"
    more.mkdir()
    shutil.copytree(REPO / "conf", own)
    for option in (f"--config-dir={more}", f"--config-path={own}"):
        shutil.rmtree(tmp_path / "sweep")
        assert sweeps(option, "seed=0").code == 0
        assert option in commands[-1]
        assert commands[-1][2:] == [option, *commands[0][2:]]
    refused = sweeps("seed=0", f"data.root={tmp_path}")
    assert refused.code == 1
    assert "expected a folder outside the data" in refused.err
