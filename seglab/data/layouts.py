"""Finds the cases of a data set by the names of its files.

`LAYOUTS` lists the supported layouts. To add one, write a function that adds cases and errors to a
`Scan`, list it there, and name it in a file of `conf/data/`.
"""

import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from seglab.core.errors import InputError
from seglab.data.cases import UNKNOWN_DIAGNOSIS, Case
from seglab.data.images import SUFFIXES
from seglab.data.tables import read_patients, read_ph2_table

log = logging.getLogger(__name__)

_PH2_IMAGES = "PH2 Dataset images"
_HIDDEN = (".", "__MACOSX")


@dataclass
class Scan:
    """Cases and defects found in a folder.

    Attributes:
        root: The folder.
        layout: Name of its layout, as in `conf/data/`.
        cases: Cases with an image and a mask, sorted by id.
        errors: A line for each defect because of which training refuses the data.
        warnings: A line for each other defect.
        oddities: What the checker finds odd about a case, by id.
    """

    root: Path
    layout: str
    cases: list[Case] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    oddities: dict[str, list[str]] = field(default_factory=dict)

    def __str__(self) -> str:
        """Formats the findings for a terminal."""
        content = self.to_json()
        lines = [f"{self.root}: {len(self.cases)} good cases of layout {self.layout}"]
        lines += [f"  {n:4} {diagnosis}" for diagnosis, n in content["diagnoses"].items()]
        lines.append(f"patients named: {content['patients']}")
        for level in ("errors", "warnings"):
            lines.append(f"{level}: {len(content[level]) or 'none'}")
            lines += [f"  {' '.join(message.split())}" for message in content[level]]
        # File names need not be UTF-8.
        return "\n".join(lines).encode("utf-8", "backslashreplace").decode()

    def to_json(self) -> dict[str, Any]:
        """Converts the findings to plain containers; cases become their ids."""
        return {
            "root": str(self.root),
            "layout": self.layout,
            "cases": [case.id for case in self.cases],
            "diagnoses": dict(sorted(Counter(case.diagnosis for case in self.cases).items())),
            "patients": len({case.patient for case in self.cases} - {""}),
            "errors": self.errors,
            "warnings": self.warnings,
            "oddities": self.oddities,
        }


def find_cases(root: str | Path, layout: str | None = None) -> list[Case]:
    """Reads the cases of a data set.

    Args:
        root: Its folder. For PH2: `PH2Dataset`, the folder above it, or that of the case folders.
        layout: Name of its layout; None to take the first of `LAYOUTS` that finds a case.

    Returns:
        The cases, sorted by id.

    Raises:
        InputError: There is no case, a case lacks its image or mask, or a folder or table cannot
            be read.
    """
    scan = scan_cases(root, layout)
    if scan.errors:
        raise InputError(scan.errors[0])
    for warning in scan.warnings:
        log.warning("%s", warning)
    patients = len({case.patient for case in scan.cases} - {""})
    log.info("%s: %d cases, patients named: %d", scan.root, len(scan.cases), patients)
    return scan.cases


def scan_cases(root: str | Path, layout: str | None = None) -> Scan:
    """Lists the cases of a data set and everything that is wrong with it, as `find_cases` reads it.

    Raises an InputError if no case is found or a folder cannot be read.
    """
    root = Path(root)
    if layout is not None and layout not in tuple(LAYOUTS):
        raise InputError(f"data.cases.layout={layout}: expected one of {', '.join(LAYOUTS)}")
    expected = []
    for name in LAYOUTS if layout is None else [layout]:
        files, add_cases = LAYOUTS[name]
        expected.append(f"{files} ({name})")
        scan = Scan(root, name)
        add_cases(scan)
        if scan.cases or scan.errors:
            scan.cases.sort(key=lambda case: case.id)
            _warn_of_unlisted(scan)
            return scan
    problem = "holds no data set" if root.is_dir() else "is no folder"
    raise InputError(
        f"{root.absolute()} {problem} (expected {', '.join(expected)}); name the data's folder "
        "with data.root=..., unpack PH2 with 'python scripts/prepare_ph2.py', or go without it: "
        "data=synthetic"
    )


