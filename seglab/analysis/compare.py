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

from seglab.analysis import statistics as stats
from seglab.analysis.tables import Table, latex, markdown, plain
from seglab.core.errors import InputError
from seglab.core.files import write_atomic, write_csv
from seglab.metrics.names import DEFAULT_METRICS, METRICS
from seglab.runs.paths import RunPaths
from seglab.runs.records import (
    COSTS,
    STATUSES,
    UNKNOWN,
    Case,
    CaseCounts,
    Run,
    find_runs,
    read_cases,
    read_curve,
)

MONITOR = "val/dice_per_image_net"  # drawn of a run that monitors nothing of val
FEW = 50  # cases
TOO_NARROW = (
    f"intervals over fewer than {FEW} cases are too narrow: in simulations, those of BCa (95 %) "
    "held the truth in about 83 % at 14 cases, in 88 % at 28"
)
_OF_ALL = "pixel_accuracy of all classes"
_SAID = {"running": "running or killed"}  # its process may be gone


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
        folds: What each seed should test. A job that failed may have had another.
        labels: What tells it apart, by column.
        full: Those of them that are rounded, as they are.
        label: `labels` in one line.
        of: A baseline's classes.
    """

    settings: dict[str, str]
    cells: dict[tuple[str, str], Run | None]
    seeds: dict[str, CaseCounts]
    folds: list[str] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    full: dict[str, str] = field(default_factory=dict)
    label: str = ""
    of: tuple[str, ...] = ()

    @cached_property
    def finished(self) -> list[Run]:
        """Its runs that have values."""
        return [run for run in self.cells.values() if run and run.status == "finished"]

    @cached_property
    def complete(self) -> list[str]:
        """Seeds that miss no fold, and no case that another seed has."""
        done = {(run.seed, run.fold) for run in self.finished}
        return [
            seed
            for seed, tested in self.seeds.items()
            if done.issuperset((seed, fold) for fold in self.folds) and len(tested) == self.union
        ]

    @cached_property
    def union(self) -> int:
        """Test cases that any seed has."""
        return len({case for tested in self.seeds.values() for case in tested})

    @cached_property
    def scored(self) -> dict[str, CaseCounts]:
        """Seeds that its values are of: complete ones, or all where none is complete."""
        return {seed: self.seeds[seed] for seed in self.complete or self.seeds}

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Of several classes their names, background first; else empty."""
        known = next((run.classes for run in self.cells.values() if run), self.of)
        return known if len(known) > 1 else ()

    @property
    def status(self) -> str:
        """Its runs' status; 'incomplete' where only some seeds are complete."""
        if self.finished:
            wanted = {seed for seed, fold in self.cells if fold in self.folds}
            return "finished" if wanted == {*self.complete} else "incomplete"
        found = {run.status if run else "missing" for run in self.cells.values()}
        return next((s for s in ("failed", *STATUSES) if s in found), "baseline")

    @cached_property
    def cases(self) -> list[Case]:
        """Test cases that its values are of, sorted."""
        return sorted({case for tested in self.scored.values() for case in tested})

    @cached_property
    def terms(self) -> dict[str, np.ndarray]:
        """What each case adds to each metric, float64 (S, K, n, 2), as of `stats.terms`.

        S seeds; K classes, without background, each against the rest; of several also `_OF_ALL`,
        the pixels whose class is right, equal for each. Where no seed is complete, seeds are
        averaged case by case to a single one: each has other cases, and means over these would be
        of different things.
        """
        if not self.cases:
            return {}
        absent = np.zeros((max(1, len(self.classes)), 6))
        found = [[t.get(c, absent) for c in self.cases] for t in self.scored.values()]
        every: np.ndarray = np.moveaxis(np.array(found), 2, 1)  # seeds, classes, cases, 6
        values = every[:, 1:] if self.classes else every
        tested = values[..., :4].sum(-1) > 0
        out = stats.terms(values[..., :4])
        for i, name in ((4, "hd95"), (5, "surface_dice")):
            if not np.isnan(values[..., i]).any():
                out[name] = stats.mean_terms(values[..., i], tested)
        if self.classes:
            right = np.stack([every[..., 0].sum(1), every[:, 0, :, :4].sum(-1)], -1)
            out[_OF_ALL] = np.repeat(right[:, None], values.shape[1], 1)
        if not self.complete:
            times = tested.sum(0)[..., None]
            out = {name: (parts.sum(0) / times)[None] for name, parts in out.items()}
        return out

    def scores(
        self, with_interval: Sequence[str], diagnosis: str | None = None, of: str | None = None
    ) -> dict[str, Score]:
        """Scores its cases; intervals where they are asked for.

        Args:
            with_interval: Metrics.
            diagnosis: Whose cases; None for all.
            of: One of several classes, against the rest; None for the mean of all but background,
                and for the pixel accuracy of all pixels.
        """
        if not self.cases:
            return {}
        chosen = [diagnosis in (None, case[2]) for case in self.cases]
        terms = {name: parts[:, :, chosen] for name, parts in self.terms.items()}
        of_all = terms.pop(_OF_ALL, None)
        if of is not None:
            number = self.classes[1:].index(of)
            terms = {name: parts[:, number : number + 1] for name, parts in terms.items()}
        elif of_all is not None:
            terms["pixel_accuracy"] = of_all
        by_seed = {
            name: [statistics.fmean(stats.scores(own)) for own in parts]
            for name, parts in terms.items()
        }
        # Of a single case no run says its calibration: it cannot be averaged case by case.
        one = self.complete or len(self.scored) == 1
        if diagnosis is None and of is None and self.finished and one:
            counts = [
                [r.calibration for r in self.finished if r.seed == seed] for seed in self.scored
            ]
            if all(c is not None for seed in counts for c in seed):
                by_seed["ece"] = [stats.calibration_error(sum(seed)) for seed in counts]  # type: ignore[arg-type]
        names = [name for name in with_interval if name in terms]
        # Classes are averaged as seeds are.
        flat = [terms[name].reshape(-1, sum(chosen), 2) for name in names]
        ends = stats.intervals(np.stack(flat)).tolist() if names else []
        interval = dict(zip(names, ends, strict=True))
        out = {}
        for name, values in by_seed.items():
            sd = statistics.stdev(values) if len(values) > 1 else None
            mean = math.fsum(values) / len(values)
            out[name] = Score(mean, sd, *interval.get(name, (None, None)))
        return out

    def costs(self) -> dict[str, float]:
        """Means over the runs that are scored, of what all of these say."""
        runs = [run for run in self.finished if run.seed in self.scored]
        known = [c for c in COSTS if runs and all(c in run.costs for run in runs)]
        return {c: statistics.fmean(run.costs[c] for run in runs) for c in known}

    @property
    def val(self) -> float | None:
        """Dice per image of val, as a mean over its finished runs; None where one has none."""
        values = [run.values.get("val/dice_per_image") for run in self.finished]
        known = [value for value in values if value is not None]
        return statistics.fmean(known) if values and len(known) == len(values) else None

    @property
    def monitor(self) -> str:
        """The metric of val that its curve is drawn of."""
        monitor = self.settings.get("monitor", "")
        return monitor if monitor.startswith("val/") else MONITOR

    def by_case(self, metric: str) -> dict[Case, float]:
        """A per-image metric of each case, averaged over seeds; empty where it is not known."""
        if metric not in self.terms:
            return {}
        sums = self.terms[metric].sum((0, 1))
        return dict(zip(self.cases, (sums[:, 0] / sums[:, 1]).tolist(), strict=True))


