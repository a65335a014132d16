"""The task: one step for train, val and test."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torchmetrics import MetricCollection

from seglab.errors import JOB, InputError
from seglab.metrics import PerImageMean, segmentation_metrics

STAGES = ("train", "val", "test")


class SegmentationTask(LightningModule):
    """Trains a network to tell lesion from background, pixel by pixel.

    Args:
        net: From images (N, 3, H, W) in [0, 1] to logits (N, 1, H, W).
        loss: From logits and mask to a loss an image (`seglab.losses`).
        optimizer: From parameters to an optimizer.
        schedule: From the optimizer to a learning-rate schedule, stepped once an epoch; None for
            a constant rate.
        threshold: Probability above which a pixel is lesion.
    """

    loss: Callable[[Tensor, Tensor], Tensor]

    def __init__(
        self,
        net: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        schedule: Callable[[torch.optim.Optimizer], Any] | None = None,
        threshold: float = 0.5,
    ) -> None:
        super().__init__()
        if not 0 < threshold < 1:
            raise InputError(f"task.threshold={threshold}: expected a probability between 0 and 1")
        # The layout that CPUs and GPUs convolve fastest in; values are the same.
        self.net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.loss = loss
        self.optimizer = optimizer
        self.schedule = schedule
        self.threshold = threshold
        metrics = segmentation_metrics(threshold)
        # 'train' itself is a method of every module, hence the suffix.
        self.metrics = nn.ModuleDict(
            {f"{stage}_metrics": metrics.clone(prefix=f"{stage}/") for stage in STAGES}
        )
        self.losses = nn.ModuleDict({f"{stage}_loss": PerImageMean() for stage in STAGES})

    def forward(self, image: Tensor) -> Tensor:
        """From images (N, 3, H, W) in [0, 1] to logits (N, 1, H, W)."""
        return self.net(image)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Returns the loss to descend."""
        return self._step(batch, batch_idx, "train")

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Scores a batch of val."""
        self._step(batch, batch_idx, "val")

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Scores a batch of test."""
        self._step(batch, batch_idx, "test")

    def on_validation_start(self) -> None:
        """All devices score one network."""
        self.share_buffers()

    def share_buffers(self) -> None:
        """Gives all processes the first one's BatchNorm statistics, as its checkpoint has them."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for buffer in self.net.buffers():
                torch.distributed.broadcast(buffer, 0)

    def configure_optimizers(self) -> Any:
        """Builds the optimizer and the schedule of the config."""
        optimizer = self.optimizer(self.net.parameters())
        return optimizer if self.schedule is None else ([optimizer], [self.schedule(optimizer)])

    def _step(self, batch: dict[str, Any], batch_idx: int, stage: str) -> Tensor:
        logits = self(batch["image"]).float()  # loss and metrics in float32 under autocast too
        loss = self.loss(logits, batch["mask"])
        if not torch.isfinite(loss).all():
            epoch = "" if stage == "test" else f", epoch {self.current_epoch + 1}"
            raise InputError(
                f"loss is {loss.mean().item()} in {stage}{epoch}, batch "
                f"{batch_idx + 1} of {', '.join(batch['id'])}; checkpoints/last.ckpt keeps the "
                "last good epoch, if any; lower task.optimizer.lr, or look at these cases"
            )
        metrics = cast(MetricCollection, self.metrics[f"{stage}_metrics"])
        mean_loss = cast(PerImageMean, self.losses[f"{stage}_loss"])
        metrics.update(torch.sigmoid(logits.detach()), batch["mask"])
        mean_loss.update(loss)
        values = {**dict(metrics.items()), f"{stage}/loss": mean_loss}
        # Of train and val the run's recorder logs what it writes down. Of a sweep's jobs nobody
        # sees the test beside the curves that a choice is made by.
        logger = stage == "test" and JOB not in os.environ
        self.log_dict(values, logger=logger, on_step=False, on_epoch=True, batch_size=len(loss))
        return loss.mean()
