"""Runs a run again and says, value by value, whether the same came out."""

from __future__ import annotations

import logging
import shlex
import sys
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
from seglab.core.files import read_csv, read_json, write_json
from seglab.core.text import sanitize_text
from seglab.data.cache import default_dir, hash_files
from seglab.data.datamodule import files_below
from seglab.inference.evaluate import read_cases
from seglab.runs import provenance
from seglab.runs.checkpoints import hash_weights
from seglab.runs.directory import Run, open_run, read_files
from seglab.runs.loading import list_modules
from seglab.runs.paths import RunPaths
from seglab.training.train import train

log = logging.getLogger(__name__)

# Exit codes of scripts/reproduce.py; 1 and 2 are those of bad input.
IDENTICAL, WITHIN_TOLERANCE, DIFFERENT = 0, 3, 4
VERDICTS = {
    IDENTICAL: "identical",
    WITHIN_TOLERANCE: "within tolerance",
    DIFFERENT: "different",
}
# An HD95 is in pixels; so many stand for 1 of a score in [0, 1]. Over seeds on PH2, whose diagonal
# is about 950, the one moves by about 10 where Dice moves by 0.01.
_HD95_UNIT = 1000
# What a machine computes with; its name and kernel are no matter.
_MACHINE = ("processor", "threads", "cpu_capability", "cuda")


