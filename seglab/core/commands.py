"""Command lines of this process and of others, to print and to start again.

A process is started by a file of scripts/ or by the command `seglab`; `sys.argv` stays as typed.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

from seglab.core.errors import quote_for_shell

_SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
_WORDS_OF_SCRIPTS = {"check": ("prepare_ph2.py", "--check"), "prepare": ("prepare_ph2.py",)}


def is_script() -> bool:
    """Whether this process runs a file of scripts/, not `seglab` or a program of the user's."""
    return Path(sys.argv[0]).resolve().parent == _SCRIPTS


def format_command(name: str, *arguments: object) -> str:
    """Returns `seglab NAME ...`; in a process of scripts/ `python scripts/NAME.py ...`."""
    if not is_script():
        return quote_for_shell("seglab", name, *arguments)
    script, *options = _WORDS_OF_SCRIPTS.get(name, (f"{name}.py",))
    return quote_for_shell("python", f"scripts/{script}", *options, *arguments)


def format_own_command(*arguments: object) -> str:
    """Returns the command line of this process without arguments, followed by others."""
    words = ("python", sys.argv[0]) if is_script() else ("seglab", *sys.argv[1:2])
    return quote_for_shell(*words, *arguments)


def program_name() -> str | None:
    """Returns what argparse prints before the options: `seglab NAME`, or None for the script."""
    return None if is_script() else " ".join(["seglab", *sys.argv[1:2]])


def own_arguments() -> list[str]:
    """Returns what follows the script's name, or `seglab NAME`, on the command line."""
    return sys.argv[1 if is_script() else 2 :]


def make_command(arguments: Iterable[str]) -> list[str]:
    """Returns a command that starts what this process runs, with other arguments."""
    if is_script():
        return [sys.executable, str(Path(sys.argv[0]).absolute()), *arguments]
    # Python looks for modules in the working directory first, as `seglab` does not, unless -P.
    flags = [] if Path(sys.argv[0]).name == "__main__.py" else ["-P"]
    return [sys.executable, *flags, "-m", "seglab", sys.argv[1], *arguments]
