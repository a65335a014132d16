"""Labels of rows: what a sweep varied, and the fewest settings that tell the rest apart."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from seglab.analysis.rows import Row
from seglab.metrics.scores import METRICS
from seglab.runs.records import COSTS, UNKNOWN

# Column names of table.csv and runs.csv that a setting may not have.
RESERVED_COLUMNS = (
    *("diagnosis", "class", "n", "val", "runs", "multiply-adds", "train s", "images/s", "label"),
    *("status", "finished", "run", "row", "used", "seed", "fold", "error", *METRICS, *COSTS),
)


def label_rows(rows: Sequence[Row]) -> None:
    """Set the labels of rows."""
    for key, column in _name_columns(_choose_keys(rows)).items():
        values = {row.settings.get(key, UNKNOWN) for row in rows}
        is_target = key.endswith("._target_")
        is_unique = len({value.rpartition(".")[2] for value in values}) == len(values)
        for row in rows:
            value = row.settings.get(key, UNKNOWN)
            row.labels[column] = value.rpartition(".")[2] if is_target and is_unique else value
            if key in row.settings:
                is_plain = is_target or key in ("name", "protocol")
                part = row.labels[column] if is_plain else f"{column}={value}"
                row.label += f", {part}" if row.label else part


def varied_settings(rows: Sequence[Row]) -> set[str]:
    """Settings that a sweep varied, and of which the rows have more than one value."""
    keys = {key for row in rows for run in row.runs for key in run.varies}
    return {k for k in keys if len({r.settings[k] for r in rows if k in r.settings}) > 1}


def natural_key(text: str) -> list[Any]:
    """Sort key that orders numbers in text as numbers."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[-+]?\d+)?)", text.casefold())
    return [float(part) if i % 2 else part for i, part in enumerate(parts)]


def _choose_keys(rows: Sequence[Row]) -> list[str]:
    """Choose the settings that label rows: varied ones, then each that separates more rows."""

    def count_groups(keys: list[str]) -> int:
        return len({tuple(map(row.settings.get, keys)) for row in rows})

    varied = varied_settings(rows)
    keys = sorted({key for row in rows for key in row.settings}, key=lambda k: (k.count("."), k))
    order = ["name", "model._target_", *(key for key in keys if key.endswith("._target_"))]
    order += sorted({key for row in rows for run in row.runs for key in run.varies})
    order = [*dict.fromkeys(order + keys)]
    chosen = [key for key in order if key in varied]
    for key in order:
        if count_groups([*chosen, key]) > count_groups(chosen):
            chosen.append(key)
    return chosen or ["name", "model._target_"]


def _name_columns(keys: Sequence[str]) -> dict[str, str]:
    """The last part of each key, or the whole key where that is ambiguous."""
    short = {key: key.removesuffix("._target_").rpartition(".")[2] for key in keys}
    if "name" in short:
        short["name"] = "experiment"
    times = Counter([*short.values(), *RESERVED_COLUMNS])
    return {key: name if times[name] == 1 else key for key, name in short.items()}
