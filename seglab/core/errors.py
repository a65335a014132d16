"""Errors that a user can cause, interruptions, and text that is safe in messages."""

import math
import sys
from collections.abc import Collection
from itertools import islice
from typing import Any

# Set in the environment of a job that a sweep has started: its output goes to a log file.
SWEEP_JOB_VARIABLE = "SEGLAB_JOB"


class InputError(ValueError):
    """Bad input: a file, a config key or an option.

    The message is one line that names the file or the key, says what was expected, and what to
    do next. `seglab.cli.errors` prints it without a traceback.
    """


class Terminated(KeyboardInterrupt):
    """SIGTERM, which cluster schedulers send before they kill; handled like Ctrl-C."""


def check_number(
    key: str,
    value: Any,
    kind: type,
    least: float,
    most: float = math.inf,
    null: bool = False,
    example: float | None = None,
) -> None:
    """Refuses what is no number of a kind (int, or float for any) within limits, nor null."""
    if value is None and null:
        return
    is_number = isinstance(value, int if kind is int else int | float)
    if not is_number or isinstance(value, bool) or not least <= value <= most:
        what = "an integer" if kind is int else "a number"
        limit = f"of at least {least}" if most == math.inf else f"from {least} to {most}"
        message = f"{key}={value!r}: expected {what} {limit}{' or null' if null else ''}"
        message += "" if example is None else f", such as {key}={example}"
        raise InputError(message)


def printable(text: str, max_length: int = sys.maxsize) -> str:
    """Returns text of an untrusted file with '?' for control characters, cut to a length."""
    if not text.isprintable():
        text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= max_length else f"{text[:max_length]}..."


def name_some(names: Collection[object], most: int = 5) -> str:
    """Joins the first names of a list and counts the others: 'a, b, c, d, e and 7 more'."""
    text = ", ".join(map(str, islice(names, most)))
    return text if len(names) <= most else f"{text} and {len(names) - most} more"
