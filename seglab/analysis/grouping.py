"""Groups runs into rows of the results table, labels them, and adds rows of trivial baselines."""

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seglab.analysis.rows import Row
from seglab.core.errors import InputError
from seglab.metrics.scores import METRICS
from seglab.runs.records import STATUSES, UNKNOWN, Run, name_init
from seglab.runs.tables import COSTS, CaseValues, read_case_values

# Names of other columns, which a setting's column may not have: of the table, and of CSV files.
_TABLE_COLUMNS = ("diagnosis", "class", "n", "val", "runs", "multiply-adds", "train s", "images/s")
_CSV_COLUMNS = ("label", "status", "finished", "run", "row", "used", "seed", "fold", "error")
RESERVED_COLUMNS = ("set", *_TABLE_COLUMNS, *_CSV_COLUMNS, *METRICS, *COSTS)


def make_rows(runs: Sequence[Run]) -> tuple[list[Row], list[str]]:
    """Group runs that differ only in seed and fold, by data set, and add trivial baselines.

    Returns rows sorted by label, baselines last, and notes on runs that are in no row. Raises an
    InputError if no run has a config, or two folds of a row test the same case.
    """
    notes: list[str] = []
    by_settings = defaultdict(list)
    for run in runs:
        if run.config:
            by_settings[frozenset(run.settings.items()), run.sweep].append(run)
        else:
            reason = run.error or "trainer.fast_dev_run"
            notes.append(f"{run.label}: {run.status} before it had a config: {reason}")
    if not by_settings:
        raise InputError("; ".join(notes))
    joined: dict[frozenset[tuple[str, str]], list[Run]] = defaultdict(list)
    for group in by_settings.values():
        settings = group[0].settings | {"init": name_init(group)}
        joined[frozenset(settings.items())] += group
    rows: list[Row] = []
    for shared, group in joined.items():
        rows += _split_sets(dict(shared), group, notes)
    by_protocol = defaultdict(list)
    for row in rows:
        by_protocol[row.protocol_key].append(row)
    for members in by_protocol.values():
        _add_missing_cells(members)
    for row in rows:
        _join_folds(row)
    rows = [row for row in rows if row.n_cases or not row.finished_runs]
    _label_rows(rows)
    rows.sort(key=lambda row: natural_key(row.label))
    return rows + _make_baseline_rows(rows), notes


def _split_sets(settings: dict[str, str], group: Sequence[Run], notes: list[str]) -> list[Row]:
    """Make the rows of runs that share their settings: one for each of their data sets."""
    cells: dict[tuple[str, str], Run | None] = {}
    for run in sorted(group, key=lambda run: (STATUSES.index(run.status), run.label)):
        first = cells.setdefault((run.seed, run.fold), run)
        if first and first is not run and run.is_scored:
            notes.append(f"{first.label} and {run.label} have the same config: the first is used")
    run = next(run for run in cells.values() if run)
    classes = run.classes if len(run.classes) > 1 else ()
    return [Row(settings, classes, {**cells}, {}, set=name) for name in run.sets or ("",)]


def _add_missing_cells(rows: Sequence[Row]) -> None:
    """Add the cells that rows of one protocol lack, judged by the other rows of their sweeps."""
    runs = [run for row in rows for run in row.runs]
    seeds_by_sweep: dict[Path | None, set[str]] = defaultdict(set)
    for run in runs:
        seeds_by_sweep[run.sweep].add(run.seed)
    is_one_fold = len({run.fold for run in runs}) == 1 and all(
        run.fold and run.sweep and "data.split.fold" not in run.record["varies"] for run in runs
    )
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
        row.folds_are_seeds = any(r.status == "evaluated" and " fold " in r.seed for r in row.runs)
        if len(row.folds) > 1 and f"data.sets.{row.set}.split.fold" in row.settings:
            row.folds_are_seeds, row.folds = True, [""]
            row.cells = {
                (f"{seed} fold {fold}", ""): run for (seed, fold), run in row.cells.items()
            }


def _join_folds(row: Row) -> None:
    """Collect the test cases of each seed."""
    for (seed, _), run in row.cells.items():
        if run is None or not run.is_scored:
            continue
        values = row.case_values.setdefault(seed, {})
        tested = {case: found for case, found in run.tested.items() if case.set == row.set}
        twice = sorted(values.keys() & tested.keys())
        if twice:
            raise InputError(
                f"{run.label}: tests case {twice[0].id}, as another fold of the same config does; "
                "compare them apart"
            )
        values |= tested


