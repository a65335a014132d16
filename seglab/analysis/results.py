"""Loads the results of many runs as plain rows: one of each run, one of each test case."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from seglab.analysis.compare import list_runs
from seglab.analysis.grouping import make_rows
from seglab.core.errors import InputError
from seglab.core.files import read_csv
from seglab.runs.records import UNKNOWN, Run, find_runs
from seglab.runs.tables import read_case_attributes


class Results(NamedTuple):
    """Results of runs, as plain Python values; None where there is none.

    Attributes:
        runs: A row for each run directory, with the columns of runs.csv of `seglab compare --out`.
        cases: A row for each test case of each run, with several classes for each class.
    """

    runs: list[dict[str, Any]]
    cases: list[dict[str, Any]]

    def to_pandas(self) -> tuple[Any, Any]:
        """Return `runs` and `cases` as data frames; raises an InputError without pandas."""
        try:
            from pandas import DataFrame
        except ImportError:
            raise InputError("to_pandas: pandas is missing; pip install pandas") from None
        return DataFrame(self.runs), DataFrame(self.cases)


def load_results(folder: str | Path, *folders: str | Path) -> Results:
    """Load the results of all runs at or below some folders; imports no torch.

    Args:
        folder: A run directory, a sweep, or any folder that holds some.
        folders: More of them.

    Raises:
        InputError: There is no run, one is damaged, or two folds of a row test the same case.
    """
    found = find_runs([folder, *folders])
    rows, _ = make_rows(found)
    runs = list_runs(found, rows)
    empty = dict.fromkeys(column for row in runs for column in row)
    settings = ("seed", "fold", *rows[0].labels)
    for i, row in enumerate(runs):
        parsed = {name: _parse(row[name]) for name in settings if name in row}
        runs[i] = {"directory": str(found[i].folder)} | empty | row | parsed
    return Results(runs, [case for run in found for case in _list_cases(run)])


def _list_cases(run: Run) -> Iterator[dict[str, Any]]:
    attributes = read_case_attributes(run.folder)
    for row in read_csv(run.paths.test_cases) if run.tested else ():
        yield {"run": run.label, "class": run.classes[0], "subset": "test"} | {
            name: text if name in ("id", "set", "diagnosis", "class") else _parse(text)
            for name, text in (row | attributes.get(row["id"], {}) | row).items()
        }


def _parse(text: str) -> Any:
    """Returns the value that a text stands for, such as a number; None for none."""
    try:
        return json.loads(text)
    except ValueError:
        return None if text in ("", UNKNOWN) else text
