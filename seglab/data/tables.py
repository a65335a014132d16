"""Reads the tables beside the images: PH2's diagnoses, and the patients of a CSV."""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import zipfile
from collections.abc import Iterable
from pathlib import Path

from seglab.data.images import SUFFIXES
from seglab.data.scan import Scan

PH2_DIAGNOSES = {"0": "common nevus", "1": "atypical nevus", "2": "melanoma"}
_TXT_CELLS = 10  # name, two diagnoses, six criteria, colours
# PH2's table takes 20 kB, 200 rows and 17 columns.
_MAX_BYTES, _MAX_ROWS, _MAX_COLUMNS = 2**20, 5_000, 50
# As in the metadata of ISIC and HAM10000, the preferred first. One lesion is of one patient.
_ID_COLUMNS = ("isic_id", "image_id", "image_name", "image", "id", "name")
_PATIENT_COLUMNS = ("patient_id", "patient", "lesion_id")


def read_ph2_table(folder: Path, scan: Scan) -> tuple[Path | None, dict[str, str]]:
    """Reads PH2's table: the text file, or without it the workbook.

    Args:
        folder: The folder that holds the table.
        scan: Takes an error for each damaged row.

    Returns:
        The table's file, None if there is none, and diagnoses by case id, empty for damaged rows.
    """
    remedy = "restore the file, or delete it to go without diagnoses"
    for name, file_type, read_rows in (
        ("PH2_dataset.txt", "text", _read_txt_rows),
        ("PH2_dataset.xlsx", "a workbook", _read_xlsx_rows),
    ):
        path = folder / name
        if not path.is_file():
            continue
        try:
            rows = list(read_rows(path))
        except Exception as error:  # zip, XML and openpyxl's own kinds
            message = f"{path}: cannot be read as {file_type} ({error}); {remedy}"
            scan.add_error("damaged tables", message)
            return path, {}
        diagnoses: dict[str, str] = {}
        for position, id, diagnosis in rows:
            if diagnosis in PH2_DIAGNOSES and id not in diagnoses:
                diagnoses[id] = PH2_DIAGNOSES[diagnosis]
            else:
                scan.add_error(
                    "damaged table rows",
                    f"{path}: {position} is no row of PH2's table (name, diagnosis 0 to 2, six "
                    f"criteria, colours, each name once); {remedy}",
                )
                diagnoses.setdefault(id, "")
        if not diagnoses:
            scan.add_error("damaged tables", f"{path}: holds no row of PH2's table; {remedy}")
        return path, diagnoses
    return None, {}


def _read_txt_rows(path: Path) -> Iterable[tuple[str, str, str]]:
    """Yields position, case id and number of the diagnosis, which is empty in damaged rows."""
    if path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"larger than {_MAX_BYTES:,} bytes")
    for number, line in enumerate(path.read_text("latin-1").splitlines(), 1):
        # Cells are separated by '||', the criteria by '|'.
        cells = [cell.strip() for cell in line.strip().strip("|").replace("||", "|").split("|")]
        if "|" in line and cells[0] != "Name":
            yield f"line {number}", cells[0], cells[2] if len(cells) == _TXT_CELLS else ""


def _read_xlsx_rows(path: Path) -> Iterable[tuple[str, str, str]]:
    """Yields what `_read_txt_rows` does, from the workbook."""
    import openpyxl

    with zipfile.ZipFile(path) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > 16 * _MAX_BYTES:
            raise ValueError(f"unpacks to more than {16 * _MAX_BYTES:,} bytes")
    sheet = openpyxl.load_workbook(path, read_only=True, data_only=True).worksheets[0]
    cells = itertools.islice(sheet.values, _MAX_ROWS)
    rows = [["" if v is None else str(v).strip() for v in row[:_MAX_COLUMNS]] for row in cells]
    header = next((i for i, row in enumerate(rows) if row and row[0] == "Image Name"), len(rows))
    for number, row in enumerate(rows[header + 1 :], header + 2):
        if any(row):
            # The diagnosis is a cross in one of three columns.
            crosses = [str(i) for i, cell in enumerate(row[2:5]) if cell]
            yield f"row {number}", row[0], "".join(crosses)


def read_patients(folder: Path, scan: Scan) -> dict[str, tuple[str, Path]]:
    """Reads every CSV in a folder that has a column of case ids and one of patients or lesions.

    Args:
        folder: The folder that holds the tables.
        scan: Takes an error for each damaged table or row.

    Returns:
        By case id the patient, empty where a row names none, and the table.
    """
    patients: dict[str, tuple[str, Path]] = {}
    remedy = "restore the file, or move it elsewhere to go without patients"
    for path in sorted(folder.glob("*.[cC][sS][vV]")):
        if not path.is_file() or path.name.startswith("."):
            continue
        try:
            header, rows = _read_patient_table(path)
        except (OSError, ValueError, csv.Error) as error:
            message = f"{path}: cannot be read as CSV ({error}); {remedy}"
            scan.add_error("damaged tables", message)
            continue
        id_column = _find_columns(header, _ID_COLUMNS)[:1]
        patient_columns = _find_columns(header, _PATIENT_COLUMNS)
        for line, row in rows:
            name = row[id_column[0]] if len(row) == len(header) else ""
            if not name:
                scan.add_error(
                    "damaged table rows",
                    f"{path}: line {line} is no row of this table ({len(header)} cells, with the "
                    f"name of a case); {remedy}",
                )
                continue
            suffix = Path(name).suffix
            id = name.removesuffix(suffix) if suffix.lower() in SUFFIXES else name
            patient = next((row[column] for column in patient_columns if row[column]), "")
            known_patient, file = patients.get(id, (patient, path))
            if patient and known_patient and patient != known_patient:
                scan.add_error(
                    "damaged table rows",
                    f"{path}: line {line} states that case {id} is of patient {patient}, but "
                    f"{file} also states {known_patient}; correct the one that is wrong",
                )
            else:
                patients[id] = (known_patient or patient, path)
    return patients


def _read_patient_table(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Reads a CSV: its header, and its rows that are not empty, by line number.

    A table without a column of case ids and one of patients is not decoded and has no rows.
    """
    content = path.read_bytes()
    # Excel writes UTF-16 as 'Unicode', and semicolons where numbers have a comma.
    utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    encoding = "utf-16" if utf16 else "utf-8-sig"
    first_line = content.decode(encoding, "replace").partition("\n")[0]
    delimiter = max(",;\t", key=first_line.count)
    header = [cell.strip(' "\r').lower() for cell in first_line.split(delimiter)]
    if not _find_columns(header, _ID_COLUMNS) or not _find_columns(header, _PATIENT_COLUMNS):
        return header, []
    text = io.StringIO(content.decode(encoding), newline="")
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader][1:]
    return header, [(line, row) for line, row in rows if any(row)]


def _find_columns(header: list[str], names: Iterable[str]) -> list[int]:
    """Positions of the columns of these names, in the order of the names."""
    return [header.index(name) for name in names if name in header]
