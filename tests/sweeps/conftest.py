"""Sweeps in this process whose jobs are fakes, and real sweeps as a user starts them."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.sweeps import FakeJobs
from helpers.tiny import ONE_THREAD, REPO, TINY, Ended

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


@pytest.fixture(scope="module")
def start_sweep(tiny_ph2: Path, cache_dir: Path) -> Callable[..., subprocess.Popen]:
    """Starts a real sweep of two jobs at once: start_sweep(folder, *overrides)."""

    def start(folder: Path, *overrides: str) -> subprocess.Popen:
        arguments = [
            *(sys.executable, str(REPO / "scripts" / "train.py"), "-m"),
            *(f"data.root={tiny_ph2}", f"data.cache_dir={cache_dir}", *TINY),
            *("hydra.launcher.n_jobs=2", f"hydra.sweep.dir={folder}"),
            *overrides,
        ]
        environment = os.environ | ONE_THREAD
        return subprocess.Popen(
            arguments, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
        )

    return start
