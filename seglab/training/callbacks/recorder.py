"""The books of a run while it trains: metrics.csv, the logger, checkpoints, a good end."""

from __future__ import annotations

import math
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torchmetrics import Metric

from seglab.core.errors import InputError
from seglab.core.files import write_csv
from seglab.core.signals import Interrupts
from seglab.runs.checkpoints import BEST, LAST


class RunRecorder(Checkpoint):
    """After each epoch: a row, the best checkpoint if it is the best, the last one always.

    A checkpoint holds all that it takes to go on as if nothing had happened, also in the middle
    of an epoch: besides what Lightning keeps, the rows so far, the state of all random
    generators, how far the epoch has come and what its metrics have counted.

    Args:
        run_dir: Gets metrics.csv (a row an epoch, at full precision, no times) and checkpoints.
        metadata: Plain containers that go into checkpoints under 'seglab': what it takes to use one
            alone.
        monitor: The value that the best checkpoint has the best of; None for the last epoch's.
        mode: 'max' or 'min'.
        interrupts: Asked after each step whether to stop.
    """

    def __init__(
        self,
        run_dir: Path,
        metadata: dict[str, Any],
        monitor: str | None,
        mode: str,
        interrupts: Interrupts,
    ) -> None:
        self.run_dir = run_dir
        self.metadata = metadata
        self.monitor = monitor
        self.sign = 1 if mode == "max" else -1
        self.interrupts = interrupts
        self.rows: list[dict[str, Any]] = []
        self.images = 0
        self.train_seconds = 0.0
        self._began = 0.0
        self._rate = 0.0
        self._batches = 0
        self._ended = False
        self._resumed: dict[str, Any] = {}

    @property
    def best_epoch(self) -> int | None:
        """Number of the epoch of best.ckpt, from 1: the first of equals; None before there is."""
        if self.monitor is None:
            return len(self.rows) or None
        values = {row["epoch"]: row[self.monitor] for row in self.rows if self.monitor in row}
        return max(values, key=lambda epoch: self.sign * values[epoch], default=None)

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Takes up what a checkpoint holds of this process; signals wait from here on."""
        if self._resumed:
            mine = self._resumed["processes"][trainer.global_rank]
            _set_random_state(mine["random"])
            for name, states in mine["metrics"].items():
                metric = module.get_submodule(name)
                for key, value in states.items():
                    setattr(metric, key, _to(value, metric.device))
        self.interrupts.install()
        self.interrupts.deferrable = True

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Signals wait no longer."""
        self.interrupts.deferrable = False
        self._stop_if_asked(trainer)

    def on_exception(self, *args: Any) -> None:
        """As on_train_end."""
        self.interrupts.deferrable = False

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """Starts the clock of `train_seconds`; by its end the epoch has the next one's rate."""
        self._rate = trainer.optimizers[0].param_groups[0]["lr"]
        self._began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts images and the seconds of steps; saves and stops, where that was asked for."""
        self.train_seconds += time.perf_counter() - self._began
        self.images += len(batch["image"]) * trainer.world_size
        # Between optimizer steps gradients are on their way; after the last the epoch ends anyway.
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        last = batch_idx + 1 >= trainer.num_training_batches
        if stepped and not last and self._signal_received(trainer):
            self._batches = batch_idx + 1
            trainer.save_checkpoint(self.run_dir / LAST)
            self._stop_if_asked(trainer)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Writes the epoch's row and checkpoints, unless the epoch is ruined."""
        n = trainer.check_val_every_n_epoch or 1
        validated = (trainer.current_epoch + 1) % n == 0
        metrics = {
            name: value.item()
            for name, value in sorted(trainer.callback_metrics.items())
            if validated or not name.startswith("val/")  # of an earlier epoch
        }
        ruined = [name for name, value in metrics.items() if not math.isfinite(value)]
        if not all(torch.isfinite(p).all() for p in module.parameters()):
            ruined.append("a weight")
        if ruined:
            raise InputError(
                f"{', '.join(ruined)} not finite after epoch {trainer.current_epoch + 1}; "
                "checkpoints/last.ckpt keeps the last good epoch, if any; lower task.optimizer.lr"
            )
        epoch, step = trainer.current_epoch + 1, trainer.global_step
        self.rows.append({"epoch": epoch, "step": step, "lr": self._rate} | metrics)
        for logger in trainer.loggers:
            logger.log_metrics(metrics | {"lr": self._rate}, step)
            logger.save()
        self._batches = 0
        self._ended = trainer.should_stop or epoch == trainer.max_epochs
        if self.best_epoch == epoch:
            trainer.save_checkpoint(self.run_dir / BEST)
        trainer.save_checkpoint(self.run_dir / LAST)
        if trainer.is_global_zero:
            self.write_rows()
        self._stop_if_asked(trainer)

    def write_rows(self) -> None:
        """Writes metrics.csv."""
        write_csv(self.run_dir / "metrics.csv", self.rows)

    def on_save_checkpoint(
        self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds `about`, and what each process holds besides the weights."""
        metrics = {
            name: {key: _to(value, "cpu") for key, value in metric.metric_state.items()}
            for name, metric in module.named_modules()
            if isinstance(metric, Metric) and name.startswith(("metrics.train", "losses.train"))
        }
        # At an epoch's end they have been counted.
        mine = {"random": _random_state(), "metrics": metrics if self._batches else {}}
        processes = [mine]
        if trainer.world_size > 1:
            processes = [{} for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(processes, mine)
        checkpoint["seglab"] = self.metadata
        checkpoint["processes"] = processes

    def on_load_checkpoint(
        self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Tells the data where the epoch goes on."""
        state = checkpoint["callbacks"][self.state_key]
        self._resumed = {"processes": checkpoint["processes"]}
        trainer.datamodule.start = len(state["rows"]), state["batches"]  # type: ignore[attr-defined]
        trainer.should_stop = state["ended"]

    def state_dict(self) -> dict[str, Any]:
        """The rows, and how far the run has come."""
        return {
            "rows": self.rows,
            "best_epoch": self.best_epoch,
            "batches": self._batches,
            "ended": self._ended,
            "images": self.images,
            "train_seconds": self.train_seconds,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from there."""
        self.rows = list(state_dict["rows"])
        self.images, self.train_seconds = state_dict["images"], state_dict["train_seconds"]

    def _signal_received(self, trainer: Trainer) -> bool:
        """Whether any process was asked to stop: all stop after the same step."""
        received_signal = bool(self.interrupts.received_signal)
        if trainer.world_size > 1:
            received_signal = trainer.strategy.reduce_boolean_decision(received_signal, all=False)
        return received_signal

    def _stop_if_asked(self, trainer: Trainer) -> None:
        if self._signal_received(trainer):
            raise self.interrupts.error()


def _random_state() -> dict[str, Any]:
    """All generators that a network or a callback may draw from, as plain containers."""
    kind, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), *rest),  # type: ignore[attr-defined]
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def _set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


def _to(value: Any, device: Any) -> Any:
    """A metric's state, tensor or list of tensors, on another device."""
    return [v.to(device) for v in value] if isinstance(value, list) else value.to(device)
