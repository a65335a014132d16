"""Base of the launchers: plans the jobs of a sweep, runs each in a process, and logs a table."""

from __future__ import annotations

import logging
import shlex
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from seglab.config import comparable, differences, resolve_config
from seglab.core.console import JobBars, log_to_console
from seglab.core.errors import InputError
from seglab.core.files import hash_json, is_locked, lock_folder, write_csv
from seglab.core.signals import Interrupts
from seglab.runs.loading import parse_config
from seglab.runs.overrides import (
    format_command,
    hydra_flags,
    job_names,
    parse_overrides,
    varying_overrides,
)
from seglab.runs.paths import RunPaths
from seglab.sweeps.jobs import Job, last_line

log = logging.getLogger("seglab")

POLL_SECONDS = 0.2

# Takes a running job and the new rows of its metrics.csv; returns why to stop it, or nothing.
Watch = Callable[[Job, list[dict[str, str]]], str]


class SweepLauncher(Launcher):
    """Runs the jobs of a sweep in processes, so that a job that fails costs only itself.

    What a job has done is read from its run directory, not from its process, so the same sweep
    started again goes on where it stopped. A subclass says how a job is started and stopped.

    Attributes:
        n_jobs: Number of jobs that run at once.
        jobs: Jobs that were planned so far.
        remarks: Lines below the table of jobs.
    """

    n_jobs: int

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Store what Hydra has composed."""
        self.config = config
        self.loader = hydra_context.config_loader
        self.folder = Path(config.hydra.sweep.dir).absolute()
        self.monitor = config.monitor
        self.interrupts = Interrupts()
        self.jobs: list[Job] = []
        self.remarks: list[str] = []

    @abstractmethod
    def start(self, jobs: Sequence[Job]) -> None:
        """Start jobs and set their handles."""

    @abstractmethod
    def has_ended(self, job: Job) -> bool:
        """Whether the process of a started job has ended."""

    @abstractmethod
    def stop(self, jobs: Sequence[Job]) -> None:
        """Ask jobs to save and to end."""

    @abstractmethod
    def kill(self) -> None:
        """End all started jobs at once."""

    @abstractmethod
    def exit_reason(self, job: Job) -> str:
        """Return how a job ended that left no status, such as 'killed by SIGKILL'."""

    def launch(
        self,
        job_overrides: Sequence[Sequence[str]],
        initial_job_idx: int,
        varies: Sequence[Mapping[str, str]] | None = None,
    ) -> Sequence[JobReturn]:
        """Run a sweep whose jobs are known beforehand.

        Args:
            job_overrides: Overrides of each job.
            initial_job_idx: Part of Hydra's interface, not used.
            varies: Overrides that name each job, by key; None for those that vary.

        Raises:
            InputError: A job failed; raised after all others have ended.
        """
        varies = varying_overrides(job_overrides) if varies is None else varies
        with self.sweeping():
            self.run(self.plan(job_names(varies), job_overrides, varies))
        return []

    @contextmanager
    def sweeping(self, may_fail: bool = False) -> Iterator[None]:
        """Lock the sweep's folder while the body runs, and log the table of jobs at its end.

        Args:
            may_fail: Whether a failed job is a result like any other, as in a search.

        Raises:
            InputError: A job did not finish, or another process holds the lock.
            KeyboardInterrupt: The sweep was interrupted.
        """
        refusal = (
            f"{self.folder}: another process is at work on this sweep; wait for it, or name "
            "another directory with hydra.sweep.dir=..."
        )
        with (
            lock_folder(self.folder, refusal),
            log_to_console(log),
            self.interrupts.handled(self._on_force_quit),
        ):
            with suppress(KeyboardInterrupt):
                yield
            self.interrupts.deferrable = True
            self.log_job_table()
            hint = f"to go on: {format_command('hydra.sweep.dir', self.folder)}"
            if self.interrupts.received_signal:
                raise type(self.interrupts.error())(f"({hint})")
            ends = ("finished", "pruned", "failed") if may_fail else ("finished", "pruned")
            unfinished = sum(job.status not in ends for job in self.jobs)
            if unfinished:
                raise InputError(f"{unfinished} of {len(self.jobs)} jobs did not finish; {hint}")

    def plan(
        self,
        names: Sequence[str],
        overrides: Sequence[Sequence[str]],
        varies: Sequence[Mapping[str, str]],
    ) -> list[Job]:
        """Compose the config of each job and write into its run directory that it is planned.

        A config that the sweep's folder already holds a run of keeps that run's directory,
        whatever its name: a sweep that is extended by another parameter names its jobs anew.

        Returns:
            The jobs in order; jobs of one run directory are the same object.

        Raises:
            InputError: No job can be composed, or a job's directory holds a run of another config.
        """
        if not overrides:
            raise InputError("nothing to run: a list or range of the sweep is empty")
        if any("run_dir" in parse_overrides(items) for items in overrides):
            raise InputError(
                "run_dir: each job has its own; name the sweep's folder with hydra.sweep.dir=..."
            )
        flags = hydra_flags(self.config)
        jobs = [
            Job(name, self.folder / name, items, varying, flags)
            for name, items, varying in zip(names, overrides, varies, strict=True)
        ]
        errors = [self._compose(job) for job in jobs]
        if all(errors):
            raise errors[0]  # type: ignore[misc]
        self._use_earlier_directories(jobs)
        by_path: dict[Path, Job] = {}
        jobs = [by_path.setdefault(job.path, job) for job in jobs]
        for job in by_path.values():
            if job.failure:
                job.update_record(status="failed", error=job.failure, varies=dict(job.varies))
            elif not job.paths.record.exists():
                job.mark_planned()
        self.jobs += by_path.values()
        return jobs

    def run(self, jobs: Sequence[Job], watch: Watch = lambda job, rows: "") -> None:
        """Run planned jobs that are not done, `n_jobs` at once.

        Args:
            jobs: Returned by `plan`.
            watch: Called after each epoch of a job; may stop the job.
        """
        waiting = [job for job in dict.fromkeys(jobs) if not job.failure]
        running: list[Job] = []
        is_stopping = False
        self.interrupts.deferrable = True
        with JobBars(len(waiting)) as display:
            while waiting or running:
                if self.interrupts.received_signal and not is_stopping:
                    is_stopping = True
                    waiting.clear()
                    self.stop(running)
                if waiting and len(running) < self.n_jobs:
                    self._skip_done(waiting, watch, display)
                    self._start_waiting(waiting, running, display)
                self._remove_ended(running, watch, display)
                display.show(
                    {job.name: last_line(job.paths.job_log) or "starting" for job in running}
                )
                if running or waiting:
                    time.sleep(POLL_SECONDS)
        self.interrupts.deferrable = False

    def log_job_table(self) -> None:
        """Log the status of all jobs, and write it as jobs.csv."""
        width = max((len(job.name) for job in self.jobs), default=0)
        lines = [f"{job.name:{width}}  {job.describe(self.monitor)}" for job in self.jobs]
        counts = Counter(job.status for job in self.jobs)
        texts = {status: f"{n} {status}" for status, n in sorted(counts.items())}
        earlier = sum(job.status == "finished" and job.handle is None for job in self.jobs)
        if earlier:
            texts["finished"] += f" ({earlier} of them before)"
        folder = shlex.quote(str(self.folder))
        lines += [
            f"{len(self.jobs)} jobs: {', '.join(texts.values())}",
            f"sweep        {self.folder}",
            f"compare      python scripts/compare.py {folder}",
            f"look at it   tensorboard --logdir {folder}",
            *self.remarks,
        ]
        log.info("%s", "\n".join(lines))
        rows = [
            {
                "job": job.name,
                **job.varies,
                "status": job.status,
                self.monitor or "value": job.value(self.monitor),
                "error": job.error,
            }
            for job in self.jobs
        ]
        write_csv(self.folder / "jobs.csv", rows)

    def _compose(self, job: Job) -> Exception | None:
        """Set the config of a job; return the error if it cannot be composed."""
        try:
            cfg = self.loader.load_sweep_config(self.config, list(job.overrides))
            with open_dict(cfg):
                del cfg["hydra"]
                cfg.run_dir = str(job.path)
            job.config = resolve_config(cfg)
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            job.failure = " ".join(str(error).split())
            return error
        return None

    def _use_earlier_directories(self, jobs: Sequence[Job]) -> None:
        """Point each job to the run of its config in the sweep's folder, if there is one."""
        earlier: dict[str, Path] = {}
        for folder in self.folder.iterdir():
            with suppress(InputError):  # no run has begun there; a damaged file fails its job
                earlier[_hash_config(parse_config(RunPaths(folder).config))] = folder
        for job in jobs:
            if job.config is None:
                continue
            job_hash = _hash_config(job.config)
            if job_hash in earlier:
                job.path = earlier[job_hash]
            elif job.path in earlier.values():
                stored = parse_config(job.paths.config)
                changed = ", ".join(differences(stored, job.config)[:5])
                raise InputError(
                    f"{job.path}: holds a run of another config ({changed}); name another "
                    "directory with hydra.sweep.dir=..., or give the same config"
                )
            else:
                earlier[job_hash] = job.path

    def _skip_done(self, waiting: list[Job], watch: Watch, display: JobBars) -> None:
        """Remove the jobs that are done, without the seconds that a process takes to say so."""
        for job in [job for job in waiting if job.is_done]:
            waiting.remove(job)
            watch(job, job.new_epochs())
            display.count_ended(job.name, f"{job.status} before", was_finished=True)

    def _start_waiting(self, waiting: list[Job], running: list[Job], display: JobBars) -> None:
        """Start jobs up to `n_jobs`, but none that another process is running."""
        ready = [job for job in waiting if not is_locked(job.path)][: self.n_jobs - len(running)]
        if not ready and not running and waiting:
            display.show_waiting(waiting[0].path)
        for job in ready:
            waiting.remove(job)
            job.mark_planned()
        startable = [job for job in ready if not job.failure]
        if startable:
            self.start(startable)
        for job in ready:
            if job.failure:
                display.count_ended(job.name, job.describe(self.monitor))
            else:
                running.append(job)

    def _remove_ended(self, running: list[Job], watch: Watch, display: JobBars) -> None:
        """Show new epochs of the running jobs to `watch`, and remove the jobs that have ended."""
        for job in list(running):
            has_ended = self.has_ended(job)
            rows = job.new_epochs()
            if rows and not job.prune_reason:
                job.prune_reason = watch(job, rows)
                if job.prune_reason and not has_ended:
                    self.stop([job])
            if has_ended:
                running.remove(job)
                self._record_end(job)
                display.count_ended(job.name, job.describe(self.monitor))

    def _record_end(self, job: Job) -> None:
        """Write the status of a job that was pruned, or that could not write its status itself."""
        status = job.status
        if job.prune_reason and status == "interrupted":
            job.update_record(status="pruned", error=job.prune_reason)
        elif status in ("planned", "running") and not self.interrupts.received_signal:
            job.update_record(status="failed", error=self.exit_reason(job))

    def _on_force_quit(self) -> None:
        """Kill the jobs and log the table: called at a second signal, before the process ends."""
        with suppress(Exception):
            self.kill()
            self.log_job_table()


def _hash_config(config: dict[str, Any]) -> str:
    """Return the same hash for configs that differ only in where their runs lie."""
    return hash_json(comparable(config))
