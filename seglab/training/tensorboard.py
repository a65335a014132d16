"""TensorBoard logger, and the texts and hyperparameters that it shows beside scalars."""

from collections.abc import Mapping
from typing import Any

from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf

from seglab.config import flatten
from seglab.runs.overrides import shorten_keys

# Parameters of single runs on the HParams page; those of a sweep are what varies in it.
_PARAMETERS = (
    *("name", "seed", "model._target_", "data.root", "data.size", "data.batch_size"),
    *("data.split.fold", "data.augment._target_", "task.loss._target_", "task.optimizer._target_"),
    *("task.optimizer.lr", "task.optimizer.weight_decay", "task.lr_scheduler._target_"),
    *("trainer.max_epochs", "trainer.precision"),
)
_METRICS = ("dice_per_image", "iou_per_image", "pixel_accuracy")


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


def get_writer(trainer: Trainer) -> Any:
    """Returns TensorBoard's SummaryWriter, or None with another logger or none."""
    logger = trainer.logger
    return logger.experiment if isinstance(logger, TensorBoard) else None


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
    environment = {key: record[key] for key in ("machine", "git", "versions")}
    for title, content in (("config", dict(config)), ("environment", environment)):
        writer.add_text(title, f"```\n{OmegaConf.to_yaml(content)}```", 0)


def log_hparams(
    trainer: Trainer,
    config: Mapping[str, Any],
    summary: Mapping[str, Any],
    varies: Mapping[str, str],
) -> None:
    """Logs one row of TensorBoard's HParams page.

    Its metrics are those of val, because what is chosen there must not have seen the test.

    Args:
        trainer: The run's trainer.
        config: Resolved, plain containers.
        summary: Content of summary.json.
        varies: Overrides, by key, that differ between the jobs of the run's sweep, if it is of one.
    """
    logger = trainer.logger
    if not isinstance(logger, TensorBoard):
        return
    values = flatten(config)
    if varies:
        names = shorten_keys(varies)
        # A group, such as model, has the name of its file.
        params = {names[key]: values.get(key, text) for key, text in varies.items()}
    else:
        params = {key: values.get(key) for key in _PARAMETERS}
    val = summary["val"]
    logger.log_hyperparams(params, {f"hp/val_{k}": val[k] for k in _METRICS if k in val})
    logger.experiment.close()
