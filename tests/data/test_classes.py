"""Names and colours of classes."""

from typing import Any

import numpy as np
import pytest

from seglab.core.errors import InputError
from seglab.data.classes import MAX_CLASSES, make_classes


@pytest.mark.parametrize(
    ("names", "colours", "message"),
    [
        ([], None, "expected a list of names"),
        ([1, 2], None, "expected a list of names"),
        ([f"a{i}" for i in range(MAX_CLASSES + 1)], None, "expected a list of names"),
        (["a", "A"], None, "'a': expected names of letters"),
        (["a", "../b"], None, "'../b': expected names of letters"),
        (["a", "Test"], None, "'test': means something else"),
        (["a", "b"], ["#000000"], "a colour such as '#ff8000' for each of a, b"),
        (["a", "b"], ["#00FF00", "#00ff00"], "no two equal"),
        (["a", "b"], ["#000000", "red"], "a colour such as"),
        (["a"], ["#000000"], "masks of one class are read by brightness"),
    ],
)
def test_invalid_names_and_colours_are_refused(names: Any, colours: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_classes(names, colours)


def test_palettes_have_a_colour_for_each_class() -> None:
    many = make_classes([f"class{i}" for i in range(MAX_CLASSES)])
    assert many.palette.shape == (MAX_CLASSES, 3) and many.palette.dtype == np.uint8
    assert len({tuple(colour) for colour in many.palette[1:].tolist()}) == MAX_CLASSES - 1
    coloured = make_classes(["a", "b", "c"], ["#000000", "#ff0080", "#00FF00"])
    assert coloured.palette.tolist() == [[0, 0, 0], [255, 0, 128], [0, 255, 0]]
