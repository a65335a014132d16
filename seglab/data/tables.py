"""Reads the patients of cases from the tables beside the images."""

import codecs
import csv
import io
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from seglab.core.errors import InputError
from seglab.data.cases import Case
from seglab.data.images import SUFFIXES
from seglab.data.scan import Scan

_TABLE_SUFFIXES = (".csv", ".tsv", ".tab", ".txt", "")  # Dataverse also leaves it away
# Headings, in small letters alone, the preferred first: those of ISIC, HAM10000, PAD-UFES-20, and
# what people write.
_ID_COLUMNS = (
    *("isicid", "imageid", "imagename", "image", "imgid", "img", "imagefile", "imagepath"),
    *("filename", "file", "filepath", "path", "caseid", "case", "id", "name"),
)
_PATIENT_COLUMNS = (
    *("patientid", "patient", "patientno", "patientnr", "patientnumber", "patientcode"),
    *("patientname", "subjectid", "subject", "participantid", "participant", "personid", "person"),
    *("pid", "ptid", "patid", "mrn"),
)
_LESION_COLUMNS = ("lesionid",)
_ABOUT_PATIENTS = re.compile(r"patient|subject|participant|person|lesion_id|\b(pid|mrn)\b", re.I)
_NO_PATIENT = {
    *("", "-", "--", "?", "na", "n/a", "#n/a", "<na>", "nan", "nil", "none", "null", "unknown"),
}


class _Row(NamedTuple):
    """What one line of a table states: a case, its patient and its lesion, empty if unknown."""

    path: Path
    line: int
    case: str
    patient: str
    lesion: str


def add_patients(scan: Scan) -> None:
    """Adds to the cases of a folder the patients that the tables in it name.

    A table has a column of cases, perhaps with folder and suffix, and one of patients or lesions.
    Where a row states the lesion alone, its patient is that of another row of this lesion; without
    one, the lesion counts as the patient. An error is added if a table is damaged, names no case,
    or contradicts itself or another; a warning if it seems to name patients but not of cases.
    """
    rows: list[_Row] = []
    for path in scan.files:
        try:
            rows += _read_rows(path, scan.warnings)
        except InputError as error:
            scan.errors.append(str(error))
    if not rows or not scan.cases:
        return
    patients = {row.lesion: row.patient for row in rows if row.lesion and row.patient}
    find_case = _index_cases(scan.cases)
    rows_by_case: dict[str | None, list[_Row]] = defaultdict(list)
    for row in rows:
        rows_by_case[find_case(row.case)].append(row)
    others = rows_by_case.pop(None, [])
    used = {row.path for rows_of_case in rows_by_case.values() for row in rows_of_case}
    for path in dict.fromkeys(row.path for row in others if row.path not in used):
        row = next(row for row in others if row.path == path)
        scan.errors.append(
            f"{path}: names patients, but of no case: it has {row.case}, the data "
            f"{scan.cases[0].id}; correct it, or move it out of the data"
        )
    for i, case in enumerate(scan.cases):
        rows_of_case = rows_by_case[case.id]
        stated = {row.patient or patients.get(row.lesion, row.lesion): row for row in rows_of_case}
        stated.pop("", None)
        if len(stated) > 1:
            (known, first), (patient, other) = [*stated.items()][:2]
            scan.errors.append(
                f"{other.path}: line {other.line} states that case {case.id} is of patient "
                f"{patient}, but {first.path} also states {known}; correct the one that is wrong"
            )
        tables = dict.fromkeys(row.path for row in rows_of_case)
        patient = next(iter(stated), "")
        scan.cases[i] = replace(case, patient=patient, tables=(*case.tables, *tables))


def _index_cases(cases: Sequence[Case]) -> Callable[[str], str | None]:
    """Returns a function from what a table calls a case to the case's id, None if it is unknown.

    A name may have more folders than the id, or fewer, but no other ones.
    """
    ids = {_list_tails(case.id)[0]: case.id for case in cases}
    ids_by_tail: dict[str, list[str]] = defaultdict(list)
    for case in cases:
        for tail in _list_tails(case.id):
            ids_by_tail[tail].append(case.id)

    def find_case(name: str) -> str | None:
        tails = _list_tails(name)
        for tail in tails:
            if tail in ids:
                return ids[tail]
        found = ids_by_tail.get(tails[0], [])
        return found[0] if len(found) == 1 else None

    return find_case


def _list_tails(name: str) -> list[str]:
    r"""Lists 'images/a/one', 'a/one' and 'one' for 'images/a/one.PNG' and 'images\a\one.PNG'."""
    path = PurePosixPath(unicodedata.normalize("NFC", name.replace("\\", "/")))
    parts = (path.with_suffix("") if path.suffix.lower() in SUFFIXES else path).parts
    return ["/".join(parts[i:]) for i in range(len(parts))] or [""]


def _read_rows(path: Path, warnings: list[str]) -> list[_Row]:
    """Reads the rows of a table; none if it is about something else."""
    if path.suffix.lower() not in _TABLE_SUFFIXES:
        return []
    remedy = "restore the file, or move it out of the data to go without it"
    try:
        with path.open("rb") as file:
            start = file.read(2**16)
            lines = _decode(start).splitlines()[:5]
            delimiter = max(",;\t", key="".join(lines[:1]).count)
            columns = _find_columns(next(csv.reader(lines, delimiter=delimiter), []))
            text = "" if columns is None else _decode(start + file.read())
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except (OSError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as a table ({error}); {remedy}") from error
    if columns is None:
        is_prose = path.suffix.lower() in (".txt", "")
        if not is_prose and _ABOUT_PATIENTS.search("\n".join(lines)):
            warnings.append(
                f"{path}: is not read, though it seems to name patients; expected a first line "
                "with a column of cases (such as image_id) and one of patients (patient_id)"
            )
        return []
    found = []
    for line, row in rows[1:]:
        if any(row):
            case = row[columns[0]] if len(row) == len(rows[0][1]) else ""
            if not case:
                raise InputError(
                    f"{path}: line {line} is no row of this table ({len(rows[0][1])} cells, with "
                    f"the name of a case); {remedy}"
                )
            owners = ("" if column is None else row[column] for column in columns[1:])
            known = ("" if owner.casefold() in _NO_PATIENT else owner for owner in owners)
            found.append(_Row(path, line, case, *known))
    return found


def _find_columns(header: list[str]) -> tuple[int, int | None, int | None] | None:
    """Finds the columns of cases, patients and lesions in a header; None if it has no such ones."""
    headings = [re.sub(r"[\W_]", "", cell.casefold()) for cell in header]

    def find(names: Sequence[str]) -> int | None:
        return next((headings.index(name) for name in names if name in headings), None)

    case, patient, lesion = map(find, (_ID_COLUMNS, _PATIENT_COLUMNS, _LESION_COLUMNS))
    return None if case is None or patient is lesion is None else (case, patient, lesion)


def _decode(content: bytes) -> str:
    """Decodes UTF-8, Excel's 'Unicode text', which is UTF-16, and what is neither as Latin-1."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content[: len(content) // 2 * 2].decode("utf-16", "replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")
