"""Learning curves: the error of rows that differ in `data.split.train_share` alone, and its fit.

The error 1 - Dice of n training cases is taken for a * n^-b + c, a power law with a floor (Figueroa
et al. 2012; Viering and Loog 2022 compare it with other forms).
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from seglab.analysis import statistics
from seglab.analysis.notes import describe_cautions, describe_protocol
from seglab.analysis.rows import Row
from seglab.analysis.tables import Table
from seglab.core.errors import InputError
from seglab.metrics.scores import mean_terms

SHARE = "data.split.train_share"
EXPONENTS = np.geomspace(0.02, 2, 70)
MIN_SIZES = 3  # as many as the curve has parameters
NOTE = (
    "dice_per_image: measured, mean over seeds [95 % interval over cases]; fitted: curve through "
    "all sizes; gain: what twice the data would bring by it; 95 % intervals of these two draw "
    "folds and their cases. An extrapolation assumes that the curve goes on as it was: take it for "
    "a guess"
)


class PowerLaw(NamedTuple):
    """Error a * n^-b + c, float64 (1 + R,): of all test cases, and of each resample."""

    a: np.ndarray
    b: np.ndarray
    c: np.ndarray

    def dice(self, n: float) -> np.ndarray:
        """Return 1 - error for n training cases, float64 (1 + R,)."""
        return np.asarray(1 - self.a * n**-self.b - self.c)


class LearningCurve(NamedTuple):
    """Rows of one setting by their training cases, S sizes in rising order."""

    label: str
    rows: list[Row]
    sizes: np.ndarray  # float64 (S,): mean number of training cases of the runs
    dice: np.ndarray  # float64 (1 + R, S): means of all test cases, then of each resample
    ends: np.ndarray  # float64 (S, 2): 95 % intervals over cases, as in table.csv
    n_cases: int  # test cases that all rows have
    fit: PowerLaw | None  # None with fewer than MIN_SIZES sizes


def fit_power_law(sizes: np.ndarray, errors: np.ndarray) -> PowerLaw:
    """Fit a * n^-b + c by least squares of relative errors, with a >= 0 and c >= 0.

    b is one of `EXPONENTS`, for which a and c are exact. `sizes` are float64 (S,), `errors` float64
    (N, S) for N fits; the first weighs the sizes of all.
    """
    weights = 1 / np.maximum(errors[0], 1e-6) ** 2
    weights /= weights.sum()
    best = np.full((4, len(errors)), np.inf)  # sum of squares, a, b, c
    mean = errors @ weights
    for b in EXPONENTS:
        x = sizes**-b
        centred = weights * (x - weights @ x)
        a = np.maximum(errors @ centred / (centred @ x), 0)
        c = mean - a * (weights @ x)
        a = np.where(c < 0, errors @ (weights * x) / (weights @ x**2), a)
        c = np.maximum(c, 0)
        squares = (errors - a[:, None] * x - c[:, None]) ** 2 @ weights
        best = np.where(squares < best[0], np.stack([squares, a, np.full(len(a), b), c]), best)
    return PowerLaw(*best[1:])


def percentile_interval(values: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of a value and its resamples, float64 (1 + R,)."""
    tail = (1 - statistics.INTERVAL_LEVEL) / 2
    low, high = np.quantile(values[1:], [tail, 1 - tail]).tolist()
    return low, high


def find_learning_curves(rows: Iterable[Row]) -> list[LearningCurve]:
    """Return the curves of finished rows that differ in `SHARE` alone, of each data set apart."""
    groups: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        if row.finished_runs and row.cases:
            settings = {key: value for key, value in row.settings.items() if key != SHARE}
            groups[frozenset(settings.items()), row.set].append(row)
    return [_make_curve(group) for group in groups.values() if len(group) > 1]


def _make_curve(rows: list[Row]) -> LearningCurve:
    trained = {row.label: fmean(len(r.ids["train"]) for r in row.finished_runs) for row in rows}
    rows = sorted(rows, key=lambda row: (trained[row.label], row.label))
    scores = [row.by_case("dice_per_image") for row in rows]
    cases = sorted(set.intersection(*map(set, scores)))
    columns = {name: text for name, text in rows[0].labels.items() if "train_share" not in name}
    label = ", ".join(filter(None, columns.values())) or rows[0].settings["name"]
    if not cases:
        raise InputError(f"{label}: shares of train test no case in common; compare them apart")
    values = np.array([[of_row[case] for case in cases] for of_row in scores])  # (S, n)
    fold_of = {case: run.fold for run in rows[-1].finished_runs for case in run.tested}
    is_once = len(rows[-1].folds) > 1  # folds test different cases
    dice = resample_means(values, [fold_of[case] if is_once else "" for case in cases])
    sizes = np.array([trained[row.label] for row in rows])
    ends = statistics.intervals(mean_terms(values, np.ones(values.shape, bool))[:, None])
    fit = fit_power_law(sizes, 1 - dice) if len({*sizes}) >= MIN_SIZES else None
    return LearningCurve(label, rows, sizes, dice, ends, len(cases), fit)


