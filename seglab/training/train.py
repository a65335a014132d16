"""Trains one run, from a config to a finished run directory."""

import logging
import random
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from seglab.analysis import model_card
from seglab.analysis.figures import save_curves
from seglab.config import check_config
from seglab.core.errors import InputError
from seglab.core.files import write_atomic, write_json
from seglab.core.memory import keep_freed_memory
from seglab.core.signals import Interrupts
from seglab.runs import provenance
from seglab.runs.directory import RunDirectory
from seglab.runs.tables import read_val_scores
from seglab.training.build import Components, build
from seglab.training.callbacks.recorder import RunRecorder
from seglab.training.loggers import RunLoggers
from seglab.training.summary import draw_training_pairs, log_summary, score_run

log = logging.getLogger(__name__)


def train(cfg: DictConfig) -> dict[str, float]:
    """Trains, chooses on val, tests once, and leaves a run directory.

    In the directory of an interrupted run of the same config it goes on from the last finished
    epoch, and ends with the same weights as a run that was never interrupted. For a finished run
    it returns the stored values.

    Args:
        cfg: `conf/train.yaml`, composed; `run_dir` names the directory.

    Returns:
        Scores and loss of val at the chosen epoch, named `val/...`. Everything else, test
        included, is in the run directory. Empty with `trainer.fast_dev_run`.

    Raises:
        InputError: Bad input. Where it was found before the first step, a new run directory holds
            nothing but a run.json that says so, and an existing one stays as it was.
        KeyboardInterrupt: Ctrl-C, or as `Terminated` SIGTERM; finished epochs are saved.
    """
    run, interrupts = RunDirectory(cfg.run_dir), Interrupts()
    loggers = RunLoggers(run)
    with run.recording(cfg, interrupts), _quiet(), loggers.closing():
        config = check_config(cfg)
        run.check_same_config(config)
        if run.is_finished:
            log.info("finished already, %s", run.record.get("end"))
            log_summary(run.paths)
            return read_val_scores(run.path)
        loggers.build(config)
        keep_freed_memory()
        seed_everything(cfg.seed)
        components = build(config, run.path, interrupts, loggers)
        task, data, trainer = components.task, components.data, components.trainer
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.fit(task, data)
            log.info("trainer.fast_dev_run: training and validation ran; there are no results")
            return {}
        checkpoint = begin(run, config, components)
        began = time.monotonic()
        trainer.fit(task, data, ckpt_path=checkpoint)
        fit_seconds = time.monotonic() - began
        check_trained(components.recorder)
        if not trainer.is_global_zero:
            return {}
        began = time.monotonic()
        summary = score_run(run.paths, config, components)
        summary["seconds"] = {
            "fit": fit_seconds,
            "training_steps": components.recorder.train_seconds,
            "score": time.monotonic() - began,
        }
        finish(run, config, components, summary)
        log_summary(run.paths)
        return read_val_scores(run.path)


def seed_everything(seed: int) -> None:
    """Seeds Python, NumPy and torch on all devices; 0 is a seed like any other."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def begin(run: RunDirectory, config: dict[str, Any], components: Components) -> Path | None:
    """Writes what is known before the first step, and finds the checkpoint to go on from."""
    data, trainer = components.data, components.trainer
    if trainer.is_global_zero:
        modules = provenance.hash_modules(config)
        if components.initial:
            run.record["init"] = components.initial.record
        seen = data.subset_indices("train") + data.subset_indices("val")
        run.begin(
            config,
            data.split,
            data.cache.thumbnails[seen],
            data.files(),
            modules,
            components.warnings,
            components.initial.seen if components.initial else {},
        )
        run.update(device=trainer.strategy.root_device.type)
    net = components.task.net
    parameters = sum(parameter.numel() for parameter in net.parameters())
    sizes = ", ".join(f"{len(data.subset_indices(s))} {s}" for s in ("train", "val", "test"))
    log.info(
        "%s, %d parameters; %s (%s)", type(net).__name__, parameters, sizes, data.split.protocol
    )
    checkpoint, step = run.checkpoint_to_resume(components.recorder.metadata)
    if trainer.is_global_zero:
        components.recorder.loggers.begin(config, step)
    return checkpoint


def check_trained(recorder: RunRecorder) -> None:
    """Raises an InputError if no epoch was finished, or none has the monitored value."""
    if recorder.best_epoch is None:
        raise InputError(
            "trainer: no epoch was trained to its end, or none has a value of `monitor`; "
            "train longer, or look at trainer.limit_train_batches and the other limits"
        )


def finish(
    run: RunDirectory, config: dict[str, Any], components: Components, summary: dict[str, Any]
) -> None:
    """Writes and logs the summary, the model card and the figures that describe training."""
    recorder, figures = components.recorder, run.paths.figures
    summary["images_per_second"] = recorder.images / recorder.train_seconds
    recorder.write_rows()  # again: the run may have been killed before they were written
    draw_training_pairs(figures / "pairs.png", components.data)
    curve = config["monitor"] or "val/dice_per_image_net"
    save_curves(figures / "curves.png", recorder.rows, curve)
    write_json(run.paths.summary, summary)
    try:
        write_atomic(run.paths.model_card, model_card.make_model_card(run.path))
    except InputError as error:  # such as a table too large for it: no reason to lose the run
        log.warning("%s is left out: %s", run.paths.model_card.name, error)
    loggers, rows = recorder.loggers, recorder.rows
    scores = {f"val/{k}": v for k, v in summary["val"].items() if not k.endswith("_net")}
    files = [figures / "pairs.png", figures / "curves.png"]
    if not loggers.is_in_sweep:
        scores |= {f"test/{name}": value for name, value in summary["test"].items()}
        files = [*sorted(figures.glob("*")), run.paths.model_card]
    loggers.log_rows(rows)
    loggers.log_results(config, rows[-1], scores, [file for file in files if file.exists()])


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Lightning's hints off the terminal; its warnings that matter stay."""
    lightning = logging.getLogger("lightning.pytorch")
    level, excepthook = lightning.level, threading.excepthook
    lightning.setLevel(logging.WARNING)
    lightning.getChild("callbacks.model_summary").setLevel(logging.INFO)
    # TensorBoard's thread hands the error of a full disk on to whoever logs next.
    threading.excepthook = lambda args: (
        None if isinstance(args.exc_value, OSError) else excepthook(args)
    )
    with warnings.catch_warnings():
        for hint in (
            ".*does not have many workers.*",
            ".*smaller than the logging interval.*",
            ".*You requested to overfit but enabled .* dataloader shuffling.*",
            ".*in eval mode at the start of training.*",  # BatchNorm of a pretrained encoder
            ".*isinstance.treespec, LeafSpec.*",
            ".*Total length of `list` across ranks is zero.*",
            ".*`srun` command is available.*",
            ".*Experiment logs directory .* exists.*",  # CSVLogger gets all rows again
        ):
            warnings.filterwarnings("ignore", hint)
        try:
            yield
        finally:
            lightning.setLevel(level)
            threading.excepthook = excepthook
