"""Reads the patients of cases from the tables beside the images."""

import codecs
import csv
import io
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath

from seglab.core.errors import InputError
from seglab.data.cases import Case
from seglab.data.images import SUFFIXES

_TABLE_SUFFIXES = (".csv", ".tsv", ".tab", ".txt", "")  # Dataverse also leaves it away
# Headings, in small letters alone, the preferred first: those of ISIC, HAM10000, PAD-UFES-20, and
# what people write.
_ID_COLUMNS = (
    *("isicid", "imageid", "imagename", "image", "imgid", "img", "imagefile", "imagepath"),
    *("filename", "file", "filepath", "path", "caseid", "case", "id", "name"),
)
# One lesion is of one patient.
_PATIENT_COLUMNS = {
    "patient": (
        *("patientid", "patient", "patientno", "patientnr", "patientnumber", "patientcode"),
        *("patientname", "subjectid", "subject", "participantid", "participant", "personid"),
        "person",
    ),
    "lesion": ("lesionid",),
}
_ABOUT_PATIENTS = ("patient", "subject", "participant", "person", "lesion_id")
_HEADER_LINES = 5  # the header is one of these
_NO_PATIENT = {
    *("", "-", "--", "?", "na", "n/a", "#n/a", "<na>", "nan", "nil", "none", "null", "unknown"),
}

# Line number, the cells of all columns of ids, and by 'patient' or 'lesion' what the row states.
_Row = tuple[int, list[str], dict[str, str]]


def read_patients(
    files: Iterable[Path], cases: Sequence[Case]
) -> tuple[dict[str, tuple[str, tuple[Path, ...]]], list[str]]:
    """Reads the patients of cases from all tables among files.

    A table has a column of case ids, perhaps with folder and suffix, and one of patients or
    lesions. Where only the lesion of a case is stated, its patient is that of another case of the
    same lesion; without one, the lesion counts as the patient.

    Returns:
        By case id the patient, empty where no row states one, and the tables; and a line for each
        table that seems to name patients but not those of cases.

    Raises:
        InputError: A table is damaged, names no case, or contradicts itself or another.
    """
    warnings: list[str] = []
    rows_by_path = {path: rows for path in files if (rows := _read_rows(path, warnings))}
    find_case = _index_cases(cases if rows_by_path else ())
    # By case, the patient and the lesion with the file that states it. Rows of cases that are not
    # in the data count too: they may state the patient of a lesion.
    stated: dict[str, dict[str, tuple[str, Path]]] = defaultdict(dict)
    tables: dict[str, dict[Path, None]] = defaultdict(dict)
    for path, rows in rows_by_path.items():
        column = _choose_column(path, rows, find_case, cases)
        for line, names, values in rows:
            id = find_case(names[column]) or names[column]
            if not id:
                continue
            tables[id][path] = None
            for kind, value in values.items():
                known, other = stated[id].setdefault(kind, (value, path))
                if known != value:
                    raise InputError(
                        f"{path}: line {line} states that case {id} is of {kind} {value}, but "
                        f"{other} also states {known}; correct the one that is wrong"
                    )
    patients = _name_patients(stated)
    named = {c.id: (patients.get(c.id, ""), tuple(tables[c.id])) for c in cases if c.id in tables}
    return named, warnings


def _name_patients(stated: dict[str, dict[str, tuple[str, Path]]]) -> dict[str, str]:
    """Names the patient of each case from the patients and lesions that tables state."""
    patients = {id: values["patient"][0] for id, values in stated.items() if "patient" in values}
    lesions = {id: values["lesion"][0] for id, values in stated.items() if "lesion" in values}
    patients_by_lesion: dict[str, set[str]] = defaultdict(set)
    for id in patients.keys() & lesions.keys():
        patients_by_lesion[lesions[id]].add(patients[id])
    names = {*patients.values()}
    for id, lesion in lesions.items():
        alone = f"lesion {lesion}" if lesion in names else lesion
        # Of several patients, lesions are numbered for each patient anew.
        patient, *others = patients_by_lesion.get(lesion) or {alone}
        patients.setdefault(id, "" if others else patient)
    return patients


def _choose_column(
    path: Path, rows: list[_Row], find_case: Callable[[str], str | None], cases: Sequence[Case]
) -> int:
    """The column of ids that names most cases; raises an InputError if none names one."""
    columns = zip(*(names for _, names, _ in rows), strict=True)
    counts = [sum(find_case(name) is not None for name in column) for column in columns]
    if cases and not any(counts):
        raise InputError(
            f"{path}: names patients, but of no case: it has {' or '.join(rows[0][1])}, the data "
            f"{cases[0].id}; correct it, or move it out of the data"
        )
    return counts.index(max(counts))


