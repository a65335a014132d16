"""Says what is odd about data that can be read: the checker and `train` warn in the same words."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from seglab.core.errors import name_some
from seglab.data.cases import Case
from seglab.data.classes import Classes
from seglab.data.images import read_orientation
from seglab.data.masks import DecodedMask, decode_mask, looks_inverted
from seglab.data.splits import Split
from seglab.data.threads import map_in_threads

MIN_TEST_CASES = 10
SEE = "; see whether that is right"


@dataclass(frozen=True)
class CaseCheck:
    """What was found while a case was read.

    Attributes:
        classes: Class numbers in the mask at network size.
        value: The value that lesion has in the mask's file, see `DecodedMask`.
        oddities: What is odd about the mask, as in '3 of 9 masks are ...', and what to do. Masks
            that are odd in the same way have the same text.
    """

    classes: list[int]
    value: float | None
    oddities: list[str]


def check_case(case: Case, decoded: DecodedMask, small: np.ndarray) -> CaseCheck:
    """Finds what is odd about a case whose image and mask can be read and fit.

    Args:
        case: The case.
        decoded: Its mask, of `decode_mask`.
        small: Its mask at network size, uint8 (S, S).
    """
    oddities, mask = list[str](), decoded.mask
    if mask.max() == 0:
        values = case.classes.lesion_values
        reason = "background at every pixel" if values is None else f"no pixel of {values}"
        oddities.append(f"empty ({reason}){SEE}")
    elif mask.min() == mask.max():
        oddities.append(f"full (one class at every pixel){SEE}")
    elif not case.classes.is_multiclass and looks_inverted(mask):
        oddities.append(
            "as if inverted (more lesion in the corners than in the middle); if all masks "
            "are, data.lesion_values=[0] takes 0 for lesion"
        )
    if small.max() == 0 < mask.max():
        oddities.append(f"without their lesion at data.size={len(small)}; raise data.size")
    if _fits_either_way(case, mask):
        oddities.append(
            "of another EXIF orientation than the image; see whether they fit, and where a mask "
            "was drawn on the stored pixels remove the orientation tag"
        )
    if decoded.note is not None:
        oddities.append(f"{decoded.note}{SEE}")
    present = [number for number in range(small.max() + 1) if (small == number).any()]
    return CaseCheck(present, decoded.value, oddities)


def check_masks(cases: Sequence[Case]) -> dict[str, CaseCheck]:
    """Reads the masks of cases, and finds what is odd about them at native resolution, by id."""

    def check(case: Case) -> CaseCheck:
        decoded = decode_mask(case.mask, case.classes)
        return check_case(case, decoded, decoded.mask)

    checks = map_in_threads(check, cases, "checking masks", "case")
    return {case.id: check for case, check in zip(cases, checks, strict=True)}


def _fits_either_way(case: Case, mask: np.ndarray) -> bool:
    """Whether EXIF turns image and mask differently, and they would fit as stored too."""
    image_turn, mask_turn = read_orientation(case.image), read_orientation(case.mask)
    swaps_axes = (image_turn > 4) != (mask_turn > 4)
    return image_turn != mask_turn and (not swaps_axes or mask.shape[0] == mask.shape[1])


def describe_oddities(checks: Mapping[str, CaseCheck]) -> list[str]:
    """Lists a warning for each kind of oddity of a data set, from the check of each case by id."""
    ids = defaultdict(list)
    for id, check in checks.items():
        for oddity in check.oddities:
            ids[oddity].append(id)
    return [
        f"{len(odd)} of {len(checks)} masks ({name_some(odd)}) are {oddity}"
        for oddity, odd in ids.items()
    ] + _describe_values(checks.values())


def _describe_values(checks: Iterable[CaseCheck]) -> list[str]:
    """Warns if lesion has one value in some files and another in others."""
    counts = Counter(check.value for check in checks if check.value is not None)
    if not counts or max(counts) <= 1.25 * min(counts):  # JPEG changes values a little
        return []
    values = name_some([f"{value:g} in {n} masks" for value, n in counts.most_common()])
    return [
        f"lesion is {values}: masks of different sources, or different labels; see whether they "
        "mean the same, or name the values that count with data.lesion_values"
    ]


def describe_checks(checks: Mapping[str, CaseCheck], classes: Classes, size: int) -> list[str]:
    """Lists the warnings of `describe_oddities`, and one for each class that no mask holds.

    Args:
        checks: The check of each case, by id.
        classes: The classes that the masks distinguish.
        size: Edge of the square network input, in pixels.
    """
    # Of one class, the oddities say it.
    absent = _absent_classes(checks.values(), classes) if classes.is_multiclass else []
    return describe_oddities(checks) + [
        f"no mask holds {name} at data.size={size}; see whether data.classes is right"
        for name in absent
    ]


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
    numbered = zip(classes.numbers, classes.names, strict=True)
    return [name for number, name in numbered if number not in present]
