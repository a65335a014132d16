"""Checks a whole data set and lists everything that is wrong with it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from seglab.core.errors import InputError
from seglab.data.cases import Case, check_sizes, with_classes
from seglab.data.classes import ONE_CLASS, Classes
from seglab.data.duplicates import same_pictures, thumbnail
from seglab.data.images import read_image, read_mask
from seglab.data.layouts import scan_cases
from seglab.data.threads import map_in_threads


@dataclass(frozen=True)
class Report:
    """Result of checking a data set.

    Attributes:
        root: The data set's folder.
        layout: Name of its layout, as in `conf/data/`.
        cases: The cases without an error.
        errors: A line for each defect because of which training refuses the data.
        warnings: A line for each defect that does not keep the data from being used.
    """

    root: Path
    layout: str
    cases: list[Case]
    errors: list[str]
    warnings: list[str]

    def __str__(self) -> str:
        """Formats the report for a terminal."""
        content = self.to_json()
        lines = [f"{self.root}: {len(self.cases)} good cases of layout {self.layout}"]
        lines += [f"  {n:4} {diagnosis}" for diagnosis, n in content["diagnoses"].items()]
        lines.append(f"patients named: {content['patients']}")
        for level, messages in (("errors", self.errors), ("warnings", self.warnings)):
            lines.append(f"{level}: {len(messages) or 'none'}")
            lines += [f"  {' '.join(message.split())}" for message in messages]
        # File names need not be UTF-8.
        return "\n".join(lines).encode("utf-8", "backslashreplace").decode()

    def to_json(self) -> dict[str, Any]:
        """Converts the report to plain containers; cases become their ids."""
        return {
            "root": str(self.root),
            "layout": self.layout,
            "cases": [case.id for case in self.cases],
            "diagnoses": dict(sorted(Counter(case.diagnosis for case in self.cases).items())),
            "patients": len({case.patient for case in self.cases} - {""}),
            "errors": self.errors,
            "warnings": self.warnings,
        }


@dataclass
class _CheckedCase:
    """Errors and warnings of one case, and the thumbnail of its image if that can be read."""

    errors: list[str]
    warnings: list[str]
    thumbnail: np.ndarray | None = None


def check_data(root: str | Path, classes: Classes = ONE_CLASS) -> Report:
    """Reads every image and every mask of a data set of any supported layout.

    Args:
        root: Its folder.
        classes: The classes that its masks distinguish.

    Raises:
        InputError: There is no data set.
    """
    scan = scan_cases(root)
    cases = with_classes(scan.cases, classes)
    checked = list(map_in_threads(_check_case, cases, "checking cases", "case"))
    thumbnails = {
        case.id: result.thumbnail
        for case, result in zip(cases, checked, strict=True)
        if result.thumbnail is not None
    }
    return Report(
        scan.root,
        scan.layout,
        [case for case, result in zip(cases, checked, strict=True) if not result.errors],
        scan.errors + [error for result in checked for error in result.errors],
        scan.warnings
        + [warning for result in checked for warning in result.warnings]
        + _find_duplicates(thumbnails),
    )


def _check_case(case: Case) -> _CheckedCase:
    result = _CheckedCase([], [])
    image = mask = None
    try:
        image = read_image(case.image)
        result.thumbnail = thumbnail(image)
    except InputError as error:
        result.errors.append(str(error))
    try:
        mask = read_mask(case.mask, case.classes)
        if image is not None:
            check_sizes(case, image, mask)
    except InputError as error:
        result.errors.append(str(error))
    if mask is not None and (reason := _find_oddity(mask, case.classes)):
        result.warnings.append(f"{case.mask}: {reason}; see whether it is right")
    return result


def _find_oddity(mask: np.ndarray, classes: Classes) -> str | None:
    """Says why a readable mask looks wrong, if it does."""
    if mask.min() == mask.max():
        return f"every pixel is {classes.foreground.get(int(mask[0, 0]), 'background')}"
    if classes.is_multiclass:
        return None
    # No false alarm over 140 masks of PH2, 160 of ISIC and 80 of people; each is found inverted.
    height, width = mask.shape
    y, x = max(1, height // 10), max(1, width // 10)
    corners = [mask[:y, :x], mask[:y, -x:], mask[-y:, :x], mask[-y:, -x:]]
    middle = mask[height // 4 : height - height // 4, width // 4 : width - width // 4]
    if np.mean(corners) > middle.mean():
        return "the corners are lesion more than the middle, as if inverted"
    return None


def _find_duplicates(thumbnails: Mapping[str, np.ndarray]) -> list[str]:
    """Warns of cases of the same picture, as splits compare them.

    Args:
        thumbnails: Thumbnails by case id.
    """
    if not thumbnails:
        return []
    ids_by_group = defaultdict(list)
    groups = same_pictures(np.stack([*thumbnails.values()]))
    for id, group in zip(thumbnails, groups, strict=True):
        ids_by_group[group].append(id)
    return [
        f"{', '.join(ids)}: their pictures are the same, or nearly, perhaps turned or mirrored; "
        "keep one, or leave it to splits"
        for ids in ids_by_group.values()
        if len(ids) > 1
    ]
