"""Messages on the terminal, beside progress bars."""

from __future__ import annotations

import logging
import sys

from tqdm import tqdm


class Console(logging.Handler):
    """Messages to stderr, past a progress bar that is being drawn."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one."""
        tqdm.write(self.format(record), file=sys.stderr)
