"""Reads the tables of run directories: values of cases, metrics of epochs, scores of val."""

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from seglab.core.errors import printable
from seglab.core.files import read_csv, read_json
from seglab.metrics.confidence import CONFIDENCE_COLUMNS
from seglab.metrics.scores import BOUNDARY_METRICS, OUTLINE_COLUMNS, PIXEL_COUNTS
from seglab.runs.paths import RunPaths, refuse_damaged

T = TypeVar("T")
COSTS = ("parameters", "multiply_adds", "training_seconds", "images_per_second")


class CaseKey(NamedTuple):
    """A test case; `sha256` is of its files, and empty where the split does not name the case."""

    id: str
    sha256: str
    diagnosis: str
    set: str = ""  # name of its data set in a run of several

    @property
    def content(self) -> str:
        """What two cases with the same files have in common, whatever their ids."""
        return self.sha256 or self.id


CASE_COLUMNS = (*PIXEL_COUNTS, *BOUNDARY_METRICS, *OUTLINE_COLUMNS, *CONFIDENCE_COLUMNS)
# Cells of these may be empty: of predictions with a single view, and of empty masks.
_OPTIONAL_COLUMNS = ("view_dice", "outline_shift")
# By case float64 (K, len(CASE_COLUMNS)) of its K classes, NaN for an empty cell. In the binary
# case K is 1; otherwise the first class is background.
CaseValues = dict[CaseKey, np.ndarray]


def read_case_values(
    file: Path,
    sha256: Mapping[str, str],
    classes: tuple[str, ...],
    group_by: str | None = None,
    has_confidence: bool = True,
) -> dict[str, CaseValues]:
    """Reads test_cases.csv or another table of cases; raises an InputError if it is damaged.

    Args:
        file: The table.
        sha256: Of each case's files, by id.
        classes: Names of the classes that each case must have, in order.
        group_by: Column that groups the rows, such as 'baseline'; None for one group.
        has_confidence: False where probabilities were unknown; its cells may be empty.

    Returns:
        Values by the group's name, '' for the whole table.
    """
    groups: dict[str, dict[CaseKey, dict[str, list[float]]]] = defaultdict(dict)
    optional = _OPTIONAL_COLUMNS if has_confidence else (*_OPTIONAL_COLUMNS, "confidence")
    with refuse_damaged(file):
        rows = read_csv(file)
        for row in rows:
            id = printable(row["id"])
            data_set = printable(row.get("set") or "")
            case = CaseKey(id, sha256.get(id, ""), printable(row["diagnosis"]), data_set)
            counts = [int(row[name]) for name in PIXEL_COUNTS]
            values = [
                math.nan if row[name] == "" and name in optional else parse_number(row[name])
                for name in CASE_COLUMNS[len(PIXEL_COUNTS) :]
            ]
            class_name = printable(row.get("class", ""))
            group = printable(row[group_by]) if group_by else ""
            by_class = groups[group].setdefault(case, {})
            if class_name in by_class or min(counts) < 0 or not 0 < sum(counts) < 2**53:
                raise ValueError(f"case {case.id}: twice there, or impossible counts")
            by_class[class_name] = [*counts, *values]
        if not rows:
            raise ValueError("holds no case")
        expected = classes if len(classes) > 1 else ("",)
        for case, by_class in (item for cases in groups.values() for item in cases.items()):
            if tuple(by_class) != expected:
                raise ValueError(f"case {case.id}: not of the classes that its config names")
    return {
        group: {case: np.array([*by_class.values()], float) for case, by_class in cases.items()}
        for group, cases in groups.items()
    }


def select_scores(values: Mapping[str, T], *prefixes: str) -> dict[str, T]:
    """Selects 'hd95' of 'test/ph2/hd95' by 'test' and 'ph2'; an empty prefix is none."""
    start = "".join(f"{prefix}/" for prefix in prefixes if prefix)
    return {k.removeprefix(start): v for k, v in values.items() if k.startswith(start)}


def read_scores(file: Path, has_sets: bool, is_trained: bool = True) -> dict[str, Any]:
    """Reads summary.json; raises an InputError if it is damaged.

    Args:
        file: summary.json.
        has_sets: Whether its calibration is by data set.
        is_trained: Whether it must tell of a training, and of trivial baselines.

    Returns:
        `values`, `ece_bins` and, of a training, `baselines`, `best_epoch`, `threshold` and `costs`,
        as in `seglab.runs.records.Run`.
    """
    with refuse_damaged(file):
        summary = read_json(file)
        values = {
            f"{part}/{name}": parse_number(value)
            for part in ("val", "test")
            for name, value in summary[part].items()
        }
        bins = summary["calibration"]["test"] if is_trained or "calibration" in summary else {}
        bins = bins if has_sets or not bins else {"": bins}
        ece_bins = {to_text(name): np.array(counts, np.int64) for name, counts in bins.items()}
        for counts in ece_bins.values():
            if counts.shape != (15, 3) or not counts[:, 0].any():
                raise ValueError("calibration is not 15 x 3 counts")
        found = {"values": values, "ece_bins": ece_bins}
        return found | (_read_training(summary) if is_trained else {})


def _read_training(summary: dict[str, Any]) -> dict[str, Any]:
    costs = summary | {"training_seconds": summary["seconds"]["training_steps"]}
    return {
        "baselines": {
            to_text(name): {to_text(k): parse_number(v) for k, v in scores.items()}
            for name, scores in summary["baselines"].items()
        },
        "best_epoch": int(summary["best_epoch"]),
        "threshold": parse_number(summary["threshold"]),
        "costs": {name: parse_number(costs[name]) for name in COSTS},
    }


def read_case_attributes(folder: Path) -> dict[str, dict[str, str]]:
    """Reads case_attributes.csv: attributes as text, empty if unknown, by case id and name."""
    if not RunPaths(folder).case_attributes.exists():
        return {}
    with refuse_damaged(RunPaths(folder).case_attributes) as file:
        return {
            printable(row.pop("id")): {printable(k): printable(v) for k, v in row.items()}
            for row in read_csv(file)
        }


def read_metric_history(folder: Path, metric: str) -> dict[int, float]:
    """Reads the values of one column of metrics.csv, by epoch."""
    with refuse_damaged(RunPaths(folder).metrics) as file:
        rows = read_csv(file)
        return {int(row["epoch"]): parse_number(row[metric]) for row in rows if row.get(metric)}


def read_val_scores(folder: Path) -> dict[str, float]:
    """Reads scores and loss of val at the chosen epoch of a scored run, named `val/...`."""
    paths = RunPaths(folder)
    with refuse_damaged(paths.summary) as file:
        summary = read_json(file)
        row = read_csv(paths.metrics)[summary["best_epoch"] - 1]
        values = {name: float(v) for name, v in row.items() if name.startswith("val/") and v}
        return values | {f"val/{name}": float(value) for name, value in summary["val"].items()}


def to_text(value: Any) -> str:
    """Returns a value as YAML writes it, with '?' for characters that are not printable."""
    return printable(json.dumps(value) if value is None or isinstance(value, bool) else str(value))


def parse_number(value: object) -> float:
    """Returns a value of JSON or CSV as a finite number; raises a ValueError if it is none."""
    number = float(value)  # type: ignore[arg-type]
    if not math.isfinite(number):
        raise ValueError(f"{value} is no number")
    return number
