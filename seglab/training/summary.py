"""Scores a trained network at native resolution, and writes tables, figures and the summary."""

import logging
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from seglab.analysis.figures import ERROR_LEGEND, colorize_mask, error_map, save_cases
from seglab.analysis.statistics import aurc_intervals, intervals
from seglab.analysis.tables import Table, format_plain
from seglab.core.commands import format_command, quote_for_shell
from seglab.core.files import read_csv, read_json, write_csv
from seglab.data.attributes import describe_case
from seglab.data.classes import Classes
from seglab.data.datamodule import SegmentationDataModule
from seglab.data.sets import join_sets
from seglab.data.splits import read_split
from seglab.inference.predictor import make_predictor, tune_threshold
from seglab.inference.scoring import (
    ScoredCase,
    Scores,
    baseline_predictors,
    join_rows,
    score_sets,
    summarize_sets,
)
from seglab.metrics.scores import mean_terms
from seglab.networks.cost import multiply_adds
from seglab.runs.checkpoints import load_network, set_threshold
from seglab.runs.loading import list_targets, parse_config, untrusted_targets
from seglab.runs.paths import RunPaths, refuse_damaged
from seglab.runs.tables import select_scores
from seglab.schema import Inference
from seglab.training.build import Components

log = logging.getLogger(__name__)

FIRST_CASES = 5  # that figures show
WORST_CASES = 10
MAX_EDGE = 1000  # pixels; a figure shows no more


def score_run(paths: RunPaths, config: Mapping[str, Any], components: Components) -> dict[str, Any]:
    """Scores val and test with best.ckpt, read back from disk, and the baselines.

    Writes val_cases.csv, test_cases.csv, case_attributes.csv, baseline_cases.csv and figures, and a
    tuned threshold into best.ckpt.
    Returns the content of summary.json except times.
    """
    data, device = components.data, components.trainer.strategy.root_device
    net, metadata = load_network(paths.best_checkpoint, trust=list_targets(config))
    inference = Inference(**config["inference"])
    predict = make_predictor(net, data.size, device, inference.tta)
    val_cases, test_cases = data.subset_cases("val"), data.subset_cases("test")
    threshold, best_epoch = config["task"]["threshold"], metadata["epoch"]
    if inference.tune_threshold:
        threshold = tune_threshold(predict, val_cases, threshold, inference)
        # Whoever uses the checkpoint alone must know it. A run that is killed before or after
        # this and goes on chooses the same threshold again.
        set_threshold(paths.best_checkpoint, threshold)
    val: dict[str, float] = {}
    if val_cases:
        scored_val = score_sets(predict, val_cases, threshold, inference, "scoring val")
        write_csv(paths.val_cases, join_rows(scored_val))
        val = join_sets({name: scored.values for name, scored in scored_val.items()}) | {
            name.removeprefix("val/"): value
            for name, value in components.recorder.rows[best_epoch - 1].items()
            if name.startswith("val/") and name.endswith("_net")
        }
    figures: dict[str, CaseFigures] = defaultdict(CaseFigures)
    attributes = []

    def on_case(case: ScoredCase) -> None:
        figures[case.case.set].add(case)
        attributes.append(describe_case(case.case, case.image, case.target))

    test = score_sets(predict, test_cases, threshold, inference, "scoring test", on_case=on_case)
    write_csv(paths.test_cases, join_rows(test))
    write_csv(paths.case_attributes, attributes)
    for name, of_set in figures.items():
        of_set.save(paths.figures, data.classes, name)
    return {
        "val": val,
        **summarize_sets(test),
        "intervals": {"test": join_sets({name: _risk_intervals(s) for name, s in test.items()})},
        "baselines": score_baselines(paths, data),
        "best_epoch": best_epoch,
        "threshold": threshold,
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "multiply_adds": multiply_adds(net, data.size),
    }


def _risk_intervals(scored: Scores) -> dict[str, list[float]]:
    """Returns 95 % intervals of `RISK_METRICS` over cases; classes are averaged as in scores."""
    rows = [row for row in scored.rows if not scored.classes or row["class"] in scored.classes]
    n_classes = max(1, len(scored.classes))
    confidence, dice = (
        np.array([row[name] for row in rows]).reshape(-1, n_classes).T
        for name in ("confidence", "dice_per_image")
    )
    aurc, oracle = aurc_intervals(np.stack([confidence, dice]), dice).tolist()
    (chance,) = intervals(mean_terms(1 - dice, np.ones(dice.shape, bool))[None]).tolist()
    return {"aurc": aurc, "aurc_random": chance, "aurc_oracle": oracle}


