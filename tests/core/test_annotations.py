"""Values of a config against annotations of arguments."""

import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import pytest

from seglab.core.annotations import check_types
from seglab.core.errors import InputError


def call(
    whole: int = 3,
    number: float = 0.5,
    flag: bool = False,
    text: str = "a",
    maybe: int | None = 1,
    choice: bool | Literal["warn"] = False,
    path: Path | None = None,
    names: Iterable[str] = (),
    function: Callable[[], None] | str = "f",
    wrong_default: int = None,  # type: ignore[assignment]  # noqa: RUF013
    anything: Any = None,
    unknown=None,
    named: "int" = 1,
) -> None: ...


@pytest.mark.parametrize(
    ("key", "fitting", "others"),
    [
        ("whole", [2, True], ["2", 1.0, None]),
        ("number", [2, 0.1], ["0,1", None]),
        ("flag", [True], ["yes", 2.5]),
        ("text", ["b"], [5, None]),
        ("maybe", [None, 2], ["x", 0.5]),
        ("choice", [True, "warn"], ["maybe"]),
        ("path", ["/a", None], []),
        ("names", ["a", None, 5], []),
        ("function", ["g", 5], []),
        ("wrong_default", [None, 3], ["x"]),
        *((key, ["a", 1, None], []) for key in ("anything", "unknown", "named", "not_there")),
    ],
)
def test_values_of_another_type_are_refused(key: str, fitting: list, others: list) -> None:
    parameters = inspect.signature(call).parameters
    for value in (*fitting, [1], {"_target_": "f"}):
        check_types("model", {key: value}, parameters)
    for value in others:
        with pytest.raises(InputError, match=f"model.{key}={value!r}: expected "):
            check_types("model", {key: value}, parameters)
