"""Describes what a run depends on: code, versions, machine, data."""

from __future__ import annotations

import hashlib
import io
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from seglab.config import takes_weights
from seglab.core.errors import InputError
from seglab.core.files import hash_file, hash_json

# Files of these kinds are the code of an experiment even before git tracks them.
_CODE = (".py", ".toml", ".yaml", ".yml")
_MAX_CODE = 2**20


def read_code_state() -> tuple[dict[str, Any], str]:
    """Reads the state of the code that seglab is imported from.

    Returns:
        `source_sha256`, over seglab's own Python files; `commit`, `dirty` and `diff_sha256`,
        each None outside a git checkout; and the diff against the commit, empty where there is
        none. New code that git does not track yet is in the diff as well; other such files, as
        pictures, are not.
    """
    folder = Path(__file__).resolve().parents[1]  # seglab/
    source = hash_json(
        {
            file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in folder.rglob("*.py")
        }
    )

    def git(*args: str, where: Path = folder) -> str | None:
        done = subprocess.run(
            ["git", "-C", str(where), *args], capture_output=True, text=True, errors="replace"
        )
        return None if done.returncode else done.stdout

    state = {"source_sha256": source, "commit": None, "dirty": None, "diff_sha256": None}
    try:
        top = git("rev-parse", "--show-toplevel")
        commit = git("rev-parse", "HEAD")
    except OSError:  # no git
        return state, ""
    if top is None or commit is None:
        return state, ""
    diff = git("diff", "HEAD") or ""
    untracked = git("ls-files", "--others", "--exclude-standard", "-z", where=Path(top.strip()))
    for name in filter(None, (untracked or "").split("\0")):
        diff += _as_diff(Path(top.strip()), name)
    digest = hashlib.sha256(diff.encode()).hexdigest() if diff else None
    return state | {"commit": commit.strip(), "dirty": bool(diff), "diff_sha256": digest}, diff


def hash_modules(modules: Iterable[str]) -> dict[str, str]:
    """Returns the SHA-256 of the files of modules outside seglab, by name, if they have a file."""
    hashes = {}
    for name in sorted(modules):
        file = getattr(sys.modules.get(name), "__file__", None)
        if file and name.split(".")[0] != "seglab" and Path(file).is_file():
            hashes[name] = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    return hashes


def hash_pretrained_weights(model: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of the file of weights that a network starts from.

    Args:
        model: The config's section.

    Returns:
        By the key that names it, `model.weights`; empty from scratch.

    Raises:
        InputError: It cannot be had or read.
    """
    if not takes_weights(model) or not model.get("weights"):
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
    """Returns the version of Python and of each installed distribution, by name."""
    every = (distribution.metadata for distribution in distributions())  # a file read for each
    found = {metadata["Name"]: metadata["Version"] for metadata in every if metadata["Name"]}
    return {"python": platform.python_version()} | dict(sorted(found.items(), key=str))


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


def determinism_flags() -> dict[str, Any]:
    """Returns the flags that decide whether the same command gives the same weights."""
    import torch

    return {
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "cublas_workspace_config": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        "python_hash_seed": os.environ.get("PYTHONHASHSEED"),
    }


def describe_changed_files(then: dict[str, str], now: dict[str, str]) -> list[str]:
    """Returns which of the data's files differ between two states, in words, sorted by name."""
    words = {name: "changed" for name in then if now.get(name) != then[name]}
    words |= {name: "is missing" for name in then if name not in now}
    words |= {name: "is new" for name in now if name not in then}
    return [f"{name} {word}" for name, word in sorted(words.items())]


def _as_diff(root: Path, name: str) -> str:
    """Returns an untracked file of code as git would show it; empty for any other file."""
    if not name.endswith(_CODE):
        return ""
    file = root / name
    try:
        size = file.stat().st_size
        if size > _MAX_CODE:
            return f"untracked: {name}, {size} bytes\n"
        # Lines as git counts them, ended by a line feed alone.
        lines = io.StringIO(file.read_bytes().decode("utf-8", "replace"), "\n").readlines()
    except OSError:
        return f"untracked: {name}, cannot be read\n"
    head = f"diff --git a/{name} b/{name}\nnew file mode 100644\n"
    if not lines:
        return head
    end = "" if lines[-1].endswith("\n") else "\n\\ No newline at end of file\n"
    head += f"--- /dev/null\n+++ b/{name}\n@@ -0,0 +1,{len(lines)} @@\n"
    return head + "".join(f"+{line}" for line in lines) + end


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:  # no Linux
        pass
    return platform.processor() or platform.machine()
