"""Sentences around the results table: the protocol above it, gaps and cautions below it."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from seglab.analysis.grouping import natural_key, settings_that_vary
from seglab.analysis.rows import Row
from seglab.runs.records import UNKNOWN

MIN_CASES_FOR_INTERVAL = 50
NARROW_INTERVAL_CAUTION = (
    f"intervals over fewer than {MIN_CASES_FOR_INTERVAL} cases are too narrow: in simulations, "
    "those of BCa (95 %) held the truth in about 83 % at 14 cases, in 88 % at 28"
)


def describe_status(status: str) -> str:
    """Return a status in words; the process of a running run may be gone."""
    return "running or killed" if status == "running" else status


def describe_protocol(rows: Iterable[Row]) -> str:
    """Return in one line which cases and runs the numbers are of."""
    rows = [row for row in rows if row.finished_runs]
    if not rows:
        return "no finished run"
    sizes = _describe_range([row.n_cases for row in rows])
    cases = "1 test case" if sizes == "1" else f"{sizes} test cases"
    if rows[0].selection:
        chosen = _describe_range([len(row.cases) for row in rows])
        cases = f"{chosen} of {cases}, those of {rows[0].selection.file}"
    protocols = sorted({row.protocol for row in rows}, key=natural_key)
    once = ", each case out of fold once"
    folds = [p + once if p.endswith(" folds") else p for p in protocols]
    of_seeds = [run for row in rows for seed in row.scored for run in row.runs_of_seed(seed)]
    seeds_of_all = {seed for run in of_seeds for seed in run.seed.split(", ")}  # of an ensemble
    seeds = sorted(seeds_of_all - {UNKNOWN}, key=natural_key)
    *first, last = folds
    protocol = f"{', '.join(first)} and {last}" if first else last
    parts = [cases, protocol, *_describe_splits(rows), "scored at native resolution"]
    parts += [f"seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}"] if seeds else []
    return "; ".join(parts)


def _describe_splits(rows: Iterable[Row]) -> list[str]:
    """Return what the splits of rows were made of, as far as it is known."""
    files, seeds = set(), set()
    for row in rows:
        file = row.settings.get("data.split.file", "null")
        if file != "null":
            files.add(Path(file).name)
        elif row.was_trained and "data.split.seed" in row.settings:
            seeds.add(row.settings["data.split.seed"])
    parts = [f"split seed {', '.join(sorted(seeds, key=natural_key))}"] if seeds else []
    return parts + ([f"split of {', '.join(sorted(files))}"] if files else [])


def _describe_range(numbers: Sequence[int]) -> str:
    ends = sorted({min(numbers), max(numbers)})
    return " to ".join(map(str, ends))


def describe_values(rows: Iterable[Row]) -> str:
    """Return what the cells of the table hold, and what their intervals are over."""
    repeated = [row for row in rows if row.is_repeated]
    single = "value [95 % interval over cases]"
    if not repeated:
        return single
    repetitions = "networks" if all(row.folds_are_seeds for row in repeated) else "seeds"
    return (
        f"mean ± standard deviation over {repetitions} [95 % interval over {repetitions} and "
        f"cases]; without ±: {single}"
    )


def describe_repetitions(rows: Iterable[Row]) -> list[str]:
    """Return what seeds vary, and what the intervals over them are worth."""
    repeated = [row for row in rows if row.is_repeated]
    notes = []
    if not all(row.folds_are_seeds for row in repeated):
        notes.append(
            "an interval over seeds and cases is for training again with another seed "
            "(initialisation, order, augmentation; the split stays) and testing other cases"
        )
    notes += [
        f"{row.label}: every fold tests the same cases, so folds count as seeds: ± and the "
        f"interval are over {len(row.scored)} networks, whose training cases differ in part"
        for row in repeated
        if row.folds_are_seeds
    ]
    if any(len(row.scored) == 2 for row in repeated):
        notes.append(
            "intervals over two seeds are wide, because two values hardly tell how much seeds "
            "vary: a third seed narrows them"
        )
    return notes


def describe_gaps(rows: Sequence[Row]) -> list[str]:
    """Return what is missing in each row, and why."""
    notes = []
    for row in rows:
        folds_by_gap: dict[tuple[str, str], list[str]] = defaultdict(list)
        for (seed, fold), run in row.cells.items():
            if run is None or not run.is_scored:
                reason = describe_status(run.status) if run else "missing"
                if run and run.error:
                    reason += f" ({run.error})"
                folds_by_gap[reason, seed].append(fold)
        places: dict[str, list[str]] = defaultdict(list)
        for (reason, seed), folds in folds_by_gap.items():
            places[reason].append(f"seed {seed}" + (f" fold {' '.join(folds)}" if folds[0] else ""))
        gaps = [f"{reason}: {', '.join(seeds)}" for reason, seeds in places.items()]
        if row.status == "incomplete":
            gaps += _describe_incomplete(row)
        if gaps:
            note = f"{row.label}: {'; '.join(gaps)}"
            notes.append(f"* {note}" if row.mark else note)
    if len({frozenset(c.content for c in row.cases) for row in rows if row.finished_runs}) > 1:
        notes.append("rows were not tested on the same cases: their values cannot be compared")
    return notes


def _describe_incomplete(row: Row) -> list[str]:
    if not row.complete_seeds:
        note = "no seed is complete: values are means over those that have a case"
        return [note] if len(row.case_values) > 1 else []
    seeds = [
        f"seed {seed} ({len(cases)} of {row.n_cases} cases)"
        for seed, cases in row.case_values.items()
        if seed not in row.complete_seeds
    ]
    return [f"left out of the values, as incomplete: {', '.join(seeds)}"] if seeds else []


def describe_cautions(rows: Sequence[Row], sizes: Iterable[int]) -> list[str]:
    """Return what a reader should know of rows whose intervals are over these numbers of cases."""
    notes = [NARROW_INTERVAL_CAUTION] if any(n < MIN_CASES_FOR_INTERVAL for n in sizes) else []
    if any(row.selection for row in rows):
        notes.append("if cases were selected by their scores, intervals and p values do not hold")
    if len({row.classes for row in rows if row.classes}) > 1:
        notes.append("rows have different classes: their means are of different things")
    networks = [r for row in rows for r in row.finished_runs if r.status != "imported"]
    sources = {run.provenance.source for run in networks} - {""}
    if len(sources) > 1:
        notes.append(f"runs of {len(sources)} states of seglab's code stand in one table")
    for row in rows:
        notes += dict.fromkeys(f"{row.label}: {note}" for run in row.runs for note in run.notes)
        if any(run.provenance.init.get("trained_on") == "unknown" for run in row.finished_runs):
            notes.append(f"{row.label}: starts from weights that were trained on unknown cases")
    by_protocol: dict[frozenset[tuple[str, str]], list[Row]] = defaultdict(list)
    for row in rows:
        if row.finished_runs:
            by_protocol[row.protocol_key].append(row)
    for members in by_protocol.values():
        if len({run.provenance.data for row in members for run in row.finished_runs} - {""}) > 1:
            labels = " | ".join(row.label for row in members)
            notes.append(f"runs of one protocol read different data: {labels}")
    is_pruned = any(run.status == "pruned" for row in rows for run in row.runs)
    # Of models or experiments all are of interest; of settings the best is.
    if is_pruned or settings_that_vary(rows) - {"name", "model._target_"}:
        notes.append("choose by val: test values of many rows flatter the best of them")
    return notes
