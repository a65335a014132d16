"""Sentences of the reporting checklist on separation, metrics, intervals, results and gaps."""

import statistics as means
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence

from seglab.analysis import statistics
from seglab.analysis.model_card import code_span
from seglab.analysis.notes import (
    MIN_CASES_FOR_INTERVAL,
    NARROW_INTERVAL_CAUTION,
    describe_gaps,
    describe_status,
)
from seglab.analysis.rows import Row, format_score
from seglab.analysis.tables import Table, format_markdown
from seglab.core.errors import name_some, printable
from seglab.metrics.scores import METRIC_DEFINITIONS
from seglab.runs.records import Run

RESULT_METRICS = ("dice_per_image", "iou_per_image", "hd95", "surface_dice")
LOW_DICE = 0.8


def by_row(rows: Sequence[Row], describe: Callable[[Row], str]) -> list[str]:
    """Describe rows one by one; rows of which the same is true share a sentence."""
    labels: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        labels[describe(row)].append(code_span(row.label))
    if len(labels) == 1:
        return [text[:1].upper() + text[1:] for text in labels]
    return [f"{'; '.join(found)}: {text}" for text, found in labels.items()]


def list_values(values: Iterable[object]) -> str:
    """List distinct values as code, in the order of the runs."""
    return ", ".join(code_span(printable(str(value))) for value in dict.fromkeys(values))


def describe_separation(networks: Sequence[Row], tested: Sequence[Run]) -> list[str]:
    """Say how test cases were kept apart from those that were trained on, and check it."""

    def describe(row: Row) -> str:
        if row.settings.get("data.find_duplicates") == "true":
            return (
                "`data.find_duplicates=true`: pictures that are equal or nearly equal, also turned "
                "or mirrored, were kept in one subset when the split was made. Copies that are "
                "cropped, or turned by a few degrees, mostly escape this."
            )
        return (
            "`data.find_duplicates` is off: only image files of equal content were kept in one "
            "subset; nearly equal pictures may be on both sides."
        )

    known = [run for run in tested if run.ids["train"]]
    unknown = [code_span(run.label) for run in tested if not run.ids["train"]]
    shared = [code_span(run.label) for run in known if _shares_cases(run)]
    checked = (
        f"Checked when this file was written, in each run that records its training cases "
        f"({len(known)}): no id, and no content of image and mask (SHA-256), is in more than one "
        "of train, val and test."
    )
    if shared:
        checked = (
            f"In {name_some(shared)} a case of test or val is in train, or one of test in val."
        )
    warnings = [text for run in tested for text in run.record.get("warnings") or []]
    if not known:
        checked = ""
    if unknown:
        checked += f" Which cases were trained on is not recorded in {name_some(unknown)}."
    return [
        checked.strip(),
        *by_row(networks, describe),
        "Patients: unknown, see [below](#unknown).",
        *(
            [f"Warnings of the runs about data and split: {list_values(warnings)}"]
            if warnings
            else []
        ),
    ]


def _shares_cases(run: Run) -> bool:
    """Whether two subsets of a run's split have an id or the content of a case in common."""
    keys = [
        {key for id in run.ids[part] for key in (("id", id), ("content", run.sha256[id]))}
        for part in ("train", "val", "test")
    ]
    return sum(map(len, keys)) > len(set().union(*keys))


def describe_scored_elsewhere(rows: Sequence[Row]) -> list[str]:
    """Say what is known of masks that other programs wrote, and of networks on other data."""
    texts = {
        "imported": "masks that another program wrote, scored by the same code as the others. They "
        "are in `masks/` of their runs. How the program works, and what was chosen on which cases, "
        "the runs do not record",
        "evaluated": "networks that were trained elsewhere, tested by `seglab evaluate`",
    }
    notes = dict.fromkeys(
        f"- {code_span(row.label)}: {code_span(note)}"
        for row in rows
        for run in row.finished_runs
        for note in run.notes
    )
    sentences = by_row(rows, lambda row: f"{texts[row.finished_runs[0].status]}.")
    return [*sentences, *(["\n".join(notes)] if notes else [])]


def describe_metrics(scored: Sequence[Row]) -> list[str]:
    """Say what the values are of, and define each metric."""
    sizes = list_values(row.settings.get("data.size", "?") for row in scored if row.was_trained)
    seen = f"Networks see images resized to a square of {sizes} pixels. " if sizes else ""
    return [
        f"{seen}Masks are scored at the native resolution of each image, against the masks of the "
        "data.",
        "Folds are joined before any mean is taken, so each case counts once for each seed; then "
        "values are averaged over seeds. With several classes, values are means over all but "
        "background. No case is left out for its masks: where target and prediction are both "
        "empty, Dice and IoU are 1; where one is empty, they are 0 and `hd95` is the diagonal of "
        "the image.",
        "\n".join(f"- `{name}`: {text}" for name, text in METRIC_DEFINITIONS.items()),
        "The code of the metrics is in `seglab/metrics/`. `tables/` has all of them: overlap, "
        "outlines and calibration.",
    ]


