"""What a finished run says of val, from its files alone."""

from __future__ import annotations

from pathlib import Path

from seglab.errors import InputError
from seglab.files import read_csv, read_json


def read_val(run: Path) -> dict[str, float]:
    """Reads scores and loss of val at the chosen epoch, named `val/...`.

    Args:
        run: Directory of a finished run.

    Raises:
        InputError: Its summary.json or metrics.csv is missing or damaged.
    """
    try:
        summary = read_json(run / "summary.json")
        row = read_csv(run / "metrics.csv")[summary["best_epoch"] - 1]
        values = {name: float(v) for name, v in row.items() if name.startswith("val/") and v}
        return values | {f"val/{name}": value for name, value in summary["val"].items()}
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{run / 'summary.json'}: is no summary of this run; restore it"
        ) from error
