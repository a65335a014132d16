"""Runs that are interrupted and go on: each ends as the one that was never interrupted.

First runs within this process, interrupted at named steps or damaged on disk; then real processes
that get real signals, at named moments, at every file operation and at random.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from helpers.tiny import (
    MOODY,
    ONE_THREAD,
    REPO,
    TINY,
    Blow,
    Ended,
    Process,
    end_of,
    fill,
    skip_figures,
    state_of,
    wait_until,
)
from omegaconf import DictConfig
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import seglab.training.train
from seglab.core.files import read_csv, read_json
from seglab.runs import provenance
from seglab.runs.checkpoints import SealedCheckpoints, hash_weights, read_checkpoint
from seglab.training.callbacks.recorder import RunRecorder
from seglab.training.train import train

# What fixtures hand out.
Compose = Callable[..., DictConfig]
Ends = Callable[..., Ended]
Interrupt = Callable[..., None]
Command = Callable[..., subprocess.Popen]

# Four steps an epoch, three epochs.
SHORT = ["data.batch_size=4", "trainer.max_epochs=3"]
# Without pictures a run takes half the time.
PLAIN = [*SHORT, "logger=none", "callbacks.pictures=null"]
# The second epoch is the best of three: in the third the rate is absurd.
RATES = [
    "monitor=train/loss",
    "monitor_mode=min",
    "task.optimizer.lr=0.01",
    "+task.lr_scheduler._target_=torch.optim.lr_scheduler.MultiStepLR",
    "+task.lr_scheduler._partial_=true",
    "+task.lr_scheduler.milestones=[2]",
    "+task.lr_scheduler.gamma=10000",
]
SECOND_IS_BEST = [*PLAIN, *RATES]
FULL = [*SHORT, *RATES, "inference.tune_threshold=true"]
CHECKPOINTS = ("best.ckpt", "last.ckpt")
FILES = ("metrics.csv", "test_cases.csv", "baseline_cases.csv", "splits.json")


def outcome(run: Path) -> dict[str, Any]:
    """All that an interruption must not change, of a run that has ended well."""
    assert read_json(run / "run.json")["status"] == "finished"
    left = [p.name for p in run.rglob("*") if p.name.endswith((".partial", ".lock"))]
    assert not left, left
    summary = read_json(run / "summary.json")
    return {
        **{name: (run / name).read_bytes() for name in FILES},
        **{name: hash_weights(run / "checkpoints" / name) for name in CHECKPOINTS},
        **{key: summary[key] for key in ("val", "test", "baselines", "best_epoch", "threshold")},
        "of best.ckpt": read_checkpoint(run / "checkpoints" / "best.ckpt")["seglab"]["threshold"],
        "files": sorted({p.name for p in run.rglob("*") if "tfevents" not in p.name}),
    }


def assert_same(run: Path, reference: Path) -> None:
    found, expected = outcome(run), outcome(reference)
    assert [name for name in expected if found[name] != expected[name]] == []


def files_of(run: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of every file."""
    return {
        str(file.relative_to(run)): (file.read_bytes(), file.stat().st_mtime_ns)
        for file in run.rglob("*")
        if file.is_file()
    }


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pictures: they take most of a tiny run's time, and nothing here looks at them."""
    skip_figures(monkeypatch)
    for name, cached in _PROVENANCE.items():
        monkeypatch.setattr(provenance, name, cached)


