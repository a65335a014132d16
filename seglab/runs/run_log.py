"""Logging of a run: messages on the terminal, and in train.log once the run has begun."""

from __future__ import annotations

import logging
import logging.handlers
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from seglab.core.console import Console

log = logging.getLogger("seglab")


class RunLog:
    """Handlers of seglab's logger while a run lasts.

    Messages are kept in memory until :meth:`write_to` names the file: a run that is refused
    before its first step leaves no log.
    """

    def __init__(self) -> None:
        self._memory = logging.handlers.MemoryHandler(10**6, flushLevel=logging.CRITICAL + 1)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Attaches the handlers while the body runs."""
        console = Console()
        level, propagate = log.level, log.propagate
        log.setLevel(logging.DEBUG)
        log.propagate = False
        log.addHandler(console)
        log.addHandler(self._memory)
        try:
            yield
        finally:
            for handler in (console, self._memory):
                log.removeHandler(handler)
                handler.flush()
            if self._memory.target is not None:
                with suppress(OSError):
                    self._memory.target.close()
            log.setLevel(level)
            log.propagate = propagate

    def write_to(self, file: Path) -> None:
        """Appends the messages so far to a file, and from now on each at once."""
        handler = _LogFile(file, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._memory.setTarget(handler)
        self._memory.flush()
        self._memory.flushLevel = logging.DEBUG


class _LogFile(logging.FileHandler):
    """Log file that ignores a full disk: the next checkpoint reports it."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        pass
