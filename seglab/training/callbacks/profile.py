"""Profiles training steps."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch.profiler import profile

from seglab.core.files import name_file_in_errors, write_atomic
from seglab.core.validation import check_number

log = logging.getLogger(__name__)


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
        write_atomic(folder / "profile.txt", table)
        with name_file_in_errors(folder / "profile.json"):
            profiler.export_chrome_trace(str(folder / "profile.json"))
        if isinstance(trainer.logger, TensorBoardLogger):
            block = "".join(f"    {line}\n" for line in table.splitlines())
            trainer.logger.experiment.add_text("profile", block, trainer.global_step)
        steps = self._begun - self.skip
        log.info("steps profiled: %d, see %s", steps, folder / "profile.txt")
