"""Who the cases of a data set are, and where their files lie. Nothing is read here but tables.

Each layout is a function from a root folder to sorted `Case` records, over a scan that goes on
where the function raises. A new layout is a new pair of these; `cases:` in a file under
`conf/data/` names the function.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from seglab.core.errors import InputError
from seglab.data.classes import ONE_CLASS, Classes
from seglab.data.images import SUFFIXES
from seglab.data.tables import PH2_DIAGNOSES, read_patients, read_ph2_table

log = logging.getLogger(__name__)

UNKNOWN = "unknown"
_PH2_IMAGES = "PH2 Dataset images"
_PH2_FORM = "'PH2 Dataset images/IMD003/...'"


@dataclass(frozen=True)
class Case:
    """One image with its mask.

    Attributes:
        id: Unique in its data set.
        image: The image's file.
        mask: The mask's file.
        diagnosis: What splits are stratified by; 'unknown' where no table tells.
        criteria: What else the table says, by name.
        patient: Who the picture is of; empty where no table tells.
        tables: The files that diagnosis, criteria and patient were read from.
        classes: What the mask tells apart.
    """

    id: str
    image: Path
    mask: Path
    diagnosis: str = UNKNOWN
    criteria: dict[str, str] = field(default_factory=dict, compare=False)
    patient: str = ""
    tables: tuple[Path, ...] = field(default=(), compare=False)
    classes: Classes = field(default=ONE_CLASS, compare=False)


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with a data set.

    Attributes:
        kind: What, in the plural, to be counted: 'cases without a mask'.
        message: One line that names the file or the cases.
        bad: Whether it keeps cases from being used, so that runs refuse the data; otherwise it is
            worth a look.
        cases: Ids of the cases that it is about; empty where it is about none in particular.
    """

    kind: str
    message: str
    bad: bool
    cases: tuple[str, ...] = ()


@dataclass
class Scan:
    """What a folder holds by its names and tables; no picture has been opened.

    Attributes:
        root: The folder.
        layout: Which layout it has, as `conf/data/` calls it.
        cases: Those with an image and a mask, sorted by id.
        findings: Everything that is wrong.
        stray_files: How many files are no part of the data set.
    """

    root: Path
    layout: str
    cases: list[Case] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    stray_files: int = 0

    def bad(self, kind: str, message: str, *cases: str) -> None:
        """Adds a finding for which runs refuse the data."""
        self.findings.append(Finding(kind, message, True, cases))

    def suspicious(self, kind: str, message: str, *cases: str) -> None:
        """Adds a finding that is worth a look."""
        self.findings.append(Finding(kind, message, False, cases))


def ph2_cases(root: str | Path) -> list[Case]:
    """Reads PH2 as distributed: a folder a case, and `PH2_dataset.txt` or `.xlsx` where there.

    Patients are named, in every layout, by any CSV directly in the folder (for PH2 that of its
    table) that has a column of case ids and one of patients or lesions, as the metadata of ISIC
    and HAM10000 have.

    Args:
        root: `PH2Dataset`, the folder above it, or the folder of the case folders.

    Returns:
        The cases, sorted by id. Listed cases without a folder, folders without any picture and
        stray files are left out, and counted in the log.

    Raises:
        InputError: No case there, a case without its image or mask, a folder that cannot be read,
            or a damaged table.
    """
    return _strict(_scan_ph2(Path(root)))


def isic2018_cases(root: str | Path) -> list[Case]:
    """Reads ISIC challenge folders: `ISIC_0000000.jpg` and `ISIC_0000000_segmentation.png`.

    The files are told apart by their names alone, so the challenges of 2016 to 2018 are read,
    whatever their folders are called. Arguments and errors are those of `ph2_cases`.
    """
    return _strict(_scan_isic2018(Path(root)))


def pairs_cases(root: str | Path) -> list[Case]:
    """Reads `images/NAME.*` and `masks/NAME.*`; NAME, with its subfolder if any, is the id.

    Arguments and errors are those of `ph2_cases`.
    """
    return _strict(_scan_pairs(Path(root)))


def find_cases(root: str | Path) -> list[Case]:
    """Reads a data set of any supported layout, recognised by its form.

    Args:
        root: Its folder.

    Raises:
        InputError: No layout fits, or what the layout's own function raises.
    """
    return _strict(scan_cases(root))


def with_classes(cases: list[Case], classes: Classes) -> list[Case]:
    """The same cases, whose masks tell other classes apart."""
    return [replace(case, classes=classes) for case in cases] if classes.is_multiclass else cases


def scan_cases(root: str | Path) -> Scan:
    """Does what `find_cases` does, but gathers what is wrong where that raises.

    Args:
        root: As there.

    Raises:
        InputError: No layout fits, or there is no trace of a case.
    """
    root = Path(root)
    if _find_ph2(root) is not None:
        return _scan_ph2(root)
    if (root / "images").is_dir() and (root / "masks").is_dir():
        return _scan_pairs(root)
    if any(re.search(r"_segmentation$", file.stem, re.IGNORECASE) for file in root.rglob("*")):
        return _scan_isic2018(root)
    raise InputError(
        f"{root}: no data set of a known layout; expected PH2's folders, ISIC's "
        "ISIC_*_segmentation.png, or images/ and masks/"
    )


