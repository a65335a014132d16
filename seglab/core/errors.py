"""The one error that a user can cause, and how a command line shows it."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from functools import wraps
from typing import NoReturn, ParamSpec, TypeVar

# In the environment of a sweep's job: its output is a log that nobody watches.
SWEEP_JOB_VARIABLE = "SEGLAB_JOB"

P = ParamSpec("P")
T = TypeVar("T")


class InputError(ValueError):
    """Bad input: a file, a config key or an option.

    The message is one line that names the file or the key, says what was expected, and what to
    do next. Everything else that is raised is a bug of seglab's own and keeps its traceback.
    """


class Terminated(KeyboardInterrupt):
    """SIGTERM, as cluster schedulers send it before they kill: Ctrl-C of another sender."""


def find_input_error(error: BaseException) -> str | None:
    """Returns the line to show for `error`, or None where `error` is no user's fault.

    Hydra wraps what a constructor raises, so the chain of causes is searched.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    for cause in causes:
        if isinstance(cause, InputError):
            return str(cause)
    for cause in causes:
        if isinstance(cause, OSError) and cause.filename is not None:
            return f"{cause.filename}: {cause.strerror}; {_remedy(cause)}"
    if str(error).startswith("Only one of --"):  # Hydra's, of its own options
        return str(error)
    # What a library refuses a value with; anything else that a constructor raises is a bug.
    refusals = (HydraException, OmegaConfBaseException, ValueError, TypeError, ImportError)
    if isinstance(error, HydraException | OmegaConfBaseException) and (
        isinstance(causes[-1], refusals) or type(causes[-1]).__name__ == "MisconfigurationException"
    ):
        misspelt = re.match(r"Could not override '([^']+)'", str(error))
        if misspelt:
            # Hydra suggests '+key=value', which seglab refuses but for arguments of a class.
            return (
                f"{misspelt[1]}: unknown config key; 'python scripts/train.py --cfg job' shows "
                f"all; an argument of a _target_ that is not there is added by +{misspelt[1]}=..."
            )
        lines = [line.strip() for cause in causes for line in str(cause).splitlines()]
        return "; ".join(dict.fromkeys(filter(None, lines)))
    return None


def one_line_errors(main: Callable[P, T]) -> Callable[P, T]:
    """Makes a script's `main` end with one line: exit code 1 on bad input, 130 on Ctrl-C.

    After SIGTERM it is 143, as a shell counts it. In a job of a sweep the traceback comes before.
    """

    @wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return main(*args, **kwargs)
        except KeyboardInterrupt as error:
            _end(" ".join(["interrupted", *map(str, error.args)]), 128 + signal_number(error))
        except BrokenPipeError:  # whoever reads has seen enough: | head
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(128 + signal.SIGPIPE)
        except Exception as error:
            line = find_input_error(error)
            if line is None:
                raise
            if SWEEP_JOB_VARIABLE in os.environ:
                traceback.print_exc()
            _end(f"error: {line}", 1)

    return wrapped


def signal_number(error: KeyboardInterrupt) -> int:
    """The signal behind an interruption."""
    return signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT


def _remedy(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "make room, then start the same command again: it goes on where it stopped"
    return "choose a place that can be read and written"


def _end(line: str, code: int) -> NoReturn:
    print(" ".join(line.split()), file=sys.stderr)
    sys.exit(code)
