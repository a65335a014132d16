"""From a config to a run: the only place that builds things."""

from __future__ import annotations

import logging
import random
import re
import statistics
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from lightning import LightningModule, Trainer
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.callbacks import Callback, ProgressBar
from omegaconf import DictConfig
from torch import nn

from seglab.analysis import model_card as card
from seglab.analysis.figures import (
    ERROR_LEGEND,
    ERROR_LEGEND_OF_CLASSES,
    colorize_mask,
    error_map,
    save_cases,
    save_curves,
)
from seglab.config import Inference, check_config
from seglab.core.errors import InputError
from seglab.core.files import read_json, write_atomic, write_csv, write_json
from seglab.core.memory import keep_freed_memory
from seglab.core.signals import Interrupts
from seglab.data.cases import Case, read_pair
from seglab.data.datamodule import SegmentationDataModule
from seglab.data.splits import read_split
from seglab.inference.postprocessing import Predictor, predicted_mask
from seglab.inference.predictor import make_predictor, tune_threshold
from seglab.inference.scoring import baseline_predictors, score_cases
from seglab.networks import EncoderUNet
from seglab.networks.cost import multiply_adds
from seglab.runs import provenance
from seglab.runs.checkpoints import (
    SealedCheckpoints,
    load_network,
    read_checkpoint,
    set_threshold,
)
from seglab.runs.directory import RunDirectory
from seglab.runs.loading import list_modules
from seglab.runs.paths import RunPaths
from seglab.runs.records import read_val
from seglab.training.callbacks.recorder import RunRecorder
from seglab.training.task import SegmentationTask
from seglab.training.tensorboard import TensorBoard, log_description, log_hparams

log = logging.getLogger(__name__)

PICTURES = 5
WORST = 10
SHOWN = "val/dice_per_image_net"  # in the curves of a run that monitors nothing


@dataclass(frozen=True)
class Components:
    """What a config describes, built."""

    data: SegmentationDataModule
    task: SegmentationTask
    trainer: Trainer
    recorder: RunRecorder


def train(cfg: DictConfig) -> dict[str, float]:
    """Trains, chooses on val, tests once, and leaves a run directory.

    In a directory where a run of the same config was interrupted it goes on, and ends as that run
    would have ended; of a finished one it returns the values.

    Args:
        cfg: `conf/train.yaml`, composed; `run_dir` names the directory.

    Returns:
        Scores and loss of val at the chosen epoch, named `val/...`: what a sweep may be steered
        by. Everything else, test included, lies in the run directory.

    Raises:
        InputError: Bad input. Where it was found before the first step, the run directory holds
            nothing but a run.json that says so, or what it held before.
        KeyboardInterrupt: Ctrl-C, or as `Terminated` SIGTERM; what was done is kept.
    """
    run = RunDirectory(cfg.run_dir)
    interrupts = Interrupts()
    with run.recording(cfg, interrupts), _quiet():
        config = check_config(cfg)
        if run.is_finished(config):
            log.info("finished already, %s", run.record.get("end"))
            values = read_val(run.path)
            try:
                log_summary(run.path)
            except (KeyError, TypeError, AttributeError) as error:
                raise InputError(
                    f"{run.paths.summary}: is no summary of this run; restore it"
                ) from error
            return values
        keep_freed_memory()
        seed_everything(cfg.seed)
        parts = build(config, run.path, interrupts)
        data, trainer, recorder = parts.data, parts.trainer, parts.recorder
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.fit(parts.task, data)
            log.info("trainer.fast_dev_run: training and validation ran; nothing was saved")
            return {}
        if trainer.is_global_zero:
            code = provenance.hash_modules(
                list_modules(config)
            ) | provenance.hash_pretrained_weights(config["model"])
            run.begin(config, data.split, data.files(), code)
        model_summary = f"{type(parts.task.net).__name__}, {_count(parts.task.net):,} parameters"
        sizes = ", ".join(f"{len(data.subset_indices(p))} {p}" for p in ("train", "val", "test"))
        log.info("%s; cases: %s (%s)", model_summary, sizes, data.split.protocol)
        checkpoint, step = run.checkpoint_to_resume(recorder.metadata)
        if run.earlier and isinstance(trainer.logger, TensorBoard):
            trainer.logger.purge_after(step)
        if trainer.is_global_zero:
            run.update(device=trainer.strategy.root_device.type)
            trainer.callbacks.insert(0, _Description(run, config))  # type: ignore[attr-defined]
        began = time.monotonic()
        trainer.fit(parts.task, data, ckpt_path=checkpoint)
        seconds = {"fit": time.monotonic() - began}
        if recorder.best_epoch is None:
            raise InputError(
                f"trainer: training ended without an epoch that has monitor={config['monitor']}; "
                "train longer, look at trainer.limit_train_batches and the other limits, or set "
                "monitor=null"
            )
        # The weights alone: Lightning's own restoring would wind the recorder back as well.
        parts.task.load_state_dict(read_checkpoint(run.paths.best_checkpoint)["state_dict"])
        trainer.test(parts.task, data, verbose=False)
        if not trainer.is_global_zero:
            return {}
        recorder.write_rows()  # once more, for a run that was killed before
        began = time.monotonic()
        summary = _score(run, config, parts)
        seconds |= {"training_steps": recorder.train_seconds}
        seconds |= {"score": time.monotonic() - began}
        summary |= {
            "parameters": _count(parts.task.net),
            "multiply_adds": multiply_adds(parts.task.net, data.size),
            "seconds": seconds,
            "images_per_second": recorder.images / recorder.train_seconds,
        }
        save_curves(run.paths.figures / "curves.png", recorder.rows, config["monitor"] or SHOWN)
        log_hparams(trainer, config, summary, run.record.get("varies", {}))
        write_json(run.paths.summary, summary)
        try:
            write_atomic(run.paths.model_card, card.make_model_card(run.path))
        except InputError as error:  # such as a table too large for it: no reason to lose the run
            log.warning("%s is left out: %s", run.paths.model_card.name, error)
        log_summary(run.path)
        return read_val(run.path)


