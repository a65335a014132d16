"""Scores a run's best checkpoint again, or an ensemble of several runs."""

import copy
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate

from seglab.core.commands import current_command, quote_for_shell
from seglab.core.errors import InputError, name_some
from seglab.core.files import expand_user, hash_json, write_csv, write_json
from seglab.core.memory import keep_freed_memory
from seglab.data.attributes import describe_case
from seglab.data.cache import hash_cases, hash_files
from seglab.data.cases import Case, with_classes
from seglab.data.checks import MIN_TEST_CASES, check_masks, describe_oddities
from seglab.data.datamodule import files_below
from seglab.data.duplicates import thumbnail
from seglab.data.layouts import find_cases
from seglab.data.sets import find_roots, name_cases, read_sets
from seglab.data.splits import Split
from seglab.inference.calibration import LEVEL, Calibration
from seglab.inference.models import Model, ensemble, find_members, make_model
from seglab.inference.scoring import ScoredCase, Scores, join_rows, score_sets, summarize_sets
from seglab.runs.checkpoints import load_run_network
from seglab.runs.paths import RunPaths, refuse_run_files
from seglab.runs.records import Run, open_run
from seglab.runs.scored import write_scored
from seglab.runs.thumbnails import find_trained_on

log = logging.getLogger(__name__)


def evaluate(
    paths: str | Path | Sequence[str | Path],
    data_root: str | Path | None = None,
    out: str | Path | None = None,
    mask_suffix: str | None = None,
    trust: tuple[str, ...] = (),
    moved_to: str | Path | None = None,
    **inference: bool | None,
) -> dict[str, Any]:
    """Score runs at native resolution, and write summary.json and tables of the cases.

    `compare` and `report` read what is written like a run, with the status 'evaluated'. Several
    runs are scored as one ensemble: the mean of their probabilities, each at its own size, and the
    mean of their thresholds.

    Args:
        paths: The run directory or sweep, see `seglab.inference.models.find_members`, or several;
            their own files stay as they are.
        data_root: Another data set of any supported layout, all of whose cases are scored; None
            for the runs' own test cases.
        mask_suffix: What names of masks in `data_root` end with; None to recognise it.
        out: The folder to write to; by default a new one under the first run's `evaluations`.
        trust: See `open_run`.
        moved_to: Where the runs' own data is today; None for where it was.
        inference: See `load_model`.

    Returns:
        The content of summary.json.

    Raises:
        InputError: A run or a data set cannot be read, test cases have changed, runs with
            different test cases, classes or post-processing cannot be an ensemble, or `out`
            belongs to a run.
    """
    keep_freed_memory()
    if mask_suffix is not None and data_root is None:
        raise InputError("--mask-suffix: is that of --data, which is missing")
    if out is not None:
        refuse_run_files(out, replaced_status="evaluated")
    paths = [paths] if isinstance(paths, str | Path) else paths
    members = [member for path in paths for member in find_members(path)]
    runs = [open_run(member, trust, moved_to) for member in members]
    models = [load_run_model(run, trust, **inference) for run in runs]
    model = ensemble(models)
    if data_root is None:
        cases = read_test_cases(runs)
    else:
        cases = with_classes(find_cases(data_root, mask_suffix=mask_suffix), model.classes)
    thumbnails: list[np.ndarray] = []
    attributes: list[dict[str, Any]] = []
    assessed: list[tuple[float, ...]] = []

    def on_case(case: ScoredCase) -> None:
        thumbnails.append(thumbnail(case.image))
        attributes.append(describe_case(case.case, case.image, case.target))
        if model.calibration and data_root is not None:  # own test cases calibrated it
            assessed.append(_assess(model.calibration, case))

    scored = score_sets(model.predictor, cases, model.threshold, model.inference, on_case=on_case)
    trained_on: list[str] = []
    files: dict[Path, str] = {}
    hashes = {id: runs[0].sha256[id] for id in runs[0].ids["test"]}
    if data_root is not None:  # the split has kept a run's own test cases apart
        files = hash_files(cases)
        hashes = hash_cases(cases, files)
        trained_on = find_trained_on(runs, hashes, np.stack(thumbnails))
    summary: dict[str, Any] = {
        **summarize_sets(scored),
        "val": {},
        "n": len(cases),
        "threshold": model.threshold,
        "inference": [asdict(model.inference) for model in models],
        "trained_on": len(trained_on),
        **({"quality": _summarize_quality(assessed)} if assessed else {}),
        "warnings": _describe(cases, scored, runs, trained_on),
        "data": str(expand_user(data_root or runs[0].config["data"]["root"]).absolute()),
        "runs": [str(run.folder.absolute()) for run in runs],
    }
    written = RunPaths(_new_folder(runs[0], data_root) if out is None else expand_user(out))
    _write_tables(written, scored, attributes, summary)
    _write_record(written, runs, model, summary, hashes, files, data_root, mask_suffix)
    _log_summary(summary)
    log.info("written to %s", written.folder)
    return summary


