"""What TensorBoard shows besides scalars."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf

from seglab.runs.overrides import shorten_keys

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
        "lr_scheduler": _last(task["lr_scheduler"]) if task["lr_scheduler"] else "none",
        "epochs": config["trainer"]["max_epochs"],
        "precision": str(config["trainer"]["precision"]),
        "seed": config["seed"],
    }
    if varies:
        params = {}
    names = shorten_keys(varies)
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
