"""Paired tests of rows on the test cases that both have."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from seglab.analysis import statistics
from seglab.analysis.rows import Row
from seglab.analysis.tables import Table
from seglab.core.errors import InputError
from seglab.metrics.scores import LOWER_IS_BETTER
from seglab.runs.records import UNKNOWN


def find_pairs(versus: Sequence[tuple[str, str]], rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Find the rows to test by their labels or how these begin.

    Each pair is there once: another test would count in Holm's correction. Raises an InputError if
    a name fits no row or several, or both names fit the same row.
    """
    pairs: dict[frozenset[str], tuple[Row, Row]] = {}
    for first, second in versus:
        a, b = _find_row(first, rows), _find_row(second, rows)
        if a is b:
            raise InputError(
                f"--versus '{first}' '{second}': both are the row '{a.label}'; name two rows"
            )
        pairs.setdefault(frozenset({a.label, b.label}), (a, b))
    return [*pairs.values()]


def _find_row(name: str, rows: Sequence[Row]) -> Row:
    """The row with this label, or the only one whose label is or begins so in another case."""
    folded = name.casefold()
    exact = [row for row in rows if row.label == name]
    exact = exact or [row for row in rows if row.label.casefold() == folded]
    found = exact or [row for row in rows if row.label.casefold().startswith(folded)]
    if len(found) > 1:  # masks of another program may be called as a baseline
        found = [row for row in found if row.runs]
    if len(found) == 1:
        return found[0]
    raise InputError(
        f"--versus '{name}': expected the label of one row, or how it begins; there are "
        + ", ".join(f"'{row.label}'" for row in rows)
    )


def _subtract(a: Row, b: Row, metric: str) -> np.ndarray:
    """The differences of two rows on the cases that both have, float64 (n,)."""
    first, second = (
        {case.content: value for case, value in row.by_case(metric).items()} for row in (a, b)
    )
    return np.array([first[case] - second[case] for case in sorted(first.keys() & second.keys())])


def run_paired_tests(pairs: Sequence[tuple[Row, Row]], metric: str) -> list[dict[str, Any]]:
    """Test pairs of rows on the cases that both have, by one of `PER_IMAGE`'s metrics.

    Returns:
        A record per pair with the fields of `paired_test`, and `p_holm`, corrected for all pairs.
        Where the rows share no case, only `n` is there, and 0.
    """
    records: list[dict[str, Any]] = []
    for a, b in pairs:
        differences = _subtract(a, b, metric)
        n = len(differences)
        test = statistics.paired_test(differences)._asdict() if n else {"n": n}
        seeds = f"{len(a.scored)}, {len(b.scored)}"
        records.append({"a": a.label, "b": b.label, "metric": metric, "seeds": seeds, **test})
    add_corrected_p([record for record in records if record["n"]])
    return records


def add_corrected_p(tests: Sequence[dict[str, Any]]) -> None:
    """Add to records of tests, with `p`, also `p_holm`: corrected for all of them."""
    corrected = statistics.correct_holm([test["p"] for test in tests])
    for test, p in zip(tests, corrected, strict=True):
        test["p_holm"] = p


def format_p_values(test: Mapping[str, Any]) -> list[str]:
    """Format `p` and `p_holm` of a record of a test."""
    # None of the random resamples was as extreme: p may be smaller still.
    bound = "<= " if test["p"] <= 2 / (statistics.RESAMPLES + 1) else ""
    return [f"{bound}{test[key]:.4f}" for key in ("p", "p_holm")]


def make_versus_table(
    tests: Sequence[dict[str, Any]], pairs: Sequence[tuple[Row, Row]], metric: str
) -> Table:
    """Make the table of the records that `run_paired_tests` returns for pairs and a metric."""
    body = []
    for test, pair in zip(tests, pairs, strict=True):
        names = [row.label + row.mark for row in pair]
        cells = [UNKNOWN] * 3
        if test["n"]:
            difference, low, high = (f"{test[key]:+.3f}" for key in ("difference", "low", "high"))
            cells = [f"{difference} [{low}, {high}]", *format_p_values(test)]
        body.append([*names, str(test["n"]), test["seeds"], *cells])
    title = (
        f"{metric}, averaged over seeds, of the cases that both rows have: "
        "A - B [95 % interval over cases]"
    )
    if metric in LOWER_IS_BETTER:
        title += "; less is better"
    notes = [
        "p of a sign-flip permutation test, and corrected for all tests here (Holm). Tests and "
        "intervals are over cases; seeds are averaged. So they are for these trained networks: "
        "after training again the difference may be another"
    ]
    if any(row.status == "incomplete" for pair in pairs for row in pair):
        notes.insert(0, "* incomplete: the table above says what is left out")
    return Table(title, ["A", "B", "n", "seeds", "A - B", "p", "p (Holm)"], 2, body, notes)


def find_powers(
    pairs: Sequence[tuple[Row, Row]], metric: str, width: float
) -> list[dict[str, Any]]:
    """Tell what the cases that pairs of rows share could show.

    Returns:
        A record per pair with the fields of `Power`, and the measured `difference`; with fewer than
        two cases `n` alone.
    """
    records: list[dict[str, Any]] = []
    for a, b in pairs:
        differences = _subtract(a, b, metric)
        record = {"a": a.label, "b": b.label, "metric": metric, "n": len(differences)}
        if len(differences) > 1:
            power = statistics.find_power(differences, width)
            record |= power._asdict() | {"difference": float(differences.mean())}
        records.append(record)
    return records


def make_power_table(records: Sequence[Mapping[str, Any]], metric: str, width: float) -> Table:
    """Make the table of the records that `find_powers` returns for a metric and a width."""
    body = []
    for record in records:
        cells = [UNKNOWN] * 4
        if record["n"] > 1:
            detectable = record["detectable"]
            cells = [f"{record['difference']:+.4f}", f"{record['sd']:.4f}"]
            cells.append(UNKNOWN if detectable is None else f"{detectable:.4f}")
            cells.append(f"{record['cases']:,}")
        body.append([record["a"], record["b"], str(record["n"]), *cells])
    title = f"{metric}: which difference so many cases could show"
    notes = [
        "could show: the smallest true difference that one two-sided test at 5 % finds with a "
        f"chance of {statistics.POWER:.0%}, by the standard deviation (sd) of the differences. "
        "That a smaller one was not found says little",
        f"cases: how many an interval of width {width:g} (± {width / 2:g}) needs",
    ]
    head = ["A", "B", "n", "A - B", "sd", "could show", "cases"]
    return Table(title, head, 2, body, notes)
