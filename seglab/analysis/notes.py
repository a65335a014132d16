"""Sentences around the results table: the protocol above it, gaps and cautions below it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from seglab.analysis.labels import natural_key, varied_settings
from seglab.analysis.rows import Row
from seglab.runs.records import UNKNOWN

MIN_CASES_FOR_INTERVAL = 50
NARROW_INTERVAL_CAUTION = (
    f"intervals over fewer than {MIN_CASES_FOR_INTERVAL} cases are too narrow: in simulations, "
    "those of BCa (95 %) held the truth in about 83 % at 14 cases, in 88 % at 28"
)
MAX_LISTED_SEEDS = 8


def describe_status(status: str) -> str:
    """Return a status in words; the process of a running run may be gone."""
    return "running or killed" if status == "running" else status


def describe_protocol(rows: Iterable[Row]) -> str:
    """Return in one line what the numbers are of."""
    rows = [row for row in rows if row.finished]
    if not rows:
        return "no finished run"
    sizes = sorted({len(row.cases) for row in rows})
    cases = "1 test case" if sizes == [1] else f"{sizes[0]} test cases"
    if len(sizes) > 1:
        cases = f"{sizes[0]} to {sizes[-1]} test cases"
    protocols = sorted({row.settings["protocol"] for row in rows}, key=natural_key)
    once = "" if any("run" in row.settings for row in rows) else ", each case out of fold once"
    folds = [p + once if p.endswith(" folds") else p for p in protocols]
    files = {row.settings.get("data.split.file", "null") for row in rows} - {"null"}
    splits = {row.settings.get("data.split.seed", UNKNOWN) for row in rows}
    split = f"split seed {', '.join(sorted(splits, key=natural_key))}"
    if files:
        split = f"split of {', '.join(sorted(Path(file).name for file in files))}"
    seeds = sorted({seed for row in rows for seed in row.scored}, key=natural_key)
    values = f"seed {seeds[0]}: value"
    if len(seeds) > 1:
        values = f"seeds {', '.join(seeds)}: mean ± standard deviation over seeds"
    return (
        f"{cases}; {' and '.join(folds)}; {split}; scored at native resolution; {values} "
        "[95 % interval over cases]"
    )


def describe_gaps(rows: Sequence[Row]) -> list[str]:
    """Return what is missing and why; rows that lack the same share a note."""
    labels_by_note: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        seeds_by_reason = _find_gaps(row)
        gaps = [_format_gap(row, *item) for item in seeds_by_reason.items()]
        is_partial = row.status == "incomplete"
        if is_partial:
            gaps += _describe_left_out(
                row, {s for seeds in seeds_by_reason.values() for s in seeds}
            )
        if gaps:
            labels_by_note["* " * is_partial + "{}: " + "; ".join(gaps)].append(row.label)
    notes = [note.replace("{}", " | ".join(names), 1) for note, names in labels_by_note.items()]
    if len({tuple(row.cases) for row in rows if row.finished}) > 1:
        notes.append("rows were not tested on the same cases: their values cannot be compared")
    return notes


def _find_gaps(row: Row) -> dict[str, dict[str, list[str]]]:
    """Folds that are not finished, by reason and seed."""
    gaps: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for (seed, fold), run in row.cells.items():
        if run is None:
            gaps["missing"][seed].append(fold)
        elif run.status != "finished":
            error = f" ({run.error})" if run.error else ""
            gaps[describe_status(run.status) + error][seed].append(fold)
    return gaps


def _format_gap(row: Row, reason: str, folds_by_seed: dict[str, list[str]]) -> str:
    places = []
    for seed, folds in folds_by_seed.items():
        has_all_folds = len(folds) == sum(key[0] == seed for key in row.cells)
        places.append(f"seed {seed}" + ("" if has_all_folds else f" fold {' '.join(folds)}"))
    more = len(places) - MAX_LISTED_SEEDS
    listed = ", ".join(places[:MAX_LISTED_SEEDS])
    return f"{reason}: {listed}" + (f" and {more} more" if more > 0 else "")


def _describe_left_out(row: Row, named_seeds: set[str]) -> list[str]:
    partial = [s for s in row.counts if s not in row.complete and s not in named_seeds]
    texts = [f"{len(row.counts[seed])} of {row.n_cases} cases: seed {seed}" for seed in partial]
    left_out = [seed for seed in row.counts if seed not in row.scored]
    if left_out:
        texts.append(f"left out of the values, as incomplete: seed {', '.join(left_out)}")
    elif len(row.counts) > 1:
        texts.append("no seed is complete: values are means over those that have a case")
    return texts


def describe_cautions(rows: Sequence[Row], sizes: Iterable[int]) -> list[str]:
    """Return what a reader of the numbers should know.

    Args:
        rows: Rows of the table.
        sizes: Numbers of cases that its intervals are over.
    """
    notes = [NARROW_INTERVAL_CAUTION] * any(n < MIN_CASES_FOR_INTERVAL for n in sizes)
    if len({row.classes for row in rows if row.classes}) > 1:
        notes.append("rows tell other classes apart: their means are of different things")
    sources = {run.provenance.source for row in rows for run in row.finished} - {""}
    if len(sources) > 1:
        notes.append(f"runs of {len(sources)} states of seglab's code stand in one table")
    by_protocol: dict[frozenset[tuple[str, str]], list[Row]] = defaultdict(list)
    for row in rows:
        if row.finished:
            by_protocol[row.protocol_key].append(row)
    for members in by_protocol.values():
        if len({run.provenance.data for row in members for run in row.finished} - {""}) > 1:
            labels = " | ".join(row.label for row in members)
            notes.append(f"runs of one protocol read different data: {labels}")
    is_pruned = any(run.status == "pruned" for row in rows for run in row.runs)
    # Of models or experiments all are of interest; of settings the best is.
    if is_pruned or varied_settings(rows) - {"name", "model._target_"}:
        notes.append("choose by val: test values of many rows flatter the best of them")
    return notes
