"""A search that is killed goes on and ends as one that was not; hopeless trials are pruned."""

import math
import os
import random
import re
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.sweeps import FakeJobs
from helpers.tiny import Ended, end_of, wait_until
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from seglab.core.errors import InputError
from seglab.core.files import read_csv, read_json
from seglab.sweeps import jobs, launcher
from seglab.sweeps.launcher import SweepLauncher
from seglab.sweeps.tpe import TPESweeper

SPACE = {
    "x": "interval(-10.0, 10.0)",
    "y": "tag(log, interval(1e-3, 1e3))",
    "n": "tag(log, int(interval(1, 64)))",
    "kind": "choice(a, b, c)",
}
SETTINGS = {"n_trials": 12, "batch_size": 3, "seed": 0}
CONFIG = {"monitor": "val/loss", "monitor_mode": "min", "run_dir": "", "kind": "a", "n": 1}


class FakeLauncher(FakeJobs, SweepLauncher):
    """Launcher of fake jobs, whose config is their overrides."""

    def load_sweep_config(self, config: DictConfig, overrides: list[str]) -> DictConfig:
        return OmegaConf.merge(config, OmegaConf.from_dotlist(overrides))


class KilledError(BaseException):
    """Stands for SIGKILL."""


def loss(config: Any) -> float:
    return (config["x"] - 3) ** 2 + math.log10(config["y"]) ** 2 + (config["kind"] != "b")


def falling_curve(config: Any) -> list[float]:
    """Returns losses that fall in seven epochs; a few runs fail in the third."""
    values = [loss(config) * (2 - epoch / 7) for epoch in range(1, 8)]
    if 5 < config["x"] < 8:
        values[2] = math.nan
    return values


def prepare(folder: Path, **options: Any) -> tuple[FakeLauncher, Callable[[], None]]:
    """Returns a launcher and a function that starts the search."""
    options = {"params": SPACE, **SETTINGS, **options}
    fake = FakeLauncher()
    fake.started = []
    fake.curve = options.pop("curve", falling_curve)
    config = CONFIG | {key: options.pop(key) for key in CONFIG if key in options}
    hydra = {"sweep": {"dir": str(folder)}, "runtime": {"config_sources": []}}
    hydra |= {"job": {"config_name": "train"}, "overrides": {"hydra": []}}
    cfg = OmegaConf.create(config | {"hydra": hydra})
    context = SimpleNamespace(config_loader=fake)
    fake.setup(hydra_context=context, task_function=None, config=cfg)  # type: ignore[arg-type]
    sweeper = TPESweeper(**options)
    sweeper.launcher, sweeper.parser = fake, OverridesParser.create()
    return fake, lambda: sweeper.sweep([])


def search(folder: Path, **options: Any) -> FakeLauncher:
    fake, start = prepare(folder, **options)
    start()
    return fake


def trials_of(
    folder: Path, monitor: str = "val/loss"
) -> list[tuple[str, dict[str, str], list[float]]]:
    """Returns status, parameters and curve of each trial."""
    trials = []
    for number, file in enumerate(sorted(folder.glob("trial-*/run.json"))):
        assert file.parent.name == f"trial-{number:03}"
        record, table = read_json(file), file.with_name("metrics.csv")
        rows = read_csv(table) if table.exists() else []
        trials.append((record["status"], record["varies"], [float(row[monitor]) for row in rows]))
    return trials


@pytest.fixture(scope="module", autouse=True)
def fast() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(launcher, "POLL_SECONDS", 0)
        patched.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("searches") / "undisturbed"
    search(folder)
    return folder


def test_the_same_command_gives_the_same_search(
    undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search(tmp_path)
    trials = trials_of(tmp_path)
    assert trials == trials_of(undisturbed)
    assert len(trials) == 12
    statuses = [status for status, _, _ in trials]
    assert {*statuses} == {"finished", "pruned", "failed"}
    for _, params, values in trials:
        x, y, n = float(params["x"]), float(params["y"]), int(params["n"])
        assert -10 <= x <= 10 and 1e-3 <= y <= 1e3 and 1 <= n <= 64 and params["kind"] in "abc"
        expected = falling_curve({"x": x, "y": y, "kind": params["kind"]})
        assert values == expected[: len(values)]
    rows = read_csv(tmp_path / "jobs.csv")
    assert [row["status"] for row in rows] == statuses
    assert [row["x"] for row in rows] == [params["x"] for _, params, _ in trials]
    values = {row["job"]: float(row["val/loss"]) for row in rows if row["val/loss"]}
    best = min(values, key=lambda name: values[name])
    assert f"best trial: {best[6:]}, val/loss {values[best]:.4f}" in capsys.readouterr().err


def test_a_larger_n_trials_continues_the_search(undisturbed: Path, tmp_path: Path) -> None:
    earlier = search(tmp_path, n_trials=6)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.glob("trial-*/metrics.csv")}
    fake = search(tmp_path)
    assert {job.name for job in earlier.jobs if job.status == "failed"} <= {*fake.started}
    assert all(file.stat().st_mtime_ns == time for file, time in before.items())
    assert trials_of(tmp_path) == trials_of(undisturbed)
    assert (tmp_path / "jobs.csv").read_text() == (undisturbed / "jobs.csv").read_text()