class _Description(Callback):
    """What a run is, to look at: after its first epoch, for the first step to come sooner.

    Before the first checkpoint all the same, for a run that goes on from there has it already.
    """

    def __init__(self, run: RunDirectory, config: dict[str, Any]) -> None:
        self.run = run
        self.config = config

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Draws pairs, and logs config and environment."""
        if trainer.current_epoch == 0:
            log_description(trainer, self.config, self.run.record)
            _draw_pairs(self.run.paths.figures / "pairs.png", trainer.datamodule)  # type: ignore[attr-defined]


def build(
    config: dict[str, Any], run_dir: Path, interrupts: Interrupts | None = None
) -> Components:
    """Builds data, task and trainer, and checks that they fit each other.

    Args:
        config: Checked and resolved, plain containers (`check_config`).
        run_dir: Where the recorder writes.
        interrupts: What the recorder looks at after each step; None for no signals.

    Raises:
        InputError: Whatever is wrong with the data, or a network that cannot take or give what
            it must.
    """
    net = instantiate(config["model"])
    if isinstance(net, EncoderUNet):
        net.load_weights()
    data = instantiate(config["data"])
    names = data.classes.names
    task = instantiate(config["task"], net=net, classes=names)
    _check_task(task, config["data"]["size"], names)
    data.setup()
    metadata = {
        "config": config,
        "classes": [*names],
        "colours": None if data.classes.colours is None else [*data.classes.colours],
        "threshold": config["task"]["threshold"],
        "normalisation": "images / 255",
        "split_hash": data.split.hash,
    }
    if not data.split.val and (config["monitor"] or "").startswith("val/"):
        raise InputError(
            f"data.split.file={data.split_settings['file']}: holds no val to take "
            f"monitor={config['monitor']} from; add some, or set monitor=null"
        )
    if not data.split.val and config["inference"]["tune_threshold"]:
        raise InputError(
            f"data.split.file={data.split_settings['file']}: holds no val for "
            "inference.tune_threshold=true; add some, or set it to false"
        )
    recorder = RunRecorder(
        run_dir, metadata, config["monitor"], config["monitor_mode"], interrupts or Interrupts()
    )
    callbacks = [c for c in instantiate(config["callbacks"]).values() if c is not None]
    # The bar shows what the others log.
    callbacks.sort(key=lambda callback: isinstance(callback, ProgressBar))
    logger = instantiate(config["logger"]) if config["logger"] else False
    plugins: list[Any] = [SealedCheckpoints()]
    if SLURMEnvironment.detect():
        # SLURM's own --requeue starts the same command again, which is all that it takes.
        plugins.append(SLURMEnvironment(auto_requeue=False))
    # Part of torch's determinism, to find mistakes in operators: it writes each tensor twice.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    trainer = instantiate(
        config["trainer"],
        callbacks=[*callbacks, recorder],
        logger=logger,
        plugins=plugins,
        default_root_dir=str(run_dir),
    )
    _check_devices(trainer, data)
    return Components(data, task, trainer, recorder)


def seed_everything(seed: int) -> None:
    """Seeds Python, NumPy and torch on all devices; 0 is a seed like any other."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _check_devices(trainer: Trainer, data: SegmentationDataModule) -> None:
    """Every device needs its share of each batch and of each part."""
    world = trainer.world_size
    if data.batch_size % world:
        raise InputError(
            f"data.batch_size={data.batch_size}: expected a multiple of the {world} devices"
        )
    for part in ("train", "val", "test"):
        if 0 < len(data.subset_indices(part)) < world:
            raise InputError(
                f"trainer.devices={world}: {part} has {len(data.subset_indices(part))} cases; expected at "
                "least one a device, use fewer devices or hold out more cases"
            )