def _write_tables(
    paths: RunPaths,
    scored: Mapping[str, Scores],
    attributes: list[dict[str, Any]],
    summary: dict[str, Any],
) -> None:
    paths.folder.mkdir(parents=True, exist_ok=True)
    write_csv(paths.test_cases, join_rows(scored))
    write_csv(paths.case_attributes, attributes)
    write_json(paths.summary, summary)


def _write_record(
    paths: RunPaths,
    runs: Sequence[Run],
    model: Model,
    summary: Mapping[str, Any],
    sha256: dict[str, str],
    files: Mapping[Path, str],
    data_root: str | Path | None,
    mask_suffix: str | None,
) -> None:
    """Write what makes the evaluation read like a run: settings of the first, and of its data."""
    config, record = copy.deepcopy(runs[0].config), {"data_fingerprint": runs[0].provenance.data}
    data = config["data"]
    config["inference"] = asdict(model.inference)
    notes = [*summary["warnings"]]
    if len(runs) > 1:
        config["networks"] = len(runs)
        notes.append(f"scores are of the mean probability of {len(runs)} networks")
    if data_root is not None:
        config["trained_on"] = {key: data.pop(key, None) for key in ("root", "sets", "cases")}
        data |= {"root": str(summary["data"]), "mask_suffix": mask_suffix}
        data["split"] = {**data["split"], "fold": None, "file": None}
        record["data_fingerprint"] = hash_json(files_below(data["root"], files))
        record["protocol"] = f"all cases of {Path(data['root']).name}"
    # All networks are tested on the same cases, so each fold is a repetition, as a seed is.
    names = {run.seed: None for run in runs}
    if len(runs) == 1 and runs[0].fold and data_root is not None:
        names = {f"{runs[0].seed} fold {runs[0].fold}": None}
    config["seed"] = ", ".join(names)
    data.pop("seed", None)
    split = Split([], [], [*sha256], "test alone", None, sha256)
    write_scored(paths, "evaluated", config, split, notes=notes, runs=summary["runs"], **record)


def _new_folder(run: Run, data_root: str | Path | None) -> Path:
    name = "own-test" if data_root is None else Path(data_root).absolute().name
    return run.paths.evaluations / f"{name}-{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"


def read_test_cases(runs: list[Run]) -> list[Case]:
    """Read the test cases that runs share.

    Raises an InputError if the runs differ in their test cases, or a case is missing or changed.
    """
    run, *others = runs
    tested = {id: run.sha256[id] for id in run.ids["test"]}
    for other in others:
        if {id: other.sha256[id] for id in other.ids["test"]} != tested:
            raise InputError(
                f"{other.folder}: has other test cases than {run.folder}; name the cases to score "
                "with --data"
            )
    by_id = {case.id: case for case in read_cases(run)}
    cases = [by_id[id] for id in tested if id in by_id]
    hashes = hash_cases(cases, hash_files(cases))
    changed = [id for id in tested if hashes.get(id) != tested[id]]
    if changed:
        raise InputError(
            f"{run.config['data']['root']}: case {changed[0]} has changed since the run, or is "
            f"missing ({len(changed)} such cases); restore it, name the folder that the data was "
            "moved to with --moved-to, or score other data with --data"
        )
    return cases


def read_cases(run: Run) -> list[Case]:
    """Read the cases of the data that a run was trained on, of all its sets."""
    return name_cases(read_run_sets(run))


