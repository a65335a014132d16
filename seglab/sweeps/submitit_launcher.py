"""Launcher that runs jobs as a SLURM array, by submitit."""

from __future__ import annotations

import getpass
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seglab.core.errors import InputError
from seglab.core.files import read_json, write_json
from seglab.runs.paths import RunPaths
from seglab.sweeps.jobs import Job, start_process
from seglab.sweeps.launcher import SweepLauncher

if TYPE_CHECKING:
    from submitit.core.utils import DelayedSubmission

_QUERY_SECONDS = 2.0  # between two calls of squeue


class ClusterJob:
    """Function that submitit calls on a node: runs the command of a job in its run directory."""

    process: Any

    def __init__(self, command: list[str], folder: Path) -> None:
        self.command = command
        self.folder = folder

    def __call__(self) -> int:
        """Run the command and return its exit code."""
        threads = os.environ.get("SLURM_CPUS_PER_TASK")
        environment = {"OMP_NUM_THREADS": threads} if threads else {}
        self.process = start_process(self.command, RunPaths(self.folder).job_log, environment)
        received_signals: list[int] = []

        def stop(signum: int, frame: Any) -> None:
            received_signals.append(signum)
            self.process.stdin.close()

        signal.signal(signal.SIGTERM, stop)
        while self.process.poll() is None:
            time.sleep(0.1)
        while received_signals:
            # SLURM ends the job, and queues it again unless it was cancelled. A preempted job that
            # ended within its time of grace would not be queued again.
            signal.pause()
        return self.process.returncode

    def checkpoint(self) -> DelayedSubmission:
        """Stop the run. Called by submitit before the time is over; it then requeues the job."""
        from submitit.helpers import DelayedSubmission

        self.process.stdin.close()
        with suppress(ChildProcessError):  # it has ended
            # A signal handler must not take the lock of Popen.wait.
            os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(ClusterJob(self.command, self.folder))


class SubmititLauncher(SweepLauncher):
    """Runs jobs on a SLURM cluster, where they go on when the sweep's own process is killed.

    Args:
        parameters: Parameters of sbatch by submitit's `SlurmExecutor`, such as `time` and
            `partition`; those that are None are left to the cluster.
    """

    n_jobs = sys.maxsize  # the cluster has a queue

    def __init__(self, **parameters: Any) -> None:
        self.parameters = {key: value for key, value in parameters.items() if value is not None}
        self._active: set[str] = set()
        self._queried = 0.0

    def start(self, jobs: Sequence[Job]) -> None:
        """Submit one array of the jobs that the cluster does not hold from an earlier start."""
        try:
            from submitit import SlurmExecutor
            from submitit.core.utils import FailedJobError
            from submitit.helpers import clean_env
        except ImportError:
            raise InputError(
                "hydra/launcher=submitit_slurm: needs submitit; install it with "
                "pip install 'seglab[slurm]'"
            ) from None
        folder = self.folder / ".submitit"
        ids_file = folder / "jobs.json"
        ids = read_json(ids_file) if ids_file.exists() else {}
        new = []
        for job in jobs:
            job.handle = ids.get(job.path.name)
            if job.handle is None or self.has_ended(job):
                new.append(job)
        if not new:
            return
        # SLURM_CONF is no setting of the job that the sweep may run in.
        slurm_conf = {k: v for k, v in os.environ.items() if k == "SLURM_CONF"}
        try:
            # Requeued whenever its time is over.
            executor = SlurmExecutor(folder, max_num_timeout=sys.maxsize)
            executor.update_parameters(**self.parameters)
            with clean_env(), executor.batch():
                os.environ.update(slurm_conf)
                submitted = [executor.submit(ClusterJob(job.command(), job.path)) for job in new]
        except (FailedJobError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"hydra.launcher: SLURM refuses the jobs: {error}") from error
        for job, cluster_job in zip(new, submitted, strict=True):
            job.handle = ids[job.path.name] = cluster_job.job_id
        self._active |= set(ids.values())
        write_json(ids_file, ids)

    def has_ended(self, job: Job) -> bool:
        """Whether squeue does not list the job: it neither waits nor runs."""
        if time.monotonic() - self._queried > _QUERY_SECONDS:
            answer = _run_slurm("squeue", "-h", "-r", "-u", getpass.getuser(), "-o", "%i")
            self._queried = time.monotonic()
            if answer is None:
                return False  # the cluster is busy: ask again
            self._active = set(answer.split())
        return job.handle not in self._active

    def stop(self, jobs: Sequence[Job]) -> None:
        """Cancel the jobs, which leaves them the cluster's KillWait to save."""
        _run_slurm("scancel", *(job.handle for job in jobs))

    def exit_reason(self, job: Job) -> str:
        """Return what may have ended the job; its exit code is not known here."""
        return f"ended without a result: killed, or out of memory or time; see {job.paths.job_log}"


def _run_slurm(*command: str) -> str | None:
    """Return the output of a SLURM command, or None if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else done.stdout
