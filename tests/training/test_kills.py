"""Processes that train and are signalled, killed or out of disk space, and go on."""

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

import pytest
from helpers.processes import Blow, Process
from helpers.resume import FULL, assert_same
from helpers.tiny import ONE_THREAD, Ended, end_of, fill, state_of, train_command, wait_until

from seglab.core.files import read_json
from seglab.runs.checkpoints import read_checkpoint

# What fixtures hand out.
Start = Callable[..., Process]
Ends = Callable[..., Ended]
Command = Callable[..., subprocess.Popen]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def start(forks: Any, tiny_ph2: Path, folder: Path) -> Start:
    """Starts a process that trains on the tiny PH2: start(run_dir, *overrides, **options).

    Its cache lies beside the run directory.
    """

    def start(run: Path, *overrides: str, **options: Any) -> Process:
        command = train_command(run, tiny_ph2, run.parent / "cache", *overrides)
        log = folder / f"{time.monotonic_ns()}.log"
        return Process(forks, log, "train", command[2:], **options)

    return start


class Whole(NamedTuple):
    """A run of a process that nothing happened to."""

    run: Path
    seconds: float
    operations: list[str]  # on files below the run directory and the cache


@pytest.fixture(scope="module")
def whole(start: Start, folder: Path) -> Whole:
    run, log = folder / "untouched" / "run", folder / "operations"
    start(run, "--help").wait()  # starts the server, which takes seconds
    began = time.monotonic()
    ended = start(run, *FULL, folders=below(run), operations=str(log)).wait()
    seconds = time.monotonic() - began
    assert ended.code == 0, ended.err
    return Whole(run, seconds, log.read_text().replace(f"{run.parent}/", "").splitlines())


def below(run: Path) -> tuple[str, str]:
    return str(run), str(run.parent / "cache")


@pytest.fixture
def finishes(start: Start, whole: Whole) -> Ends:
    """Starts a run again, which must end as `whole`: finishes(run_dir, *overrides)."""

    def finish(run: Path, *overrides: str) -> Ended:
        ended = start(run, *FULL, *overrides).wait()
        assert ended.code == 0, ended.err
        assert "Traceback" not in ended.err
        assert_same(run, whole.run)
        assert not list(run.parent.rglob("*.partial"))
        return ended

    return finish


def some(values: Any, slow: int) -> list[Any]:
    """All are long tests, the first few slow ones too."""
    marks = [pytest.mark.long], [pytest.mark.long, pytest.mark.slow]
    return [pytest.param(value, marks=marks[i < slow]) for i, value in enumerate(values)]


@pytest.mark.parametrize("seed", some(range(20), slow=1))
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


SHARDS = 80


@pytest.mark.parametrize("shard", some(range(SHARDS), slow=1))
def test_a_run_killed_at_every_file_operation(
    shard: int, start: Start, whole: Whole, finishes: Ends, tmp_path: Path
) -> None:
    for operation in whole.operations[shard::SHARDS]:
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
ROOMS = [("cache", room) for room in (32, 0, 4, 8, 16, 64)]
ROOMS += [("run", room) for room in (192, 0, 4, 8, 16, 32, 64, 96, 128, 256, 320)]


@pytest.mark.parametrize("room", [*some(ROOMS[:6], slow=1), *some(ROOMS[6:], slow=1)], ids=str)
def test_a_full_disk_is_told_and_a_run_goes_on_when_there_is_room(
    room: tuple[str, int],
    start: Start,
    whole: Whole,
    finishes: Ends,
    disk: Path,
    tmp_path: Path,
) -> None:
    what, left = room
    run, cache = tmp_path / "run", disk / "cache"
    if what == "run":
        run, cache = disk / "run", whole.run.parent / "cache"
    ballast = fill(disk, left * 1024)
    ended = start(run, *FULL, f"data.cache_dir={cache}").wait()
    print(f"{what}, {left} KiB: {state_of(run)}: {ended.err.splitlines()[-1]}")
    assert_one_clear_line(ended, "No space left on device", disk / what)
    ballast.unlink()
    finishes(run, f"data.cache_dir={cache}")


@pytest.mark.parametrize("size", some([3, 10, 30], slow=0))
def test_a_quota_is_told_like_a_full_disk(
    size: int, start: Start, whole: Whole, finishes: Ends, tmp_path: Path
) -> None:
    run, cache = tmp_path / "run", f"data.cache_dir={whole.run.parent / 'cache'}"
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
    "writes its last checkpoint": ("os.rename", "last.ckpt"),
    "scores a test case": ("open", "TEST.bmp", 3),
    "writes its threshold": ("os.rename", "best.ckpt", 3),
    "has written its threshold": ("open", "VAL.bmp", 4),
    "hashes a file": ("open", "IMD010.bmp"),
    "builds the cache": ("open", "IMD010.bmp", 2),
    "writes its config": ("os.rename", "config.yaml"),
    "draws pairs": ("os.rename", "pairs.png"),
    "takes its first step": ("step", "0:0"),
    "takes a step": ("step", "1:2"),
    "writes its best checkpoint": ("os.rename", "best.ckpt", 2),
    "flushes its checkpoints": ("fsync", "last.ckpt"),
    "writes its summary": ("os.rename", "summary.json"),
}


@pytest.mark.parametrize("moment", some(MOMENTS, slow=2))
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_a_process_that(
    moment: str, signum: int, start: Start, whole: Whole, finishes: Ends, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    split = read_json(whole.run / "splits.json")
    event, name, *nth = MOMENTS[moment]
    for subset in ("test", "val"):
        name = name.replace(subset.upper(), split[subset][0])
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
    group: tuple[int, int], start: Start, whole: Whole, tmp_path: Path
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
    assert_same(run, whole.run)


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
        return subprocess.Popen(
            train_command(run, tiny_ph2, cache_dir, *overrides),
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | ONE_THREAD,
            start_new_session=True,
        )

    return start


@pytest.mark.slow
def test_sigterm_to_the_command_which_tells_how_to_go_on(
    command: Command, whole: Whole, tmp_path: Path
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
    assert_same(run, whole.run)


@pytest.mark.long
def test_two_processes_that_train_one_network_are_interrupted_and_killed(
    command: Command, tmp_path: Path
) -> None:
    reference, run = tmp_path / "reference", tmp_path / "run"
    overrides = [
        *(*FULL, "trainer.devices=2", "trainer.strategy=ddp"),
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
