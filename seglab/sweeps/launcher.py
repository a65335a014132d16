"""Sweeps: every job a process with a run directory of its own, and a table in the end."""

from __future__ import annotations

import itertools
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from seglab.config import comparable, differences, resolve_config
from seglab.core.console import JobBars, log_to_console
from seglab.core.errors import SWEEP_JOB_VARIABLE, InputError
from seglab.core.files import (
    hash_json,
    is_locked,
    lock_folder,
    read_csv,
    read_json,
    write_csv,
    write_json,
)
from seglab.core.signals import Interrupts
from seglab.core.validation import check_number
from seglab.runs.loading import parse_config
from seglab.runs.overrides import (
    format_command,
    hydra_flags,
    job_names,
    parse_overrides,
    quote_value,
    varying_overrides,
)
from seglab.runs.paths import RunPaths
from seglab.runs.records import read_val

log = logging.getLogger("seglab")

# Hydra takes plugins from hydra_plugins alone: `register` puts seglab's there.
PLUGINS = "hydra_plugins.seglab"

_PAUSE = 0.2  # seconds between looks at the jobs


@dataclass(eq=False)
class Job:
    """A run of a sweep.

    Attributes:
        name: By what varies; of its folder too, unless the same run lies in another one already.
        path: Its run directory.
        overrides: All of them.
        varies: Those that are not the same in all jobs, by key.
        config: Resolved; None where it cannot be composed, which the job itself will say.
        options: Of Hydra's command line, besides.
        known: Whether its run directory holds a run of this config already.
        before: Whether it was finished before this sweep was started.
        stopped: Why the sweep has stopped it, if it has.
        failure: What went wrong that its run directory does not say.
        answered: Whether its failure is an answer too, as in a search: it is not to be tried again.
        rows: Of its metrics.csv, as far as they were looked at.
        handle: What the launcher knows it by.
    """

    name: str
    path: Path
    overrides: Sequence[str]
    varies: Mapping[str, str]
    config: dict[str, Any] | None = None
    options: Sequence[str] = ()
    known: bool = False
    before: bool = False
    stopped: str = ""
    failure: str = ""
    answered: bool = False
    rows: list[dict[str, str]] = field(default_factory=list)
    handle: Any = None

    @property
    def paths(self) -> RunPaths:
        """Its run directory's files."""
        return RunPaths(self.path)

    @property
    def record(self) -> dict[str, Any]:
        """run.json as it is now."""
        try:
            record = read_json(self.paths.record)
        except InputError:
            return {}
        return record if isinstance(record, dict) else {}

    @property
    def log(self) -> Path:
        """What its processes have printed, traceback included."""
        return self.paths.job_log

    def command(self) -> list[str]:
        """What runs it alone."""
        script = str(Path(sys.argv[0]).absolute())
        own = ["hydra.mode=RUN", f"hydra.run.dir={quote_value(self.path)}"]
        return [sys.executable, script, *self.options, *self.overrides, *own]


# Looks at new rows of a running job's metrics.csv; says why to stop it, or nothing.
Watch = Callable[[Job], str]


