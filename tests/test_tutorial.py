"""The tutorial: a notebook in percent format, and as a process from start to end, as it is."""

import builtins
import os
import re
import subprocess
import symtable
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny import ONE_THREAD, REPO
from PIL import Image

from seglab.core.files import read_csv, read_json
from seglab.data.synthetic import synthetic_cases

SCRIPT = REPO / "scripts" / "tutorial.py"


@pytest.fixture(scope="module")
def cells() -> list[tuple[str, str]]:
    """Kind and body of each cell, split as jupytext splits them."""
    parts = re.split(r"^(# %%.*)\n", SCRIPT.read_text(), flags=re.MULTILINE)
    assert parts[0] == ""
    return list(zip(parts[1::2], parts[2::2], strict=True))


def test_each_cell_is_text_or_code_that_uses_what_is_above(
    cells: list[tuple[str, str]],
) -> None:
    known = {*dir(builtins), "__file__"}
    kinds = [kind for kind, _ in cells]
    assert {*kinds} == {"# %%", "# %% [markdown]"}
    assert kinds[0] == kinds[-1] == "# %% [markdown]"
    for kind, body in cells:
        if kind != "# %%":
            assert all(line.startswith("#") for line in body.splitlines() if line)
            continue
        table = symtable.symtable(body, "cell", "exec")
        scopes = [table, *table.get_children()]
        known |= {s.get_name() for s in table.get_symbols() if s.is_assigned() or s.is_imported()}
        known |= {scope.get_name() for scope in scopes if scope.get_type() != "module"}
        used = {
            symbol.get_name()
            for scope in scopes
            for symbol in scope.get_symbols()
            if symbol.is_referenced() and (scope is table or symbol.is_global())
        }
        assert used <= known


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

    (double,) = (tmp_path / "runs" / "tutorial").glob("segnet-double-*")
    (plain,) = (p for p in double.parent.glob("segnet-*") if p != double)
    train = {*read_json(double / "splits.json")["train"]}
    shares = [
        (np.asarray(Image.open(case.mask)) > 0).mean()
        for case in synthetic_cases(tmp_path / "data" / "synthetic", n=100)
        if case.id in train
    ]
    least = np.log(1 + np.exp(-1)) * np.mean(shares) + np.log(2) * (1 - np.mean(shares))
    losses = [
        [float(r["train/loss"]) for r in read_csv(p / "metrics.csv")] for p in (double, plain)
    ]
    # Lesion's share of masks at network size differs a little from that of the files.
    assert min(losses[0]) > least - 0.01
    assert min(losses[1]) < least

    # What it prints is what the runs hold.
    dice = read_json(plain / "summary.json")["test"]["dice_per_image"]
    assert re.search(rf"^bce .* Dice {dice:.3f},", done.stdout, re.MULTILINE)
