"""Groups runs into rows of the results table, and adds rows of trivial baselines."""

import itertools
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seglab.analysis.labels import label_rows, natural_key
from seglab.analysis.rows import Row
from seglab.core.errors import InputError
from seglab.runs.records import STATUSES, Run
from seglab.runs.tables import CaseCounts, read_case_counts


def make_rows(runs: Sequence[Run]) -> tuple[list[Row], list[str]]:
    """Group runs that differ only in seed and fold, and add trivial baselines.

    Returns:
        Rows sorted by label, baselines last; and notes on runs that are in no row.

    Raises:
        InputError: No run has a config, or two folds of a row test the same case.
    """
    notes: list[str] = []
    by_settings = defaultdict(list)
    for run in runs:
        if run.config:
            by_settings[frozenset(run.settings.items())].append(run)
        else:
            notes.append(f"{run.path}: {run.status} before it had a config: {run.error}")
    if not by_settings:
        raise InputError("; ".join(notes))
    rows = [_make_row(group, notes) for group in by_settings.values()]
    by_protocol = defaultdict(list)
    for row in rows:
        by_protocol[row.protocol_key].append(row)
    for members in by_protocol.values():
        _add_missing_cells(members)
    for row in rows:
        _join_folds(row)
    label_rows(rows)
    rows.sort(key=lambda row: natural_key(row.label))
    return rows + _make_baseline_rows(rows), notes


def _make_row(group: Sequence[Run], notes: list[str]) -> Row:
    cells: dict[tuple[str, str], Run | None] = {}
    for run in sorted(group, key=lambda run: (STATUSES.index(run.status), run.path)):
        first = cells.setdefault((run.seed, run.fold), run)
        if first and first is not run and run.status == "finished":
            notes.append(f"{first.path} and {run.path} have the same config: the first is used")
    first_run = next(run for run in cells.values() if run)
    return Row(first_run.settings, first_run.classes, cells, {})


def _add_missing_cells(rows: Sequence[Row]) -> None:
    """Add the cells that rows of one protocol lack, judged by the other rows of their sweeps."""
    runs = [run for row in rows for run in row.runs]
    seeds_by_sweep: dict[Path | None, set[str]] = defaultdict(set)
    for run in runs:
        seeds_by_sweep[run.sweep].add(run.seed)
    is_one_fold = all(run.one_fold for run in runs) and len({run.fold for run in runs}) == 1
    for row in rows:
        first = row.runs[0]
        row.folds = [first.fold]
        if is_one_fold:
            protocol = f"fold {first.fold} of {first.folds}"
            row.settings = row.settings | {"protocol": protocol}
        elif first.fold:
            row.folds = [*map(str, range(first.folds))]
        sweeps = {run.sweep for run in row.runs if run.sweep}
        seeds = {seed for seed, _ in row.cells}.union(*(seeds_by_sweep[s] for s in sweeps))
        for key in itertools.product(seeds, row.folds):
            row.cells.setdefault(key, None)
        row.cells = dict(sorted(row.cells.items(), key=lambda item: natural_key(" ".join(item[0]))))


def _join_folds(row: Row) -> None:
    """Collect the test cases of each seed."""
    for run in row.finished:
        counts = row.counts.setdefault(run.seed, {})
        twice = sorted(counts.keys() & run.tested.keys())
        if twice:
            raise InputError(
                f"{run.path}: tests case {twice[0][0]}, as another fold of the same config does; "
                "compare them apart"
            )
        counts |= run.tested


def _make_baseline_rows(rows: Sequence[Row]) -> list[Row]:
    """Make rows of trivial baselines for each set of test cases, from the seed with most cases."""
    by_protocol = defaultdict(list)
    for row in rows:
        for seed in row.counts:
            by_protocol[row.protocol_key, row.classes].append((row, seed))
    case_sets: dict[Any, tuple[Row, str]] = {}
    for pairs in by_protocol.values():
        row, seed = max(pairs, key=lambda pair: len(pair[0].counts[pair[1]]))
        case_sets.setdefault((frozenset(row.counts[seed]), row.classes), (row, seed))
    baselines = []
    for row, seed in case_sets.values():
        counts_by_name: dict[str, CaseCounts] = defaultdict(dict)
        for run in row.finished:
            if run.seed == seed:
                table = run.paths.baseline_cases
                groups = read_case_counts(table, run.sha256, run.classes, "baseline")
                for name, counts in groups.items():
                    counts_by_name[name] |= counts
        for name, counts in sorted(counts_by_name.items()):
            label = name if len(case_sets) == 1 else f"{name} (cases of {row.label})"
            labels = dict.fromkeys(row.labels, "") | {next(iter(row.labels)): label}
            baseline = Row({}, row.class_names, {}, {seed: counts}, labels=labels, label=label)
            baselines.append(baseline)
    return baselines
