"""Command line of train.py, before Hydra reads it."""

import re
from collections.abc import Sequence

from hydra._internal.utils import get_args_parser

from seglab.core.commands import format_command
from seglab.core.errors import InputError
from seglab.core.files import expand_user

_OVERRIDE = re.compile(r"[+~]*[A-Za-z_][\w./@-]*=|~[A-Za-z]")


def prepare_arguments(arguments: Sequence[str]) -> list[str]:
    """Return arguments as Hydra takes them: options first, the home for ~, callbacks=none for null.

    Raises:
        InputError: One is neither an option nor an override `key=value`, or names several
            options of a group that has one.
    """
    # argparse takes no overrides on both sides of an option.
    arguments = sorted(arguments, key=lambda argument: bool(_OVERRIDE.match(argument)))
    given, unknown = get_args_parser().parse_known_args(arguments)
    for word in (*unknown, *given.overrides):
        if not _OVERRIDE.match(word):
            raise InputError(
                f"{word}: expected an override, written KEY=VALUE without dashes and blanks, such "
                f"as data=ph2 or data.size=128, or an option of {format_command('train', '--help')}"
            )
        # Hydra would merge them, and the last one would win.
        if re.match(r"(data|model|trainer)=\[.*,", word):
            raise InputError(
                f"{word}: expected one name; a sweep is written without brackets, -m data=a,b, and "
                "a run of several data sets is data=dermoscopy, in which data.sets lists them"
            )
    # Hydra 1.3 takes no null for a group.
    null = re.compile(r"^((?:callbacks|logger)=.*)\bnull\b")
    arguments = [null.sub(r"\1none", word) for word in arguments]
    home = str(expand_user("~"))
    # Where a value begins, also the next one of a sweep.
    return [re.sub(r"(?<=[=,'\"])~(?=/|$)", lambda _: home, word) for word in arguments]
