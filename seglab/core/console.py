"""Messages on the terminal, beside progress bars."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

log = logging.getLogger("seglab")

_SHOWN = 8  # jobs with a line of their own below the bar


class Console(logging.Handler):
    """Messages to stderr, past a progress bar that is being drawn."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one."""
        tqdm.write(self.format(record), file=sys.stderr)


@contextmanager
def log_to_console(log: logging.Logger) -> Iterator[None]:
    """Its messages to the terminal, while the body runs."""
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
    """A bar over the jobs, a line for each that is running, and one that stays when it ends."""

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
        self._waits = False

    def __enter__(self) -> JobBars:
        return self

    def __exit__(self, *args: object) -> None:
        for line in self._lines:
            line.close()
        self._bar.close()

    def show(self, running: Mapping[str, str]) -> None:
        """Draws what those that are running say, by their names."""
        if not self._on:
            return
        texts = [f"{name}: {line}" for name, line in list(running.items())[:_SHOWN]]
        while len(self._lines) < len(texts):
            position = len(self._lines) + 1
            self._lines.append(
                tqdm(bar_format="{desc}", position=position, leave=False, dynamic_ncols=True)
            )
        room = shutil.get_terminal_size().columns - 1
        for i, line in enumerate(self._lines):
            line.set_description_str(texts[i][:room] if i < len(texts) else "")
        self._bar.refresh()

    def count_ended(self, name: str, how: str, before: bool = False) -> None:
        """Counts one, and says how it ended."""
        if before and self._on:
            self._bar.initial += 1  # took no time, so it says nothing of what is left
        self._bar.update()
        log.info("%s: %s", name, how)

    def show_waiting(self, run: Path) -> None:
        """Says once that there is nothing else to do."""
        if not self._waits:
            self._waits = True
            log.info("%s: another process is at work on this run; waiting for it", run)
