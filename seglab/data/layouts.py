"""Finds the cases of a data set by the names of its files.

`LAYOUTS` lists the supported layouts. To add one, write a function that adds cases and findings to
a `Scan`, list it there, and name a function such as `pairs_cases` in a file of `conf/data/`.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from seglab.core.errors import InputError
from seglab.data.cases import UNKNOWN, Case
from seglab.data.scan import Scan, choose_file, is_hidden
from seglab.data.tables import read_patients, read_ph2_table

log = logging.getLogger(__name__)

_PH2_IMAGES = "PH2 Dataset images"


def ph2_cases(root: str | Path) -> list[Case]:
    """Reads PH2 as distributed: a folder for each case, and `PH2_dataset.txt` or `.xlsx`.

    In every layout, patients are read from any CSV directly in the folder (for PH2, in the folder
    of its table) that has a column of case ids and one of patients or lesions, as the metadata of
    ISIC and HAM10000 have.

    Args:
        root: `PH2Dataset`, the folder above it, or the folder of the case folders.

    Returns:
        The cases, sorted by id. Listed cases without a folder, and folders without any picture
        are left out, and counted in the log.

    Raises:
        InputError: There is no case, a case lacks its image or mask, a folder cannot be read, or
            a table is damaged.
    """
    return _read_cases(root, "ph2")


def isic2018_cases(root: str | Path) -> list[Case]:
    """Reads ISIC challenge folders: `ISIC_0000000.jpg` and `ISIC_0000000_segmentation.png`.

    Only file names matter, so the challenges of 2016 to 2018 are read, whatever their folders are
    called. Arguments and errors are those of `ph2_cases`.
    """
    return _read_cases(root, "isic2018")


def pairs_cases(root: str | Path) -> list[Case]:
    """Reads `images/NAME.*` and `masks/NAME.*`; NAME, with its subfolder if any, is the id.

    Arguments and errors are those of `ph2_cases`.
    """
    return _read_cases(root, "pairs")


def find_cases(root: str | Path) -> list[Case]:
    """Reads a data set of any supported layout.

    Args:
        root: Its folder.

    Raises:
        InputError: No layout matches, or as in `ph2_cases`.
    """
    return _read_cases(root)


def scan_cases(root: str | Path, layout: str | None = None) -> Scan:
    """Lists the cases of a data set together with everything that is wrong.

    Args:
        root: Its folder.
        layout: Name of its layout; None to take the first of `LAYOUTS` that finds a case.

    Raises:
        InputError: No case is found.
    """
    root = Path(root)
    for name in LAYOUTS if layout is None else [layout]:
        example, find = LAYOUTS[name]
        scan = Scan(root, name, example)
        find(scan)
        if scan.cases or any(finding.is_error for finding in scan.findings):
            scan.assign_patients()
            scan.cases.sort(key=lambda case: case.id)
            return scan
    if layout is None:
        examples = ", ".join(f"{example} ({name})" for name, (example, _) in LAYOUTS.items())
        raise InputError(f"{root}: no data set of a known layout; expected one of {examples}")
    folder = root.absolute()
    problem = "holds no case" if folder.is_dir() else "is no folder"
    raise InputError(
        f"{folder} {problem} of layout {layout} (expected {LAYOUTS[layout][0]}); name the data's "
        "folder with data.root=..., unpack PH2 with 'python scripts/prepare_ph2.py', or go "
        "without it: data=synthetic"
    )


def _read_cases(root: str | Path, layout: str | None = None) -> list[Case]:
    """Returns the cases of a data set, and raises the first error of its scan."""
    scan = scan_cases(root, layout)
    for finding in scan.findings:
        if finding.is_error:
            raise InputError(finding.message)
    ids = {case.id for case in scan.cases}
    left_out = Counter[str]()
    for finding in scan.findings:
        if not finding.cases:
            log.warning("%s", finding.message)
        left_out[finding.kind] += sum(id not in ids for id in finding.cases)
    log.info("%s: %d cases", scan.root, len(scan.cases))
    patients = [case.patient for case in scan.cases if case.patient]
    if patients:
        n = len(set(patients))
        log.info("%s: %d patients are named, for %d cases", scan.root, n, len(patients))
    counts = [f"{n} {kind}" for kind, n in left_out.items() if n]
    if counts:
        log.info("%s: left out %s", scan.root, ", ".join(counts))
    return scan.cases


def _find_ph2_images(root: Path) -> Path | None:
    """The folder of PH2's case folders."""
    root = root.absolute()  # '.' has no name
    for folder in (root, root / "PH2Dataset"):
        if (folder / _PH2_IMAGES).is_dir():
            return folder / _PH2_IMAGES
    return root if next(root.glob("*/*_Dermoscopic_Image"), None) else None


