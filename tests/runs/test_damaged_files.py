"""A damaged file of a run is read, or refused in one line that names the run."""

from pathlib import Path
from random import Random

import pytest
from helpers.spoil import damage

from seglab.core.errors import InputError
from seglab.runs.checkpoints import load_run_network
from seglab.runs.records import find_runs, open_run, read_data_files
from seglab.runs.tables import read_metric_history, read_val_scores
from seglab.runs.thumbnails import read_seen_cases

FILES = (
    *("run.json", "config.yaml", "splits.json", "data.json", "summary.json", "metrics.csv"),
    *("test_cases.csv", "checkpoints/best.ckpt", "thumbnails.npy"),
)


@pytest.mark.parametrize("file", FILES)
def test_a_damaged_file_is_read_or_refused(file: str, run: Path) -> None:
    whole = (run / file).read_bytes()
    for number in range(15):
        (run / file).write_bytes(damage(Random(f"{file} {number}"), whole))
        for read in (
            lambda: load_run_network(open_run(run)),
            lambda: find_runs([run]),
            lambda: read_data_files(run),
            lambda: read_metric_history(run, "val/loss"),
            lambda: read_val_scores(run),
            lambda: read_seen_cases(open_run(run)),
        ):
            try:
                read()
            except InputError as error:
                assert str(run) in str(error) and "\n" not in str(error)
