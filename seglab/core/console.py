"""Prints log messages on the terminal."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm


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
    log.setLevel(logging.DEBUG)  # for other handlers
    log.propagate = False
    log.addHandler(console)
    try:
        yield
    finally:
        log.removeHandler(console)
        log.setLevel(level)
        log.propagate = propagate