def _label_rows(rows: Sequence[Row]) -> None:
    """Set the labels of rows."""
    for key, column in _name_columns(_choose_keys(rows)).items():
        values = {row.settings.get(key, UNKNOWN) for row in rows}
        is_target = key.endswith("._target_")
        short = {value: value.rpartition(".")[2] for value in values if is_target}
        if key == "init":  # of paths the last two parts
            short = {value: "/".join(value.split("/")[-2:]) for value in values}
        is_unique = len({*short.values()}) == len(values)
        for row in rows:
            value = row.settings.get(key, UNKNOWN)
            row.labels[column] = short[value] if is_unique else value
            if key in row.settings:
                is_plain = is_target or key in ("name", "protocol")
                part = row.labels[column] if is_plain else f"{column}={row.labels[column]}"
                row.label += f", {part}" if row.label else part
    for row in rows:
        if not row.label:  # masks of another program have no model and so on
            row.label = row.labels[next(iter(row.labels))] = row.settings["name"]
    for row in rows if any(row.set for row in rows) else ():
        row.labels["set"] = row.set or UNKNOWN
        row.label += f", set={row.set}" if row.set else ""


def settings_that_vary(rows: Sequence[Row]) -> set[str]:
    """Settings that a sweep varied, and of which the rows have more than one value."""
    keys = {key for row in rows for run in row.runs for key in run.varied_settings}
    return {k for k in keys if len({r.settings[k] for r in rows if k in r.settings}) > 1}


def natural_key(text: str) -> list[Any]:
    """Sort key that orders numbers in text as numbers."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[-+]?\d+)?)", text.casefold())
    return [float(part) if i % 2 else part for i, part in enumerate(parts)]


def _choose_keys(rows: Sequence[Row]) -> list[str]:
    """Choose the settings that label rows: varied ones, then each that separates more rows."""

    def count_groups(keys: list[str]) -> int:
        return len({tuple(map(row.settings.get, keys)) for row in rows})

    varied = settings_that_vary(rows)
    keys = sorted({key for row in rows for key in row.settings}, key=lambda k: (k.count("."), k))
    order = [
        "name",
        "model._target_",
        "protocol",
        *(key for key in keys if key.endswith("._target_")),
    ]
    order += sorted({key for row in rows for run in row.runs for key in run.varied_settings})
    order = [*dict.fromkeys(order + keys)]
    chosen = [key for key in order if key in varied]
    for key in order:
        if count_groups([*chosen, key]) > count_groups(chosen):
            chosen.append(key)
    return chosen or ["name", "model._target_"]


def _name_columns(keys: Sequence[str]) -> dict[str, str]:
    """The last part of each key, or the whole key where that is ambiguous."""
    short = {key: key.removesuffix("._target_").rpartition(".")[2] for key in keys}
    if "name" in short:
        short["name"] = "experiment"
    times = Counter([*short.values(), *RESERVED_COLUMNS])
    return {key: name if times[name] == 1 else key for key, name in short.items()}


def _make_baseline_rows(rows: Sequence[Row]) -> list[Row]:
    """Make rows of trivial baselines for all distinct test cases, from the seed with most cases."""
    by_protocol = defaultdict(list)
    for row in rows:
        for seed in row.case_values:
            by_protocol[row.protocol_key, row.classes].append((row, seed))
    tested: dict[Any, tuple[Row, str]] = {}
    for pairs in by_protocol.values():
        row, seed = max(pairs, key=lambda pair: len(pair[0].case_values[pair[1]]))
        contents = frozenset(case.content for case in row.case_values[seed])
        tested.setdefault((contents, row.classes), (row, seed))
    baselines = []
    times = Counter(row.set for row, _ in tested.values())
    for row, seed in tested.values():
        values_by_name: dict[str, CaseValues] = defaultdict(dict)
        for run in row.runs_of_seed(seed):
            if not run.was_trained:
                continue
            table = run.paths.baseline_cases
            groups = read_case_values(table, run.sha256, run.classes, "baseline")
            for name, values in groups.items():
                of_set = {case: found for case, found in values.items() if case.set == row.set}
                values_by_name[name] |= of_set
        where = f"set={row.set}" if row.set and times[row.set] == 1 else f"cases of {row.label}"
        for name, values in sorted(values_by_name.items()):
            label = name if len(tested) == 1 else f"{name} ({where})"
            labels = dict.fromkeys(row.labels, "") | {next(iter(row.labels)): label}
            labels |= {"set": row.set} if row.set else {}
            baseline = Row({}, row.classes, {}, {seed: values}, labels=labels, label=label)
            baselines.append(baseline)
    return baselines
