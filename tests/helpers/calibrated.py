"""Sweeps over folds whose tables are written by hand, around the network of a trained run."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from helpers.spoil import change_config

from seglab.core.files import write_csv, write_json
from seglab.data.splits import Split


def write_fold_sweep(folder: Path, run: Path, folds: int, seeds: Sequence[int] = (0,)) -> Path:
    """Write a sweep of copies of a run of the tiny PH2; each fold has tested every folds-th case.

    Confidence of each case is drawn, and about as high as its Dice.
    """
    for seed in seeds:
        for fold in range(folds):
            _write_fold(folder / f"seed-{seed}-fold-{fold}", run, seed, fold, folds)
    return folder


def _write_fold(member: Path, run: Path, seed: int, fold: int, folds: int) -> None:
    shutil.copytree(run, member, ignore=shutil.ignore_patterns("figures", "*.onnx"))

    def change(config: dict) -> None:
        config["seed"], config["run_dir"] = seed, str(member)
        config["data"]["split"] |= {"fold": fold, "folds": folds}

    change_config(member, change)
    stored = json.loads((member / "splits.json").read_text())
    ids = sorted(stored["sha256"])
    test = ids[fold::folds]
    train = [id for id in ids if id not in test]
    values = {k: v for k, v in stored.items() if k != "hash"}
    split = Split(**values | {"train": train[2:], "val": train[:2], "test": test})
    write_json(member / "splits.json", split.to_json())
    record = json.loads((member / "run.json").read_text())
    write_json(member / "run.json", record | {"split_hash": split.hash, "seed": seed})
    random = np.random.default_rng([seed, fold])
    rows = []
    for id in test:
        tp, fp, fn = (int(n) for n in random.integers((800, 0, 0), (1000, 300, 300)))
        dice = 2 * tp / (2 * tp + fp + fn)
        confidence = min(1.0, max(0.0, dice + float(random.normal(0, 0.05))))
        counts = {"tp": tp, "fp": fp, "fn": fn, "tn": 700}
        boundary = {"hd95": 1.0, "surface_dice": 0.5, "outline_shift": ""}
        boundary |= {"missed_pieces": 0, "extra_pieces": 0}
        confidences = {"confidence": confidence, "view_dice": ""}
        rows.append({"id": id, "diagnosis": "melanoma", **counts, **boundary, **confidences})
    write_csv(member / "test_cases.csv", rows)