def _strict(scan: Scan) -> list[Case]:
    for finding in scan.findings:
        if finding.bad:
            raise InputError(finding.message)
    there = {case.id for case in scan.cases}
    left_out = Counter[str]()
    for finding in scan.findings:
        if not finding.cases:
            log.warning("%s", finding.message)
        left_out[finding.kind] += sum(id not in there for id in finding.cases)
    left_out["stray files"] = scan.stray_files
    log.info("%s: %d cases", scan.root, len(scan.cases))
    patients = [case.patient for case in scan.cases if case.patient]
    if patients:
        n = len(set(patients))
        log.info("%s: %d patients are named, for %d cases", scan.root, n, len(patients))
    counts = [f"{n} {what}" for what, n in left_out.items() if n]
    if counts:
        log.info("%s: left out %s", scan.root, ", ".join(counts))
    return scan.cases


def _scan_ph2(root: Path) -> Scan:
    scan = Scan(root, "ph2")
    images = _find_ph2(root)
    if images is None:
        raise InputError(_nothing_in(root, "PH2", _PH2_FORM))
    folder = images.parent if images.name == _PH2_IMAGES else images
    table, rows = read_ph2_table(folder, scan.bad)
    if table is None:
        scan.suspicious(
            "missing tables",
            f"{folder}: no PH2_dataset.txt or .xlsx, so no diagnoses to stratify by",
        )
    patients = read_patients(folder, scan.bad)
    tables = {table, *(file for _, file in patients.values())}
    seen = set()
    for entry in sorted(images.iterdir()):
        if not entry.is_dir() or _is_litter(entry, images):
            scan.stray_files += entry not in tables
            continue
        seen.add(entry.name)
        pair = _ph2_pair(entry, scan)
        if pair is not None:
            row = dict(rows.get(entry.name, {}))
            source = (table,) if table and row else ()
            diagnosis = PH2_DIAGNOSES[row.pop("clinical_diagnosis")] if row else UNKNOWN
            scan.cases.append(Case(entry.name, *pair, diagnosis, row, tables=source))
    if rows:
        _compare(str(table), rows, seen, "a folder", scan)
    return _finished(scan, patients, seen, "PH2", _PH2_FORM)


def _ph2_pair(folder: Path, scan: Scan) -> tuple[Path, Path] | None:
    """Image and mask of one case folder, None where one is missing."""
    id = folder.name
    files = _files(folder, scan)
    pictures = [f for f in files if f.suffix.lower() in SUFFIXES and not _is_litter(f, folder)]
    if not pictures:
        scan.suspicious(
            "folders without pictures",
            f"{folder}: holds no picture; put image and mask there or delete the folder",
            id,
        )
        return None
    found = []
    for part, kind, name, stem in (
        ("image", "cases without an image", f"{id}_Dermoscopic_Image", id),
        ("mask", "cases without a mask", f"{id}_lesion", f"{id}_lesion"),
    ):
        candidates = [file for file in pictures if folder / name in file.parents]
        if candidates:
            found.append(_preferred(candidates, stem))
        else:
            scan.bad(
                kind,
                f"{folder}: case {id} has no {part}; expected {id}_Dermoscopic_Image/{id}.bmp "
                f"and {id}_lesion/{id}_lesion.bmp, put it there or delete the folder",
                id,
            )
    roi = folder / f"{id}_roi"
    scan.stray_files += sum(roi not in file.parents for file in files) - len(found)
    return (found[0], found[1]) if len(found) == 2 else None


def _scan_isic2018(root: Path) -> Scan:
    scan = Scan(root, "isic2018")
    patients = read_patients(root, scan.bad)
    tables = {file for _, file in patients.values()}
    images: dict[str, Path] = {}
    masks: dict[str, list[Path]] = {}
    for file in _files(root, scan):
        match = re.fullmatch(r"(.+)_segmentation", file.stem, re.IGNORECASE)
        if _is_litter(file, root):
            continue
        if file.suffix.lower() not in SUFFIXES or file.stem.lower().endswith("_superpixels"):
            scan.stray_files += file not in tables
        elif match:
            masks.setdefault(match[1], []).append(file)
        elif not re.match(r"ISIC_\d+", file.stem):
            scan.stray_files += 1
        elif file.stem in images:
            scan.bad(
                "second cases of one name",
                f"{file}: a second case named {file.stem}, the first is {images[file.stem]}; "
                "rename or delete one",
                file.stem,
            )
        else:
            images[file.stem] = file
    expected = "ISIC_*.jpg and ISIC_*_segmentation.png"
    return _joined(scan, images, masks, patients, "ISIC", expected)


