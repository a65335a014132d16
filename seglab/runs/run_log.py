"""Writes the messages of a run to its train.log."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

log = logging.getLogger("seglab")


class _LogFile(logging.FileHandler):
    """Log file that ignores a full disk: the next checkpoint reports it."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        pass


@contextmanager
def log_to_file(file: Path) -> Iterator[None]:
    """Appends the messages of seglab's logger to a file while the body runs."""
    handler = _LogFile(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        with suppress(OSError):
            handler.close()
