"""The test loss of the published recipe, as its callback logs it."""

import json
import math
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny import Ended, train_command

from seglab.core.files import read_csv
from seglab.data.images import read_image
from seglab.data.layouts import find_cases
from seglab.data.masks import read_mask
from seglab.data.resizing import to_network_size
from seglab.runs.checkpoints import load_network


def recipe_loss(run: Path, root: Path) -> float:
    """The recipe's loss over a run's test cases, by hand."""
    net, _ = load_network(run / "checkpoints" / "last.ckpt")
    test = json.loads((run / "splits.json").read_text())["test"]
    losses = []
    for case in find_cases(root):
        if case.id in test:
            image, mask = to_network_size(read_image(case.image), read_mask(case.mask), 32)
            x = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
            with torch.no_grad():
                p = torch.sigmoid(torch.sigmoid(net(x)))[0, 0].double().numpy()
            losses.append(-np.where(mask, np.log(p), np.log(1 - p)).mean())
    assert len(losses) == len(test)
    return float(np.mean(losses))


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


@pytest.mark.slow
def test_the_recipe_sees_one_test_loss_on_two_devices(
    tiny_ph2: Path, cache_dir: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    split = ["data.split.fold=0", "data.split.folds=3"]  # 7 test cases: 4 on one device, 3 on one
    devices = ["trainer.devices=2", "trainer.strategy=ddp", "task.optimizer.lr=0.05"]
    arguments = train_command(run, tiny_ph2, cache_dir, "experiment=recipe", *split, *devices)
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    logged = float(read_csv(run / "metrics.csv")[-1]["test/loss"])
    assert logged == pytest.approx(recipe_loss(run, tiny_ph2), abs=1e-6)
