"""TensorBoard logger, and what it shows besides scalars."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf

from seglab.runs.overrides import shorten_keys

# Charts of TensorBoard's Custom Scalars page.
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
    """Lightning's TensorBoardLogger, without its file of hyperparameters."""

    def purge_after(self, step: int) -> None:
        """Hides what was logged after a step, from which a run goes on; call it before any log."""
        self._kwargs["purge_step"] = step + 1

    @rank_zero_only
    def save(self) -> None:
        """Writes what was logged to disk."""
        self.experiment.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Keeps the file open after fit, because hyperparameters are logged later."""
        self.save()


def log_description(trainer: Trainer, config: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Logs config and environment as text.

    Args:
        trainer: The run's trainer.
        config: Resolved, plain containers.
        record: Content of run.json.
    """
    writer = get_writer(trainer)
    if writer is None:
        return
    packages = ("torch", "lightning", "torchmetrics", "hydra-core", "numpy", "scikit-image")
    environment = record["machine"] | record["git"]
    environment |= {name: record["versions"].get(name) for name in ("python", *packages)}
    writer.add_custom_scalars(_LAYOUT)
    writer.add_text("config", _code_block(OmegaConf.to_yaml(dict(config))), 0)
    writer.add_text("environment", _code_block(OmegaConf.to_yaml(environment)), 0)


def log_hparams(
    trainer: Trainer,
    config: Mapping[str, Any],
    summary: Mapping[str, Any],
    varies: Mapping[str, str] = {},
) -> None:
    """Logs one row of TensorBoard's HParams page.

    Its parameters are the ones that vary in the sweep, or the same set for all single runs. Its
    metrics are those of val, because what is chosen there must not have seen the test.

    Args:
        trainer: The run's trainer.
        config: Resolved, plain containers.
        summary: Content of summary.json.
        varies: Overrides, by key, that differ between the jobs of the run's sweep.
    """
    logger = trainer.logger
    if not isinstance(logger, TensorBoard):
        return
    params = _varying_params(config, varies) if varies else _run_params(config)
    metrics = {
        f"hp/val_{name}": summary["val"][name]
        for name in ("dice_per_image", "iou_per_image", "pixel_accuracy")
        if name in summary["val"]
    }
    logger.log_hyperparams(params, metrics)
    logger.experiment.close()


def _run_params(config: Mapping[str, Any]) -> dict[str, Any]:
    data, task, fold = config["data"], config["task"], config["data"]["split"]["fold"]
    return {
        "name": config["name"],
        "model": _class_name(config["model"]),
        "data": _class_name(data["cases"]),
        "size": data["size"],
        "batch_size": data["batch_size"],
        "fold": "holdout" if fold is None else str(fold),
        "augment": data["augment"] is not None,
        "loss": _class_name(task["loss"]),
        "optimizer": _class_name(task["optimizer"]),
        "lr": task["optimizer"].get("lr", "default"),
        "weight_decay": task["optimizer"].get("weight_decay", "default"),
        "lr_scheduler": _class_name(task["lr_scheduler"]) if task["lr_scheduler"] else "none",
        "epochs": config["trainer"]["max_epochs"],
        "precision": str(config["trainer"]["precision"]),
        "seed": config["seed"],
    }


def _varying_params(config: Mapping[str, Any], varies: Mapping[str, str]) -> dict[str, Any]:
    params = {}
    names = shorten_keys(varies)
    for key, text in varies.items():
        value: Any = config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        # A group, such as model, is known by the name of its file.
        params[names[key]] = value if isinstance(value, int | float | str) else text
    return params


def _class_name(node: Mapping[str, Any]) -> str:
    return str(node["_target_"]).rsplit(".", 1)[-1]


def _code_block(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.splitlines())


def get_writer(trainer: Trainer) -> Any:
    """Returns TensorBoard's SummaryWriter, or None with another logger or none."""
    logger = trainer.logger
    return logger.experiment if isinstance(logger, TensorBoard) else None