def _index_cases(cases: Sequence[Case]) -> Callable[[str], str | None]:
    """Returns a function from what a table calls a case to the case's id, None if it is unknown.

    A name may have more folders than the id, or fewer, but no other ones.
    """
    ids: dict[str, str | None] = {}
    tails: dict[str, str | None] = {}
    for case in cases:
        whole, *_ = parts = _list_tails(case.id)
        ids[whole] = case.id if ids.get(whole, case.id) == case.id else None
        for tail in {*parts, _list_tails(case.image.name)[0]}:
            tails[tail] = case.id if tails.get(tail, case.id) == case.id else None

    def find_case(name: str) -> str | None:
        whole, *_ = parts = _list_tails(name)
        return next((ids[part] for part in parts if ids.get(part)), tails.get(whole))

    return find_case


def _list_tails(name: str) -> list[str]:
    """Lists 'images/a/one', 'a/one' and 'one' for the name 'Images/a/One.PNG', also of Windows."""
    path = PurePosixPath(unicodedata.normalize("NFC", name.replace("\\", "/")).casefold())
    parts = (path.with_suffix("") if path.suffix in SUFFIXES else path).parts
    return ["/".join(parts[i:]) for i in range(len(parts))] or [""]


def _read_rows(path: Path, warnings: list[str]) -> list[_Row]:
    """Reads the rows of a table; none if it is about something else."""
    if path.suffix.lower() not in _TABLE_SUFFIXES:
        return []
    remedy = "restore the file, or move it out of the data to go without it"
    try:
        with path.open("rb") as file:
            start = b"".join(file.readline(2**16) for _ in range(_HEADER_LINES))
            delimiter = _find_delimiter(path, _decode(start), warnings)
            text = _decode(start + file.read()) if delimiter else ""
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter or ",", strict=True)
        lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except (OSError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as a table ({error}); {remedy}") from error
    rows: list[_Row] = []
    header, columns = 0, None
    for line, row in lines:
        if columns is None:
            header, columns = len(row), _find_columns(row)
        elif any(row):
            ids, owners = columns
            if len(row) != header or not any(row[column] for column in ids):
                raise InputError(
                    f"{path}: line {line} is no row of this table ({header} cells, with the name "
                    f"of a case); {remedy}"
                )
            stated = {
                kind: [row[c] for c in of_kind if row[c].casefold() not in _NO_PATIENT]
                for kind, of_kind in owners.items()
            }
            # pandas writes numbers with a fraction where one is missing.
            values = {
                k: re.sub(r"^(\d+)\.0$", r"\1", cells[0]) for k, cells in stated.items() if cells
            }
            rows.append((line, [row[column] for column in ids], values))
    return rows


def _find_columns(row: list[str]) -> tuple[list[int], dict[str, list[int]]] | None:
    """Finds the columns of ids, and those of patients and lesions, if a row is the header."""
    headings = [re.sub(r"[\W_]", "", cell.casefold()) for cell in row]

    def find(names: Iterable[str]) -> list[int]:
        return [headings.index(name) for name in names if name in headings]

    ids, owners = find(_ID_COLUMNS), {kind: find(n) for kind, n in _PATIENT_COLUMNS.items()}
    return (ids, owners) if ids and any(owners.values()) else None


def _find_delimiter(path: Path, start: str, warnings: list[str]) -> str | None:
    """Finds the delimiter of a table in its first lines; None if it does not name patients."""
    # There may be a title before the header, or what Excel writes: sep=;
    lines = [line for line in start.splitlines() if line.strip()][:_HEADER_LINES]
    for line in lines:
        delimiter = max(",;\t|", key=line.count)
        if _find_columns(next(csv.reader([line], delimiter=delimiter))):
            return delimiter
    is_prose = path.suffix.lower() in (".txt", "")
    if not is_prose and any(word in "".join(lines[:1]).casefold() for word in _ABOUT_PATIENTS):
        warnings.append(
            f"{path}: is not read, though it seems to name patients; expected a column of cases "
            "(such as image_id or filename) and one of patients (patient_id)"
        )
    return None


def _decode(content: bytes) -> str:
    """Decodes UTF-8, Excel's 'Unicode text', which is UTF-16, and what is neither as Latin-1."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content[: len(content) // 2 * 2].decode("utf-16", "replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")
