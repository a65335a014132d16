"""Rows of the results table: runs that differ only in seed and fold, and their scores."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from seglab.analysis.statistics import add_seed_variation, aurc_intervals, intervals
from seglab.metrics.confidence import RISK_METRICS, risk_scores
from seglab.metrics.scores import (
    BOUNDARY_METRICS,
    IN_PIXELS,
    calibration_error,
    mean_terms,
    ratio_of_sums,
    score_terms,
)
from seglab.runs.records import STATUSES, Run
from seglab.runs.tables import CASE_COLUMNS, COSTS, CaseKey, CaseValues, select_scores

ACCURACY_OF_ALL_CLASSES = "accuracy of all classes"


class Score(NamedTuple):
    """A score: mean and standard deviation over seeds, and the mean's 95 % intervals.

    `low` and `high` are over cases, for these networks; `seeds_cases_low` and `seeds_cases_high`
    over seeds and cases together. What a single seed does not have is None.
    """

    value: float
    sd: float | None = None
    low: float | None = None
    high: float | None = None
    seeds_cases_low: float | None = None
    seeds_cases_high: float | None = None


def format_score(metric: str, score: Score) -> str:
    """Format a score as the tables show it, e.g. '0.954 ± 0.002 [0.944, 0.960]'.

    The interval is over seeds and cases where there are several seeds, else over cases.
    """
    digits = 1 if metric in IN_PIXELS else 4 if metric in RISK_METRICS else 3
    text = f"{score.value:.{digits}f}"
    if score.sd is not None:
        text += f" ± {score.sd:.{digits}f}"
    low, high = score.seeds_cases_low, score.seeds_cases_high
    if low is None:
        low, high = score.low, score.high
    if low is not None:
        text += f" [{low:.{digits}f}, {high:.{digits}f}]"
    return text


def _summarize(metric: str, values: Sequence[float], ends: Sequence[float] | None) -> Score:
    """Summarize a metric of each seed; `ends` are those of the mean's interval over cases."""
    score = Score(math.fsum(values) / len(values), None, *ends or ())
    if len(values) == 1:
        return score
    score = score._replace(sd=statistics.stdev(values))
    if ends is None:
        return score
    low, high = add_seed_variation(values, *ends)
    most = math.inf if metric in IN_PIXELS else 1.0
    return score._replace(seeds_cases_low=max(0.0, low), seeds_cases_high=min(most, high))


class CaseSelection(NamedTuple):
    """The test cases of a row that are scored, as a file names them."""

    file: str  # its name
    cases: frozenset[CaseKey]