def read_run_sets(run: Run) -> dict[str, list[Case]]:
    """Read the data sets that a run was trained on; an error says how to name moved ones."""
    data = run.config["data"]
    for root in find_roots(data).values():
        if not root.is_dir():
            command = quote_for_shell(*current_command(), "--moved-to", "FOLDER")
            raise InputError(
                f"{root}: no such folder; if the data of {run.folder} was moved, name the folder "
                f"that stands for data.root={data['root']}: {command}"
            )
    return read_sets(_with_readers(data))


def _with_readers(data: dict[str, Any]) -> dict[str, Any]:
    """Replace `cases` in a section of a config, and in its sets, by the functions that it names."""
    changed = dict(data)
    if "cases" in data:
        # A synthetic set is in PH2's layout, and its own reader would draw it where it is missing.
        is_synthetic = data["cases"]["_target_"].endswith(".synthetic_cases")
        changed["cases"] = find_cases if is_synthetic else instantiate(data["cases"])
    if data.get("sets"):
        changed["sets"] = {name: _with_readers(own) for name, own in data["sets"].items()}
    return changed


def load_run_model(run: Run, trust: tuple[str, ...] = (), **inference: bool | None) -> Model:
    """Load the network of a run, on the kind of device that it was trained on."""
    was_on_gpu = run.provenance.device == "cuda"
    device = "cuda" if was_on_gpu and torch.cuda.is_available() else "cpu"
    net, stored = load_run_network(run, trust)
    return make_model(run.paths.best_checkpoint, net, stored, device, **inference)


def _describe(
    cases: list[Case], scored: Mapping[str, Scores], runs: list[Run], trained_on: list[str]
) -> list[str]:
    """Return warnings about cases that make their scores mean little."""
    warnings = describe_oddities(check_masks(cases))
    for name in next(iter(scored.values())).classes:
        if not any(row["tp"] + row["fn"] for row in join_rows(scored) if row["class"] == name):
            warnings.append(f"no mask holds {name}: its scores mean nothing; add cases that do")
    if len(cases) < MIN_TEST_CASES:
        warnings.append(f"{len(cases)} cases are few: their scores say little; score more")
    if trained_on:
        warnings.append(
            f"{len(trained_on)} of these {len(cases)} cases, or nearly the same pictures, were "
            f"used in training ({name_some(trained_on)}): scores are too high for new cases"
        )
    if any(run.provenance.init.get("trained_on") == "unknown" for run in runs):
        warnings.append("weights that training started from may have seen these cases")
    return warnings


def _assess(calibration: Calibration, case: ScoredCase) -> tuple[float, ...]:
    """Add three columns to the rows of a case; returns its confidence, its Dice and these."""
    confidence = case.mean("confidence")
    assessment = calibration.assess(confidence, case.image)
    for row in case.rows:
        row.update(zip(("expected_dice", "lower_bound", "familiar"), assessment, strict=True))
    return confidence, case.dice, *assessment


def _summarize_quality(assessed: list[tuple[float, ...]]) -> dict[str, float]:
    confidence, dice, expected, bound, familiar = np.array(assessed).T
    values = {"bound_held": dice >= bound, "familiar": familiar}
    values |= {"confidence_minus_dice": confidence - dice, "expected_minus_dice": expected - dice}
    return {"level": LEVEL} | {name: float(cases.mean()) for name, cases in values.items()}


def _log_summary(summary: dict[str, Any]) -> None:
    log.info("%d cases of %s, native resolution", summary["n"], summary["data"])
    for metric, value in summary["test"].items():
        by_class = "".join(
            f"  {class_name} {values[metric]:.4f}"
            for class_name, values in summary.get("classes", {}).items()
            if metric in values
        )
        log.info("%-*s %.4f%s", max(map(len, summary["test"])), metric, value, by_class)
    if "quality" in summary:
        values = summary["quality"]
        log.info(
            "the bound for {level:.0%} of the cases held for {bound_held:.1%}; on average, "
            "confidence minus Dice is {confidence_minus_dice:+.3f}, expected Dice minus Dice "
            "{expected_minus_dice:+.3f}; {familiar:.0%} look like training images".format(**values)
        )
        deviation = math.sqrt(values["level"] * (1 - values["level"]) / summary["n"])
        if values["bound_held"] < values["level"] - 2 * deviation:
            log.warning(
                "the bound fails on such images: train and calibrate with some of them, or look at "
                "each mask"
            )
    for warning in summary["warnings"]:
        log.warning("%s", warning)
