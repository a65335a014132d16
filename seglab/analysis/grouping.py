"""Groups runs into rows of the results table, and adds rows of trivial baselines."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from seglab.analysis.labels import label_rows, natural_key
from seglab.analysis.rows import Row
from seglab.runs.records import STATUSES, Run
from seglab.runs.tables import Case, CaseCounts, read_case_counts


def make_rows(runs: Sequence[Run]) -> tuple[list[Row], list[str]]:
    """Group runs that differ only in seed and fold, and add trivial baselines.

    Returns:
        Rows sorted by label, baselines last; and notes on runs that were left out or separated.
    """
    rows: list[Row] = []
    notes: list[str] = []
    by_settings = defaultdict(list)
    for run in runs:
        by_settings[frozenset(run.settings.items())].append(run)
    for group in by_settings.values():
        rows += _make_group_rows(group, notes)
    by_protocol = defaultdict(list)
    for row in rows:
        by_protocol[row.protocol_key].append(row)
    for members in by_protocol.values():
        _add_missing_cells(members)
    label_rows(rows)
    rows.sort(key=lambda row: natural_key(row.label))
    return rows + _make_baseline_rows(rows), notes


def _make_group_rows(group: Sequence[Run], notes: list[str]) -> list[Row]:
    """Make the row of runs with equal settings, or a row per run where their cases overlap."""
    cells: dict[tuple[str, str], Run | None] = {}
    used = []
    for run in sorted(group, key=lambda run: (STATUSES.index(run.status), run.path)):
        first = cells.setdefault((run.seed, run.fold), run)
        if first is run:
            used.append(run)
        elif first and run.status == "finished":
            notes.append(f"{first.path} and {run.path} have the same config: the first is used")
    times = Counter((run.seed, case[0]) for run in used for case in run.tested)
    twice = [key for key, n in times.items() if n > 1]
    if not twice:
        return [Row(group[0].settings, cells, {})]
    seed, id = min(twice)
    paths = [r.path for r in used if r.seed == seed and id in {case[0] for case in r.tested}]
    notes.append(f"{' and '.join(paths)} test the same case, {id}: each run has a row")
    return [Row(run.settings | {"run": run.path}, {(run.seed, run.fold): run}, {}) for run in used]


def _add_missing_cells(rows: Sequence[Row]) -> None:
    """Add the cells that rows of one protocol lack, and collect the cases of each seed."""
    runs = [run for row in rows for run in row.runs]
    seeds_by_sweep: dict[Path | None, set[str]] = defaultdict(set)
    for run in runs:
        seeds_by_sweep[run.sweep].add(run.seed)
    if all(run.one_fold for run in runs) and len({run.fold for run in runs}) == 1:
        protocol = f"fold {runs[0].fold} of {runs[0].folds}"
        for row in rows:
            row.settings = row.settings | {"protocol": protocol}
    for row in rows:
        sweeps = {run.sweep for run in row.runs if run.sweep}
        seeds = {seed for seed, _ in row.cells}.union(*(seeds_by_sweep[s] for s in sweeps))
        first = row.runs[0]
        if first.folds:
            row.folds = [first.fold]
            if row.settings["protocol"].endswith(" folds") and "run" not in row.settings:
                row.folds = [*map(str, range(first.folds))]
            for seed in seeds:
                for fold in row.folds:
                    row.cells.setdefault((seed, fold), None)
        row.cells = dict(sorted(row.cells.items(), key=lambda item: natural_key(" ".join(item[0]))))
        for run in row.runs:
            if run.tested:
                row.counts.setdefault(run.seed, {}).update(run.tested)


def _make_baseline_rows(rows: Sequence[Row]) -> list[Row]:
    """Make rows of trivial baselines for each set of test cases, from one complete seed."""
    by_protocol = defaultdict(list)
    for row in rows:
        if row.counts:
            by_protocol[row.protocol_key].append(row)
    case_sets: dict[tuple[frozenset[Case], tuple[str, ...]], tuple[Row, str]] = {}
    for members in by_protocol.values():
        complete = [(row, row.complete[0]) for row in members if row.complete]
        any_seed = [(row, seed) for row in members for seed in row.counts]
        largest = max(any_seed, key=lambda pair: len(pair[0].counts[pair[1]]))
        for row, seed in complete or [largest]:
            case_sets.setdefault((frozenset(row.counts[seed]), row.classes), (row, seed))
    baselines = []
    for row, seed in case_sets.values():
        counts_by_name: dict[str, CaseCounts] = defaultdict(dict)
        for run in row.finished:
            if run.seed == seed:
                file = run.paths.baseline_cases
                for name, counts in read_case_counts(
                    file, run.sha256, run.classes, "baseline"
                ).items():
                    counts_by_name[name] |= counts
        for name, counts in sorted(counts_by_name.items()):
            label = name if len(case_sets) == 1 else f"{name} (cases of {row.label})"
            first, *others = row.labels
            labels = {first: label} | dict.fromkeys(others, "")
            baseline = Row({}, {}, {seed: counts}, labels=labels, label=label)
            baseline.baseline_classes = row.classes
            baselines.append(baseline)
    return baselines
