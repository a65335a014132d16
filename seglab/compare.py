"""Reads run directories and makes the one table of them: what varied, by what was measured."""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from seglab import stats
from seglab.errors import InputError
from seglab.files import write_csv, write_whole
from seglab.results import (
    COSTS,
    STATUSES,
    UNKNOWN,
    Case,
    Run,
    Tested,
    find_runs,
    read_cases,
    read_curve,
)
from seglab.tables import Table, latex, markdown, plain

METRICS = (
    *("dice_per_image", "iou_per_image", "pixel_accuracy"),
    *("iou_pooled", "dice_pooled", "sensitivity", "specificity"),
    *("thresholded_iou", "hd95", "surface_dice", "ece"),
)
SHOWN = METRICS[:3]
MONITOR = "val/dice_per_image_net"  # drawn of a run that monitors nothing of val


class Score(NamedTuple):
    """A value averaged over seeds, its standard deviation over them, and its 95 % interval."""

    value: float
    sd: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass
class Row:
    """Runs that differ in seed and fold alone, or a trivial baseline.

    Attributes:
        settings: What they share.
        cells: By seed and fold; None where a run is missing. A baseline has none.
        seeds: Test cases of each seed that has any, over its folds.
        labels: What tells it apart, by column.
        label: The same in one line.
    """

    settings: dict[str, str]
    cells: dict[tuple[str, str], Run | None]
    seeds: dict[str, Tested]
    labels: dict[str, str] = field(default_factory=dict)
    label: str = ""

    @cached_property
    def finished(self) -> list[Run]:
        """Its runs that have values."""
        return [run for run in self.cells.values() if run and run.status == "finished"]

    @cached_property
    def complete(self) -> list[str]:
        """Seeds that miss no fold."""
        lacking = {k[0] for k, run in self.cells.items() if not run or run.status != "finished"}
        return [seed for seed in self.seeds if seed not in lacking]

    @property
    def status(self) -> str:
        """Its runs' status; 'incomplete' where only some are finished."""
        found = {run.status if run else "missing" for run in self.cells.values()}
        if "finished" in found:
            return "finished" if len(found) == 1 else "incomplete"
        return next((s for s in ("failed", *STATUSES) if s in found), "baseline")

    @cached_property
    def cases(self) -> list[Case]:
        """Test cases of all seeds, sorted."""
        return sorted({case for tested in self.seeds.values() for case in tested})

    @cached_property
    def terms(self) -> dict[str, np.ndarray]:
        """What each case adds to each metric, float64 (seeds, n, 2), as of `stats.terms`."""
        if not self.cases:
            return {}
        absent = np.zeros(6)
        values = np.array([[t.get(c, absent) for c in self.cases] for t in self.seeds.values()])
        out = stats.terms(values[..., :4])
        for i, name in ((4, "hd95"), (5, "surface_dice")):
            if not np.isnan(values[..., i]).any():
                out[name] = stats.mean_terms(values[..., i], values[..., :4].sum(-1) > 0)
        return out

    def scores(
        self, with_interval: Sequence[str], diagnosis: str | None = None
    ) -> dict[str, Score]:
        """Scores its cases, or those of one diagnosis; intervals where they are asked for."""
        if not self.cases:
            return {}
        chosen = [diagnosis in (None, case[2]) for case in self.cases]
        terms = {name: parts[:, chosen] for name, parts in self.terms.items()}
        # A seed that misses folds may have none of a diagnosis.
        there = terms["dice_per_image"][..., 1].sum(1) > 0
        terms = {name: parts[there] for name, parts in terms.items()}
        seeds = [seed for seed, some in zip(self.seeds, there, strict=True) if some]
        by_seed = {name: stats.scores(parts) for name, parts in terms.items()}
        if diagnosis is None and self.finished:
            counts = [[r.calibration for r in self.finished if r.seed == seed] for seed in seeds]
            if all(c is not None for seed in counts for c in seed):
                by_seed["ece"] = [stats.calibration_error(sum(seed)) for seed in counts]  # type: ignore[arg-type]
        names = [name for name in with_interval if name in terms]
        ends = stats.intervals(np.stack([terms[n] for n in names])).tolist() if names else []
        interval = dict(zip(names, ends, strict=True))
        out = {}
        for name, values in by_seed.items():
            whole = [v for seed, v in zip(seeds, values, strict=True) if seed in self.complete]
            sd = statistics.stdev(whole) if len(whole) > 1 else None
            mean = math.fsum(values) / len(values)
            out[name] = Score(mean, sd, *interval.get(name, (None, None)))
        return out

    def costs(self) -> dict[str, float]:
        """Means over its runs of what all of them say."""
        known = [c for c in COSTS if self.finished and all(c in r.costs for r in self.finished)]
        return {c: statistics.fmean(run.costs[c] for run in self.finished) for c in known}

    def by_case(self, metric: str) -> dict[Case, float]:
        """A per-image metric of each case, averaged over seeds; empty where it is not known."""
        if metric not in self.terms:
            return {}
        sums = self.terms[metric].sum(0)
        return dict(zip(self.cases, (sums[:, 0] / sums[:, 1]).tolist(), strict=True))


