"""Writes a self-contained HTML page of runs: scores, training curves and the worst test cases.

The page is report.html beside this file with the data filled in as JSON. Its script turns texts of
run directories into text nodes, never markup, and its policy forbids everything but that script.
"""

import base64
import hashlib
import itertools
import json
import logging
import math
import os
import re
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seglab.analysis.compare import make_lines, make_table
from seglab.analysis.doubtful import N_SHOWN, make_doubt_table, rank_annotations
from seglab.analysis.gallery import make_gallery
from seglab.analysis.grouping import make_rows
from seglab.analysis.learning_curve import find_learning_curves, make_learning_table
from seglab.analysis.paired import find_pairs, make_versus_table, run_paired_tests
from seglab.analysis.rows import Row
from seglab.analysis.slices import make_slices_table, score_slices
from seglab.analysis.tables import Table
from seglab.core.errors import InputError
from seglab.core.files import expand_user, read_json, write_atomic
from seglab.metrics.confidence import RISK_METRICS, risk_coverage
from seglab.metrics.scores import BOUNDARY_METRICS, DEFAULT_METRICS, IN_PIXELS
from seglab.runs.paths import refuse_damaged, refuse_run_files
from seglab.runs.records import Run, find_runs
from seglab.runs.tables import read_metric_history

log = logging.getLogger(__name__)

REPORT_METRICS = (*DEFAULT_METRICS, *BOUNDARY_METRICS)
COLUMNS_NOTE = (
    f"{', '.join(sorted(IN_PIXELS))} is in pixels, less is better; val is Dice per image of val; "
    "train s and images/s are of training, means over runs"
)
AURC_NOTE = (
    "aurc is the area under the curve, the mean of the risks of the k most confident cases over "
    "all k, less is better; aurc_random and aurc_oracle are those of chance and of the oracle"
)
RISK = "risk: mean of 1 - Dice over the share of cases that is most confident"
RISK_PARTS = "solid: by confidence, dashed: by true Dice (oracle), dotted: chance"
MAX_ROWS = 6  # rows with curves and predictions: there are as many colours
DEFAULT_MONITOR = "val/dice_per_image_net"  # its curve is drawn where no value of val is monitored


def report(
    dirs: Sequence[str | Path],
    out: str | Path | None = None,
    trust: tuple[str, ...] = (),
    versus: Sequence[tuple[str, str]] = (),
    data_root: str | Path | None = None,
    cases: int = 24,
    transfer: str | Path | None = None,
) -> Path:
    """Write the page.

    Predictions are computed from the checkpoints, as `seglab.inference.evaluate.evaluate` does.
    Page and log say what cannot be shown: data that is missing or has changed, a run without its
    checkpoint.

    Args:
        dirs: Folders that hold runs, at any depth.
        out: File to write; None for report.html in the only folder.
        trust: Names of code that configs may hold, as in `open_run`.
        versus: Pairs of rows for paired tests of Dice, as in `compare`.
        data_root: Where the runs' data is today; None for where it was.
        cases: Number of test cases to show with the lowest Dice, and with the lowest confidence.
        transfer: Folder that `transfer` wrote to, whose table is shown.

    Returns:
        The file.

    Raises:
        InputError: There is no finished run, a row is unknown, a file is damaged or cannot be
            written.
    """
    if cases < 0:
        raise InputError(f"--cases {cases}: expected a number of cases, 0 or more")
    table = {} if transfer is None else {"transfer": _load_transfer(expand_user(transfer))}
    rows, notes = make_rows(find_runs(dirs))
    out = _check_output(dirs, out)
    finished = [row for row in rows if row.finished_runs]
    if not finished:
        raise InputError(
            f"{dirs[0]}: holds no finished run; name a folder of runs that train has ended"
        )
    pairs = find_pairs(versus, rows)
    report_rows = _choose_rows(finished, pairs)
    if len(report_rows) < len(finished):
        notes.append(
            f"training and test cases, below, are those of {MAX_ROWS} rows: of --versus, then of "
            "the best val; name folders of other runs for theirs"
        )
        log.warning("%s", notes[-1])
    tested = dict.fromkeys(run for row in report_rows for run in row.finished_runs)
    ranked = rank_annotations([*tested])
    doubtful_cases = [found.case for found in ranked[:N_SHOWN]]
    slices = make_slices_table(score_slices(report_rows, "dice_per_image"), "dice_per_image")
    page: dict[str, Any] = {
        "title": "; ".join(row.label for row in report_rows),
        "facts": _make_facts([run for row in finished for run in row.finished_runs]),
        "curves": _make_curves(report_rows),
        "risk": _make_risk(report_rows),
        "slices": _table_data(slices),
        "doubtful": _table_data(make_doubt_table(ranked)),
        "gallery": make_gallery(report_rows, cases, doubtful_cases, trust, data_root),
    }
    if learning_curves := find_learning_curves(rows):
        page["learning"] = _table_data(make_learning_table(learning_curves))
    page |= _make_tables(rows, notes) | _make_versus(pairs, report_rows) | table
    for note in page["gallery"]["notes"]:
        log.warning("%s", note)
    write_atomic(out, _fill_template(page))
    return out


