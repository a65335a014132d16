"""Sweeps in this process whose jobs are fakes, and real sweeps as a user starts them."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from helpers.sweeps import FakeJobs
from helpers.tiny import ONE_THREAD, REPO, TINY, Ended

from seglab.core.files import read_json
from seglab.sweeps import launcher
from seglab.sweeps.local import LocalLauncher


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces the local launcher's jobs by fakes; returns the names of those that are started."""
    names: list[str] = []
    for name, value in vars(FakeJobs).items():
        if not name.startswith("__"):
            monkeypatch.setattr(LocalLauncher, name, value, raising=False)
    monkeypatch.setattr(LocalLauncher, "started", names, raising=False)
    monkeypatch.setattr(launcher, "POLL_SECONDS", 0)
    for name, value in ONE_THREAD.items():
        monkeypatch.setenv(name, value)
    return names


@pytest.fixture
def fake_sweep(
    script: Callable[..., Ended], started: list[str], tmp_path: Path
) -> Callable[..., Ended]:
    """Runs a sweep of fake jobs in tmp_path / "sweep": fake_sweep(*overrides)."""
    return lambda *given: script("train", "-m", *given, f"hydra.sweep.dir={tmp_path / 'sweep'}")


@pytest.fixture
def repeat_alone(script: Callable[..., Ended]) -> Callable[..., Path]:
    """Runs the command in a job's run.json once more: repeat_alone(run, other_folder)."""

    def repeat(run: Path, folder: Path) -> Path:
        _, file, *arguments = read_json(run / "run.json")["command"]
        others = [text for text in arguments if not text.startswith("hydra.run.dir=")]
        assert len(others) == len(arguments) - 1
        assert script(Path(file).stem, *others, f"hydra.run.dir={folder}").code == 0
        return folder

    return repeat


@pytest.fixture(scope="module")
def start_sweep(tiny_ph2: Path, cache_dir: Path) -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts a real sweep in a process: start_sweep(folder, *overrides, environment={})."""
    started: list[subprocess.Popen[str]] = []

    def start(
        folder: Path, *overrides: str, environment: Mapping[str, str] = ONE_THREAD
    ) -> subprocess.Popen:
        arguments = [
            *(sys.executable, str(REPO / "scripts" / "train.py"), "-m"),
            *(f"data.root={tiny_ph2}", f"data.cache_dir={cache_dir}", *TINY),
            *(f"hydra.sweep.dir={folder}", *overrides),
        ]
        process = subprocess.Popen(
            arguments,
            cwd=folder.parent,
            env={**os.environ, **environment},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