@dataclass
class Comparison:
    """What differs between a run and today, or between a run and its repetition.

    Attributes:
        inputs: Differences in words, by what they are of: code, versions, machine, data, split.
        values: Differing values, by name: then, now.
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
    """Compares a run with today, trains its config again, and compares what came out.

    Nothing is checked out or fetched: code, versions and data are those that are here.

    Args:
        path: Directory of a finished run; its own files stay as they are.
        data_root: Where the run's data lies today; None for where it lay.
        out: The new run directory; by default a new folder under the run's `reproductions`. Gets
            reproduction.json as well.
        check: Only compare code, versions, machine, data and split.
        tolerance: Greatest absolute difference of any score of val, test and baselines, in
            [0, 1] or thousands of pixels, to pass as the same on other hardware or with other
            versions.
        trust: As in `open_run`.

    Returns:
        IDENTICAL: every value and weight; with `check`, everything a run depends on.
        WITHIN_TOLERANCE: the scores, but not every value; with `check`, the data and the split.
        DIFFERENT: beyond that, or the data or the split is another; then nothing is trained.

    Raises:
        InputError: The run cannot be read or is not finished, or its data is not there.
    """
    run = open_run(path, trust)
    if run.record.get("status") != "finished":
        raise InputError(
            f"{run.path}: is not finished (status {run.record.get('status')}); start its command "
            "again to go on with it first"
        )
    if data_root is not None:
        run.config.data.root = str(Path(data_root).absolute())
    found = Comparison()
    _compare_inputs(run, found)
    for what, differences in found.inputs.items():
        few = [sanitize_text(text) for text in differences[:10]]
        more = ["..."] if len(differences) > 10 else []
        log.info("%-9s %s", what, "; ".join([*few, *more]) or "the same")
    if found.verdict == DIFFERENT or check:
        log.info("%s", VERDICTS[found.verdict] if not check else _of_check(found.verdict))
        return found.verdict

    if out is None:
        out = RunPaths(run.path).reproductions / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
        sys.argv += ["--out", str(out)]  # where the other processes of a distributed run go too
    out = Path(out).absolute()
    log.info("training it again, into %s", out)
    torch.set_num_threads(_threads(run))
    before = _values(run.path)  # which can be wrong, before hours of training
    try:
        train(OmegaConf.create(_config_in(run, out)))
    except KeyboardInterrupt as error:
        command = shlex.join(["scripts/reproduce.py", str(run.path), "--out", str(out)])
        raise type(error)(f"(to go on: python {command})") from error
    if rank_zero_only.rank:  # type: ignore[attr-defined]
        return IDENTICAL
    _compare_values(before, _values(out), found, tolerance)
    log_differences(found, tolerance)
    write_json(
        RunPaths(out).reproduction,
        {
            "of": str(run.path.absolute()),
            "verdict": VERDICTS[found.verdict],
            "tolerance": tolerance,
            "inputs": found.inputs,
            "values_compared": found.compared,
            "values_that_differ": found.values,
        },
    )
    log.info("%s (%s)", VERDICTS[found.verdict], RunPaths(out).reproduction)
    return found.verdict


def _compare_inputs(run: Run, found: Comparison) -> None:
    """Fills `inputs`, and the verdict on them."""
    code, _ = provenance.read_code_state()
    then = run.record.get("git", {})
    same_code = code["source_sha256"] == then.get("source_sha256")
    found.inputs["code"] = [] if same_code else _pairs(then, code)
    if same_code and code["commit"] != then.get("commit"):
        log.info(
            "%s",
            sanitize_text(f"{_pairs(then, code, ['commit'])[0]}, with the same code in seglab/"),
        )
    # What the config names elsewhere was imported to check it.
    modules = provenance.hash_modules(list_modules(OmegaConf.to_container(run.config)))
    modules |= provenance.hash_pretrained_weights(run.config.model)
    found.inputs["code"] += _pairs(run.record.get("modules", {}), modules)
    found.inputs["versions"] = _pairs(
        run.record.get("versions", {}), provenance.installed_versions(), _needed()
    )
    now = provenance.describe_machine() | {
        "threads": _threads(run)
    }  # which are set before training
    found.inputs["machine"] = _pairs(run.record.get("machine", {}), now, _MACHINE)
    if any(found.inputs.values()):
        found.verdict = WITHIN_TOLERANCE

    root = run.config.data.root
    # Read anew: the cache's memory of hashes is not asked.
    cases = read_cases(run)
    files = files_below(root, hash_files(cases))
    changed = provenance.describe_changed_files(read_files(run.path), files)
    found.inputs["data"] = [f"{Path(root, name)}" for name in changed]
    if changed:
        found.verdict = DIFFERENT
        return
    data = instantiate(_config_in(run, run.path)["data"], cases=lambda _: cases)
    data.setup()
    found.inputs["split"] = []
    if data.split.hash != run.split.hash:
        found.inputs["split"] = ["this config gives another one today"]
        found.verdict = DIFFERENT


def _compare_values(
    before: dict[str, Any], after: dict[str, Any], found: Comparison, tolerance: float
) -> None:
    """Fills `values`, and the verdict on them."""
    names = list(dict.fromkeys((*before, *after)))
    found.compared = len(names)
    found.values = {
        name: (before.get(name), after.get(name))
        for name in names
        if before.get(name) != after.get(name)
    }
    # What the run did not have, an older one, cannot be another.
    scores = {name for name in before if name.startswith("summary.json ")}
    beyond = [
        name
        for name, (a, b) in found.values.items()
        if name in scores and not (b is not None and _gap(name, a, b) <= tolerance)
    ]
    found.verdict = DIFFERENT if beyond else WITHIN_TOLERANCE if found.values else IDENTICAL


def _values(run: Path) -> dict[str, Any]:
    """Everything that a run came to, by name: weights by their hash, values at full precision."""
    paths = RunPaths(run)
    values: dict[str, Any] = {
        f"{file.relative_to(run).as_posix()} weights": hash_weights(file)
        for file in (paths.best_checkpoint, paths.last_checkpoint)
    }
    try:
        summary = read_json(paths.summary)
        for part in ("val", "test", *summary["baselines"]):
            scores = summary[part] if part in ("val", "test") else summary["baselines"][part]
            values |= {f"summary.json {part} {name}": float(v) for name, v in scores.items()}
        for file, key in ((paths.metrics, "epoch"), (paths.test_cases, "id")):
            for row in read_csv(file):
                metadata = " ".join(
                    [file.name, row[key], *([row["class"]] if "class" in row else [])]
                )
                values |= {f"{metadata} {name}": value for name, value in row.items()}
        for row in read_csv(paths.baseline_cases):
            metadata = f"baseline_cases.csv {row['baseline']} {row['id']} {row.get('class', '')}"
            values |= {f"{metadata} {name}": value for name, value in row.items()}
    except InputError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise InputError(
            f"{run}: summary.json or a table beside it is not what a run leaves ({error!r}); "
            "restore it"
        ) from error
    return values


def log_differences(found: Comparison, tolerance: float) -> None:
    """Logs what differs between two runs."""
    same = found.compared - len(found.values)
    log.info("%d of %d values are identical", same, found.compared)
    for name, (then, now) in list(found.values.items())[:10]:
        log.info("  %s", sanitize_text(f"{name}: {then} then, {now} now"))
    if len(found.values) > 10:
        log.info("  ...")
    gaps = [
        _gap(name, then, now)
        for name, (then, now) in found.values.items()
        if isinstance(then, float) and isinstance(now, float)
    ]
    if gaps:
        log.info("greatest difference of a score %.3g, tolerance %.3g", max(gaps), tolerance)


def _gap(name: str, then: float, now: float) -> float:
    """How far apart two values of a score are, in [0, 1] or thousands of pixels."""
    return abs(then - now) / (_HD95_UNIT if name.endswith(" hd95") else 1)


def _of_check(verdict: int) -> str:
    return {
        IDENTICAL: "everything is as it was: expect identical values",
        WITHIN_TOLERANCE: "data and split are as they were, the rest is not: values may differ",
        DIFFERENT: "different",
    }[verdict]


def _config_in(run: Run, out: Path) -> dict[str, Any]:
    """The run's config, with its own paths moved to `out`; it was checked to name no others."""
    old = run.config.run_dir

    def move(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: move(value) for key, value in node.items()}
        if isinstance(node, list):
            return [move(value) for value in node]
        if isinstance(node, str) and Path(node).is_relative_to(old):
            return str(out / Path(node).relative_to(old))
        return node

    config: Any = OmegaConf.to_container(run.config)
    data = config.pop("data")
    if data["split"]["file"] is not None:
        data["split"]["file"] = str(RunPaths(run.path).split)
    return move(config) | {"data": data | {"cache_dir": default_dir()}}


def _threads(run: Run) -> int:
    threads = run.record.get("machine", {}).get("threads")
    # As many as then, for values may depend on it; bounded, for a stranger may have written it.
    return threads if isinstance(threads, int) and 0 < threads <= 1024 else torch.get_num_threads()


def _needed() -> list[str]:
    """Python and the distributions that seglab names: what computes."""
    try:
        named = [Requirement(line) for line in requires("seglab") or []]
    except PackageNotFoundError:  # run from a folder, not installed
        named = []
    return ["python", *(r.name for r in named if r.marker is None)]


def _pairs(then: dict[str, Any], now: dict[str, Any], keys: Any = None) -> list[str]:
    """Entries that differ, in words."""
    keys = keys or dict.fromkeys((*then, *now))
    return [
        f"{key} {_short(then.get(key))} then, {_short(now.get(key))} now"
        for key in keys
        if then.get(key) != now.get(key)
    ]


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}..." if len(text) >= 40 and text.isalnum() else text  # a hash