_PROVENANCE = {
    name: functools.cache(getattr(provenance, name))
    for name in ("installed_versions", "read_code_state")
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
CONFIGS: dict[str, list[str]] = {
    "baseline": ["task.optimizer.lr=0.02", *BY_LOSS],
    "augmented": ["experiment=augmented", "trainer.max_epochs=3", *BY_LOSS],
    "random": [
        *("model._target_=moody.Moody", *BY_LOSS),
        *("task.optimizer._target_=torch.optim.SGD", "+task.optimizer.momentum=0.9"),
        "+task.lr_scheduler._target_=torch.optim.lr_scheduler.CosineAnnealingLR",
        *("+task.lr_scheduler._partial_=true", "+task.lr_scheduler.T_max=3"),
    ],
    "ema": [
        *(
            "callbacks=ema",
            "callbacks.ema.decay=0.9",
            "task.encoder_lr_factor=0.3",
            "task.optimizer.lr=0.02",
            *BY_LOSS,
        ),
        *(
            "+task.lr_scheduler._target_=seglab.training.lr_schedulers.cosine",
            "+task.lr_scheduler._partial_=true",
        ),
        *("+task.lr_scheduler.epochs=3", "+task.lr_scheduler.warmup=0.3"),
    ],
    "recipe": ["experiment=recipe", "trainer.max_epochs=3"],
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
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (i > 3)) for i, name in enumerate(CONFIGS)],
)
@pytest.mark.usefixtures("quick")
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


@pytest.mark.usefixtures("quick")
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


