"""TensorBoard logger with the texts and hyperparameters that it shows beside scalars."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf

from seglab.runs.overrides import shorten_keys
from seglab.schema import flatten

# Parameters of single runs on the HParams page; those of a sweep are what varies in it.
_PARAMETERS = (
    "name",
    "seed",
    "model._target_",
    "data.root",
    "data.size",
    "data.batch_size",
    "data.split.fold",
    "data.augment._target_",
    "task.loss._target_",
    "task.optimizer._target_",
    "task.optimizer.lr",
    "task.optimizer.weight_decay",
    "task.lr_scheduler._target_",
    "trainer.max_epochs",
    "trainer.precision",
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

    @rank_zero_only
    def log_description(self, config: Mapping[str, Any], record: Mapping[str, Any]) -> None:
        """Logs as text the resolved config, and the environment from the content of run.json."""
        environment = {key: record[key] for key in ("machine", "git", "versions")}
        for title, content in (("config", dict(config)), ("environment", environment)):
            self.experiment.add_text(title, f"```\n{OmegaConf.to_yaml(content)}```", 0)

    def log_hparams_and_close(
        self, config: Mapping[str, Any], scores: Mapping[str, float], varies: Mapping[str, str]
    ) -> None:
        """Logs one row of TensorBoard's HParams page, and closes the file.

        Args:
            config: Resolved, plain containers.
            scores: Those of val are shown, or without val the last ones of train; what is chosen
                on the page must not have seen the test.
            varies: Overrides, by key, that differ between the jobs of the run's sweep, if any.
        """
        values = flatten(config)
        params = {key: values.get(key) for key in _PARAMETERS}
        if varies:
            names = shorten_keys(varies)
            # A group, such as model, has the name of its file.
            params = {names[key]: values.get(key, text) for key, text in varies.items()}
        val_names = [name for name in scores if name.startswith("val/")]
        chosen = [name for k in _METRICS for name in val_names if name.rpartition("/")[2] == k]
        val = {f"hp/{key.replace('/', '_')}": scores[key] for key in chosen}  # of each data set
        train = {f"hp/train_{k}": scores[f"train/{k}_net"] for k in _METRICS}
        self.log_hyperparams(params, val or train)
        self.experiment.close()