def compare(
    dirs: Sequence[str | Path],
    metrics: str | None = None,
    by_diagnosis: bool = False,
    versus: Sequence[tuple[str, str]] = (),
    metric: str = "dice_per_image",
    out: str | Path | None = None,
    width: int | None = None,
) -> str:
    """Makes the table of all runs at or below some folders.

    What it says depends on what the run directories hold, not on where they lie.

    Args:
        dirs: Folders of runs.
        metrics: Names of `METRICS` to show, joined by commas, or 'all'; None for `SHOWN`.
        by_diagnosis: Whether each row is followed by one for each diagnosis.
        versus: Pairs of rows for paired tests, by their labels or how these begin.
        metric: What is tested, one of `stats.PER_IMAGE`.
        out: Gets table.md, table.tex, table.csv, runs.csv and figures, with tests also versus.md
            and versus.csv.
        width: Columns of the terminal; None for no limit.

    Returns:
        What to print.

    Raises:
        InputError: No runs, a damaged file, or an unknown metric or row.
    """
    shown = METRICS if metrics == "all" else tuple(metrics.split(",")) if metrics else SHOWN
    for option, name, known in [("metrics", name, METRICS) for name in shown] + [
        ("metric", metric, stats.PER_IMAGE)
    ]:
        if name not in known:
            raise InputError(f"--{option} {name}: expected one of {', '.join(known)}")
    runs = find_runs(dirs)
    rows, notes = make_rows(runs)
    pairs = [(_find(a, rows), _find(b, rows)) for a, b in versus]
    lines = [
        (row, diagnosis, row.scores(METRICS if out else shown, diagnosis))
        for row in rows
        for diagnosis in [None, *(sorted({c[2] for c in row.cases}) if by_diagnosis else [])]
    ]
    columns = list(rows[0].labels)
    parts = [
        Table(
            _protocol(rows),
            [
                *(columns + ["diagnosis"] * by_diagnosis),
                *("n", *shown, "runs", "parameters", "multiply-adds", "train s", "images/s"),
            ],
            len(columns) + by_diagnosis,
            [_cells(*line, shown, by_diagnosis) for line in lines],
            [*_gaps(rows), *notes],
        )
    ]
    tests = _tests(pairs, metric)
    if tests:
        parts.append(_versus(tests, metric))
    if out is not None:
        out = Path(out)
        out.mkdir(parents=True, exist_ok=True)
        write_whole(out / "table.md", markdown(parts[0]))
        write_whole(out / "table.tex", latex(parts[0]))
        write_csv(out / "table.csv", [_record(*line) for line in lines])
        write_csv(out / "runs.csv", _listing(runs, rows))
        if tests:
            write_whole(out / "versus.md", markdown(parts[1]))
            write_csv(out / "versus.csv", tests)
        _draw(out, rows, {row.label: scores for row, d, scores in lines if d is None})
    return "\n\n".join(plain(part, width) for part in parts)


def make_rows(runs: Sequence[Run]) -> tuple[list[Row], list[str]]:
    """Groups runs by config, and adds trivial baselines.

    Returns:
        Rows sorted by label, baselines last; and notes on runs that were left out or set apart.
    """
    notes, rows = [], []
    groups = defaultdict(list)
    for run in runs:
        groups[frozenset(run.settings.items())].append(run)
    for group in groups.values():
        cells: dict[tuple[str, str], Run | None] = {}
        own: list[Run] = []
        for run in sorted(group, key=lambda run: (STATUSES.index(run.status), run.path)):
            used = cells.setdefault((run.seed, run.fold), run)
            if used is run:
                own.append(run)
            elif used and run.status == "finished":
                notes.append(f"{used.path} and {run.path} are of one config: the first is used")
        twice = Counter((run.seed, case[0]) for run in own for case in run.tested)
        if max(twice.values(), default=0) > 1:
            seed, id = min(key for key, times in twice.items() if times > 1)
            where = [r.path for r in own if r.seed == seed and id in {case[0] for case in r.tested}]
            notes.append(
                f"{' and '.join(where)} test the same case, {id}: each run has its own row"
            )
            rows += [Row(r.settings | {"run": r.path}, {(r.seed, r.fold): r}, {}) for r in own]
        else:
            rows.append(Row(group[0].settings, cells, {}))
    protocols: dict[frozenset[tuple[str, str]], list[Row]] = defaultdict(list)
    for row in rows:
        protocols[_tested_as(row)].append(row)
    for members in protocols.values():
        seeds = sorted({seed for row in members for seed, _ in row.cells}, key=_natural)
        for row in members:
            _complete(row, seeds)
    _name(rows)
    rows.sort(key=lambda row: _natural(row.label))
    return rows + _baselines(rows), notes


