"""Callback that logs pictures of predictions to TensorBoard."""

import warnings

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only

from seglab.analysis.figures import colorize_mask, error_map, grid
from seglab.data.datamodule import SegmentationDataModule
from seglab.inference.postprocessing import predicted_mask
from seglab.inference.predictor import probabilities
from seglab.training.tensorboard import TensorBoard


class Pictures(Callback):
    """Logs predictions and precision-recall curves of val to TensorBoard, and the network's graph.

    The pictured cases are the same every time, spread evenly over val (over train without val),
    one row per case: input, target, prediction, errors (white hit, red false alarm, blue miss).
    With several classes there is a curve for each but background. Predictions are those of the
    weights that train, also where an average of them is validated.

    Args:
        every_n_epochs: Number of epochs between two sets of pictures; after the first and the
            last epoch there are pictures in any case.
        cases: Number of pictured cases.
    """

    def __init__(self, every_n_epochs: int = 5, cases: int = 6) -> None:
        self.every_n_epochs = every_n_epochs
        self.cases = cases

    @rank_zero_only
    @torch.no_grad()
    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Logs pictures and curves; after the first epoch the network's graph, too."""
        epoch = trainer.current_epoch + 1
        is_last = epoch == trainer.max_epochs or trainer.should_stop
        is_due = is_last or epoch == 1 or epoch % self.every_n_epochs == 0
        tensorboard = next((x for x in trainer.loggers if isinstance(x, TensorBoard)), None)
        if tensorboard is None or not is_due:
            return
        writer = tensorboard.experiment
        data: SegmentationDataModule = trainer.datamodule  # type: ignore[attr-defined]
        module.eval()
        if epoch == 1:
            with warnings.catch_warnings():
                # The graph is only looked at, so that it holds for one size does not matter.
                warnings.simplefilter("ignore", torch.jit.TracerWarning)
                blank = torch.zeros(1, 3, data.size, data.size, device=module.device)
                # torch 2.13 cannot trace its deterministic upsampling on a GPU.
                mode = torch.get_deterministic_debug_mode()
                torch.set_deterministic_debug_mode("default")
                writer.add_graph(module.net, blank)
                torch.set_deterministic_debug_mode(mode)
        subset = "val" if data.split.val else "train"
        rows = data.subset_indices(subset)
        spread = np.linspace(0, len(rows) - 1, min(self.cases, len(rows))).round().astype(int)
        pictured = [rows[i] for i in spread]
        prob = {
            row: _predict(module, data.cache.images[row])
            for row in (rows if subset == "val" else pictured)
        }
        module.train()
        tiles = []
        for row in pictured:
            image, target = data.cache.images[row], data.cache.masks[row]
            pred = predicted_mask(prob[row], module.threshold)  # type: ignore[arg-type]
            masks = [colorize_mask(mask, data.classes) for mask in (target, pred)]
            tiles.append([image, *masks, error_map(pred, target)])
        name = f"{subset}/input_target_prediction_errors"
        writer.add_image(name, grid(tiles), trainer.global_step, dataformats="HWC")
        for number, class_name in data.classes.foreground.items():
            channel = data.classes.numbers.index(number)
            labels = np.concatenate([(data.cache.masks[r] == number).ravel() for r in prob])
            scores = np.concatenate([prob[row][channel].ravel() for row in prob])
            name = f"{subset}/precision_recall"
            if data.classes.is_multiclass:
                name += f"_{class_name}"
            writer.add_pr_curve(name, labels, scores, trainer.global_step)


def _predict(module: LightningModule, image: np.ndarray) -> np.ndarray:
    """Returns probabilities, float32 (C, S, S), of a cached image, uint8 (S, S, 3)."""
    batch = torch.from_numpy(np.array(image)).to(module.device)[None].permute(0, 3, 1, 2)
    return probabilities(module(batch.float() / 255).float())[0].cpu().numpy()
