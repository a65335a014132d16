"""What loggers get, that they are tried early, and that runs go on in them as if never stopped."""

import importlib.util
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
import yaml
from helpers.resume import PLAIN
from helpers.wandb_file import read_wandb
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from omegaconf import DictConfig
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from seglab.core.errors import InputError
from seglab.core.files import read_csv, read_json
from seglab.runs.checkpoints import hash_weights, read_checkpoint
from seglab.schema import flatten
from seglab.training.callbacks.recorder import RunRecorder
from seglab.training.train import train

Compose = Callable[..., DictConfig]
ALL = "logger=[csv,mlflow,tensorboard,wandb]"
WITHOUT = [option for option in PLAIN if option != "logger=none"]


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables, which take seconds to make."""
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture(autouse=True)
def place(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The folder where the command is started, without a server and a login."""
    (tmp_path / "runs").mkdir()
    shutil.copy(empty_store, tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(("MLFLOW", "WANDB"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    yield
    wandb.teardown()  # the next test has another environment


def mlflow_runs() -> tuple[MlflowClient, list[Any]]:
    client = MlflowClient(f"sqlite:///{Path.cwd()}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("baseline")
    return client, client.search_runs([experiment.experiment_id])


def logged_by_mlflow(client: MlflowClient, run: Any) -> dict[str, list[tuple[int, float]]]:
    return {
        name: [(p.step, p.value) for p in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
    }


def wandb_folders(run: Path) -> list[Path]:
    return sorted(run.glob("wandb/offline-run-*"), key=lambda path: path.stat().st_ctime_ns)


def as_columns(rows: list[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """Rows of metrics.csv as points by name; step is where they are."""
    return {
        name: [(int(row["step"]), float(row[name])) for row in rows if row[name]]
        for name in rows[0]
        if name != "step"
    }


def test_each_gets_the_same(
    tiny_config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "runs" / "one"
    monkeypatch.delenv("WANDB_MODE")
    train(tiny_config(run, *WITHOUT, ALL, "logger.wandb.offline=true"))
    expected = as_columns(read_csv(run / "metrics.csv"))
    summary, last = read_json(run / "summary.json"), expected["epoch"][-1][0]
    for part in ("val", "test"):
        final = {k: v for k, v in summary[part].items() if not k.endswith("_net")}
        expected |= {f"{part}/{name}": [(last, value)] for name, value in final.items()}

    client, (logged,) = mlflow_runs()
    assert logged_by_mlflow(client, logged) == expected
    assert (logged.info.run_name, logged.info.status) == ("one", "FINISHED")
    assert logged.data.tags["seglab.run_dir"] == str(run)
    artifacts = Path(logged.info.artifact_uri)
    assert artifacts.is_relative_to(tmp_path / "runs" / "mlflow_artifacts")
    assert (artifacts / "MODEL_CARD.md").read_bytes() == (run / "MODEL_CARD.md").read_bytes()

    config = yaml.safe_load((run / "config.yaml").read_text())
    for name, value in flatten({key: config[key] for key in ("model", "task", "seed")}).items():
        assert logged.data.params[name] == str(value), name
    hparams = yaml.safe_load((run / "csv" / "hparams.yaml").read_text())
    assert hparams["run_dir"] == str(run)
    assert {k: str(v) for k, v in hparams.items()} == logged.data.params | {"run_dir": str(run)}

    (folder,) = wandb_folders(run)
    (file,) = folder.glob("*.wandb")
    stored = read_wandb(file)
    assert {k: v for k, v in stored["config"].items() if k != "_wandb"} == hparams
    assert "MODEL_CARD.md" in stored["files"]
    points: dict[str, list[tuple[int, float]]] = {}
    for row in [*stored["rows"], *read_csv(run / "csv" / "metrics.csv")]:
        step = int(row.get("trainer/global_step", row.get("step")))
        for name in [name for name in row if name in expected and row[name] != ""]:
            points.setdefault(name, []).append((step, float(row[name])))
    assert points == {name: values * 2 for name, values in expected.items()}

    events = EventAccumulator(str(run / "tensorboard")).Reload()
    for name, values in expected.items():
        found = [(p.step, p.value) for p in events.Scalars(name)]
        assert found == [(s, pytest.approx(v, rel=1e-6)) for s, v in values], name


def break_off(
    monkeypatch: pytest.MonkeyPatch, run: Callable[[], Any], before: str, epoch: int
) -> None:
    """Lets a run end by an error before a method of the recorder in an epoch, counted from 1."""
    original = getattr(RunRecorder, before)

    def fail(self: RunRecorder, *args: Any) -> Any:
        if len(self.rows) == epoch:
            raise KeyboardInterrupt
        return original(self, *args)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(RunRecorder, before, fail)
        run()


@pytest.mark.slow
def test_a_run_goes_on_in_the_same_runs_with_the_same_bits(
    tiny_config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, reference = tmp_path / "runs" / "one", tmp_path / "runs" / "reference"
    train(tiny_config(reference, *WITHOUT, "logger=none"))
    # After a row was logged, before its checkpoint; then in the next epoch.
    for method, epoch in (("on_save_checkpoint", 2), ("on_validation_end", 2)):
        break_off(monkeypatch, lambda: train(tiny_config(run, *WITHOUT, ALL)), method, epoch)
    train(tiny_config(run, *WITHOUT, ALL))

    for name in ("best.ckpt", "last.ckpt"):
        files = [folder / "checkpoints" / name for folder in (run, reference)]
        assert hash_weights(files[0]) == hash_weights(files[1])
        states = [read_checkpoint(file)["random_states"][0] for file in files]
        assert states[0]["python"] == states[1]["python"]
        assert states[0]["torch"].equal(states[1]["torch"])
    assert (run / "metrics.csv").read_bytes() == (reference / "metrics.csv").read_bytes()

    expected = as_columns(read_csv(run / "metrics.csv"))
    client, (logged,) = mlflow_runs()
    assert logged.info.status == "FINISHED"
    found = logged_by_mlflow(client, logged)
    assert {name: found[name] for name in expected} == expected
    table = [row for row in read_csv(run / "csv" / "metrics.csv") if row["epoch"]]
    assert {k: v for k, v in as_columns(table).items() if k in expected} == expected
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert [p.step for p in events.Scalars("val/loss")] == [s for s, _ in expected["val/loss"]]
    # Offline, W&B has a folder for each start; the last one has the whole run.
    files = [next(folder.glob("*.wandb")) for folder in wandb_folders(run)]
    assert len({file.name for file in files}) == 1 and len(files) == 3
    epochs = [row["epoch"] for row in read_wandb(files[-1])["rows"] if "epoch" in row]
    assert epochs == [1, 2, 3]


def test_a_run_goes_on_with_other_loggers(
    tiny_config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    without = tiny_config(run, *WITHOUT, "logger=none")
    break_off(monkeypatch, lambda: train(without), "on_validation_end", 2)
    train(tiny_config(run, *WITHOUT, "logger=csv"))
    rows = read_csv(run / "metrics.csv")
    logged = read_csv(run / "csv" / "metrics.csv")
    assert [row["val/loss"] for row in logged if row["epoch"]] == [r["val/loss"] for r in rows]


def test_training_goes_on_without_mlflow_which_gets_the_rest_later(
    tiny_config: Compose,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, original, calls = tmp_path / "runs" / "one", MlflowClient.log_batch, []

    def fail_twice(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs.get("metrics"))
        if sum(metrics is not None for metrics in calls) in (1, 2):
            raise MlflowException("API request failed")
        return original(*args, **kwargs)

    monkeypatch.setattr(MlflowClient, "log_batch", fail_twice)
    train(tiny_config(run, *WITHOUT, "logger=mlflow"))
    assert capsys.readouterr().err.count("logger.mlflow: API request failed; training goes on") == 1
    client, (logged,) = mlflow_runs()
    expected = as_columns(read_csv(run / "metrics.csv"))
    found = logged_by_mlflow(client, logged)
    assert {name: found[name] for name in expected} == expected


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        return taken.getsockname()[1]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["logger=mlflow", f"logger.mlflow.tracking_uri=http://localhost:{free_port()}"],
            "http://localhost:",
        ),
        (["logger=mlflow", "logger.mlflow.tracking_uri=sqlite:////dev/null/a.db"], "/dev/null"),
        (["logger=wandb"], "`wandb login`, or set WANDB_MODE=offline"),
        (["+logger.csv=3", "logger=none"], "logger.csv=3: expected keys or null"),
    ],
)
def test_what_cannot_write_is_refused_before_data_is_read(
    overrides: list[str],
    words: str,
    tiny_config: Compose,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    config = tiny_config(tmp_path / "run", *overrides, f"data.root={tmp_path}/missing")
    with pytest.raises(InputError, match=words) as refusal:
        train(config)
    assert "\n" not in str(refusal.value)
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["run.json"]


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_what_is_not_installed_is_named_with_its_extra(
    name: str, tiny_config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    config = tiny_config(tmp_path / "run", f"logger={name}", f"data.root={tmp_path}/missing")
    with pytest.raises(InputError, match=rf"^logger.{name}: .* pip install 'seglab\[{name}\]'"):
        train(config)


def test_the_hparams_page_shows_train_where_there_is_no_val(
    tiny_config: Compose, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train(tiny_config(run, *WITHOUT, "logger=tensorboard", "data.split.val=0", "monitor=null"))
    last = read_csv(run / "metrics.csv")[-1]
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    for name in ("dice_per_image", "iou_per_image", "pixel_accuracy"):
        (point,) = events.Scalars(f"hp/train_{name}")
        assert point.value == pytest.approx(float(last[f"train/{name}_net"]), rel=1e-6)
    assert not [tag for tag in events.Tags()["scalars"] if tag.startswith(("hp/test", "hp/val"))]
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    hparams = HParamsPluginData.FromString(content).session_start_info.hparams
    assert hparams["seed"].number_value == 42
