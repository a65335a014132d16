"""Progress of training on the terminal and in the log."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.utilities import rank_zero_only
from tqdm import tqdm

log = logging.getLogger(__name__)


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