@pytest.mark.usefixtures("quick")
def test_tensorboard_shows_each_epoch_of_an_interrupted_run_once(
    tiny_config: Compose, interrupt_at: Interrupt, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    for step in ((0, 3), (2, 1)):
        interrupt_at(*step)
        with pytest.raises(KeyboardInterrupt):
            train(tiny_config(run, *SHORT))
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
def reference(folder: Path, quick: None, tiny_train: Ends) -> Path:
    """A run that was never interrupted; read-only by agreement."""
    run = folder / "reference"
    if not run.exists():
        assert tiny_train(run, *SECOND_IS_BEST).code == 0
        assert read_json(run / "summary.json")["best_epoch"] == 2
    return run


@pytest.fixture
def interrupted(
    folder: Path, quick: None, tiny_train: Ends, interrupt_at: Interrupt, tmp_path: Path
) -> Path:
    """A copy of a run that was interrupted in its last epoch."""
    run = folder / "interrupted"
    if not run.exists():
        interrupt_at(2, 1)
        assert tiny_train(run, *SECOND_IS_BEST).code == 130
    return Path(shutil.copytree(run, tmp_path / "run"))


def damage(file: Path, how: str) -> None:
    content = file.read_bytes()
    middle = len(content) // 2
    file.unlink()
    if how == "a bit flipped":
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif how == "cut":
        file.write_bytes(content[:middle])
    elif how == "zeros":  # what a power cut may leave
        file.write_bytes(bytes(len(content)))
    else:
        assert how == "missing"


@pytest.mark.parametrize("how", ["missing", "a bit flipped", "zeros"])
def test_a_damaged_last_checkpoint_is_named_and_the_best_is_taken(
    how: str, interrupted: Path, reference: Path, tiny_train: Ends
) -> None:
    file = interrupted / "checkpoints" / "last.ckpt"
    damage(file, how)
    ended = tiny_train(interrupted, *SECOND_IS_BEST)
    assert ended.code == 0, ended.err
    assert how == "missing" or str(file) in ended.err
    assert f"going on after step 8, from {file.with_name('best.ckpt')}" in ended.err
    assert_same(interrupted, reference)


@pytest.mark.parametrize(
    ("how", "names"),
    [("missing", ["best.ckpt"]), ("cut", ["best.ckpt"]), ("zeros", CHECKPOINTS)],
)
def test_without_a_best_checkpoint_a_run_begins_anew(
    how: str, names: list[str], interrupted: Path, reference: Path, tiny_train: Ends, script: Ends
) -> None:
    files = [interrupted / "checkpoints" / name for name in names]
    for file in files:
        damage(file, how)
    ended = script("evaluate", interrupted)
    assert ended.code == 1
    (line,) = ended.err.splitlines()
    assert line.startswith(f"error: {files[0]}: ")
    ended = tiny_train(interrupted, *SECOND_IS_BEST)
    assert ended.code == 0, ended.err
    assert how == "missing" or all(str(file) in ended.err for file in files)
    assert "training from the beginning" in ended.err
    assert_same(interrupted, reference)


def test_half_written_files_are_cleared_away(
    interrupted: Path, reference: Path, tiny_train: Ends, tmp_path: Path
) -> None:
    begun_no_further = tmp_path / "begun"
    begun_no_further.mkdir()
    (begun_no_further / ".run.json.1.partial").write_bytes(b"half of it")
    for name in (".run.json.1.partial", "checkpoints/.last.ckpt.77.partial"):
        (interrupted / name).write_bytes(b"half of it")
    (interrupted / ".lock").touch()
    for run in (begun_no_further, interrupted):
        assert tiny_train(run, *SECOND_IS_BEST).code == 0
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
    assert files_of(reference) == before


OTHER = {
    "seed=1": "seed: 42 then, 1 now",
    "data.size=16": "data.size: 32 then, 16 now",
    "task.lr_scheduler=null": "task.lr_scheduler.gamma: 10000 then, not there now",
    "experiment=augmented": "data.augment._target_",
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


def test_a_moved_run_goes_on(
    interrupted: Path, reference: Path, tiny_train: Ends, tmp_path: Path
) -> None:
    moved = interrupted.rename(tmp_path / "elsewhere")
    assert tiny_train(moved, *SECOND_IS_BEST).code == 0
    assert_same(moved, reference)


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


def test_a_run_that_was_killed_while_it_began_anew_forgets_its_old_checkpoint(
    interrupted: Path, reference: Path, tiny_train: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    (interrupted / "checkpoints" / "best.ckpt").unlink()
    save = SealedCheckpoints.save_checkpoint

    def die(self: SealedCheckpoints, checkpoint: Any, path: Any, **options: Any) -> None:
        if Path(path).name == "last.ckpt":
            raise KeyboardInterrupt
        save(self, checkpoint, path, **options)

    with monkeypatch.context() as patched:
        patched.setattr(SealedCheckpoints, "save_checkpoint", die)
        assert tiny_train(interrupted, *SECOND_IS_BEST).code == 130
    # What lies there now: the first epoch's best.ckpt, and a last.ckpt of the third.
    assert tiny_train(interrupted, *SECOND_IS_BEST).code == 0
    assert_same(interrupted, reference)


Start = Callable[..., Process]


@pytest.fixture(scope="module")
def forks() -> Iterator[Any]:
    """What forks processes; one thread each, and out of git's sight, which takes time."""
    with pytest.MonkeyPatch.context() as patched:
        for name, value in ONE_THREAD.items():
            patched.setenv(name, value)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["pytest", "tiny", "tensorboard", "seglab.training.train"])
        first = context.Process(target=os.getpid)  # starts the server, in this environment
        first.start()
        first.join()
        yield context


@pytest.fixture(scope="module")
def start(forks: Any, tiny_ph2: Path, folder: Path) -> Start:
    """Starts a process that trains on the tiny PH2: start(run_dir, *overrides, **options).

    Its cache lies beside the run directory.
    """

    def start(run: Path, *overrides: str, **options: Any) -> Process:
        arguments = [
            f"data.root={tiny_ph2}",
            f"data.cache_dir={run.parent / 'cache'}",
            *TINY,
            *overrides,
            f"hydra.run.dir={run}",
        ]
        return Process(forks, folder, arguments=arguments, **options)

    return start


class Whole(NamedTuple):
    """A run of a process that nothing happened to."""

    run: Path
    seconds: float
    operations: list[str]  # on files below the run directory and the cache


@pytest.fixture(scope="module")
def whole(start: Start, folder: Path) -> Whole:
    run, log = folder / "untouched" / "run", folder / "operations"
    began = time.monotonic()
    ended = start(run, *FULL, folders=below(run), operations=str(log)).wait()
    seconds = time.monotonic() - began
    assert ended.code == 0, ended.err
    return Whole(run, seconds, log.read_text().replace(f"{run.parent}/", "").splitlines())


def below(run: Path) -> tuple[str, str]:
    return str(run), str(run.parent / "cache")


@pytest.fixture
def untouched(whole: Whole) -> Path:
    return whole.run


@pytest.fixture
def finishes(start: Start, untouched: Path) -> Ends:
    """Starts a run again, which must end as `untouched`: finishes(run_dir, *overrides)."""

    def finish(run: Path, *overrides: str) -> Ended:
        ended = start(run, *FULL, *overrides).wait()
        assert ended.code == 0, ended.err
        assert "Traceback" not in ended.err
        assert_same(run, untouched)
        assert not list(run.parent.rglob("*.partial"))
        return ended

    return finish


def some(values: Any, slow: int) -> list[Any]:
    """All are long tests, the first few slow ones too."""
    marks = [pytest.mark.long], [pytest.mark.long, pytest.mark.slow]
    return [pytest.param(value, marks=marks[i < slow]) for i, value in enumerate(values)]


@pytest.mark.parametrize("seed", some(range(20), slow=2))
def test_a_run_killed_at_a_random_moment(
    seed: int, start: Start, whole: Whole, finishes: Ends, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    moment = random.Random(seed).uniform(0, whole.seconds)
    while start(run, *FULL).kill_after(moment).code == 0:  # it was faster this time
        shutil.rmtree(tmp_path)
        moment *= 0.9
    print(f"{seed}: after {moment:.2f} of {whole.seconds:.2f} s: {state_of(run)}")
    finishes(run)


@pytest.mark.long
def test_a_run_killed_again_and_again(start: Start, whole: Whole, tmp_path: Path) -> None:
    reference, run = tmp_path / "reference", tmp_path / "run"
    overrides = [*FULL, "trainer.max_epochs=30", "task.lr_scheduler.gamma=0.5"]
    assert start(reference, *overrides).wait().code == 0
    moments = random.Random(0)
    code, kills = -signal.SIGKILL, 0
    while code == -signal.SIGKILL and kills < 100:
        ended = start(run, *overrides).kill_after(moments.uniform(0.2, 1) * whole.seconds)
        code, kills = ended.code, kills + (ended.code < 0)
        print(f"{kills}: {code}, {state_of(run)}")
    assert code == 0, ended.err
    assert kills > 2
    assert_same(run, reference)


PARTS = 40


@pytest.mark.parametrize("part", some(range(PARTS), slow=1))
def test_a_run_killed_at_every_file_operation(
    part: int, start: Start, whole: Whole, finishes: Ends, tmp_path: Path
) -> None:
    for operation in whole.operations[part::PARTS]:
        number = operation.split()[0]
        run = tmp_path / number / "run"
        killed = start(run, *FULL, blow=Blow(nth=int(number)), folders=below(run)).wait()
        assert killed.code == -signal.SIGKILL, (operation, killed)
        print(f"{operation} of {len(whole.operations)}: {state_of(run)}")
        finishes(run)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no mount")
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def assert_one_clear_line(ended: Ended, reason: str, folder: Path) -> None:
    assert ended.code == 1, ended.err
    assert "Traceback" not in ended.err
    assert "Exception" not in ended.err
    (line,) = [line for line in ended.err.splitlines() if reason in line]
    assert line == ended.err.splitlines()[-1]
    assert re.match(rf"error: {re.escape(str(folder))}\S*: .*{reason}", line), line


# KiB that are left for a cache, or for all else.
ROOMS = [("cache", room) for room in (32, 0, 4, 8, 16, 64, 96)]
ROOMS += [("run", room) for room in (192, 0, 4, 8, 16, 32, 64, 96, 128, 256, 320)]


@pytest.mark.parametrize("room", [*some(ROOMS[:7], slow=1), *some(ROOMS[7:], slow=1)], ids=str)
def test_a_full_disk_is_told_and_a_run_goes_on_when_there_is_room(
    room: tuple[str, int],
    start: Start,
    untouched: Path,
    finishes: Ends,
    disk: Path,
    tmp_path: Path,
) -> None:
    what, left = room
    run, cache = tmp_path / "run", disk / "cache"
    if what == "run":
        run, cache = disk / "run", untouched.parent / "cache"
    ballast = fill(disk, left * 1024)
    ended = start(run, *FULL, f"data.cache_dir={cache}").wait()
    print(f"{what}, {left} KiB: {state_of(run)}: {ended.err.splitlines()[-1]}")
    assert_one_clear_line(ended, "No space left on device", disk / what)
    ballast.unlink()
    finishes(run, f"data.cache_dir={cache}")


@pytest.mark.parametrize("size", some([3, 10, 30], slow=0))
def test_a_quota_is_told_like_a_full_disk(
    size: int, start: Start, untouched: Path, finishes: Ends, tmp_path: Path
) -> None:
    run, cache = tmp_path / "run", f"data.cache_dir={untouched.parent / 'cache'}"
    ended = start(run, *FULL, cache, largest_file=size * 1024).wait()
    print(f"{size} KiB: {state_of(run)}: {ended.err.splitlines()[-1]}")
    assert_one_clear_line(ended, "File too large", run)
    finishes(run, cache)


def assert_interrupted(ended: Ended, signum: int, run: Path) -> None:
    assert ended.code == 128 + signum, ended.err
    assert ended.err.splitlines()[-1].startswith("interrupted"), ended.err
    assert "Traceback" not in ended.err
    assert read_json(run / "run.json")["status"] == "interrupted"


# In a fresh cache an image is opened to be hashed, to be cached, to be scored; one of val also, in
# between, for the threshold.
MOMENTS: dict[str, tuple[Any, ...]] = {
    "writes its last checkpoint": ("fsync", "last.ckpt"),
    "scores a test case": ("open", "TEST.bmp", 3),
    "writes its threshold": ("os.rename", "best.ckpt", 3),
    "has written its threshold": ("open", "VAL.bmp", 4),
    "hashes a file": ("open", "IMD010.bmp"),
    "builds the cache": ("open", "IMD010.bmp", 2),
    "writes its config": ("os.rename", "config.yaml"),
    "draws pairs": ("os.rename", "pairs.png"),
    "takes its first step": ("step", "0:0"),
    "takes a step": ("step", "1:2"),
    "writes its best checkpoint": ("fsync", "best.ckpt", 2),
    "writes its summary": ("os.rename", "summary.json"),
}


@pytest.mark.parametrize("moment", some(MOMENTS, slow=2))
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_a_process_that(
    moment: str, signum: int, start: Start, untouched: Path, finishes: Ends, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    split = read_json(untouched / "splits.json")
    event, name, *nth = MOMENTS[moment]
    for part in ("test", "val"):
        name = name.replace(part.upper(), split[part][0])
    blow = Blow(event, name, *nth, signal=signum)
    stopped = start(run, *FULL, blow=blow).wait()
    print(state_of(run))
    if signum == signal.SIGKILL:
        assert stopped.code == -signum, stopped
    else:
        assert_interrupted(stopped, signum, run)
    finishes(run)


GROUPS = [(signal.SIGINT, 1), (signal.SIGTERM, 1), (signal.SIGINT, 0)]


@pytest.mark.parametrize("group", some(GROUPS, slow=1))
def test_a_signal_to_the_whole_process_group(
    group: tuple[int, int], start: Start, untouched: Path, tmp_path: Path
) -> None:
    signum, workers = group
    # As a terminal sends Ctrl-C, and a scheduler SIGTERM: to loader processes too.
    run, arguments = tmp_path / "run", [*FULL, f"data.num_workers={workers}"]
    process = start(run, *arguments, blow=Blow("step", "1:2", signal=0, hang=1))
    wait_until(lambda: "epoch 1/3" in process.log.read_text())
    time.sleep(0.5)
    os.killpg(process.process.pid, signum)
    assert_interrupted(process.wait(), signum, run)
    ended = start(run, *arguments).wait()
    assert ended.code == 0, ended.err
    assert_same(run, untouched)


@pytest.mark.slow
def test_a_second_ctrl_c_leaves_at_once(start: Start, finishes: Ends, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(run, *FULL, blow=Blow("step", "1:2", signal=signal.SIGINT, hang=60))
    log = run / "train.log"
    wait_until(lambda: log.exists() and "stopping after this step" in log.read_text())
    process.send(signal.SIGINT)
    began = time.monotonic()
    ended = process.wait(10)
    assert time.monotonic() - began < 2
    assert ended.code == 130
    assert read_json(run / "run.json")["status"] in ("interrupted", "running")
    print(state_of(run))
    finishes(run)


@pytest.mark.slow
def test_of_two_processes_in_one_directory_one_is_refused(
    start: Start, finishes: Ends, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    both = [start(run, *FULL), start(run, *FULL)]
    refused, done = sorted((process.wait() for process in both), key=lambda ended: -ended.code)
    assert (refused.code, done.code) == (1, 0)
    (line,) = refused.err.splitlines()
    assert line.startswith(f"error: {run}: another process is at work")
    assert "resumed" not in read_json(run / "run.json")
    assert "finished already" in finishes(run).err


@pytest.fixture
def command(tiny_ph2: Path, cache_dir: Path) -> Command:
    """Starts the command itself, as a user does: command(run_dir, *overrides)."""

    def start(run: Path, *overrides: str) -> subprocess.Popen:
        arguments = [
            sys.executable,
            str(REPO / "scripts" / "train.py"),
            f"data.root={tiny_ph2}",
            f"data.cache_dir={cache_dir}",
            *TINY,
            *overrides,
            f"hydra.run.dir={run}",
        ]
        environment = os.environ | ONE_THREAD
        return subprocess.Popen(
            arguments, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
        )

    return start


@pytest.mark.slow
def test_sigterm_to_the_command_which_tells_how_to_go_on(
    command: Command, untouched: Path, tmp_path: Path
) -> None:
    run = tmp_path / "a run of today"
    process = command(run, *FULL)
    wait_until((run / "metrics.csv").exists)
    process.send_signal(signal.SIGTERM)
    end = end_of(process)
    assert_interrupted(end, signal.SIGTERM, run)
    (told,) = re.findall(r"^interrupted \(to go on: (python .*)\)$", end.err, re.MULTILINE)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["bash", "-c", told], check=True, env=os.environ | ONE_THREAD | {"PATH": path})
    assert len(read_json(run / "run.json")["resumed"]) == 1
    assert_same(run, untouched)


@pytest.mark.long
def test_two_processes_that_train_one_network_are_interrupted_and_killed(
    command: Command, tmp_path: Path
) -> None:
    reference, run = tmp_path / "reference", tmp_path / "run"
    overrides = [
        *(*FULL, "trainer=ddp", "trainer.accelerator=cpu"),
        *("data.batch_size=2", "trainer.max_epochs=8"),
        *("data.split.fold=0", "data.split.folds=3", "data.split.val=0.3"),
    ]
    done = end_of(command(reference, *overrides))
    assert done.code == 0, done.err

    process = command(run, *overrides)
    wait_until((run / "metrics.csv").exists)
    os.kill(process.pid, signal.SIGTERM)
    assert_interrupted(end_of(process), signal.SIGTERM, run)
    last = run / "checkpoints" / "last.ckpt"
    assert read_checkpoint(last)["global_step"] < 8 * 5

    before = last.stat().st_mtime_ns
    process = command(run, *overrides)
    wait_until(lambda: last.stat().st_mtime_ns > before)
    os.killpg(process.pid, signal.SIGKILL)
    assert end_of(process).code == -signal.SIGKILL
    assert read_json(run / "run.json")["status"] == "running"

    done = end_of(command(run, *overrides))
    assert done.code == 0, done.err
    assert_same(run, reference)
