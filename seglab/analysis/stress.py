"""Scores finished runs on worse pictures: their test cases, corrupted in nine ways."""

import itertools
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from seglab.analysis.figures import save_cases, save_stress_curves
from seglab.analysis.grouping import make_rows
from seglab.analysis.notes import describe_cautions, describe_gaps, describe_protocol
from seglab.analysis.rows import Row
from seglab.analysis.statistics import intervals
from seglab.analysis.tables import Table, format_latex, format_markdown, format_plain
from seglab.core.errors import InputError
from seglab.core.files import (
    expand_user,
    hash_file,
    hash_json,
    read_json,
    write_atomic,
    write_csv,
    write_json,
)
from seglab.core.memory import keep_freed_memory
from seglab.data import corruptions
from seglab.data.cases import Case, read_pair
from seglab.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from seglab.inference.evaluate import load_run_model, read_test_cases
from seglab.inference.models import Model
from seglab.metrics.scores import confusion_counts, mean_terms, score_terms
from seglab.runs.paths import refuse_run_files
from seglab.runs.records import Run, find_runs, open_run
from seglab.runs.tables import CaseKey

log = logging.getLogger(__name__)

MEAN = "mean"  # of all corruptions, stands beside their names
COLUMNS = [f"{name}{end}" for name in ("dice_per_image", "drop") for end in ("", "_low", "_high")]
Dice = dict[str, dict[str, list[float]]]  # by corruption and case id, at severities 1, 2 and 3


class StressedRow(NamedTuple):
    """A row with the Dice of its test cases, averaged over the runs that tested a case."""

    row: Row
    cases: list[CaseKey]
    dice: dict[str, np.ndarray]  # by corruption float64 (4, n), at severities 0 to 3


def stress(
    dirs: Sequence[str | Path],
    only: str | None = None,
    out: str | Path | None = None,
    trust: tuple[str, ...] = (),
    moved_to: str | Path | None = None,
    width: int | None = None,
) -> str:
    """Score runs on corrupted versions of their test cases, each run with its own settings.

    Scores are kept in `evaluations` of each run, so that an interrupted call goes on, and the next
    one is quick.

    Args:
        dirs: Folders that hold runs, at any depth, which become rows as in `compare`.
        only: Names of `CORRUPTIONS`, joined by commas; None for all.
        out: Folder that gets stress.md, stress.tex, stress.csv, stress_cases.csv, stress.png and
            corruptions.png.
        trust: See `open_run`.
        moved_to: Where the data of the runs is today; None for where it was.
        width: Columns of the terminal; None for no limit.

    Returns:
        The text to print.

    Raises:
        InputError: There is no finished run, a file is damaged, a test case has changed, or a
            corruption is unknown.
    """
    keep_freed_memory()
    names = [*CORRUPTIONS] if only is None else [*dict.fromkeys(only.split(","))]
    for name in names:
        if name not in CORRUPTIONS:
            raise InputError(f"--only {name}: expected some of {', '.join(CORRUPTIONS)}")
    if out is not None:
        refuse_run_files(out)
    rows, notes = make_rows(find_runs(dirs))
    rows = [row for row in rows if row.finished_runs]
    runs = [open_run(run.folder, trust, moved_to) for row in rows for run in row.finished_runs]
    if not runs:
        raise InputError(f"{dirs[0]}: holds no finished run; train it to its end")
    dice = {run.folder: _score_run(run, names, trust) for run in runs}
    stressed = [_average_runs(row, dice, names) for row in rows]
    records = [record for of_row in stressed for record in _summarize(of_row)]
    table = _make_table(rows, records, [*describe_gaps(rows), *notes])
    if out is not None:
        _write(expand_user(out), table, records, stressed)
        _save_examples(expand_user(out) / "corruptions.png", runs[0], names)
    return format_plain(table, width)


def _score_run(run: Run, names: Sequence[str], trust: tuple[str, ...]) -> Dice:
    """Score a run, except for what an earlier call has scored."""
    cases, model = read_test_cases([run]), load_run_model(run, trust)
    hashes = {case.id: run.sha256[case.id] for case in cases}
    # All that the values depend on.
    code = hash_file(corruptions.__file__)
    key = hash_json([model.sha256, asdict(model.inference), hashes, code])
    dice = {}
    for name in names:
        file = run.paths.stress / f"{name}.json"
        stored = read_json(file) if file.exists() else {}
        if stored.get("key") != key:
            bar = tqdm(cases, f"{run.folder.name} {name}", unit="case", disable=None, leave=False)
            scored = {case.id: _score_case(case, model, name, hashes[case.id]) for case in bar}
            stored = {"key": key, "dice": scored}
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, stored)
        dice[name] = stored["dice"]
    log.info("%s: %d test cases, %d corruptions", run.folder, len(cases), len(names))
    return dice


