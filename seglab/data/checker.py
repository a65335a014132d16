"""Checks a whole data set and lists everything that is wrong with it."""

from collections import defaultdict
from pathlib import Path

import numpy as np

from seglab.core.errors import InputError
from seglab.data.cases import Case, check_sizes, with_classes
from seglab.data.classes import ONE_CLASS, Classes
from seglab.data.duplicates import same_pictures, thumbnail
from seglab.data.images import read_image
from seglab.data.layouts import Scan, scan_cases
from seglab.data.masks import looks_inverted, read_mask
from seglab.data.threads import map_in_threads


def check_data(root: str | Path, classes: Classes = ONE_CLASS) -> Scan:
    """Reads every image and every mask of a data set of any layout, with masks of these classes.

    Returns the cases without an error and everything that is wrong. Raises an InputError if there
    is no data set.
    """
    scan = scan_cases(root)
    cases = with_classes(scan.cases, classes)
    scan.cases = []
    thumbnails = {}
    checks = map_in_threads(_check_case, cases, "checking cases", "case")
    for case, (errors, warnings, small) in zip(cases, checks, strict=True):
        scan.errors += errors
        scan.warnings += warnings
        if not errors:
            scan.cases.append(case)
        if small is not None:
            thumbnails[case.id] = small
    scan.warnings += _find_duplicates(thumbnails)
    return scan


def _check_case(case: Case) -> tuple[list[str], list[str], np.ndarray | None]:
    """Errors and warnings of one case, and the thumbnail of its image if that can be read."""
    errors, warnings = [], []
    image = mask = None
    try:
        image = read_image(case.image)
    except InputError as error:
        errors.append(str(error))
    try:
        mask = read_mask(case.mask, case.classes)
        if image is not None:
            check_sizes(case, image, mask)
    except InputError as error:
        errors.append(str(error))
    if mask is not None and (reason := _find_oddity(mask, case.classes)):
        warnings.append(f"{case.mask}: {reason}; see whether it is right")
    return errors, warnings, None if image is None else thumbnail(image)


def _find_oddity(mask: np.ndarray, classes: Classes) -> str | None:
    """Says why a readable mask looks wrong, if it does."""
    if mask.min() == mask.max():
        return f"every pixel is {classes.foreground.get(int(mask[0, 0]), 'background')}"
    if not classes.is_multiclass and looks_inverted(mask):
        return "the corners are lesion more than the middle, as if inverted"
    return None


def _find_duplicates(thumbnails: dict[str, np.ndarray]) -> list[str]:
    """Warns of cases of the same picture, as splits compare them, from thumbnails by case id."""
    ids_by_group = defaultdict(list)
    groups = same_pictures(np.array([*thumbnails.values()]))
    for id, group in zip(thumbnails, groups, strict=True):
        ids_by_group[group].append(id)
    return [
        f"{', '.join(ids)}: their pictures are the same, or nearly, perhaps turned or mirrored; "
        "keep one, or leave it to splits"
        for ids in ids_by_group.values()
        if len(ids) > 1
    ]
