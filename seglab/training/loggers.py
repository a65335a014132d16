"""Loggers of a run: tried before the data is read, kept in step with metrics.csv, closed."""

import importlib.util
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock
from hydra.utils import instantiate
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, WandbLogger

from seglab.core.errors import SWEEP_JOB_VARIABLE, InputError, printable
from seglab.runs.directory import RunDirectory
from seglab.schema import result_settings
from seglab.training.tensorboard import TensorBoard

log = logging.getLogger(__name__)

Values = Mapping[str, Any]
# Lightning's loggers of libraries that may be missing; extras have the names of the libraries.
_LIBRARIES = {"MLFlowLogger": "mlflow", "WandbLogger": "wandb"}
# By default a client waits for minutes for a server that is gone.
_MLFLOW_TIMEOUTS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


class RunLoggers:
    """Loggers of a run by name, which get the same hyperparameters, rows, scores and files.

    A run that goes on logs to the same MLflow or W&B run, no epoch twice. Where MLflow or W&B
    fail in training, it goes on, and what they have missed is logged after the next epoch.

    Attributes:
        by_name: The loggers.
    """

    def __init__(self, run: RunDirectory) -> None:
        self.by_name: dict[str, Logger] = {}
        self._run = run
        self._steps: dict[str, int] = {}  # last one that each has; none before `begin`
        self._failing: set[str] = set()

    @property
    def is_in_sweep(self) -> bool:
        """Whether the run is a job of a sweep, of which no logger gets a test value."""
        return SWEEP_JOB_VARIABLE in os.environ or bool(self._run.record.get("varies"))

    def build(self, config: Values) -> None:
        """Builds the loggers of a config; raises an InputError if one cannot be written to."""
        ids = self._run.earlier_record.get("loggers", {})
        for name, settings in config["logger"].items():
            if settings is None:
                continue
            library = _LIBRARIES.get(str(settings.get("_target_")).rpartition(".")[2])
            with self._handle_errors(name, are_fatal=True):
                if library and importlib.util.find_spec(library) is None:
                    raise InputError(f"install it with pip install 'seglab[{library}]'")
                if library == "mlflow":
                    settings = _prepare_mlflow(settings, self._run.path.name, ids.get(name))
                elif library == "wandb":
                    settings = _prepare_wandb(settings, self._run.path.name, ids.get(name))
                    if self.is_in_sweep:
                        settings.setdefault("group", self._run.path.parent.name)
                self.by_name[name] = logger = instantiate(settings)
            if library == "mlflow":
                logger.finalize = lambda status: None  # at the end of fit; `closing` does it

    def begin(self, config: Values, step: int) -> None:
        """Logs hyperparameters, or goes on after the step of a checkpoint (-1: none)."""
        ids = dict(self._run.earlier_record.get("loggers", {}))
        params, run_dir = result_settings(config), self._run.path
        for name, logger in self.by_name.items():
            with self._handle_errors(name, are_fatal=True):
                if isinstance(logger, TensorBoard):
                    logger.purge_after(step)
                    if name not in ids or step < 0:
                        logger.log_description(config, self._run.record)
                elif isinstance(logger, MLFlowLogger):
                    _open_mlflow_run(logger, run_dir, self.is_in_sweep)
                    logger.log_hyperparams(params)  # which cannot change there
                else:
                    logger.log_hyperparams(params | {"run_dir": str(run_dir)})
                self._steps[name] = _last_step(logger, step if name in ids else -1)
                ids[name] = str(logger.version)
                self._run.update(loggers=ids)

    def log_rows(self, rows: Sequence[Values]) -> None:
        """Logs those rows of metrics.csv that a logger does not have."""
        for name, logger in self.by_name.items():
            with self._handle_errors(name):
                for row in rows:
                    if row["step"] > self._steps[name]:
                        metrics = {key: value for key, value in row.items() if key != "step"}
                        logger.log_metrics(metrics, row["step"])
                        self._steps[name] = row["step"]
                logger.save()

    def log_results(
        self, config: Values, row: Values, scores: dict[str, float], files: Sequence[Path]
    ) -> None:
        """Logs final scores, at the step of the last row, and files of the run directory."""
        for name, logger in self.by_name.items():
            with self._handle_errors(name):
                logger.log_metrics(scores, row["step"])
                logger.save()
                if isinstance(logger, TensorBoard):
                    varies = self._run.record.get("varies", {})
                    logger.log_hparams_and_close(config, {**row, **scores}, varies)
                for file in files:
                    if isinstance(logger, MLFlowLogger):
                        folder = os.path.relpath(file.parent, self._run.path).strip(".")
                        logger.experiment.log_artifact(logger.run_id, str(file), folder or None)
                    elif isinstance(logger, WandbLogger):
                        logger.experiment.save(str(file), str(self._run.path), policy="now")
            if name in self._failing:
                log.warning("logger.%s lacks a part of this run; metrics.csv has it all", name)

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Ends the runs of MLflow and W&B after the body, with its status."""
        status = "FAILED"  # a signal's too, as Lightning has it
        try:
            yield
            status = "FINISHED"
        finally:
            for name in self._steps:
                logger = self.by_name[name]
                with self._handle_errors(name):
                    if isinstance(logger, MLFlowLogger):
                        logger.experiment.set_terminated(logger.run_id, status)
                    elif isinstance(logger, WandbLogger):
                        logger.experiment.finish(exit_code=int(status != "FINISHED"))

    @contextmanager
    def _handle_errors(self, name: str, are_fatal: bool = False) -> Iterator[None]:
        """Turns errors into an InputError; where MLflow or W&B begin to fail in training, warns."""
        try:
            yield
            self._failing.discard(name)
        except Exception as error:
            text = f"logger.{name}: {printable(' '.join(str(error).split()), 300)}"
            if are_fatal:
                raise InputError(f"{text}; without it: ~logger.{name}") from error
            if not isinstance(self.by_name[name], MLFlowLogger | WandbLogger):
                raise
            if name not in self._failing:
                log.warning("%s; training goes on", text)
            self._failing.add(name)


def _prepare_mlflow(settings: Values, run_name: str, run_id: str | None) -> dict[str, Any]:
    """Returns arguments of an MLFlowLogger, once its experiment is there."""
    for key, value in {**_MLFLOW_TIMEOUTS, "MLFLOW_DISABLE_TELEMETRY": "true"}.items():
        os.environ.setdefault(key, value)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    uri, location = settings["tracking_uri"], settings.get("artifact_location")
    _, sqlite, path = str(uri).partition("sqlite:///")
    if sqlite:
        file = Path(path).absolute()
        uri, location = f"{sqlite}{file}", location or str(file.parent / "mlflow_artifacts")
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):  # two processes that make its tables at once fail
            file.open("ab").close()  # says at once what SQLAlchemy says after minutes
            MlflowClient(uri).search_experiments(max_results=1)
    client, experiment = MlflowClient(uri), settings["experiment_name"]
    if client.get_experiment_by_name(experiment) is None:
        with suppress(MlflowException):  # another process has just made it
            client.create_experiment(experiment, location)
    run_name = settings.get("run_name") or run_name
    return {**settings, "tracking_uri": uri, "run_name": run_name, "run_id": run_id}


def _prepare_wandb(settings: Values, run_name: str, run_id: str | None) -> dict[str, Any]:
    """Returns arguments of a WandbLogger; refuses where W&B would ask for a login."""
    import wandb

    # As an argument: `offline` sets a variable that W&B has read by now.
    mode = "offline" if settings.get("offline") else settings.get("mode")
    mode = mode or wandb.setup().settings.mode
    if mode == "online" and not wandb.login(prompt=False):
        raise InputError("not logged in; run `wandb login`, or set WANDB_MODE=offline")
    return {**settings, "name": settings.get("name") or run_name, "id": run_id, "mode": mode}


def _open_mlflow_run(logger: MLFlowLogger, run_dir: Path, is_in_sweep: bool) -> None:
    """Makes the MLflow run or goes on with it; that of a sweep's job is a child of the sweep's."""
    client, run_id = logger.experiment, logger.run_id
    client.update_run(run_id, status="RUNNING")
    client.set_tag(run_id, "seglab.run_dir", str(run_dir))
    if is_in_sweep:
        experiment, folder = logger.experiment_id, run_dir.parent
        with FileLock(folder / ".mlflow.lock"):  # the first job makes the parent
            options = {"tags": {"seglab.sweep_dir": str(folder)}, "run_name": folder.name}
            found = [  # compared here: MLflow's filters have no escape for quotes
                run
                for run in client.search_runs([experiment], "tags.`seglab.sweep_dir` != ''")
                if run.data.tags["seglab.sweep_dir"] == str(folder)
            ]
            parent = (found or [client.create_run(experiment, **options)])[0].info.run_id
            client.set_terminated(parent)  # nobody knows which job is the last
        client.set_tag(run_id, "mlflow.parentRunId", parent)


def _last_step(logger: Logger, step: int) -> int:
    """Returns the last step that a logger has: where it cannot be asked, that of the checkpoint."""
    if isinstance(logger, MLFlowLogger):
        points = logger.experiment.get_metric_history(logger.run_id, "epoch")
        return max((point.step for point in points), default=-1)
    if isinstance(logger, WandbLogger):  # offline, each process writes a run of its own
        return logger.experiment.summary.get("trainer/global_step", -1)
    return -1 if isinstance(logger, CSVLogger) else step  # which writes its file anew
