"""Errors that a user can cause, and interruptions."""

from __future__ import annotations

import signal

# In the environment of a sweep's job: its output is a log that nobody watches.
SWEEP_JOB_VARIABLE = "SEGLAB_JOB"


class InputError(ValueError):
    """Bad input: a file, a config key or an option.

    The message is one line that names the file or the key, says what was expected, and what to
    do next. Everything else that is raised is a bug of seglab's own and keeps its traceback.
    """


class Terminated(KeyboardInterrupt):
    """SIGTERM, as cluster schedulers send it before they kill: Ctrl-C of another sender."""


def signal_number(error: KeyboardInterrupt) -> int:
    """The signal behind an interruption."""
    return signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT
