"""Launcher that runs jobs on this machine."""

import os
import signal
import sys
from collections.abc import Sequence

from seglab.core.errors import check_number
from seglab.sweeps.forks import ForkServer
from seglab.sweeps.jobs import Job, start_process
from seglab.sweeps.launcher import SweepLauncher


class LocalLauncher(SweepLauncher):
    """Runs jobs as processes on this machine.

    Args:
        n_jobs: Number of jobs that run at once. They share the cores
            unless OMP_NUM_THREADS is set.
    """

    def __init__(self, n_jobs: int = 1) -> None:
        check_number("hydra.launcher.n_jobs", n_jobs, int, 1)
        self.n_jobs = n_jobs
        self.environment = {}
        if n_jobs > 1 and "OMP_NUM_THREADS" not in os.environ:
            has_affinity = hasattr(os, "sched_getaffinity")  # not on macOS
            cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
            self.environment["OMP_NUM_THREADS"] = str(max(1, cores // n_jobs))
        self.server = ForkServer(self.environment)

    def start(self, jobs: Sequence[Job]) -> None:
        """Start a process for each job."""
        for job in jobs:
            try:
                if sys.platform == "linux":
                    job.handle = self.server.start(job.arguments, job.paths.job_log)
                else:  # what macOS itself has loaded does not bear a fork
                    log_file = job.paths.job_log
                    job.handle = start_process(job.command(), log_file, self.environment)
            except OSError as error:  # such as a full disk, or no more processes
                job.failure = f"{error.filename or job.path}: {error.strerror}"

    def has_ended(self, job: Job) -> bool:
        """Whether the process has ended."""
        return job.handle.poll() is not None

    def stop(self, jobs: Sequence[Job]) -> None:
        """Close the stdin of the processes, which they watch."""
        for job in jobs:
            job.handle.stdin.close()

    def exit_reason(self, job: Job) -> str:
        """Return the signal, the last line of the log, or the exit code."""
        code = job.handle.returncode
        if code < 0:
            hint = "was the memory full?" if code == -signal.SIGKILL else f"see {job.paths.job_log}"
            return f"killed by {signal.Signals(-code).name}; {hint}"
        lines = job.paths.job_log.read_text("utf-8", "replace").strip().split("\n")
        return lines[-1].removeprefix("error: ") or f"ended with exit code {code}"
