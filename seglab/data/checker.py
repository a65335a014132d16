"""Looks a whole data set over and says everything that is wrong with it at once."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from seglab.core.errors import InputError
from seglab.core.files import hash_json
from seglab.data.cache import read_pair
from seglab.data.cases import Case, Finding, scan_cases, with_classes
from seglab.data.classes import ONE_CLASS, Classes
from seglab.data.duplicates import same_pictures, thumbnail
from seglab.data.images import read_image, read_mask


@dataclass(frozen=True)
class Report:
    """What a data set is worth.

    Attributes:
        root: Its folder.
        layout: Which layout it has, as `conf/data/` calls it.
        cases: Those that nothing bad was found about.
        findings: Everything that is wrong.
        stray_files: How many files are no part of the data set.
    """

    root: Path
    layout: str
    cases: list[Case]
    findings: list[Finding]
    stray_files: int

    @property
    def bad(self) -> list[Finding]:
        """The findings for which runs refuse the data."""
        return [finding for finding in self.findings if finding.bad]

    @property
    def suspicious(self) -> list[Finding]:
        """The findings that are worth a look."""
        return [finding for finding in self.findings if not finding.bad]

    @property
    def diagnoses(self) -> dict[str, int]:
        """How many good cases there are of each diagnosis."""
        return dict(sorted(Counter(case.diagnosis for case in self.cases).items()))

    @property
    def patients(self) -> int:
        """How many patients the good cases name."""
        return len({case.patient for case in self.cases} - {""})

    def __str__(self) -> str:
        """The lines to show."""
        lines = [f"{self.root}: {len(self.cases)} good cases of layout {self.layout}"]
        lines += [f"  {n:4} {diagnosis}" for diagnosis, n in self.diagnoses.items()]
        lines.append(f"patients named: {self.patients}")
        for level, findings in (("bad", self.bad), ("suspicious", self.suspicious)):
            lines.append(f"{level}: {len(findings) or 'nothing'}")
            by_kind = defaultdict(list)
            for finding in findings:
                by_kind[finding.kind].append(finding)
            for kind, alike in by_kind.items():
                lines.append(f"  {sum(len(finding.cases) or 1 for finding in alike)} {kind}")
                lines += [f"    {' '.join(finding.message.split())}" for finding in alike]
        lines.append(f"stray files: {self.stray_files}")
        # File names need not be UTF-8.
        return "\n".join(lines).encode("utf-8", "backslashreplace").decode()

    def to_json(self) -> dict[str, Any]:
        """The same in plain containers; cases are their ids."""
        return {
            "root": str(self.root),
            "layout": self.layout,
            "cases": [case.id for case in self.cases],
            "diagnoses": self.diagnoses,
            "patients": self.patients,
            "findings": [asdict(finding) for finding in self.findings],
            "stray_files": self.stray_files,
        }


def check_data(root: str | Path, classes: Classes = ONE_CLASS) -> Report:
    """Reads every image and every mask of a data set of any supported layout.

    Args:
        root: Its folder.
        classes: What its masks tell apart.

    Raises:
        InputError: There is no data set.
    """
    scan = scan_cases(root)
    scan.cases = with_classes(scan.cases, classes)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [pool.submit(_look, case) for case in scan.cases]
        try:
            looks = [j.result() for j in tqdm(jobs, "checking cases", unit="case", disable=None)]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    findings = scan.findings + [finding for found, _, _ in looks for finding in found]
    there = {number for _, _, numbers in looks for number in numbers}
    if classes.is_multiclass:
        for number, name in enumerate(classes.names):
            if number not in there:
                message = (
                    f"{root}: no mask holds {name}, class {number}; leave it out if it is none"
                )
                findings.append(Finding("classes in no mask", message, False))
    findings += _duplicates(
        {
            case.id: picture
            for case, (_, picture, _) in zip(scan.cases, looks, strict=True)
            if picture
        }
    )
    bad = {id for finding in findings if finding.bad for id in finding.cases}
    good = [case for case in scan.cases if case.id not in bad]
    return Report(scan.root, scan.layout, good, findings, scan.stray_files)


def _look(case: Case) -> tuple[list[Finding], tuple[np.ndarray, str] | None, set[int]]:
    """What is wrong with a case's files, as far as they can be read.

    Returns:
        Findings; thumbnail and hash of its image; of several classes the numbers in its mask.
    """
    image: np.ndarray | None
    numbers = set[int]()
    try:
        image, mask = read_pair(case)
    except InputError as error:
        image, findings = _refused(case, str(error))
    else:
        findings = _odd(case, mask)
        if case.classes.is_multiclass:
            numbers = {*np.unique(mask).tolist()}
    if image is None:
        return findings, None, numbers
    pixels = hash_json([image.shape, hashlib.sha256(image.data).hexdigest()])
    return findings, (thumbnail(image), pixels), numbers


def _refused(case: Case, why: str) -> tuple[np.ndarray | None, list[Finding]]:
    """What is wrong with a pair that is refused, with both of its files; the image if readable."""
    image = None
    findings = []
    try:
        image = read_image(case.image)
    except InputError as error:
        findings.append(Finding("unreadable images", str(error), True, (case.id,)))
    try:
        read_mask(case.mask, case.classes)
    except InputError as error:
        reason = str(error).removeprefix(f"{case.mask}: ")
        kind = "grey masks" if reason.startswith("not a mask") else "unreadable masks"
        if case.classes.is_multiclass and reason.startswith(
            ("holds", "is coloured", "has no colours")
        ):
            kind = "masks of other classes"
        findings.append(Finding(kind, str(error), True, (case.id,)))
    if not findings:
        findings.append(Finding("masks of another size than their image", why, True, (case.id,)))
    return image, findings


def _odd(case: Case, mask: np.ndarray) -> list[Finding]:
    """What is strange about a mask that can be used."""
    if case.classes.is_multiclass:
        if mask.any():
            return []
        what = f"no pixel is other than {case.classes.names[0]}"
        return [
            Finding(
                "empty masks", f"{case.mask}: {what}; see whether it is right", False, (case.id,)
            )
        ]
    # No false alarm over 140 masks of PH2, 160 of ISIC and 80 of people; each is found inverted.
    height, width = mask.shape
    y, x = max(1, height // 10), max(1, width // 10)
    corners = [mask[:y, :x], mask[:y, -x:], mask[-y:, :x], mask[-y:, -x:]]
    middle = mask[height // 4 : height - height // 4, width // 4 : width - width // 4]
    if not mask.any():
        kind, what = "empty masks", "no pixel is lesion"
    elif mask.all():
        kind, what = "full masks", "every pixel is lesion"
    elif np.mean(corners) > middle.mean():
        kind, what = "inverted masks", "the corners are lesion more than the middle, as if inverted"
    else:
        return []
    return [Finding(kind, f"{case.mask}: {what}; see whether it is right", False, (case.id,))]


def _duplicates(pictures: dict[str, tuple[np.ndarray, str]]) -> list[Finding]:
    """Cases of the same picture, as splits see it, from thumbnails and hashes by id."""
    if not pictures:
        return []
    groups = defaultdict(list)
    thumbnails = np.stack([thumbnail for thumbnail, _ in pictures.values()])
    for id, group in zip(pictures, same_pictures(thumbnails), strict=True):
        groups[group].append(id)
    findings = []
    for ids in groups.values():
        if len(ids) > 1:
            equal = len({pictures[id][1] for id in ids}) == 1
            kind = "cases of equal pictures" if equal else "cases of nearly equal pictures"
            how = "equal" if equal else "the same, or nearly, perhaps turned or mirrored"
            message = f"{', '.join(ids)}: their pictures are {how}; keep one, or leave it to splits"
            findings.append(Finding(kind, message, False, tuple(ids)))
    return findings
