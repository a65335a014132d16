"""Real sweeps on this machine: jobs that fail, hang and are killed, sweeps that are killed."""

import os
import re
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from helpers.sweeps import result_of, states_of
from helpers.tiny import TINY, Ended, end_of, wait_until
from mlflow import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from seglab.core.files import read_csv, read_json

StartSweep = Callable[..., subprocess.Popen]

linux = pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at /proc")


# One cannot be composed, one meets a NaN, one is refused by its optimizer.
MIXED = [
    "hydra.launcher.n_jobs=2",
    "experiment=fast,nonsense",
    "task.optimizer.lr=1e30,-1,1e-3",
    "callbacks.pictures=null",  # they take most of a tiny run's time
]
FINISHED = "experiment-fast_lr-0.001"
REASONS = {f"experiment-nonsense_lr-{lr}": "'experiment/nonsense'" for lr in ("1e+30", -1, 0.001)}
REASONS |= {
    "experiment-fast_lr-1e+30": "loss is nan",
    "experiment-fast_lr--1": "task.optimizer.lr=-1: expected",
}


@pytest.fixture(scope="module")
def mixed(start_sweep: StartSweep, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """A sweep whose jobs fail in every way, except one."""
    folder = tmp_path_factory.mktemp("sweeps") / "a sweep"
    return folder, end_of(start_sweep(folder, *MIXED))


def test_jobs_that_fail_say_why_and_leave_the_others_alone(mixed: tuple[Path, Ended]) -> None:
    folder, ended = mixed
    assert ended.code == 1
    assert "Traceback" not in ended.err
    assert "6 jobs: 5 failed, 1 finished" in ended.err.splitlines()
    table = {row["job"]: row for row in read_csv(folder / "jobs.csv")}
    assert set(table) == {FINISHED, *REASONS}
    for name, reason in REASONS.items():
        row, record = table[name], read_json(folder / name / "run.json")
        assert row["status"] == record["status"] == "failed"
        line = re.search(f"^{re.escape(name)} +failed .*", ended.err, re.MULTILINE)[0]
        for text in (line, row["error"], record["error"]):
            assert reason in text
        if "nonsense" not in name:
            log = (folder / name / "job.log").read_text()
            assert "Traceback (most recent call last)" in log
            assert reason in log.splitlines()[-1]
    value = float(table[FINISHED]["val/dice_per_image_net"])
    curve = [
        float(row["val/dice_per_image_net"]) for row in read_csv(folder / FINISHED / "metrics.csv")
    ]
    assert value == max(curve)
    assert f"finished  val/dice_per_image_net {value:.4f}" in ended.err


def test_a_job_has_the_values_of_its_command_alone(
    mixed: tuple[Path, Ended], repeat_alone: Callable[..., Path], tmp_path: Path
) -> None:
    run = mixed[0] / FINISHED
    assert result_of(run) == result_of(repeat_alone(run, tmp_path / "alone"))


def test_tensorboard_compares_the_jobs_by_val_alone(mixed: tuple[Path, Ended]) -> None:
    events = EventAccumulator(str(mixed[0] / FINISHED / "tensorboard")).Reload()
    start = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    hparams = HParamsPluginData.FromString(start).session_start_info.hparams
    assert hparams["experiment"].string_value == "fast"
    assert hparams["lr"].number_value == 0.001
    experiment = events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    metrics = HParamsPluginData.FromString(experiment).experiment.metric_infos
    tags = [metric.name.tag for metric in metrics]
    assert tags == ["hp/val_dice_per_image", "hp/val_iou_per_image", "hp/val_pixel_accuracy"]
    # What is chosen here must not have seen the test.
    assert not any("test" in tag for tag in events.Tags()["scalars"])


@pytest.mark.slow
def test_mlflow_shows_the_jobs_as_children_of_the_sweep_and_no_test(
    script: Callable[..., Ended], tiny_ph2: Path, cache_dir: Path, tmp_path: Path
) -> None:
    folder, uri = tmp_path / "a sweep", f"sqlite:///{tmp_path}/mlflow.db"
    options = [f"data.root={tiny_ph2}", f"data.cache_dir={cache_dir}", *TINY, "logger=mlflow"]
    options += [f"logger.mlflow.tracking_uri={uri}", "hydra.launcher.n_jobs=2"]
    ended = script("train", "-m", "seed=0,1", *options, f"hydra.sweep.dir={folder}")
    assert ended.code == 0, ended.err
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("baseline")
    by_name = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert {run.info.status for run in by_name.values()} == {"FINISHED"}
    parent = by_name.pop("a sweep")
    assert {*by_name} == {"seed-0", "seed-1"}
    for run in by_name.values():
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert not [name for name in run.data.metrics if "test" in name]
        assert "val/dice_per_image" in run.data.metrics
        assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["figures"]
        artifacts = client.list_artifacts(run.info.run_id, "figures")
        assert [file.path for file in artifacts] == ["figures/curves.png", "figures/pairs.png"]


SEEDS = [
    *("seed=0,1,2", "hydra.launcher.n_jobs=2", "logger=none", "callbacks.pictures=null"),
    *("data.batch_size=2", "trainer.max_epochs=12"),
]
NAMES = ("seed-0", "seed-1", "seed-2")


@pytest.fixture(scope="module")
def undisturbed(start_sweep: StartSweep, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweeps") / "undisturbed"
    ended = end_of(start_sweep(folder, *SEEDS))
    assert ended.code == 0, ended.err
    return folder


def assert_same_results(ended: Ended, folder: Path, undisturbed: Path) -> None:
    assert ended.code == 0, ended.err
    assert [*states_of(folder).values()] == ["finished"] * 3
    for name in NAMES:
        assert result_of(folder / name) == result_of(undisturbed / name), name


def processes_of(folder: Path) -> list[int]:
    """Returns the processes whose output goes to a file below a folder, the oldest first.

    The process that forks the jobs writes to the log of the first one.
    """
    pids = []
    for file in Path("/proc").glob("[0-9]*/fd/1"):
        with suppress(OSError):
            if file.readlink().is_relative_to(folder):
                pids.append(int(file.parts[2]))
    return sorted(pids)


@linux
@pytest.mark.long
def test_after_ctrl_c_and_a_killed_job_the_sweep_goes_on(
    start_sweep: StartSweep, undisturbed: Path, tmp_path: Path
) -> None:
    process = start_sweep(tmp_path, *SEEDS)
    wait_until((tmp_path / "seed-0" / "metrics.csv").exists)
    process.send_signal(signal.SIGINT)
    ended = end_of(process)
    assert ended.code == 130, ended.err
    assert ended.err.splitlines()[-1].startswith("interrupted (to go on: python ")
    assert [*states_of(tmp_path).values()][::2] == ["interrupted", "planned"]
    wait_until(lambda: not processes_of(tmp_path), 20)

    process = start_sweep(tmp_path, *SEEDS)
    wait_until(lambda: "resumed" in read_json(tmp_path / "seed-0" / "run.json"))
    os.kill(processes_of(tmp_path / "seed-0")[-1], signal.SIGKILL)
    ended = end_of(process)
    assert ended.code == 1, ended.err
    assert [*states_of(tmp_path).values()] == ["failed", "finished", "finished"]
    assert "killed by SIGKILL; was the memory full?" in ended.err

    before = (tmp_path / "seed-1" / "run.json").stat().st_mtime_ns
    assert_same_results(end_of(start_sweep(tmp_path, *SEEDS)), tmp_path, undisturbed)
    assert len(read_json(tmp_path / "seed-0" / "run.json")["resumed"]) == 2
    assert (tmp_path / "seed-1" / "run.json").stat().st_mtime_ns == before


@linux
@pytest.mark.long
def test_a_sweep_that_is_killed_twice_loses_nothing(
    start_sweep: StartSweep, undisturbed: Path, tmp_path: Path
) -> None:
    process = start_sweep(tmp_path, *SEEDS)
    wait_until((tmp_path / "seed-0" / "metrics.csv").exists)
    process.kill()
    process.communicate()
    # The jobs notice that the sweep is gone, save and end.
    wait_until(lambda: not processes_of(tmp_path), 20)
    states = [read_json(tmp_path / name / "run.json")["status"] for name in NAMES]
    assert states[0] == "interrupted" and states[1] in ("interrupted", "planned"), states
    process = start_sweep(tmp_path, *SEEDS)
    wait_until((tmp_path / "seed-2" / "metrics.csv").exists)
    process.kill()
    process.communicate()
    # At once: a job that is still saving is waited for.
    assert_same_results(end_of(start_sweep(tmp_path, *SEEDS)), tmp_path, undisturbed)


@linux
@pytest.mark.slow
def test_forked_jobs_have_the_bits_of_their_commands_with_as_many_threads(
    start_sweep: StartSweep, tmp_path: Path
) -> None:
    threads = {"OMP_NUM_THREADS": "2"}
    sweep = tmp_path / "sweep"
    overrides = ["seed=0,1", "trainer.max_epochs=12", "logger=none", "callbacks.pictures=null"]
    process = start_sweep(sweep, *overrides, environment=threads)
    wait_until((sweep / "seed-0" / "metrics.csv").exists)
    server, job = processes_of(sweep)
    assert len({os.getsid(pid) for pid in (process.pid, server, job)}) == 3
    os.kill(server, signal.SIGKILL)  # its job goes on, and the next one has a new server
    ended = end_of(process)
    assert ended.code == 0, ended.err
    wait_until(lambda: not processes_of(sweep), 20)
    for name in ("seed-0", "seed-1"):
        record = read_json(sweep / name / "run.json")
        assert record["machine"]["threads"] == 2
    command = [*record["command"], f"hydra.run.dir={tmp_path / 'alone'}"]
    subprocess.run(command, env=os.environ | threads, check=True, capture_output=True)
    assert result_of(sweep / "seed-1") == result_of(tmp_path / "alone")


@pytest.mark.slow
def test_a_distributed_job_starts_its_processes_and_no_second_sweep(
    start_sweep: StartSweep, tmp_path: Path
) -> None:
    sweep = tmp_path / "sweep"
    ended = end_of(start_sweep(sweep, "seed=0", "trainer.devices=2", "trainer.strategy=ddp"))
    assert ended.code == 0, ended.err
    (file,) = tmp_path.rglob("run.json")
    assert read_json(file)["status"] == "finished"
    assert len((file.parent / "metrics.csv").read_text().splitlines()) == 3  # the head, two epochs
    log = (file.parent / "job.log").read_text()
    assert "MEMBER: 1/2" in log and "MEMBER: 2/2" in log
