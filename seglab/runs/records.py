"""What runs say, from their files alone: no torch, and nothing of them is trusted."""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from seglab.core.errors import InputError
from seglab.core.files import read_csv, read_json
from seglab.runs.paths import RunPaths

COSTS = ("parameters", "multiply_adds", "training_seconds", "images_per_second")
# Of two runs of one config the first of these is taken.
STATUSES = ("finished", "running", "interrupted", "pruned", "failed", "planned")
UNKNOWN = "-"
# `seglab.config.BEFORE` as texts, without what it takes to import that.
BEFORE = {
    **dict.fromkeys(("inference.tta", "inference.tune_threshold"), "false"),
    **dict.fromkeys(("inference.largest_component", "inference.fill_holes"), "false"),
    "task.encoder_lr_factor": "1",
    **{"data.classes": "['lesion']", "data.colours": "null"},
}
_LARGEST = 64 * 2**20  # bytes; a run's own files are far below

Case = tuple[str, str, str]  # id, SHA-256 of its files, diagnosis
# Counts (tp, fp, fn, tn), hd95 and surface_dice, NaN where the run is older, of each class: float64
# (K, 6) each. Of one class K is 1; of several the first is background.
CaseCounts = dict[Case, np.ndarray]


@dataclass(frozen=True, eq=False)
class Run:
    """A run directory, as far as the run came.

    Attributes:
        folder: Where it lies.
        path: Where it lies below what was given.
        status: One of `STATUSES`.
        error: In one line; empty without.
        settings: The resolved config as text by dotted key, without seed, fold and places. Of a
            run that never had a config, what was overridden.
        seed: As text.
        fold: Which fold is tested, as text; empty for holdout.
        folds: How many there are; 1 for holdout, 0 without a config.
        one_fold: Its sweep keeps to this one fold.
        varies: Settings that its sweep varied.
        sweep: The folder of its sweep; None of a single run.
        source: SHA-256 of the code of seglab that ran; empty where it is not known.
        data: Fingerprint of the data that was read; likewise.
        classes: Names of what its masks tell apart: one, or several with background first.
        values: Scores by name, `val/...` and `test/...`. This and what follows: if finished.
        costs: Some of `COSTS`.
        calibration: int64 (15, 3) of the test cases; None of an older run.
        tested: The test cases.
    """

    folder: Path
    path: str
    status: str
    error: str
    settings: dict[str, str]
    seed: str
    fold: str
    folds: int
    one_fold: bool
    varies: list[str]
    sweep: Path | None
    source: str
    data: str
    classes: tuple[str, ...]
    values: dict[str, float] = field(default_factory=dict)
    costs: dict[str, float] = field(default_factory=dict)
    calibration: np.ndarray | None = None
    tested: CaseCounts = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class RunProvenance:
    """What a run was made of, as its files say; what an older one does not say is empty.

    Attributes:
        started: Time, ISO 8601.
        directory: Where its command was started.
        commit: Of seglab's checkout.
        dirty: Whether there was more than the commit; None outside a checkout.
        versions: Of Python and distributions, by name.
        device: What it was trained on, 'cpu' or 'cuda'.
        machine: Processors: the accelerators of another device than 'cpu', else the CPU.
        weights: SHA-256 of the file that its weights started from.
        resumed: How often it was gone on with.
        changed: What was another then than at its start: git, versions, machine.
        split_hash: SHA-256 of ids and contents.
        ids: Of the cases, by part: train, val, test.
        tables: Names of the CSVs that were read as data, of who the patients are; None: unknown.
        best_epoch: Number of the epoch whose weights it keeps, from 1.
        threshold: Probability above which a pixel is lesion; None: that of its config.
        baselines: Test scores of trivial baselines, by their names.
    """

    started: str
    directory: str
    commit: str
    dirty: bool | None
    versions: dict[str, str]
    device: str
    machine: str
    weights: str
    resumed: int
    changed: tuple[str, ...]
    split_hash: str
    ids: dict[str, list[str]]
    tables: list[str] | None
    best_epoch: int
    threshold: float | None
    baselines: dict[str, dict[str, float]]