def _tested_as(row: Row) -> frozenset[tuple[str, str]]:
    """What decides which cases are tested, and so which seeds and folds rows should share."""
    kept = ("protocol", "run", "data.root", "data.cases.", "data.split.")
    items = {
        (k, v) for k, v in row.settings.items() if k.startswith(kept) and k != "data.split.val"
    }
    # Of a run without a config nobody knows.
    return frozenset(items if "protocol" in row.settings else {("row", str(id(row)))})


def _complete(row: Row, seeds: list[str]) -> None:
    """Adds the cells that should be there, and collects the cases of each seed."""
    runs = [run for run in row.cells.values() if run]
    if runs[0].folds:
        folds = [""] if row.settings["protocol"] == "holdout" else map(str, range(runs[0].folds))
        if "run" in row.settings:
            folds = [runs[0].fold]
        expected: dict[tuple[str, str], Run | None] = {(s, f): None for f in folds for s in seeds}
        row.cells = expected | row.cells
    row.cells = dict(sorted(row.cells.items(), key=lambda item: _natural(" ".join(item[0]))))
    for run in filter(None, row.cells.values()):
        if run.tested:
            row.seeds.setdefault(run.seed, {}).update(run.tested)


def _name(rows: list[Row]) -> None:
    """Gives rows their labels, by the fewest keys that tell them apart."""
    keys = sorted({key for row in rows for key in row.settings}, key=lambda k: (k.count("."), k))
    runs = [run for row in rows for run in row.cells.values() if run]
    order = ["name", "model._target_", *(key for key in keys if key.endswith("._target_"))]
    order += [*sorted({key for run in runs for key in run.varies}), *keys]
    kept: list[str] = []
    apart = 1
    for key in dict.fromkeys(order):
        told = len({tuple(row.settings.get(k) for k in [*kept, key]) for row in rows})
        if told > apart:
            kept, apart = [*kept, key], told
    kept = kept or ["name", "model._target_"]
    shorts = {key: _short(key) for key in kept}
    taken = Counter(shorts.values()) + Counter(_TAKEN)
    columns = {key: short if taken[short] == 1 else key for key, short in shorts.items()}
    for key, column in columns.items():
        values = {row.settings.get(key, UNKNOWN) for row in rows}
        last = {v: v.rpartition(".")[2] if key.endswith("._target_") else v for v in values}
        for row in rows:
            value = row.settings.get(key, UNKNOWN)
            row.labels[column] = last[value] if len({*last.values()}) == len(values) else value
            if key in row.settings:
                bare = key.endswith("._target_") or key in ("name", "protocol")
                known = "protocol" in row.settings
                part = row.labels[column] if bare and known else f"{column}={row.labels[column]}"
                row.label += f", {part}" if row.label else part
    for row in rows:
        row.label = row.label or next(run.path for run in row.cells.values() if run)


def _short(key: str) -> str:
    return "experiment" if key == "name" else key.removesuffix("._target_").rpartition(".")[2]


def _baselines(rows: list[Row]) -> list[Row]:
    """Trivial baselines for each set of test cases, from one seed that is complete."""
    groups = defaultdict(list)
    for row in rows:
        if row.seeds:
            groups[_tested_as(row)].append(row)
    sets: dict[frozenset[Case], tuple[Row, str]] = {}
    for members in groups.values():
        usable = [(row, row.complete[0]) for row in members if row.complete]
        parts = [(row, seed) for row in members for seed in row.seeds]
        for row, seed in usable or [max(parts, key=lambda part: len(part[0].seeds[part[1]]))]:
            sets.setdefault(frozenset(row.seeds[seed]), (row, seed))
    out = []
    for row, seed in sets.values():
        found: dict[str, Tested] = defaultdict(dict)
        for run in row.finished:
            if run.seed == seed:
                for name, tested in read_cases(
                    run.folder, "baseline_cases.csv", "baseline"
                ).items():
                    found[name] |= tested
        for name, tested in sorted(found.items()):
            label = name if len(sets) == 1 else f"{name} (cases of {row.label})"
            first, *others = row.labels
            labels = {first: label} | dict.fromkeys(others, "")
            out.append(Row({}, {}, {seed: tested}, labels, label))
    return out


