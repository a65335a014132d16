"""Figure of pairs as they are read, to look at before training."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np

from seglab.analysis.doubtful import RankedAnnotation
from seglab.analysis.figures import save_outlines
from seglab.analysis.gallery import predict_tested
from seglab.data.cases import Case, read_pair
from seglab.data.scan import Scan
from seglab.runs.records import Run


def draw_check(path: str | Path, scan: Scan, n: int) -> int:
    """Draws up to n of the good cases of a checked data set, and returns their number.

    Odd cases come first, in turns of what is odd about them; the others are evenly picked.
    """
    cases = choose_cases(scan.cases, scan.oddities, n)
    if cases:
        pictures = [read_pair(case) for case in cases]
        names = [case.id for case in cases]
        # Without what to do about it.
        oddities = [
            "; ".join(o.rpartition("; ")[0] for o in scan.oddities.get(id, [])) for id in names
        ]
        save_outlines(path, pictures, names, oddities, cases[0].classes)
    return len(cases)


def draw_annotations(
    path: str | Path,
    ranked: Sequence[RankedAnnotation],
    runs: Sequence[Run],
    trust: tuple[str, ...],
    data_root: str | Path,
) -> None:
    """Draws each annotation, dashed, and the prediction of a run that tested it."""
    predicted: dict[str, tuple[Case, np.ndarray, np.ndarray, np.ndarray]] = {}
    for run in runs:
        tested = {found.case.id for found in ranked if found.case in run.tested}
        if ids := tested - predicted.keys():
            root = None if run.sets else data_root  # which is that of one set
            predicted |= {p[0].id: p for p in predict_tested(run, ids, trust, root)}
    cases, images, targets, preds = zip(*(predicted[o.case.id] for o in ranked), strict=True)
    names = [
        f"{i}. {f'{o.case.id} {o.class_name}'.strip()}: doubt {o.doubt:.1f}, Dice {o.dice:.3f}"
        for i, o in enumerate(ranked, 1)
    ]
    pictures = [*zip(images, preds, strict=True)]
    save_outlines(path, pictures, names, [""] * len(names), cases[0].classes, targets)


def choose_cases(cases: Sequence[Case], oddities: Mapping[str, list[str]], n: int) -> list[Case]:
    """Chooses up to n cases, the odd ones first."""
    by_oddity = defaultdict(list)
    for case in cases:
        by_oddity[tuple(oddities.get(case.id, ()))].append(case)
    regular = by_oddity.pop((), [])
    layers = zip_longest(*(_spread(group, n) for group in by_oddity.values()))
    odd = [case for case in chain.from_iterable(layers) if case is not None][:n]
    return odd + _spread(regular, n - len(odd))


def _spread(cases: Sequence[Case], n: int) -> list[Case]:
    """Picks up to n cases at even distances."""
    n = min(n, len(cases))
    return [cases[(2 * i + 1) * len(cases) // (2 * n)] for i in range(n)]
