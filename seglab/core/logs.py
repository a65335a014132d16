"""Log handlers: messages on the terminal, and in a file."""

import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from logging.handlers import BufferingHandler
from pathlib import Path

from tqdm import tqdm


class _Console(logging.Handler):
    """Log handler that writes to stderr without disturbing a progress bar."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a message."""
        tqdm.write(self.format(record), file=sys.stderr)


def log_once() -> None:
    """Sends messages to the terminal, equal ones once: runs of a sweep read the same data."""
    handler, seen = logging.StreamHandler(), set[str]()

    def is_new(record: logging.LogRecord) -> bool:
        message, before = record.getMessage(), len(seen)
        seen.add(message)
        return len(seen) > before

    handler.addFilter(is_new)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])


@contextmanager
def log_to_console(log: logging.Logger) -> Iterator[None]:
    """Sends the messages of a logger to the terminal while the body runs."""
    console, level, propagate = _Console(), log.level, log.propagate
    log.setLevel(logging.DEBUG)  # for other handlers
    log.propagate = False
    log.addHandler(console)
    try:
        yield
    finally:
        log.removeHandler(console)
        log.setLevel(level)
        log.propagate = propagate


@contextmanager
def collect_warnings(log: logging.Logger) -> Iterator[list[logging.LogRecord]]:
    """Lists the warnings that a logger gets while the body runs; other handlers get them too."""
    handler = BufferingHandler(sys.maxsize)
    handler.setLevel(logging.WARNING)
    log.addHandler(handler)
    try:
        yield handler.buffer
    finally:
        log.removeHandler(handler)


class _LogFile(logging.FileHandler):
    """Log file that ignores a full disk: the next checkpoint reports it."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        pass


@contextmanager
def log_to_file(
    log: logging.Logger, file: Path, earlier: Iterable[logging.LogRecord] = ()
) -> Iterator[None]:
    """Appends the messages of a logger to a file while the body runs, after `earlier` ones."""
    handler = _LogFile(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for record in earlier:
        handler.handle(record)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        with suppress(OSError):
            handler.close()
