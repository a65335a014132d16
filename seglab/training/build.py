"""Builds the data, the task and the trainer of a run, and checks that they fit each other."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning import Trainer
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from torch import nn

from seglab.core.errors import InputError
from seglab.core.logs import collect_warnings
from seglab.core.signals import Interrupts
from seglab.data.datamodule import SegmentationDataModule
from seglab.losses import check_channels
from seglab.networks import EncoderUNet
from seglab.runs.checkpoints import ChecksummedCheckpointIO
from seglab.runs.directory import RunDirectory
from seglab.runs.initial_weights import InitialWeights, open_initial_weights
from seglab.runs.paths import FORMAT, RunPaths
from seglab.schema import Inference
from seglab.training.callbacks.progress import Progress
from seglab.training.callbacks.recorder import RunRecorder
from seglab.training.loggers import RunLoggers
from seglab.training.task import SegmentationTask


@dataclass(frozen=True)
class Components:
    """The objects that a config describes."""

    data: SegmentationDataModule
    task: SegmentationTask
    trainer: Trainer
    recorder: RunRecorder
    warnings: list[logging.LogRecord]  # about the data
    initial: InitialWeights | None = None  # those that training starts from


def build(
    config: dict[str, Any],
    run_dir: Path,
    interrupts: Interrupts | None = None,
    loggers: RunLoggers | None = None,
) -> Components:
    """Builds the components of a run. Reads the data, writes nothing but its cache.

    Args:
        config: Checked and resolved, plain containers (`check_config`).
        run_dir: Directory that the recorder writes to.
        interrupts: Signals that stop training; None for no signals.
        loggers: Loggers of the config; None for no loggers.

    Raises:
        InputError: The data is bad, or network, loss, optimizer, devices and data do not fit.
    """
    accelerator = config["trainer"].get("accelerator")
    has_cuda = accelerator != "mps" and torch.cuda.is_available()
    has_gpu = has_cuda or torch.backends.mps.is_available()
    if accelerator in ("gpu", "cuda", "mps") and not has_gpu:
        raise InputError(
            f"trainer.accelerator={accelerator}: torch {torch.__version__} "
            "finds no GPU; train with trainer=cpu, or install a torch that fits the GPU's driver"
        )
    net, initial = build_network(config, run_dir)
    with name_in_errors("data"):
        data = instantiate(config["data"])
    with name_in_errors("task"):
        task = instantiate(config["task"], net=net, classes=data.classes.names)
    check_network_and_loss(task, data)
    with name_in_errors("task.optimizer or task.lr_scheduler"):
        task.configure_optimizers()
    with collect_warnings(logging.getLogger("seglab")) as warnings:
        data.setup()
        if initial:
            initial.check_cases(data)
    metadata = {
        "format": FORMAT,
        "config": config,
        "classes": [*data.classes.names],
        "colours": None if data.classes.colours is None else [*data.classes.colours],
        "lesion_values": config["data"].get("lesion_values"),
        "threshold": config["task"]["threshold"],
        "split_hash": data.split.hash,
    }
    monitor = (config["monitor"], config["monitor_mode"])
    loggers = loggers or RunLoggers(RunDirectory(run_dir))
    recorder = RunRecorder(run_dir, metadata, *monitor, interrupts or Interrupts(), loggers)
    with name_in_errors("trainer or callbacks"):
        trainer = build_trainer(config, recorder)
    check_subsets(config, data, trainer.world_size)
    return Components(data, task, trainer, recorder, warnings, initial)


def build_network(config: dict[str, Any], run_dir: Path) -> tuple[nn.Module, InitialWeights | None]:
    """Builds the network with the weights that it starts from; a run that goes on reads none."""
    init, goes_on = config["init"], RunPaths(run_dir).last_checkpoint.exists()
    initial = open_initial_weights(init) if init and not goes_on else None
    with name_in_errors("model"):
        net = instantiate(config["model"], _convert_="all")
        if initial:
            initial.load_into(net, config["model"]["_target_"], config["data"]["classes"])
        if init and isinstance(net, EncoderUNet):
            net.freeze_stages()
        elif not init and hasattr(net, "load_weights"):
            net.load_weights()
    return net, initial


def build_trainer(config: dict[str, Any], recorder: RunRecorder) -> Trainer:
    """Builds the trainer with the config's callbacks, the recorder and its loggers."""
    callbacks = [c for c in instantiate(config["callbacks"] or {}).values() if c is not None]
    bars = [callback for callback in callbacks if isinstance(callback, ProgressBar)]
    bars.sort(key=lambda bar: isinstance(bar, Progress))  # the user's takes the place of ours
    if config["trainer"].get("enable_progress_bar") is False:
        bars = []
    # The bar shows what the others log.
    callbacks = [c for c in callbacks if not isinstance(c, ProgressBar)] + bars[:1]
    folders = (None, str(recorder.paths.best_checkpoint.parent))
    if any(isinstance(c, ModelCheckpoint) and c.dirpath in folders for c in callbacks):
        raise InputError(
            "callbacks: ModelCheckpoint needs a folder beside checkpoints/, where best.ckpt and "
            "last.ckpt are saved in any case; expected dirpath: ${run_dir}/more"
        )
    plugins: list[Any] = [ChecksummedCheckpointIO()]
    if SLURMEnvironment.detect():
        # SLURM's own --requeue starts the same command again, which resumes the run.
        plugins.append(SLURMEnvironment(auto_requeue=False))
    # Part of torch's determinism, to find mistakes in operators: it writes each tensor twice.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return instantiate(
        config["trainer"],
        callbacks=[*callbacks, recorder],
        logger=[*recorder.loggers.by_name.values()] or False,
        plugins=plugins,
        default_root_dir=str(recorder.paths.folder),
    )


