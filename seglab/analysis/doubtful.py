"""Ranks annotations by how far confident predictions, made without them, differ. No torch."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from seglab.analysis.tables import Table
from seglab.core.errors import InputError, name_some
from seglab.data.cache import hash_cases, hash_files
from seglab.data.scan import Scan
from seglab.metrics.scores import OUTLINE_COLUMNS, ratio
from seglab.runs.records import Run
from seglab.runs.tables import CASE_COLUMNS, CaseKey

# Added to 1 - confidence, so that a prediction without any doubt does not decide the order.
MARGIN = 0.005
N_SHOWN = 10  # rows of the table of a check and of a report
NOTE = (
    "doubt is (1 - Dice) / (1 - confidence), how many times more annotation and prediction differ "
    "than the network expects; shift is in pixels, positive where the annotation is drawn tighter; "
    "missed and extra are pieces that the prediction, or the annotation, lacks"
)


@dataclass(frozen=True)
class Outline:
    """The annotation of one class in a test case; values are means over the runs that tested it.

    Attributes:
        case: The case.
        class_name: Name of the class; empty in the binary case.
        doubt: (1 - Dice) / (1 - confidence + `MARGIN`).
        dice: Of prediction and annotation, in [0, 1].
        confidence: See `seglab.metrics.confidence.soft_dice_confidence`.
        outline_shift: In pixels; None where a mask is empty. This and the others: see
            `seglab.metrics.boundary`.
        missed_pieces: Number of pieces that only the annotation has.
        extra_pieces: Number of pieces that only the prediction has.
    """

    case: CaseKey
    class_name: str
    doubt: float
    dice: float
    confidence: float
    outline_shift: float | None
    missed_pieces: float
    extra_pieces: float

    def to_json(self) -> dict[str, Any]:
        """Converts it to plain containers."""
        values = {name: value for name, value in vars(self).items() if name != "case"}
        return {"id": self.case.id, "diagnosis": self.case.diagnosis, **values}


def rank_annotations(scan: Scan, runs: Sequence[Run]) -> tuple[list[Outline], list[str]]:
    """Ranks the annotations of a data set, and says which are not ranked.

    Left out are cases that no run tested, or whose files have changed since.

    Raises:
        InputError: The runs tested none of the cases.
    """
    hashes = hash_cases(scan.cases, hash_files(scan.cases))
    outlines = rank_outlines(runs)
    tested = {outline.case.id for outline in outlines}
    ranked = [outline for outline in outlines if hashes.get(outline.case.id) == outline.case.sha256]
    ids = {outline.case.id for outline in ranked}
    if not ids:
        raise InputError(
            f"--runs: tested none of the cases of {scan.root} as they are now; expected finished "
            "runs that were trained on this data"
        )
    left_out = {
        "their files differ from those that the runs tested": tested & hashes.keys() - ids,
        "they are no longer here": tested - hashes.keys(),
        "no run tested them": hashes.keys() - tested,
    }
    return ranked, [
        f"not ranked, because {reason}: {name_some(sorted(cases), 20)}"
        for reason, cases in left_out.items()
        if cases
    ]


def rank_outlines(runs: Sequence[Run]) -> list[Outline]:
    """Ranks the annotations of the cases that finished runs tested, the most doubtful first.

    A run tests cases that it was not trained on, so all folds of a sweep rank all cases.
    """
    tested: dict[tuple[CaseKey, str], list[np.ndarray]] = defaultdict(list)
    for run in runs:
        is_multiclass = len(run.classes) > 1
        for case, values in run.tested.items():
            for number in range(is_multiclass, len(values)):
                class_name = run.classes[number] if is_multiclass else ""
                tested[case, class_name].append(values[number])
    outlines = [_measure(*key, np.stack(values)) for key, values in tested.items()]
    return sorted(outlines, key=lambda outline: (-outline.doubt, outline.case, outline.class_name))


def _measure(case: CaseKey, class_name: str, values: np.ndarray) -> Outline:
    """Averages the values of `CASE_COLUMNS`, float64 (runs, columns), of one class of a case."""
    columns = dict(zip(CASE_COLUMNS, values.T, strict=True))
    tp, fp, fn = columns["tp"], columns["fp"], columns["fn"]
    dice = float(ratio(2 * tp, 2 * tp + fp + fn).mean())
    confidence = float(columns["confidence"].mean())
    doubt = (1 - dice) / (1 - confidence + MARGIN)
    # A column is NaN where a mask is empty.
    means = (columns[name][~np.isnan(columns[name])] for name in OUTLINE_COLUMNS)
    shift, missed, extra = (float(known.mean()) if len(known) else None for known in means)
    return Outline(case, class_name, doubt, dice, confidence, shift, missed or 0, extra or 0)


def make_outline_table(outlines: Sequence[Outline]) -> Table:
    """Makes a table of the first `N_SHOWN` of all ranked outlines."""
    text_columns = ["case", "diagnosis"]
    if any(outline.class_name for outline in outlines):
        text_columns.append("class")
    body = [
        [
            *[outline.case.id, outline.case.diagnosis, outline.class_name][: len(text_columns)],
            f"{outline.doubt:.1f}",
            f"{outline.dice:.3f}",
            f"{outline.confidence:.3f}",
            "-" if outline.outline_shift is None else f"{outline.outline_shift:+.1f}",
            f"{outline.missed_pieces:g}",
            f"{outline.extra_pieces:g}",
        ]
        for outline in outlines[:N_SHOWN]
    ]
    title = (
        f"the {len(body)} most doubtful of {len(outlines)} annotations: those that confident "
        "predictions, made without them, differ from most"
    )
    head = [*text_columns, "doubt", "Dice", "confidence", "shift", "missed", "extra"]
    return Table(title, head, len(text_columns), body, [NOTE])