@dataclass
class Row:
    """Runs that differ only in seed and fold, or a trivial baseline, on the cases of one data set.

    Cached properties are valid only once `make_rows` has filled the row.

    Attributes:
        settings: The settings that the runs share, by dotted key; empty for a baseline.
        classes: Names of several classes, background first; empty in the binary case.
        cells: The run of each (seed, fold); None where it is missing. Empty for a baseline.
        case_values: Of each seed that has any, the values of its test cases in all folds.
        folds: The folds that each seed should have.
        labels: What distinguishes the row from others, by column of the table.
        label: All of `labels` in one line.
        set: Name of the data set in runs of several; else empty.
        folds_are_seeds: Whether every fold tests the same cases, so that each network is a
            repetition; the seeds in `cells` are then called as in '0 fold 3'.
        selection: The test cases that are scored; None for all.
    """

    settings: dict[str, str]
    classes: tuple[str, ...]
    cells: dict[tuple[str, str], Run | None]
    case_values: dict[str, CaseValues]
    folds: list[str] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    label: str = ""
    set: str = ""
    folds_are_seeds: bool = False
    selection: CaseSelection | None = None

    @property
    def runs(self) -> list[Run]:
        """The runs that exist, whatever their status."""
        return [run for run in self.cells.values() if run]

    @cached_property
    def finished_runs(self) -> list[Run]:
        """The runs that have scores: finished ones, and imported masks."""
        return [run for run in self.runs if run.is_scored]

    def runs_of_seed(self, seed: str) -> list[Run]:
        """The finished runs of a seed, one for each fold."""
        runs = [run for (of_seed, _), run in self.cells.items() if of_seed == seed and run]
        return [run for run in runs if run.is_scored]

    @property
    def was_trained(self) -> bool:
        """Whether the row is of trainings, and not of scores alone."""
        return all(run.was_trained for run in self.runs)

    @cached_property
    def n_cases(self) -> int:
        """Number of test cases that any seed has, whether or not they are selected."""
        return len({case for cases in self.case_values.values() for case in cases})

    @cached_property
    def complete_seeds(self) -> list[str]:
        """Seeds that lack no fold, and no case that another seed has."""
        done = {key for key, run in self.cells.items() if run and run.is_scored}
        return [
            seed
            for seed, cases in self.case_values.items()
            if done.issuperset((seed, fold) for fold in self.folds) and len(cases) == self.n_cases
        ]

    @cached_property
    def scored(self) -> dict[str, CaseValues]:
        """Values of the seeds that are scored: complete ones, or all where none is complete."""
        return {seed: self.case_values[seed] for seed in self.complete_seeds or self.case_values}

    @cached_property
    def cases(self) -> list[CaseKey]:
        """Selected test cases of the seeds that are scored, sorted."""
        tested = {case for cases in self.scored.values() for case in cases}
        return sorted(tested & self.selection.cases if self.selection else tested)

    @property
    def is_repeated(self) -> bool:
        """Whether several seeds are scored on the same cases, so that their spread is known."""
        return len(self.complete_seeds) > 1

    @property
    def status(self) -> str:
        """Status of the runs; 'incomplete' where only some seeds are complete."""
        if self.finished_runs:
            expected = {seed for seed, fold in self.cells if fold in self.folds}
            is_complete = expected == {*self.complete_seeds}
            return self.finished_runs[0].status if is_complete else "incomplete"
        found = {run.status if run else "missing" for run in self.cells.values()}
        return next((s for s in ("failed", *STATUSES) if s in found), "baseline")

    @property
    def mark(self) -> str:
        """Mark of an incomplete row in tables, '*'; else empty."""
        return "*" if self.status == "incomplete" else ""

    @cached_property
    def terms(self) -> dict[str, np.ndarray]:
        """What each case adds to numerator and denominator of each metric, float64 (S, K, n, 2).

        S seeds, K classes except background (1 in the binary case), n cases. With several classes
        `ACCURACY_OF_ALL_CLASSES` counts the pixels whose class is right, equal for each class.
        `confidence` is no metric: `RISK_METRICS` sort the cases by it. Imported masks without
        probabilities have none, NaN.
        Where no seed is complete, seeds are averaged case by case to a single one: means over
        seeds with different cases would be of different things.
        """
        if not self.cases:
            return {}
        absent = np.zeros((max(1, len(self.classes)), len(CASE_COLUMNS)))
        by_seed = [[c.get(case, absent) for case in self.cases] for c in self.scored.values()]
        values: np.ndarray = np.moveaxis(np.array(by_seed), 2, 1)  # (S, K, n, columns)
        foreground = values[:, 1:] if self.classes else values
        tested = foreground[..., :4].sum(-1) > 0
        terms = score_terms(foreground[..., :4])
        for name in (*BOUNDARY_METRICS, "confidence"):
            terms[name] = mean_terms(foreground[..., CASE_COLUMNS.index(name)], tested)
        if self.classes:
            correct = np.stack([values[..., 0].sum(1), values[:, 0, :, :4].sum(-1)], -1)
            terms[ACCURACY_OF_ALL_CLASSES] = np.repeat(correct[:, None], foreground.shape[1], 1)
        if not self.complete_seeds:
            n_seeds = tested.sum(0)[..., None]
            terms = {name: (values.sum(0) / n_seeds)[None] for name, values in terms.items()}
        return terms

    def scores(
        self,
        interval_metrics: Sequence[str],
        diagnosis: str | None = None,
        class_name: str | None = None,
    ) -> dict[str, Score]:
        """Score the cases; the result is empty where no case was tested.

        Args:
            interval_metrics: Metrics that get an interval.
            diagnosis: Score the cases with this diagnosis; None for all.
            class_name: Score this class against the rest; None for the mean over all classes
                except background, and for the pixel accuracy of all classes.
        """
        if not self.cases:
            return {}
        chosen = [diagnosis in (None, case.diagnosis) for case in self.cases]
        terms = {name: values[:, :, chosen] for name, values in self.terms.items()}
        of_all_classes = terms.pop(ACCURACY_OF_ALL_CLASSES, None)
        if class_name is not None:
            number = self.classes[1:].index(class_name)
            terms = {name: values[:, number : number + 1] for name, values in terms.items()}
        elif of_all_classes is not None:
            terms["pixel_accuracy"] = of_all_classes
        # Of each case, (S, K, n).
        dice, confidence = (
            values[..., 0] / values[..., 1]
            for values in (terms["dice_per_image"], terms.pop("confidence"))
        )
        risk = [[*map(risk_scores, *of_seed)] for of_seed in zip(confidence, dice, strict=True)]
        risk_metrics = () if np.isnan(confidence).any() else RISK_METRICS
        if risk_metrics:
            terms["aurc_random"] = mean_terms(1 - dice, np.ones(dice.shape, bool))
        by_seed = {
            name: [statistics.fmean(map(ratio_of_sums, classes)) for classes in values]
            for name, values in terms.items()
        }
        for name in risk_metrics:
            by_seed[name] = [statistics.fmean(k[name] for k in classes) for classes in risk]
        if diagnosis is None and class_name is None:
            by_seed |= self._calibration_errors()
        ends: dict[str, list[float]] = {}
        names = [name for name in interval_metrics if name in terms]
        if names:
            # Classes are averaged as seeds are.
            flat = np.stack([terms[name].reshape(-1, sum(chosen), 2) for name in names])
            ends = dict(zip(names, intervals(flat).tolist(), strict=True))
        if risk_metrics and not {"aurc", "aurc_oracle"}.isdisjoint(interval_metrics):
            sort_keys = np.stack([confidence, dice]).reshape(2, -1, sum(chosen))
            areas = aurc_intervals(sort_keys, sort_keys[1]).tolist()
            ends |= zip(("aurc", "aurc_oracle"), areas, strict=True)
        return {name: _summarize(name, values, ends.get(name)) for name, values in by_seed.items()}

    def _calibration_errors(self) -> dict[str, list[float]]:
        # Runs store calibration of all cases together, so it cannot be averaged case by case.
        is_whole = self.selection is None and (self.complete_seeds or len(self.scored) == 1)
        if not self.finished_runs or not is_whole:
            return {}
        if not all(run.ece_bins for run in self.finished_runs):  # masks without probabilities
            return {}
        by_seed = [
            [run.ece_bins[self.set] for run in self.runs_of_seed(seed)] for seed in self.scored
        ]
        return {"ece": [calibration_error(np.array(counts).sum(0)) for counts in by_seed]}

    def by_case(self, metric: str) -> dict[CaseKey, float]:
        """A per-image metric of each case, averaged over seeds and classes."""
        if metric not in self.terms:
            return {}
        sums = self.terms[metric].sum((0, 1))
        return dict(zip(self.cases, (sums[:, 0] / sums[:, 1]).tolist(), strict=True))

    def costs(self) -> dict[str, float]:
        """Costs, as means over the runs that are scored; empty where there is none."""
        runs = [run for seed in self.scored for run in self.runs_of_seed(seed)]
        if not all(run.costs for run in runs):  # of masks of another program
            return {}
        return {name: statistics.fmean(r.costs[name] for r in runs) for name in COSTS if runs}

    @property
    def val_dice(self) -> float | None:
        """Dice per image of val, as a mean over finished runs; None where one has none."""
        scores = [select_scores(run.values, "val", self.set) for run in self.finished_runs]
        values = [of_run.get("dice_per_image") for of_run in scores]
        known = [value for value in values if value is not None]
        return statistics.fmean(known) if values and len(known) == len(values) else None

    @property
    def protocol(self) -> str:
        """How the cases were split, in words; a set may have a fold of its own."""
        fold = self.settings.get(f"data.sets.{self.set}.split.fold")
        if fold is None:
            return self.settings["protocol"]
        return "holdout" if fold == "null" else f"fold {fold}"

    @property
    def protocol_key(self) -> frozenset[tuple[str, str]]:
        """What decides which cases are tested, and so which seeds and folds rows should share."""
        prefixes = ("protocol", "data.root", "data.cases.", "data.split.", "data.sets.")
        of_training = ("split.val", ".train_share", ".weight")
        chosen = {
            (key, value)
            for key, value in self.settings.items()
            if key.startswith(prefixes) and not key.endswith(of_training)
        }
        return frozenset(chosen | {("set", self.set)})