def _warn_of_unlisted(scan: Scan) -> None:
    """Warns if tables name the diagnosis or the patient of some cases only."""
    for name, unknown in (("diagnosis", UNKNOWN_DIAGNOSIS), ("patient", "")):
        unlisted = [case.id for case in scan.cases if getattr(case, name) == unknown]
        if 0 < len(unlisted) < len(scan.cases):
            scan.warnings.append(
                f"{scan.root}: no table names the {name} of {len(unlisted)} cases: "
                f"{', '.join(unlisted)}"
            )


def find_ph2_images(root: Path) -> Path | None:
    """Finds the folder of PH2's case folders at any depth: of several, the one with most cases."""
    root = root.absolute()  # '.' has no name
    counts: Counter[Path] = Counter()
    for folder in (root, root / "PH2Dataset"):  # perhaps a link, which is not followed below
        if (folder / _PH2_IMAGES).is_dir():
            counts[folder / _PH2_IMAGES] = 0
    for parent, folders, _ in os.walk(root):
        folders[:] = sorted(f for f in folders if not f.startswith(_HIDDEN))
        if Path(parent) != root and any(f.endswith("_Dermoscopic_Image") for f in folders):
            counts[Path(parent).parent] += 1
    return max(counts, key=counts.__getitem__, default=None)


def _scan_ph2(scan: Scan) -> None:
    """Scans PH2 as distributed: a folder for each case, and `PH2_dataset.txt`."""
    images = find_ph2_images(scan.root)
    if images is None:
        return
    tables = [f / "PH2_dataset.txt" for f in (images.parent, images, scan.root)]
    table = next(filter(Path.is_file, tables), tables[0])
    diagnoses: dict[str, str] = {}
    if table.is_file():
        try:
            diagnoses = read_ph2_table(table)
        except InputError as error:
            scan.errors.append(str(error))
    else:
        scan.warnings.append(f"{table}: missing, so there are no diagnoses to stratify by")
    case_folders = [f for f in sorted(images.iterdir()) if f.is_dir() and not _is_hidden(f, images)]
    for case_folder in case_folders:
        id = case_folder.name
        image, mask = (_find_ph2_file(case_folder, part, scan) for part in ("image", "mask"))
        if image is not None and mask is not None:
            diagnosis = diagnoses.get(id, UNKNOWN_DIAGNOSIS)
            used = (table,) if id in diagnoses else ()
            scan.cases.append(Case(id, image, mask, diagnosis, tables=used))
    absent = sorted(diagnoses.keys() - {f.name for f in case_folders})
    if absent:
        scan.warnings.append(
            f"{table}: {len(absent)} of the listed cases have no folder, as in a download that "
            f"was cut short: {', '.join(absent)}"
        )
    _add_patients(scan, table.parent)


def _find_ph2_file(folder: Path, part: str, scan: Scan) -> Path | None:
    """The image or the mask of a case folder; adds an error if there is none."""
    id = folder.name
    subfolder, stem = {"image": ("Dermoscopic_Image", id), "mask": ("lesion", f"{id}_lesion")}[part]
    candidates = _list_pictures(folder / f"{id}_{subfolder}")
    if candidates:
        return _choose_file(candidates, stem)
    scan.errors.append(
        f"{folder}: case {id} has no {part}; expected {id}_Dermoscopic_Image/{id}.bmp and "
        f"{id}_lesion/{id}_lesion.bmp, put it there or delete the folder"
    )
    return None


