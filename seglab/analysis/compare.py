"""Makes one table of run directories: settings that differ, by the scores that were measured."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from seglab.analysis.grouping import make_rows
from seglab.analysis.learning_curve import (
    SHARE,
    find_learning_curves,
    make_learning_table,
    summarize_curve,
)
from seglab.analysis.notes import (
    describe_cautions,
    describe_gaps,
    describe_protocol,
    describe_repetitions,
    describe_status,
    describe_values,
)
from seglab.analysis.paired import (
    find_pairs,
    find_powers,
    make_power_table,
    make_versus_table,
    run_paired_tests,
)
from seglab.analysis.rows import Row, Score, format_score
from seglab.analysis.selection import select_cases
from seglab.analysis.slices import make_slices_table, score_slices
from seglab.analysis.tables import Table, format_plain, write_table
from seglab.core.errors import InputError, check_number
from seglab.core.files import expand_user, write_csv
from seglab.metrics.scores import DEFAULT_METRICS, METRICS, PER_IMAGE
from seglab.runs.paths import refuse_run_files
from seglab.runs.records import UNKNOWN, Run, find_runs
from seglab.runs.tables import COSTS

# Columns after the metrics: headings, and formats of `COSTS`.
COST_HEADINGS = ("parameters", "multiply-adds", "train s", "images/s")
COST_FORMATS = ("{:,.0f}", "{:.3g} G", "{:,.0f}", "{:,.1f}")

EXTRA_TABLES = ("versus", "power", "slices", "learning_curve")  # only where asked for


class TableLine(NamedTuple):
    """A line of the table: the scores of a row, or of one diagnosis or class of it."""

    row: Row
    diagnosis: str | None  # None for all
    class_name: str | None  # None for the mean over all except background
    scores: dict[str, Score]  # by metric

    @property
    def is_whole(self) -> bool:
        """Whether the line is of all cases and classes."""
        return self.diagnosis is None and self.class_name is None

    @property
    def n_cases(self) -> int:
        """Number of test cases that are scored."""
        return sum(self.diagnosis in (None, case.diagnosis) for case in self.row.cases)


def compare(
    dirs: Sequence[str | Path],
    metrics: str | None = None,
    by_diagnosis: bool = False,
    versus: Sequence[tuple[str, str]] = (),
    power: float | None = None,
    metric: str = "dice_per_image",
    slices: bool = False,
    learning_curve: bool = False,
    only_cases: str | Path | None = None,
    out: str | Path | None = None,
    width: int | None = None,
) -> str:
    """Make the table of all runs at or below some folders.

    The result depends on the content of the run directories, not on where they are.

    Args:
        dirs: Folders that hold runs, at any depth.
        metrics: Columns of the table, joined by commas, or 'all'; None for `DEFAULT_METRICS`.
        by_diagnosis: Whether each row is followed by a line for each diagnosis.
        versus: Pairs of rows for paired tests, by their labels or how these begin.
        power: Width of an interval; a table tells how many cases each pair would need for it, and
            which difference its cases could show. None for no such table.
        metric: Metric of the paired tests and the slices, one of `PER_IMAGE`, whatever `metrics`
            are columns.
        slices: Whether a second table shows `metric` by attributes of the cases.
        learning_curve: Whether a table shows Dice over the number of training cases, of rows that
            differ in `data.split.train_share` alone.
        only_cases: File with ids of test cases, see `seglab.analysis.selection.read_case_ids`:
            everything but runs.csv is of these alone. None for all.
        out: Folder that gets table.*, runs.csv and dice_boxes.png, and versus.*, power.*, slices.*
            and learning_curve.* where asked for. Files of an earlier call are replaced or removed.
        width: Columns of the terminal; None for no limit.

    Returns:
        The text to print.

    Raises:
        InputError: There are no runs, a file is damaged, or a metric or row is unknown.
    """
    column_metrics = _check_metrics(metrics, metric)
    if out is not None:
        refuse_run_files(out)
    runs = find_runs(dirs)
    rows, notes = make_rows(runs)
    if only_cases is not None:
        select_cases(rows, only_cases)
    pairs = find_pairs(versus, rows)
    lines = make_lines(rows, METRICS if out else column_metrics, by_diagnosis)
    tables = {"table": make_table(rows, lines, notes, column_metrics, by_diagnosis)}
    records = {"table": [*map(_make_record, lines)], "runs": list_runs(runs, rows)}
    if pairs:
        records["versus"] = run_paired_tests(pairs, metric)
        tables["versus"] = make_versus_table(records["versus"], pairs, metric)
    if power is not None:
        check_number("--power", power, float, 1e-6, 1)
        if not pairs:
            raise InputError("--power: is of pairs of rows; name them with --versus A B")
        records["power"] = find_powers(pairs, metric, power)
        tables["power"] = make_power_table(records["power"], metric, power)
    if slices:
        records["slices"] = score_slices(
            [row for row in rows if row.finished_runs and row.cases], metric
        )
        tables["slices"] = make_slices_table(records["slices"], metric)
    curves = find_learning_curves(rows) if learning_curve else []
    if learning_curve:
        if not curves:
            reason = f"no finished rows differ in {SHARE} alone"
            raise InputError(f"--learning-curve: {reason}; train some with sweep=learning_curve")
        records["learning_curve"] = [line for curve in curves for line in summarize_curve(curve)]
        tables["learning_curve"] = make_learning_table(curves)
    if out is not None:
        _write(expand_user(out), tables, records, rows)
        if curves:
            from seglab.analysis.figures import save_learning_curves  # matplotlib, slow to import

            save_learning_curves(expand_user(out) / "learning_curve.png", records["learning_curve"])
    return "\n\n".join(format_plain(table, width) for table in tables.values())


def _check_metrics(metrics: str | None, metric: str) -> tuple[str, ...]:
    """Return the metrics that are columns; refuse unknown ones, and a metric without a test."""
    names = METRICS if metrics == "all" else DEFAULT_METRICS
    if metrics and metrics != "all":
        names = tuple(dict.fromkeys(metrics.split(",")))
    for option, chosen, known in (("metrics", names, METRICS), ("metric", [metric], PER_IMAGE)):
        for name in chosen:
            if name not in known:
                raise InputError(f"--{option} {name}: expected one of {', '.join(known)}")
    return names


def make_lines(
    rows: Sequence[Row], interval_metrics: Sequence[str], by_diagnosis: bool
) -> list[TableLine]:
    """Score rows as a whole, by class, and by diagnosis if asked for."""
    lines = []
    for row in rows:
        parts: list[tuple[str | None, str | None]] = [(None, None)]
        if by_diagnosis:
            parts += [(name, None) for name in sorted({case.diagnosis for case in row.cases})]
        if row.cases:
            parts += [(None, name) for name in row.classes[1:]]
        lines += [TableLine(row, *part, row.scores(interval_metrics, *part)) for part in parts]
    return lines


def make_table(
    rows: Sequence[Row],
    lines: Sequence[TableLine],
    notes: Sequence[str],
    metric_names: Sequence[str],
    by_diagnosis: bool,
) -> Table:
    """Make the table of some lines of rows, with the notes of `make_rows` below it."""
    parts = ["diagnosis"] if by_diagnosis else []
    if any(line.class_name for line in lines):
        parts.append("class")
    names = [*rows[0].labels, *parts]
    cautions = describe_cautions(rows, [line.n_cases for line in lines if line.row.finished_runs])
    title = describe_protocol(rows)
    if any(row.finished_runs for row in rows):
        title += f": {describe_values(rows)}"
    return Table(
        title,
        [*names, "n", *metric_names, "val", "runs", *COST_HEADINGS],
        len(names),
        [_format_line(line, metric_names, parts) for line in lines],
        [*describe_gaps(rows), *notes, *describe_repetitions(rows), *cautions],
    )


def _format_line(line: TableLine, metric_names: Sequence[str], parts: Sequence[str]) -> list[str]:
    row = line.row
    cells = [*row.labels.values()] if line.is_whole else [""] * len(row.labels)
    values = {"diagnosis": line.diagnosis, "class": line.class_name}
    cells += ["all" if values[part] is None else values[part] or UNKNOWN for part in parts]
    cells.append(str(line.n_cases) if row.n_cases else UNKNOWN)
    for name in metric_names:
        text = UNKNOWN if row.n_cases else describe_status(row.status)
        if name in line.scores:
            text = format_score(name, line.scores[name]) + row.mark
        cells.append(text)
    if not line.is_whole:
        return [*cells, *[""] * (2 + len(COSTS))]
    cells.append(UNKNOWN if row.val_dice is None else f"{row.val_dice:.3f}")
    n_finished, n_expected = len(row.finished_runs), len(row.cells)
    is_partial = n_finished < n_expected
    cells.append(f"{n_finished} of {n_expected}" if is_partial else str(n_expected or UNKNOWN))
    costs = row.costs()
    for name, template in zip(COSTS, COST_FORMATS, strict=True):
        scale = 1e-9 if name == "multiply_adds" else 1
        cells.append(template.format(costs[name] * scale) if costs else UNKNOWN)
    return cells


def _make_record(line: TableLine) -> dict[str, Any]:
    """A line of table.csv, at full precision."""
    row = line.row
    record: dict[str, Any] = row.labels | {"label": row.label}
    record["diagnosis"] = "all" if line.diagnosis is None else line.diagnosis or UNKNOWN
    if row.classes:
        record["class"] = line.class_name or "all"
    record |= {"status": row.status, "n": line.n_cases}
    record |= {"finished": len(row.finished_runs), "runs": len(row.cells)}
    record |= dict.fromkeys(COSTS, "") | row.costs()
    record["val_dice_per_image"] = (
        row.val_dice if row.val_dice is not None and line.is_whole else ""
    )
    for name in METRICS:
        score = line.scores[name]._asdict() if name in line.scores else {}
        for field in Score._fields:
            column = name if field == "value" else f"{name}_{field}"
            record[column] = "" if score.get(field) is None else score[field]
    return record


def list_runs(runs: Sequence[Run], rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Every run directory that was found, for runs.csv; one that is in no row has no label."""
    records = []
    for run in runs:
        of_run = [row for row in rows if run in row.runs]  # one for each data set
        record: dict[str, Any] = {"run": run.label, "row": " | ".join(row.label for row in of_run)}
        record |= {"used": bool(of_run), "seed": run.seed, "fold": run.fold}
        record |= {"status": run.status, "error": run.error}
        record["experiment"] = run.settings.get("name", "")
        record["model"] = run.settings.get("model._target_", "").rpartition(".")[2]
        labels = of_run[0].labels if of_run else {}
        record |= {column: text for column, text in labels.items() if column != "set"} | run.values
        for name, scores in run.baselines.items():
            record |= {f"{name}/{metric}": value for metric, value in scores.items()}
        records.append(record | run.costs)
    return records


def _write(
    out: Path,
    tables: dict[str, Table],
    records: dict[str, list[dict[str, Any]]],
    rows: Sequence[Row],
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name, suffix in itertools.product(EXTRA_TABLES, ("md", "tex", "csv", "png")):
        (out / f"{name}.{suffix}").unlink(missing_ok=True)  # tests of an earlier table
    for name, table in tables.items():
        write_table(out, name, table, records[name])
    write_csv(out / "runs.csv", records["runs"])
    dice = {row.label: [*row.by_case("dice_per_image").values()] for row in rows if row.cases}
    if dice:
        from seglab.analysis.figures import save_boxes  # matplotlib, slow to import

        save_boxes(out / "dice_boxes.png", dice, "dice_per_image")
