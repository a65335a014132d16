"""Launcher that runs jobs as a SLURM array, by submitit."""

from __future__ import annotations

import getpass
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seglab.core.errors import InputError
from seglab.core.files import is_locked, read_json, write_json
from seglab.runs.paths import RunPaths
from seglab.sweeps.jobs import Job, start_process
from seglab.sweeps.launcher import SweepLauncher

_QUERY_SECONDS = 2.0  # between two calls of squeue
# Parameters that submitit names alike for every cluster; the others are SLURM's.
SHARED_PARAMETERS = (
    *("name", "timeout_min", "mem_gb", "nodes"),
    *("tasks_per_node", "cpus_per_task", "gpus_per_node"),
)


@dataclass
class ClusterJob:
    """Function that submitit calls on a node: runs the command of a job.

    When the cluster wants the node back, or the job's time is nearly over, the run is stopped and
    the job is queued again, to go on where it was.

    Attributes:
        command: Command of the job.
        run: Run directory.
    """

    command: list[str]
    run: Path

    def __call__(self) -> int:
        """Run the command and return its exit code."""
        received_signals: list[int] = []
        for signum in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(signum, lambda signum, frame: received_signals.append(signum))
        while is_locked(self.run) and not received_signals:
            time.sleep(1)  # an earlier process of this run is still saving
        threads = os.environ.get("SLURM_CPUS_PER_TASK")
        environment = {"OMP_NUM_THREADS": threads} if threads else {}
        process = start_process(self.command, RunPaths(self.run).job_log, environment)
        while process.poll() is None:
            if received_signals and process.stdin is not None:
                process.stdin.close()
            time.sleep(0.1)
        interrupted = process.returncode < 0 or process.returncode >= 128
        if received_signals and interrupted and must_requeue(received_signals):
            from submitit import JobEnvironment

            job = JobEnvironment()
            if job.global_rank == 0:
                job._requeue(0)
        return process.returncode


class SubmititLauncher(SweepLauncher):
    """Runs jobs on a SLURM cluster, where they go on when the sweep's own process is killed.

    Args:
        cluster: 'slurm', or 'local' for submitit's imitation of a cluster on this machine.
        parameters: Parameters of submitit and SLURM, such as `timeout_min` and `partition`;
            those that are None are left to the cluster.
    """

    n_jobs = sys.maxsize  # the cluster has a queue

    def __init__(self, cluster: str, **parameters: Any) -> None:
        self.cluster = cluster
        self.parameters = {
            name if name in SHARED_PARAMETERS else f"slurm_{name}": value
            for name, value in parameters.items()
            if value is not None
        }
        self._active: set[str] = set()
        self._queried = 0.0

    def start(self, jobs: Sequence[Job]) -> None:
        """Submit one array of the jobs that the cluster does not hold from an earlier start.

        Raises:
            InputError: submitit is not installed, or SLURM does not take the array.
        """
        try:
            import submitit
            from submitit.core.utils import FailedJobError
            from submitit.helpers import clean_env
        except ImportError:
            raise InputError(
                "hydra/launcher=submitit_slurm: needs submitit; install it with "
                "pip install -e '.[slurm]'"
            ) from None
        folder = self.folder / ".submitit"
        ids_file = folder / "jobs.json"
        submitted = read_json(ids_file) if ids_file.exists() else {}
        new = []
        for job in jobs:
            job.handle = submitted.get(job.path.name)
            if self.cluster != "slurm" or job.handle is None or self.has_ended(job):
                new.append(job)
        if not new:
            return
        errors = (AssertionError, NameError, FailedJobError)
        try:
            executor = submitit.AutoExecutor(folder, cluster=self.cluster)
            executor.update_parameters(**{"name": "seglab", **self.parameters})
            # SLURM_CONF is no setting of the job that the sweep may run in.
            slurm_conf = {k: v for k, v in os.environ.items() if k == "SLURM_CONF"}
            with clean_env(), executor.batch():
                os.environ.update(slurm_conf)
                handles = [executor.submit(ClusterJob(job.command(), job.path)) for job in new]
        # Errors of submitit's own checks, and of sbatch.
        except (RuntimeError, LookupError, TypeError, ValueError, *errors) as error:
            raise InputError(f"hydra.launcher: {self.cluster} refuses the jobs: {error}") from error
        for job, handle in zip(new, handles, strict=True):
            job.handle = handle.job_id if self.cluster == "slurm" else handle
            self._active.add(handle.job_id)
        ids = {job.path.name: handle.job_id for job, handle in zip(new, handles, strict=True)}
        write_json(ids_file, submitted | ids)

    def has_ended(self, job: Job) -> bool:
        """Whether squeue does not list the job: it neither waits nor runs."""
        if self.cluster != "slurm":
            return job.handle.done()
        if time.monotonic() - self._queried > _QUERY_SECONDS:
            answer = _run_slurm("squeue", "-h", "-r", "-u", getpass.getuser(), "-o", "%i")
            self._queried = time.monotonic()
            if answer is None:
                return False  # the cluster is busy: ask again
            self._active = set(answer.split())
        return job.handle not in self._active

    def stop(self, jobs: Sequence[Job]) -> None:
        """Cancel the jobs, which leaves them the cluster's KillWait to save."""
        if self.cluster == "slurm":
            _run_slurm("scancel", *(job.handle for job in jobs))
        else:
            for job in jobs:
                job.handle._process.terminate()

    def kill(self) -> None:
        """Do nothing: the cluster kills cancelled jobs after its KillWait."""

    def exit_reason(self, job: Job) -> str:
        """Return what may have ended the job; its exit code is not known here."""
        return f"ended without a result: killed, or out of memory or time; see {job.paths.job_log}"


def must_requeue(received_signals: Sequence[int]) -> bool:
    """Whether a job that received a signal must queue itself again.

    A job that SLURM calls running is preempted with a time of grace, or its time is nearly over:
    SLURM will not queue it again. In any other state SLURM has decided already, and a job that
    was cancelled must not come back.
    """
    job_id = os.environ.get("SLURM_JOB_ID")
    if job_id is None:
        return signal.SIGTERM not in received_signals
    if "SLURM_ARRAY_JOB_ID" in os.environ:  # squeue takes the number alone for the whole array
        job_id = "{SLURM_ARRAY_JOB_ID}_{SLURM_ARRAY_TASK_ID}".format_map(os.environ)
    for _ in range(10):
        state = _run_slurm("squeue", "-h", "-j", job_id, "-o", "%T")
        if state:
            return state.strip() == "RUNNING"
        time.sleep(1)  # squeue was hit by the signal too, or SLURM is busy
    return False


def _run_slurm(*command: str) -> str | None:
    """Return the output of a SLURM command, or None if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else done.stdout