def _scan_isic2018(scan: Scan) -> None:
    """Scans the ISIC challenges of 2016 to 2018, whatever their folders are called."""
    images: dict[str, Path] = {}
    masks: dict[str, list[Path]] = {}
    for file in _list_pictures(scan.root):
        match = re.fullmatch(r"(.+)_segmentation", file.stem, re.IGNORECASE)
        if match:
            masks.setdefault(match[1], []).append(file)
        elif not re.match(r"ISIC_\d+", file.stem) or file.stem.lower().endswith("_superpixels"):
            continue
        elif file.stem in images:
            scan.errors.append(
                f"{file}: a second case named {file.stem}, the first is {images[file.stem]}; "
                "rename or delete one"
            )
        else:
            images[file.stem] = file
    _add_pairs(scan, images, masks)


def _scan_pairs(scan: Scan) -> None:
    """Scans two folders with files of the same names; a name's subfolder is part of the id."""
    if not all((scan.root / part).is_dir() for part in ("images", "masks")):
        return
    images, masks = (_group_by_name(scan.root / part) for part in ("images", "masks"))
    _add_pairs(scan, {name: _choose_file(files) for name, files in images.items()}, masks)


def _group_by_name(folder: Path) -> dict[str, list[Path]]:
    """Pictures below a folder by their path without suffix."""
    files_by_name: dict[str, list[Path]] = {}
    for file in _list_pictures(folder):
        name = file.relative_to(folder).with_suffix("").as_posix()
        files_by_name.setdefault(name, []).append(file)
    return files_by_name


def _add_pairs(scan: Scan, images: Mapping[str, Path], masks: Mapping[str, list[Path]]) -> None:
    """Adds a case for each image that has a mask of the same name."""
    for id, image in images.items():
        if id in masks:
            scan.cases.append(Case(id, image, _choose_file(masks[id])))
        else:
            expected = LAYOUTS[scan.layout][0]
            scan.errors.append(f"{image}: case {id} has no mask; expected {expected}")
    unused = sorted(str(masks[id][0]) for id in masks.keys() - images.keys())
    if unused:
        scan.warnings.append(f"{len(unused)} masks have no image: {', '.join(unused)}")
    _add_patients(scan, scan.root)


def _add_patients(scan: Scan, folder: Path) -> None:
    """Adds the patients that the CSV files in a folder name."""
    try:
        patients = read_patients(folder)
    except InputError as error:
        scan.errors.append(str(error))
        return
    for i, case in enumerate(scan.cases):
        if case.id in patients:
            patient, file = patients[case.id]
            scan.cases[i] = replace(case, patient=patient, tables=(*case.tables, file))


def _list_pictures(folder: Path) -> list[Path]:
    """Lists all pictures below a folder, sorted; links to folders are not followed."""

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise InputError(
                f"{error.filename}: cannot be read ({error.strerror}); allow it, or move the "
                "folder out of the data"
            )

    files: list[Path] = []
    for parent, _, names in os.walk(folder, onerror=refuse):
        try:
            files += filter(Path.is_file, (Path(parent, name) for name in names))
        except OSError as error:  # a folder may be listed but not entered
            refuse(error)
    return sorted(f for f in files if f.suffix.lower() in SUFFIXES and not _is_hidden(f, folder))


def _is_hidden(path: Path, folder: Path) -> bool:
    """Whether a path below a folder is hidden, or what macOS adds to archives."""
    return any(part.startswith(_HIDDEN) for part in path.relative_to(folder).parts)


def _choose_file(files: list[Path], stem: str = "") -> Path:
    """The file of the expected name, of several the one of the best format."""
    return min(files, key=lambda f: (f.stem != stem, SUFFIXES.index(f.suffix.lower()), f.name))


# By name, what the files are called and the function that finds the cases. In the order in which
# they are tried, because files of the others may also be called ISIC_....
LAYOUTS: dict[str, tuple[str, Callable[[Scan], None]]] = {
    "ph2": ("'PH2 Dataset images/IMD003/...'", _scan_ph2),
    "pairs": ("images/NAME.jpg, masks/NAME.png", _scan_pairs),
    "isic2018": ("ISIC_*.jpg and ISIC_*_segmentation.png", _scan_isic2018),
}
