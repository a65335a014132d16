"""What a run ran on: code, versions, machine."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from importlib.metadata import distributions
from pathlib import Path
from typing import Any


def code_state() -> tuple[dict[str, Any], str]:
    """State of the checkout that seglab is imported from.

    Returns:
        `commit`, `dirty` and `diff_sha256`, each None outside a git checkout; and the diff
        against the commit, empty where there is none. Files that git does not track are listed
        in the diff by name.
    """
    folder = Path(__file__).resolve().parent

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *args], capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout

    commit = git("rev-parse", "HEAD")
    if commit is None:
        return {"commit": None, "dirty": None, "diff_sha256": None}, ""
    untracked = git("ls-files", "--others", "--exclude-standard", "--full-name", ":/") or ""
    diff = git("diff", "HEAD") or ""
    diff += "".join(f"untracked: {file}\n" for file in untracked.splitlines())
    digest = hashlib.sha256(diff.encode()).hexdigest() if diff else None
    return {"commit": commit.strip(), "dirty": bool(diff), "diff_sha256": digest}, diff


def versions() -> dict[str, str]:
    """Python's and every installed distribution's version, by name."""
    found = {d.metadata["Name"]: d.version for d in distributions() if d.metadata["Name"]}
    return {"python": platform.python_version()} | dict(sorted(found.items(), key=str))


def machine() -> dict[str, Any]:
    """Processor, threads and accelerators."""
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


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:  # no Linux
        pass
    return platform.processor() or platform.machine()