@pytest.mark.parametrize("writes", [(1, 2), (5, 1), (11, 4), (17, 1)])
@pytest.mark.parametrize("with_jobs", [False, True])
def test_a_search_that_is_killed_twice_ends_as_if_it_had_not_been(
    with_jobs: bool, writes: Sequence[int], undisturbed: Path, tmp_path: Path
) -> None:
    """It is killed in place of the nth time that it writes a job's record."""
    write, luck = jobs.write_json, random.Random(0)
    for nth in writes:
        fake, start = prepare(tmp_path)
        fake.is_delayed = lambda: luck.random() < 0.5  # type: ignore[method-assign]
        count = iter(range(nth - 1))

        def write_or_die(path: Path, value: object, count: Iterator[int] = count) -> None:
            if next(count, None) is None:
                raise KilledError
            write(path, value)

        with pytest.MonkeyPatch.context() as patched, pytest.raises(KilledError):
            patched.setattr(jobs, "write_json", write_or_die)
            start()
        fake.is_dead = with_jobs
        fake.stop([job for job in fake.jobs if job.handle is not None])
    search(tmp_path)
    assert trials_of(tmp_path) == trials_of(undisturbed)


@pytest.mark.parametrize("poll", [1, 30])
def test_a_search_that_is_stopped_ends_as_if_it_had_not_been(
    poll: int, undisturbed: Path, tmp_path: Path
) -> None:
    fake, start = prepare(tmp_path)
    polls = iter(range(poll))

    def is_delayed() -> bool:
        if next(polls, None) is None:
            fake.interrupts.received_signal = signal.SIGINT
        return False

    fake.is_delayed = is_delayed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt, match="to go on: "):
        start()
    assert "running" not in [job.status for job in fake.jobs]
    search(tmp_path)
    assert trials_of(tmp_path) == trials_of(undisturbed)


def test_a_hopeless_trial_is_pruned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def dice(config: Any) -> list[float]:
        return [0.1 * (1 + epoch / 9) if config["n"] == 1 else 0.8 for epoch in range(9)]

    options = {"monitor": "val/dice_per_image_net", "monitor_mode": "max", "curve": dice}
    # Another parameter, so that no two trials have the same config.
    options |= {"params": {"n": "choice(1,2)", "y": "interval(0.0,1.0)"}}
    search(tmp_path, **options, batch_size=1)
    trials = trials_of(tmp_path, "val/dice_per_image_net")
    pruned = [params for status, params, _ in trials if status == "pruned"]
    assert pruned and all(params["n"] == "1" for params in pruned)
    for row in read_csv(tmp_path / "jobs.csv"):
        text = "pruned after epoch [5-9]: val/dice_per_image_net 0.1[0-9]{3} is worse than the"
        assert bool(re.match(text, row["error"])) == (row["status"] == "pruned")
    assert f"{len(pruned)} pruned" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"params": SPACE | {"kind": "choice(d, e)"}}, "holds a run of another config"),
        ({"params": SPACE | {"z": SPACE["x"]}}, "holds a run of another config"),
        ({"monitor": None}, "monitor=None"),
        ({"monitor": "test/dice_per_image"}, "monitor=test/dice_per_image"),
        ({"params": {"n": "3"}}, "hydra.sweeper.params"),
        ({"params": SPACE | {"seed": "0,1"}}, "seed: a search would choose the luckiest"),
        ({"params": SPACE | {"n": "interval(8,4)"}}, "n=interval(8,4): "),
        ({"n_trials": 0}, "hydra.sweeper.n_trials=0"),
    ],
    ids=str,
)
def test_another_search_is_refused_in_one_line(
    change: dict[str, Any], message: str, undisturbed: Path
) -> None:
    before = trials_of(undisturbed), read_csv(undisturbed / "jobs.csv")
    with pytest.raises(InputError, match=rf".*{re.escape(message)}[^\n]*\Z"):
        prepare(undisturbed, **change)[1]()
    assert (trials_of(undisturbed), read_csv(undisturbed / "jobs.csv")) == before


def test_a_search_in_which_no_trial_finished_has_failed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no trial finished; "):
        search(tmp_path, curve=lambda config: [math.nan])
    assert [status for status, _, _ in trials_of(tmp_path)] == ["failed"] * 12
    search(tmp_path)  # failed trials are run again
    assert "finished" in [status for status, _, _ in trials_of(tmp_path)]


def test_the_shipped_search_is_over_four_parameters(
    script: Callable[..., Ended], started: list[str], tmp_path: Path
) -> None:
    options = ["sweep=tpe", "hydra.sweeper.n_trials=2", f"hydra.sweep.dir={tmp_path}"]
    ended = script("train", *options)
    assert ended.code == 0, ended.err
    assert started == ["trial-000", "trial-001"]
    keys = ["task.optimizer.lr", "task.optimizer.weight_decay", "task.loss.lesion_weight"]
    varies = read_json(tmp_path / started[0] / "run.json")["varies"]
    assert [*varies] == [*keys, "model.width"]


@pytest.mark.long
def test_a_real_search_that_is_killed_goes_on(
    start_sweep: Callable[..., subprocess.Popen], tmp_path: Path
) -> None:
    options = [
        *("sweep=tpe", "model.width=choice(4,6)", "hydra.sweeper.n_trials=4"),
        *("hydra.sweeper.batch_size=2", "hydra.launcher.n_jobs=2"),
        *("logger=none", "callbacks.pictures=null", "data.batch_size=4"),
    ]
    process = start_sweep(tmp_path, *options)
    wait_until(lambda: any(tmp_path.glob("trial-00[01]*/metrics.csv")))
    process.kill()
    process.communicate()
    ended = end_of(start_sweep(tmp_path, *options))
    assert ended.code == 0, ended.err
    trials = trials_of(tmp_path, "val/dice_per_image_net")
    assert [(status, len(values)) for status, _, values in trials] == [("finished", 2)] * 4
