"""Cuts rows of the results table to the test cases that a file names."""

import csv
from collections.abc import Sequence
from pathlib import Path

from seglab.analysis.rows import CaseSelection, Row
from seglab.core.errors import InputError, name_some, printable
from seglab.core.files import expand_user, read_lines

OPTION = "--only-cases"


def read_case_ids(file: str | Path) -> set[str]:
    """Read ids of cases: one a line, or the first column of a CSV file if its name is `id`.

    Blank lines and lines that start with # are skipped. Raises an InputError if the file cannot be
    read or holds no id.
    """
    lines = [line.strip() for line in read_lines(expand_user(file))]
    lines = [line for line in lines if line and not line.startswith("#")]
    rows = [row for row in csv.reader(lines) if row]
    if rows and rows[0][0] == "id":
        lines = [row[0].strip() for row in rows[1:]]
    if not lines:
        raise InputError(f"{OPTION} {file}: holds no id; expected ids of test cases, one a line")
    return {printable(line) for line in lines}


def select_cases(rows: Sequence[Row], file: str | Path) -> None:
    """Cut rows to the cases whose ids a file names, see `read_case_ids`.

    A case that has another id in another row, but the same files, is chosen there, too. Which
    seeds are complete is still judged by all cases. Call it before any score of the rows is read.

    Raises:
        InputError: The file cannot be read, or names a case that no row has.
    """
    ids = read_case_ids(file)
    tested = [{case for cases in row.case_values.values() for case in cases} for row in rows]
    named = {case for of_row in tested for case in of_row if case.id in ids}
    unknown = sorted(ids - {case.id for case in named})
    if unknown:
        raise InputError(
            f"{OPTION} {file}: no row has {name_some(unknown)}; expected ids as in test_cases.csv, "
            "one a line, or a CSV file with the column id first"
        )
    for row, of_row in zip(rows, tested, strict=True):
        own = of_row & named
        # Not by content where the id is there: two cases of a row may have the same files.
        contents = {case.content for case in named} - {case.content for case in own}
        chosen = own | {case for case in of_row if case.content in contents}
        row.selection = CaseSelection(printable(Path(file).name), frozenset(chosen))