@torch.no_grad()
def _check_task(task: SegmentationTask, size: int, classes: Sequence[str]) -> None:
    """Passes one blank image through network and loss before any data is read."""
    blank = torch.zeros(1, 3, size, size)
    training = task.training
    try:
        logits = task.eval()(blank)
    except InputError:
        raise
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"model: cannot take an image of (1, 3, {size}, {size}): {error}"
        ) from error
    task.train(training)
    if tuple(logits.shape) != (1, len(classes), size, size):
        raise InputError(
            f"model: gives {tuple(logits.shape)} for an image of (1, 3, {size}, {size}); expected "
            f"logits of (1, {len(classes)}, {size}, {size}) for data.classes, {', '.join(classes)}"
            "; give the network as many channels, as conf/model does"
        )
    try:
        loss = task.loss(logits, torch.zeros_like(logits[:, :1]))
    except InputError:
        raise
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"task.loss: cannot take logits and mask: {error}") from error
    if tuple(loss.shape) != (1,):
        raise InputError(
            f"task.loss: gives {tuple(loss.shape)} for one image; expected one value an image, (1,)"
        )
    try:
        task.configure_optimizers()
    except InputError:
        raise
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"task.optimizer or task.lr_scheduler: {error}") from error


def _score(run: RunDirectory, config: dict[str, Any], parts: Components) -> dict[str, Any]:
    """Scores val and test at native resolution with the checkpoint, read back from disk."""
    data = parts.data
    net, metadata = load_network(run.paths.best_checkpoint, trust=list_modules(config))
    inference = Inference(**config["inference"])
    device, postprocessing = parts.trainer.strategy.root_device, inference.postprocessing
    predict = make_predictor(net, data.size, device, inference.tta)
    threshold, best_epoch = config["task"]["threshold"], metadata["epoch"]
    if inference.tune_threshold:
        threshold = tune_threshold(predict, data.subset_cases("val"), threshold, postprocessing)
        # Whoever uses the checkpoint alone must know it. Killed before or after, a run that goes
        # on chooses the same again.
        set_threshold(run.paths.best_checkpoint, threshold)
    val: dict[str, float] = {}
    if data.split.val:
        val = score_cases(
            predict, data.subset_cases("val"), threshold, "scoring val", postprocessing
        ).values
        row = parts.recorder.rows[best_epoch - 1]
        at_network_size = re.compile(r"val/(\w+_net)")
        val |= {m[1]: value for k, value in row.items() if (m := at_network_size.fullmatch(k))}
    test = score_cases(
        predict, data.subset_cases("test"), threshold, "scoring test", postprocessing
    )
    write_csv(run.paths.test_cases, test.rows)

    baseline_rows, baselines = [], {}
    masks = data.cache.masks[data.subset_indices("train")]
    mean_mask = np.stack([(masks == number).mean(0) for number in data.classes.numbers])
    for name, baseline in baseline_predictors(mean_mask).items():
        scored = score_cases(baseline, data.subset_cases("test"), 0.5, f"scoring {name}")
        baselines[name] = scored.values
        baseline_rows += [{"baseline": name} | row for row in scored.rows]
    write_csv(run.paths.baseline_cases, baseline_rows)
    own = test.rows
    if data.classes.is_multiclass:
        own = _means(test.rows)
    worst = sorted(own, key=lambda row: row["dice_per_image"])[:WORST]
    for name, rows in (("predictions", own[:PICTURES]), ("worst", worst)):
        _draw_predictions(
            *(run.paths.figures / f"{name}.png", data.subset_cases("test"), rows),
            *(predict, threshold, postprocessing),
        )
    return {
        "val": val,
        "test": test.values,
        "baselines": baselines,
        "calibration": {"test": test.calibration.tolist()},
        **({"classes": test.classes} if test.classes else {}),
        "best_epoch": best_epoch,
        "threshold": threshold,
    }