def read_run(folder: Path) -> Run:
    """Reads a run directory whose test cases are scored, all but finished or finished.

    Raises:
        InputError: It is no run directory, has no scores yet, or a file is damaged.
    """
    paths = RunPaths(folder)
    for file, what in (
        (paths.record, "no run directory"),
        (paths.summary, "not trained to its end"),
    ):
        if not file.exists():
            raise InputError(
                f"{folder}: {what} (it holds no {file.name}); expected one of train.py's, whose command "
                "ends it if it is given again"
            )
    return _read_run(folder, _text(folder.name), is_scored=True)


def read_provenance(folder: Path) -> RunProvenance:
    """Reads what a run was made of.

    Args:
        folder: As of `read_run`.

    Raises:
        InputError: A file is missing or damaged.
    """
    paths = RunPaths(folder)
    with _reading(paths.record) as file:
        record = read_json(file)
        git, machine = record.get("git") or {}, record.get("machine") or {}
        device = _text(record.get("device") or "")
        known = [(machine[k], k) for k in ("cores", "threads") if machine.get(k)]
        counts = [f"{n} {k[:-1] if n == 1 else k}" for n, k in known]
        parts = [machine["processor"], *counts] if machine.get("processor") else counts
        if device not in ("", "cpu"):
            parts = list(machine.get(device) or [])
        resumed = record.get("resumed") or []
        kinds = ("git", "versions", "machine")
        from_run: dict[str, Any] = {
            "started": _text(record.get("start") or ""),
            "directory": str(record.get("directory") or ""),
            "commit": _text(git.get("commit") or ""),
            "dirty": git.get("dirty"),
            "versions": {_text(k): _text(v) for k, v in record.get("versions", {}).items()},
            "device": device,
            "machine": _text(", ".join(map(str, parts))),
            "weights": _text(record.get("modules", {}).get("model.weights") or ""),
            "resumed": len(resumed),
            "changed": tuple(k for k in kinds if any(k in each for each in resumed)),
            "split_hash": _text(record.get("split_hash") or ""),
        }
    with _reading(paths.split) as file:
        split = read_json(file)
        ids = {part: [*map(_text, split.get(part, []))] for part in ("train", "val", "test")}
    tables: list[str] | None = None
    with _reading(paths.data) as file:
        if file.exists():
            names = [_text(Path(name).name) for name in read_json(file)["files"]]
            tables = sorted({name for name in names if name.lower().endswith(".csv")})
    with _reading(paths.summary) as file:
        summary = read_json(file)
        epoch = int(summary["best_epoch"])
        threshold = _number(summary["threshold"]) if "threshold" in summary else None
        baselines = {
            _text(name): {_text(k): _number(v) for k, v in values.items()}
            for name, values in summary.get("baselines", {}).items()
        }
    return RunProvenance(
        **from_run,
        ids=ids,
        tables=tables,
        best_epoch=epoch,
        threshold=threshold,
        baselines=baselines,
    )


def read_val(run: Path) -> dict[str, float]:
    """Reads scores and loss of val at the chosen epoch, named `val/...`.

    Args:
        run: Directory of a finished run.

    Raises:
        InputError: Its summary.json or metrics.csv is missing or damaged.
    """
    paths = RunPaths(run)
    try:
        summary = read_json(paths.summary)
        row = read_csv(paths.metrics)[summary["best_epoch"] - 1]
        values = {name: float(v) for name, v in row.items() if name.startswith("val/") and v}
        return values | {f"val/{name}": value for name, value in summary["val"].items()}
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{paths.summary}: is no summary of this run; restore it") from error


