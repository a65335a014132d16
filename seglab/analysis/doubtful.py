"""Ranks annotations by how far confident predictions, made without them, differ. No torch."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from seglab.analysis.tables import Table
from seglab.core.errors import InputError, name_some
from seglab.data.cache import hash_cases, hash_files
from seglab.data.scan import Scan
from seglab.metrics.scores import ratio
from seglab.runs.records import Run
from seglab.runs.tables import CASE_COLUMNS, CaseKey

# Added to 1 - confidence, so that a prediction without any doubt does not decide the order. That
# of `Calibration` is larger; this one finds more of the masks that analysis/README.md tells of.
MARGIN = 0.005
N_SHOWN = 10  # rows of the table of a check and of a report
NOTE = (
    f"doubt is (1 - Dice) / (1 - confidence + {MARGIN}), how many times more annotation and "
    "prediction differ than the network expects; shift is in pixels, positive where the annotation "
    "is drawn tighter; "
    "missed and extra are pieces that the prediction, or the annotation, lacks"
)


class RankedAnnotation(NamedTuple):
    """The annotation of one class in a test case; values are means over the runs that tested it."""

    case: CaseKey
    class_name: str  # empty in the binary case
    doubt: float  # (1 - Dice) / (1 - confidence + MARGIN)
    dice: float  # of prediction and annotation, in [0, 1]
    confidence: float  # `soft_dice_confidence` of the prediction, in [0, 1]
    # See `boundary_scores`; shift in pixels, None where a mask is empty.
    outline_shift: float | None
    missed_pieces: float
    extra_pieces: float

    def to_json(self) -> dict[str, Any]:
        """Convert it to plain containers."""
        values = self._asdict()
        case = values.pop("case")
        return {"id": case.id, "diagnosis": case.diagnosis, **values}


def rank_annotations(runs: Sequence[Run]) -> list[RankedAnnotation]:
    """Rank the annotations of the cases that runs tested, the most doubtful first.

    A run tests cases that it was not trained on, so all folds of a sweep rank all cases. Imported
    masks without probabilities rank none.
    """
    cases: dict[str, CaseKey] = {}
    tested: dict[tuple[str, str], list[np.ndarray]] = defaultdict(list)
    for run in runs:
        names = run.classes[1:] or ("",)  # all but background; one class has no name
        for case, values in run.tested.items():
            cases.setdefault(case.content, case)
            for class_name, of_class in zip(names, values[-len(names) :], strict=True):
                if not np.isnan(of_class[CASE_COLUMNS.index("confidence")]):
                    tested[case.content, class_name].append(of_class)
    ranked = [_measure(cases[key], name, np.stack(v)) for (key, name), v in tested.items()]
    return sorted(ranked, key=lambda found: (-found.doubt, found.case, found.class_name))


def rank_current_annotations(
    scan: Scan, runs: Sequence[Run]
) -> tuple[list[RankedAnnotation], list[str]]:
    """Rank the annotations of a data set as it is now, and say which are not ranked.

    Left out are cases that no run tested, or whose files have changed since.

    Raises:
        InputError: The runs tested none of the cases.
    """
    hashes = hash_cases(scan.cases, hash_files(scan.cases))
    of_runs = rank_annotations(runs)
    here = {*hashes.values()}
    ranked = [found for found in of_runs if found.case.sha256 in here]
    if not of_runs and any(run.tested for run in runs):
        raise InputError(
            "--runs: hold masks without probabilities, which rank no annotation; score them again "
            "with --probabilities"
        )
    if not ranked:
        raise InputError(
            f"--runs: tested none of the cases of {scan.root} as they are now; expected finished "
            "runs that were trained on this data"
        )
    sets = {found.case.set for found in ranked}
    tested = {found.case.sha256 for found in ranked}
    cases = [found.case for found in of_runs if found.case.set in sets]
    # Ids of runs of several sets begin with the set.
    gone = {case.id.removeprefix(f"{case.set}/") for case in cases if case.sha256 not in here}
    new = {id for id, sha256 in hashes.items() if sha256 not in tested}
    left_out = {
        "their files differ from those that the runs tested": gone & new,
        "they are no longer here": gone - hashes.keys(),
        "no run tested them": new - gone,
    }
    return ranked, [
        f"not ranked, because {reason}: {name_some(sorted(ids), 20)}"
        for reason, ids in left_out.items()
        if ids
    ]


def _measure(case: CaseKey, class_name: str, values: np.ndarray) -> RankedAnnotation:
    """Average the values of `CASE_COLUMNS`, float64 (runs, columns), of one class of a case."""
    columns = dict(zip(CASE_COLUMNS, values.T, strict=True))
    tp, fp, fn = columns["tp"], columns["fp"], columns["fn"]
    dice = float(ratio(2 * tp, 2 * tp + fp + fn).mean())
    confidence, missed, extra = (
        float(columns[name].mean()) for name in ("confidence", "missed_pieces", "extra_pieces")
    )
    shifts = columns["outline_shift"][~np.isnan(columns["outline_shift"])]
    shift = float(shifts.mean()) if len(shifts) else None
    doubt = (1 - dice) / (1 - confidence + MARGIN)
    return RankedAnnotation(case, class_name, doubt, dice, confidence, shift, missed, extra)


def make_doubt_table(ranked: Sequence[RankedAnnotation]) -> Table:
    """Make a table of the first `N_SHOWN` of all ranked annotations."""
    has_classes = any(found.class_name for found in ranked)
    body = [
        [
            *(found.case.id, found.case.diagnosis, *([found.class_name] if has_classes else [])),
            f"{found.doubt:.1f}",
            f"{found.dice:.3f}",
            f"{found.confidence:.3f}",
            "-" if found.outline_shift is None else f"{found.outline_shift:+.1f}",
            f"{found.missed_pieces:g}",
            f"{found.extra_pieces:g}",
        ]
        for found in ranked[:N_SHOWN]
    ]
    title = (
        f"the {len(body)} most doubtful of {len(ranked)} annotations: those that confident "
        "predictions, made without them, differ from most"
    )
    texts = ["case", "diagnosis", *(["class"] if has_classes else [])]
    head = [*texts, "doubt", "Dice", "confidence", "shift", "missed", "extra"]
    return Table(title, head, len(texts), body, [NOTE])