def describe_intervals(scored: Sequence[Row], n_tests: int) -> list[str]:
    """Say which intervals and tests there are, and of what."""
    sentences = [
        f"In brackets: {100 * statistics.INTERVAL_LEVEL:g} % intervals, by a bootstrap over test "
        f"cases with {statistics.RESAMPLES:,} resamples (BCa; percentiles above "
        f"{statistics.MAX_CASES_FOR_BCA:,} cases); `ece` has none. They are for these "
        "networks, or programs, on other cases like these. Splits and settings are not drawn "
        "again, and cases count as independent, also those of one patient.",
        *by_row(scored, _describe_spread),
    ]
    if any(len(row.cases) < MIN_CASES_FOR_INTERVAL for row in scored):
        sentences.append(f"Caution: {NARROW_INTERVAL_CAUTION}.")
    if not n_tests:
        return [*sentences, "No rows were tested against each other."]
    pairs = "1 pair of rows was" if n_tests == 1 else f"{n_tests} pairs of rows were"
    return [
        *sentences,
        f"{pairs} tested on the cases that both have: two-sided sign-flip permutation test of the "
        "mean difference in `dice_per_image`, corrected for these tests by Holm's method "
        "(`tables/versus.*`). `tables/power.*` tells which difference so many cases could show. "
        "Whether other pairs were tested elsewhere is not recorded.",
    ]


def _describe_spread(row: Row) -> str:
    n = len(row.scored)
    what = "networks, a seed and fold each," if row.folds_are_seeds else "seeds"
    if n > 1:
        return (
            f"± is the standard deviation over {n} {what} with n - 1 in the denominator, and the "
            f"interval is over {what.rstrip(',')} and cases together: that over cases, widened by "
            "Student's t over these (MOVER, Zou and Donner 2008)."
        )
    if not row.was_trained:
        return "the predictions are one set: what training again would give is unknown."
    return "one seed was trained: how far values differ from seed to seed is unknown."


def describe_results(rows: Sequence[Row]) -> list[str]:
    """Make a table of rows and trivial baselines, and sentences on single cases."""
    tested = [row for row in rows if row.cases]
    body = []
    for row in tested:
        scores = row.scores(RESULT_METRICS)
        values = [format_score(name, scores[name]) + row.mark for name in RESULT_METRICS]
        body.append([row.label, str(len(row.cases)), *values])
    title = "Means over test cases"
    if any(not row.runs for row in tested):
        title += "; the last rows are trivial baselines on the same cases"
    table = Table(title, ["row", "n", *RESULT_METRICS], 1, body, [])
    return [
        format_markdown(table).rstrip(),
        *(_describe_cases(row) for row in tested if row.finished_runs),
        "All metrics: `tables/table.md`. Each run: `tables/runs.csv`.",
    ]


def _describe_cases(row: Row) -> str:
    """Say how the Dice of single cases and of diagnoses differs from the mean."""
    dice = row.by_case("dice_per_image")
    worst = min(dice, key=lambda case: dice[case])
    n_low = sum(value < LOW_DICE for value in dice.values())
    groups = []
    for name, n in sorted(Counter(case.diagnosis for case in dice).items()):
        score = row.scores(["dice_per_image"], name)["dice_per_image"]
        value = format_score("dice_per_image", score)
        groups.append(f"{code_span(name) or 'unknown'} (n {n:,}) {value}")
    by_diagnosis = f" By diagnosis: {', '.join(groups)}." if len(groups) > 1 else ""
    return (
        f"{code_span(row.label)}: the Dice of a case (mean over seeds) has the median "
        f"{means.median(dice.values()):.3f}. It is below {LOW_DICE} in {n_low} of {len(dice):,} "
        f"cases, and lowest in {code_span(worst.id)}, {dice[worst]:.3f}.{by_diagnosis}"
    )


def describe_failures(rows: Sequence[Row], runs: Sequence[Run], notes: Sequence[str]) -> list[str]:
    """List runs that are not finished, missing ones and incomplete rows; notes of `make_rows`."""
    lines = []
    for run in (run for run in runs if not run.is_scored):
        reason = f" ({code_span(run.error)})" if run.error else ""
        lines.append(f"run {code_span(run.label)}: {describe_status(run.status)}{reason}")
    lines += [code_span(note) for note in [*describe_gaps(rows), *notes]]
    if not lines:
        return [f"Nothing. Runs that are here, all of them scored: {len(runs)}."]
    return ["\n".join(f"- {line}" for line in lines)]
