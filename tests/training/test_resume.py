"""Runs that are interrupted or damaged and go on end as if nothing had happened."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.resume import PLAIN, SECOND_IS_BEST, SHORT, assert_same
from helpers.tiny import AUGMENT, MOODY, Ended
from omegaconf import DictConfig
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import seglab.training.train
from seglab.core.files import read_csv, read_json, write_json
from seglab.runs.checkpoints import ChecksummedCheckpointIO, read_checkpoint
from seglab.training.callbacks.recorder import RunRecorder
from seglab.training.train import train

# What fixtures hand out.
Compose = Callable[..., DictConfig]
Ends = Callable[..., Ended]
Interrupt = Callable[..., None]


def files_of(run: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of every file."""
    return {
        str(file.relative_to(run)): (file.read_bytes(), file.stat().st_mtime_ns)
        for file in run.rglob("*")
        if file.is_file()
    }


@pytest.fixture
def interrupt_at(monkeypatch: pytest.MonkeyPatch) -> Interrupt:
    """Sends this process SIGINT in the given step, counted (epoch, batch) from 0, once."""
    original = RunRecorder.on_train_batch_start

    def arm(*step: int) -> None:
        armed = [True]

        def start(self: RunRecorder, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            if armed[0] and (trainer.current_epoch, batch_idx) == step:
                armed[0] = False
                os.kill(os.getpid(), signal.SIGINT)
            original(self, trainer, module, batch, batch_idx)

        monkeypatch.setattr(RunRecorder, "on_train_batch_start", start)

    return arm


BY_LOSS = ["monitor=val/loss", "monitor_mode=min"]
# No epoch is ten times as good as the one before: the rate is halved after each or every second.
PLATEAU = [
    *("monitor=val/loss", "monitor_mode=min", "task.optimizer.lr=0.02"),
    "task.lr_scheduler={_target_: torch.optim.lr_scheduler.ReduceLROnPlateau, factor: 0.5, "
    "patience: 0, threshold: 0.9}",
]
ONE_CYCLE = [
    *BY_LOSS,
    "task.lr_scheduler={_target_: torch.optim.lr_scheduler.OneCycleLR, max_lr: 0.05}",
]
LIGHTNING = "={_target_: lightning.pytorch.callbacks."
CALLBACKS_OF_LIGHTNING = [
    "+callbacks.more" + LIGHTNING + "ModelCheckpoint, dirpath: '${run_dir}/more', save_last: true}",
    "+callbacks.average" + LIGHTNING + "EMAWeightAveraging, decay: 0.9}",
    "+callbacks.accumulate"
    + LIGHTNING
    + "GradientAccumulationScheduler, scheduling: {0: 1, 1: 2}}",
    "+callbacks.timer" + LIGHTNING + "Timer, duration: '01:00:00:00'}",
]
CONFIGS: dict[str, list[str]] = {
    "baseline": ["task.optimizer.lr=0.02", *BY_LOSS],
    "augmented": [AUGMENT, "trainer.max_epochs=3", *BY_LOSS],
    "random": [
        *("model._target_=moody.Moody", *BY_LOSS),
        *("task.optimizer._target_=torch.optim.SGD", "+task.optimizer.momentum=0.9"),
        "+task.lr_scheduler._target_=torch.optim.lr_scheduler.CosineAnnealingLR",
        *("+task.lr_scheduler._partial_=true", "+task.lr_scheduler.T_max=3"),
    ],
    "ema": [
        *("callbacks=ema", "callbacks.ema.decay=0.9", "task.encoder_lr_factor=0.3", *BY_LOSS),
        "+task.lr_scheduler._target_=seglab.training.lr_schedulers.cosine",
        *("+task.lr_scheduler._partial_=true", "task.optimizer.lr=0.02"),
        *("+task.lr_scheduler.epochs=3", "+task.lr_scheduler.warmup=0.3"),
    ],
    "recipe": ["experiment=recipe", "trainer.max_epochs=3"],
    "plateau": [*PLATEAU, "task.lr_scheduler.patience=1", "trainer.max_epochs=5"],
    "plateau, steps": [*PLATEAU, "+trainer.max_steps=13", "trainer.max_epochs=5"],
    "plateau, ema, val twice": [
        *(*PLATEAU, "callbacks=ema", "callbacks.ema.decay=0.9", "+trainer.val_check_interval=0.5"),
    ],
    "plateau, val of every second epoch": [
        *(*PLATEAU, "trainer.max_epochs=5", "+trainer.check_val_every_n_epoch=2"),
        "task.lr_scheduler_config.frequency=2",
    ],
    "callbacks of lightning": [*BY_LOSS, *CALLBACKS_OF_LIGHTNING],
    "one cycle, two batches a step": [
        *(*ONE_CYCLE, "data.num_workers=1", "+trainer.accumulate_grad_batches=2"),
    ],
    "one cycle, steps": [*ONE_CYCLE, "+trainer.max_steps=10"],
    "two batches a step": [
        *("+trainer.accumulate_grad_batches=2", "+trainer.check_val_every_n_epoch=2"),
    ],
    "steps": ["+trainer.max_steps=10", *BY_LOSS],
    "val twice": ["+trainer.val_check_interval=0.5", *BY_LOSS],
    "overfit": ["+trainer.overfit_batches=2", *BY_LOSS],
    "loader process": ["data.num_workers=1", "trainer.max_epochs=2"],
}
# Inside an epoch; in an epoch's last step; twice in one epoch; in the very last step.
STEPS = {
    "baseline": [(0, 3), (1, 0), (1, 2), (2, 3)],
    "random": [(0, 1), (1, 2)],
    "steps": [(1, 1), (2, 0)],
    "plateau": [(1, 1), (2, 1), (3, 1), (4, 3)],
    "plateau, ema, val twice": [(1, 1), (2, 3)],
    "plateau, val of every second epoch": [(1, 1), (2, 1), (3, 1), (4, 1)],
    "one cycle, steps": [(1, 1), (2, 1)],
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (i > 3)) for i, name in enumerate(CONFIGS)],
)
def test_a_run_stopped_at_many_steps_ends_as_if_it_had_not_been(
    name: str,
    tiny_config: Compose,
    interrupt_at: Interrupt,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    (tmp_path / "moody.py").write_text(MOODY)
    monkeypatch.syspath_prepend(tmp_path)
    overrides = [*PLAIN, *CONFIGS[name]]
    reference = train(tiny_config(tmp_path / "reference", *overrides))
    run = tmp_path / "run"
    for i, step in enumerate(STEPS.get(name, [(1, 1)])):
        interrupt_at(*step)
        with pytest.raises(KeyboardInterrupt, match="to go on"):
            train(tiny_config(run, *overrides))
        record = read_json(run / "run.json")
        assert record["status"] == "interrupted"
        assert len(record.get("resumed", [])) == i
    assert train(tiny_config(run, *overrides)) == reference
    assert_same(run, tmp_path / "reference")


STOPS_EARLY = [
    *PLAIN,
    "trainer.max_epochs=5",
    "+callbacks.stop._target_=lightning.pytorch.callbacks.EarlyStopping",
    "+callbacks.stop.monitor=val/loss",
    "+callbacks.stop.mode=min",
    "+callbacks.stop.patience=1",
    "+callbacks.stop.min_delta=10",  # which no epoch reaches: it stops after the second
]


def test_a_run_that_stopped_early_trains_no_further(
    tiny_config: Compose, interrupt_at: Interrupt, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reference, run = tmp_path / "reference", tmp_path / "run"
    values = train(tiny_config(reference, *STOPS_EARLY))
    assert (reference / "metrics.csv").read_text().count("\n") == 1 + 2
    for step in ((1, 1), (1, 3)):  # after the second it stops anyway
        interrupt_at(*step)
        with pytest.raises(KeyboardInterrupt):
            train(tiny_config(run, *STOPS_EARLY))
    with monkeypatch.context() as patched:
        patched.setattr(
            seglab.training.train, "score_run", lambda *a: os.kill(os.getpid(), signal.SIGINT)
        )
        with pytest.raises(KeyboardInterrupt):
            train(tiny_config(run, *STOPS_EARLY))
    assert read_json(run / "run.json")["status"] == "interrupted"
    assert train(tiny_config(run, *STOPS_EARLY)) == values
    assert_same(run, reference)


def wait_for_next_second() -> None:
    """Event files of one second and process are sorted as text, number 10 before 9."""
    time.sleep(1 - time.time() % 1)


def test_tensorboard_shows_each_epoch_of_an_interrupted_run_once(
    tiny_config: Compose, interrupt_at: Interrupt, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    for step in ((0, 3), (2, 1)):
        interrupt_at(*step)
        wait_for_next_second()
        with pytest.raises(KeyboardInterrupt):
            train(tiny_config(run, *SHORT))
    wait_for_next_second()
    train(tiny_config(run, *SHORT))
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    rows = read_csv(run / "metrics.csv")
    assert [point.step for point in events.Scalars("val/loss")] == [4, 8, 12]
    values = [point.value for point in events.Scalars("val/loss")]
    assert values == [np.float32(row["val/loss"]) for row in rows]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def reference(folder: Path, tiny_train: Ends) -> Path:
    """A run that was never interrupted; read-only by agreement."""
    run = folder / "reference"
    if not run.exists():
        assert tiny_train(run, *SECOND_IS_BEST).code == 0
        assert read_json(run / "summary.json")["best_epoch"] == 2
    return run


@pytest.fixture
def interrupted(folder: Path, tiny_train: Ends, interrupt_at: Interrupt, tmp_path: Path) -> Path:
    """A copy of a run that was interrupted in its last epoch."""
    run = folder / "interrupted"
    if not run.exists():
        interrupt_at(2, 1)
        assert tiny_train(run, *SECOND_IS_BEST).code == 130
    return Path(shutil.copytree(run, tmp_path / "run"))


def test_a_damaged_checkpoint_is_named_and_without_one_a_run_begins_anew(
    interrupted: Path, reference: Path, tiny_train: Ends
) -> None:
    file = interrupted / "checkpoints" / "last.ckpt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.unlink()  # it may be a link to best.ckpt
    file.write_bytes(content)
    ended = tiny_train(interrupted, *SECOND_IS_BEST)
    assert ended.code == 1
    assert ended.err.splitlines()[-1].startswith(f"error: {file}: damaged")
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    of_other_run = read_checkpoint(file)
    of_other_run["seglab"]["config"]["task"]["optimizer"]["lr"] = 0.5
    ChecksummedCheckpointIO().save_checkpoint(of_other_run, file)
    ended = tiny_train(interrupted, *SECOND_IS_BEST)
    assert ended.code == 1
    assert ended.err.splitlines()[-1].startswith(f"error: {file}: is of another run (task.optim")
    file.unlink()
    ended = tiny_train(interrupted, *SECOND_IS_BEST)
    assert ended.code == 0, ended.err
    assert_same(interrupted, reference)


def test_half_written_files_are_cleared_away_and_a_moved_run_goes_on(
    interrupted: Path, reference: Path, tiny_train: Ends, tmp_path: Path
) -> None:
    begun_no_further = tmp_path / "begun"
    begun_no_further.mkdir()
    (begun_no_further / ".run.json.1.partial").write_bytes(b"half of it")
    moved = interrupted.rename(tmp_path / "elsewhere")
    for name in (".run.json.1.partial", "checkpoints/.last.ckpt.77.partial"):
        (moved / name).write_bytes(b"half of it")
    (moved / ".lock").touch()
    record = read_json(moved / "run.json")
    record["versions"]["torch"] = "1.0"
    write_json(moved / "run.json", record)
    for run in (begun_no_further, moved):
        ended = tiny_train(run, *SECOND_IS_BEST)
        assert ended.code == 0
        assert ("changed since this run began: versions (torch);" in ended.err) == (run == moved)
        assert_same(run, reference)


def test_a_finished_run_is_recognised_and_left_alone(
    reference: Path, tiny_config: Compose, tiny_train: Ends
) -> None:
    before = files_of(reference)
    ended = tiny_train(reference, *SECOND_IS_BEST)
    assert ended.code == 0, ended.err
    assert ended.err.startswith("finished already")
    values = train(tiny_config(reference, *SECOND_IS_BEST))
    for name, value in read_json(reference / "summary.json")["val"].items():
        assert values[f"val/{name}"] == value
    assert all(name.startswith("val/") for name in values)
    assert files_of(reference) == before


OTHER = {
    "seed=1": "seed: 42 then, 1 now",
    "data.size=16": "data.size: 32 then, 16 now",
    "task.lr_scheduler=null": "task.lr_scheduler.gamma: 10000 then, not there now",
    AUGMENT: "data.augment._target_",
    "trainer.max_epochs=4": "trainer.max_epochs: 3 then, 4 now",
}


def test_another_config_is_refused_with_what_differs(
    interrupted: Path, reference: Path, tiny_train: Ends
) -> None:
    for run, override in (*((interrupted, override) for override in OTHER), (reference, "seed=1")):
        before = files_of(run)
        ended = tiny_train(run, *SECOND_IS_BEST, override)
        assert ended.code == 1
        (line,) = ended.err.splitlines()
        assert line.startswith(f"error: {run}: ")
        assert OTHER[override] in line
        assert files_of(run) == before


def test_data_that_has_changed_is_refused(
    interrupted: Path, tiny_ph2: Path, tiny_train: Ends, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(tiny_ph2, tmp_path / "PH2Dataset"))
    config = interrupted / "config.yaml"
    config.write_text(config.read_text().replace(str(tiny_ph2), str(root)))
    before = files_of(interrupted)
    (file,) = root.rglob("IMD004.bmp")
    image = np.array(Image.open(file))
    image[3, 4, 0] ^= 1
    Image.fromarray(image).save(file)
    ended = tiny_train(interrupted, *SECOND_IS_BEST, f"data.root={root}")
    assert ended.code == 1
    (line,) = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert str(file.relative_to(root)) in line
    assert files_of(interrupted) == before
