"""Trains a finished run again and compares the two, value by value."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf
from packaging.requirements import Requirement

from seglab.core.errors import InputError
from seglab.core.files import read_csv, write_json
from seglab.core.text import sanitize_text
from seglab.data.cache import default_dir, hash_files
from seglab.data.datamodule import files_below
from seglab.inference.evaluate import read_cases
from seglab.runs import provenance
from seglab.runs.checkpoints import hash_weights
from seglab.runs.loading import list_modules
from seglab.runs.opening import load_run_network, open_run
from seglab.runs.paths import RunPaths
from seglab.runs.records import Run, read_data_files, read_run
from seglab.runs.tables import reading
from seglab.training.train import train

log = logging.getLogger(__name__)

# Exit codes of scripts/reproduce.py; 1 and 2 are those of bad input.
IDENTICAL, WITHIN_TOLERANCE, DIFFERENT = 0, 3, 4
VERDICTS = {
    IDENTICAL: "identical",
    WITHIN_TOLERANCE: "within tolerance",
    DIFFERENT: "different",
}
CHECK_VERDICTS = {
    IDENTICAL: "everything is as it was: expect identical values",
    WITHIN_TOLERANCE: "data and split are as they were, the rest is not: values may differ",
    DIFFERENT: "different",
}
# A difference of so many pixels of HD95 counts as 1 of a score in [0, 1]. Over seeds on PH2, whose
# images have a diagonal of about 950, HD95 moves by about 10 where Dice moves by 0.01.
_HD95_UNIT = 1000
# Entries of run.json's `machine` that values depend on.
_HARDWARE = ("processor", "threads", "cpu_capability", "cuda")
_SUMMARY = "summary.json"
_MAX_LISTED = 10


@dataclass
class Comparison:
    """Differences between a run and the present state, or between a run and its repetition.

    Attributes:
        inputs: Differences in words, by topic: code, versions, machine, data, split.
        values: Differing values by name, each (then, now).
        compared: How many values were compared.
        verdict: IDENTICAL, WITHIN_TOLERANCE or DIFFERENT.
    """

    inputs: dict[str, list[str]] = field(default_factory=dict)
    values: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    compared: int = 0
    verdict: int = IDENTICAL


def reproduce(
    path: str | Path,
    data_root: str | Path | None = None,
    out: str | Path | None = None,
    check: bool = False,
    tolerance: float = 0.01,
    trust: tuple[str, ...] = (),
) -> int:
    """Compares a run with the present state, trains its config again, and compares the results.

    Nothing is checked out or fetched: it uses the code, versions and data that are here.

    Args:
        path: Directory of a finished run; its own files stay as they are.
        data_root: Folder of the run's data; None for the folder in its config.
        out: The new run directory, which also gets reproduction.json; by default a new folder
            under the run's `reproductions`.
        check: Only compare code, versions, machine, data and split.
        tolerance: Greatest absolute difference of any score of val, test and baselines, in
            [0, 1] or thousands of pixels, that passes as the same on other hardware or with
            other versions.
        trust: As in `open_run`.

    Returns:
        IDENTICAL: every value and weight; with `check`, everything a run depends on.
        WITHIN_TOLERANCE: the scores, but not every value; with `check`, the data and the split.
        DIFFERENT: beyond that, or the data or the split differs; then nothing is trained.

    Raises:
        InputError: The run cannot be read or is not finished, or its data is missing.
    """
    run = open_run(path, trust)
    if run.status != "finished":
        raise InputError(
            f"{run.folder}: is not finished (status {run.status}); start its command again to go "
            "on with it first"
        )
    load_run_network(run, trust)  # refuses a damaged checkpoint before hours of training
    if data_root is not None:
        run.config["data"]["root"] = str(Path(data_root).absolute())
    comparison = Comparison()
    _compare_inputs(run, comparison)
    for topic, differences in comparison.inputs.items():
        listed = [sanitize_text(text) for text in differences[:_MAX_LISTED]]
        more = ["..."] if len(differences) > _MAX_LISTED else []
        log.info("%-9s %s", topic, "; ".join([*listed, *more]) or "the same")
    if comparison.verdict == DIFFERENT or check:
        log.info("%s", CHECK_VERDICTS[comparison.verdict])
        return comparison.verdict

    if out is None:
        out = run.paths.reproductions / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
        sys.argv += ["--out", str(out)]  # for the other processes of a distributed run
    out = Path(out).absolute()
    before = _read_values(run.folder)
    _train_again(run, out)
    if rank_zero_only.rank:  # type: ignore[attr-defined]
        return IDENTICAL
    _compare_values(before, _read_values(out), comparison, tolerance)
    log_differences(comparison, tolerance)
    file = RunPaths(out).reproduction
    write_json(
        file,
        {
            "of": str(run.folder.absolute()),
            "verdict": VERDICTS[comparison.verdict],
            "tolerance": tolerance,
            "inputs": comparison.inputs,
            "values_compared": comparison.compared,
            "values_that_differ": comparison.values,
        },
    )
    log.info("%s (%s)", VERDICTS[comparison.verdict], file)
    return comparison.verdict


def log_differences(comparison: Comparison, tolerance: float) -> None:
    """Logs which values differ between two runs."""
    differing = comparison.values
    same = comparison.compared - len(differing)
    log.info("%d of %d values are identical", same, comparison.compared)
    for name, (then, now) in list(differing.items())[:_MAX_LISTED]:
        log.info("  %s", sanitize_text(f"{name}: {then} then, {now} now"))
    if len(differing) > _MAX_LISTED:
        log.info("  ...")
    differences = [
        _score_difference(name, then, now)
        for name, (then, now) in differing.items()
        if isinstance(then, float) and isinstance(now, float)
    ]
    if differences:
        log.info("greatest difference of a score %.3g, tolerance %.3g", max(differences), tolerance)


def _train_again(run: Run, out: Path) -> None:
    log.info("training it again, into %s", out)
    torch.set_num_threads(_threads(run))
    try:
        train(OmegaConf.create(_moved_config(run, out)))
    except KeyboardInterrupt as error:
        command = shlex.join(["scripts/reproduce.py", str(run.folder), "--out", str(out)])
        raise type(error)(f"(to go on: python {command})") from error


def _compare_inputs(run: Run, comparison: Comparison) -> None:
    """Fills `inputs` and the verdict on them."""
    record, inputs = run.record, comparison.inputs
    code, _ = provenance.read_code_state()
    git = record["git"]
    same_code = code["source_sha256"] == git.get("source_sha256")
    inputs["code"] = [] if same_code else _describe_pairs(git, code)
    if same_code and code["commit"] != git.get("commit"):
        commits = _describe_pairs(git, code, ["commit"])[0]
        log.info("%s", sanitize_text(f"{commits}, with the same code in seglab/"))
    # Checking the config has imported the modules that it names.
    modules = provenance.hash_modules(list_modules(run.config))
    modules |= provenance.hash_pretrained_weights(run.config["model"])
    inputs["code"] += _describe_pairs(record["modules"], modules)
    inputs["versions"] = _describe_pairs(
        record["versions"], provenance.installed_versions(), _required_packages()
    )
    machine = provenance.describe_machine() | {"threads": _threads(run)}  # set before training
    inputs["machine"] = _describe_pairs(record["machine"], machine, _HARDWARE)
    if any(inputs.values()):
        comparison.verdict = WITHIN_TOLERANCE

    root = run.config["data"]["root"]
    cases = read_cases(run)
    files = files_below(root, hash_files(cases))  # read anew, not from the cache
    changed = provenance.describe_changed_files(read_data_files(run.folder), files)
    inputs["data"] = [str(Path(root, name)) for name in changed]
    if changed:
        comparison.verdict = DIFFERENT
        return
    data = instantiate(_moved_config(run, run.folder)["data"], cases=lambda _: cases)
    data.setup()
    inputs["split"] = []
    if data.split.hash != run.provenance.split_hash:
        inputs["split"] = ["this config gives another one today"]
        comparison.verdict = DIFFERENT


def _compare_values(
    before: dict[str, Any], after: dict[str, Any], comparison: Comparison, tolerance: float
) -> None:
    """Fills `values` and the verdict on them."""
    names = list(dict.fromkeys((*before, *after)))
    pairs = {name: (before.get(name), after.get(name)) for name in names}
    comparison.compared = len(names)
    comparison.values = {name: (then, now) for name, (then, now) in pairs.items() if then != now}
    beyond = [
        name
        for name, (then, now) in comparison.values.items()
        if name.startswith(_SUMMARY)
        and not (None not in (then, now) and _score_difference(name, then, now) <= tolerance)
    ]
    comparison.verdict = (
        DIFFERENT if beyond else WITHIN_TOLERANCE if comparison.values else IDENTICAL
    )


def _read_values(folder: Path) -> dict[str, Any]:
    """Returns all results of a run by name: hashes of weights, scores and cells of tables."""
    run, paths = read_run(folder, is_scored=True), RunPaths(folder)
    values: dict[str, Any] = {
        f"{file.relative_to(folder).as_posix()} weights": hash_weights(file)
        for file in (paths.best_checkpoint, paths.last_checkpoint)
    }
    values |= {f"{_SUMMARY} {name.replace('/', ' ')}": v for name, v in run.values.items()}
    for baseline, scores in run.baselines.items():
        values |= {f"{_SUMMARY} {baseline} {name}": value for name, value in scores.items()}
    for file, keys in (
        (paths.metrics, ("epoch",)),
        (paths.test_cases, ("id", "class")),
        (paths.baseline_cases, ("baseline", "id", "class")),
    ):
        with reading(file):
            for row in read_csv(file):
                place = " ".join([file.name, *(row[key] for key in keys if key in row)])
                values |= {f"{place} {column}": cell for column, cell in row.items()}
    return values


def _score_difference(name: str, then: float, now: float) -> float:
    """Returns how far two values of a score are apart, in [0, 1] or thousands of pixels."""
    return abs(then - now) / (_HD95_UNIT if name.endswith(" hd95") else 1)


def _moved_config(run: Run, out: Path) -> dict[str, Any]:
    """Returns the run's config with its paths moved to `out`; `open_run` refuses any others."""
    old = run.config["run_dir"]

    def move(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: move(value) for key, value in node.items()}
        if isinstance(node, list):
            return [move(value) for value in node]
        if isinstance(node, str) and Path(node).is_relative_to(old):
            return str(out / Path(node).relative_to(old))
        return node

    data = dict(run.config["data"]) | {"cache_dir": default_dir()}
    if data["split"]["file"] is not None:
        data["split"] = data["split"] | {"file": str(run.paths.split)}
    others = {key: value for key, value in run.config.items() if key != "data"}
    return move(others) | {"data": data}


def _threads(run: Run) -> int:
    """Returns the run's number of threads, for values may depend on it."""
    threads = run.record["machine"].get("threads")
    is_valid = isinstance(threads, int) and 0 < threads <= 1024  # the record is not trusted
    return threads if is_valid else torch.get_num_threads()


def _required_packages() -> list[str]:
    """Returns Python and the distributions that seglab requires."""
    try:
        requirements = [Requirement(line) for line in requires("seglab") or []]
    except PackageNotFoundError:  # run from a folder, not installed
        requirements = []
    return ["python", *(r.name for r in requirements if r.marker is None)]


def _describe_pairs(
    then: Mapping[str, Any], now: Mapping[str, Any], keys: Iterable[str] | None = None
) -> list[str]:
    """Returns the entries that differ, in words."""
    return [
        f"{key} {_shorten_hash(then.get(key))} then, {_shorten_hash(now.get(key))} now"
        for key in keys or dict.fromkeys((*then, *now))
        if then.get(key) != now.get(key)
    ]


def _shorten_hash(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}..." if len(text) >= 40 and text.isalnum() else text