class SweepLauncher(Launcher):
    """Runs jobs in processes of their own, so that none can take another along.

    What a job did is read from its run directory, never from its process.
    """

    __module__ = PLUGINS

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Takes what Hydra has composed."""
        self.config = config
        self.loader = hydra_context.config_loader
        self.folder = Path(config.hydra.sweep.dir).absolute()
        self.monitor = config.monitor
        self.interrupts = Interrupts()
        self.jobs: list[Job] = []
        self.remarks: list[str] = []  # below the table

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Runs a sweep whose jobs are all known.

        Raises:
            InputError: A job did not finish; after all others have.
        """
        with self.sweeping():
            varies = varying_overrides(job_overrides)
            jobs = self.plan(job_names(varies), job_overrides, varies)
            self.run(jobs)
        return [
            JobReturn(job.overrides, status=JobStatus.COMPLETED, _return_value=self.value(job))
            for job in jobs
        ]

    @contextmanager
    def sweeping(self) -> Iterator[None]:
        """Keeps the sweep's folder to this process, and ends with a table of all jobs.

        Raises:
            InputError: A job did not finish, or another process is at work in the folder.
            KeyboardInterrupt: The sweep was stopped.
        """
        root = Path(self.config.data.root).absolute()
        if self.folder.resolve().is_relative_to(root.resolve()):
            raise InputError(
                f"hydra.sweep.dir={self.folder}: expected a folder outside the data, {root}"
            )
        refusal = (
            f"{self.folder}: another process is at work on this sweep; wait for it, or name "
            "another directory with hydra.sweep.dir=..."
        )
        with (
            lock_folder(self.folder, refusal),
            log_to_console(log),
            self.interrupts.handled(self._leave),
        ):
            with suppress(KeyboardInterrupt):
                yield
            self.interrupts.deferrable = True
            self.log_job_table()
            undone = [job for job in self.jobs if not (self._is_done(job) or job.answered)]
            again = f"to go on: {format_command('hydra.sweep.dir', self.folder)}"
            if self.interrupts.received_signal:
                raise type(self.interrupts.error())(f"({again})")
            if undone:
                raise InputError(f"{len(undone)} of {len(self.jobs)} jobs did not finish; {again}")

    def plan(
        self,
        names: Sequence[str],
        overrides: Sequence[Sequence[str]],
        varies: Sequence[Mapping[str, str]],
    ) -> list[Job]:
        """Gives each job a run directory, which says that the job is to come.

        Jobs that are the same are one. A job whose config has a run directory in the sweep's
        folder already, under whatever name, keeps it.

        Returns:
            A job for each; one that is the same as another is the same object.

        Raises:
            InputError: No job can be composed, or a run of another config is in the way.
        """
        jobs = [
            Job(name, self.folder / name, given, own, options=hydra_flags(self.config))
            for name, given, own in zip(names, overrides, varies, strict=True)
        ]
        errors = [self._compose(job) for job in jobs]
        if not jobs:
            raise InputError("nothing to run: a list or range of the sweep is empty")
        if all(errors):
            raise errors[0]  # type: ignore[misc]
        if any("run_dir" in parse_overrides(job.overrides) for job in jobs):
            raise InputError(
                "run_dir: each job has its own; name the sweep's folder with hydra.sweep.dir=..."
            )
        unique: dict[str, Job] = {}
        for i, job in enumerate(jobs):
            jobs[i] = unique.setdefault(_hash(job.config or job.overrides), job)
        if len(unique) < len(jobs):
            same = f"{len(jobs) - len(unique)} of {len(jobs)} combinations"
            self.remarks.append(f"note         {same} are the same as others, and run once")
        there = self._there()
        configs = dict(there.values())
        for job in unique.values():
            if job.config is not None:
                job.known = _hash(job.config) in there
                job.path, _ = there.get(_hash(job.config), (job.path, None))
                other = differences(configs.get(job.path, job.config), job.config)
                if other and job.paths.config.exists():
                    raise InputError(
                        f"{job.path}: holds a run of another config ({', '.join(other[:5])}); name "
                        "another directory with hydra.sweep.dir=..., or give the same config"
                    )
        for job in unique.values():
            if not job.paths.record.exists():
                self._announce(job)
        self.jobs += unique.values()
        return jobs

    def run(self, jobs: Sequence[Job], watch: Watch = lambda job: "") -> None:
        """Runs jobs to their ends, as many at once as there is room for; finished ones are not.

        Args:
            jobs: Planned.
            watch: Called when a running job has finished an epoch.
        """
        waiting = list(dict.fromkeys(jobs))
        running: list[Job] = []
        told = False
        self.interrupts.deferrable = True
        with JobBars(len(waiting)) as display:
            while waiting or running:
                if self.interrupts.received_signal and not told:
                    told = True
                    waiting.clear()
                    self.stop(running)
                if waiting and self.room(running) > 0:
                    for job in [job for job in waiting if self._has_finished(job)]:
                        waiting.remove(job)
                        job.stopped = self._watched(job, watch)
                        job.failure = _damage_of(job)
                        job.before = not job.failure
                        how = "finished before" if job.before else self._described(job)
                        display.count_ended(job.name, how, before=True)
                    ready = [job for job in waiting if not is_locked(job.path)]
                    starting = ready[: self.room(running)]
                    for job in starting:
                        waiting.remove(job)
                        if not job.paths.config.exists():
                            self._announce(job)
                    if starting:
                        self.start([job for job in starting if not job.failure])
                        for job in [job for job in starting if job.failure]:
                            starting.remove(job)
                            display.count_ended(job.name, self._described(job))
                    elif waiting and not running:
                        display.show_waiting(waiting[0].path)
                    running += starting
                for job in list(running):
                    ended = self.has_ended(job)
                    if not job.stopped:
                        job.stopped = self._watched(job, watch)
                        if job.stopped and not ended:
                            self.stop([job])
                    if ended:
                        running.remove(job)
                        self._settle(job)
                        display.count_ended(job.name, self._described(job))
                display.show({job.name: last_line(job.log) or "starting" for job in running})
                if running or waiting:
                    time.sleep(_PAUSE)
        self.interrupts.deferrable = False

    def status(self, job: Job) -> str:
        """As in run.json, unless more is known."""
        if job.failure:
            return "failed"
        return "pruned" if job.stopped else job.record.get("status", "planned")

    def value(self, job: Job) -> float | None:
        """What the sweep looks at: the monitored value of val, of a finished job."""
        if self.monitor is None or self.status(job) != "finished":
            return None
        with suppress(InputError):  # what is damaged is named where it is needed
            return read_val(job.path).get(self.monitor)
        return None

    @abstractmethod
    def room(self, running: Sequence[Job]) -> int:
        """How many jobs may be started besides those that are running."""

    @abstractmethod
    def start(self, jobs: Sequence[Job]) -> None:
        """Starts them."""

    @abstractmethod
    def has_ended(self, job: Job) -> bool:
        """Whether its process is gone."""

    @abstractmethod
    def stop(self, jobs: Sequence[Job]) -> None:
        """Asks them to save and to stop."""

    @abstractmethod
    def kill(self) -> None:
        """Makes an end of all that run."""

    @abstractmethod
    def exit_reason(self, job: Job) -> str:
        """How a process ended that could not say so itself."""

    def _there(self) -> dict[str, tuple[Path, Any]]:
        """Runs that the sweep's folder holds already, begun or not, with their configs."""
        there = {}
        for file in sorted(self.folder.glob(f"*/{RunPaths(self.folder).record.name}")):
            run = file.parent
            with suppress(InputError, TypeError, AttributeError):  # its job will say so
                if RunPaths(run).config.exists():
                    config = OmegaConf.to_container(parse_config(RunPaths(run).config))
                else:
                    config = read_json(file).get("config")
                if isinstance(config, dict) and config:
                    there[_hash(config)] = run, config
        return there

    def _has_finished(self, job: Job) -> bool:
        return job.known and self.status(job) == "finished"

    def _is_done(self, job: Job) -> bool:
        return self.status(job) in ("finished", "pruned")

    def _announce(self, job: Job) -> None:
        """Says in the job's directory that it is to come, and what it is."""
        record = {"varies": dict(job.varies), "overrides": list(job.overrides)}
        status = {"status": "planned", "error": None}
        with self._costs_itself(job):
            job.path.mkdir(exist_ok=True)
            write_json(job.paths.record, status | record | {"config": job.config})

    @contextmanager
    def _costs_itself(self, job: Job) -> Iterator[None]:
        """Makes what cannot be written, as on a full disk, a failure of this job alone."""
        try:
            yield
        except OSError as error:
            job.failure = f"{error.filename or job.path}: {error.strerror}"

    def _compose(self, job: Job) -> Exception | None:
        try:
            cfg = self.loader.load_sweep_config(self.config, list(job.overrides))
            with open_dict(cfg):
                del cfg["hydra"]
                cfg.run_dir = str(job.path)
            job.config = resolve_config(cfg)
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            return error
        return None

    def _watched(self, job: Job, watch: Watch) -> str:
        try:
            rows = read_csv(job.paths.metrics)
        except InputError:  # not there yet
            return ""
        if len(rows) <= len(job.rows):
            return ""
        job.rows = rows
        return watch(job)

    def _settle(self, job: Job) -> None:
        """Writes down what a process could not that was killed, or never came to its config."""
        record = job.record
        status = record.get("status")
        with self._costs_itself(job):
            if job.stopped and status == "interrupted":
                record |= {"status": "pruned", "error": job.stopped}
                write_json(job.paths.record, record)
            elif status in ("planned", "running") and not self.interrupts.received_signal:
                record |= {"status": "failed", "error": self.exit_reason(job)}
                write_json(job.paths.record, record)
            elif status == "finished":
                job.failure = _damage_of(job)
            elif not record:
                job.failure = self.exit_reason(job)

    def _described(self, job: Job) -> str:
        """Status, and the value or what went wrong, in a line."""
        status, value = self.status(job), self.value(job)
        if status == "finished":
            return status if value is None else f"{status}  {self.monitor} {value:.4f}"
        error = job.failure or job.stopped or job.record.get("error") or ""
        return f"{status}  {' '.join(str(error).split()).removeprefix('InputError: ')}".rstrip()

    def log_job_table(self) -> None:
        """The table of all jobs, on the terminal and as jobs.csv."""
        statuses = [self.status(job) for job in self.jobs]
        wide = max((len(job.name) for job in self.jobs), default=0)
        lines = [f"{job.name:{wide}}  {self._described(job)}" for job in self.jobs]
        room = shutil.get_terminal_size().columns if sys.stderr.isatty() else None
        if room and wide > room // 2:
            lines = [x for job in self.jobs for x in (job.name, f"  {self._described(job)}")]
        if room:
            lines = [line if len(line) <= room else f"{line[: room - 3]}..." for line in lines]
        before = sum(job.before for job in self.jobs)
        parts = [
            f"{n} {status}"
            + (f" ({before} of them before)" * (status == "finished" and before > 0))
            for status, n in sorted(Counter(statuses).items())
        ]
        folder = shlex.quote(str(self.folder))
        lines += [
            f"{len(self.jobs)} jobs: {', '.join(parts)}",
            f"sweep        {self.folder}",
            f"compare      python scripts/compare.py {folder}",
            f"look at it   tensorboard --logdir {folder}",
            *self.remarks,
        ]
        log.info("%s", "\n".join(lines))
        rows = [
            {
                "job": job.name,
                "status": status,
                self.monitor or "value": self.value(job),
                "error": job.failure or job.stopped or job.record.get("error"),
            }
            for job, status in zip(self.jobs, statuses, strict=True)
        ]
        write_csv(self.folder / "jobs.csv", rows)

    def _leave(self) -> None:
        """The last words of a process that is told twice to stop."""
        with suppress(Exception):
            self.kill()
            self.log_job_table()