def _score_case(case: Case, model: Model, name: str, key: str) -> list[float]:
    """Return the Dice at severities 1, 2 and 3."""
    image, target = read_pair(case)
    dice = []
    for severity in SEVERITIES:
        pred = model.predict(corrupt(image, name, severity, key))
        counts = [confusion_counts(pred == k, target == k) for k in case.classes.foreground]
        dice.append(_mean_dice(np.array(counts)))
    return dice


def _mean_dice(counts: np.ndarray) -> float:
    """Return the mean Dice of K foreground classes from their counts, (K, 4)."""
    return float(score_terms(counts)["dice_per_image"][:, 0].mean())


def _average_runs(row: Row, dice: Mapping[Path, Dice], names: Sequence[str]) -> StressedRow:
    by_case: dict[CaseKey, list[list[list[float]]]] = defaultdict(list)
    tested = {case for of_seed in row.case_values.values() for case in of_seed}
    for run in row.finished_runs:
        for case in tested & run.tested.keys():
            clean = _mean_dice(run.tested[case][1 if row.classes else 0 :, :4])
            by_case[case].append([[clean, *dice[run.folder][name][case.id]] for name in names])
    cases = sorted(by_case)
    values = np.array([np.mean(by_case[case], axis=0) for case in cases]).T  # (4, names, n)
    averaged = {name: values[:, i] for i, name in enumerate(names)}
    if len(names) > 1:
        averaged[MEAN] = values.mean(1)
    return StressedRow(row, cases, averaged)


def _summarize(stressed: StressedRow) -> list[dict[str, Any]]:
    """Return lines of stress.csv, four for each corruption: means with 95 % intervals."""
    row, cases, by_name = stressed
    dice = np.array([*by_name.values()])
    values = np.stack([dice, dice[:, :1] - dice], 2).reshape(-1, len(cases))
    ends = intervals(mean_terms(values, np.ones(values.shape, bool))[:, None])
    scores = np.column_stack([values.mean(1), ends]).reshape(-1, len(COLUMNS))
    return [
        row.labels
        | {"label": row.label, "corruption": name, "severity": severity, "n": len(cases)}
        | dict(zip(COLUMNS, values, strict=True))
        for (name, severity), values in zip(
            itertools.product(by_name, (0, *SEVERITIES)), scores.tolist(), strict=True
        )
    ]


def _make_table(
    rows: Sequence[Row], records: Sequence[dict[str, Any]], notes: Sequence[str]
) -> Table:
    body, names = [], {record["corruption"]: None for record in records}
    for start in range(0, len(records), 4):
        curve = records[start : start + 4]
        drops = ["{drop:z.3f} [{drop_low:z.3f}, {drop_high:z.3f}]".format(**r) for r in curve[1:]]
        label = curve[0]["label"] if start % (4 * len(names)) == 0 else ""
        dice = [f"{record['dice_per_image']:.3f}" for record in curve]
        body.append([label, curve[0]["corruption"], *dice, *drops])
    head = ["row", "corruption", *(f"Dice {k}" for k in (0, *SEVERITIES))]
    head += [f"drop {k}" for k in SEVERITIES]
    strengths = [
        f"{name} {', '.join(f'{strength:g}' for strength in strengths)} ({unit})"
        for name, (_, unit, strengths) in CORRUPTIONS.items()
        if name in names
    ]
    notes = [
        "Dice k: Dice per image at severity k, 0 for the test cases as they are; drop k: Dice 0 "
        "minus Dice k of the same cases",
        f"severities 1, 2, 3: {'; '.join(strengths)}",
        *notes,
        *describe_cautions(rows, [len(row.cases) for row in rows]),
    ]
    first = 0 if len(rows) > 1 else 1  # one row needs no label
    title = describe_protocol(rows)
    return Table(title, head[first:], 2 - first, [line[first:] for line in body], notes)


def _write(
    folder: Path, table: Table, records: list[dict[str, Any]], stressed: Sequence[StressedRow]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "stress.md", format_markdown(table))
    write_atomic(folder / "stress.tex", format_latex(table))
    write_csv(folder / "stress.csv", records)
    case_records = [
        {"label": row.label, "corruption": name, "severity": severity}
        | {"id": case.id, "diagnosis": case.diagnosis, "dice_per_image": value}
        for row, cases, dice in stressed
        for name, by_severity in dice.items()
        for severity, values in enumerate(by_severity.tolist())
        for case, value in zip(cases, values, strict=True)
        if name != MEAN
    ]
    write_csv(folder / "stress_cases.csv", case_records)
    save_stress_curves(folder / "stress.png", records)


def _save_examples(path: Path, run: Run, names: Sequence[str]) -> None:
    """Draws a test case with each corruption, at each severity."""
    case = read_test_cases([run])[0]
    image, _ = read_pair(case)
    columns = {"severity 0": [image] * len(names)}
    for k in SEVERITIES:
        columns[f"severity {k}"] = [corrupt(image, name, k, run.sha256[case.id]) for name in names]
    save_cases(path, columns, [name.replace("_", " ") for name in names], f"case {case.id}")
