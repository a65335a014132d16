"""Names of the files in a run directory, and the number of their format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from seglab.core.errors import InputError

# In run.json and in checkpoints. It changes when files of earlier versions can no longer be read.
FORMAT = 1


class RunPaths:
    """Paths of the files and folders in a run directory, whether they exist or not.

    TensorBoard's folder is not among them: `logger.save_dir` and `logger.name` of the config
    place it.

    Args:
        folder: The run directory.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Written before the first step, config.yaml last.
        self.record = folder / "run.json"  # status, command, seed, times, versions, machine
        self.split = folder / "splits.json"  # ids of train, val and test, hash of each case
        self.data = folder / "data.json"  # SHA-256 of every file that was read as data
        self.code_diff = folder / "code.diff"  # uncommitted code, if there is any
        self.config = folder / "config.yaml"  # the resolved config
        # Written while the run lasts.
        self.log = folder / "train.log"  # messages of training, with times
        self.job_log = folder / "job.log"  # output of the process that a sweep started
        self.best_checkpoint = folder / "checkpoints" / "best.ckpt"  # weights of the best epoch
        self.last_checkpoint = folder / "checkpoints" / "last.ckpt"  # where a run is resumed
        self.metrics = folder / "metrics.csv"  # one row per epoch
        # Written when it is scored.
        self.test_cases = folder / "test_cases.csv"  # one row per test case and class
        self.baseline_cases = folder / "baseline_cases.csv"  # the same of each baseline
        self.figures = folder / "figures"
        self.summary = folder / "summary.json"  # scores of val, test and baselines
        self.model_card = folder / "MODEL_CARD.md"
        # Written by later commands.
        self.evaluations = folder / "evaluations"  # each with a summary.json and test_cases.csv
        self.reproductions = folder / "reproductions"  # each a run directory with:
        self.reproduction = folder / "reproduction.json"  # how it differs from the original


def check_format(stored: dict[str, Any], file: str | Path) -> None:
    """Refuses a file of another version of seglab.

    Args:
        stored: What the file holds.
        file: Its path, for the message.

    Raises:
        InputError: Its `format` is not `FORMAT`.
    """
    if stored.get("format") != FORMAT:
        raise InputError(
            f"{file}: written by another version of seglab (format {stored.get('format')}, this "
            f"one reads {FORMAT}); read it with that version, or train again with this one"
        )
