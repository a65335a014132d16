"""Command lines to print and to start; `sys.argv` stays as the user typed it."""

import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

_SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
_WORDS_OF_SCRIPTS = {"check": ("prepare_ph2.py", "--check"), "prepare": ("prepare_ph2.py",)}


def quote_for_shell(*words: object) -> str:
    """Returns words as a command line of a POSIX shell, in double quotes where these are enough."""

    def quote(word: str) -> str:
        is_literal = {*'"$`!\\'}.isdisjoint(word) and shlex.quote(word) != word
        return f'"{word}"' if is_literal else shlex.quote(word)

    return " ".join(quote(str(word)) for word in words)


def is_script() -> bool:
    """Whether this process runs a file of scripts/, not `seglab` or a program of the user's."""
    return Path(sys.argv[0]).resolve().parent == _SCRIPTS


def format_command(name: str, *arguments: object) -> str:
    """Returns `seglab NAME ...`; in a process of scripts/ `python scripts/NAME.py ...`."""
    if not is_script():
        return quote_for_shell("seglab", name, *arguments)
    script, *options = _WORDS_OF_SCRIPTS.get(name, (f"{name}.py",))
    return quote_for_shell("python", f"scripts/{script}", *options, *arguments)


def current_command() -> list[str]:
    """Returns the command line of this process: `seglab NAME ...` or `python SCRIPT ...`."""
    return ["python", *sys.argv] if is_script() else ["seglab", *sys.argv[1:]]


def current_arguments() -> list[str]:
    """Returns what follows the name or the script on the command line."""
    return current_command()[2:]


def program_name() -> str:
    """Returns how this process is named in its `--help`."""
    return format_command(Path(current_command()[1]).stem)


def make_command(arguments: Iterable[str]) -> list[str]:
    """Returns a command that starts what this process runs, with other arguments."""
    if is_script():
        return [sys.executable, str(Path(sys.argv[0]).absolute()), *arguments]
    # -P: Python does not look for modules in the working directory first, as in `seglab` itself.
    flags = [] if Path(sys.argv[0]).name == "__main__.py" else ["-P"]
    return [sys.executable, *flags, "-m", "seglab", *sys.argv[1:2], *arguments]
