"""Base of the launchers: plans the jobs of a sweep, runs each in a process, and logs a table."""

import logging
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException
from tqdm import tqdm

from seglab.config import resolve_config
from seglab.core.commands import format_command
from seglab.core.errors import InputError
from seglab.core.files import expand_user, lock_folder, read_csv, write_csv
from seglab.core.logs import log_to_console
from seglab.core.signals import Interrupts
from seglab.runs.loading import parse_config
from seglab.runs.overrides import (
    format_resumption,
    hydra_flags,
    job_names,
    parse_overrides,
    varying_overrides,
)
from seglab.schema import config_differences
from seglab.sweeps.jobs import Job

log = logging.getLogger("seglab")

POLL_SECONDS = 0.2
DONE = ("finished", "pruned")

# Takes a running job and the new rows of its metrics.csv; returns why to stop it, or nothing.
Watch = Callable[[Job, list[dict[str, str]]], str]


class SweepLauncher(Launcher):
    """Runs the jobs of a sweep in processes, so that a job that fails costs only itself.

    What a job has done is read from its run directory, not from its process, so the same sweep
    started again goes on where it stopped. A subclass says how a job is started and stopped.

    Attributes:
        n_jobs: Number of jobs that run at once.
        jobs: Jobs that were planned so far.
    """

    n_jobs: int

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Store what Hydra has composed."""
        self.config = config
        self.loader = hydra_context.config_loader
        self.folder = expand_user(config.hydra.sweep.dir).absolute()
        self.monitor = config.monitor
        self.interrupts = Interrupts()
        self.jobs: list[Job] = []

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
    def exit_reason(self, job: Job) -> str:
        """Return how a job ended that left no status, such as 'killed by SIGKILL'."""

    def launch(
        self,
        job_overrides: Sequence[Sequence[str]],
        initial_job_idx: int,
        varies: Sequence[Mapping[str, str]] | None = None,
    ) -> Sequence[JobReturn]:
        """Run jobs, named by `varies` or the overrides that vary; an error if one failed."""
        varies = varying_overrides(job_overrides) if varies is None else varies
        with self.sweeping():
            self.run(self.plan(job_names(varies), job_overrides, varies))
        return []

    @contextmanager
    def sweeping(self, may_fail: bool = False) -> Iterator[None]:
        """Lock the sweep's folder while the body runs, and log the table of jobs at its end.

        Raises an InputError if a job did not finish; in a search it `may_fail`.
        """
        refusal = (
            f"{self.folder}: another process is at work on this sweep; wait for it, or name "
            "another directory with hydra.sweep.dir=..."
        )
        with (
            lock_folder(self.folder, refusal),
            log_to_console(log),
            self.interrupts.handled(lambda: None),  # the jobs notice that this process is gone
        ):
            self.interrupts.deferrable = True  # `run` looks at them
            yield
            self.log_job_table()
            hint = f"to go on: {format_resumption('hydra.sweep.dir', self.folder)}"
            if self.interrupts.received_signal:
                raise type(self.interrupts.error())(f"({hint})")
            ends = (*DONE, "failed") if may_fail else DONE
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

        Returns the jobs in order; those of the same name are the same object. Raises an error if
        no job can be composed, or if a job's directory holds a run of another config.
        """
        if not overrides:
            raise InputError("nothing to run: a list or range of the sweep is empty")
        if any("run_dir" in parse_overrides(items) for items in overrides):
            raise InputError(
                "run_dir: each job has its own; name the sweep's folder with hydra.sweep.dir=..."
            )
        flags = hydra_flags(self.config)
        by_name: dict[str, Job] = {}
        for name, items, varying in zip(names, overrides, varies, strict=True):
            by_name.setdefault(name, Job(name, self.folder / name, items, varying, flags))
        errors = [self._compose(job) for job in by_name.values()]
        if all(errors):
            raise errors[0]  # type: ignore[misc]
        for job in by_name.values():
            if job.failure or not job.paths.config.exists():
                continue
            try:
                stored = parse_config(job.paths.config)
            except InputError as error:
                job.failure = str(error)
                continue
            changed = config_differences(stored, job.config)
            if changed:
                raise InputError(
                    f"{job.path}: holds a run of another config ({', '.join(changed[:5])}); name "
                    "another directory with hydra.sweep.dir=..., or give the same config"
                )
        for job in by_name.values():
            if job.failure:
                job.update_record(status="failed", error=job.failure, varies=dict(job.varies))
            elif not job.record:
                job.mark_planned()
        self.jobs += by_name.values()
        return [by_name[name] for name in names]

    def run(self, jobs: Sequence[Job], watch: Watch | None = None) -> None:
        """Run planned jobs that are not done, `n_jobs` at once; `watch` may stop a job."""
        waiting = list(dict.fromkeys(jobs))
        running: list[Job] = []
        is_stopping = False
        with tqdm(total=len(waiting), unit="job", disable=None) as bar:
            while waiting or running:
                if self.interrupts.received_signal and not is_stopping:
                    is_stopping = True
                    waiting.clear()
                    self.stop(running)
                n_free = self.n_jobs - len(running)
                new, waiting = waiting[:n_free], waiting[n_free:]
                self._start(new)
                running += new
                for job in list(running):
                    if self._poll(job, watch):
                        running.remove(job)
                        log.info("%s: %s", job.name, job.describe(self.monitor))
                        bar.update()
                if running:
                    time.sleep(POLL_SECONDS)

    def log_job_table(self) -> None:
        """Log the status of all jobs, and write it as jobs.csv."""
        width = max((len(job.name) for job in self.jobs), default=0)
        lines = [f"{job.name:{width}}  {job.describe(self.monitor)}" for job in self.jobs]
        counts = sorted(Counter(job.status for job in self.jobs).items())
        lines += [
            f"{len(self.jobs)} jobs: {', '.join(f'{n} {status}' for status, n in counts)}",
            f"compare      {format_command('compare', self.folder)}",
            f"look at it   {format_command('report', self.folder)}",
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

    def _start(self, jobs: Sequence[Job]) -> None:
        """Start those of the jobs that are not done."""
        unfinished = [job for job in jobs if not job.failure and job.status not in DONE]
        for job in unfinished:
            if job.status != "running":  # else an earlier process may be at work on it
                job.mark_planned()
        self.start([job for job in unfinished if not job.failure])

    def _poll(self, job: Job, watch: Watch | None) -> bool:
        """Show new epochs of a job to `watch`; return whether the job has ended."""
        has_ended = job.handle is None or self.has_ended(job)
        if watch is not None and not job.prune_reason and job.paths.metrics.exists():
            rows = read_csv(job.paths.metrics)[job.epochs_seen :]
            job.epochs_seen += len(rows)
            job.prune_reason = watch(job, rows)
            if job.prune_reason and not has_ended:
                self.stop([job])
        if has_ended and job.handle is not None:
            if job.prune_reason and job.status == "interrupted":
                job.update_record(status="pruned", error=job.prune_reason)
            elif job.status in ("planned", "running") and not self.interrupts.received_signal:
                job.update_record(status="failed", error=self.exit_reason(job))
        return has_ended
