"""`Scan`: the cases of a folder and what is wrong with it; lists the folder's files."""

import os
import re
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seglab.core.errors import InputError, name_some
from seglab.data.cases import Case
from seglab.data.images import SUFFIXES

HIDDEN = (".", "__MACOSX", "@eaDir", "lost+found")
SECOND_FILE = "files are second ones of a name, of which one is taken"
_SPREADSHEETS = (".xlsx", ".xls", ".ods")
OTHER_FORMATS = (
    *(".avif", ".dcm", ".dicom", ".exr", ".heic", ".heif", ".mat", ".mha", ".nii"),
    *(".nii.gz", ".npy", ".npz", ".nrrd", ".psd", ".svg", ".xcf"),
)


@dataclass
class Scan:
    """Cases and defects found in a folder.

    Attributes:
        root: The folder.
        layout: Name of its layout, as in `conf/data/`.
        expected: How files of this layout are called.
        mask_suffix: What names of masks end with, from `data.mask_suffix`; None to recognise it.
        files: All files below the folder except hidden ones, sorted.
        cases: Cases with an image and a mask, sorted by id.
        errors: A line for each defect because of which training refuses the data.
        warnings: A line for each other defect.
        oddities: By case id, what is odd about a mask that can be read.
        not_taken: Files that are no part of a case, by the reason.
    """

    root: Path
    layout: str
    expected: str
    mask_suffix: str | None = None
    files: list[Path] = field(default_factory=list)
    cases: list[Case] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    oddities: dict[str, list[str]] = field(default_factory=dict)
    not_taken: dict[str, list[Path]] = field(default_factory=dict)

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

    def leave_out(self, reason: str, files: Iterable[Path]) -> None:
        """Notes files that are no part of a case; those without a reason are not named."""
        self.not_taken.setdefault(reason, []).extend(files)

    def warn_of_files_left_out(self) -> None:
        """Warns of all files that hold pictures or tables and were not taken, by the reason."""
        known = {p for case in self.cases for p in (case.image, case.mask, *case.tables)}
        known.update(*self.not_taken.values())
        for file in self.files:
            if file not in known and (reason := _find_reason(file)):
                self.leave_out(reason, [file])
        for reason, files in self.not_taken.items():
            if files and reason:
                self.warnings.append(f"{len(files)} {reason}: {name_some(sorted(files))}")


def _find_reason(file: Path) -> str | None:
    """Why a file of a data set is no part of a case; None for what nobody expects to be one."""
    name = file.name.lower()
    if name.endswith(_SPREADSHEETS) and name != "ph2_dataset.xlsx":
        return "spreadsheets are not read; save as CSV what names patients"
    if name.endswith(OTHER_FORMATS):
        return "files are of formats that are not read; save them as PNG or TIFF"
    return "pictures belong to no pair" if is_picture(file) else None


def list_files(folder: Path) -> list[Path]:
    """Lists all files below a folder except hidden ones, sorted.

    Links to folders are followed in the folder itself, but not further down. Raises an InputError
    if a folder cannot be read.
    """
    folders, files = [folder], []
    while folders:
        parent = folders.pop()
        try:
            with os.scandir(parent) as entries:
                visible = [entry for entry in entries if not entry.name.startswith(HIDDEN)]
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise InputError(
                f"{error.filename}: cannot be read ({error.strerror}); allow it, or move the "
                "folder out of the data"
            ) from error
        for entry in visible:
            with suppress(OSError):  # of links in a circle
                if entry.is_dir(follow_symlinks=parent is folder):
                    folders.append(Path(entry.path))
                elif entry.is_file():
                    files.append(Path(entry.path))
    return sorted(files, key=lambda path: path.parts)  # as paths compare, but faster


def is_picture(file: Path) -> bool:
    """Returns whether a file has a suffix of an image format that is read."""
    return file.suffix.lower() in SUFFIXES


def is_map(file: Path) -> bool:
    """Returns whether a file of the ISIC challenges holds superpixels or attributes of a lesion."""
    return re.search(r"_superpixels$|_attribute_", file.stem, re.IGNORECASE) is not None


def choose_file(files: list[Path], stem: str = "") -> Path:
    """The file of the expected name, of several the one of the best format."""
    return min(files, key=lambda f: (f.stem != stem, SUFFIXES.index(f.suffix.lower()), f.name))
