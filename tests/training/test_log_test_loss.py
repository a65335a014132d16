"""The test loss of the published recipe, as its callback logs it."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.recipe import recipe_loss
from helpers.tiny import Ended

from seglab.core.files import read_csv


def test_the_recipe_repeats_its_errors(
    tiny_ph2: Path, tiny_train: Callable[..., Ended], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    ended = tiny_train(run, "experiment=recipe", "trainer.max_epochs=4", "task.optimizer.lr=0.05")
    assert ended.code == 0, ended.err
    rows = read_csv(run / "metrics.csv")
    summary = json.loads((run / "summary.json").read_text())
    split = json.loads((run / "splits.json").read_text())
    assert split["val"] == []
    assert summary["val"] == {}
    assert summary["best_epoch"] == 4  # the last
    for row in rows:
        # Two sigmoids: no pixel falls under 0.313 (lesion) or 0.693 (background).
        for name in ("train/loss", "test/loss"):
            assert math.log(1 + math.exp(-1)) < float(row[name]) < math.log(1 + math.e)
    lines = [x for x in (run / "train.log").read_text().splitlines() if " INFO epoch " in x]
    for line, row in zip(lines, rows, strict=True):
        assert f"test/loss {float(row['test/loss']):.4f}" in line  # its own epoch's, not the last
    assert float(rows[-1]["test/loss"]) == pytest.approx(recipe_loss(run, tiny_ph2), abs=1e-5)
