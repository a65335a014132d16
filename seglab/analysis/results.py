"""Loads the results of many runs as plain rows: one of each run, one of each test case."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seglab.analysis.grouping import make_rows
from seglab.analysis.rows import Row
from seglab.core.errors import InputError
from seglab.metrics.scores import BOUNDARY_METRICS, CASE_METRICS, PIXEL_COUNTS, ratio, score_terms
from seglab.runs.records import UNKNOWN, Run, find_runs
from seglab.runs.tables import CASE_COLUMNS

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Results:
    """Results of runs, as plain Python values.

    Attributes:
        runs: A row of each run directory: `directory`, and the columns of runs.csv that
            `compare.py --out` writes. All rows have the same columns; what a run lacks is None.
        cases: A row of each test case of each run, and with several classes of each class:
            `run` as in `runs`, `id`, `diagnosis`, `class`, `subset`, pixel counts and metrics.
    """

    runs: list[dict[str, Any]]
    cases: list[dict[str, Any]]

    def to_pandas(self) -> tuple[DataFrame, DataFrame]:
        """Return `runs` and `cases` as data frames; raises an InputError without pandas."""
        try:
            from pandas import DataFrame
        except ImportError:
            raise InputError("to_pandas: pandas is missing; pip install pandas") from None
        return DataFrame(self.runs), DataFrame(self.cases)


def load_results(folder: str | Path, *folders: str | Path) -> Results:
    """Load the results of all runs at or below some folders, finished or not, without torch.

    Raises:
        InputError: There are no runs, or a file is damaged.
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


def list_runs(runs: Sequence[Run], rows: Sequence[Row]) -> list[dict[str, Any]]:
    """List run directories as runs.csv does, settings as text.

    Args:
        runs: As `find_runs` returns them.
        rows: Rows of the table; of runs that are in none `row` is empty.

    Returns:
        For each run what tells it from others, its status, `val/...` and `test/...` scores, test
        scores of the trivial baselines, `otsu/...`, and its costs.
    """
    row_by_run = {run.label: row for row in rows for run in row.runs}
    records = []
    for run in runs:
        row = row_by_run.get(run.label)
        record: dict[str, Any] = {"run": run.label, "row": row.label if row else ""}
        record |= {"used": row is not None, "seed": run.seed, "fold": run.fold}
        record |= {"status": run.status, "error": run.error}
        name, model = (run.settings.get(key, "") for key in ("name", "model._target_"))
        record |= {"experiment": name, "model": model.rpartition(".")[2]}
        record |= (row.labels if row else {}) | run.values
        for name, scores in run.baselines.items():
            record |= {f"{name}/{metric}": value for metric, value in scores.items()}
        records.append(record | run.costs)
    return records


def _list_cases(run: Run) -> Iterator[dict[str, Any]]:
    """Yields the rows of a run's test cases, with the values of its test_cases.csv."""
    if not run.tested:
        return
    values = np.array([*run.tested.values()])  # (n, classes, columns)
    terms = score_terms(values[..., : len(PIXEL_COUNTS)])
    columns = {name: values[..., i] for i, name in enumerate(CASE_COLUMNS)}
    columns |= {name: ratio(*np.moveaxis(terms[name], -1, 0)) for name in CASE_METRICS}
    for i, case in enumerate(run.tested):
        for k, class_name in enumerate(run.classes):
            row: dict[str, Any] = {"run": run.label, "id": case.id, "diagnosis": case.diagnosis}
            row |= {"class": class_name, "subset": "test"}
            row |= {name: int(columns[name][i, k]) for name in PIXEL_COUNTS}
            names = (*CASE_METRICS, *BOUNDARY_METRICS)
            yield row | {name: float(columns[name][i, k]) for name in names}


def _parse(text: str) -> Any:
    """Returns the value of a setting, such as a number or text; None for an empty one."""
    try:
        return json.loads(text)
    except ValueError:
        return None if text in ("", UNKNOWN) else text
