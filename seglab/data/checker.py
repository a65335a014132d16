"""Checks a whole data set and lists everything that is wrong with it."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from seglab.core.errors import InputError, name_some
from seglab.core.files import hash_file
from seglab.data.cases import Case, check_sizes, with_classes
from seglab.data.checks import CaseCheck, check_case, describe_checks
from seglab.data.classes import ONE_CLASS, Classes
from seglab.data.duplicates import equal_files, same_pictures, thumbnail
from seglab.data.images import read_image
from seglab.data.layouts import scan_cases
from seglab.data.masks import decode_mask
from seglab.data.resizing import mask_to_network_size
from seglab.data.scan import Scan
from seglab.data.splits import make_split
from seglab.data.threads import map_in_threads

DEFAULT_SPLIT: Any = {"val": 0.1, "test": 0.1, "seed": 42}  # as in conf/data/default.yaml


def check_data(
    root: str | Path,
    classes: Classes = ONE_CLASS,
    size: int = 256,
    find_duplicates: bool = True,
    mask_suffix: str | None = None,
) -> Scan:
    """Reads every image and every mask of a data set of any layout, with masks of these classes.

    Returns the cases without an error and everything that is wrong, with the warnings that
    training at `data.size` = `size` gives, and nearly equal pictures as `data.find_duplicates`
    says. Raises an InputError if there is no data set.
    """
    scan = scan_cases(root, mask_suffix=mask_suffix)
    cases = with_classes(scan.cases, classes)
    scan.cases = []
    checks, thumbnails = {}, {}
    results = map_in_threads(lambda case: _check_files(case, size), cases, "checking cases", "case")
    for case, (errors, check, small) in zip(cases, results, strict=True):
        scan.errors += errors
        if check is not None:
            scan.cases.append(case)
            checks[case.id] = check
            if check.oddities:
                scan.oddities[case.id] = check.oddities
        if small is not None:
            thumbnails[case] = small
    scan.warnings += describe_checks(checks, classes, size) if checks else []
    groups, warnings = _find_duplicates(thumbnails, find_duplicates)
    scan.warnings += warnings
    if scan.cases and not scan.errors:
        scan.warnings += _describe_default_split(scan.cases, groups)
    return scan


def _describe_default_split(cases: list[Case], groups: list[int]) -> list[str]:
    """Lists why training refuses or warns of its split, if no other than the default is named."""
    try:
        return [*make_split(cases, groups, {}, **DEFAULT_SPLIT).warnings]
    except InputError as error:
        return [f"data.split: {error}"]


def _check_files(case: Case, size: int) -> tuple[list[str], CaseCheck | None, np.ndarray | None]:
    """Errors of one case, its check if there are none, and its thumbnail if the image is good."""
    errors = []
    image = check = None
    try:
        image = read_image(case.image)
    except InputError as error:
        errors.append(str(error))
    try:
        decoded = decode_mask(case.mask, case.classes)
        if image is not None:
            check_sizes(case, image, decoded.mask)
            check = check_case(case, decoded, mask_to_network_size(decoded.mask, size))
    except InputError as error:
        errors.append(str(error))
    return errors, check, None if image is None else thumbnail(image)


def _find_duplicates(
    thumbnails: dict[Case, np.ndarray], find_nearly_equal: bool
) -> tuple[list[int], list[str]]:
    """Groups cases by their picture as splits do, from thumbnails by case, and warns of groups."""
    if find_nearly_equal:
        groups = same_pictures(np.array([*thumbnails.values()]))
        text = (
            "their pictures are the same, or nearly, perhaps turned or mirrored; keep one, or "
            "leave it to splits; if they differ, set data.find_duplicates=false (here: "
            "--no-duplicates)"
        )
    else:
        groups = equal_files([hash_file(case.image) for case in thumbnails])
        text = "their image files are equal; keep one, or leave it to splits"
    ids_by_group = defaultdict(list)
    for case, group in zip(thumbnails, groups, strict=True):
        ids_by_group[group].append(case.id)
    same = [ids for ids in ids_by_group.values() if len(ids) > 1]
    return groups, [f"{name_some(ids)}: {text}" for ids in same]