def _scan_ph2(scan: Scan) -> None:
    images = _find_ph2_images(scan.root)
    if images is None:
        return
    folder = images.parent if images.name == _PH2_IMAGES else images
    table, diagnoses = read_ph2_table(folder, scan)
    if table is None:
        scan.add_warning(
            "missing tables",
            f"{folder}: no PH2_dataset.txt or .xlsx, so no diagnoses to stratify by",
        )
    scan.patients = read_patients(folder, scan)
    for entry in sorted(images.iterdir()):
        if not entry.is_dir() or is_hidden(entry, images):
            continue
        id = entry.name
        files = _find_ph2_pair(entry, scan)
        if files is not None:
            diagnosis = diagnoses.get(id, "")
            source = (table,) if table and diagnosis else ()
            scan.cases.append(Case(id, *files, diagnosis or UNKNOWN, tables=source))
    if diagnoses:
        scan.compare_with_table(str(table), diagnoses, "a folder")


def _find_ph2_pair(folder: Path, scan: Scan) -> tuple[Path, Path] | None:
    """Image and mask of one case folder, None where one is missing."""
    id = folder.name
    pictures = scan.list_pictures(folder)
    if not pictures:
        scan.add_warning(
            "folders without pictures",
            f"{folder}: holds no picture; put image and mask there or delete the folder",
            id,
        )
        return None
    found = []
    for part, kind, subfolder, stem in (
        ("image", "cases without an image", f"{id}_Dermoscopic_Image", id),
        ("mask", "cases without a mask", f"{id}_lesion", f"{id}_lesion"),
    ):
        candidates = [file for file in pictures if folder / subfolder in file.parents]
        if candidates:
            found.append(choose_file(candidates, stem))
        else:
            scan.add_error(
                kind,
                f"{folder}: case {id} has no {part}; expected {id}_Dermoscopic_Image/{id}.bmp "
                f"and {id}_lesion/{id}_lesion.bmp, put it there or delete the folder",
                id,
            )
    return (found[0], found[1]) if len(found) == 2 else None


def _scan_isic2018(scan: Scan) -> None:
    scan.patients = read_patients(scan.root, scan)
    images: dict[str, Path] = {}
    masks: dict[str, list[Path]] = {}
    for file in scan.list_pictures(scan.root):
        match = re.fullmatch(r"(.+)_segmentation", file.stem, re.IGNORECASE)
        if match:
            masks.setdefault(match[1], []).append(file)
        elif not re.match(r"ISIC_\d+", file.stem) or file.stem.lower().endswith("_superpixels"):
            continue
        elif file.stem in images:
            scan.add_error(
                "second cases of one name",
                f"{file}: a second case named {file.stem}, the first is {images[file.stem]}; "
                "rename or delete one",
                file.stem,
            )
        else:
            images[file.stem] = file
    scan.add_pairs(images, masks)


def _scan_pairs(scan: Scan) -> None:
    if not all((scan.root / part).is_dir() for part in ("images", "masks")):
        return
    scan.patients = read_patients(scan.root, scan)
    images, masks = (_group_by_name(scan, scan.root / part) for part in ("images", "masks"))
    scan.add_pairs({name: choose_file(files) for name, files in images.items()}, masks)


def _group_by_name(scan: Scan, folder: Path) -> dict[str, list[Path]]:
    """Pictures below a folder by their path without suffix."""
    files_by_name: dict[str, list[Path]] = {}
    for file in scan.list_pictures(folder):
        name = file.relative_to(folder).with_suffix("").as_posix()
        files_by_name.setdefault(name, []).append(file)
    return files_by_name


# By name, what the files are called and the function that finds the cases. In the order in which
# they are tried, because files of the others may also be called ISIC_....
LAYOUTS: dict[str, tuple[str, Callable[[Scan], None]]] = {
    "ph2": ("'PH2 Dataset images/IMD003/...'", _scan_ph2),
    "pairs": ("images/NAME.jpg, masks/NAME.png", _scan_pairs),
    "isic2018": ("ISIC_*.jpg and ISIC_*_segmentation.png", _scan_isic2018),
}
