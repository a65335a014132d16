"""Says what is odd about data that can be read: the checker and `train` warn in the same words."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from seglab.core.errors import name_some
from seglab.data.cases import Case
from seglab.data.classes import Classes
from seglab.data.images import read_orientation
from seglab.data.masks import looks_inverted
from seglab.data.splits import Split

MIN_TEST_CASES = 10


class Oddity(NamedTuple):
    """What is odd about a mask, in words that masks share: 'N of M masks are ...'."""

    what: str
    advice: str  # what to do


SEE = "see whether that is right"
EMPTY = Oddity("empty (background at every pixel)", SEE)
FULL = Oddity("full (one class at every pixel)", SEE)
INVERTED = Oddity("as if inverted (more lesion in the corners than in the middle)", SEE)
TURNED = Oddity(
    "of another EXIF orientation than the image",
    "see whether they fit; where a mask was drawn on the stored pixels, remove the orientation tag",
)


@dataclass(frozen=True)
class CaseCheck:
    """What was found while a case was read.

    Attributes:
        classes: Class numbers in the mask at network size.
        oddities: What is odd about the mask.
    """

    classes: list[int]
    oddities: list[Oddity]

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "CaseCheck":
        """Converts back what `dataclasses.asdict` and JSON have made of a check."""
        return cls(content["classes"], [Oddity(*oddity) for oddity in content["oddities"]])


def check_case(case: Case, mask: np.ndarray, small: np.ndarray, note: str | None) -> CaseCheck:
    """Finds what is odd about a case whose image and mask can be read and fit.

    Args:
        case: The case.
        mask: Its mask, uint8 (H, W) of class numbers.
        small: Its mask at network size, uint8 (S, S).
        note: How an ambiguous mask file was read, of `decode_mask`.
    """
    oddities = []
    if not mask.any():
        oddities.append(EMPTY)
    elif mask.min() == mask.max():
        oddities.append(FULL)
    elif not case.classes.is_multiclass and looks_inverted(mask):
        oddities.append(INVERTED)
    if mask.any() and not small.any():
        size = f"data.size={len(small)}"
        oddities.append(Oddity(f"without their lesion at {size}", "raise data.size"))
    if _fits_either_way(case, mask):
        oddities.append(TURNED)
    if note is not None:
        oddities.append(Oddity(f"ambiguous ({note})", SEE))
    present = [number for number in range(small.max() + 1) if (small == number).any()]
    return CaseCheck(present, oddities)


def _fits_either_way(case: Case, mask: np.ndarray) -> bool:
    """Whether EXIF turns image and mask differently, and they would fit as stored too."""
    image_turn, mask_turn = read_orientation(case.image), read_orientation(case.mask)
    swaps_axes = (image_turn > 4) != (mask_turn > 4)
    return image_turn != mask_turn and (not swaps_axes or mask.shape[0] == mask.shape[1])


def describe_checks(checks: Mapping[str, CaseCheck], classes: Classes, size: int) -> list[str]:
    """Lists a warning for each kind of oddity of a data set, and for each class that is absent.

    Args:
        checks: The check of each case, by id.
        classes: The classes that the masks distinguish.
        size: Edge of the square network input, in pixels.
    """
    ids = defaultdict(list)
    for id, check in checks.items():
        for oddity in check.oddities:
            ids[oddity].append(id)
    warnings = [
        f"{len(found)} of {len(checks)} masks are {what}: {name_some(found)}; {advice}"
        for (what, advice), found in ids.items()
    ]
    if classes.is_multiclass:  # of one class, the oddities say it
        warnings += [
            f"no mask holds {name} at data.size={size}; see whether data.classes is right"
            for name in _absent_classes(checks.values(), classes)
        ]
    return warnings


def describe_split(split: Split, checks: Mapping[str, CaseCheck], classes: Classes) -> list[str]:
    """Lists a warning for each subset of a split whose scores, or training, mean little."""
    warnings = []
    if len(split.test) < MIN_TEST_CASES:
        share = f"{len(split.test)} of {len(checks)} cases"
        warnings.append(
            f"test holds {share}: its scores say little; raise data.split.test, or join all folds "
            "(data.split.fold)"
        )
    absent_everywhere = _absent_classes(checks.values(), classes)
    for subset in ("train", "val", "test"):
        in_subset = [checks[id] for id in getattr(split, subset)]
        absent = [c for c in _absent_classes(in_subset, classes) if c not in absent_everywhere]
        if in_subset and absent:
            names = ", ".join(absent)
            warnings.append(f"no mask of {subset} holds {names}; change data.split or add cases")
    return warnings


def _absent_classes(checks: Iterable[CaseCheck], classes: Classes) -> list[str]:
    """Names of the classes that no mask holds at network size; of one class, the lesion alone."""
    present = {number for check in checks for number in check.classes}
    return [
        name
        for number, name in zip(classes.numbers, classes.names, strict=True)
        if number not in present
    ]
