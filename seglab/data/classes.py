"""The classes that a data set's masks distinguish: lesion and background, or several."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from seglab.core.errors import InputError

MAX_CLASSES = 32
# Classes name metrics, columns and folders, some of which have other meanings.
_NAME = re.compile(r"[A-Za-z]\w{0,40}", re.ASCII)
_RESERVED = ("all", "val", "test", "all_background", "mean_mask")
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")
# Black, then Okabe and Ito 2008, which colour-blind readers can tell apart; the brightest first.
_PALETTE = ("#000000", "#56b4e9", "#e69f00", "#009e73", "#f0e442", "#cc79a7", "#d55e00", "#0072b2")


@dataclass(frozen=True)
class Classes:
    """The classes of a data set, and how its mask files represent them.

    Once read, every mask is uint8 (H, W) of class numbers, 0 for background. In the binary case
    there is one name, of class 1, and networks give one logit channel. Otherwise there is a name
    and a channel for each class number, background included.

    Attributes:
        names: One name for each logit channel: the class that is bright in masks, or several
            classes in the order of their numbers, background first.
        colours: '#rrggbb' of each of several classes in mask files; None where the files hold
            class numbers, as grey values or as indices into a palette.
        lesion_values: Of one class, the grey values or indices of a coloured palette that are
            lesion, 'nonzero' for all but 0, or None for what is bright.
    """

    names: tuple[str, ...] = ("lesion",)
    colours: tuple[str, ...] | None = None
    lesion_values: tuple[int, ...] | str | None = None

    @property
    def is_multiclass(self) -> bool:
        """Whether there are several classes, and not one class against background."""
        return len(self.names) > 1

    @property
    def numbers(self) -> tuple[int, ...]:
        """Class number of each logit channel, in the order of `names`: (1,) in the binary case."""
        return tuple(range(len(self.names))) if self.is_multiclass else (1,)

    @property
    def foreground(self) -> dict[int, str]:
        """Names of all classes but background, by class number."""
        return {k: name for k, name in zip(self.numbers, self.names, strict=True) if k > 0}

    @property
    def palette(self) -> np.ndarray:
        """RGB to draw each class number in, uint8 (K, 3): black and white in the binary case."""
        if not self.is_multiclass:
            return _parse_colours(["#000000", "#ffffff"]).astype(np.uint8)
        if self.colours is not None:
            return _parse_colours(self.colours).astype(np.uint8)
        black, *colours = _PALETTE
        # Classes beyond the palette get darker versions of its colours.
        cycle, i = np.divmod(np.arange(len(self.names) - 1), len(colours))
        foreground = _parse_colours(colours)[i] * 0.6 ** cycle[:, None]
        return np.rint(np.concatenate([_parse_colours([black]), foreground])).astype(np.uint8)


ONE_CLASS = Classes()


def make_classes(
    names: Any, colours: Any = None, lesion_values: Any = None, where: str = "data."
) -> Classes:
    """Checks the classes of a config, a checkpoint or a command line.

    Args:
        names: List of strings, as `Classes.names`.
        colours: None or a list of strings, as `Classes.colours`.
        lesion_values: None, 'nonzero' or a list of integers, as `Classes.lesion_values`.
        where: Prefix of 'classes', 'colours' and 'lesion_values' in messages.

    Raises:
        InputError: A name, colour or value is invalid, or they do not match.
    """
    lowercase = [name.lower() for name in names] if _is_list(names, str) else []
    # Each once, whatever the case: some file systems ignore it.
    if (
        not 1 <= len(lowercase) <= MAX_CLASSES
        or len({*lowercase}) < len(lowercase)
        or not all(map(_NAME.fullmatch, names))
        or {*lowercase} & {*_RESERVED}
    ):
        raise InputError(
            f"{where}classes={names}: expected a list of names, one or up to {MAX_CLASSES} with "
            f"background first, of letters, digits and _, each once, none of {', '.join(_RESERVED)}"
        )
    is_list = _is_list(lesion_values, int) and min(lesion_values, default=-1) >= 0
    if not (lesion_values is None or (len(names) == 1 and (is_list or lesion_values == "nonzero"))):
        raise InputError(
            f"{where}lesion_values={lesion_values}: expected null for what is bright, or for one "
            "class 'nonzero' or a list of grey values from 0, such as [2,3]"
        )
    if colours is None:
        return Classes(tuple(names), None, tuple(lesion_values) if is_list else lesion_values)
    if (
        len(names) == 1
        or not _is_list(colours, str)
        or len(colours) != len(names)
        or len({*map(str.lower, colours)}) < len(names)
        or not all(map(_COLOUR.fullmatch, colours))
    ):
        raise InputError(
            f"{where}colours={colours}: expected null for one class, which is read by brightness, "
            f"else null or a colour such as '#ff8000' for each of {', '.join(names)}, no two equal"
        )
    return Classes(tuple(names), tuple(map(str.lower, colours)))


def _parse_colours(colours: Sequence[str]) -> np.ndarray:
    """RGB of '#rrggbb', int64 (K, 3)."""
    return np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in colours])


def _is_list(value: Any, kind: type) -> bool:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and all(type(item) is kind for item in value)
    )
