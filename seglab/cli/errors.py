"""Errors of a command line: one line on stderr and an exit code."""

import errno
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from functools import wraps
from typing import NoReturn, ParamSpec, TypeVar

from seglab.core.errors import SWEEP_JOB_VARIABLE, InputError, Terminated

P = ParamSpec("P")
T = TypeVar("T")
_MAKE_ROOM = "make room, then start the same command again: it goes on where it stopped"


def find_input_error(error: BaseException) -> str | None:
    """Return the line to show for an error, or None if it is a bug of seglab.

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
            is_full = cause.errno in (errno.ENOSPC, errno.EDQUOT)
            remedy = _MAKE_ROOM if is_full else "choose a place that can be read and written"
            return f"{cause.filename}: {cause.strerror}; {remedy}"
    if str(error).startswith("Only one of --"):  # raised by Hydra about its own options
        return str(error)
    if str(error).startswith("Config group override must be"):  # Hydra 1.3, of group=null
        return f"{error}; a group is left out by ~, as in ~logger"
    # A library refuses a value with one of these; any other error of a constructor is a bug.
    refusals = (HydraException, OmegaConfBaseException, ValueError, TypeError, ImportError)
    if isinstance(error, HydraException | OmegaConfBaseException) and (
        isinstance(causes[-1], refusals) or type(causes[-1]).__name__ == "MisconfigurationException"
    ):
        unknown_key = re.match(r"Could not override '([^']+)'", str(error))
        if unknown_key:
            # Hydra suggests '+key=value', which seglab allows for arguments of a class only.
            return (
                f"{unknown_key[1]}: unknown config key; 'python scripts/train.py --cfg job' lists "
                f"all keys; add an argument of a _target_ with +{unknown_key[1]}=..."
            )
        lines = [line.strip() for cause in causes for line in str(cause).splitlines()]
        return "; ".join(dict.fromkeys(filter(None, lines))).replace(":; ", ": ")
    return None


def one_line_errors(main: Callable[P, T]) -> Callable[P, T]:
    """Decorate a main function to end with one line on stderr instead of a traceback.

    The exit code is 1 on bad input, 130 on Ctrl-C and 143 on SIGTERM, as shells count them. In a
    job of a sweep, whose output is a log file, the traceback is printed too.
    """

    @wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return main(*args, **kwargs)
        except KeyboardInterrupt as error:
            number = signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT
            _exit(" ".join(["interrupted", *map(str, error.args)]), 128 + number)
        except BrokenPipeError:  # the reader of a pipe has closed it, such as `head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(128 + signal.SIGPIPE)
        except Exception as error:
            line = find_input_error(error)
            if line is None:
                raise
            if SWEEP_JOB_VARIABLE in os.environ:
                traceback.print_exc()
            _exit(f"error: {line}", 1)

    return wrapped


def _exit(line: str, code: int) -> NoReturn:
    print(" ".join(line.split()), file=sys.stderr)
    sys.exit(code)
