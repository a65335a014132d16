"""Finds the cases of a data set by the names of its files.

`LAYOUTS` lists the supported layouts. To add one, write a function that adds cases and findings to
a `Scan`, list it there, and name a function such as `pairs_cases` in a file of `conf/data/`.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from seglab.core.errors import InputError
from seglab.data.cases import UNKNOWN, Case
from seglab.data.images import SUFFIXES
from seglab.data.scan import Scan, choose_file, is_hidden
from seglab.data.tables import PH2_DIAGNOSES, read_patients, read_ph2_table

log = logging.getLogger(__name__)

_PH2_IMAGES = "PH2 Dataset images"


@dataclass(frozen=True)
class Layout:
    """How a data set names and arranges its files.

    Attributes:
        name: As in `conf/data/`.
        example: What the files are called, for messages.
        matches: Whether a folder has this layout.
        scan: Adds the cases and findings of `scan.root` to the scan.
    """

    name: str
    example: str
    matches: Callable[[Path], bool]
    scan: Callable[[Scan], None]


def ph2_cases(root: str | Path) -> list[Case]:
    """Reads PH2 as distributed: a folder for each case, and `PH2_dataset.txt` or `.xlsx`.

    In every layout, patients are read from any CSV directly in the folder (for PH2, in the folder
    of its table) that has a column of case ids and one of patients or lesions, as the metadata of
    ISIC and HAM10000 have.

    Args:
        root: `PH2Dataset`, the folder above it, or the folder of the case folders.

    Returns:
        The cases, sorted by id. Listed cases without a folder, folders without any picture and
        stray files are left out, and counted in the log.

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
        layout: Name of its layout; None to recognise it.

    Raises:
        InputError: No layout matches, or there is no trace of a case.
    """
    root = Path(root)
    candidates = [x for x in LAYOUTS if (x.matches(root) if layout is None else x.name == layout)]
    if not candidates:
        examples = ", ".join(f"{known.example} ({known.name})" for known in LAYOUTS)
        raise InputError(f"{root}: no data set of a known layout; expected one of {examples}")
    chosen = candidates[0]
    scan = Scan(root, chosen.name, chosen.example)
    chosen.scan(scan)
    if not scan.cases and not any(finding.is_error for finding in scan.findings):
        folder = root.absolute()
        problem = "holds no case" if folder.is_dir() else "is no folder"
        raise InputError(
            f"{folder} {problem} of layout {chosen.name} (expected {chosen.example}); name the "
            "data's folder with data.root=..., unpack PH2 with 'python scripts/prepare_ph2.py', "
            "or go without it: data=synthetic"
        )
    scan.assign_patients()
    scan.cases.sort(key=lambda case: case.id)
    return scan


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
    left_out["stray files"] = scan.stray_files
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
    table, rows = read_ph2_table(folder, scan)
    if table is None:
        scan.add_warning(
            "missing tables",
            f"{folder}: no PH2_dataset.txt or .xlsx, so no diagnoses to stratify by",
        )
    scan.patients = read_patients(folder, scan)
    tables = {table, *(file for _, file in scan.patients.values())}
    for entry in sorted(images.iterdir()):
        if not entry.is_dir() or is_hidden(entry, images):
            scan.stray_files += entry not in tables
            continue
        id = entry.name
        scan.ids.add(id)
        files = _find_ph2_pair(entry, scan)
        if files is not None:
            row = dict(rows.get(id, {}))
            source = (table,) if table and row else ()
            diagnosis = PH2_DIAGNOSES[row.pop("clinical_diagnosis")] if row else UNKNOWN
            scan.cases.append(Case(id, *files, diagnosis, row, tables=source))
    if rows:
        scan.compare_with_table(str(table), rows, "a folder")


def _find_ph2_pair(folder: Path, scan: Scan) -> tuple[Path, Path] | None:
    """Image and mask of one case folder, None where one is missing."""
    id = folder.name
    files = scan.list_files(folder)
    pictures = [f for f in files if f.suffix.lower() in SUFFIXES and not is_hidden(f, folder)]
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
    roi = folder / f"{id}_roi"
    scan.stray_files += sum(roi not in file.parents for file in files) - len(found)
    return (found[0], found[1]) if len(found) == 2 else None


def _has_segmentations(root: Path) -> bool:
    return any(file.stem.lower().endswith("_segmentation") for file in root.rglob("*"))


def _scan_isic2018(scan: Scan) -> None:
    scan.patients = read_patients(scan.root, scan)
    tables = {file for _, file in scan.patients.values()}
    images: dict[str, Path] = {}
    masks: dict[str, list[Path]] = {}
    for file in scan.list_files(scan.root):
        match = re.fullmatch(r"(.+)_segmentation", file.stem, re.IGNORECASE)
        if is_hidden(file, scan.root):
            continue
        if file.suffix.lower() not in SUFFIXES or file.stem.lower().endswith("_superpixels"):
            scan.stray_files += file not in tables
        elif match:
            masks.setdefault(match[1], []).append(file)
        elif not re.match(r"ISIC_\d+", file.stem):
            scan.stray_files += 1
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


def _has_image_and_mask_folders(root: Path) -> bool:
    return (root / "images").is_dir() and (root / "masks").is_dir()


def _scan_pairs(scan: Scan) -> None:
    scan.patients = read_patients(scan.root, scan)
    files_by_name: dict[str, dict[str, list[Path]]] = {"images": {}, "masks": {}}
    for part, files in files_by_name.items():
        folder = scan.root / part
        for file in scan.list_files(folder):
            if is_hidden(file, folder):
                continue
            if file.suffix.lower() in SUFFIXES:
                name = file.relative_to(folder).with_suffix("").as_posix()
                files.setdefault(name, []).append(file)
            else:
                scan.stray_files += 1
    images = {name: choose_file(files) for name, files in files_by_name["images"].items()}
    scan.stray_files += sum(len(files) - 1 for files in files_by_name["images"].values())
    scan.add_pairs(images, files_by_name["masks"])


# In the order in which they are tried; the images of PH2 and pairs may be called ISIC_....
LAYOUTS = (
    Layout(
        "ph2",
        "'PH2 Dataset images/IMD003/...'",
        lambda root: _find_ph2_images(root) is not None,
        _scan_ph2,
    ),
    Layout("pairs", "images/NAME.jpg, masks/NAME.png", _has_image_and_mask_folders, _scan_pairs),
    Layout(
        "isic2018", "ISIC_*.jpg and ISIC_*_segmentation.png", _has_segmentations, _scan_isic2018
    ),
)
