"""Launcher that runs jobs on this machine."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from contextlib import suppress

from seglab.core.validation import check_number
from seglab.sweeps.jobs import Job, last_line, start_process
from seglab.sweeps.launcher import SweepLauncher


class LocalLauncher(SweepLauncher):
    """Runs jobs as processes on this machine.

    Args:
        n_jobs: Number of jobs that run at once.
        threads: Number of threads of each job. None divides the cores among several jobs, and
            leaves a single job as it would be outside a sweep.
    """

    def __init__(self, n_jobs: int = 1, threads: int | None = None) -> None:
        check_number("hydra.launcher.n_jobs", n_jobs, int, 1)
        check_number("hydra.launcher.threads", threads, int, 1, null=True)
        self.n_jobs = n_jobs
        if threads is None and n_jobs > 1:
            has_affinity = hasattr(os, "sched_getaffinity")  # not on macOS
            cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
            threads = max(1, cores // n_jobs)
        self.environment = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}

    def start(self, jobs: Sequence[Job]) -> None:
        """Start a process for each job."""
        for job in jobs:
            try:
                job.handle = start_process(job.command(), job.paths.job_log, self.environment)
            except OSError as error:  # such as a full disk, or no more processes
                job.failure = f"{error.filename or job.path}: {error.strerror}"

    def has_ended(self, job: Job) -> bool:
        """Whether the process has ended."""
        return job.handle.poll() is not None

    def stop(self, jobs: Sequence[Job]) -> None:
        """Close the stdin of the processes, which they watch."""
        for job in jobs:
            job.handle.stdin.close()

    def kill(self) -> None:
        """Kill the processes, and those that they have started."""
        for job in self.jobs:
            if job.handle is not None:
                with suppress(ProcessLookupError):
                    os.killpg(job.handle.pid, signal.SIGKILL)

    def exit_reason(self, job: Job) -> str:
        """Return the signal, the last line of the log, or the exit code."""
        code = job.handle.returncode
        if code == 0:
            return f"ended without a result; see {job.paths.job_log}"
        if code > 0:
            return (
                last_line(job.paths.job_log).removeprefix("error: ")
                or f"ended with exit code {code}"
            )
        hint = "; was the memory full?" if code == -signal.SIGKILL else f"; see {job.paths.job_log}"
        return f"killed by {signal.Signals(-code).name}{hint}"
