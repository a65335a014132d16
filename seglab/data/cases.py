"""A case of a data set: one image with its mask."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from seglab.core.errors import InputError
from seglab.data.classes import ONE_CLASS, Classes
from seglab.data.images import read_image, read_orientation
from seglab.data.masks import DecodedMask, decode_mask

UNKNOWN_DIAGNOSIS = "unknown"


@dataclass(frozen=True)
class Case:
    """One image with its mask.

    Attributes:
        id: Unique in a run.
        image: The image's file.
        mask: The mask's file.
        diagnosis: Splits are stratified by it; 'unknown' where no table states it.
        patient: The patient's name or number; empty where no table states it.
        tables: The files that diagnosis and patient were read from.
        classes: The classes that the mask distinguishes.
        set: Name of its data set in a run of several, else empty.
        attributes: What else tables state, by name, e.g. {'asymmetry': 'fully symmetric'}; scores
            are shown by it.
    """

    id: str
    image: Path
    mask: Path
    diagnosis: str = UNKNOWN_DIAGNOSIS
    patient: str = ""
    tables: tuple[Path, ...] = field(default=(), compare=False)
    classes: Classes = field(default=ONE_CLASS, compare=False)
    set: str = field(default="", compare=False)
    attributes: Mapping[str, str] = field(default_factory=dict, compare=False)


def with_classes(cases: Sequence[Case], classes: Classes) -> list[Case]:
    """Copies cases, with masks that distinguish these classes."""
    return [replace(case, classes=classes) for case in cases]


def read_pair(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Reads a case's image, uint8 (H, W, 3), and mask, uint8 class numbers (H, W).

    Raises an InputError if a file cannot be read or the two differ in size.
    """
    image, decoded = decode_pair(case)
    return image, decoded.mask


def decode_pair(case: Case) -> tuple[np.ndarray, DecodedMask]:
    """Reads a case as `read_pair` does, and says how its mask was read."""
    image, decoded = read_image(case.image), decode_mask(case.mask, case.classes)
    check_sizes(case, image, decoded.mask)
    return image, decoded


def check_sizes(case: Case, image: np.ndarray, mask: np.ndarray) -> None:
    """Raises an InputError if image and mask differ in size."""
    if image.shape[:2] != mask.shape:
        turned = [file for file in (case.image, case.mask) if read_orientation(file) > 4]
        if image.shape[1::-1] == mask.shape and len(turned) == 1:
            raise InputError(
                f"{case.mask}: the mask was drawn on the stored pixels: it fits the image only if "
                f"EXIF turns neither; remove the orientation tag of {turned[0]}"
            )
        raise InputError(
            f"{case.mask}: the mask is {mask.shape[1]} x {mask.shape[0]} pixels, its image "
            f"{image.shape[1]} x {image.shape[0]}; expected equal sizes, replace one of them"
        )
