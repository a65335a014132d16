"""Prints log messages and progress bars on the terminal."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

log = logging.getLogger("seglab")

_MAX_LINES = 8  # running jobs that have a line below the bar


class Console(logging.Handler):
    """Log handler that writes to stderr without disturbing a progress bar."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a message."""
        tqdm.write(self.format(record), file=sys.stderr)


@contextmanager
def log_to_console(log: logging.Logger) -> Iterator[None]:
    """Sends the messages of a logger to the terminal while the body runs."""
    console, level, propagate = Console(), log.level, log.propagate
    log.setLevel(logging.INFO)
    log.propagate = False
    log.addHandler(console)
    try:
        yield
    finally:
        log.removeHandler(console)
        log.setLevel(level)
        log.propagate = propagate


class JobBars:
    """Progress bar over the jobs of a sweep, with a line for each job that is running.

    Args:
        jobs: Number of jobs.
    """

    def __init__(self, jobs: int) -> None:
        self._on = sys.stderr.isatty()
        self._lines: list[tqdm] = []
        self._bar = tqdm(
            total=jobs,
            unit="job",
            dynamic_ncols=True,
            disable=not self._on,
            bar_format="{n_fmt}/{total_fmt} jobs |{bar}| {elapsed}<{remaining}",
        )
        self._waiting_logged = False

    def __enter__(self) -> JobBars:
        return self

    def __exit__(self, *args: object) -> None:
        for line in self._lines:
            line.close()
        self._bar.close()

    def show(self, running: Mapping[str, str]) -> None:
        """Draws the last line of output of each running job, by its name."""
        if not self._on:
            return
        texts = [f"{name}: {line}" for name, line in list(running.items())[:_MAX_LINES]]
        while len(self._lines) < len(texts):
            position = len(self._lines) + 1
            self._lines.append(
                tqdm(bar_format="{desc}", position=position, leave=False, dynamic_ncols=True)
            )
        width = shutil.get_terminal_size().columns - 1
        for i, line in enumerate(self._lines):
            line.set_description_str(texts[i][:width] if i < len(texts) else "")
        self._bar.refresh()

    def count_ended(self, name: str, outcome: str, was_finished: bool = False) -> None:
        """Counts a job as ended, and logs how; `was_finished` before the sweep started."""
        if was_finished and self._on:
            self._bar.initial += 1  # took no time, so the time left is not estimated from it
        self._bar.update()
        log.info("%s: %s", name, outcome)

    def show_waiting(self, run: Path) -> None:
        """Logs once that another process trains the only run that is left."""
        if not self._waiting_logged:
            self._waiting_logged = True
            log.info("%s: another process is at work on this run; waiting for it", run)