def score_baselines(paths: RunPaths, data: SegmentationDataModule) -> dict[str, dict[str, float]]:
    """Scores the trivial baselines on the test cases, and writes baseline_cases.csv."""
    masks = data.cache.masks[data.subset_indices("train")]
    mean_mask = np.stack([(masks == number).mean(0) for number in data.classes.numbers])
    rows: list[dict[str, Any]] = []
    values = {}
    for name, predict in baseline_predictors(mean_mask).items():
        by_set = score_sets(predict, data.subset_cases("test"), 0.5, name=f"scoring {name}")
        values[name] = join_sets({data_set: scored.values for data_set, scored in by_set.items()})
        rows += [{"baseline": name} | row for row in join_rows(by_set)]
    write_csv(paths.baseline_cases, rows)
    return values


class CaseFigures:
    """Keeps the first test cases and those with the lowest Dice, and draws them."""

    def __init__(self) -> None:
        self.first: list[ScoredCase] = []
        self.worst: list[ScoredCase] = []

    def add(self, scored: ScoredCase) -> None:
        """Keeps a case, in the resolution of a figure, as long as it is among those to be drawn."""
        step = 1 + max(scored.pred.shape) // MAX_EDGE
        image, target, pred, confidence = (
            array[::step, ::step].copy()
            for array in (scored.image, scored.target, scored.pred, scored.prob.max(0))
        )
        small = replace(scored, image=image, target=target, pred=pred, prob=confidence[None])
        if len(self.first) < FIRST_CASES:
            self.first.append(small)
        self.worst = sorted([*self.worst, small], key=lambda case: case.dice)[:WORST_CASES]

    def save(self, folder: Path, classes: Classes, data_set: str = "") -> None:
        """Writes predictions.png and worst.png, or of a set as in worst-ph2.png."""
        confidence = "confidence" if classes.is_multiclass else "probability"
        for name, cases in (("predictions", self.first), ("worst", self.worst)):
            columns = {
                "image": [case.image for case in cases],
                "target": [colorize_mask(case.target, classes) for case in cases],
                "prediction": [colorize_mask(case.pred, classes) for case in cases],
                confidence: [case.prob[0] for case in cases],
                "errors": [error_map(case.pred, case.target) for case in cases],
            }
            names = [f"{c.case.id}\n{c.case.diagnosis}\nDice {c.dice:.3f}" for c in cases]
            note = f"errors: {ERROR_LEGEND}"
            file = folder / ("-".join(filter(None, (name, data_set))) + ".png")
            save_cases(file, columns, names, note=note, legend=classes)


def draw_training_pairs(path: Path, data: SegmentationDataModule) -> None:
    """Draws the first training cases as the network sees them, without augmentation."""
    rows = data.subset_indices("train")[:FIRST_CASES]
    columns = {
        "image": [data.cache.images[row] for row in rows],
        "mask": [colorize_mask(data.cache.masks[row], data.classes) for row in rows],
    }
    save_cases(path, columns, [data.cases[row].id for row in rows], legend=data.classes)


def log_summary(paths: RunPaths) -> None:
    """Logs a short table of the scores of each data set of a run, and where its files are."""
    split = read_split(paths.split)
    config = parse_config(paths.config)
    tables = []
    with refuse_damaged(paths.summary) as file:
        summary = read_json(file)
        for name in config["data"].get("sets") or ("",):
            columns = {"val": summary["val"]} if summary["val"] else {}
            columns |= {"test": summary["test"]} | summary.get("classes", {}) | summary["baselines"]
            columns = {key: select_scores(values, name) for key, values in columns.items()}
            body = [
                [metric, *(f"{v[metric]:.4f}" if metric in v else "" for v in columns.values())]
                for metric in columns["test"]
            ]
            n_val, n_test = (
                len(select_scores(dict.fromkeys(ids), name)) for ids in (split.val, split.test)
            )
            title = (
                f"native resolution, {n_val} val and {n_test} test cases{name and f' of {name}'}; "
                f"weights of epoch {summary['best_epoch']}; baselines on test"
            )
            if body:
                tables.append(Table(title, ["", *columns], 1, body, []))
    notes = [f"run directory  {paths.folder}"]
    if paths.tensorboard.exists():
        look = quote_for_shell("tensorboard", "--logdir", paths.folder)
        notes.append(f"look at it     {look}")
    trust = [f"--trust={name}" for name in untrusted_targets(config)]
    predict = format_command("predict", paths.folder, *trust, "IMAGES", "--out", "masks")
    notes += [
        f"predict        {predict}",
        f"score again    {format_command('evaluate', paths.folder, *trust)}",
    ]
    tables[-1] = tables[-1]._replace(notes=notes)
    log.info("%s", "\n\n".join(format_plain(table, width=None) for table in tables))
    if not any(int(row["tp"]) + int(row["fp"]) for row in read_csv(paths.test_cases)):
        log.warning(
            "nothing was found in any test case, all masks are empty; train longer, with "
            "trainer.max_epochs=..., and look at figures/curves.png"
        )