def find_runs(dirs: Sequence[str | Path]) -> list[Run]:
    """Reads all run directories at or below some folders, sorted by path.

    What lies within a run directory is part of that run.

    Raises:
        InputError: A folder holds none, or a file is damaged.
    """
    roots = {Path(d).resolve() for d in dirs}
    # As many of the folders' last names as it takes to tell them apart: none of a single one.
    tail = next(
        k for k in count() if len({r.parts[len(r.parts) - k :] for r in roots}) == len(roots)
    )
    found: dict[Path, str] = {}
    for root in sorted(roots, key=lambda root: root.parts[len(root.parts) - tail :]):
        if not root.is_dir():
            raise InputError(f"{root}: no such folder; expected one that holds runs")
        before = len(found)
        for folder, below, files in os.walk(root, onerror=_raise):
            if RunPaths(Path(folder)).record.name in files:
                below.clear()
                path = Path(*root.parts[len(root.parts) - tail :], Path(folder).relative_to(root))
                found.setdefault(Path(folder), _text(path.as_posix()))
        if len(found) == before and not any(f.is_relative_to(root) for f in found):
            raise InputError(
                f"{root}: holds no run, no folder with a run.json; name one that train.py wrote to"
            )
    return sorted((_read_run(*item) for item in found.items()), key=lambda run: run.path)


def _raise(error: OSError) -> None:
    raise error


def _read_run(folder: Path, path: str, is_scored: bool = False) -> Run:
    paths = RunPaths(folder)
    with _reading(paths.record) as file:
        record = read_json(file)
        status, error = record["status"], record.get("error")
        STATUSES.index(status)
        status = "finished" if is_scored else status
        varies = {str(k): _text(v) for k, v in record.get("varies", {}).items()}
        overrides = varies or dict(o.split("=", 1) for o in record.get("overrides", []) if "=" in o)
        config = record.get("config")
        config = None if config is None else BEFORE | _flat(config.items())
        source = (record.get("git") or {}).get("source_sha256") or ""
        data = record.get("data_fingerprint") or ""
    classes: tuple[str, ...] = ("lesion",)
    with _reading(paths.config) as file:
        if status == "finished" or file.exists():
            stored = _read_yaml(file)
            config = BEFORE | _flat(stored.items())
            classes = tuple(map(_text, stored["data"].get("classes", classes)))
    known = config is not None
    # What was overridden goes by the names that a config has.
    names = {"model": "model._target_", "experiment": "name"}
    settings = {names.get(k, k): _text(v) for k, v in overrides.items() if k[:6] != "hydra."}
    settings = settings if config is None else config
    run_dir = settings.pop("run_dir", None)
    settings.pop("data.cache_dir", None)
    for key, value in settings.items():
        if run_dir and (value == run_dir or value.startswith(f"{run_dir}/")):
            settings[key] = value.replace(run_dir, "run_dir", 1)
    seed, batches = settings.pop("seed", UNKNOWN), settings.pop("data.seed", None)
    if batches not in (None, seed):
        seed = f"{seed} (data.seed {batches})"
    fold, folds = settings.pop("data.split.fold", "null"), settings.pop("data.split.folds", "")
    fold = "" if fold == "null" else fold
    if known:
        settings["protocol"] = f"{folds} folds" if fold else "holdout"
    # A number that no run could have had may be why this one failed.
    number = int(folds) if fold and re.fullmatch(r"\d{1,3}", folds) else 1
    error = _text(" ".join(str(error or "").split()))
    error = error if len(error) <= 100 else f"{error[:97]}..."
    keys = [name for name in (names.get(key, key) for key in varies) if name in settings]
    one_fold = known and bool(fold and varies) and "data.split.fold" not in varies
    run = Run(
        *(folder, path, status, error, settings, seed, fold, number * known, one_fold, keys),
        *(folder.parent if varies else None, _text(source), _text(data), classes),
    )
    return _with_values(run) if status == "finished" else run


def _with_values(run: Run) -> Run:
    with _reading(RunPaths(run.folder).summary) as file:
        summary = read_json(file)
        values = {f"{p}/{k}": _number(v) for p in ("val", "test") for k, v in summary[p].items()}
        said = summary | {"training_seconds": summary["seconds"]["training_steps"]}
        costs = {name: _number(said[name]) for name in COSTS if name in said}
        calibration = summary.get("calibration", {}).get("test")
        if calibration is not None:
            calibration = np.array([[int(n) for n in row] for row in calibration])
            if calibration.shape != (15, 3) or calibration.min() < 0 or not calibration[:, 0].any():
                raise ValueError("calibration is not 15 x 3 counts")
    tested = read_cases(run, RunPaths(run.folder).test_cases, "")[""]
    return replace(run, values=values, costs=costs, calibration=calibration, tested=tested)


