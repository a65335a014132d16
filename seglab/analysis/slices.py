"""Scores rows by slices: test cases that have an attribute in common, against the others."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from seglab.analysis import statistics
from seglab.analysis.grouping import natural_key
from seglab.analysis.paired import add_corrected_p, format_p_values
from seglab.analysis.rows import Row, Score, format_score
from seglab.analysis.tables import Table
from seglab.data.attributes import FIXED_BOUNDS
from seglab.metrics.scores import IN_PIXELS
from seglab.runs.tables import CaseKey, read_case_attributes

MIN_CASES = 10  # of a slice and of the other cases; with fewer there is no interval and no test
MAX_VALUES = 6  # numbers with more are cut into thirds, texts with twice as many left out
SIGNIFICANCE = 0.05  # slices with a corrected p below it are named under the table


class Slice(NamedTuple):
    """Cases with one value, or a range of values, of an attribute."""

    attribute: str
    name: str
    members: np.ndarray  # bool (n,)
    others: np.ndarray  # bool (n,): the rest of the cases whose attribute is known
    is_tested: bool  # not the first of two: it differs by as much as the second


def make_slices(
    cases: Sequence[CaseKey], attributes: Mapping[str, Mapping[str, str]]
) -> list[Slice]:
    """Make slices of cases by diagnosis and by attributes: texts by case id and name.

    An attribute with one value, or with more texts than make a table, has none.
    """
    names = dict.fromkeys(name for values in attributes.values() for name in values)
    columns = {"diagnosis": [case.diagnosis for case in cases]}
    columns |= {name: [attributes.get(c.id, {}).get(name, "") for c in cases] for name in names}
    slices = []
    for attribute, column in columns.items():
        texts = np.array(column)
        parts = _cut(attribute, texts)
        if 1 < len(parts) <= 2 * MAX_VALUES:
            for i, (name, members) in enumerate(parts.items()):
                others = (texts != "") & ~members
                slices.append(Slice(attribute, name, members, others, i > 0 or len(parts) > 2))
    return slices


def _cut(attribute: str, texts: np.ndarray) -> dict[str, np.ndarray]:
    """Return the members of each slice, bool (n,), by its name; the text '' is in none."""
    known = texts != ""
    values = sorted(set(texts[known].tolist()), key=natural_key)
    as_they_are = {value: texts == value for value in values}
    try:
        numbers = np.where(known, texts, "nan").astype(float)
    except ValueError:
        return as_they_are
    if attribute in FIXED_BOUNDS:
        bounds = [FIXED_BOUNDS[attribute]]
    elif len(values) > MAX_VALUES:
        bounds = np.quantile(numbers[known], [1 / 3, 2 / 3]).tolist()
    else:
        return as_they_are
    ends = [f"{bound:.3g}" for bound in bounds]
    between = [" to ".join(ends)] * (len(ends) - 1)
    part = np.digitize(numbers, bounds, right=True)  # 0: at most the first bound
    parts = enumerate([f"up to {ends[0]}", *between, f"above {ends[-1]}"])
    members = {name: known & (part == number) for number, name in parts}
    return {name: chosen for name, chosen in members.items() if chosen.any()}


def score_slices(rows: Sequence[Row], metric: str) -> list[dict[str, Any]]:
    """Score the slices of rows by one of `PER_IMAGE`'s metrics, averaged over seeds and classes.

    Returns:
        A record per row and slice: `row`, `attribute`, `slice`, `metric`, `n`, `value`. If both
        the slice and the other cases are at least `MIN_CASES`, also the fields of
        `statistics.SliceTest`, and `p_holm`, corrected for all slices of the row that are tested.
    """
    records: list[dict[str, Any]] = []
    for row in rows:
        attributes: dict[str, dict[str, str]] = {}
        for run in row.finished_runs:
            attributes |= read_case_attributes(run.folder)
        by_case = row.by_case(metric)
        values = np.array([*by_case.values()])
        large, masks, tested = [], [], []
        for part in make_slices([*by_case], attributes):
            n = int(part.members.sum())
            names = {"row": row.label, "attribute": part.attribute, "slice": part.name}
            value = float(values[part.members].mean())
            record: dict[str, Any] = {**names, "metric": metric, "n": n, "value": value}
            records.append(record)
            if min(n, part.others.sum()) >= MIN_CASES:
                large.append(record)
                masks.append((part.members, part.others))
                tested += [record] * part.is_tested
        tests = statistics.compare_slices(values, *np.array(masks).swapaxes(0, 1)) if large else []
        for record, test in zip(large, tests, strict=True):
            record |= test._asdict()
        add_corrected_p(tested)
    return records


def make_slices_table(records: Sequence[dict[str, Any]], metric: str) -> Table:
    """Make the table of the records that `score_slices` returns."""
    digits = 1 if metric in IN_PIXELS else 3
    first_column = 0 if len({record["row"] for record in records}) > 1 else 1
    body, holding = [], []
    previous = ["", ""]
    for record in records:
        names = [record["row"], record["attribute"]]
        score = Score(record["value"], None, record.get("low"), record.get("high"))
        cells = [
            "" if names[0] == previous[0] else names[0],
            "" if names == previous else names[1],
            record["slice"],
            str(record["n"]) + ("*" if record["n"] < MIN_CASES else ""),
            *(format_score(metric, score), "", "", ""),
        ]
        if "p_holm" in record:
            ends = [f"{record[f'difference{end}']:+.{digits}f}" for end in ("", "_low", "_high")]
            cells[5:] = [f"{ends[0]} [{ends[1]}, {ends[2]}]", *format_p_values(record)]
            if record["p_holm"] < SIGNIFICANCE:
                holding.append(f"{', '.join(names[first_column:])} {record['slice']} ({ends[0]})")
        body.append(cells[first_column:])
        previous = names
    notes = [
        f"p (Holm) below {SIGNIFICANCE:g}: {'; '.join(holding) or 'none'}",
        "difference: mean of the slice minus mean of the other cases; where there are two slices, "
        "of the second. p of a permutation test, and corrected for all tests of the row (Holm). "
        "seglab/data/README.md defines the attributes",
    ]
    if any(record["n"] < MIN_CASES for record in records):
        notes.append(f"* fewer than {MIN_CASES} cases: no interval and no test")
    title = f"{metric} by slices of the test cases, averaged over seeds [95 % interval over cases]"
    head = ["row", "attribute", "slice", "n", metric, "difference", "p", "p (Holm)"]
    return Table(title, head[first_column:], 3 - first_column, body, notes)