class LocalLauncher(SweepLauncher):
    """Jobs on this machine.

    Args:
        n_jobs: How many at once.
        threads: Of each; None shares the cores out where there are several jobs at once, and
            leaves a single one as it would be alone.
    """

    __module__ = PLUGINS

    def __init__(self, n_jobs: int = 1, threads: int | None = None) -> None:
        check_number("hydra.launcher.n_jobs", n_jobs, int, 1)
        check_number("hydra.launcher.threads", threads, int, 1, null=True)
        self.n_jobs = n_jobs
        if threads is None and n_jobs > 1:
            threads = max(1, _cores() // n_jobs)
        self.environment = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}

    def room(self, running: Sequence[Job]) -> int:
        """Up to n_jobs."""
        return self.n_jobs - len(running)

    def start(self, jobs: Sequence[Job]) -> None:
        """Starts a process for each."""
        for job in jobs:
            with self._costs_itself(job):
                job.handle = start_process(job.command(), job.log, self.environment)

    def has_ended(self, job: Job) -> bool:
        """Whether its process has."""
        return job.handle.poll() is not None

    def stop(self, jobs: Sequence[Job]) -> None:
        """Closes the pipes that they watch."""
        for job in jobs:
            job.handle.stdin.close()

    def kill(self) -> None:
        """Kills the processes, and those that they have started."""
        for job in self.jobs:
            if job.handle is not None:
                with suppress(ProcessLookupError):
                    os.killpg(job.handle.pid, signal.SIGKILL)

    def exit_reason(self, job: Job) -> str:
        """By its exit code, or its last line."""
        code = job.handle.returncode
        if code == 0:
            return f"ended without a result; see {job.log}"
        if code > 0:
            return last_line(job.log).removeprefix("error: ") or f"ended with exit code {code}"
        hint = "; was the memory full?" if code == -signal.SIGKILL else f"; see {job.log}"
        return f"killed by {signal.Signals(-code).name}{hint}"


