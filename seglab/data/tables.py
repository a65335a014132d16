"""Reads the tables beside the images: PH2's diagnoses, and the patients of CSV files."""

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from seglab.core.errors import InputError
from seglab.data.images import SUFFIXES

PH2_DIAGNOSES = {"0": "common nevus", "1": "atypical nevus", "2": "melanoma"}
_PH2_CELLS = 10  # name, two diagnoses, six criteria, colours
# As in the metadata of ISIC and HAM10000, the preferred first. One lesion is of one patient.
_ID_COLUMNS = ("isic_id", "image_id", "image_name", "image", "id", "name")
_PATIENT_COLUMNS = ("patient_id", "patient", "lesion_id")


def read_ph2_table(path: Path) -> dict[str, str]:
    """Reads `PH2_dataset.txt`: diagnoses by case id; raises an InputError if it is damaged."""
    remedy = "restore the file, or delete it to go without diagnoses"
    try:
        lines = path.read_text("latin-1").splitlines()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error
    diagnoses: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        # Cells are separated by '||', the criteria by '|'.
        cells = [cell.strip() for cell in line.strip().strip("|").replace("||", "|").split("|")]
        if "|" not in line or cells[0] == "Name":
            continue
        if len(cells) != _PH2_CELLS or cells[2] not in PH2_DIAGNOSES or cells[0] in diagnoses:
            raise InputError(
                f"{path}: line {number} is no row of PH2's table (name, diagnosis 0 to 2, six "
                f"criteria, colours, each name once); {remedy}"
            )
        diagnoses[cells[0]] = PH2_DIAGNOSES[cells[2]]
    if not diagnoses:
        raise InputError(f"{path}: holds no row of PH2's table; {remedy}")
    return diagnoses


def read_patients(folder: Path) -> dict[str, tuple[str, Path]]:
    """Reads every CSV in a folder that has a column of case ids and one of patients or lesions.

    Returns by case id the patient, empty where no row names one, and the table. Raises an
    InputError if a CSV is damaged or two rows name different patients of a case.
    """
    patients: dict[str, tuple[str, Path]] = {}
    for path in sorted(folder.glob("*.[cC][sS][vV]")):
        if not path.is_file() or path.name.startswith("."):
            continue
        for line, id, patient in _read_patient_rows(path):
            known_patient, file = patients.get(id, (patient, path))
            if patient and known_patient and patient != known_patient:
                raise InputError(
                    f"{path}: line {line} states that case {id} is of patient {patient}, but "
                    f"{file} also states {known_patient}; correct the one that is wrong"
                )
            patients[id] = (known_patient or patient, path)
    return patients


def _read_patient_rows(path: Path) -> Iterable[tuple[int, str, str]]:
    """Yields line number, case id and patient; nothing from a table of something else."""
    remedy = "restore the file, or move it elsewhere to go without it"
    try:
        text = path.read_bytes().decode("utf-8-sig")
        # Excel writes semicolons where numbers have a comma.
        delimiter = max(",;\t", key=text.partition("\n")[0].count)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as CSV in UTF-8 ({error}); {remedy}") from error
    header = [cell.lower() for cell in rows[0][1]] if rows else []
    id_columns, patient_columns = (
        [header.index(name) for name in names if name in header]
        for names in (_ID_COLUMNS, _PATIENT_COLUMNS)
    )
    if not id_columns or not patient_columns:
        return
    for line, row in rows[1:]:
        if not any(row):
            continue
        name = row[id_columns[0]] if len(row) == len(header) else ""
        if not name:
            raise InputError(
                f"{path}: line {line} is no row of this table ({len(header)} cells, with the name "
                f"of a case); {remedy}"
            )
        suffix = Path(name).suffix
        id = name.removesuffix(suffix) if suffix.lower() in SUFFIXES else name
        yield line, id, next((row[column] for column in patient_columns if row[column]), "")
