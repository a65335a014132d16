"""Describes what a run depends on: code, versions, machine, data."""

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from hydra.utils import get_object

from seglab import __version__
from seglab.config import is_encoder_unet
from seglab.core.errors import InputError
from seglab.core.files import hash_file, hash_json
from seglab.runs.loading import list_targets
from seglab.runs.paths import checkpoint_file

# Files of these kinds are the code of an experiment even before git tracks them.
_CODE = (".py", ".toml", ".yaml", ".yml")


def read_code_state() -> tuple[dict[str, Any], str]:
    """Reads the state of the code that seglab is imported from.

    Returns:
        `source_sha256`, over seglab's own Python files; `commit` and `dirty`, None outside a git
        checkout; and the diff against the commit, with new code that git does not track yet,
        empty where there is none.
    """
    folder = Path(__file__).resolve().parents[1]  # seglab/
    source = hash_json(
        {file.relative_to(folder).as_posix(): hash_file(file) for file in folder.rglob("*.py")}
    )

    def git(*args: str, where: str | Path = folder) -> str | None:
        done = subprocess.run(
            ["git", "-C", str(where), *args], capture_output=True, text=True, errors="replace"
        )
        return None if done.returncode > 1 else done.stdout  # 1: the files differ

    state = {"source_sha256": source, "commit": None, "dirty": None}
    try:
        top, commit = git("rev-parse", "--show-toplevel"), git("rev-parse", "HEAD")
    except OSError:  # no git
        return state, ""
    # An environment may lie in a checkout of something else.
    if top is None or commit is None or not git("ls-files", "__init__.py"):
        return state, ""
    top, diff = top.strip(), git("diff", "HEAD") or ""
    untracked = git("ls-files", "--others", "--exclude-standard", "-z", where=top) or ""
    for name in untracked.split("\0"):
        if name.endswith(_CODE):
            diff += git("diff", "--no-index", "--", "/dev/null", name, where=top) or ""
    return state | {"commit": commit.strip(), "dirty": bool(diff)}, diff


def hash_modules(config: dict[str, Any]) -> dict[str, str]:
    """Hashes the code outside seglab and the pretrained weights that a trusted config names.

    Returns:
        SHA-256 by module name of each module outside seglab that a `_target_` names, or in which
        the object is defined that it names; and that of the weights, under 'model.weights', and
        of the checkpoint that training starts from, under 'init', if it is there.
    """
    names = list_targets(config)
    modules = {name.rpartition(".")[0] for name in names}
    modules |= {getattr(get_object(name), "__module__", None) or "" for name in names}
    hashes = {}
    for name in sorted(modules):
        file = getattr(sys.modules.get(name), "__file__", None)
        if file and name.split(".")[0] != "seglab" and Path(file).is_file():
            hashes[name] = hash_file(file)
    if config["init"]:
        file = checkpoint_file(config["init"])
        return hashes | ({"init": hash_file(file)} if file.is_file() else {})
    return hashes | hash_pretrained_weights(config["model"])


def hash_pretrained_weights(model: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of the file of weights that a network starts from, under 'model.weights', if any."""
    if not is_encoder_unet(model) or not model.get("weights"):
        return {}
    import torch

    from seglab.networks.encoders import ENCODERS, weights_path

    with torch.device("meta"):  # draws no random numbers
        encoder = ENCODERS[model["encoder"]]()
    try:
        path = weights_path(encoder, model["weights"])
    except ValueError as error:
        raise InputError(f"model: {error}") from error
    return {"model.weights": hash_file(path)}


def installed_versions() -> dict[str, str]:
    """Returns the versions of Python, of seglab and of each installed distribution, by name."""
    every = (distribution.metadata for distribution in distributions())  # a file read for each
    found = {metadata["Name"]: metadata["Version"] for metadata in every if metadata["Name"]}
    # seglab need not be installed to be imported, from a checkout in PYTHONPATH.
    python = {"python": platform.python_version(), "seglab": __version__}
    return python | dict(sorted(found.items(), key=str))


def describe_machine() -> dict[str, Any]:
    """Returns host, processor, number of threads and accelerators."""
    import torch

    return {
        "host": platform.node(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cuda": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def describe_changed_files(then: dict[str, str], now: dict[str, str]) -> list[str]:
    """Returns which of the data's files differ between two states, in words, sorted by name."""
    words = {name: "changed" for name in then if now.get(name) != then[name]}
    words |= {name: "is missing" for name in then if name not in now}
    words |= {name: "is new" for name in now if name not in then}
    return [f"{name} {word}" for name, word in sorted(words.items())]


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:  # no Linux
        pass
    return platform.processor() or platform.machine()
