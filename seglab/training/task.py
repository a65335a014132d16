"""LightningModule that trains and validates a segmentation network."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from lightning import LightningModule
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import Tensor, nn
from torchmetrics import MetricCollection

from seglab.core.errors import InputError
from seglab.data.classes import ONE_CLASS
from seglab.inference.predictor import probabilities
from seglab.metrics.modules import PerImageMean, segmentation_metrics

STAGES = ("train", "val")


class SegmentationTask(LightningModule):
    """Task for semantic segmentation, of one class or of several.

    There is no `test_step`: `seglab.training.summary` scores the test set once, at native
    resolution, with the chosen weights.

    Args:
        net: Network from images (N, 3, H, W) in [0, 1] to logits (N, C, H, W), with C = 1 for
            one class.
        loss: Function from logits and mask to one loss per image, (N,), as in `seglab.losses`.
        optimizer: Function from parameters to an optimizer.
        lr_scheduler: Function from the optimizer to a learning rate scheduler; None for a constant
            rate. An argument `total_steps` that it lacks is filled in.
        lr_scheduler_config: Lightning's `interval` ('epoch' or 'step'; None for 'step' where the
            scheduler counts steps, as OneCycleLR and CyclicLR do, else 'epoch'), `frequency`, and
            `monitor`, the metric of ReduceLROnPlateau.
        threshold: Probability above which a pixel is of the class, in (0, 1); not used with
            several classes.
        encoder_lr_factor: Learning rate of `net.encoder` divided by that of the rest, in [0, 1].
        classes: Class names, as in `seglab.data.classes.Classes`.

    Raises:
        InputError: `encoder_lr_factor` is not 1, and the network has no `encoder`; in training,
            the loss of an image is not finite.
    """

    loss: Callable[[Tensor, Tensor], Tensor]

    def __init__(
        self,
        net: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        optimizer: Callable[[Iterable[Any]], torch.optim.Optimizer],
        lr_scheduler: Callable[..., Any] | None = None,
        lr_scheduler_config: Mapping[str, Any] | None = None,
        threshold: float = 0.5,
        encoder_lr_factor: float = 1,
        classes: Sequence[str] = ONE_CLASS.names,
    ) -> None:
        super().__init__()
        if encoder_lr_factor != 1 and not isinstance(getattr(net, "encoder", None), nn.Module):
            raise InputError(
                f"task.encoder_lr_factor={encoder_lr_factor}: {type(net).__name__} has no "
                "submodule called encoder; expected 1"
            )
        # The memory layout in which CPUs and GPUs convolve fastest; values are the same.
        self.net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.loss = loss
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.lr_scheduler_config = lr_scheduler_config or {}
        self.threshold = threshold
        self.encoder_lr_factor = encoder_lr_factor
        metrics = segmentation_metrics(threshold, classes)
        # 'train' itself is a method of every module, hence the suffix.
        self.metrics = nn.ModuleDict(
            {f"{stage}_metrics": metrics.clone(prefix=f"{stage}/") for stage in STAGES}
        )
        self.losses = nn.ModuleDict({f"{stage}_loss": PerImageMean() for stage in STAGES})

    def forward(self, image: Tensor) -> Tensor:
        """Returns logits (N, C, H, W) of images (N, 3, H, W) in [0, 1]."""
        return self.net(image)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Updates the metrics, and returns the mean loss over the images of a batch."""
        return self._step(batch, batch_idx, "train")

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Updates the metrics."""
        self._step(batch, batch_idx, "val")

    def on_validation_epoch_start(self) -> None:
        """Lets all processes validate the same network."""
        self.share_buffers()

    def share_buffers(self) -> None:
        """Gives all processes the first one's BatchNorm statistics, which checkpoints hold."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for buffer in self.net.buffers():
                torch.distributed.broadcast(buffer, 0)

    def configure_optimizers(self) -> Any:
        """Builds both; raises an InputError if the scheduler does not fit the run."""
        if self.encoder_lr_factor == 1:
            optimizer = self.optimizer(self.net.parameters())
        else:
            encoder = list(self.net.encoder.parameters())  # type: ignore[union-attr]
            encoder_ids = {id(parameter) for parameter in encoder}
            rest = [p for p in self.net.parameters() if id(p) not in encoder_ids]
            optimizer = self.optimizer([{"params": rest}, {"params": encoder}])
            optimizer.param_groups[1]["lr"] *= self.encoder_lr_factor
        if self.lr_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self._make_lr_scheduler(optimizer)}

    def _make_lr_scheduler(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Returns what Lightning calls an lr_scheduler_config."""
        make, config = cast(Callable[..., Any], self.lr_scheduler), {**self.lr_scheduler_config}
        parameters, given = inspect.signature(make).parameters, getattr(make, "keywords", {})
        counts_steps = "total_steps" in parameters or "step_size_up" in parameters
        if config.get("interval") is None:
            config["interval"] = "step" if counts_steps else "epoch"
        callbacks = self.trainer.callbacks if self._trainer else []  # type: ignore[attr-defined]
        if any(isinstance(c, GradientAccumulationScheduler) for c in callbacks) and counts_steps:
            raise InputError(
                "task.lr_scheduler: Lightning's estimate of its steps does not know callback "
                "GradientAccumulationScheduler; use +trainer.accumulate_grad_batches=... instead"
            )
        # Before training there is no trainer yet.
        n_steps = int(self.trainer.estimated_stepping_batches) if self._trainer else 1
        is_lacking = "total_steps" in parameters and not {"total_steps", "epochs"} & given.keys()
        filled = {"total_steps": n_steps} if is_lacking and config["interval"] == "step" else {}
        lr_scheduler = make(optimizer, **filled)
        if config["interval"] == "step" and getattr(lr_scheduler, "total_steps", n_steps) < n_steps:
            raise InputError(
                f"task.lr_scheduler: ends after {lr_scheduler.total_steps} steps of {n_steps}; "
                "leave out total_steps, epochs and steps_per_epoch"
            )
        lr, *encoder_lr = (group["lr"] for group in optimizer.param_groups)
        if encoder_lr and not math.isclose(encoder_lr[0], lr * self.encoder_lr_factor):
            raise InputError(
                f"task.encoder_lr_factor={self.encoder_lr_factor}: {type(lr_scheduler).__name__} "
                "sets the rates itself; give both, of the rest and of the encoder, such as "
                f"max_lr: [0.01, {0.01 * self.encoder_lr_factor:g}]"
            )
        return {**config, "scheduler": lr_scheduler}

    def _step(self, batch: dict[str, Any], batch_idx: int, stage: str) -> Tensor:
        logits = self(batch["image"]).float()  # loss and metrics in float32 under autocast too
        loss = self.loss(logits, batch["mask"])
        if not torch.isfinite(loss).all():
            raise InputError(
                f"loss is {loss.mean().item()} in {stage}, epoch {self.current_epoch + 1}, batch "
                f"{batch_idx + 1} of {', '.join(batch['id'])}; checkpoints/last.ckpt keeps the "
                "last good epoch, if any; lower task.optimizer.lr, or look at these cases"
            )
        metrics = cast(MetricCollection, self.metrics[f"{stage}_metrics"])
        mean_loss = cast(PerImageMean, self.losses[f"{stage}_loss"])
        metrics.update(probabilities(logits.detach()), batch["mask"])
        mean_loss.update(loss)
        if batch_idx == 0:  # Lightning then reads them at the end of the epoch
            values = {**dict(metrics.items()), f"{stage}/loss": mean_loss}
            # RunRecorder logs what it writes to metrics.csv.
            self.log_dict(values, logger=False, on_step=False, on_epoch=True, batch_size=len(loss))
        return loss.mean()
