"""Trains a finished run again and compares the two, value by value."""

import logging
import sys
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf

from seglab.composition import CONF, default_cache_dir
from seglab.core.commands import current_command, quote_for_shell
from seglab.core.errors import InputError, printable
from seglab.core.files import expand_user, read_csv, write_json
from seglab.data.cache import hash_files
from seglab.data.datamodule import files_below
from seglab.data.sets import name_cases
from seglab.inference.evaluate import read_run_sets
from seglab.metrics.scores import IN_PIXELS
from seglab.runs import provenance
from seglab.runs.checkpoints import hash_weights, load_run_network
from seglab.runs.paths import RunPaths, refuse_damaged, refuse_run_files
from seglab.runs.records import Run, open_run, read_data_files, read_run
from seglab.training.train import train

log = logging.getLogger(__name__)

# Exit codes of scripts/reproduce.py; 1 and 2 are those of bad input.
IDENTICAL, WITHIN_TOLERANCE, DIFFERENT = 0, 3, 4
VERDICTS = {IDENTICAL: "identical", WITHIN_TOLERANCE: "within tolerance", DIFFERENT: "different"}
# A difference of so many pixels counts as 1 of a score in [0, 1]. Over seeds on PH2, whose images
# have a diagonal of about 950, HD95 moves by about 10 where Dice moves by 0.01.
_DISTANCE_UNIT = 1000
# Packages and entries of run.json's `machine` that values depend on.
_PACKAGES = ("python", "torch", "lightning", "numpy", "scipy", "scikit-image", "pillow")
_HARDWARE = ("processor", "threads", "cpu_capability", "cuda")
_MAX_LISTED = 10


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
        trust: See `open_run`.

    Returns:
        IDENTICAL: every value and weight; with `check`, everything a run depends on.
        WITHIN_TOLERANCE: the scores, but not every value; with `check`, the data and the split.
        DIFFERENT: beyond that, or the data or the split differs; then nothing is trained.

    Raises:
        InputError: The run cannot be read or is not finished, or its data is missing.
    """
    run = open_run(path, trust, data_root)
    if run.status != "finished":
        raise InputError(
            f"{run.folder}: is not finished (status {run.status}); start its command again to go "
            "on with it first"
        )
    # Another run is a reproduction that was interrupted.
    out = None if out is None else expand_user(out)
    if out is not None and (not RunPaths(out).record.exists() or run.folder.samefile(out)):
        refuse_run_files(out)
    load_run_network(run, trust)  # refuses a damaged checkpoint before hours of training
    threads = run.record["machine"].get("threads")
    if isinstance(threads, int) and 0 < threads <= 1024:  # the record is not trusted
        torch.set_num_threads(threads)  # values may depend on it
    inputs = _compare_inputs(run)
    verdict = _judge_inputs(inputs)
    for topic, differences in inputs.items():
        log.info("%-9s %s", topic, _join("; ", differences) or "the same")
    if verdict == DIFFERENT or check:
        log.info("%s", VERDICTS[verdict])
        return verdict

    if out is None:
        out = run.paths.reproductions / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
        # Lightning starts the other processes of a distributed run with this command: without --out
        # each would name a new folder.
        sys.argv += ["--out", str(out)]
    out = out.absolute()
    before = _read_values(run.folder)
    _train_again(run, out)
    if rank_zero_only.rank:  # type: ignore[attr-defined]
        return IDENTICAL  # only the first process compares, and its exit code is the command's
    after = _read_values(out)
    pairs = {name: (before.get(name), after.get(name)) for name in before | after}
    differing = {name: (then, now) for name, (then, now) in pairs.items() if then != now}
    verdict = _judge(differing, tolerance)
    lines = [f"{len(pairs) - len(differing)} of {len(pairs)} values are identical"]
    lines += [f"{name}: {then} then, {now} now" for name, (then, now) in differing.items()]
    log.info("%s", _join("\n  ", lines))
    report = {
        "run": str(run.folder.absolute()),
        "verdict": VERDICTS[verdict],
        "tolerance": tolerance,
        "inputs": inputs,
        "values_compared": len(pairs),
        "values_that_differ": differing,
    }
    write_json(RunPaths(out).reproduction, report)
    log.info("%s (%s)", VERDICTS[verdict], RunPaths(out).reproduction)
    return verdict


def _train_again(run: Run, out: Path) -> None:
    log.info("training it again, into %s", out)
    try:
        train(OmegaConf.create(_retraining_config(run, out)))
    except KeyboardInterrupt as error:
        raise type(error)(f"(to go on: {quote_for_shell(*current_command())})") from error


def _compare_inputs(run: Run) -> dict[str, list[str]]:
    """Returns differences in words by topic: code, versions, machine, data, split."""
    record, git = run.record, run.record["git"]
    code, _ = provenance.read_code_state()
    # Another commit may hold the same code.
    is_same = code["source_sha256"] == git.get("source_sha256")
    modules = provenance.hash_modules(run.config)
    if modules.get("init") != record["modules"].get("init"):
        raise InputError(
            f"init={run.config['init']}: is missing or another file than the run started from, of "
            f"SHA-256 {record['modules'].get('init')}; put that back there"
        )
    machine = provenance.describe_machine()
    inputs = {
        "code": [] if is_same else _describe_pairs(git, code, ["commit", "source_sha256"]),
        "versions": _describe_pairs(record["versions"], provenance.installed_versions(), _PACKAGES),
        "machine": _describe_pairs(record["machine"], machine, _HARDWARE),
    }
    inputs["code"] += _describe_pairs(record["modules"], modules, {**record["modules"], **modules})

    root, sets = run.config["data"]["root"], read_run_sets(run)
    files = files_below(root, hash_files(name_cases(sets)))
    changed = provenance.describe_changed_files(read_data_files(run.folder), files)
    inputs |= {"data": [str(Path(root, name)) for name in changed], "split": []}
    if not changed:
        data = instantiate(_retraining_config(run, run.folder)["data"])
        data.read_sets = lambda: sets
        data.setup()
        if data.split.hash != run.provenance.split_hash:
            inputs["split"] = ["this config gives another one today"]
    return inputs


def _judge_inputs(inputs: dict[str, list[str]]) -> int:
    """Returns the verdict on differences of inputs: data and split must be the same."""
    if inputs["data"] or inputs["split"]:
        return DIFFERENT
    return WITHIN_TOLERANCE if any(inputs.values()) else IDENTICAL


def _judge(differing: dict[str, tuple[Any, Any]], tolerance: float) -> int:
    """Returns the verdict on the values that differ: scores count, the rest is not identical."""
    for name, (then, now) in differing.items():
        unit = _DISTANCE_UNIT if name.rpartition(" ")[2] in IN_PIXELS else 1
        is_score = name.startswith("summary.json")
        if is_score and (None in (then, now) or abs(then - now) > tolerance * unit):
            return DIFFERENT
    return WITHIN_TOLERANCE if differing else IDENTICAL


def _read_values(folder: Path) -> dict[str, Any]:
    """Returns all results of a run by name: hashes of weights, scores and cells of tables."""
    run, paths = read_run(folder, is_scored=True), RunPaths(folder)
    values: dict[str, Any] = {
        f"{file.name} weights": hash_weights(file)
        for file in (paths.best_checkpoint, paths.last_checkpoint)
    }
    values |= {f"summary.json {name.replace('/', ' ')}": v for name, v in run.values.items()}
    for baseline, scores in run.baselines.items():
        values |= {f"summary.json {baseline} {n.replace('/', ' ')}": v for n, v in scores.items()}
    tables: list[tuple[Path, tuple[str, ...]]] = [
        (paths.metrics, ("epoch",)),
        (paths.test_cases, ("id", "class")),
        (paths.baseline_cases, ("baseline", "id", "class")),
    ]
    if run.ids["val"]:
        tables.append((paths.val_cases, ("id", "class")))
    for file, keys in tables:
        with refuse_damaged(file):
            for row in read_csv(file):
                place = " ".join([file.name, *(row[key] for key in keys if key in row)])
                values |= {f"{place} {column}": cell for column, cell in row.items()}
    return values


def _retraining_config(run: Run, out: Path) -> dict[str, Any]:
    """Returns the run's config without the paths in it to which training would write."""
    config = run.config | {"run_dir": str(out)}
    data = config["data"] | {"cache_dir": default_cache_dir()}
    if data["split"]["file"] is not None:
        data["split"] = data["split"] | {"file": str(run.paths.split)}
    config["data"] = data
    config["trainer"] = {k: v for k, v in config["trainer"].items() if k != "profiler"}
    if config["logger"]:  # the run's own may write anywhere, or to a server
        config["logger"] = OmegaConf.load(CONF / "logger" / "tensorboard.yaml")
    return config


def _describe_pairs(
    then: Mapping[str, Any], now: Mapping[str, Any], keys: Iterable[str]
) -> list[str]:
    """Returns the entries that differ, in words."""
    return [
        f"{key} {then.get(key)} then, {now.get(key)} now"
        for key in keys
        if then.get(key) != now.get(key)
    ]


def _join(separator: str, texts: list[str]) -> str:
    """Joins the first texts, which a stranger may have written, to print them."""
    more = ["..."] if len(texts) > _MAX_LISTED else []
    return separator.join([*(printable(text, 300) for text in texts[:_MAX_LISTED]), *more])