def _check_output(dirs: Sequence[str | Path], out: str | Path | None) -> Path:
    """Return the file to write; refuse a bad one before minutes are spent on predictions."""
    if out is None and len(dirs) > 1:
        raise InputError("--out: name the file to write, there are several folders")
    file = expand_user(Path(dirs[0], "report.html") if out is None else out)
    refuse_run_files(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.is_dir() or not os.access(file.parent, os.W_OK):
        raise InputError(f"{file}: expected a file that can be written; name one with --out")
    return file


def _choose_rows(finished: Sequence[Row], pairs: Sequence[tuple[Row, Row]]) -> list[Row]:
    """Choose the rows with curves and predictions: those of pairs, then the best by val."""
    by_val = sorted(
        finished, key=lambda row: -math.inf if row.val_dice is None else row.val_dice, reverse=True
    )
    in_pairs = [row for row in itertools.chain(*pairs) if row.finished_runs]
    labels = [*dict.fromkeys(row.label for row in [*in_pairs, *by_val])][:MAX_ROWS]
    return [row for row in finished if row.label in labels]


def _make_facts(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Return where the numbers come from, by heading."""
    data, code = set(), set()
    for run in runs:
        provenance = run.provenance
        root = Path(run.settings.get("data.root", ""))
        roots = [root / run.settings[f"data.sets.{name}.root"] for name in run.sets] or [root]
        data.add(f"{', '.join(map(str, roots))} ({provenance.data[:12] or 'unknown'})")
        version = f"seglab {provenance.versions.get('seglab', '?')}"
        changes = ", with uncommitted changes" if provenance.dirty else ""
        code.add(f"{version}, commit {provenance.commit[:12] or 'unknown'}{changes}")
    days = sorted(run.provenance.started[:10] for run in runs)
    facts = {"Data": data, "Started": {days[0], days[-1]}, "Code": code}
    return [(name, "; ".join(sorted(texts))) for name, texts in facts.items()]


def _make_tables(rows: list[Row], notes: Sequence[str]) -> dict[str, Any]:
    """Make the tables of all cases, of each diagnosis, and of risk by confidence."""
    lines = make_lines(rows, (*REPORT_METRICS, *RISK_METRICS), by_diagnosis=True)
    whole_lines = [line for line in lines if line.diagnosis is None]
    risk_lines = [line for line in whole_lines if line.row.finished_runs]  # not of baselines
    risk = make_table(rows, risk_lines, notes, RISK_METRICS, by_diagnosis=False)
    whole = make_table(rows, whole_lines, notes, REPORT_METRICS, by_diagnosis=False)
    parts = make_table(rows, lines, notes, REPORT_METRICS, by_diagnosis=True)
    # Columns of costs are left out of the second: they are of all cases.
    n_columns = parts.n_text_columns + 1 + len(REPORT_METRICS)
    part_notes = [note for note in parts.notes if note not in whole.notes]
    n_risk_columns = risk.n_text_columns + 1 + len(RISK_METRICS)
    return {
        "table": _table_data(whole._replace(notes=[COLUMNS_NOTE, *whole.notes])),
        "diagnoses": _table_data(parts._replace(notes=part_notes), n_columns),
        "aurc": _table_data(risk._replace(notes=[AURC_NOTE]), n_risk_columns),
    }


def _make_versus(pairs: Sequence[tuple[Row, Row]], report_rows: Sequence[Row]) -> dict[str, Any]:
    """Make the table of paired tests, and the pairs by their numbers in `report_rows`."""
    if not pairs:
        return {}
    metric = "dice_per_image"
    table = make_versus_table(run_paired_tests(pairs, metric), pairs, metric)
    numbers = {row.label: number for number, row in enumerate(report_rows)}
    both = [(a.label, b.label) for a, b in pairs if {a.label, b.label} <= numbers.keys()]
    return {"versus": _table_data(table), "pairs": [[numbers[a], numbers[b]] for a, b in both]}


def _table_data(table: Table, n_columns: int | None = None) -> dict[str, Any]:
    return {
        "title": table.title,
        "head": table.head[:n_columns],
        "left": table.n_text_columns,
        "body": [cells[:n_columns] for cells in table.body],
        "notes": table.notes,
    }


def _load_transfer(folder: Path) -> dict[str, Any]:
    """Load the table and the heat map of a folder that `transfer` wrote to."""
    path = folder / "transfer.json"
    if not path.is_file():
        raise InputError(f"--transfer {folder}: holds no {path.name}; name the --out of transfer")
    with refuse_damaged(path) as file:
        table = _table_data(Table(**read_json(file)))
        png = base64.b64encode(file.with_suffix(".png").read_bytes()).decode()
        return table | {"figure": f"data:image/png;base64,{png}"}


def _make_curves(report_rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return losses and monitored metrics over epochs: mean and range of a row's runs.

    Rows of several data sets of the same runs share their lines, those of the first.
    """
    panels: dict[str, list[dict[str, Any]]] = defaultdict(list)
    drawn = set()
    for number, row in enumerate(report_rows):
        folders = frozenset(run.folder for run in row.finished_runs)
        if folders in drawn:
            continue
        drawn.add(folders)
        monitor = row.settings.get("monitor", "")
        if not monitor.startswith("val/"):
            monitor = DEFAULT_MONITOR
        for name in dict.fromkeys(["loss", monitor.removeprefix("val/")]):
            for part in ("train", "val"):
                curves = [
                    read_metric_history(run.folder, f"{part}/{name}")
                    for run in row.finished_runs
                    if run.was_trained
                ]
                epochs = sorted({epoch for curve in curves for epoch in curve})
                by_epoch = [
                    [curve[epoch] for curve in curves if epoch in curve] for epoch in epochs
                ]
                line: dict[str, Any] = {"row": number, "part": part, "x": epochs}
                line["mean"] = [statistics.fmean(values) for values in by_epoch]
                line |= {"low": [*map(min, by_epoch)], "high": [*map(max, by_epoch)]}
                if epochs:
                    panels[name].append(line)
    parts = "dashed: train, solid: val"
    if any(row.set for row in report_rows):
        parts += "; a run's data sets together"
    axis = {"axis": "epoch", "parts": parts}
    return [{"name": name, **axis, "lines": lines} for name, lines in panels.items()]


def _make_risk(report_rows: Sequence[Row]) -> dict[str, Any]:
    """Return the risk-coverage curve of each row, of an oracle and of chance, in percents.

    Curves are averaged over seeds and over classes except background.
    """
    percents = np.arange(1, 101)
    lines = []
    for number, row in enumerate(report_rows):
        dice, confidence = (
            (row.terms[name][..., 0] / row.terms[name][..., 1]).reshape(-1, len(row.cases))
            for name in ("dice_per_image", "confidence")
        )
        if np.isnan(confidence).any():  # masks without probabilities
            continue
        last = np.ceil(len(row.cases) * percents / 100).astype(int) - 1
        curves = {
            "confidence": np.array([*map(risk_coverage, confidence, dice)]),
            "oracle": np.array([*map(risk_coverage, dice, dice)]),
            "chance": np.full(dice.shape, 1 - dice.mean()),
        }
        for part, found in curves.items():
            mean = found.mean(0)[last].tolist()
            line = {"row": number, "part": part, "x": percents.tolist()}
            lines.append(line | {"mean": mean, "low": mean, "high": mean})
    return {"name": RISK, "axis": "coverage, %", "parts": RISK_PARTS, "lines": lines}


def _fill_template(data: dict[str, Any]) -> str:
    """Return report.html with the data, and a policy that allows nothing but its own parts."""
    template = Path(__file__).with_suffix(".html").read_text("utf-8")
    policy = "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:"
    for tag in ("style", "script"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", template, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        policy += f"; {tag}-src 'sha256-{digest}'"
    # ASCII without '<': no name can end the element that holds the data.
    text = json.dumps(data, separators=(",", ":")).replace("<", r"\u003c")
    return template.replace("POLICY", policy, 1).replace("DATA", text, 1)
