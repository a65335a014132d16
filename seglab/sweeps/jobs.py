"""Jobs of a sweep: a command, the run directory that it writes, and its process."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seglab.core.commands import make_command
from seglab.core.errors import SWEEP_JOB_VARIABLE, InputError
from seglab.core.files import read_json, write_json
from seglab.runs.overrides import quote_value
from seglab.runs.paths import FORMAT, RunPaths
from seglab.runs.tables import read_val_scores


@dataclass(eq=False)
class Job:
    """One run of a sweep. What it has done is read from its run directory.

    Attributes:
        name: Name in the table and of the folder, made from the overrides that vary.
        path: Run directory.
        overrides: All overrides of the run.
        varies: Overrides that are not the same in all jobs of the sweep, by key.
        flags: Options of Hydra's command line that the job needs, such as --config-dir.
        config: Resolved config; None if it cannot be composed.
        failure: Error of a job that could not be started or recorded.
        prune_reason: Why a search stopped the job; empty if it did not.
        epochs_seen: Number of rows of metrics.csv that a search has looked at.
        handle: Process or cluster job; None for a job that this sweep has not started.
    """

    name: str
    path: Path
    overrides: Sequence[str]
    varies: Mapping[str, str]
    flags: Sequence[str] = ()
    config: dict[str, Any] | None = None
    failure: str = ""
    prune_reason: str = ""
    epochs_seen: int = 0
    handle: Any = None

    @property
    def paths(self) -> RunPaths:
        """Return the paths of the files in the run directory."""
        return RunPaths(self.path)

    @property
    def record(self) -> dict[str, Any]:
        """Return run.json as it is now; empty if it is missing or damaged."""
        try:
            return dict(read_json(self.paths.record))
        except (InputError, ValueError, TypeError):
            return {}

    @property
    def status(self) -> str:
        """Return the status in run.json, or 'failed' for a job that could not be started."""
        return "failed" if self.failure else self.record.get("status", "planned")

    @property
    def error(self) -> str:
        """Return why the job failed or was pruned, in one line; empty if it did not."""
        return " ".join((self.failure or self.record.get("error") or "").split())

    @property
    def arguments(self) -> list[str]:
        """Return the options and overrides of :meth:`command`."""
        place = ["hydra.mode=RUN", f"hydra.run.dir={quote_value(self.path)}"]
        return [*self.flags, *self.overrides, *place]

    def command(self) -> list[str]:
        """Return the command that runs this job alone."""
        return make_command(self.arguments)

    def value(self, monitor: str | None) -> float | None:
        """Return the monitored value of val of a finished job."""
        if monitor is not None and self.status == "finished":
            with suppress(InputError):  # compare.py names files that are damaged
                return read_val_scores(self.path).get(monitor)
        return None

    def describe(self, monitor: str | None) -> str:
        """Return the status, and the value or what went wrong, in one line."""
        value = self.value(monitor)
        detail = self.error if value is None else f"{monitor} {value:.4f}"
        return f"{self.status}  {detail.removeprefix('InputError: ')}".rstrip()

    def mark_planned(self) -> None:
        """Write into run.json that the job is to be run; a run that has begun keeps its record."""
        values: dict[str, Any] = {"status": "planned", "error": None}
        if not self.paths.config.exists():
            values |= {"varies": dict(self.varies), "overrides": list(self.overrides)}
            values["config"] = self.config
        self.update_record(**values)

    def update_record(self, **values: Any) -> None:
        """Write values into run.json; if that is impossible, as on a full disk, the job fails."""
        try:
            self.path.mkdir(exist_ok=True)
            record = read_json(self.paths.record) if self.paths.record.exists() else {}
            write_json(self.paths.record, {"format": FORMAT} | record | values)
        except InputError as error:
            self.failure = str(error)
        except OSError as error:
            self.failure = f"{error.filename or self.paths.record}: {error.strerror}"


def start_process(
    command: Sequence[str],
    log_file: Path,
    environment: Mapping[str, str],
    stdin: Any = subprocess.PIPE,
) -> subprocess.Popen[bytes]:
    """Start a job's process, which stops when its stdin closes, as by the end of this process."""
    with log_file.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=stdin,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, SWEEP_JOB_VARIABLE: "1", **environment},
            start_new_session=True,  # Ctrl-C reaches the sweep alone, which stops its jobs
        )