def read_cases(run: Run, table: Path, key: str) -> dict[str, CaseCounts]:
    """Reads a table of cases, by a column: test_cases.csv as a whole, baselines by theirs."""
    with _reading(RunPaths(run.folder).split) as file:
        sha256 = {str(id): str(value) for id, value in read_json(file).get("sha256", {}).items()}
    found: dict[str, dict[Case, dict[str, list[float]]]] = defaultdict(dict)
    with _reading(table) as file:
        rows = read_csv(file)
        for row in rows:
            case = (_text(row["id"]), sha256.get(row["id"], ""), _text(row["diagnosis"]))
            counts = [int(row[k]) for k in ("tp", "fp", "fn", "tn")]
            boundary = [
                _number(row[k]) if row.get(k) else math.nan for k in ("hd95", "surface_dice")
            ]
            of = _text(row.get("class", ""))
            own = found[_text(row[key]) if key else ""].setdefault(case, {})
            if of in own or min(counts) < 0 or not 0 < sum(counts) < 2**53:
                raise ValueError(f"case {case[0]}: twice there, or impossible counts")
            if boundary[0] < 0 or boundary[1] < 0 or boundary[1] > 1:
                raise ValueError(f"case {case[0]}: impossible hd95 or surface_dice")
            own[of] = counts + boundary
        if not rows:
            raise ValueError("holds no case")
        expected = run.classes if len(run.classes) > 1 else ("",)
        for case, own in (item for cases in found.values() for item in cases.items()):
            if tuple(own) != expected:
                raise ValueError(f"case {case[0]}: not of the classes that its config names")
    return {
        by: {case: np.array([*own.values()], float) for case, own in cases.items()}
        for by, cases in found.items()
    }


def read_curve(run: Run, metric: str) -> dict[int, float]:
    """Values of metrics.csv by epoch."""
    with _reading(RunPaths(run.folder).metrics) as file:
        rows = read_csv(file)
        return {int(row["epoch"]): _number(row[metric]) for row in rows if row.get(metric)}


@contextmanager
def _reading(file: Path) -> Iterator[Path]:
    """Makes whatever a damaged file leads to one line that names it."""
    # Reading a pipe may never end, and what is too large may fill the memory.
    with suppress(OSError):
        found = file.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > _LARGEST:
            raise InputError(
                f"{file}: expected a regular file of at most {_LARGEST >> 20} MiB; restore it, or "
                "move its run elsewhere"
            )
    try:
        yield file
    except InputError:
        if not file.exists():
            gone = f"{file}: no such file; restore it, or move its run elsewhere"
            raise InputError(gone) from None
        raise
    except (
        ValueError,
        TypeError,
        LookupError,
        ArithmeticError,
        AttributeError,
        RecursionError,
    ) as error:
        raise InputError(
            f"{file}: damaged ({_text(' '.join(str(error).split()))[:100]}); restore it, or move "
            "its run elsewhere"
        ) from error


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text("utf-8")
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        depth = 0
        for event in yaml.parse(text, loader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            # A few lines of references to references could fill any memory.
            if isinstance(event, yaml.AliasEvent) or depth > 50:
                raise ValueError("no config of a run")
        return yaml.load(text, loader)  # a safe one
    except FileNotFoundError:
        raise InputError(f"{file}: no such file; restore it, or move its run elsewhere") from None
    except yaml.YAMLError as error:
        raise ValueError(error) from error


def _flat(items: Any, prefix: str = "") -> dict[str, str]:
    """Values as text by dotted key; a list is a value."""
    flat: dict[str, str] = {}
    for key, value in items:
        name = f"{prefix}{_text(key)}"
        below = isinstance(value, dict) and value
        flat |= _flat(value.items(), f"{name}.") if below else {name: _text(value)}
    return flat


def _text(value: Any) -> str:
    """As YAML has it, without what a terminal would obey."""
    text = json.dumps(value) if value is None or isinstance(value, bool) else str(value)
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def _number(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value} is no number")
    return number
