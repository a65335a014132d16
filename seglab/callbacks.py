"""What may happen around the steps: a progress bar, a profile, the recipe's test loss."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch.profiler import profile
from tqdm import tqdm

from seglab.config import check_number
from seglab.files import naming, write_whole
from seglab.metrics import PerImageMean

log = logging.getLogger(__name__)


class WatchTest(Callback):
    """Logs the test loss every epoch, as the recipe does. Nothing may read it."""

    @torch.no_grad()
    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Logs `test/loss`: over all cases, however many devices share them."""
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        module.eval().share_buffers()  # type: ignore[operator]
        mean = PerImageMean().to(module.device)
        for batch in datamodule.test_dataloader():
            batch = datamodule.scale(move_data_to_device(batch, module.device))
            logits = module(batch["image"]).float()
            mean.update(module.loss(logits, batch["mask"]))  # type: ignore[operator]
        module.train()
        module.log(
            "test/loss", mean.compute(), logger=False, sync_dist=True
        )  # equal on all devices


class Profile(Callback):
    """Where the time of training steps goes, by torch's profiler.

    Leaves in the run directory `profile.txt`, a table of operations by their own time, and
    `profile.json`, a timeline that perfetto.dev shows. TensorBoard has the table under Text.

    Args:
        skip: Steps before: the first ones also warm up.
        steps: Steps to profile, with the fetching of the batches that follow them.
    """

    def __init__(self, skip: int = 1, steps: int = 2) -> None:
        check_number("callbacks.profile.skip", skip, int, 0)
        check_number("callbacks.profile.steps", steps, int, 1)
        self.skip = skip
        self.steps = steps
        self._begun = 0
        self._profiler: profile | None = None

    @rank_zero_only
    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """Starts at the first step to profile, stops at the one after the last."""
        if self._begun == self.skip + self.steps:
            self._stop(trainer)
        if self._begun == self.skip:
            self._profiler = profile(record_shapes=True)
            self._profiler.start()
        self._begun += 1

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Stops, where the epoch has no more steps."""
        self._stop(trainer)

    def _stop(self, trainer: Trainer) -> None:
        if self._profiler is None:
            return
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        device = "cuda" if trainer.strategy.root_device.type == "cuda" else "cpu"
        table = profiler.key_averages(group_by_input_shape=True).table(
            f"self_{device}_time_total", row_limit=40, max_name_column_width=40
        )
        folder = Path(trainer.default_root_dir)
        write_whole(folder / "profile.txt", table)
        with naming(folder / "profile.json"):
            profiler.export_chrome_trace(str(folder / "profile.json"))
        if isinstance(trainer.logger, TensorBoardLogger):
            block = "".join(f"    {line}\n" for line in table.splitlines())
            trainer.logger.experiment.add_text("profile", block, trainer.global_step)
        steps = self._begun - self.skip
        log.info("steps profiled: %d, see %s", steps, folder / "profile.txt")


class Progress(ProgressBar):
    """One bar over all epochs with loss, the monitored metric and the time left.

    Where there is no terminal it is a line an epoch instead; train.log gets that line always.

    Args:
        monitor: Name of the metric to show beside the loss, if any.
    """

    def __init__(self, monitor: str | None = None) -> None:
        super().__init__()
        self.monitor = monitor
        self.bar: tqdm | None = None
        self._began = 0.0
        self._first_epoch = 0

    def disable(self) -> None:
        """Lightning's way to silence processes other than the first."""
        self._enabled = False

    def enable(self) -> None:
        """The reverse."""
        self._enabled = True

    _enabled = True

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Draws the bar."""
        self._began, self._first_epoch = time.monotonic(), trainer.current_epoch
        steps = int(trainer.num_training_batches)
        self.bar = tqdm(
            total=steps * (trainer.max_epochs or 1),
            initial=trainer.fit_loop.total_batch_idx + 1,
            disable=not self._enabled or not sys.stderr.isatty(),
            unit="step",
            dynamic_ncols=True,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",
        )
        self._describe(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Moves the bar by a step."""
        assert self.bar is not None
        # Reading the loss waits for the device, so only when the bar is drawn anew.
        if not self.bar.disable and time.monotonic() - self._drawn > 0.3:
            self._describe(trainer, float(outputs["loss"]))
        self.bar.update()

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Says how the epoch went."""
        epoch, epochs = trainer.current_epoch + 1, trainer.max_epochs or 1
        metrics = trainer.callback_metrics
        shown = [
            f"{name} {metrics[name].item():.4f}"
            for name in dict.fromkeys(("train/loss", "val/loss", "test/loss", self.monitor))
            if name in metrics
        ]
        took = time.monotonic() - self._began
        left = took / (epoch - self._first_epoch) * (epochs - epoch)
        line = f"epoch {epoch}/{epochs}  {'  '.join(shown)}  {_span(took)}, {_span(left)} left"
        # Under a bar the line goes to train.log alone.
        level = logging.INFO if self.bar is None or self.bar.disable else logging.DEBUG
        rank_zero_only(log.log)(level, line)
        self._describe(trainer, metrics["train/loss"].item())

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Leaves the bar."""
        if self.bar is not None:
            self.bar.close()

    def on_exception(self, *args: Any) -> None:
        """Leaves the bar where it stood."""
        if self.bar is not None:
            self.bar.close()

    def _describe(self, trainer: Trainer, loss: float | None = None) -> None:
        assert self.bar is not None
        self._drawn = time.monotonic()
        epoch = min(trainer.current_epoch + 1, trainer.max_epochs or 1)
        self.bar.set_description_str(f"epoch {epoch}/{trainer.max_epochs}", refresh=False)
        parts = [] if loss is None else [f"loss {loss:.3f}"]
        if self.monitor in trainer.callback_metrics:
            parts.append(f"{self.monitor} {trainer.callback_metrics[self.monitor].item():.3f}")
        self.bar.set_postfix_str(", ".join(parts))


def _span(seconds: float) -> str:
    return tqdm.format_interval(seconds)