def _scan_pairs(root: Path) -> Scan:
    scan = Scan(root, "pairs")
    patients = read_patients(root, scan.bad)
    found: dict[str, dict[str, list[Path]]] = {"images": {}, "masks": {}}
    for part, named in found.items():
        for file in _files(root / part, scan):
            if _is_litter(file, root / part):
                continue
            if file.suffix.lower() in SUFFIXES:
                name = file.relative_to(root / part).with_suffix("").as_posix()
                named.setdefault(name, []).append(file)
            else:
                scan.stray_files += 1
    images = {name: _preferred(files) for name, files in found["images"].items()}
    scan.stray_files += sum(len(files) - 1 for files in found["images"].values())
    expected = "images/NAME.jpg, masks/NAME.png"
    return _joined(scan, images, found["masks"], patients, "pairs", expected)


def _joined(
    scan: Scan,
    images: dict[str, Path],
    masks: dict[str, list[Path]],
    patients: dict[str, tuple[str, Path]],
    layout: str,
    expected: str,
) -> Scan:
    """Cases of the images and of the masks of the same name."""
    for id, image in images.items():
        if id in masks:
            scan.stray_files += len(masks[id]) - 1
            scan.cases.append(Case(id, image, _preferred(masks[id])))
        else:
            message = f"{image}: case {id} has no mask; expected {expected}"
            scan.bad("cases without a mask", message, id)
    for id in sorted(masks.keys() - images.keys()):
        scan.suspicious(
            "masks without an image",
            f"{masks[id][0]}: mask {id} has no image; expected {expected}",
            id,
        )
    return _finished(scan, patients, set(images), layout, expected)


def _finished(
    scan: Scan,
    patients: dict[str, tuple[str, Path]],
    seen: set[str],
    layout: str,
    expected: str,
) -> Scan:
    """Names the patients, and sorts the cases.

    Args:
        scan: With all cases.
        patients: Patient and table by case id.
        seen: Ids of all cases, with those that are not whole.
        layout: For the message where there is nothing.
        expected: The same.
    """
    if not scan.cases and not any(finding.bad for finding in scan.findings):
        raise InputError(_nothing_in(scan.root, layout, expected))
    if patients:
        files = ", ".join(sorted({str(file) for _, file in patients.values()}))
        _compare(files, patients, seen, "an image", scan)
    for i, case in enumerate(scan.cases):
        if case.id in patients:
            patient, file = patients[case.id]
            scan.cases[i] = replace(case, patient=patient, tables=(*case.tables, file))
    scan.cases.sort(key=lambda case: case.id)
    return scan


def _compare(
    table: str, listed: Mapping[str, object], seen: set[str], what: str, scan: Scan
) -> None:
    """Holds a table's cases against those that are there."""
    # An empty row is a damaged one: what stands there for an id may be none.
    missing = sorted(id for id, row in listed.items() if row and id not in seen)
    unlisted = sorted(case.id for case in scan.cases if case.id not in listed)
    if missing:
        scan.suspicious(
            f"listed cases without {what}",
            f"{table}: {len(missing)} of the listed cases are without {what}, as in a download "
            f"that was cut short: {', '.join(missing)}",
            *missing,
        )
    if unlisted:
        scan.suspicious(
            "cases that the table does not list",
            f"{table}: {len(unlisted)} cases are not listed: {', '.join(unlisted)}",
            *unlisted,
        )


def _find_ph2(root: str | Path) -> Path | None:
    root = Path(root).absolute()  # '.' has no name to tell the folder by
    for folder in (root, root / "PH2Dataset"):
        if (folder / _PH2_IMAGES).is_dir():
            return folder / _PH2_IMAGES
    return root if next(root.glob("*/*_Dermoscopic_Image"), None) else None


def _nothing_in(root: str | Path, layout: str, expected: str) -> str:
    folder = Path(root).absolute()
    what = "holds no case" if folder.is_dir() else "is no folder"
    return (
        f"{folder} {what} of layout {layout} (expected {expected}); name the data's folder with "
        "data.root=..., unpack PH2 with 'python scripts/prepare_ph2.py', or go without it: "
        "data=synthetic"
    )


def _files(folder: Path, scan: Scan) -> list[Path]:
    """All files below a folder, sorted; links to folders are not followed."""

    def unreadable(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            scan.bad(
                "unreadable folders",
                f"{error.filename}: cannot be read ({error.strerror}); allow it, or move the "
                "folder out of the data",
            )

    files: list[Path] = []
    for parent, _, names in os.walk(folder, onerror=unreadable):
        try:
            files += filter(Path.is_file, (Path(parent, name) for name in names))
        except OSError as error:  # a folder may be listed that must not be entered
            unreadable(error)
    return sorted(files)


def _is_litter(path: Path, folder: Path) -> bool:
    """Whether it is what macOS leaves behind."""
    return any(part.startswith((".", "__MACOSX")) for part in path.relative_to(folder).parts)


def _preferred(files: list[Path], stem: str = "") -> Path:
    """The file that is named as it should be, in the best format."""
    return min(files, key=lambda f: (f.stem != stem, SUFFIXES.index(f.suffix.lower()), f.name))
