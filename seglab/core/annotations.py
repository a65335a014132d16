"""Holds values of a config against the annotations of the arguments that they are given for."""

import inspect
import os
from collections.abc import Mapping
from enum import Enum
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from seglab.core.errors import InputError


def check_types(
    where: str, given: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]
) -> None:
    """Refuses numbers, texts and null that do not fit the annotation of their argument.

    An argument's default fits, and every value where the annotation does not say enough.
    """
    for key in given.keys() & parameters.keys():
        value, default, annotation = given[key], parameters[key].default, parameters[key].annotation
        is_scalar = isinstance(value, int | float | str | None)
        if is_scalar and value != default and not _fits(annotation, value):
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
    if kind in (Any, inspect.Parameter.empty) or not inspect.isclass(kind):  # as names of types
        return True
    if value is None:
        return kind not in (int, float, bool, str)
    return issubclass(kind, os.PathLike | Enum) or isinstance(
        value, int | float if kind is float else kind
    )
