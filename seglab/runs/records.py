"""Reads run directories into `Run` records, without torch; nothing in them is trusted."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from seglab.core.errors import InputError, printable
from seglab.core.files import expand_user, read_json
from seglab.data.splits import read_split
from seglab.runs.loading import parse_config, read_config
from seglab.runs.paths import RunPaths, check_format, refuse_damaged
from seglab.runs.tables import CaseValues, read_case_values, read_scores, to_text
from seglab.schema import flatten

# Of two runs of one config the first of these is taken.
# Masks of another program, see `seglab.inference.score`; networks on other data, see `evaluate`.
SCORED_ELSEWHERE = ("imported", "evaluated")
STATUSES = (
    *("finished", *SCORED_ELSEWHERE, "running", "interrupted", "pruned", "failed", "planned"),
)
UNKNOWN = "-"


@dataclass(frozen=True)
class RunProvenance:
    """What a run was made of, from its run.json; empty where a planned run has not begun.

    Attributes:
        started: Time, ISO 8601.
        commit: Of seglab's git checkout; empty outside one.
        dirty: Whether there were uncommitted changes; None outside a checkout.
        source: SHA-256 of the code of seglab.
        data: Fingerprint of the data that was read.
        split_hash: SHA-256 of the split's ids and contents.
        versions: Of Python and distributions, by name.
        device: Type of the device that it was trained on, 'cpu' or 'cuda'.
        machine: Name of the accelerators, or of the CPU with its cores.
        weights: SHA-256 of the file of pretrained weights; empty without.
        init: What it started from: section `init` of run.json, as text; empty without.
    """

    started: str = ""
    commit: str = ""
    dirty: bool | None = None
    source: str = ""
    data: str = ""
    split_hash: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    device: str = ""
    machine: str = ""
    weights: str = ""
    init: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Run:
    """A run directory, as far as the run got.

    Attributes:
        folder: Path of the directory.
        label: Path below the folders that were searched, for messages and tables.
        status: One of `STATUSES`.
        error: In one line; empty without.
        notes: What readers of the scores should know, where it was scored elsewhere.
        record: run.json, plain containers.
        provenance: What the run was made of.
        config: config.yaml, plain containers; empty where the run never had one.
        settings: The config as text by dotted key, without seed, fold, loggers and paths.
        seed: As text; `UNKNOWN` without a config.
        fold: Number of the fold that is tested, as text; empty for holdout.
        folds: How many folds there are; 1 for holdout, 0 without a config.
        varied_settings: Settings that its sweep varied.
        sweep: Folder of its sweep; None for a single run.
        classes: Names of its classes, one for each logit channel.
        sets: Names of its data sets; empty for a run of one.
        ids: Ids of the cases in train, val and test; empty before the split was written.
        sha256: Of each case's files, by id.
        values: Scores by name, `val/...` and `test/...`, of several sets as in
            `test/ph2/dice_per_image`. This and the rest: once it is scored. What was scored
            elsewhere has values and tested cases alone, and calibration where probabilities are
            known.
        baselines: Test scores of trivial baselines, by their names; the scores' as of `values`.
        best_epoch: Number of the epoch whose weights are kept, from 1.
        threshold: Probability above which a pixel is lesion.
        costs: By the names in `COSTS`.
        ece_bins: int64 (15, 3), `calibration_counts` of the test cases of each set, '' in a run
            of one set.
        tested: Values of the test cases, see `seglab.runs.tables`.
    """

    folder: Path
    label: str
    status: str
    error: str
    record: dict[str, Any]
    provenance: RunProvenance
    config: dict[str, Any]
    settings: dict[str, str]
    seed: str
    fold: str
    folds: int
    varied_settings: list[str]
    sweep: Path | None
    classes: tuple[str, ...]
    sets: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    ids: dict[str, list[str]] = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)
    best_epoch: int = 0
    threshold: float = 0.5
    costs: dict[str, float] = field(default_factory=dict)
    ece_bins: dict[str, np.ndarray] = field(default_factory=dict)
    tested: CaseValues = field(default_factory=dict)

    @property
    def paths(self) -> RunPaths:
        """Paths of its files."""
        return RunPaths(self.folder)

    @property
    def is_scored(self) -> bool:
        """Whether it has scores."""
        return bool(self.tested)

    @property
    def was_trained(self) -> bool:
        """Whether it is of a training, and not of scores alone."""
        return self.status not in SCORED_ELSEWHERE


def read_run(folder: Path, label: str | None = None, is_scored: bool = False) -> Run:
    """Reads a run directory; raises an InputError if a file is missing or damaged.

    Args:
        folder: The directory.
        label: `Run.label`; None for the folder's name.
        is_scored: Whether the run must have scores; it may then lack its last status.
    """
    paths = RunPaths(folder)
    if is_scored and paths.record.exists() and not paths.summary.exists():
        raise InputError(
            f"{folder}: not trained to its end (it holds no {paths.summary.name}); the same "
            "command again goes on with it"
        )
    config: dict[str, Any] = {}
    classes: tuple[str, ...] = ("lesion",)
    with refuse_damaged(paths.record) as file:
        record = read_json(file)
        check_format(record, file)
        status = "finished" if is_scored else record["status"]
        STATUSES.index(status)
        error = printable(" ".join(str(record.get("error") or "").split()), 100)
        overrides = [str(key) for key in dict(record.get("varies") or {})]
        provenance = _read_provenance(record)
        # trainer.fast_dev_run ends without anything but run.json.
        is_debug = status == "finished" and not ("split_hash" in record or paths.config.exists())
        config = {} if is_debug else dict(record.get("config") or {})
    has_scores = status in ("finished", *SCORED_ELSEWHERE) and not is_debug
    if has_scores or paths.config.exists():
        config = parse_config(paths.config)
        with refuse_damaged(paths.config):
            classes = tuple(map(to_text, config["data"]["classes"]))
    ids, sha256 = {}, {}
    if has_scores or paths.split.exists():
        with refuse_damaged(paths.split) as file:
            split = read_json(file)
            ids = {part: [to_text(id) for id in split[part]] for part in ("train", "val", "test")}
            hashes = {to_text(id): str(value) for id, value in split["sha256"].items()}
            sha256 = {id: hashes[id] for part in ids.values() for id in part}
    with refuse_damaged(paths.record):
        description = _describe(config, overrides, record.get("protocol"))
        notes = tuple(map(to_text, record.get("notes") or ()))
    run = Run(
        folder=folder,
        label=to_text(folder.name) if label is None else label,
        status=status,
        error=error,
        record=record,
        provenance=provenance,
        config=config,
        sweep=folder.parent if overrides else None,
        classes=classes,
        notes=notes,
        ids=ids,
        sha256=sha256,
        **description,
    )
    return _with_scores(run) if has_scores else run


def open_run(
    path: str | Path, trust: tuple[str, ...] = (), data_root: str | Path | None = None
) -> Run:
    """Reads a finished run from whose config something will be built; runs nothing in it.

    Args:
        path: The directory.
        trust: Names that its config may hold as `_target_` besides seglab's allowed targets,
            such as 'my_networks.MyNet'.
        data_root: Where the run's data is today, for its config; None for where it was.

    Raises:
        InputError: A file is missing or damaged, or the config names code that is not trusted.
    """
    paths = RunPaths(expand_user(path))
    if not paths.record.is_file():
        raise InputError(
            f"{path}: no run directory (it holds no run.json); expected one that train wrote"
        )
    refuse_scores_alone(paths)
    read_config(paths.config, trust)
    run = read_run(paths.folder)
    sections = ("git", "modules", "versions", "machine")
    if not all(isinstance(run.record.get(section), dict) for section in sections):
        raise InputError(f"{paths.record}: is no record of a run; restore it")
    if read_split(paths.split).hash != run.provenance.split_hash:
        raise InputError(
            f"{paths.split}: is not the split that the run was trained on; put the run's own files "
            "back"
        )
    if data_root is not None:
        run.config["data"]["root"] = str(expand_user(data_root).absolute())
    return run


def refuse_scores_alone(paths: RunPaths) -> None:
    """Raises an InputError if a directory is of scores alone, and holds no network."""
    with refuse_damaged(paths.record) as file:
        if read_json(file)["status"] in SCORED_ELSEWHERE:
            raise InputError(f"{paths.folder}: holds scores alone, and no network; name a run")


def find_runs(dirs: Sequence[str | Path]) -> list[Run]:
    """Reads all run directories at or below some folders, sorted by label.

    What lies within a run directory is part of that run. Raises an InputError if a folder holds
    none, or a file is damaged.
    """
    roots = sorted({expand_user(d).resolve() for d in dirs})
    base = Path(os.path.commonpath(roots))
    record_name = RunPaths(base).record.name
    folders: set[Path] = set()
    for root in roots:
        for folder, subfolders, files in os.walk(root, onerror=_raise):
            if record_name in files:
                subfolders.clear()
                folders.add(Path(folder))
        if not any(folder.is_relative_to(root) for folder in folders):
            raise InputError(
                f"{root}: holds no run, no folder with a {record_name}; name one that train "
                "wrote to"
            )
    runs = [read_run(f, to_text(f.relative_to(base).as_posix())) for f in folders]
    return sorted(runs, key=lambda run: run.label)


def name_init(runs: Sequence[Run]) -> str:
    """Name what runs start from, with * for their fold or seed if another one starts elsewhere."""
    init = runs[0].settings["init"]
    for name, values in (("fold", {r.fold for r in runs}), ("seed", {r.seed for r in runs})):
        if len(values) == 1:
            init = re.sub(rf"(?<={name}-){re.escape(*values)}(?!\d)", "*", init)
    return init


def read_data_files(folder: Path) -> dict[str, str]:
    """Reads data.json: SHA-256 of every file that a run read as data, by path below the root."""
    with refuse_damaged(RunPaths(folder).data) as file:
        return {str(name): str(sha256) for name, sha256 in read_json(file)["files"].items()}


def _raise(error: OSError) -> None:
    raise InputError(f"{error.filename}: cannot be searched for runs ({error.strerror})")


def _read_provenance(record: dict[str, Any]) -> RunProvenance:
    git, machine = record.get("git") or {}, record.get("machine") or {}
    device = to_text(record.get("device") or "")
    hardware = f"{machine.get('processor')}, {machine.get('cores')} cores" if machine else ""
    if device not in ("", "cpu"):
        hardware = ", ".join(map(str, machine.get(device) or []))
    return RunProvenance(
        started=to_text(record.get("start") or ""),
        commit=to_text(git.get("commit") or ""),
        dirty=git.get("dirty"),
        source=to_text(git.get("source_sha256") or ""),
        data=to_text(record.get("data_fingerprint") or ""),
        split_hash=to_text(record.get("split_hash") or ""),
        versions={to_text(k): to_text(v) for k, v in (record.get("versions") or {}).items()},
        device=device,
        machine=to_text(hardware),
        weights=to_text((record.get("modules") or {}).get("model.weights") or ""),
        init={to_text(k): to_text(v) for k, v in (record.get("init") or {}).items()},
    )


def _describe(config: dict[str, Any], overrides: list[str], protocol: Any) -> dict[str, Any]:
    """Returns settings, sets, seed, folds and what a sweep varied, as fields of `Run`."""
    if not config:
        return {"settings": {}, "seed": UNKNOWN, "fold": "", "folds": 0, "varied_settings": []}
    flat = flatten({key: value for key, value in config.items() if key != "logger"})
    settings = {to_text(key): to_text(value) for key, value in flat.items()}
    settings.pop("data.cache_dir", None)
    run_dir = settings.pop("run_dir", None)
    if run_dir:  # runs that differ in nothing else have the same settings
        settings = {k: v for k, v in settings.items() if not v.startswith(run_dir)}
    seed, data_seed = settings.pop("seed", UNKNOWN), settings.pop("data.seed", None)
    if data_seed not in (None, seed):
        seed = f"{seed} (data.seed {data_seed})"
    fold, folds = settings.pop("data.split.fold", "null"), settings.pop("data.split.folds", "")
    fold = "" if fold == "null" else fold
    settings["protocol"] = f"{folds} folds" if fold else "holdout"
    if protocol:  # of what was scored elsewhere
        settings["protocol"] = to_text(protocol)
    # Overrides use other names than the config that they lead to.
    names = {"model": "model._target_", "experiment": "name"}
    varied = [names.get(key, key) for key in overrides]
    return {
        "settings": settings,
        "sets": tuple(map(to_text, config["data"].get("sets") or ())),
        "seed": seed,
        "fold": fold,
        # An impossible number of folds may be why this run failed.
        "folds": int(folds) if fold and re.fullmatch(r"\d{1,3}", folds) else 1,
        "varied_settings": [key for key in varied if key in settings],
    }


def _with_scores(run: Run) -> Run:
    scores = read_scores(run.paths.summary, bool(run.sets), run.was_trained)
    bins = scores["ece_bins"]
    is_calibrated = bool(bins) or run.was_trained
    tested = read_case_values(
        run.paths.test_cases, run.sha256, run.classes, has_confidence=is_calibrated
    )[""]
    with refuse_damaged(run.paths.test_cases):
        names = {case.set for case in tested}
        if (is_calibrated and names != {*bins}) or not names.issubset(run.sets or [""]):
            raise ValueError("its data sets are not those of config.yaml and summary.json")
    return replace(run, tested=tested, **scores)
