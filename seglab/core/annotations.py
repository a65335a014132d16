"""Holds the values of a config against the annotations of the arguments that they are given for."""

import inspect
import os
from collections.abc import Mapping
from enum import Enum
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from seglab.core.errors import InputError

_WORDS = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
_WORDS |= {NoneType: "null"}


def check_types(
    where: str, given: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]
) -> None:
    """Refuses numbers, texts and null that do not fit the annotations of arguments.

    An annotation that says less, such as a string, and the argument's default fit always.
    """
    for key in given.keys() & parameters.keys():
        value, parameter = given[key], parameters[key]
        if not isinstance(value, int | float | str | None) or value == parameter.default:
            continue
        annotation = parameter.annotation
        is_union = get_origin(annotation) in (Union, UnionType)
        members = get_args(annotation) if is_union else (annotation,)
        if any(_fits(member, value) for member in members):
            continue
        expected = list[str]()
        for member in members:
            choices = get_args(member) if get_origin(member) is Literal else ()
            name = _WORDS.get(member, f"keys with the _target_ of a {_name(member)}")
            expected += map(str, choices or (name,))
        default = parameter.default
        example = "" if default in (None, parameter.empty) else f", such as {where}.{key}={default}"
        raise InputError(f"{where}.{key}={value!r}: expected {' or '.join(expected)}{example}")


def _name(member: Any) -> str:
    return getattr(member, "__name__", str(member))


def _fits(member: Any, value: Any) -> bool:
    if get_origin(member) is Literal:
        return value in get_args(member)
    kind = get_origin(member) or member
    if kind in (Any, inspect.Parameter.empty) or not inspect.isclass(kind):  # as names of types
        return True
    if (value is None and kind not in _WORDS) or issubclass(kind, os.PathLike | Enum):
        return True
    return isinstance(value, int | float if kind is float else kind)
