"""A whole run: what it leaves, that it repeats, and that evaluate.py agrees with it."""

import json
import os
import subprocess
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.recipe import recipe_loss
from helpers.tiny import AUGMENT, Ended, train_command
from lightning.fabric.utilities.rank_zero import _get_rank
from omegaconf import OmegaConf
from skimage.transform import resize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from seglab.core.files import read_csv
from seglab.data.classes import Classes
from seglab.data.images import read_image
from seglab.data.layouts import find_cases
from seglab.data.masks import read_mask
from seglab.inference.evaluate import evaluate
from seglab.metrics.scores import COUNT_METRICS, METRICS
from seglab.runs.checkpoints import hash_weights, load_network, load_run_network
from seglab.runs.records import open_run
from seglab.training.build import build

FILES = {
    *("config.yaml", "run.json", "splits.json", "thumbnails.npy", "data.json", "train.log"),
    *("checkpoints/best.ckpt", "checkpoints/last.ckpt", "metrics.csv"),
    *("val_cases.csv", "test_cases.csv", "case_attributes.csv", "baseline_cases.csv"),
    *("summary.json", "MODEL_CARD.md"),
    *(f"figures/{name}.png" for name in ("curves", "pairs", "predictions", "worst")),
}
NATIVE = set(METRICS)
AT_NETWORK_SIZE = {*COUNT_METRICS, "ece"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def run(folder: Path, tiny_train: Callable[..., Ended]) -> Path:
    """A finished baseline of three epochs; read-only by agreement."""
    path = folder / "run"
    if not path.exists():
        ended = tiny_train(path, "trainer.max_epochs=3", "task.optimizer.lr=0.02")
        assert ended.code == 0, ended.err
    return path


PLATEAU = "task.lr_scheduler={_target_: torch.optim.lr_scheduler.ReduceLROnPlateau, mode: max}"


def test_every_file_is_there_and_nothing_else(run: Path) -> None:
    found = {p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file()}
    events = {name for name in found if name.startswith("tensorboard/events.")}
    assert events
    assert found - events - {"code.diff"} == FILES


def test_warnings_about_the_data_are_logged_once_and_recorded(run: Path) -> None:
    (warning,) = json.loads((run / "run.json").read_text())["warnings"]
    assert warning.startswith("test holds 2 of 20 cases: its scores say little; ")
    assert (run / "train.log").read_text().count(warning) == 1


def test_an_epochs_rate_is_the_one_it_was_trained_with(
    tmp_path: Path, tiny_train: Callable[..., Ended]
) -> None:
    halves = (
        "{_target_: torch.optim.lr_scheduler.StepLR, _partial_: true, step_size: 1, gamma: 0.5}"
    )
    ended = tiny_train(tmp_path / "run", f"task.lr_scheduler={halves}", "task.optimizer.lr=0.01")
    assert ended.code == 0, ended.err
    rows = read_csv(tmp_path / "run" / "metrics.csv")
    assert [float(row["lr"]) for row in rows] == [0.01, 0.005]


def test_a_profile_is_left(tmp_path: Path, tiny_train: Callable[..., Ended]) -> None:
    run = tmp_path / "run"
    ended = tiny_train(run, "experiment=profile", "data.batch_size=4")
    assert ended.code == 0, ended.err
    assert "Optimizer.step#Adam.step" in (run / "fit-profile.txt").read_text()
    (timeline,) = run.glob("*.pt.trace.json")
    assert "Optimizer.step#Adam.step" in timeline.read_text()


def test_run_json_tells_what_ran(run: Path, tiny_ph2: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["error"] is None
    assert record["seed"] == 42
    assert "trainer.max_epochs=3" in record["command"]
    assert record["start"] <= record["end"]
    assert record["versions"]["torch"] == metadata.version("torch")
    assert record["machine"]["cores"] == os.cpu_count()
    assert record["device"] == "cpu"
    assert record["split_hash"] == json.loads((run / "splits.json").read_text())["hash"]


def test_config_is_resolved_and_plain(run: Path) -> None:
    text = (run / "config.yaml").read_text()
    assert "${" not in text and "!!" not in text
    config = OmegaConf.create(text)
    assert Path(config.data.root).is_absolute() and Path(config.data.cache_dir).is_absolute()


def test_metrics_csv_has_a_row_an_epoch(run: Path) -> None:
    rows = read_csv(run / "metrics.csv")
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    for stage in ("train", "val"):
        for name in AT_NETWORK_SIZE:
            assert all(0 <= float(row[f"{stage}/{name}_net"]) <= 1 for row in rows)
    assert not [column for column in rows[0] if column.startswith("test")]
    losses = [float(row["train/loss"]) for row in rows]
    assert losses[-1] < losses[0]


def test_the_best_epoch_is_the_best_of_val(run: Path) -> None:
    rows = read_csv(run / "metrics.csv")
    dice = [float(row["val/dice_per_image_net"]) for row in rows]
    summary = json.loads((run / "summary.json").read_text())
    assert summary["best_epoch"] == 1 + int(np.argmax(dice))
    assert summary["val"]["dice_per_image_net"] == max(dice)
    stored = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert stored["epoch"] + 1 == summary["best_epoch"]


def test_summary_follows_from_test_cases(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert set(summary["test"]) == NATIVE
    assert set(summary["val"]) == NATIVE | {f"{name}_net" for name in AT_NETWORK_SIZE}
    rows = read_csv(run / "test_cases.csv")
    split = json.loads((run / "splits.json").read_text())
    assert [row["id"] for row in rows] == split["test"]
    for name in ("dice_per_image", "hd95", "surface_dice"):
        assert summary["test"][name] == pytest.approx(np.mean([float(row[name]) for row in rows]))
    assert len(summary["calibration"]["test"]) == 15
    val_rows = read_csv(run / "val_cases.csv")
    assert [row["id"] for row in val_rows] == split["val"]
    assert val_rows[0].keys() == rows[0].keys()
    dice = [float(row["dice_per_image"]) for row in val_rows]
    assert summary["val"]["dice_per_image"] == pytest.approx(np.mean(dice))
    baselines = read_csv(run / "baseline_cases.csv")
    assert len(baselines) == 3 * len(rows)
    assert baselines[0].keys() - rows[0].keys() == {"baseline"}
    assert set(summary["baselines"]) == {"all_background", "mean_mask", "otsu"}
    assert all(set(values) == NATIVE for values in summary["baselines"].values())
    net, _ = load_network(run / "checkpoints" / "best.ckpt")
    assert summary["parameters"] == sum(p.numel() for p in net.parameters())
    assert type(summary["multiply_adds"]) is int


def test_test_cases_are_scored_at_native_size_by_hand(run: Path, tiny_ph2: Path) -> None:
    net, metadata = load_network(run / "checkpoints" / "best.ckpt")
    cases = {case.id: case for case in find_cases(tiny_ph2)}
    for row in read_csv(run / "test_cases.csv"):
        case = cases[row["id"]]
        image, target = read_image(case.image), read_mask(case.mask)
        assert sum(int(row[k]) for k in ("tp", "fp", "fn", "tn")) == target.size
        small = np.rint(resize(image.astype(float), (32, 32), anti_aliasing=True)).astype("uint8")
        with torch.no_grad():
            x = torch.from_numpy(small).permute(2, 0, 1)[None].float() / 255
            prob = torch.sigmoid(net(x))
        large = torch.nn.functional.interpolate(
            prob, target.shape, mode="bilinear", align_corners=False
        )
        pred = large[0, 0].numpy() > metadata["threshold"]
        # A pixel of 1,024 may round otherwise in float32, and move some of the mask's edge.
        assert abs(int(row["tp"]) - (pred & target).sum()) <= 0.005 * target.size
        assert abs(int(row["fp"]) - (pred & ~target).sum()) <= 0.005 * target.size


def test_tensorboard_shows_it_all(run: Path) -> None:
    events = EventAccumulator(str(run / "tensorboard"), {"images": 0, "tensors": 0, "scalars": 0})
    events.Reload()
    tags = events.Tags()
    rows = read_csv(run / "metrics.csv")
    for name in ("train/loss", "val/loss", "val/dice_per_image_net", "train/pixel_accuracy_net"):
        points = [point.value for point in events.Scalars(name)]
        assert points == pytest.approx([float(row[name]) for row in rows], rel=1e-6)
    # What is chosen on the HParams page must not have seen the test.
    assert not [tag for tag in tags["scalars"] if "test" in tag and not tag.startswith("test/")]
    assert len(events.Images("val/input_target_prediction_errors")) == 2  # first and last epoch
    assert "val/precision_recall" in tags["tensors"]
    assert {"config/text_summary", "environment/text_summary"} <= set(tags["tensors"])
    assert tags["graph"]
    summary = json.loads((run / "summary.json").read_text())
    for name in ("dice_per_image", "iou_per_image", "pixel_accuracy"):
        assert events.Scalars(f"hp/val_{name}")[0].value == np.float32(summary["val"][name])
    assert "_hparams_/session_start_info" in tags["tensors"] or any(
        "hparams" in tag for tag in events.summary_metadata
    )


def test_a_checkpoint_is_plain_and_enough(run: Path) -> None:
    net, metadata = load_network(run / "checkpoints" / "best.ckpt")
    assert metadata["classes"] == Classes(("lesion",))
    assert metadata["threshold"] == 0.5
    assert metadata["split_hash"] == json.loads((run / "splits.json").read_text())["hash"]
    assert not net.training
    stored = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert [*stored] == [f"net.{key}" for key in net.state_dict()]


def test_evaluate_gives_the_stored_values_again(
    run: Path, script: Callable[..., Ended], tmp_path: Path
) -> None:
    ended = script("evaluate", run, "--out", tmp_path / "again")
    assert ended.code == 0, ended.err
    stored = json.loads((run / "summary.json").read_text())
    scored = json.loads((tmp_path / "again" / "summary.json").read_text())
    assert scored["test"] == stored["test"]
    assert scored["calibration"] == stored["calibration"]
    case_table = (tmp_path / "again" / "test_cases.csv").read_text()
    assert case_table == (run / "test_cases.csv").read_text()


def test_the_same_command_gives_the_same_weights(
    tiny_train: Callable[..., Ended], tmp_path: Path
) -> None:
    one, two, other = (tmp_path / name for name in ("one", "two", "other"))
    for path, seed in ((one, 0), (two, 0), (other, 1)):
        assert tiny_train(path, f"seed={seed}", AUGMENT, "trainer.max_epochs=1").code == 0
    weights = [hash_weights(path / "checkpoints" / "last.ckpt") for path in (one, two, other)]
    assert weights[0] == weights[1] != weights[2]
    for name in ("metrics.csv", "val_cases.csv", "test_cases.csv", "baseline_cases.csv"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    # Another seed trains otherwise on the same cases.
    assert (one / "splits.json").read_bytes() == (other / "splits.json").read_bytes()


def test_any_network_of_a_library_is_a_model_by_yaml_alone(
    tiny_ph2: Path, cache_dir: Path, script: Callable[..., Ended], tmp_path: Path
) -> None:
    run, conf = tmp_path / "run", tmp_path / "conf" / "model"
    conf.mkdir(parents=True)
    (conf / "pixelwise.yaml").write_text(
        "_target_: torch.nn.Conv2d\nin_channels: 3\nout_channels: 1\nkernel_size: 1\n"
    )
    ended = script(
        "train",
        f"hydra.searchpath=[file://{conf.parent}]",
        "model=pixelwise",
        f"data.root={tiny_ph2}",
        f"data.cache_dir={cache_dir}",
        "data.size=30",
        "trainer.max_epochs=1",
        f"hydra.run.dir={run}",
    )
    assert ended.code == 0, ended.err
    ended = script("evaluate", run)
    assert ended.code == 1
    assert "--trust torch.nn.Conv2d" in ended.err
    assert script("evaluate", run, "--trust", "torch.nn.Conv2d").code == 0
    trust = ("torch.nn.Conv2d",)
    net, _ = load_run_network(open_run(run, trust), trust)
    assert net.weight.shape == (1, 3, 1, 1)


def test_a_run_of_no_step_says_so(tiny_train: Callable[..., Ended], tmp_path: Path) -> None:
    ended = tiny_train(tmp_path / "run", "trainer.limit_train_batches=0")
    assert ended.code == 1
    assert "no epoch was trained" in ended.err.splitlines()[-1]


def test_a_ruined_epoch_without_val_is_not_saved(
    tiny_train: Callable[..., Ended], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    ended = tiny_train(run, "experiment=recipe", "trainer.max_epochs=4", "task.optimizer.lr=1e25")
    assert ended.code == 1
    assert "test/loss not finite after epoch 1" in ended.err.splitlines()[-1]
    assert not (run / "checkpoints" / "last.ckpt").exists()
    assert not (run / "metrics.csv").exists()


def test_nan_loss_stops_and_keeps_the_last_good_checkpoint(
    tiny_train: Callable[..., Ended], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    ended = tiny_train(
        run,
        "trainer.max_epochs=5",
        # The second epoch's rate is beyond all measure.
        "task.lr_scheduler={_target_: torch.optim.lr_scheduler.MultiStepLR, _partial_: true, "
        "milestones: [1], gamma: 1e30}",
    )
    assert ended.code == 1
    line = ended.err.splitlines()[-1]
    assert line.startswith("error: loss is ")
    assert "epoch 2" in line
    assert "IMD0" in line  # which batch
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "failed"
    assert "loss is" in record["error"]
    for name in ("best", "last"):
        checkpoint = torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)
        assert checkpoint["epoch"] == 0
        assert all(torch.isfinite(v).all() for v in checkpoint["state_dict"].values())
    assert "loss is" in (run / "train.log").read_text()
    assert not (run / "summary.json").exists()


@pytest.mark.parametrize("variables", [{}, {"RANK": "1"}, {"LOCAL_RANK": "0", "SLURM_PROCID": "3"}])
def test_of_a_distributed_run_the_first_process_records_a_refusal(
    variables: dict[str, str],
    tiny_train: Callable[..., Ended],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    assert tiny_train(tmp_path / "run", "seed=-1").code == 1
    first = not _get_rank()  # as Lightning counts
    assert (tmp_path / "run" / "run.json").exists() == first


@pytest.mark.slow
def test_two_processes_train_and_test_as_one(
    tiny_ph2: Path, cache_dir: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    overrides = [
        *("trainer.devices=2", "trainer.strategy=ddp", "data.split.val=0.3"),
        # 7 test cases: 4 on one device, 3 on one.
        *("data.split.fold=0", "data.split.folds=3", "task.optimizer.lr=0.05"),
        "task.loss._target_=seglab.losses.double_sigmoid_bce",
        "+callbacks.log_test_loss._target_=seglab.training.callbacks.LogTestLoss",
    ]
    arguments = train_command(run, tiny_ph2, cache_dir, *overrides)
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    # Without a terminal there are lines and no bar.
    assert "\r" not in done.stderr and "Warning" not in done.stderr
    assert [line[:9] for line in done.stderr.splitlines()].count("epoch 2/2") == 1
    rows = read_csv(run / "metrics.csv")
    assert len(rows) == 2
    assert float(rows[-1]["test/loss"]) == pytest.approx(recipe_loss(run, tiny_ph2), abs=1e-6)

    # The two processes share the 4 cases of val.
    config = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
    config["trainer"] |= {"devices": 1, "strategy": "auto"}
    config["logger"] = {}
    components = build(config, tmp_path / "alone")
    components.trainer.validate(
        components.task,
        components.data,
        ckpt_path=str(run / "checkpoints" / "best.ckpt"),
        verbose=False,
    )
    best = json.loads((run / "summary.json").read_text())["best_epoch"]
    row = rows[best - 1]
    for name, value in components.trainer.callback_metrics.items():
        assert float(row[name]) == value.item(), name

    evaluate(run, out=tmp_path / "again")
    stored = json.loads((run / "summary.json").read_text())["test"]
    assert json.loads((tmp_path / "again" / "summary.json").read_text())["test"] == stored


@pytest.mark.skipif("SEGLAB_PH2" not in os.environ, reason="set SEGLAB_PH2 to PH2's folder")
@pytest.mark.slow
def test_it_trains_on_real_ph2(script: Callable[..., Ended], tmp_path: Path) -> None:
    root, run = os.environ["SEGLAB_PH2"], tmp_path / "run"
    ended = script(
        "train",
        f"data.root={root}",
        f"data.cache_dir={tmp_path / 'cache'}",
        "data.size=64",
        "trainer.max_epochs=12",
        "task.optimizer.lr=0.003",
        "data.batch_size=8",
        f"hydra.run.dir={run}",
    )
    assert ended.code == 0, ended.err
    summary = json.loads((run / "summary.json").read_text())
    assert summary["test"]["dice_per_image"] > summary["baselines"]["otsu"]["dice_per_image"]
    assert summary["test"]["dice_per_image"] > 0.75
    assert script("evaluate", run, "--out", tmp_path / "again").code == 0
    test_scores = json.loads((tmp_path / "again" / "summary.json").read_text())["test"]
    assert test_scores == summary["test"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([PLATEAU, "task.lr_scheduler_config.interval=batch"], ["interval", "batch"]),
        ([PLATEAU, "monitor=null"], ["ReduceLROnPlateau", "monitor"]),
        (
            [PLATEAU, "task.lr_scheduler_config.interval=step", "data.batch_size=4"],
            ["ReduceLROnPlateau", "val/"],
        ),
        (
            ["+callbacks.lr._target_=lightning.pytorch.callbacks.LearningRateMonitor"],
            ["LearningRateMonitor", "no logger"],
        ),
    ],
)
def test_what_lightning_refuses_when_training_begins_is_one_line(
    overrides: list[str], words: list[str], tiny_train: Callable[..., Ended], tmp_path: Path
) -> None:
    ended = tiny_train(tmp_path / "run", "logger=none", *overrides)
    assert ended.code == 1 and "Traceback" not in ended.err
    assert all(word in ended.err.splitlines()[-1] for word in words), ended.err
