"""Collects the cases of a folder together with everything that is wrong with them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from seglab.data.cases import Case
from seglab.data.images import SUFFIXES


@dataclass(frozen=True)
class Finding:
    """A defect of a data set.

    Attributes:
        kind: The defect in the plural, to be counted: 'cases without a mask'.
        message: One line that names the file or the cases.
        is_error: Whether training refuses the data because of it; False for a warning.
        cases: Ids of the cases that it concerns; empty for a table or a folder.
    """

    kind: str
    message: str
    is_error: bool
    cases: tuple[str, ...] = ()


@dataclass
class Scan:
    """Cases and defects found in a folder, by names and tables; no image is opened.

    Attributes:
        root: The folder.
        layout: Name of its layout, as in `conf/data/`.
        example: What that layout's files are called, for messages.
        cases: Cases with an image and a mask, sorted by id.
        findings: Everything that is wrong.
        patients: Patient by case id, and the table that names it.
    """

    root: Path
    layout: str
    example: str
    cases: list[Case] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    patients: dict[str, tuple[str, Path]] = field(default_factory=dict)

    def add_error(self, kind: str, message: str, *cases: str) -> None:
        """Adds a finding because of which training refuses the data."""
        self.findings.append(Finding(kind, message, True, cases))

    def add_warning(self, kind: str, message: str, *cases: str) -> None:
        """Adds a finding that does not keep the data from being used."""
        self.findings.append(Finding(kind, message, False, cases))

    def list_pictures(self, folder: Path) -> list[Path]:
        """Lists all pictures below a folder, sorted; links to folders are not followed."""

        def add_unreadable(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError | NotADirectoryError):
                self.add_error(
                    "unreadable folders",
                    f"{error.filename}: cannot be read ({error.strerror}); allow it, or move the "
                    "folder out of the data",
                )

        files: list[Path] = []
        for parent, _, names in os.walk(folder, onerror=add_unreadable):
            try:
                files += filter(Path.is_file, (Path(parent, name) for name in names))
            except OSError as error:  # a folder may be listed but not entered
                add_unreadable(error)
        return sorted(
            file
            for file in files
            if file.suffix.lower() in SUFFIXES and not is_hidden(file, folder)
        )

    def add_pairs(self, images: dict[str, Path], masks: dict[str, list[Path]]) -> None:
        """Adds a case for each image that has a mask of the same name."""
        for id, image in images.items():
            if id in masks:
                self.cases.append(Case(id, image, choose_file(masks[id])))
            else:
                message = f"{image}: case {id} has no mask; expected {self.example}"
                self.add_error("cases without a mask", message, id)
        for id in sorted(masks.keys() - images.keys()):
            message = f"{masks[id][0]}: mask {id} has no image; expected {self.example}"
            self.add_warning("masks without an image", message, id)

    def compare_with_table(self, table: str, rows: Mapping[str, object], missing: str) -> None:
        """Adds warnings for cases that only the table or only the folder has.

        Args:
            table: Its files, for messages.
            rows: Rows by case id.
            missing: What a listed case lacks: 'a folder'.
        """
        seen = {case.id for case in self.cases}
        seen.update(id for finding in self.findings for id in finding.cases)
        # An empty row is a damaged one, whose id may be wrong.
        absent = sorted(id for id, row in rows.items() if row and id not in seen)
        unlisted = sorted(case.id for case in self.cases if case.id not in rows)
        if absent:
            self.add_warning(
                f"listed cases without {missing}",
                f"{table}: {len(absent)} of the listed cases are without {missing}, as in a "
                f"download that was cut short: {', '.join(absent)}",
                *absent,
            )
        if unlisted:
            self.add_warning(
                "cases that the table does not list",
                f"{table}: {len(unlisted)} cases are not listed: {', '.join(unlisted)}",
                *unlisted,
            )

    def assign_patients(self) -> None:
        """Adds patients to the cases, and warnings for ids that do not match."""
        if not self.patients:
            return
        files = ", ".join(sorted({str(file) for _, file in self.patients.values()}))
        self.compare_with_table(files, self.patients, "an image")
        for i, case in enumerate(self.cases):
            if case.id in self.patients:
                patient, file = self.patients[case.id]
                self.cases[i] = replace(case, patient=patient, tables=(*case.tables, file))


def is_hidden(path: Path, folder: Path) -> bool:
    """Whether a path below a folder is hidden, or what macOS adds to archives."""
    return any(part.startswith((".", "__MACOSX")) for part in path.relative_to(folder).parts)


def choose_file(files: list[Path], stem: str = "") -> Path:
    """The file of the expected name, of several the one of the best format."""
    return min(files, key=lambda f: (f.stem != stem, SUFFIXES.index(f.suffix.lower()), f.name))
