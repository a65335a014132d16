"""Checks single values of configs."""

import math
from typing import Any

from seglab.core.errors import InputError


def check_number(
    key: str,
    value: Any,
    kind: type,
    least: float,
    most: float = math.inf,
    null: bool = False,
) -> None:
    """Refuses what is no number of a kind (int, or float for any) within limits, nor null."""
    if value is None and null:
        return
    is_number = isinstance(value, int if kind is int else int | float)
    if not is_number or isinstance(value, bool) or not least <= value <= most:
        what = "an integer" if kind is int else "a number"
        limit = f"of at least {least}" if most == math.inf else f"from {least} to {most}"
        raise InputError(f"{key}={value}: expected {what} {limit}{' or null' if null else ''}")
