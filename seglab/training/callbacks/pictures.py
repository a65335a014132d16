"""Logs pictures of predictions to TensorBoard."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only

from seglab.analysis.figures import colorize_mask, error_map, grid
from seglab.inference.postprocessing import predicted_mask
from seglab.inference.predictor import probabilities
from seglab.training.tensorboard import _writer


class Pictures(Callback):
    """Predictions and a precision-recall curve of val at some epochs, and what the run is.

    The same cases every time, spread evenly over val (over train, where there is no val). A row
    a case: input, target, prediction, errors (white found, red false alarm, blue missed). Of
    several classes a curve each.

    Args:
        every_n_epochs: After which epochs; the last one always.
        cases: How many cases.
    """

    def __init__(self, every_n_epochs: int = 5, cases: int = 6) -> None:
        self.every_n_epochs = every_n_epochs
        self.cases = cases

    @rank_zero_only
    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Logs pictures and curve; after the first epoch the network's graph, too."""
        epoch, writer = trainer.current_epoch + 1, _writer(trainer)
        last = epoch == trainer.max_epochs or trainer.should_stop
        if writer is None or not (last or epoch == 1 or epoch % self.every_n_epochs == 0):
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        if epoch == 1:
            _log_graph(writer, module, data.size)
        part = "val" if data.split.val else "train"
        rows = data.subset_indices(part)
        spread = np.linspace(0, len(rows) - 1, min(self.cases, len(rows))).round().astype(int)
        pictured = [rows[i] for i in spread]
        scored = rows if part == "val" else pictured
        images, masks = data.cache.images, data.cache.masks
        prob = {row: _probability(module, images[row]) for row in sorted({*pictured, *scored})}
        tiles = []
        threshold: Any = module.threshold
        for row in pictured:
            pred, target = predicted_mask(prob[row], threshold), masks[row]
            masks_shown = [colorize_mask(mask, data.classes) for mask in (target, pred)]
            tiles.append([images[row], *masks_shown, error_map(pred, target)])
        step = trainer.global_step
        name = f"{part}/input_target_prediction_errors"
        writer.add_image(name, grid(tiles), step, dataformats="HWC")
        classes = data.classes
        for number, class_name in classes.foreground.items():
            channel = classes.numbers.index(number)
            of_class = [masks[row] == number for row in scored]
            probs = [prob[row][channel] for row in scored]
            labels, scores = (np.concatenate([a.ravel() for a in x]) for x in (of_class, probs))
            name = f"{part}/precision_recall" + f"_{class_name}" * classes.is_multiclass
            writer.add_pr_curve(name, labels, scores, step)


@torch.no_grad()
def _log_graph(writer: Any, module: LightningModule, size: int) -> None:
    training = module.training
    net = module.eval().net
    with warnings.catch_warnings():
        # The graph is a picture: that it holds for one size only is no matter.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        writer.add_graph(net, torch.zeros(1, 3, size, size, device=module.device))
    module.train(training)


@torch.no_grad()
def _probability(module: LightningModule, image: np.ndarray) -> np.ndarray:
    """From a cached image, uint8 (S, S, 3), to probabilities, float32 (C, S, S)."""
    training = module.training
    module.eval()
    batch = torch.from_numpy(np.array(image)).to(module.device)[None].permute(0, 3, 1, 2)
    prob = probabilities(module(batch.float() / 255).float())[0].cpu().numpy()
    module.train(training)
    return prob
