"""Checks a whole data set and lists everything that is wrong with it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from seglab.core.errors import InputError
from seglab.data.cases import Case, check_sizes, with_classes
from seglab.data.classes import ONE_CLASS, Classes
from seglab.data.duplicates import same_pictures, thumbnail
from seglab.data.images import read_image, read_mask
from seglab.data.layouts import scan_cases
from seglab.data.scan import Finding
from seglab.data.threads import map_in_threads


@dataclass(frozen=True)
class Report:
    """Result of checking a data set.

    Attributes:
        root: The data set's folder.
        layout: Name of its layout, as in `conf/data/`.
        cases: The cases without an error.
        findings: Everything that is wrong.
    """

    root: Path
    layout: str
    cases: list[Case]
    findings: list[Finding]

    @property
    def errors(self) -> list[Finding]:
        """The findings because of which training refuses the data."""
        return [finding for finding in self.findings if finding.is_error]

    @property
    def warnings(self) -> list[Finding]:
        """The findings that do not keep the data from being used."""
        return [finding for finding in self.findings if not finding.is_error]

    @property
    def diagnoses(self) -> dict[str, int]:
        """Number of good cases by diagnosis."""
        return dict(sorted(Counter(case.diagnosis for case in self.cases).items()))

    @property
    def patients(self) -> int:
        """Number of patients that the good cases name."""
        return len({case.patient for case in self.cases} - {""})

    def __str__(self) -> str:
        """Formats the report for a terminal."""
        lines = [f"{self.root}: {len(self.cases)} good cases of layout {self.layout}"]
        lines += [f"  {n:4} {diagnosis}" for diagnosis, n in self.diagnoses.items()]
        lines.append(f"patients named: {self.patients}")
        for level, findings in (("errors", self.errors), ("warnings", self.warnings)):
            lines.append(f"{level}: {len(findings) or 'none'}")
            by_kind = defaultdict(list)
            for finding in findings:
                by_kind[finding.kind].append(finding)
            for kind, same_kind in by_kind.items():
                lines.append(f"  {sum(len(finding.cases) or 1 for finding in same_kind)} {kind}")
                lines += [f"    {' '.join(finding.message.split())}" for finding in same_kind]
        # File names need not be UTF-8.
        return "\n".join(lines).encode("utf-8", "backslashreplace").decode()

    def to_json(self) -> dict[str, Any]:
        """Converts the report to plain containers; cases become their ids."""
        return {
            "root": str(self.root),
            "layout": self.layout,
            "cases": [case.id for case in self.cases],
            "diagnoses": self.diagnoses,
            "patients": self.patients,
            "findings": [asdict(finding) for finding in self.findings],
        }


@dataclass
class _CheckedCase:
    """Result of reading one case.

    Attributes:
        id: The case's id.
        findings: What is wrong with its files.
        thumbnail: Thumbnail of its image; None if the image cannot be read.
        classes: Class numbers in its mask.
    """

    id: str
    findings: list[Finding] = field(default_factory=list)
    thumbnail: np.ndarray | None = None
    classes: set[int] = field(default_factory=set)

    def add(self, kind: str, message: str, is_error: bool) -> None:
        self.findings.append(Finding(kind, message, is_error, (self.id,)))


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
    checked = map_in_threads(_check_case, ((case,) for case in cases), "checking cases", "case")
    findings = scan.findings + [finding for result in checked for finding in result.findings]
    if classes.is_multiclass:
        present = set[int]().union(*(result.classes for result in checked))
        for number, name in enumerate(classes.names):
            if number not in present:
                message = (
                    f"{root}: no mask holds {name}, class {number}; leave it out if it is none"
                )
                findings.append(Finding("classes in no mask", message, False))
    findings += _find_duplicates(checked)
    bad = {id for finding in findings if finding.is_error for id in finding.cases}
    good = [case for case in cases if case.id not in bad]
    return Report(scan.root, scan.layout, good, findings)


def _check_case(case: Case) -> _CheckedCase:
    result = _CheckedCase(case.id)
    try:
        image = read_image(case.image)
        result.thumbnail = thumbnail(image)
    except InputError as error:
        result.add("unreadable images", str(error), is_error=True)
    try:
        mask = read_mask(case.mask, case.classes)
        result.classes = {*np.unique(mask).tolist()}
    except InputError as error:
        result.add("unreadable masks", str(error), is_error=True)
    if result.findings:
        return result
    try:
        check_sizes(case, image, mask)
    except InputError as error:
        result.add("masks of another size than their image", str(error), is_error=True)
        return result
    check_mask = _check_class_mask if case.classes.is_multiclass else _check_binary_mask
    if defect := check_mask(case, mask):
        kind, reason = defect
        message = f"{case.mask}: {reason}; see whether it is right"
        result.add(kind, message, is_error=False)
    return result


def _check_class_mask(case: Case, mask: np.ndarray) -> tuple[str, str] | None:
    """Kind of finding and reason, if a readable mask of several classes looks wrong."""
    if mask.any():
        return None
    return "empty masks", f"no pixel is other than {case.classes.names[0]}"


def _check_binary_mask(case: Case, mask: np.ndarray) -> tuple[str, str] | None:
    """Kind of finding and reason, if a readable binary mask looks wrong."""
    # No false alarm over 140 masks of PH2, 160 of ISIC and 80 of people; each is found inverted.
    height, width = mask.shape
    y, x = max(1, height // 10), max(1, width // 10)
    corners = [mask[:y, :x], mask[:y, -x:], mask[-y:, :x], mask[-y:, -x:]]
    middle = mask[height // 4 : height - height // 4, width // 4 : width - width // 4]
    if not mask.any():
        return "empty masks", "no pixel is lesion"
    if mask.all():
        return "full masks", "every pixel is lesion"
    if np.mean(corners) > middle.mean():
        return "inverted masks", "the corners are lesion more than the middle, as if inverted"
    return None


def _find_duplicates(checked: Sequence[_CheckedCase]) -> list[Finding]:
    """Warns of cases of the same picture, as splits compare them."""
    ids_by_group = defaultdict(list)
    readable = {case.id: case.thumbnail for case in checked if case.thumbnail is not None}
    if readable:
        for id, group in zip(readable, same_pictures(np.stack([*readable.values()])), strict=True):
            ids_by_group[group].append(id)
    return [
        Finding(
            "cases of the same picture",
            f"{', '.join(ids)}: their pictures are the same, or nearly, perhaps turned or "
            "mirrored; keep one, or leave it to splits",
            False,
            tuple(ids),
        )
        for ids in ids_by_group.values()
        if len(ids) > 1
    ]
