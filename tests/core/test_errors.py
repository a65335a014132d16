"""Text that is safe and short in messages."""

from seglab.core.errors import name_some


def test_a_long_list_of_names_is_counted() -> None:
    assert name_some(["a"]) == "a"
    assert name_some(list("abcde")) == "a, b, c, d, e"
    assert name_some(list("abcdefg")) == "a, b, c, d, e and 2 more"
    assert name_some({3: "x", 1: "y"}, most=1) == "3 and 1 more"
