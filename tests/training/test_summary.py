"""Figures of test cases that a run draws at its end."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.predicting import clean_by_skimage
from omegaconf import DictConfig

import seglab.training.summary
from seglab.data.classes import ONE_CLASS
from seglab.data.images import read_image
from seglab.data.layouts import find_cases
from seglab.data.masks import read_mask
from seglab.inference.predictor import make_predictor
from seglab.inference.scoring import score_cases
from seglab.runs.checkpoints import load_network
from seglab.schema import Inference
from seglab.training.train import train

PLAIN = ["logger=none", "callbacks.pictures=null", "task.optimizer.lr=0.02"]


@pytest.mark.parametrize(("threshold", "is_empty"), [(0.999, True), (0.001, False)])
def test_a_network_that_finds_nothing_is_pointed_out(
    threshold: float,
    is_empty: bool,
    tiny_config: Callable[..., DictConfig],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    overrides = [*PLAIN, "trainer.max_epochs=1", f"task.threshold={threshold}"]
    train(tiny_config(tmp_path / "run", *overrides))
    assert ("nothing was found in any test case" in capsys.readouterr().err) == is_empty


def test_the_worst_cases_come_first(
    tiny_config: Callable[..., DictConfig],
    tiny_ph2: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    figures: dict[str, tuple[dict[str, list[np.ndarray]], list[str]]] = {}

    def save(path: Path, columns: Any, names: Any, **_: Any) -> None:
        figures[path.name] = columns, names

    monkeypatch.setattr(seglab.training.summary, "save_cases", save)
    run = tmp_path / "run"
    split = ["data.split.test=0.6", "data.split.val=0.2", "trainer.max_epochs=1"]
    train(tiny_config(run, *PLAIN, *split, "inference.fill_holes=true"))
    ids = json.loads((run / "splits.json").read_text())["test"]
    by_id = {case.id: case for case in find_cases(tiny_ph2)}
    test = [by_id[id] for id in ids]
    assert len(test) == 12
    net, _ = load_network(run / "checkpoints" / "best.ckpt")
    predict = make_predictor(net, 32)
    scored = score_cases(predict, test, 0.5, Inference(fill_holes=True))
    dice = [row["dice_per_image"] for row in scored.rows]
    columns, names = figures["worst.png"]
    order = np.argsort(dice, kind="stable")[:10]
    assert [name.split("\n")[0] for name in names] == [test[i].id for i in order]
    assert names[0].split("\n")[1:] == [test[order[0]].diagnosis, f"Dice {min(dice):.3f}"]
    assert list(columns) == ["image", "target", "prediction", "probability", "errors"]
    for row, i in enumerate(order):
        image, mask = read_image(test[i].image), read_mask(test[i].mask)
        prob = predict(image).prob[0]
        pred = clean_by_skimage(prob > 0.5, False, True)
        masks = [ONE_CLASS.palette[m.astype(int)] for m in (mask, pred)]
        pictures = image, *masks, prob
        for title, picture in zip(columns, pictures, strict=False):
            assert np.array_equal(columns[title][row], picture), title
    drawn_ids = [name.split("\n")[0] for name in figures["predictions.png"][1]]
    assert drawn_ids == [case.id for case in test[:5]]
