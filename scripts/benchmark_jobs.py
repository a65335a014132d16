"""What benchmark.py measures of whole jobs: from the command to finished runs.

Part of `benchmark.py jobs`, which may take turns with another checkout (`--against`), such as an
earlier version of seglab.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from seglab.core.errors import InputError
from seglab.core.files import read_json

SWEEP = ["-m", "seed=0,1,2,3", "trainer.max_epochs=1"]


def measure_jobs(s: Mapping[str, Any], experiment: str, model: str | None) -> dict[str, Any]:
    """Measure a run of an experiment, and a sweep of four of one epoch, in turns.

    Returns:
        For each of `s["checkouts"]` medians over rounds, in seconds: `run`, the command; of it
        `steps` of training, `rest_of_fit` (validation, checkpoints, pictures), `score` (scores and
        figures), and `start` (imports, reading the data, ending); and `sweep`, its command.
    """
    from tqdm import tqdm

    overrides = [f"experiment={experiment}", "data.split.fold=0", f"data.root={s['root']}"]
    overrides += ["data.cases._target_=seglab.data.layouts.find_cases"]
    overrides += [f"model={model}"] * (model is not None) + s["overrides"]
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in s["checkouts"]}
    for _ in tqdm(range(s["rounds"]), f"jobs {experiment}", disable=None, leave=False):
        for checkout in s["checkouts"]:
            with tempfile.TemporaryDirectory(dir=s["folder"]) as folder:
                seconds[checkout].append(_measure_once(checkout, Path(folder), overrides))
    return {
        checkout: {name: median(of_round[name] for of_round in rounds) for name in rounds[0]}
        for checkout, rounds in seconds.items()
    }


def _measure_once(checkout: str, folder: Path, overrides: Sequence[str]) -> dict[str, float]:
    run = folder / "run"
    seconds = {"run": _train(checkout, folder, [*overrides, f"hydra.run.dir={run}"])}
    parts = read_json(run / "summary.json")["seconds"]
    seconds["steps"] = parts["training_steps"]
    seconds["rest_of_fit"] = parts["fit"] - parts["training_steps"]
    seconds["score"] = parts["score"]
    seconds["start"] = seconds["run"] - parts["fit"] - parts["score"]
    sweep = [*SWEEP, f"hydra.sweep.dir={folder / 'sweep'}"]
    return seconds | {"sweep": _train(checkout, folder, [*overrides, *sweep])}


def _train(checkout: str, folder: Path, arguments: Sequence[str]) -> float:
    """Run train.py of a checkout; return the seconds that it took."""
    command = [sys.executable, str(Path(checkout, "scripts", "train.py")), *arguments]
    # One cache for all: reading pictures is the part `load`.
    variables = {"PYTHONPATH": checkout, "SEGLAB_CACHE": str(folder.parent / "cache")}
    environment = os.environ | variables
    environment.pop("GOMP_SPINCOUNT", None)  # which each checkout sets itself, or not
    began = time.monotonic()
    process = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if process.returncode:
        raise InputError(f"{' '.join(command)}: {process.stderr.strip().splitlines()[-1]}")
    return time.monotonic() - began


def format_jobs(jobs: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[str]:
    """Format the figures as lines of a table."""
    lines = [f"{'seconds':38}{'run':>8}{'start':>8}{'steps':>8}{'rest':>8}{'score':>8}{'sweep':>8}"]
    for name, by_checkout in jobs.items():
        for i, seconds in enumerate(by_checkout.values()):
            columns = ("run", "start", "steps", "rest_of_fit", "score", "sweep")
            values = "".join(f"{seconds[column]:8.1f}" for column in columns)
            lines.append(f"{name + ', other checkout' * (i > 0):38}{values}")
    return lines
