"""Scores a run's checkpoint again, from the run directory alone."""

from __future__ import annotations

import logging
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from seglab.data.cache import hash_cases, hash_files
from seglab.data.cases import Case, find_cases, ph2_cases
from seglab.errors import InputError
from seglab.files import read_json, write_csv, write_json
from seglab.memory import keep_freed_memory
from seglab.runs import Run, open_run
from seglab.scoring import network_predictor, score_cases

log = logging.getLogger(__name__)


def evaluate(
    path: str | Path,
    data_root: str | Path | None = None,
    out: str | Path | None = None,
    trust: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Scores a run at native resolution and writes summary.json and test_cases.csv.

    Args:
        path: The run directory; its own files stay as they are.
        data_root: Another data set of any supported layout, all of whose cases are scored; None
            for the run's own test cases.
        out: Where to write; by default a new folder under the run's `evaluations`.
        trust: As in `open_run`.

    Returns:
        What summary.json holds: the scores under `test`, the counts of `calibration`, and what
        they are of.

    Raises:
        InputError: A run or a data set that cannot be read, or test cases that have changed.
    """
    keep_freed_memory()
    run = open_run(path, trust)
    data = run.config.data
    cases = _test_cases(run) if data_root is None else find_cases(data_root)
    hashes = hash_cases(cases, hash_files(cases))
    seen = _changed_or_trained_on(run, cases, hashes, own=data_root is None)
    device = "cpu"
    if read_json(run.path / "run.json").get("device") == "cuda" and torch.cuda.is_available():
        device = "cuda"
    predict = network_predictor(run.net, data.size, device)
    scored = score_cases(predict, cases, run.threshold)
    summary = {
        "test": scored.values,
        "calibration": {"test": scored.calibration.tolist()},
        "n": len(cases),
        "trained_on": seen,
        "data": str(Path(data_root or data.root).absolute()),
        "run": str(run.path.absolute()),
    }
    if out is None:
        name = "own-test" if data_root is None else Path(data_root).absolute().name
        out = run.path / "evaluations" / f"{name}-{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_csv(out / "test_cases.csv", scored.rows)
        write_json(out / "summary.json", summary)
    except OSError as error:
        raise InputError(
            f"{out}: cannot be written ({error.strerror}); name another with --out"
        ) from error
    log.info("%d cases of %s, native resolution", len(cases), summary["data"])
    for name, value in scored.values.items():
        log.info("%-16s %.4f", name, value)
    log.info("written to %s", out)
    return summary


def read_cases(run: Run) -> list[Case]:
    """Reads the cases of the data set that a run was trained on."""
    data: DictConfig = run.config.data
    # A synthetic set is in PH2's layout; reading a run must not draw one.
    drawn = data.cases["_target_"].endswith(".synthetic_cases")
    read = ph2_cases if drawn else instantiate(data.cases)
    return read(data.root)


def _test_cases(run: Run) -> list[Case]:
    data: DictConfig = run.config.data
    by_id = {case.id: case for case in read_cases(run)}
    missing = [id for id in run.split.test if id not in by_id]
    if missing:
        raise InputError(
            f"{data.root}: {len(missing)} of the run's {len(run.split.test)} test cases are not "
            f"there ({missing[0]}, ...); restore them, or score another data set with --data"
        )
    return [by_id[id] for id in run.split.test]


def _changed_or_trained_on(run: Run, cases: list[Case], hashes: dict[str, str], own: bool) -> int:
    """Refuses test cases that are not what they were; counts foreign ones that were trained on."""
    then = run.split.sha256
    if own:
        changed = [case for case in cases if hashes[case.id] != then.get(case.id)]
        if changed:
            raise InputError(
                f"{changed[0].image}: case {changed[0].id} has changed since the run, image or mask"
                f" ({len(changed)} such cases); restore it, or score what is there with --data"
            )
        return 0
    fitted = {then[id] for part in ("train", "val") for id in getattr(run.split, part)}
    seen = sum(hash in fitted for hash in hashes.values())
    if seen:
        log.warning(
            "%d of these %d cases were used in training: their scores say nothing of new cases",
            seen,
            len(cases),
        )
    return seen
