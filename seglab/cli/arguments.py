"""Command line of train.py, before Hydra reads it: quotes paths, names what is no override."""

import re
from collections.abc import Sequence
from pathlib import Path

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from seglab.core.errors import InputError, quote_for_shell
from seglab.core.files import expand_user
from seglab.runs.overrides import quote_value
from seglab.schema import PATHS

CONF = Path(__file__).parents[2] / "conf"
PATH_KEYS = ("hydra.run.dir", "hydra.sweep.dir", *PATHS)
GROUPS_LEFT_OUT = ("callbacks", "experiment", "logger")
_OVERRIDE = re.compile(r"[+~]*[A-Za-z_][\w./@-]*=|~[A-Za-z]")


def prepare_arguments(arguments: Sequence[str]) -> list[str]:
    """Return arguments as Hydra takes them: options before overrides, paths quoted.

    Raises:
        InputError: One is neither an option nor an override `key=value`, or a value is missing.
    """
    # argparse takes no overrides on both sides of an option.
    arguments = sorted(arguments, key=lambda argument: bool(_OVERRIDE.match(argument)))
    given, unknown = get_args_parser().parse_known_args(arguments)
    for word in (*unknown, *given.overrides):
        if not _OVERRIDE.match(word):
            raise InputError(
                f"{word}: expected an override, written KEY=VALUE without dashes and blanks, such "
                f"as {_suggest_override(arguments, word)}, or an option of train.py --help"
            )
    return [_prepare_override(a) if _OVERRIDE.match(a) else a for a in arguments]


def _prepare_override(argument: str) -> str:
    """Return an override with its path expanded, and quoted where Hydra's grammar needs it."""
    key, _, text = argument.partition("=")
    if text == "null" and (CONF / key).is_dir():
        names = ", ".join(sorted(file.stem for file in (CONF / key).glob("*.yaml")))
        remedy = f"leave it out with ~{key}, or name" if key in GROUPS_LEFT_OUT else "name"
        raise InputError(f"{argument}: {remedy} one of {names}")
    is_path = key.lstrip("+") in PATH_KEYS
    if not (is_path or text.lstrip("'\"").startswith(("/", "./", "../", "~"))):
        return argument
    if not text:
        raise InputError(f"{argument}: expected a path, such as {key}=folder/name")
    home = str(expand_user("~")).rstrip("/")
    text = re.sub(r"(?<![^,'\"])~(?=/|$)", lambda _: home, text)  # one path, or several of a sweep
    try:
        value = OverridesParser.create().parse_override(f"{key}={text}").value()
        is_text = not isinstance(value, int | float | list | dict)
    except HydraException:
        is_text = False
    return f"{key}={text if is_text else quote_value(text)}"


def _suggest_override(arguments: Sequence[str], word: str) -> str:
    """Return an override that may be meant by `--data x`, `data = x` or `unet`."""
    following = [*arguments[arguments.index(word) + 1 :], ""]
    value = following[following[0] == "="].lstrip("=")
    example = word.lstrip("-")
    if "=" not in example and value and not _OVERRIDE.match(value):
        example = f"{example}={value}"
    elif example.isidentifier():  # the name of a file in conf/
        example = next((f"{f.parent.name}={word}" for f in CONF.glob(f"*/{word}.yaml")), "")
    return quote_for_shell(example if _OVERRIDE.match(example) else "data.size=128")
