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

from seglab.core.commands import quote_for_shell
from seglab.core.errors import SWEEP_JOB_VARIABLE, InputError, Terminated

P = ParamSpec("P")
T = TypeVar("T")
_MAKE_ROOM = "make room, then start the same command again: it goes on where it stopped"


def find_input_error(error: BaseException) -> str | None:
    """Return the line to show for an error, or None if it is a bug of seglab.

    Hydra wraps what a constructor raises, so the chain of causes is searched.
    """
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("seglab"):
        return f"{error}; install what seglab needs: pip install -e . in its checkout"

    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

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
    if type(error).__name__ == "MisconfigurationException":  # of Lightning, about its callbacks
        return str(error)
    if isinstance(error, YAMLError):  # its text names file and line
        tab = "; indent by blanks" if "'\\t'" in str(error) else ""
        return f"no YAML: {error}{tab}"
    if isinstance(error, UnicodeDecodeError):
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if "full_path" in frame.f_locals:  # of Hydra 1.3, which reads configs as UTF-8
                line = error.object[: error.start].count(b"\n") + 1
                return f"{frame.f_locals['full_path']}, line {line}: is no UTF-8; save it as UTF-8"
    frames = str(traceback.extract_tb(error.__traceback__))
    if isinstance(error, RecursionError) and "create_defaults_list" in frames:  # of Hydra 1.3
        return "a config file names itself in its defaults; give a file of your own another name"
    if "more than 1 value per channel" in str(error):  # of BatchNorm in torch 2.13
        return "data.batch_size: leaves one training case for a batch, too little; choose another"
    if str(error).startswith("Only one of --"):  # raised by Hydra about its own options
        return str(error)
    if str(error).startswith("Config group override must be"):  # Hydra 1.3, of group=null
        return f"{error}; a group is left out by ~, as in ~logger"
    # A library refuses a value with one of these; any other error of a constructor is a bug.
    refusals = (HydraException, OmegaConfBaseException, ValueError, TypeError, ImportError)
    if isinstance(error, HydraException | OmegaConfBaseException) and (
        isinstance(causes[-1], refusals) or type(causes[-1]).__name__ == "MisconfigurationException"
    ):
        explanation = _explain_override_error(error)
        if explanation is not None:
            return explanation
        lines = [line.strip() for cause in causes for line in str(cause).splitlines()]
        return "; ".join(dict.fromkeys(filter(None, lines))).replace(":; ", ": ")
    return None


def _explain_override_error(error: Exception) -> str | None:
    """Return what to write instead of an override that Hydra 1.3 refuses."""
    from hydra.errors import MissingConfigException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException

    from seglab.runs.overrides import quote_value
    from seglab.schema import describe_unknown_key

    text = str(error)
    if isinstance(error, MissingConfigException):
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        options = error.options or [f"the files of conf/{group}"]  # none of a list's items
        return f"{group}={name}: expected one of {', '.join(options)}"
    if isinstance(error, OverrideParseException):
        key, _, value = error.override.partition("=")
        if value.startswith(("[", "{")):  # no text, but a mistake in a list or dictionary
            return f"{error.override}: {text.splitlines()[0]}; expected [a,b] or {{a: 1,b: 2}}"
        quoted = quote_for_shell(f"{key}={quote_value(value)}")
        return f"{error.override}: text with such signs is quoted twice: {quoted}"
    unknown_key = re.match(r"Could not override '([^']+)'", text)
    if unknown_key and isinstance(error.__cause__, OmegaConfBaseException):
        # Hydra suggests '+key=value', which seglab allows for arguments of a class only.
        key, section = unknown_key[1], error.__cause__.parent_node
        if not section:
            return f"{key}: {key.rpartition('.')[0]} has no keys; add them with +{key}=..."
        line = describe_unknown_key(key, section)
        is_argument = "_target_" in section and "expected one of" in line
        return f"{line}; add an argument with +{key}=..." if is_argument else line
    ambiguous = re.match(r"Ambiguous value for argument '(.+?)'", text)
    if ambiguous:
        key, _, value = ambiguous[1].partition("=")
        other = f"a list is {quote_for_shell(f'{key}=[{value}]')}"
        if re.fullmatch(r"-?\d+,\d+", value):
            other = f"a decimal number has a point, {key}={value.replace(',', '.')}"
        return (
            f"{ambiguous[1]}: {other}; several values are a sweep, -m; one text is quoted twice: "
            f"{quote_for_shell(f'{key}={quote_value(value)}')}"
        )
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
