"""The tutorial: a notebook in percent format, and as a process from start to end, as it is."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny import ONE_THREAD, REPO
from PIL import Image

from seglab.core.files import read_json

SCRIPT = REPO / "scripts" / "tutorial.py"


def test_it_is_split_as_jupytext_splits_cells() -> None:
    parts = re.split(r"^(# %%.*)\n", SCRIPT.read_text(), flags=re.MULTILINE)
    assert parts[0] == ""
    cells = list(zip(parts[1::2], parts[2::2], strict=True))
    assert {kind for kind, _ in cells} == {"# %%", "# %% [markdown]"}
    for kind, body in cells:
        if kind == "# %%":
            compile(body, "cell", "exec")
        else:
            assert all(line.startswith("#") for line in body.splitlines() if line)


@pytest.mark.slow
def test_runs_from_start_to_end(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        cwd=tmp_path,
        env=os.environ
        | ONE_THREAD
        | {"SEGLAB_TUTORIAL": "", "SEGLAB_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    named = re.findall(r"^figure: (.*)$", done.stdout, re.MULTILINE)
    assert {Path(path).stem for path in named} == {
        *re.findall(r'^show(?:_predictions)?\("(.*?)"', SCRIPT.read_text(), re.MULTILINE)
    }
    for path in named:
        assert np.ptp(np.asarray(Image.open(tmp_path / path).convert("L"))) > 100

    # What it prints is what the runs hold.
    (plain,) = (
        p for p in (tmp_path / "runs" / "tutorial").glob("segnet-*") if "double" not in p.name
    )
    dice = read_json(plain / "summary.json")["test"]["dice_per_image"]
    assert re.search(rf"^bce .* Dice {dice:.3f},", done.stdout, re.MULTILINE)
