"""What a run says of its code: commit, diff, hash, in a checkout of its own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny import REPO

from seglab.runs.provenance import describe_changed_files


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=n", "-c", "user.email=e", "-c", "core.autocrlf=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def state(folder: Path) -> tuple[dict[str, Any], str]:
    code = "import json, seglab.runs.provenance as p; print(json.dumps(p.read_code_state()))"
    environment = os.environ | {
        "PYTHONPATH": str(folder),
        "GIT_CEILING_DIRECTORIES": str(folder.parent),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], cwd="/", env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found, diff = json.loads(done.stdout)
    return found, diff


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A clean checkout of seglab's package."""
    folder = tmp_path / "checkout"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPO / "seglab", folder / "seglab", ignore=ignore)
    (folder / ".gitignore").write_text("__pycache__/\n")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "all")
    return folder


def test_a_clean_checkout_is_its_commit_and_without_git_its_hash(checkout: Path) -> None:
    with_git, diff = state(checkout)
    assert with_git["commit"] == git(checkout, "rev-parse", "HEAD").strip()
    assert (with_git["dirty"], diff) == (False, "")
    shutil.rmtree(checkout / ".git")
    without_git = state(checkout)
    found, diff = without_git
    assert found["source_sha256"] == with_git["source_sha256"]
    assert (found["commit"], found["dirty"], diff) == (None, None, "")
    # Installed into an environment in a checkout of something else.
    git(checkout, "init", "-q")
    git(checkout, "add", ".gitignore")
    git(checkout, "commit", "-qm", "other")
    assert state(checkout) == without_git


def test_the_diff_brings_all_code_back(checkout: Path, tmp_path: Path) -> None:
    clean, _ = state(checkout)
    changed = checkout / "seglab" / "losses.py"
    changed.write_text(changed.read_text() + "# changed\n")
    new = {
        "seglab/mine.py": "a = 1\n\x0cb = 2",  # a form feed is no line's end, and the last has none
        "conf/model/mine.yaml": "_target_: seglab.mine\n",
        "seglab/empty.py": "",
        "größe.py": "ä = 1\n",
    }
    for name, text in new.items():
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text(text)
    (checkout / "notes.bin").write_bytes(b"\0" * 7)
    found, diff = state(checkout)
    assert found["dirty"] is True
    assert found["commit"] == clean["commit"]
    assert found["source_sha256"] != clean["source_sha256"]
    assert "notes.bin" not in diff
    (tmp_path / "code.diff").write_text(diff)
    git(tmp_path, "clone", "-q", str(checkout), "again")
    git(tmp_path / "again", "apply", str(tmp_path / "code.diff"))
    for name, text in new.items():
        assert (tmp_path / "again" / name).read_text() == text
    assert (tmp_path / "again" / "seglab" / "losses.py").read_text() == changed.read_text()
    assert state(tmp_path / "again")[0]["source_sha256"] == found["source_sha256"]


def test_changed_files_are_told_apart() -> None:
    then = {"a": "1", "b": "2", "c": "3"}
    assert describe_changed_files(then, dict(then)) == []
    assert describe_changed_files(then, {"a": "1", "b": "9", "d": "4"}) == [
        "b changed",
        "c is missing",
        "d is new",
    ]