class JobSweeper(Sweeper):
    """What is swept over: `params` of the config, then the command line.

    Args:
        params: Values by key, as Hydra's command line takes them.
    """

    __module__ = PLUGINS

    def __init__(self, params: Mapping[str, str]) -> None:
        if not isinstance(params, Mapping):
            raise InputError(f"hydra.sweeper.params={params}: expected keys with values")
        self.params = params

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Takes what Hydra has composed."""
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        if not isinstance(launcher, SweepLauncher):
            raise InputError("hydra/launcher: expected local, submitit_slurm or submitit_local")
        self.launcher: SweepLauncher = launcher
        self.parser = OverridesParser.create(config_loader=hydra_context.config_loader)

    def overrides(self, arguments: list[str]) -> list[Override]:
        """All overrides; of two of one key the last."""
        given = [f"{key}={value}" for key, value in self.params.items()]
        overrides = self.parser.parse_overrides([*given, *arguments])
        if any(o.get_key_element() == "sweep" and o.is_sweep_override() for o in overrides):
            raise InputError("sweep: expected one named sweep, not a list; start them one by one")
        return list({override.get_key_element(): override for override in overrides}.values())


class GridSweeper(JobSweeper):
    """All combinations."""

    __module__ = PLUGINS

    def sweep(self, arguments: list[str]) -> Any:
        """Runs them."""
        choices: list[list[str]] = []
        for override in self.overrides(arguments):
            key = override.get_key_element()
            if not override.is_sweep_override():
                choices.append([str(override.input_line)])
            elif override.is_discrete_sweep():
                choices.append([f"{key}={value}" for value in override.sweep_string_iterator()])
            else:
                raise InputError(
                    f"{key}: a grid takes lists, choice(...) and range(...); sweep=tpe searches "
                    "an interval"
                )
        return self.launcher.launch(list(itertools.product(*choices)), 0)


def register() -> None:
    """Makes seglab's launchers and sweepers known to Hydra."""
    from seglab.sweeps.submitit_launcher import SubmititLauncher
    from seglab.sweeps.tpe import TPESweeper

    plugins = Plugins.instance()
    try:
        package = import_module("hydra_plugins")
    except ModuleNotFoundError:  # no other plugin is installed
        package = sys.modules["hydra_plugins"] = ModuleType("hydra_plugins")
    package.seglab = sys.modules[PLUGINS] = ModuleType(PLUGINS)  # type: ignore[attr-defined]
    for plugin in (LocalLauncher, SubmititLauncher, GridSweeper, TPESweeper):
        setattr(sys.modules[PLUGINS], plugin.__name__, plugin)
        plugins.register(plugin)