def resample_means(values: np.ndarray, folds: Sequence[str]) -> np.ndarray:
    """Return means of values, (S, n), over all cases and then over resamples, (1 + R, S).

    Folds are drawn, then cases of each: networks of a fold are as lucky as their training was,
    which cases alone would not show.
    """
    random = np.random.default_rng(0)
    names, number = np.unique(folds, return_inverse=True)
    n_folds = len(names)
    times_drawn = random.multinomial(n_folds, [1 / n_folds] * n_folds, statistics.RESAMPLES)
    weights = np.ones((1 + statistics.RESAMPLES, len(folds)))
    for fold in range(n_folds):
        members = number == fold
        n = members.sum()
        weights[1:, members] = random.multinomial(times_drawn[:, fold] * n, [1 / n] * n)
    return np.asarray(weights @ values.T / weights.sum(1, keepdims=True))


def summarize_curve(curve: LearningCurve) -> list[dict[str, Any]]:
    """Return lines of learning_curve.csv: one for each row, and one for twice the most cases."""
    records: list[dict[str, Any]] = [
        {
            "label": curve.label,
            "train_share": row.settings.get(SHARE, "1"),
            "train_cases": size,
            "n": curve.n_cases,
            "dice_per_image": dice,
            "dice_low": low,
            "dice_high": high,
        }
        for row, size, dice, (low, high) in zip(
            curve.rows,
            curve.sizes.tolist(),
            curve.dice[0].tolist(),
            curve.ends.tolist(),
            strict=True,
        )
    ]
    if curve.fit is None:
        return records
    largest = curve.sizes[-1]
    records.append({"label": curve.label, "train_share": "twice", "train_cases": 2 * largest})
    for record in records:
        fitted = curve.fit.dice(record["train_cases"])
        low, high = percentile_interval(fitted)
        record |= {"fitted": fitted[0].item(), "fitted_low": low, "fitted_high": high}
    gain = fitted - curve.fit.dice(largest)
    low, high = percentile_interval(gain)
    records[-1] |= {"gain": gain[0].item(), "gain_low": low, "gain_high": high}
    return records


def make_learning_table(curves: Sequence[LearningCurve]) -> Table:
    """Make the table of all curves, with what is known of each fit below it."""
    measured = "{dice_per_image:z.3f} [{dice_low:z.3f}, {dice_high:z.3f}]"
    fitted = "{fitted:z.3f} [{fitted_low:z.3f}, {fitted_high:z.3f}]"
    gain = "{gain:+z.3f} [{gain_low:+z.3f}, {gain_high:+z.3f}]"
    columns = {"dice_per_image": measured, "fitted": fitted, "gain": gain}
    body = []
    for curve in curves:
        for i, record in enumerate(summarize_curve(curve)):
            cells = ["" if i else curve.label, record["train_share"]]
            cells.append(f"{record['train_cases']:.4g}")
            cells += [s.format(**record) if name in record else "" for name, s in columns.items()]
            body.append(cells)
    head = ["row", "train_share", "train cases", "dice_per_image", "fitted", "gain"]
    rows = [row for curve in curves for row in curve.rows]
    notes = [NOTE, *(note for curve in curves for note in _describe_fit(curve))]
    cautions = describe_cautions(rows, [curve.n_cases for curve in curves])
    notes += [note for note in cautions if not note.startswith("choose by val")]
    return Table(f"learning curve; {describe_protocol(rows)}", head, 2, body, notes)


def _describe_fit(curve: LearningCurve) -> list[str]:
    """Return the fit in words, how well it foretells the largest size, and why not to trust it."""
    name, fit = curve.label, curve.fit
    if fit is None:
        return [f"{name}: no curve, expected {MIN_SIZES} sizes of train or more"]
    ends = [percentile_interval(values) for values in fit]
    a, b, c = (
        f"{values[0]:.3g} [{low:.2g}, {high:.2g}]"
        for values, (low, high) in zip(fit, ends, strict=True)
    )
    notes = [f"{name}: error = a n^-b + c with a {a}, b {b}, c {c}"]
    if percentile_interval(curve.dice[:, -1] - curve.dice[:, 0])[0] <= 0:
        notes.append(f"{name}: the curve is flat: more cases are not shown to bring anything")
    if len({*curve.sizes}) <= MIN_SIZES:
        notes.append(f"{name}: {MIN_SIZES} sizes determine any such curve; train a fourth share")
        return notes
    known = curve.sizes < curve.sizes[-1]
    foretold = fit_power_law(curve.sizes[known], 1 - curve.dice[:, known]).dice(curve.sizes[-1])
    low, high = percentile_interval(foretold)
    notes.append(
        f"{name}: without the largest size the fit foretells {foretold[0]:.3f} [{low:.3f}, "
        f"{high:.3f}] for it, measured {curve.dice[0, -1]:.3f}"
    )
    if len(curve.rows[-1].folds) == 1:
        notes.append(f"{name}: one fold, so the intervals leave out chance in training")
    return notes