class Line(NamedTuple):
    """A line of the table: a row's scores, those of one diagnosis, or those of one class.

    Attributes:
        row: Whose scores.
        diagnosis: Whose cases; None for all.
        of: Of several classes the one that is scored; None for the mean of all but background.
        scores: By the metric's name.
    """

    row: Row
    diagnosis: str | None
    of: str | None
    scores: dict[str, Score]

    @property
    def is_whole(self) -> bool:
        """Whether it is that of all cases and classes."""
        return self.diagnosis is None and self.of is None


def _parts(row: Row, by_diagnosis: bool) -> list[tuple[str | None, str | None]]:
    diagnoses = sorted({case[2] for case in row.cases}) if by_diagnosis else []
    classes = row.classes[1:] if row.cases else ()
    return [
        (None, None),
        *((each, None) for each in diagnoses),
        *((None, each) for each in classes),
    ]


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
        metrics: Names of `METRICS` to show, joined by commas, or 'all'; None for `DEFAULT_METRICS`.
        by_diagnosis: Whether each row is followed by one for each diagnosis.
        versus: Pairs of rows for paired tests, by their labels or how these begin.
        metric: What is tested, one of `stats.PER_IMAGE`.
        out: Gets table.md, table.tex, table.csv, runs.csv and figures, with tests also versus.md
            versus.tex and versus.csv. Those of an earlier call are replaced or removed.
        width: Columns of the terminal; None for no limit.

    Returns:
        What to print.

    Raises:
        InputError: No runs, a damaged file, or an unknown metric or row.
    """
    shown: tuple[str, ...] = METRICS if metrics == "all" else DEFAULT_METRICS
    if metrics and metrics != "all":
        shown = tuple(dict.fromkeys(metrics.split(",")))
    for option, name, known in [("metrics", name, METRICS) for name in shown] + [
        ("metric", metric, stats.PER_IMAGE)
    ]:
        if name not in known:
            raise InputError(f"--{option} {name}: expected one of {', '.join(known)}")
    runs = find_runs(dirs)
    rows, notes = make_rows(runs)
    pairs = find_pairs(versus, rows)
    lines = make_lines(rows, METRICS if out else shown, by_diagnosis)
    parts = [make_table(rows, lines, notes, shown, by_diagnosis)]
    tests = paired_tests(pairs, metric)
    if tests:
        parts.append(versus_table(tests, pairs, metric))
    if out is not None:
        curves = _curves(rows)
        out = Path(out)
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(out / "table.md", markdown(parts[0]))
        write_atomic(out / "table.tex", latex(parts[0]))
        write_csv(out / "table.csv", [_record(line) for line in lines])
        write_csv(out / "runs.csv", _listing(runs, rows))
        if tests:
            write_atomic(out / "versus.md", markdown(parts[1]))
            write_atomic(out / "versus.tex", latex(parts[1]))
            write_csv(out / "versus.csv", tests)
        else:
            for name in ("versus.md", "versus.tex", "versus.csv"):
                (out / name).unlink(missing_ok=True)
        whole = {line.row.label: line.scores for line in lines if line.is_whole}
        _draw(out, rows, whole, curves)
    return "\n\n".join(plain(part, width) for part in parts)


def make_lines(rows: list[Row], metrics: Sequence[str], by_diagnosis: bool) -> list[Line]:
    """Scores rows, with intervals of these metrics, each class, and each diagnosis if asked for."""
    return [
        Line(row, diagnosis, of, row.scores(metrics, diagnosis, of))
        for row in rows
        for diagnosis, of in _parts(row, by_diagnosis)
    ]


def make_table(
    rows: list[Row],
    lines: Sequence[Line],
    notes: Sequence[str],
    shown: Sequence[str],
    by_diagnosis: bool,
) -> Table:
    """Makes the table of these lines.

    Args:
        rows: Of `make_rows`.
        lines: Of `make_lines`, all or some.
        notes: Of `make_rows`.
        shown: Names of `METRICS`.
        by_diagnosis: Whether a column says whose cases a line is of.
    """
    columns = list(rows[0].labels)
    parted = ["diagnosis"] * by_diagnosis + ["class"] * any(line.of for line in lines)
    return Table(
        _protocol(rows),
        [
            *(columns + parted),
            *("n", *shown, "val", "runs", "parameters", "multiply-adds", "train s", "images/s"),
        ],
        len(columns + parted),
        [_cells(line, shown, parted) for line in lines],
        [*_gaps(rows), *notes, *_cautions(rows, lines)],
    )


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
        swept: dict[Path | None, set[str]] = defaultdict(set)
        theirs = [run for row in members for run in row.cells.values() if run]
        for run in theirs:
            swept[run.sweep].add(run.seed)
        if all(run.one_fold for run in theirs) and len({run.fold for run in theirs}) == 1:
            for row in members:
                only = f"fold {theirs[0].fold} of {theirs[0].folds}"
                row.settings = row.settings | {"protocol": only}
        for row in members:
            seeds = {seed for seed, _ in row.cells}
            sweeps = {run.sweep for run in row.cells.values() if run and run.sweep}
            _complete(row, sorted(seeds.union(*(swept[sweep] for sweep in sweeps)), key=_natural))
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
        row.folds = [runs[0].fold]
        if row.settings["protocol"].endswith(" folds") and "run" not in row.settings:
            row.folds = [*map(str, range(runs[0].folds))]
        expected: dict[tuple[str, str], Run | None] = {
            (seed, fold): None for fold in row.folds for seed in seeds
        }
        row.cells = expected | row.cells
    row.cells = dict(sorted(row.cells.items(), key=lambda item: _natural(" ".join(item[0]))))
    for run in filter(None, row.cells.values()):
        if run.tested:
            row.seeds.setdefault(run.seed, {}).update(run.tested)


def _varied(rows: list[Row]) -> set[str]:
    """Settings that a sweep varied, of which the rows have more than one value."""
    keys = {key for row in rows for run in row.cells.values() if run for key in run.varies}
    return {k for k in keys if len({r.settings[k] for r in rows if k in r.settings}) > 1}


def _name(rows: list[Row]) -> None:
    """Gives rows their labels: what was varied, and the fewest keys that tell the rest apart."""

    def apart(keys: list[str]) -> int:
        # What a run without a config lacks says nothing: it was not overridden, that is all.
        return len({("protocol" in r.settings, *map(r.settings.get, keys)) for r in rows})

    varied = _varied(rows)
    keys = sorted({key for row in rows for key in row.settings}, key=lambda k: (k.count("."), k))
    runs = [run for row in rows for run in row.cells.values() if run]
    order = ["name", "model._target_", *(key for key in keys if key.endswith("._target_"))]
    order += [*sorted({key for run in runs for key in run.varies}), *keys]
    kept = [key for key in dict.fromkeys(order) if key in varied]
    for key in dict.fromkeys(order):
        if apart([*kept, key]) > apart(kept):
            kept.append(key)
    kept = kept or ["name", "model._target_"]
    shorts = {key: _short(key) for key in kept}
    taken = Counter(shorts.values()) + Counter(_TAKEN)
    columns = {key: short if taken[short] == 1 else key for key, short in shorts.items()}
    for key, column in columns.items():
        values = {row.settings.get(key, UNKNOWN) for row in rows}
        is_name = key.endswith("._target_")
        brief = {v: v.rpartition(".")[2] if is_name else _rounded(v) for v in values}
        for row in rows:
            value = row.settings.get(key, UNKNOWN)
            row.labels[column] = brief[value] if len({*brief.values()}) == len(values) else value
            if not is_name and row.labels[column] != value:
                row.full[column] = value
            if key in row.settings:
                bare = key.endswith("._target_") or key in ("name", "protocol")
                known = "protocol" in row.settings
                part = row.labels[column] if bare and known else f"{column}={row.labels[column]}"
                row.label += f", {part}" if row.label else part
    taken = Counter(row.label for row in rows)
    for row in rows:
        if not row.label or taken[row.label] > 1:
            path = next(run.path for run in row.cells.values() if run)
            row.label = f"{row.label}, {path}" if row.label else path


def _rounded(text: str) -> str:
    """A number of more than 4 significant digits, with 4."""
    number = re.fullmatch(r"-?(\d*\.\d+)(e[-+]?\d+)?", text)
    long = number and len(number[1].replace(".", "").strip("0")) > 4
    return f"{float(text):.4g}" if long else text


def _short(key: str) -> str:
    return "experiment" if key == "name" else key.removesuffix("._target_").rpartition(".")[2]


def _baselines(rows: list[Row]) -> list[Row]:
    """Trivial baselines for each set of test cases, from one seed that is complete."""
    groups = defaultdict(list)
    for row in rows:
        if row.seeds:
            groups[_tested_as(row)].append(row)
    sets: dict[tuple[frozenset[Case], tuple[str, ...]], tuple[Row, str]] = {}
    for members in groups.values():
        usable = [(row, row.complete[0]) for row in members if row.complete]
        parts = [(row, seed) for row in members for seed in row.seeds]
        for row, seed in usable or [max(parts, key=lambda part: len(part[0].seeds[part[1]]))]:
            sets.setdefault((frozenset(row.seeds[seed]), row.classes), (row, seed))
    out = []
    for row, seed in sets.values():
        found: dict[str, CaseCounts] = defaultdict(dict)
        for run in row.finished:
            if run.seed == seed:
                for name, tested in read_cases(
                    run, RunPaths(run.folder).baseline_cases, "baseline"
                ).items():
                    found[name] |= tested
        for name, tested in sorted(found.items()):
            label = name if len(sets) == 1 else f"{name} (cases of {row.label})"
            first, *others = row.labels
            labels = {first: label} | dict.fromkeys(others, "")
            of = row.classes
            out.append(Row({}, {}, {seed: tested}, labels=labels, label=label, of=of))
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
    *("diagnosis", "class", "n", "val", "runs", "multiply-adds", "train s", "images/s", "label"),
    *("status", "finished", "run", "row", "used", "seed", "fold", "error", *METRICS, *COSTS),
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
    folds = [p + once if p.endswith(" folds") else p for p in protocols]
    files = {row.settings.get("data.split.file", "null") for row in rows} - {"null"}
    splits = {row.settings.get("data.split.seed", UNKNOWN) for row in rows}
    split = f"split seed {', '.join(sorted(splits, key=_natural))}"
    if files:
        split = f"split of {', '.join(sorted(Path(file).name for file in files))}"
    seeds = sorted({seed for row in rows for seed in row.scored}, key=_natural)
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
                why = _SAID.get(run.status, run.status) + (f" ({run.error})" if run.error else "")
                reasons[why][seed].append(fold)
        lacks = []
        for why, seeds in reasons.items():
            where = []
            for seed, folds in seeds.items():
                whole = len(folds) == sum(key[0] == seed for key in row.cells)
                where.append(f"seed {seed}" + ("" if whole else f" fold {' '.join(folds)}"))
            more = f" and {len(where) - 8} more" if len(where) > 8 else ""
            lacks.append(f"{why}: {', '.join(where[:8])}{more}")
        partial = row.status == "incomplete"
        if partial:
            named = {seed for seeds in reasons.values() for seed in seeds}
            for seed in [s for s in row.seeds if s not in (*row.complete, *named)]:
                lacks.append(f"{len(row.seeds[seed])} of {row.union} cases: seed {seed}")
            left = [seed for seed in row.seeds if seed not in row.scored]
            if left:
                lacks.append(f"left out of the values, as incomplete: seed {', '.join(left)}")
            elif len(row.seeds) > 1:
                lacks.append("no seed is complete: values are means over those that have a case")
        if lacks:
            lines[("* " if partial else "") + "{}: " + "; ".join(lacks)].append(row.label)
    notes = [line.replace("{}", " | ".join(labels), 1) for line, labels in lines.items()]
    if len({tuple(row.cases) for row in rows if row.finished}) > 1:
        notes.append("rows were not tested on the same cases: their values cannot be compared")
    return notes


def _cautions(rows: list[Row], lines: Sequence[Line]) -> list[str]:
    """What a reader of the numbers should know."""
    notes = []
    if any(line.row.finished and _size(line.row, line.diagnosis) < FEW for line in lines):
        notes.append(TOO_NARROW)
    if len({row.classes for row in rows if row.classes}) > 1:
        notes.append("rows tell other classes apart: their means are of different things")
    sources = {run.source for row in rows for run in row.finished} - {""}
    if len(sources) > 1:
        notes.append(f"runs of {len(sources)} states of seglab's code stand in one table")
    read: dict[frozenset[tuple[str, str]], list[Row]] = defaultdict(list)
    for row in rows:
        if row.finished:
            read[_tested_as(row)].append(row)
    for members in read.values():
        if len({run.data for row in members for run in row.finished} - {""}) > 1:
            labels = " | ".join(row.label for row in members)
            notes.append(f"runs of one protocol read different data: {labels}")
    pruned = any(run and run.status == "pruned" for row in rows for run in row.cells.values())
    # Of models or experiments all are of interest; of settings the best is.
    if pruned or set(_varied(rows)) - {"name", "model._target_"}:
        notes.append("choose by val: test values of many rows flatter the best of them")
    return notes


def _cells(line: Line, shown: Sequence[str], parted: Sequence[str]) -> list[str]:
    row, diagnosis, of, scores = line
    whole = line.is_whole
    cells = list(row.labels.values()) if whole else [""] * len(row.labels)
    parts = {"diagnosis": diagnosis, "class": of}
    cells += ["all" if parts[name] is None else parts[name] or UNKNOWN for name in parted]
    cells.append(str(_size(row, diagnosis)) if row.cases else UNKNOWN)
    for name in shown:
        text = UNKNOWN if row.cases else _SAID.get(row.status, row.status)
        if name in scores:
            text = format_score(name, scores[name])
            text += "*" if row.status == "incomplete" else ""
        cells.append(text)
    if not whole:
        return [*cells, *[""] * 6]
    cells.append(UNKNOWN if row.val is None else f"{row.val:.3f}")
    done, wanted = len(row.finished), len(row.cells)
    cells.append(f"{done} of {wanted}" if done < wanted else str(wanted or UNKNOWN))
    costs = row.costs()
    for name, form in zip(COSTS, ("{:,.0f}", "{:.3g} G", "{:,.0f}", "{:,.1f}"), strict=True):
        scale = 1e-9 if name == "multiply_adds" else 1
        cells.append(form.format(costs[name] * scale) if name in costs else UNKNOWN)
    return cells


def format_score(metric: str, score: Score) -> str:
    """As the tables have it: 0.954 ± 0.002 [0.944, 0.960]."""
    value, sd, low, high = score
    digits = 1 if metric == "hd95" else 3
    text = f"{value:.{digits}f}"
    text += "" if sd is None else f" ± {sd:.{digits}f}"
    return text + ("" if low is None else f" [{low:.{digits}f}, {high:.{digits}f}]")


def _size(row: Row, diagnosis: str | None) -> int:
    return sum(diagnosis in (None, case[2]) for case in row.cases)


def _record(line: Line) -> dict[str, Any]:
    """A line of table.csv, at full precision."""
    row, diagnosis, of, scores = line
    record: dict[str, Any] = row.labels | row.full | {"label": row.label}
    record |= {"diagnosis": "all" if diagnosis is None else diagnosis or UNKNOWN}
    record |= {"class": of or "all"} if row.classes else {}
    record |= {"status": row.status, "n": _size(row, diagnosis)}
    record |= {"finished": len(row.finished), "runs": len(row.cells)}
    costs = row.costs()
    record |= {name: costs.get(name, "") for name in COSTS}
    record["val_dice_per_image"] = row.val if row.val is not None and line.is_whole else ""
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
        out.append(record | row.labels | row.full | run.values)
    return out


def find_pairs(versus: Sequence[tuple[str, str]], rows: list[Row]) -> list[tuple[Row, Row]]:
    """Finds the rows to test, each pair once: another test would cost all of them (Holm).

    Args:
        versus: Pairs of labels, or how these begin.
        rows: Of `make_rows`.

    Raises:
        InputError: Not exactly one row is called so, or both are the same.
    """
    pairs: dict[frozenset[str], tuple[Row, Row]] = {}
    for first, second in versus:
        a, b = _find(first, rows), _find(second, rows)
        if a is b:
            raise InputError(
                f"--versus '{first}' '{second}': both are the row '{a.label}'; name two rows"
            )
        pairs.setdefault(frozenset({a.label, b.label}), (a, b))
    return [*pairs.values()]


def paired_tests(pairs: list[tuple[Row, Row]], metric: str) -> list[dict[str, Any]]:
    """Tests pairs of rows on the cases that both have.

    Args:
        pairs: Of `find_pairs`.
        metric: One of `stats.PER_IMAGE`.

    Returns:
        A record a pair, with the fields of `stats.paired_test` and `p_holm`, corrected for all
        pairs; without these where no case is shared, and `n` 0.
    """
    out: list[dict[str, Any]] = []
    for a, b in pairs:
        first, second = a.by_case(metric), b.by_case(metric)
        shared = [first[case] - second[case] for case in sorted(first.keys() & second.keys())]
        found = stats.paired_test(np.array(shared))._asdict() if shared else {"n": 0}
        seeds = f"{len(a.scored)}, {len(b.scored)}"
        out.append({"a": a.label, "b": b.label, "metric": metric, "seeds": seeds, **found})
    made = [record for record in out if record["n"]]
    for record, p in zip(made, stats.holm([record["p"] for record in made]), strict=True):
        record["p_holm"] = p
    return out


def versus_table(tests: list[dict[str, Any]], pairs: list[tuple[Row, Row]], metric: str) -> Table:
    """Makes the table of `paired_tests`; arguments as there."""
    body = []
    for test, pair in zip(tests, pairs, strict=True):
        names = [row.label + "*" * (row.status == "incomplete") for row in pair]
        cells = [UNKNOWN] * 3
        if test["n"]:
            difference, low, high = (f"{test[key]:+.3f}" for key in ("difference", "low", "high"))
            # Of random flips none was as extreme: p may be less still.
            floor = "<= " if test["p"] <= 2 / (stats.RESAMPLES + 1) else ""
            cells = [
                f"{difference} [{low}, {high}]",
                *(f"{floor}{test[k]:.4f}" for k in ("p", "p_holm")),
            ]
        body.append([*names, str(test["n"]), test["seeds"], *cells])
    above = (
        f"{metric}, averaged over seeds, of the cases that both rows have: A - B [95 % interval]"
    )
    partial = any(row.status == "incomplete" for pair in pairs for row in pair)
    if metric == "hd95":
        above += "; less is better"
    notes = ["* incomplete: the table above says what is left out"] * partial
    notes.append(
        "p of a sign-flip permutation test, and corrected for all tests here (Holm). The tests are "
        "over cases, for these trained networks; training again is another matter."
    )
    return Table(above, ["A", "B", "n", "seeds", "A - B", "p", "p (Holm)"], 2, body, notes)


def _curves(rows: list[Row]) -> dict[str, tuple[str, list[dict[int, float]]]]:
    """The monitored metric of each row's runs over epochs."""
    curves = {}
    for row in rows:
        if row.finished:
            found = [read_curve(run, row.monitor) for run in row.finished]
            curves[row.label] = (row.monitor, found)
    return curves


def _draw(
    out: Path,
    rows: list[Row],
    scores: dict[str, dict[str, Score]],
    curves: dict[str, tuple[str, list[dict[int, float]]]],
) -> None:
    from seglab.analysis.figures import save_boxes, save_costs, save_val_curves

    metric = "dice_per_image"
    cases = {row.label: list(row.by_case(metric).values()) for row in rows if row.cases}
    save_boxes(out / "dice_boxes.png", cases, metric)
    points = {row.label: (scores[row.label][metric], row.costs()) for row in rows if row.finished}
    save_val_curves(out / "val_curves.png", curves)
    save_costs(out / "dice_cost.png", points, metric)
