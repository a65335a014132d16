"""Callback that shows the progress of training on the terminal and in the log."""

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
    """Progress bar over all epochs with loss, monitored metric and time left.

    Without a terminal it logs one line per epoch instead; train.log gets that line in any case.

    Args:
        monitor: Name of the metric to show beside the loss, or None.
    """

    def __init__(self, monitor: str | None = None) -> None:
        super().__init__()
        self.monitor = monitor
        self.bar = tqdm(disable=True)
        self._is_hidden = not sys.stderr.isatty()

    def disable(self) -> None:
        """Hides the bar; Lightning calls it in all processes but the first."""
        self._is_hidden = True

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Creates the bar."""
        self._start, self._first_epoch = time.monotonic(), trainer.current_epoch
        steps = int(trainer.num_training_batches)
        self.bar = tqdm(
            total=steps * (trainer.max_epochs or 1),
            initial=trainer.fit_loop.total_batch_idx + 1,
            disable=self._is_hidden,
            unit="step",
            dynamic_ncols=True,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",
        )
        self._update_texts(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advances the bar by one step."""
        # Reading the loss waits for the device, so it is read only now and then.
        if not self.bar.disable and time.monotonic() - self._updated > 0.3:
            self._update_texts(trainer, float(outputs["loss"]))
        self.bar.update()

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Logs the epoch's loss and monitored metric."""
        epoch, epochs = trainer.current_epoch + 1, trainer.max_epochs or 1
        metrics = trainer.callback_metrics
        texts = [
            f"{name} {metrics[name].item():.4f}"
            for name in dict.fromkeys(("train/loss", "val/loss", "test/loss", self.monitor))
            if name in metrics
        ]
        elapsed = time.monotonic() - self._start
        left = elapsed / (epoch - self._first_epoch) * (epochs - epoch)
        times = f"{tqdm.format_interval(elapsed)}, {tqdm.format_interval(left)} left"
        line = f"epoch {epoch}/{epochs}  {'  '.join(texts)}  {times}"
        # With a bar the line goes to train.log alone.
        level = logging.INFO if self.bar.disable else logging.DEBUG
        rank_zero_only(log.log)(level, line)
        self._update_texts(trainer, metrics["train/loss"].item())

    def on_train_end(self, *args: Any) -> None:
        """Closes the bar."""
        self.bar.close()

    def on_exception(self, *args: Any) -> None:
        """Closes the bar where it is."""
        self.bar.close()

    def _update_texts(self, trainer: Trainer, loss: float | None = None) -> None:
        self._updated = time.monotonic()
        epoch = min(trainer.current_epoch + 1, trainer.max_epochs or 1)
        self.bar.set_description_str(f"epoch {epoch}/{trainer.max_epochs}", refresh=False)
        texts = [] if loss is None else [f"loss {loss:.3f}"]
        if self.monitor in trainer.callback_metrics:
            texts.append(f"{self.monitor} {trainer.callback_metrics[self.monitor].item():.3f}")
        self.bar.set_postfix_str(", ".join(texts))
