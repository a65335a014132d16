"""Callback that logs the test loss, as the published recipe does."""

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.callbacks import Callback

from seglab.metrics.modules import PerImageMean


class LogTestLoss(Callback):
    """Logs the mean test loss after each epoch, as the recipe does. Nothing may depend on it."""

    @torch.no_grad()
    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Logs `test/loss`, the mean over all cases on all devices."""
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        module.eval().share_buffers()  # type: ignore[operator]
        mean = PerImageMean().to(module.device)
        for batch in datamodule.test_dataloader():
            batch = datamodule.to_network_input(move_data_to_device(batch, module.device))
            logits = module(batch["image"]).float()
            mean.update(module.loss(logits, batch["mask"]))  # type: ignore[operator]
        module.train()
        # `compute` already gathers the devices' cases, so all log the same value.
        module.log("test/loss", mean.compute(), logger=False, sync_dist=True)