def start_process(
    command: Sequence[str], log_file: Path, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Starts a job: it stops when its stdin is closed, as by the end of this process.

    Args:
        command: Of scripts/train.py.
        log_file: Gets what it prints, after what lies there.
        environment: Besides that of this process.
    """
    with log_file.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, SWEEP_JOB_VARIABLE: "1", **environment},
            start_new_session=True,  # Ctrl-C is for the sweep, which passes it on
        )


def _hash(config: Any) -> str:
    """The same for configs that are, but for where their runs lie."""
    return hash_json(comparable(config))


def last_line(file: Path) -> str:
    """The last line of a log that is not empty."""
    try:
        with file.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - 4096))
            lines = stream.read().decode("utf-8", "replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _damage_of(job: Job) -> str:
    """What a finished run lacks; empty where it is whole, as far as a sweep looks."""
    try:
        then = OmegaConf.to_container(parse_config(job.paths.config))
        other = differences(then, job.config)
        if other:
            return f"{job.path}: was trained with another config ({', '.join(other[:5])})"
        read_val(job.path)
    except InputError as error:
        return str(error)
    needed = (job.paths.best_checkpoint, job.paths.test_cases)
    lost = [file for file in needed if not file.is_file()]
    return f"{lost[0]}: no such file; restore it" if lost else ""


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
