"""Scores finished runs on worse pictures: their test cases, corrupted in nine ways."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from seglab.analysis.figures import save_cases, save_stress_curves
from seglab.analysis.grouping import make_rows
from seglab.analysis.notes import describe_cautions, describe_gaps, describe_protocol
from seglab.analysis.rows import Row
from seglab.analysis.statistics import intervals
from seglab.analysis.tables import Table, format_plain, write_table
from seglab.core.errors import InputError
from seglab.core.files import expand_user, hash_json, read_json, write_csv, write_json
from seglab.core.memory import keep_freed_memory
from seglab.data import corruptions
from seglab.data.cases import Case, read_pair
from seglab.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from seglab.inference.evaluate import load_run_model, read_test_cases
from seglab.inference.models import Model
from seglab.metrics.scores import confusion_counts, mean_terms, score_terms
from seglab.runs.paths import refuse_run_files
from seglab.runs.records import Run, find_runs, open_run

COLUMNS = [f"{name}{end}" for name in ("dice_per_image", "drop") for end in ("", "_low", "_high")]
Dice = dict[str, list[list[float]]]  # by case id: of each corruption, at severities 1, 2 and 3
Records = list[dict[str, Any]]  # lines of a CSV file


def stress(
    dirs: Sequence[str | Path],
    only: str | None = None,
    out: str | Path | None = None,
    trust: tuple[str, ...] = (),
    moved_to: str | Path | None = None,
    width: int | None = None,
) -> str:
    """Score runs on corrupted versions of their test cases, each run with its own settings.

    Scores are kept in `evaluations` of each run, so that an interrupted call goes on.

    Args:
        dirs: Folders that hold runs, at any depth, which become rows as in `compare`.
        only: Names of `CORRUPTIONS`, joined by commas; None for all.
        out: Folder that gets tables and figures.
        trust: See `open_run`.
        moved_to: Where the data of the runs is today; None for where it was.
        width: Columns of the terminal; None for no limit.

    Returns:
        The text to print.
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
    folders = [run.folder for row in rows for run in row.finished_runs]
    if not folders:
        raise InputError(f"{dirs[0]}: holds no finished run; train it to its end")
    opened = {folder: open_run(folder, trust, moved_to) for folder in folders}
    scored = {folder: _score_run(run, names, trust) for folder, run in opened.items()}
    lines = [_describe_row(row, scored, names) for row in rows]
    records, case_records = ([*itertools.chain(*of_rows)] for of_rows in zip(*lines, strict=True))
    table = _make_table(rows, records, [*describe_gaps(rows), *notes])
    if out is not None:
        folder = expand_user(out)
        write_table(folder, "stress", table, records)
        write_csv(folder / "stress_cases.csv", case_records)
        save_stress_curves(folder / "stress.png", records)
        _save_examples(folder / "corruptions.png", opened[folders[0]], names)
    return format_plain(table, width)


def _score_run(run: Run, names: Sequence[str], trust: tuple[str, ...]) -> Dice:
    """Score the test cases of a run, except for what an earlier call has scored."""
    cases, model = read_test_cases([run]), load_run_model(run, trust)
    code = Path(corruptions.__file__).read_text("utf-8")
    hashes = {case.id: run.sha256[case.id] for case in cases}
    key = hash_json([model.sha256, asdict(model.inference), hashes, code])
    dice: Dice = {case.id: [] for case in cases}
    for name in names:
        file = run.paths.stress / f"{name}.json"
        stored = read_json(file) if file.exists() else {}
        if stored.get("key") != key:
            bar = tqdm(cases, f"{run.folder.name} {name}", unit="case", disable=None, leave=False)
            worse = {case.id: _score_case(case, model, name, hashes[case.id]) for case in bar}
            stored = {"key": key, "dice": worse}
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, stored)
        for id, values in dice.items():
            values.append(stored["dice"][id])
    return dice


