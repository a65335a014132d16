"""Sweeps on a cluster: jobs of a SLURM array, sent by submitit."""

from __future__ import annotations

import getpass
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seglab.core.errors import InputError
from seglab.core.files import is_locked, read_json, write_json
from seglab.sweeps.launcher import PLUGINS, Job, SweepLauncher, start_process

_LOOK = 2.0  # seconds between questions to the cluster
# What submitit calls the same on every cluster; the rest is SLURM's own.
_SHARED = (
    "name",
    "timeout_min",
    "mem_gb",
    "nodes",
    "tasks_per_node",
    "cpus_per_task",
    "gpus_per_node",
)


@dataclass
class ClusterJob:
    """What a node runs: a job's command.

    When the cluster wants the node back, or time is nearly up, the run is saved and the job goes
    back into the queue, to go on where it was.

    Attributes:
        command: Of scripts/train.py.
        run: Its run directory.
        log: Gets what it prints.
    """

    command: list[str]
    run: Path
    log: Path

    def __call__(self) -> int:
        """Runs it to its end; returns its exit code."""
        received_signal: list[int] = []
        for signum in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(signum, lambda signum, frame: received_signal.append(signum))
        while is_locked(self.run) and not received_signal:
            time.sleep(1)  # a process that was told to go is saving still
        threads = os.environ.get("SLURM_CPUS_PER_TASK")
        environment = {"OMP_NUM_THREADS": threads} if threads else {}
        process = start_process(self.command, self.log, environment)
        while process.poll() is None:
            if received_signal and process.stdin is not None:
                process.stdin.close()
            time.sleep(0.1)
        interrupted = process.returncode < 0 or process.returncode >= 128
        if received_signal and interrupted and _is_wanted(received_signal):
            from submitit import JobEnvironment

            job = JobEnvironment()
            if job.global_rank == 0:
                job._requeue(0)
        return process.returncode


class SubmititLauncher(SweepLauncher):
    """Jobs on a SLURM cluster, whose processes go on when this one is killed.

    Args:
        cluster: 'slurm', or 'local' for submitit's imitation of one on this machine.
        parameters: submitit's and SLURM's, as `timeout_min` and `partition`; null for none.
    """

    __module__ = PLUGINS

    def __init__(self, cluster: str, **parameters: Any) -> None:
        self.cluster = cluster
        self.parameters = {
            name if name in _SHARED else f"{cluster}_{name}": value
            for name, value in parameters.items()
            if value is not None
        }
        self._active: set[str] = set()
        self._looked = 0.0

    def room(self, running: Sequence[Job]) -> int:
        """All jobs: the cluster has a queue."""
        return sys.maxsize

    def start(self, jobs: Sequence[Job]) -> None:
        """Sends one array, less the jobs that were sent before and are there still.

        Raises:
            InputError: submitit is not installed, or SLURM does not take the array.
        """
        try:
            import submitit
            from submitit.core.utils import FailedJobError
        except ImportError:
            raise InputError(
                "hydra/launcher=submitit_slurm: needs submitit; install it with "
                "pip install -e '.[slurm]'"
            ) from None
        folder = self.folder / ".submitit"
        sent: dict[str, str] = {}
        with suppress(InputError):
            sent = read_json(folder / "jobs.json")
        new = []
        for job in jobs:
            job.handle = sent.get(job.path.name)
            if self.cluster != "slurm" or job.handle is None or self.has_ended(job):
                new.append(job)
        if not new:
            return
        errors = (AssertionError, NameError, FailedJobError)
        try:
            executor = submitit.AutoExecutor(folder, cluster=self.cluster)
            executor.update_parameters(**{"name": "seglab", **self.parameters})
            with _outside_of_a_job(), executor.batch():
                handles = [
                    executor.submit(ClusterJob(job.command(), job.path, job.log)) for job in new
                ]
        # What submitit refuses itself, and what sbatch does.
        except (RuntimeError, LookupError, TypeError, ValueError, *errors) as error:
            raise InputError(f"hydra.launcher: {self.cluster} refuses the jobs: {error}") from error
        for job, handle in zip(new, handles, strict=True):
            job.handle = handle.job_id if self.cluster == "slurm" else handle
            self._active.add(handle.job_id)
        ids = {job.path.name: handle.job_id for job, handle in zip(new, handles, strict=True)}
        write_json(folder / "jobs.json", sent | ids)

    def has_ended(self, job: Job) -> bool:
        """Whether the cluster has forgotten it: neither waiting nor running, nor to be requeued."""
        if self.cluster != "slurm":
            return job.handle.done()
        if time.monotonic() - self._looked > _LOOK:
            answer = _ask("squeue", "-h", "-r", "-u", getpass.getuser(), "-o", "%i")
            self._looked = time.monotonic()
            if answer is None:
                return False  # the cluster is busy: ask again
            self._active = set(answer.split())
        return job.handle not in self._active

    def stop(self, jobs: Sequence[Job]) -> None:
        """Takes them off the cluster; they have time to save."""
        if self.cluster == "slurm":
            _ask("scancel", *(job.handle for job in jobs))
        else:
            for job in jobs:
                job.handle._process.terminate()

    def kill(self) -> None:
        """Nothing more: the cluster does it, after its KillWait."""

    def exit_reason(self, job: Job) -> str:
        """All that is known."""
        return f"gone without a word: killed, or out of memory or time; see {job.log}"


def _is_wanted(received_signal: Sequence[int]) -> bool:
    """Whether a job that was asked to stop is to be queued again by itself.

    While SLURM calls it running, nobody else will: its time is nearly up, or it is to make room
    within a time of grace. Else SLURM has decided already, and to queue a job that was cancelled
    would bring it back.
    """
    me = os.environ.get("SLURM_JOB_ID")
    if me is None:
        return signal.SIGTERM not in received_signal
    if "SLURM_ARRAY_JOB_ID" in os.environ:  # whose own number means all of its tasks
        me = "{SLURM_ARRAY_JOB_ID}_{SLURM_ARRAY_TASK_ID}".format_map(os.environ)
    for _ in range(10):
        state = _ask("squeue", "-h", "-j", me, "-o", "%T")
        if state:
            return state.strip() == "RUNNING"
        time.sleep(1)  # the question itself was hit by a signal, or SLURM is busy
    return False


@contextmanager
def _outside_of_a_job() -> Iterator[None]:
    """Hides the job that this process may be part of: its tasks and arrays are not the sweep's."""
    inherited = {
        key: value
        for key, value in os.environ.items()
        if key.startswith(("SLURM_", "SBATCH_", "SRUN_", "SUBMITIT_")) and key != "SLURM_CONF"
    }
    for key in inherited:
        del os.environ[key]
    try:
        yield
    finally:
        os.environ.update(inherited)


def _ask(*command: str) -> str | None:
    """What SLURM answers; None where it does not."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else done.stdout
