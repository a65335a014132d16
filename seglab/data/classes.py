"""What the classes of a data set are: one against background, or several."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from seglab.core.errors import InputError

MAX_CLASSES = 32
# They name metrics, columns and folders, some of which are others' already.
_NAME = re.compile(r"[A-Za-z]\w{0,40}", re.ASCII)
_TAKEN = ("all", "val", "test", "all_background", "mean_mask")
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")
# Black, then Okabe and Ito 2008, told apart by the colour-blind; the brightest first.
_PALETTE = ("#000000", "#56b4e9", "#e69f00", "#009e73", "#f0e442", "#cc79a7", "#d55e00", "#0072b2")


@dataclass(frozen=True)
class Classes:
    """The classes of a data set, and how its masks hold them.

    Masks are uint8 (H, W) of class numbers, 0 for background. In the binary case there is one
    name, of class 1, and networks give one logit channel. Otherwise there is a name and a channel
    for each class number, background included.

    Attributes:
        names: One for each logit channel: the class that is bright in masks, or several classes in
            the order of their numbers, background first.
        colours: Of several, '#rrggbb' of each in masks; None where masks hold class numbers, as
            grey values or as indices into a palette.
    """

    names: tuple[str, ...] = ("lesion",)
    colours: tuple[str, ...] | None = None

    @property
    def is_multiclass(self) -> bool:
        """Whether pixels are of one of several classes, and not lesion or background."""
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
            return _rgb(["#000000", "#ffffff"]).astype(np.uint8)
        if self.colours is not None:
            return _rgb(self.colours).astype(np.uint8)
        black, *colours = _PALETTE
        turns, i = np.divmod(np.arange(len(self.names) - 1), len(colours))
        # Those beyond the palette are its darker sisters.
        others = _rgb(colours)[i] * 0.6 ** turns[:, None]
        return np.rint(np.concatenate([_rgb([black]), others])).astype(np.uint8)


ONE_CLASS = Classes()


def make_classes(names: Any, colours: Any = None, where: str = "data.") -> Classes:
    """Checks names and colours of anyone.

    Args:
        names: A list of texts, as `Classes.names`.
        colours: None, or a list of texts, as `Classes.colours`.
        where: What comes before 'classes' and 'colours' in messages.

    Raises:
        InputError: They are none.
    """
    if not _are_texts(names) or not 1 <= len(names) <= MAX_CLASSES:
        raise InputError(
            f"{where}classes={names}: expected a list of names, one or up to {MAX_CLASSES} with "
            "background first"
        )
    alike = [name.lower() for name in names]  # for some file systems
    wrong = [name for name in names if not _NAME.fullmatch(name) or alike.count(name.lower()) > 1]
    if wrong:
        raise InputError(
            f"{where}classes: {wrong[0]!r}: expected names of letters, digits and _, each once"
        )
    if taken := {*alike} & {*_TAKEN}:
        raise InputError(f"{where}classes: {min(taken)!r}: means something else; choose another")
    if colours is None:
        return Classes(tuple(names))
    if (
        not _are_texts(colours)
        or len(colours) != len(names)
        or len({*map(str.lower, colours)}) < len(names)
        or not all(map(_COLOUR.fullmatch, colours))
    ):
        raise InputError(
            f"{where}colours={colours}: expected null, or a colour such as '#ff8000' for each of "
            f"{', '.join(names)}, no two equal"
        )
    if len(names) == 1:
        raise InputError(f"{where}colours: of one class what is bright is taken; expected null")
    return Classes(tuple(names), tuple(map(str.lower, colours)))


def _rgb(colours: Sequence[str]) -> np.ndarray:
    return np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in colours])


def _are_texts(value: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and all(isinstance(item, str) for item in value)
    )
