"""Scores a run's checkpoint again, or an ensemble of several, from run directories alone."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate

from seglab.config import stored_inference
from seglab.core.errors import InputError
from seglab.core.files import write_csv, write_json
from seglab.core.memory import keep_freed_memory
from seglab.data.cache import hash_cases, hash_files
from seglab.data.cases import Case, with_classes
from seglab.data.layouts import find_cases, ph2_cases
from seglab.inference.models import Model, ensemble, refuse_twice
from seglab.inference.predictor import make_predictor
from seglab.inference.scoring import score_cases
from seglab.runs.opening import load_run_network, open_run
from seglab.runs.paths import RunPaths
from seglab.runs.records import Run

log = logging.getLogger(__name__)


def evaluate(
    paths: str | Path | Sequence[str | Path],
    data_root: str | Path | None = None,
    out: str | Path | None = None,
    trust: tuple[str, ...] = (),
    **inference: bool | None,
) -> dict[str, Any]:
    """Scores runs at native resolution and writes summary.json and test_cases.csv.

    Several runs are scored as one, an ensemble: by the mean of their probabilities, each at its
    own size, and the mean of their thresholds.

    Args:
        paths: The run directory, or several; their own files stay as they are.
        data_root: Another data set of any supported layout, all of whose cases are scored; None
            for the runs' own test cases.
        out: Where to write; by default a new folder under the first run's `evaluations`.
        trust: As in `open_run`.
        inference: `tta`, `largest_component` and `fill_holes`, in place of what the runs' configs
            say; None for that.

    Returns:
        What summary.json holds: the scores under `test`, the counts of `calibration`, and what
        they are of and how they came about.

    Raises:
        InputError: A run or a data set that cannot be read, test cases that have changed, or runs
            that are no ensemble: of other test cases, or that clean masks otherwise.
    """
    keep_freed_memory()
    paths = [paths] if isinstance(paths, str | Path) else paths
    refuse_twice(paths)
    runs = [open_run(path, trust) for path in paths]
    models = [model_of(run, trust, **inference) for run in runs]
    model = ensemble(models)
    cases = _test_cases(runs) if data_root is None else find_cases(data_root)
    cases = with_classes(cases, model.classes)
    hashes = hash_cases(cases, hash_files(cases))
    seen = _changed_or_trained_on(runs, cases, hashes, own=data_root is None)
    scored = score_cases(model.predict, cases, model.threshold, model.inference)
    tta = [model.inference.tta for model in models]
    summary = {
        "test": scored.values,
        "calibration": {"test": scored.calibration.tolist()},
        **({"classes": scored.classes} if scored.classes else {}),
        "n": len(cases),
        "threshold": model.threshold,
        "inference": {
            "tta": tta[0] if len(set(tta)) == 1 else tta,
            "largest_component": model.inference.largest_component,
            "fill_holes": model.inference.fill_holes,
        },
        "trained_on": seen,
        "data": str(Path(data_root or runs[0].config["data"]["root"]).absolute()),
    }
    absolute = [str(run.folder.absolute()) for run in runs]
    summary |= {"run": absolute[0]} if len(runs) == 1 else {"runs": absolute}
    if out is None:
        name = "own-test" if data_root is None else Path(data_root).absolute().name
        name = name if len(runs) == 1 else f"{name}-of-{len(runs)}-runs"
        out = runs[0].paths.evaluations / f"{name}-{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_csv(RunPaths(out).test_cases, scored.rows)
        write_json(RunPaths(out).summary, summary)
    except OSError as error:
        raise InputError(
            f"{out}: cannot be written ({error.strerror}); name another with --out"
        ) from error
    log.info("%d cases of %s, native resolution", len(cases), summary["data"])
    for name, value in scored.values.items():
        each = {of: values[name] for of, values in scored.classes.items() if name in values}
        own = "".join(f"  {of} {value:.4f}" for of, value in each.items())
        log.info("%-16s %.4f%s", name, value, own)
    log.info("written to %s", out)
    return summary


def read_cases(run: Run) -> list[Case]:
    """Reads the cases of the data set that a run was trained on."""
    data = run.config["data"]
    # A synthetic set is in PH2's layout; reading a run must not draw one.
    drawn = data["cases"]["_target_"].endswith(".synthetic_cases")
    read = ph2_cases if drawn else instantiate(data["cases"])
    return read(data["root"])


def model_of(run: Run, trust: tuple[str, ...] = (), **inference: bool | None) -> Model:
    """Loads the network of an opened run, on the kind of device that it was trained on.

    Args:
        run: As `open_run` returns it.
        trust: As in `open_run`.
        inference: As in `evaluate`.
    """
    net, stored = load_run_network(run, trust)
    given = {key: value for key, value in inference.items() if value is not None}
    settings = replace(stored_inference(run.config["inference"], run.paths.config), **given)
    device = "cpu"
    if run.provenance.device == "cuda" and torch.cuda.is_available():
        device = "cuda"
    predict = make_predictor(net, run.config["data"]["size"], device, settings.tta)
    return Model(run.folder, predict, stored["classes"], stored["threshold"], settings)


def _test_cases(runs: list[Run]) -> list[Case]:
    run, *others = runs
    tested = {id: run.sha256[id] for id in run.ids["test"]}
    for other in others:
        if {id: other.sha256[id] for id in other.ids["test"]} != tested:
            raise InputError(
                f"{other.folder}: has other test cases than {run.folder}; name the cases to score "
                "with --data"
            )
    by_id = {case.id: case for case in read_cases(run)}
    missing = [id for id in run.ids["test"] if id not in by_id]
    if missing:
        raise InputError(
            f"{run.config['data']['root']}: {len(missing)} of the run's {len(tested)} test cases are not "
            f"there ({missing[0]}, ...); restore them, or score another data set with --data"
        )
    return [by_id[id] for id in run.ids["test"]]


def _changed_or_trained_on(
    runs: list[Run], cases: list[Case], hashes: dict[str, str], own: bool
) -> int:
    """Refuses test cases that are not what they were; counts foreign ones that any trained on."""
    if own:
        then = runs[0].sha256
        changed = [case for case in cases if hashes[case.id] != then.get(case.id)]
        if changed:
            raise InputError(
                f"{changed[0].image}: case {changed[0].id} has changed since the run, image or mask"
                f" ({len(changed)} such cases); restore it, or score what is there with --data"
            )
        return 0
    fitted = {run.sha256[id] for run in runs for id in (*run.ids["train"], *run.ids["val"])}
    seen = sum(hash in fitted for hash in hashes.values())
    if seen:
        log.warning(
            "%d of these %d cases were used in training: their scores say nothing of new cases",
            seen,
            len(cases),
        )
    return seen