def _score_case(case: Case, model: Model, name: str, key: str) -> list[float]:
    """Return the Dice at each severity, as means over foreground classes."""
    image, target = read_pair(case)
    dice = []
    for severity in SEVERITIES:
        pred = model.predict(corrupt(image, name, severity, key))
        counts = [confusion_counts(pred == k, target == k) for k in case.classes.foreground]
        dice.append(float(score_terms(np.array(counts))["dice_per_image"][:, 0].mean()))
    return dice


def _describe_row(
    row: Row, scored: Mapping[Path, Dice], names: Sequence[str]
) -> tuple[Records, Records]:
    """Return lines of stress.csv, with 95 % intervals over cases, and of stress_cases.csv."""
    runs = [run for seed in row.scored for run in row.runs_of_seed(seed)]
    clean = row.by_case("dice_per_image")
    by_case = []
    for case in row.cases:
        worse = [scored[run.folder][case.id] for run in runs if case in run.tested]
        by_case.append([[clean[case], *dice] for dice in np.mean(worse, axis=0).tolist()])
    dice = np.moveaxis(np.array(by_case), 0, 2)  # (names, 4, n)
    if len(names) > 1:
        dice = np.concatenate([dice, dice.mean(0, keepdims=True)])
    lines = [
        {"label": row.label, "corruption": name, "severity": severity}
        for name in (*names, "mean")[: len(dice)]
        for severity in (0, *SEVERITIES)
    ]
    case_records = [
        line | {"id": case.id, "diagnosis": case.diagnosis, "dice_per_image": value}
        for line, values in zip(lines, dice.reshape(len(lines), -1).tolist(), strict=True)
        for case, value in zip(row.cases, values, strict=True)
    ]
    values = np.stack([dice, dice[:, :1] - dice], 2).reshape(-1, len(row.cases))
    ends = intervals(mean_terms(values, np.ones(values.shape, bool))[:, None])
    scores = np.column_stack([values.mean(1), ends]).reshape(-1, len(COLUMNS))
    records = [
        row.labels | line | {"n": len(row.cases)} | dict(zip(COLUMNS, of_line, strict=True))
        for line, of_line in zip(lines, scores.tolist(), strict=True)
    ]
    return records, case_records


def _make_table(rows: Sequence[Row], records: Records, notes: Sequence[str]) -> Table:
    body = []
    for curve in (records[start : start + 4] for start in range(0, len(records), 4)):
        label, name = curve[0]["label"], curve[0]["corruption"]
        dice = [f"{record['dice_per_image']:.3f}" for record in curve]
        drops = ["{drop:z.3f} [{drop_low:z.3f}, {drop_high:z.3f}]".format(**r) for r in curve[1:]]
        body.append([label if name == records[0]["corruption"] else "", name, *dice, *drops])
    head = ["row", "corruption", *(f"Dice {k}" for k in range(4)), "drop 1", "drop 2", "drop 3"]
    strengths = [f"{k} {v}" for k, (_, v) in CORRUPTIONS.items() if k in {line[1] for line in body}]
    notes = [
        "Dice k: Dice per image at severity k, 0 for the test cases as they are; drop k: Dice 0 "
        "minus Dice k of the same cases",
        f"severities: {', '.join(strengths)}; seglab/data/README.md states the units",
        *notes,
        *describe_cautions(rows, [len(row.cases) for row in rows]),
    ]
    first = 0 if len(rows) > 1 else 1  # one row needs no label
    body = [line[first:] for line in body]
    return Table(describe_protocol(rows), head[first:], 2 - first, body, notes)


def _save_examples(path: Path, run: Run, names: Sequence[str]) -> None:
    """Draws a test case with each corruption, at each severity."""
    case = read_test_cases([run])[0]
    image, key = read_pair(case)[0], run.sha256[case.id]
    columns = {"severity 0": [image] * len(names)}
    columns |= {f"severity {k}": [corrupt(image, n, k, key) for n in names] for k in SEVERITIES}
    save_cases(path, columns, [name.replace("_", " ") for name in names], f"case {case.id}")
