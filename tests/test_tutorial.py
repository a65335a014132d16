"""The tutorial: a notebook in percent format, and as a process from start to end."""

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.processes import Process
from helpers.tiny import ONE_THREAD, REPO
from PIL import Image

from seglab.core.files import read_json

SCRIPT = REPO / "scripts" / "tutorial.py"
FIGURES = re.findall(r'^show(?:_predictions)?\("(.*?)"', SCRIPT.read_text(), re.MULTILINE)


def cells() -> list[tuple[str, str]]:
    """Type and body of each cell of the script."""
    parts = re.split(r"^# %%(.*)\n", SCRIPT.read_text(), flags=re.MULTILINE)
    assert parts[0] == ""
    kinds = [{"": "code", " [markdown]": "markdown"}[kind] for kind in parts[1::2]]
    return list(zip(kinds, parts[2::2], strict=True))


def test_it_is_split_as_jupytext_splits_cells() -> None:
    for kind, body in cells():
        if kind == "code":
            compile(body, "cell", "exec")
        else:
            assert all(line.startswith("#") for line in body.splitlines() if line)


def test_the_notebook_is_of_this_text_and_has_run() -> None:
    notebook = json.loads(SCRIPT.with_suffix(".ipynb").read_text())
    expected = [
        (kind, (body if kind == "code" else re.sub(r"^# ?", "", body, flags=re.M)).strip("\n"))
        for kind, body in cells()
    ]
    found = [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]
    assert found == expected, "python scripts/tutorial_notebook.py runs the text again"

    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", ())]
    texts = ["".join(output["text"]) for output in outputs if output["output_type"] == "stream"]
    figures = [line for line in "".join(texts).splitlines() if line.startswith("figure: ")]
    shown = [output for output in outputs if output["output_type"] == "display_data"]
    assert len(outputs) == len(texts) + len(shown)  # no errors
    assert len(figures) == len(shown) == len(FIGURES)
    assert all(output.get("name", "stdout") == "stdout" for output in outputs)
    for word in ("Warning", "/home/", "/root/", "/tmp/"):
        assert word not in "".join(texts)
    assert SCRIPT.with_suffix(".ipynb").stat().st_size < 1_500_000


@pytest.mark.slow
def test_runs_from_start_to_end(forks: Any, tmp_path: Path) -> None:
    short = {
        "SEGLAB_TUTORIAL": "trainer.max_epochs=1 data.cases.n=40",
        "SEGLAB_CACHE": str(tmp_path / "cache"),
    }
    environment = os.environ | ONE_THREAD | short
    process = Process(
        forks, tmp_path / "log", "tutorial", [], cwd=tmp_path, environment=environment
    )
    done = process.wait(600)
    assert done.code == 0, done.err
    named = re.findall(r"^figure: (.*)$", done.err, re.MULTILINE)
    assert {Path(path).stem for path in named} == {*FIGURES}
    for path in named:
        assert np.ptp(np.asarray(Image.open(tmp_path / path).convert("L"))) > 100

    # What it prints is what the runs hold.
    (plain,) = (
        p for p in (tmp_path / "runs" / "tutorial").glob("segnet-*") if "double" not in p.name
    )
    dice = read_json(plain / "summary.json")["test"]["dice_per_image"]
    assert re.search(rf"^bce .* Dice {dice:.3f},", done.err, re.MULTILINE)