def _means(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row a case with its mean Dice over classes, background left out."""
    dice: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        dice.setdefault((row["id"], row["diagnosis"]), []).append(row["dice_per_image"])
    return [
        {"id": id, "diagnosis": diagnosis, "dice_per_image": statistics.fmean(each[1:])}
        for (id, diagnosis), each in dice.items()
    ]


def _draw_pairs(path: Path, data: SegmentationDataModule) -> None:
    """The first training cases, as the network sees them."""
    rows = data.subset_indices("train")[:PICTURES]
    columns = {
        "image": [data.cache.images[row] for row in rows],
        "mask": [colorize_mask(data.cache.masks[row], data.classes) for row in rows],
    }
    save_cases(path, columns, [data.cases[row].id for row in rows], legend=data.classes)


def _draw_predictions(
    path: Path,
    cases: Sequence[Case],
    rows: Sequence[Mapping[str, Any]],
    predict: Predictor,
    threshold: float,
    postprocessing: Mapping[str, bool],
) -> None:
    """Some test cases at native resolution, by their rows of `score_cases`."""
    classes = cases[0].classes
    sureness = "confidence" if classes.is_multiclass else "probability"
    titles = ("image", "target", "prediction", sureness, "errors")
    columns: dict[str, list[np.ndarray]] = {title: [] for title in titles}
    by_id = {case.id: case for case in cases}
    for row in rows:
        image, target = read_pair(by_id[row["id"]])
        prob = predict(image)
        pred = predicted_mask(prob, threshold, postprocessing)
        masks = [colorize_mask(mask, classes) for mask in (target, pred)]
        pictures = (image, *masks, prob.max(0), error_map(pred, target))
        step = 1 + max(pred.shape) // 1000  # of a large image a figure shows no more
        for title, picture in zip(titles, pictures, strict=True):
            columns[title].append(picture[::step, ::step].copy())
    names = [f"{row['id']}\n{row['diagnosis']}\nDice {row['dice_per_image']:.3f}" for row in rows]
    legend = ERROR_LEGEND_OF_CLASSES if classes.is_multiclass else ERROR_LEGEND
    save_cases(path, columns, names, note=f"errors: {legend}", legend=classes)


def log_summary(run: Path) -> None:
    """Ends a run on the terminal: a short table, and where everything lies."""
    summary, split = read_json(RunPaths(run).summary), read_split(RunPaths(run).split)
    columns = {"test": summary["test"]} | summary.get("classes", {}) | summary["baselines"]
    if summary["val"]:
        columns = {"val": summary["val"]} | columns
    lines = [
        f"native resolution, {len(split.val)} val and {len(split.test)} test cases; "
        f"weights of epoch {summary['best_epoch']}; baselines on test",
        f"{'':16}" + "".join(f"{name:>{max(10, len(name) + 2)}}" for name in columns),
    ]
    for metric in summary["test"]:
        cells = (
            f"{'' if metric not in own else format(own[metric], '.4f'):>{max(10, len(name) + 2)}}"
            for name, own in columns.items()
        )
        lines.append(f"{metric:16}" + "".join(cells).rstrip())
    lines += [
        f"run directory  {run}",
        f"look at it     tensorboard --logdir {run}",
        f"score again    python scripts/evaluate.py {run}",
    ]
    log.info("%s", "\n".join(lines))


def _count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Lightning's hints off the terminal; its warnings that matter stay."""
    lightning = logging.getLogger("lightning.pytorch")
    level, excepthook = lightning.level, threading.excepthook
    lightning.setLevel(logging.WARNING)
    # TensorBoard's thread hands the error of a full disk on to whoever logs next.
    threading.excepthook = lambda args: (
        None if isinstance(args.exc_value, OSError) else excepthook(args)
    )
    with warnings.catch_warnings():
        for hint in (
            ".*does not have many workers.*",
            ".*smaller than the logging interval.*",
            ".*your dataloader is not resumable.*",
            ".*You requested to overfit but enabled .* dataloader shuffling.*",
            ".*in eval mode at the start of training.*",  # BatchNorm of a pretrained encoder
            ".*isinstance.treespec, LeafSpec.*",
            ".*You defined a `validation_step` but have no `val_dataloader`.*",
            ".*Total length of `list` across ranks is zero.*",
            ".*but have no logger configured.*",
            ".*`srun` command is available.*",
        ):
            warnings.filterwarnings("ignore", hint)
        try:
            yield
        finally:
            lightning.setLevel(level)
            threading.excepthook = excepthook
