"""Checks a whole data set and lists everything that is wrong with it."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from seglab.core.errors import InputError
from seglab.core.files import hash_json
from seglab.data.cases import Case, read_pair, with_classes
from seglab.data.classes import ONE_CLASS, Classes
from seglab.data.duplicates import same_pictures, thumbnail
from seglab.data.images import read_image, read_mask
from seglab.data.layouts import scan_cases
from seglab.data.scan import Finding
from seglab.data.threads import map_in_threads

# How messages of `read_mask` begin when the file can be read, but does not hold the classes.
_WRONG_CLASSES = ("holds", "is coloured", "has no colours")


@dataclass(frozen=True)
class Report:
    """Result of checking a data set.

    Attributes:
        root: The data set's folder.
        layout: Name of its layout, as in `conf/data/`.
        cases: The cases without an error.
        findings: Everything that is wrong.
        stray_files: Number of files that do not belong to the data set.
    """

    root: Path
    layout: str
    cases: list[Case]
    findings: list[Finding]
    stray_files: int

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
        lines.append(f"stray files: {self.stray_files}")
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
            "stray_files": self.stray_files,
        }


@dataclass
class _CheckedCase:
    """Result of reading one case.

    Attributes:
        id: The case's id.
        findings: What is wrong with its files.
        thumbnail: Of its image, uint8 (32, 32); None if the image cannot be read.
        pixel_hash: SHA-256 of the image's pixels.
        classes: Class numbers in its mask.
    """

    id: str
    findings: list[Finding] = field(default_factory=list)
    thumbnail: np.ndarray | None = None
    pixel_hash: str = ""
    classes: set[int] = field(default_factory=set)


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
    return Report(scan.root, scan.layout, good, findings, scan.stray_files)


def _check_case(case: Case) -> _CheckedCase:
    result = _CheckedCase(case.id)
    image: np.ndarray | None = None
    try:
        image, mask = read_pair(case)
    except InputError as error:
        image = _check_files_apart(case, str(error), result.findings)
    else:
        result.classes = {*np.unique(mask).tolist()}
        check_mask = _check_class_mask if case.classes.is_multiclass else _check_binary_mask
        defect = check_mask(case, mask)
        if defect:
            kind, reason = defect
            message = f"{case.mask}: {reason}; see whether it is right"
            result.findings.append(Finding(kind, message, False, (case.id,)))
    if image is not None:
        result.thumbnail = thumbnail(image)
        result.pixel_hash = hash_json([image.shape, hashlib.sha256(image.data).hexdigest()])
    return result


def _check_files_apart(case: Case, reason: str, findings: list[Finding]) -> np.ndarray | None:
    """Adds findings for an image and a mask that cannot be used together.

    Args:
        case: The case.
        reason: Message of `read_pair`.
        findings: Takes the findings.

    Returns:
        The image, if it can be read.
    """
    image = None
    defects = []
    try:
        image = read_image(case.image)
    except InputError as error:
        defects.append(("unreadable images", str(error)))
    try:
        read_mask(case.mask, case.classes)
    except InputError as error:
        cause = str(error).removeprefix(f"{case.mask}: ")
        kind = "unreadable masks"
        if cause.startswith("not a mask"):
            kind = "grey masks"
        elif case.classes.is_multiclass and cause.startswith(_WRONG_CLASSES):
            kind = "masks of other classes"
        defects.append((kind, str(error)))
    defects = defects or [("masks of another size than their image", reason)]
    findings += [Finding(kind, message, True, (case.id,)) for kind, message in defects]
    return image


def _check_class_mask(case: Case, mask: np.ndarray) -> tuple[str, str] | None:
    """Kind of finding and reason, if a usable mask of several classes looks wrong."""
    if mask.any():
        return None
    return "empty masks", f"no pixel is other than {case.classes.names[0]}"


def _check_binary_mask(case: Case, mask: np.ndarray) -> tuple[str, str] | None:
    """Kind of finding and reason, if a usable binary mask looks wrong."""
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
    readable = [(case, case.thumbnail) for case in checked if case.thumbnail is not None]
    if not readable:
        return []
    cases_by_group = defaultdict(list)
    groups = same_pictures(np.stack([thumbnail for _, thumbnail in readable]))
    for (case, _), group in zip(readable, groups, strict=True):
        cases_by_group[group].append(case)
    findings = []
    for cases in cases_by_group.values():
        if len(cases) > 1:
            ids = tuple(case.id for case in cases)
            equal = len({case.pixel_hash for case in cases}) == 1
            kind = "cases of equal pictures" if equal else "cases of nearly equal pictures"
            how = "equal" if equal else "the same, or nearly, perhaps turned or mirrored"
            message = f"{', '.join(ids)}: their pictures are {how}; keep one, or leave it to splits"
            findings.append(Finding(kind, message, False, ids))
    return findings
