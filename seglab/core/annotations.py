"""Holds values of a config against the annotations of the arguments that they are given for."""

import inspect
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from seglab.core.errors import InputError


def check_types(
    where: str, given: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]
) -> None:
    """Refuses numbers, texts and null that do not fit the annotation of their argument.

    An argument's default fits, and every value where the annotation does not say enough.
    """
    for key, value in given.items():
        if key not in parameters or not isinstance(value, int | float | str | None):
            continue
        default, annotation = parameters[key].default, parameters[key].annotation
        if value != default and not _fits(annotation, value):
            message = f"{where}.{key}={value!r}: expected {inspect.formatannotation(annotation)}"
            if default not in (None, inspect.Parameter.empty):
                message += f", such as {where}.{key}={default}"
            raise InputError(message)


def _fits(annotation: Any, value: Any) -> bool:
    kind = get_origin(annotation) or annotation
    if kind is Literal:
        return value in get_args(annotation)
    if kind in (Union, UnionType):
        return any(_fits(member, value) for member in get_args(annotation))
    if kind not in (int, float, bool, str, NoneType):  # what a class takes is not known here
        return True
    return isinstance(value, int | float if kind is float else kind)
