"""Callback that records a run while it trains: metrics, checkpoints, a stop on a signal."""

import itertools
import math
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from seglab.core.errors import InputError
from seglab.core.files import flush_to_disk, link_atomic, write_csv
from seglab.core.signals import Interrupts
from seglab.runs.paths import RunPaths
from seglab.training.loggers import RunLoggers


class RunRecorder(Checkpoint):
    """Callback that writes metrics.csv and checkpoints after each epoch and stops on a signal.

    A checkpoint also holds the rows so far and the state of all random generators: a run that
    goes on from it ends with the same weights as one that was never interrupted. On a signal
    training stops after the current step; the epoch that is not finished is trained again.

    Args:
        run_dir: Gets metrics.csv (one row per epoch, full precision, no times) and checkpoints.
        metadata: Plain containers that are stored in checkpoints under 'seglab', enough to
            rebuild the network from a checkpoint alone.
        monitor: Metric that chooses best.ckpt; None for the last epoch.
        mode: 'max' or 'min'.
        interrupts: Signals that were received, looked at after each step and each epoch.
        loggers: Get the rows of metrics.csv.
    """

    def __init__(
        self,
        run_dir: Path,
        metadata: dict[str, Any],
        monitor: str | None,
        mode: str,
        interrupts: Interrupts,
        loggers: RunLoggers,
    ) -> None:
        self.paths = RunPaths(run_dir)
        self.metadata = metadata
        self.monitor = monitor
        self.sign = 1 if mode == "max" else -1
        self.interrupts = interrupts
        self.loggers = loggers
        self.rows: list[dict[str, Any]] = []
        self.images = 0
        self.train_seconds = 0.0
        self._step_start = 0.0
        self._learning_rate = 0.0
        self._validated = False  # in this epoch
        self._random_states: list[dict[str, Any]] = []  # one per process, from a checkpoint

    @property
    def best_epoch(self) -> int | None:
        """Number of the epoch of best.ckpt, from 1; of equal epochs the first; None before any."""
        if self.monitor is None:
            return len(self.rows) or None
        values = {row["epoch"]: row[self.monitor] for row in self.rows if self.monitor in row}
        return max(values, key=lambda epoch: self.sign * values[epoch], default=None)

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Restores what Lightning does not of a resumed run; from here on signals are deferred."""
        if self._random_states:
            _set_random_state(self._random_states[trainer.global_rank])
            for schedule in trainer.lr_scheduler_configs:
                # Lightning 2.6 steps ReduceLROnPlateau after a checkpoint is saved.
                is_due = schedule.interval == "epoch" and len(self.rows) % schedule.frequency == 0
                if schedule.reduce_on_plateau and is_due:
                    schedule.scheduler.step(self.rows[-1][str(schedule.monitor)])
            if trainer.max_steps != -1:
                # Else Lightning 2.6 repeats the end of the saved epoch, and steps no
                # ReduceLROnPlateau at the end of the next one.
                loop = trainer.fit_loop
                loop.epoch_progress.increment_completed()
                loop.epoch_loop.restarting = False
                loop.reset_restart_stage()
                loop._restarting = False  # with max_steps its setter leaves it true
        self.interrupts.install()
        self.interrupts.deferrable = True

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Waits for the disk, once for all epochs; from here on signals raise at once."""
        if trainer.is_global_zero:
            for path in (self.paths.best_checkpoint, self.paths.last_checkpoint):
                if path.exists():
                    flush_to_disk(path)
        self.interrupts.deferrable = False
        self._raise_if_signalled(trainer)

    def on_exception(self, *args: Any) -> None:
        """From here on signals raise at once."""
        self.interrupts.deferrable = False

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """Reads the learning rate: by the end of the epoch the schedule has stepped."""
        self._learning_rate = trainer.optimizers[0].param_groups[0]["lr"]
        self._step_start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts images and seconds, and stops on a signal, except before an epoch's end."""
        self.train_seconds += time.perf_counter() - self._step_start
        self.images += len(batch["image"]) * trainer.world_size
        if batch_idx + 1 < trainer.num_training_batches:
            self._raise_if_signalled(trainer)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Notes that the metrics of val are of this epoch."""
        self._validated = True

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Writes the epoch's row and checkpoints, if all is finite; then stops on a signal."""
        epoch, step = trainer.current_epoch + 1, trainer.global_step
        metrics = {
            name: value.item()
            for name, value in sorted(trainer.callback_metrics.items())
            if self._validated or not name.startswith("val/")  # else of an earlier epoch
        }
        self._validated = False
        self._check_finite(epoch, metrics, module)
        self.rows.append({"epoch": epoch, "step": step, "lr": self._learning_rate} | metrics)
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if trainer.is_global_zero:
            self.loggers.log_rows(self.rows)
        best, last = self.paths.best_checkpoint, self.paths.last_checkpoint
        is_best = self.best_epoch == epoch
        trainer.save_checkpoint(best if is_best else last)
        if trainer.is_global_zero:
            if is_best:
                link_atomic(best, last)  # a second file takes seconds per run
            self.write_rows()
        self._raise_if_signalled(trainer)

    def write_rows(self) -> None:
        """Writes metrics.csv."""
        write_csv(self.paths.metrics, self.rows, flush=False)

    def on_save_checkpoint(
        self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds metadata, the random state of each process and whether training stops early."""
        random_states = [_random_state()]
        if trainer.world_size > 1:
            random_states = [{} for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(random_states, _random_state())
        checkpoint["seglab"] = self.metadata
        checkpoint["random_states"] = random_states
        checkpoint["stopped"] = trainer.should_stop

    def on_load_checkpoint(
        self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Reads the random states, and whether training had been stopped early."""
        self._random_states = checkpoint["random_states"]
        # A schedule that asks for the number of steps lets Lightning make the loaders before it
        # restores this, and the order of batches depends on it.
        progress = trainer.fit_loop.epoch_progress.current
        progress.processed = checkpoint["epoch"] + 1  # type: ignore[attr-defined]
        trainer.should_stop = checkpoint["stopped"]

    def state_dict(self) -> dict[str, Any]:
        """Returns the rows and counts so far."""
        return {"rows": self.rows, "images": self.images, "train_seconds": self.train_seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the rows and counts."""
        self.rows = state_dict["rows"]
        self.images, self.train_seconds = state_dict["images"], state_dict["train_seconds"]

    def _check_finite(self, epoch: int, metrics: dict[str, float], module: LightningModule) -> None:
        names = [name for name, value in metrics.items() if not math.isfinite(value)]
        weights = itertools.chain(module.parameters(), module.buffers())
        if not all(torch.isfinite(weight).all() for weight in weights):
            names.append("a weight")
        if names:
            raise InputError(
                f"{', '.join(names)} not finite after epoch {epoch}; checkpoints/last.ckpt keeps "
                "the last good epoch, if any; lower task.optimizer.lr"
            )

    def _raise_if_signalled(self, trainer: Trainer) -> None:
        """Raises if any process received a signal: all stop after the same step."""
        received = bool(self.interrupts.received_signal)
        if trainer.world_size > 1:
            received = trainer.strategy.reduce_boolean_decision(received, all=False)
        if received:
            raise self.interrupts.error()


def _random_state() -> dict[str, Any]:
    """Returns the state of all generators that a network or a callback may draw from."""
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
