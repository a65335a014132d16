"""Jobs of a sweep that write run directories without training, and what sweeps leave."""

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from seglab.core.files import read_csv, read_json


class FakeJobs:
    """Methods of a `SweepLauncher` whose jobs are no processes: each poll writes one epoch's files.

    Attributes:
        curve: Returns the monitored value of every epoch for a job's config; NaN fails the job.
        is_delayed: Whether a job makes no progress at this poll, so that jobs differ in speed.
        is_dead: Whether the machine is down, so that nothing is written any more.
        started: Names of the started jobs, in order.
    """

    curve: Callable[[Any], list[float]] = staticmethod(lambda config: [0.25, 0.5])
    is_delayed = staticmethod(lambda: False)
    is_dead = False
    n_jobs = 2
    started: list[str]

    def start(self, jobs: Sequence[Any]) -> None:
        for job in jobs:
            self.started.append(job.name)
            job.handle = self.run_job(job)

    def has_ended(self, job: Any) -> bool:
        return not self.is_delayed() and next(job.handle, "ended") == "ended"

    def stop(self, jobs: Sequence[Any]) -> None:
        for job in jobs:
            job.handle.close()

    def exit_reason(self, job: Any) -> str:
        return "gone"

    def run_job(self, job: Any) -> Iterator[None]:
        def write(status: str, **more: Any) -> None:
            if not self.is_dead:
                record = {**job.record, "status": status, **more}
                (job.path / "run.json").write_text(json.dumps(record))

        (job.path / "config.yaml").write_text(yaml.safe_dump(job.config))
        write("running", error=None)
        table, curve = job.path / "metrics.csv", self.curve(job.config)
        text = table.read_text() if table.exists() else f"epoch,{self.monitor}\n"
        try:
            yield
            for epoch in range(text.count("\n"), len(curve) + 1):
                if math.isnan(curve[epoch - 1]):
                    return write("failed", error=f"InputError: loss is nan in epoch {epoch}")
                text += f"{epoch},{curve[epoch - 1]!r}\n"
                if not self.is_dead:
                    table.write_text(text)
                yield
        except GeneratorExit:
            return write("interrupted")
        best = max if self.config.monitor_mode == "max" else min
        summary = {"best_epoch": curve.index(best(curve)) + 1, "val": {}, "test": {}}
        (job.path / "summary.json").write_text(json.dumps(summary))
        write("finished")


def states_of(folder: Path) -> dict[str, str]:
    """Returns the status of each job in a sweep's table."""
    return {row["job"]: row["status"] for row in read_csv(folder / "jobs.csv")}


def result_of(run: Path) -> dict[str, Any]:
    """Returns what an interruption, or other jobs at the same time, must not change."""
    from seglab.runs.checkpoints import hash_weights

    assert read_json(run / "run.json")["status"] == "finished"
    files = ("metrics.csv", "test_cases.csv", "splits.json")
    weights = {"weights": hash_weights(run / "checkpoints" / "best.ckpt")}
    return weights | {name: (run / name).read_bytes() for name in files}


def fake_slurm(folder: Path, monkeypatch: pytest.MonkeyPatch, **commands: str) -> None:
    """Puts shell scripts on the path in place of SLURM's commands."""
    bin = folder / "bin"
    bin.mkdir(exist_ok=True)
    for name, body in commands.items():
        (bin / name).write_text(f"#!/bin/sh\n{body}\n")
        (bin / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(bin), prepend=os.pathsep)