def _find(name: str, rows: list[Row]) -> Row:
    """The row of this label, or the only one whose label begins so; case does not matter."""
    low = name.casefold()
    for found in (
        [row for row in rows if row.label == name],
        [row for row in rows if row.label.casefold() == low],
        [row for row in rows if row.label.casefold().startswith(low)],
    ):
        if len(found) == 1:
            return found[0]
    raise InputError(
        f"--versus '{name}': expected the label of one row, or how it begins; there are "
        + ", ".join(f"'{row.label}'" for row in rows)
    )


def _natural(text: str) -> list[Any]:
    """Sorts numbers in text as numbers."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[-+]?\d+)?)", text.casefold())
    return [float(part) if i % 2 else part for i, part in enumerate(parts)]


# Column names that a key may not have.
_TAKEN = {
    *("diagnosis", "n", "runs", "multiply-adds", "train s", "images/s", "label", "status"),
    *("finished", "run", "row", "used", "seed", "fold", "error", *METRICS, *COSTS),
}


def _protocol(rows: list[Row]) -> str:
    """What the numbers are of, in a line."""
    rows = [row for row in rows if row.finished]
    if not rows:
        return "no finished run"
    sizes = sorted({len(row.cases) for row in rows})
    cases = "1 test case" if sizes == [1] else f"{sizes[0]} test cases"
    if len(sizes) > 1:
        cases = f"{sizes[0]} to {sizes[-1]} test cases"
    protocols = sorted({row.settings["protocol"] for row in rows}, key=_natural)
    once = "" if any("run" in row.settings for row in rows) else ", each case out of fold once"
    folds = [p if p == "holdout" else p + once for p in protocols]
    files = {row.settings.get("data.split.file", "null") for row in rows} - {"null"}
    splits = {row.settings.get("data.split.seed", UNKNOWN) for row in rows}
    split = f"split seed {', '.join(sorted(splits, key=_natural))}"
    if files:
        split = f"split of {', '.join(sorted(Path(file).name for file in files))}"
    seeds = sorted({seed for row in rows for seed in row.seeds}, key=_natural)
    values = f"seed {seeds[0]}: value"
    if len(seeds) > 1:
        values = f"seeds {', '.join(seeds)}: mean ± standard deviation over seeds"
    return (
        f"{cases}; {' and '.join(folds)}; {split}; scored at native resolution; {values} "
        "[95 % interval over cases]"
    )


def _gaps(rows: list[Row]) -> list[str]:
    """What is not there, and why; rows that lack the same share a line."""
    lines: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        reasons: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for (seed, fold), run in row.cells.items():
            if run is None:
                reasons["missing"][seed].append(fold)
            elif run.status != "finished":
                why = f"{run.status} ({run.error})" if run.error else run.status
                reasons[why][seed].append(fold)
        lacks = []
        for why, seeds in reasons.items():
            where = []
            for seed, folds in seeds.items():
                whole = len(folds) == sum(key[0] == seed for key in row.cells)
                where.append(f"seed {seed}" + ("" if whole else f" fold {' '.join(folds)}"))
            more = f" and {len(where) - 8} more" if len(where) > 8 else ""
            lacks.append(f"{why}: {', '.join(where[:8])}{more}")
        if lacks:
            lines[("* " if row.finished else "") + "{}: " + "; ".join(lacks)].append(row.label)
    notes = [line.replace("{}", " | ".join(labels), 1) for line, labels in lines.items()]
    if len({tuple(row.cases) for row in rows if row.finished}) > 1:
        notes.append("rows were not tested on the same cases: their values cannot be compared")
    return notes


def _cells(
    row: Row, diagnosis: str | None, scores: dict[str, Score], shown: Sequence[str], by: bool
) -> list[str]:
    """A line of the table."""
    whole = diagnosis is None
    cells = list(row.labels.values()) if whole else [""] * len(row.labels)
    cells += ["all" if whole else diagnosis or UNKNOWN] * by
    cells.append(str(_size(row, diagnosis)) if row.cases else UNKNOWN)
    for name in shown:
        text = UNKNOWN if row.cases else row.status
        if name in scores:
            value, sd, low, high = scores[name]
            digits = 1 if name == "hd95" else 3
            text = f"{value:.{digits}f}"
            text += "" if sd is None else f" ± {sd:.{digits}f}"
            text += "" if low is None else f" [{low:.{digits}f}, {high:.{digits}f}]"
            text += "*" if row.status == "incomplete" else ""
        cells.append(text)
    if not whole:
        return [*cells, *[""] * 5]
    done, wanted = len(row.finished), len(row.cells)
    cells.append(f"{done} of {wanted}" if done < wanted else str(wanted or UNKNOWN))
    costs = row.costs()
    for name, form in zip(COSTS, ("{:,.0f}", "{:.3g} G", "{:,.0f}", "{:,.1f}"), strict=True):
        scale = 1e-9 if name == "multiply_adds" else 1
        cells.append(form.format(costs[name] * scale) if name in costs else UNKNOWN)
    return cells


def _size(row: Row, diagnosis: str | None) -> int:
    return sum(diagnosis in (None, case[2]) for case in row.cases)


def _record(row: Row, diagnosis: str | None, scores: dict[str, Score]) -> dict[str, Any]:
    """A line of table.csv, at full precision."""
    record: dict[str, Any] = row.labels | {"label": row.label}
    record |= {"diagnosis": "all" if diagnosis is None else diagnosis or UNKNOWN}
    record |= {"status": row.status, "n": _size(row, diagnosis)}
    record |= {"finished": len(row.finished), "runs": len(row.cells)}
    costs = row.costs()
    record |= {name: costs.get(name, "") for name in COSTS}
    for name in METRICS:
        values = scores.get(name, (None,) * 4)
        for end, value in zip(("", "_sd", "_low", "_high"), values, strict=True):
            record[f"{name}{end}"] = "" if value is None else value
    return record


def _listing(runs: Sequence[Run], rows: list[Row]) -> list[dict[str, Any]]:
    """Every run directory that was found: runs.csv."""
    used = {run.path: row for row in rows for run in row.cells.values() if run}
    same = {frozenset(r.settings.items()): used[r.path] for r in runs if r.path in used}
    out = []
    for run in runs:
        row = used.get(run.path) or same[frozenset(run.settings.items())]
        record = {"run": run.path, "row": row.label, "used": run.path in used, "seed": run.seed}
        record |= {"fold": run.fold, "status": run.status, "error": run.error}
        out.append(record | row.labels | run.values)
    return out


def _tests(pairs: list[tuple[Row, Row]], metric: str) -> list[dict[str, Any]]:
    """Paired tests, corrected for being several; empty cells where no case is shared."""
    out: list[dict[str, Any]] = []
    for a, b in pairs:
        first, second = a.by_case(metric), b.by_case(metric)
        shared = [first[case] - second[case] for case in sorted(first.keys() & second.keys())]
        found = stats.paired_test(np.array(shared))._asdict() if shared else {"n": 0}
        out.append({"a": a.label, "b": b.label, "metric": metric, **found})
    made = [record for record in out if record["n"]]
    for record, p in zip(made, stats.holm([record["p"] for record in made]), strict=True):
        record["p_holm"] = p
    return out


def _versus(tests: list[dict[str, Any]], metric: str) -> Table:
    body = []
    for test in tests:
        cells = [UNKNOWN] * 3
        if test["n"]:
            difference, low, high = (f"{test[key]:+.3f}" for key in ("difference", "low", "high"))
            cells = [f"{difference} [{low}, {high}]", *(f"{test[k]:.4f}" for k in ("p", "p_holm"))]
        body.append([test["a"], test["b"], str(test["n"]), *cells])
    above = (
        f"{metric}, averaged over seeds, of the cases that both rows have: A - B [95 % interval]"
    )
    note = (
        "p of a sign-flip permutation test, and corrected for all tests here (Holm). The tests are "
        "over cases, for these trained networks; training again is another matter."
    )
    return Table(above, ["A", "B", "n", "A - B", "p", "p (Holm)"], 2, body, [note])


def _draw(out: Path, rows: list[Row], scores: dict[str, dict[str, Score]]) -> None:
    from seglab.figures import save_boxes, save_costs, save_val_curves

    metric = "dice_per_image"
    cases = {row.label: list(row.by_case(metric).values()) for row in rows if row.cases}
    save_boxes(out / "dice_boxes.png", cases, metric)
    curves, points = {}, {}
    for row in rows:
        if row.finished:
            monitor = row.settings.get("monitor", "")
            monitor = monitor if monitor.startswith("val/") else MONITOR
            curves[row.label] = (monitor, [read_curve(run, monitor) for run in row.finished])
            points[row.label] = (scores[row.label][metric], row.costs())
    save_val_curves(out / "val_curves.png", curves)
    save_costs(out / "dice_cost.png", points, metric)
