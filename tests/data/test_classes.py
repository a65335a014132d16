"""Names and colours of classes."""

import re
from typing import Any

import numpy as np
import pytest

from seglab.core.errors import InputError
from seglab.data.classes import MAX_CLASSES, make_classes


@pytest.mark.parametrize(
    ("names", "colours"),
    [
        ([], None),
        ("skin", None),
        ([1, 2], None),
        ([f"a{i}" for i in range(MAX_CLASSES + 1)], None),
        (["a", "A"], None),
        (["a", "../b"], None),
        (["a", "Test"], None),
        (["a", "b"], ["#000000"]),
        (["a", "b"], ["#00FF00", "#00ff00"]),
        (["a", "b"], ["#000000", "red"]),
        (["a"], ["#000000"]),
    ],
)
def test_invalid_names_and_colours_are_refused(names: Any, colours: Any) -> None:
    key, value = ("classes", names) if colours is None else ("colours", colours)
    with pytest.raises(InputError, match=re.escape(f"data.{key}={value}: expected ")):
        make_classes(names, colours)


@pytest.mark.parametrize("values", [[], "all", [-1], [2.0], ["2"], 2, [True]])
def test_invalid_lesion_values_are_refused(values: Any) -> None:
    with pytest.raises(InputError, match=re.escape(f"data.lesion_values={values}: expected null")):
        make_classes(["lesion"], None, values)


def test_lesion_values_are_those_of_one_class() -> None:
    assert make_classes(["lesion"], None, [2, 3]).lesion_values == (2, 3)
    assert make_classes(["lesion"], None, "nonzero").lesion_values == "nonzero"
    with pytest.raises(InputError, match=r"data\.lesion_values=nonzero: expected null"):
        make_classes(["a", "b"], None, "nonzero")


def test_palettes_have_a_colour_for_each_class() -> None:
    many = make_classes([f"class{i}" for i in range(MAX_CLASSES)])
    assert many.palette.shape == (MAX_CLASSES, 3) and many.palette.dtype == np.uint8
    assert len({tuple(colour) for colour in many.palette[1:].tolist()}) == MAX_CLASSES - 1
    coloured = make_classes(["a", "b", "c"], ["#000000", "#ff0080", "#00FF00"])
    assert coloured.palette.tolist() == [[0, 0, 0], [255, 0, 128], [0, 255, 0]]
