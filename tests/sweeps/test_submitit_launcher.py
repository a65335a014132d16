"""Sweeps by submitit: with fakes of the commands of SLURM, and on a real SLURM of one node."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.sweeps import fake_slurm, result_of
from helpers.tiny import REPO, wait_until

from seglab.core.errors import InputError
from seglab.core.files import read_json
from seglab.sweeps.jobs import Job
from seglab.sweeps.submitit_launcher import ClusterJob, SubmititLauncher

NODE = REPO / "tests" / "slurm_node.sh"


def test_shipped_parameters_are_those_of_submitit() -> None:
    submitit = pytest.importorskip("submitit")
    shipped = yaml.safe_load((REPO / "conf/hydra/launcher/submitit_slurm.yaml").read_text())
    assert set(shipped) - {"_target_"} <= submitit.SlurmExecutor._valid_parameters()


def test_a_run_is_stopped_before_its_job_is_queued_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit")
    waits = "import sys, time; sys.stdin.read(); time.sleep(0.5); print('saved', flush=True)"
    job = ClusterJob([sys.executable, "-c", waits], tmp_path)
    monkeypatch.setattr("time.sleep", lambda seconds: requeued.append(job.checkpoint()))
    requeued: list[Any] = []
    assert job() == 0
    assert (tmp_path / "job.log").read_text() == "saved\n"
    assert (requeued[0].function.command, requeued[0].function.folder) == (job.command, tmp_path)


def test_what_sbatch_refuses_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_slurm(tmp_path, monkeypatch, sbatch="echo 'invalid partition specified: nope' >&2; exit 1")
    fake_slurm(tmp_path, monkeypatch, srun="exit 0")
    launcher = SubmititLauncher(partition="nope", qos=None)
    launcher.folder = tmp_path / "sweep"
    job = Job("seed-0", tmp_path / "sweep" / "seed-0", [], {})
    with pytest.raises(InputError, match="invalid partition specified: nope"):
        launcher.start([job])
    assert not (tmp_path / "sweep" / ".submitit" / "jobs.json").exists()


def test_jobs_that_the_cluster_has_still_are_not_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = tmp_path / "sent"
    fake_slurm(tmp_path, monkeypatch, srun="exit 0", squeue="printf '7_0\\n9_1\\n'")
    fake_slurm(tmp_path, monkeypatch, sbatch=f"echo x >> {sent}; echo 'Submitted batch job 11'")
    jobs = [Job(name, tmp_path / name, [], {}) for name in ("a", "b")]
    folder = tmp_path / "sweep" / ".submitit"
    folder.mkdir(parents=True)
    (folder / "jobs.json").write_text('{"a": "7_0", "b": "7_1"}')
    launcher = SubmititLauncher()
    launcher.folder = tmp_path / "sweep"
    monkeypatch.setattr("sys.argv", ["seglab", "train"])
    launcher.start(jobs)
    assert [job.handle for job in jobs] == ["7_0", "11"]
    assert read_json(folder / "jobs.json") == {"a": "7_0", "b": "11"}
    assert sent.read_text() == "x\n"
    assert not launcher.has_ended(jobs[0])


def test_a_busy_cluster_has_not_ended_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_slurm(tmp_path, monkeypatch, squeue="exit 1")
    job = Job("a", tmp_path / "a", [], {}, handle="7_0")
    assert not SubmititLauncher().has_ended(job)
    fake_slurm(tmp_path, monkeypatch, squeue="exit 0")
    assert SubmititLauncher().has_ended(job)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """A SLURM of this machine: slurm(command, ...) gives what it answers."""
    if os.geteuid() or not all(map(shutil.which, ("slurmctld", "slurmd", "munged"))):
        pytest.skip("needs root, and Debian's slurm-wlm and munge")
    folder = tmp_path / "slurm"
    grace = {"KILL_WAIT": "20", "GRACE_TIME": os.environ.get("GRACE_TIME", "0")}
    started = subprocess.run(
        [NODE, "start", folder], env=os.environ | grace, capture_output=True, text=True, check=True
    )
    monkeypatch.setenv("SLURM_CONF", started.stdout.strip().partition("=")[2])

    def ask(*command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    yield ask
    subprocess.run([NODE, "stop", folder], check=True)


@pytest.mark.long
@pytest.mark.parametrize("grace", ["0", "30"])
def test_an_array_on_slurm_is_preempted_killed_cancelled_and_ends(
    grace: str,
    request: pytest.FixtureRequest,
    start_sweep: Callable[..., Any],
    repeat_alone: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether jobs are killed at once when they are preempted, or have a time of grace."""
    monkeypatch.setenv("GRACE_TIME", grace)
    slurm = request.getfixturevalue("slurm")
    options = ["seed=0,1", "trainer.max_epochs=400", "hydra/launcher=submitit_slurm"]
    options += [f"hydra.launcher.{o}" for o in ("mem=null", "cpus_per_task=1", "partition=low")]
    folder = tmp_path / "sweep"
    runs = [folder / f"seed-{seed}" for seed in (0, 1)]
    cores = str(os.cpu_count())

    def record(run: Path) -> dict[str, Any]:
        return read_json(run / "run.json")

    def epochs(run: Path) -> int:
        file = run / "metrics.csv"
        return len(file.read_text().splitlines()) - 1 if file.exists() else 0

    process = start_sweep(folder, *options)
    wait_until(lambda: all(epochs(run) >= 5 for run in runs))
    sent = sorted(read_json(folder / ".submitit" / "jobs.json").values())
    slurm("sbatch", "-p", "high", "-c", cores, "-o", "/dev/null", "--wrap", "sleep 3")
    wait_until(lambda: all(len(record(run).get("resumed", [])) == 1 for run in runs))

    process.kill()  # the sweep's own process: its jobs stay
    process.communicate()
    before = [epochs(run) for run in runs]
    wait_until(lambda: all(epochs(run) > n for run, n in zip(runs, before, strict=True)))
    process = start_sweep(folder, *options)
    slurm("scancel", "--signal=USR2", sent[0])  # as before the time is over
    wait_until(lambda: len(record(runs[0]).get("resumed", [])) == 2)
    slurm("scancel", sent[1])  # for good
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "1 finished, 1 interrupted" in err
    assert sorted(read_json(folder / ".submitit" / "jobs.json").values()) == sent

    process = start_sweep(folder, *options)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "seed-0: finished" in err and "2 finished" in err
    for i, run in enumerate(runs):
        assert len(record(run)["resumed"]) == 2
        assert record(run)["machine"]["threads"] == 1
        assert result_of(run) == result_of(repeat_alone(run, tmp_path / f"alone{i}"))
