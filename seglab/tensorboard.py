"""What TensorBoard shows besides scalars."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf

from seglab.figures import error_map, grid, shown
from seglab.inference import probabilities
from seglab.masks import predicted_mask
from seglab.overrides import shortened

# The curves that matter, side by side: those of val above, those of train below.
_LAYOUT = {
    part: {
        title: ["Multiline", [rf"^{part}/{name}$"]]
        for title, name in {
            "Dice per image, network size": "dice_per_image_net",
            "IoU per image, network size": "iou_per_image_net",
            "loss": "loss",
        }.items()
    }
    for part in ("val", "train")
}


class TensorBoard(TensorBoardLogger):
    """Lightning's logger, without the file of parameters that it writes beside the events."""

    def purge_after(self, step: int) -> None:
        """Hides what was logged after a step: a run goes on from there. Before the first log."""
        self._kwargs["purge_step"] = step + 1

    @rank_zero_only
    def save(self) -> None:
        """Brings what was logged to disk."""
        self.experiment.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Keeps the file open after fit, since test and the run's end log to it too."""
        self.save()


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
        rows = data.rows(part)
        spread = np.linspace(0, len(rows) - 1, min(self.cases, len(rows))).round().astype(int)
        pictured = [rows[i] for i in spread]
        scored = rows if part == "val" else pictured
        images, masks = data.cache.images, data.cache.masks
        prob = {row: _probability(module, images[row]) for row in sorted({*pictured, *scored})}
        tiles = []
        threshold: Any = module.threshold
        for row in pictured:
            pred, target = predicted_mask(prob[row], threshold), masks[row]
            masks_shown = [shown(mask, data.classes) for mask in (target, pred)]
            tiles.append([images[row], *masks_shown, error_map(pred, target)])
        step = trainer.global_step
        name = f"{part}/input_target_prediction_errors"
        writer.add_image(name, grid(tiles), step, dataformats="HWC")
        classes = data.classes
        for number, own in list(enumerate(classes.names))[1:] if classes.several else [(1, "")]:
            of_class = [masks[row] == number for row in scored]
            probs = [prob[row][number] if own else prob[row] for row in scored]
            labels, scores = (np.concatenate([a.ravel() for a in x]) for x in (of_class, probs))
            name = f"{part}/precision_recall" + (f"_{own}" if own else "")
            writer.add_pr_curve(name, labels, scores, step)


def log_description(trainer: Trainer, config: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Logs config and environment as text, where TensorBoard is on.

    Args:
        trainer: Of the run.
        config: Resolved, plain containers.
        record: Of the run, as in run.json.
    """
    writer = _writer(trainer)
    if writer is None:
        return
    packages = ("torch", "lightning", "torchmetrics", "hydra-core", "numpy", "scikit-image")
    environment = record["machine"] | record["git"]
    environment |= {name: record["versions"].get(name) for name in ("python", *packages)}
    writer.add_custom_scalars(_LAYOUT)
    writer.add_text("config", _block(OmegaConf.to_yaml(dict(config))), 0)
    writer.add_text("environment", _block(OmegaConf.to_yaml(environment)), 0)


def log_hparams(
    trainer: Trainer,
    config: Mapping[str, Any],
    summary: Mapping[str, Any],
    varies: Mapping[str, str] = {},
) -> None:
    """Fills TensorBoard's HParams page: one row for this run.

    The parameters are what varies in a sweep, of which TensorBoard shows the first few at once,
    and the same ones for all single runs. Metrics are those of val: what is chosen there must not
    have seen the test.

    Args:
        trainer: Of the run.
        config: Resolved, plain containers.
        summary: With the scores of `val`, of which the headline is shown.
        varies: Overrides, by key, that differ in the sweep that this run is a job of.
    """
    logger = trainer.logger
    if not isinstance(logger, TensorBoard):
        return
    data, task = config["data"], config["task"]
    params = {
        "name": config["name"],
        "model": _last(config["model"]),
        "data": _last(data["cases"]),
        "size": data["size"],
        "batch_size": data["batch_size"],
        "fold": "holdout" if data["split"]["fold"] is None else str(data["split"]["fold"]),
        "augment": data["augment"] is not None,
        "loss": _last(task["loss"]),
        "optimizer": _last(task["optimizer"]),
        "lr": task["optimizer"].get("lr", "default"),
        "weight_decay": task["optimizer"].get("weight_decay", "default"),
        "schedule": _last(task["schedule"]) if task["schedule"] else "none",
        "epochs": config["trainer"]["max_epochs"],
        "precision": str(config["trainer"]["precision"]),
        "seed": config["seed"],
    }
    if varies:
        params = {}
    names = shortened(varies)
    for key, text in varies.items():
        value: Any = config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        # A group, such as model, is known by the name of its file.
        scalar = isinstance(value, int | float | str)
        params[names[key]] = value if scalar else text
    metrics = {
        f"hp/val_{name}": summary["val"][name]
        for name in ("dice_per_image", "iou_per_image", "pixel_accuracy")
        if name in summary["val"]
    }
    logger.log_hyperparams(params, metrics)
    logger.experiment.close()


def _last(node: Mapping[str, Any]) -> str:
    return str(node["_target_"]).rsplit(".", 1)[-1]


def _block(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.splitlines())


def _writer(trainer: Trainer) -> Any:
    logger = trainer.logger
    return logger.experiment if isinstance(logger, TensorBoard) else None


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
    """From a cached image uint8 (S, S, 3) to probability float32 (S, S), or (K, S, S)."""
    training = module.training
    module.eval()
    batch = torch.from_numpy(np.array(image)).to(module.device)[None].permute(0, 3, 1, 2)
    prob = probabilities(module(batch.float() / 255).float())[0].cpu().numpy()
    module.train(training)
    return prob[0] if len(prob) == 1 else prob
