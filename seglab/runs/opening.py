"""Opens untrusted run directories, and loads their networks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from seglab.core.errors import InputError
from seglab.data.splits import read_split
from seglab.runs.loading import read_config
from seglab.runs.paths import RunPaths
from seglab.runs.records import Run, read_run

if TYPE_CHECKING:
    from torch import nn


def open_run(path: str | Path, trust: tuple[str, ...] = ()) -> Run:
    """Opens a run directory of anyone: nothing in it is unpickled or run.

    After this its config may be used to build data and network.

    Args:
        path: The directory.
        trust: Names that its config may hold as `_target_` besides seglab's allowed targets,
            such as 'my_networks.MyNet'.

    Raises:
        InputError: A file is missing or damaged, or the config names code that is not trusted.
    """
    path = Path(path)
    paths = RunPaths(path)
    if not paths.record.is_file():
        raise InputError(
            f"{path}: no run directory (it holds no run.json); expected one of train.py's"
        )
    read_config(paths.config, trust)
    run = read_run(path)
    sections = ("git", "modules", "versions", "machine")
    if not all(isinstance(run.record.get(section), dict) for section in sections):
        raise InputError(f"{paths.record}: is no record of a run; restore it")
    if read_split(paths.split).hash != run.provenance.split_hash:
        raise InputError(
            f"{paths.split}: is not the split that the run was trained on; put the run's own files "
            "back"
        )
    return run


def load_run_network(run: Run, trust: tuple[str, ...] = ()) -> tuple[nn.Module, dict[str, Any]]:
    """Loads the chosen network of a run, and checks that the checkpoint is of this run.

    Args:
        run: As `open_run` returns it.
        trust: As in `load_network`.

    Returns:
        As `load_network`.

    Raises:
        InputError: As `load_network`; or the checkpoint was made with another split or config.
    """
    from seglab.runs.checkpoints import load_network  # imports torch

    file = run.paths.best_checkpoint
    net, metadata = load_network(file, trust)
    if run.provenance.split_hash != metadata["split_hash"]:
        raise InputError(
            f"{run.paths.split}: is not the split that {file} was trained on; put the run's own "
            "files back"
        )
    stored = metadata["config"]
    for key, old, new in (
        ("model", stored["model"], run.config["model"]),
        ("data.size", stored["data"]["size"], run.config["data"]["size"]),
    ):
        if old != new:
            raise InputError(
                f"{file}: holds another network than {run.paths.config} says ({key}: {old}, not "
                f"{new}); put the run's own files back"
            )
    return net, metadata