@torch.no_grad()
def check_network_and_loss(task: SegmentationTask, data: SegmentationDataModule) -> None:
    """Raises an InputError if network or loss do not fit one blank image; reads no data."""
    size, channels = data.size, len(data.classes.names)
    image_shape, expected = (1, 3, size, size), (1, channels, size, size)
    with name_in_errors(f"model: cannot take an image of data.size={size}, {image_shape}"):
        logits = task.eval()(torch.zeros(image_shape))
    task.train()
    if tuple(logits.shape) != expected:
        raise InputError(
            f"model: gives {tuple(logits.shape)} for an image of {image_shape}; expected logits of "
            f"{expected} for data.classes, {', '.join(data.classes.names)}"
        )
    with name_in_errors(f"task.loss with {channels} in data.classes"):
        check_channels(task.loss, channels)
        loss = task.loss(torch.zeros(expected), torch.zeros(1, 1, size, size))
    if tuple(loss.shape) != (1,):
        raise InputError(f"task.loss: gives {tuple(loss.shape)}; expected one value an image, (1,)")


def check_subsets(config: dict[str, Any], data: SegmentationDataModule, devices: int) -> None:
    """Raises an InputError if val is missing or there are too few cases for all devices."""
    is_val_needed = (config["monitor"] or "").startswith("val/")
    if not data.split.val and (is_val_needed or Inference(**config["inference"]).tune_threshold):
        raise InputError(
            f"data.split.file={config['data']['split']['file']}: holds no val cases to choose on; "
            "add some, or set monitor=null and inference.tune_threshold=false"
        )
    if data.batch_size % devices:
        raise InputError(
            f"data.batch_size={data.batch_size}: expected a multiple of the {devices} devices"
        )
    for subset in ("train", "val", "test"):
        n = len(data.subset_indices(subset))
        if 0 < n < devices:
            raise InputError(
                f"trainer.devices={devices}: {subset} has {n} cases; expected at least one a device"
            )


@contextmanager
def name_in_errors(subject: str) -> Iterator[None]:
    """Turns what a library refuses a value with into an InputError about `subject`."""
    try:
        yield
    except Exception as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) else error
        if isinstance(cause, InputError):
            raise cause from None
        refusals = (MisconfigurationException, RuntimeError, TypeError, ValueError, ImportError)
        if isinstance(cause, refusals):
            raise InputError(f"{subject}: {' '.join(str(cause).split())}") from error
        raise
