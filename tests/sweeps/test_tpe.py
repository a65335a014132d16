"""A search goes on as if nothing had happened, and finds what it looks for.

Jobs are fakes that write what real ones do; a real search comes last.
"""

from __future__ import annotations

import json
import math
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
from helpers.tiny import ONE_THREAD, REPO, TINY, FakeJobs, wait_until
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from optuna.storages.journal import JournalFileBackend

from seglab.core.errors import InputError
from seglab.core.files import read_csv, read_json
from seglab.sweeps import launcher as sweep
from seglab.sweeps.launcher import SweepLauncher
from seglab.sweeps.tpe import TPESweeper

SPACE = {
    "x": "interval(-10.0, 10.0)",
    "y": "tag(log, interval(1e-3, 1e3))",
    "n": "tag(log, int(interval(1, 64)))",
    "kind": "choice(a, b, c)",
}
SETTINGS = {"n_trials": 9, "generation": 3, "startup": 2, "warmup": 2, "seed": 0}
CONFIG = {"monitor": "val/loss", "monitor_mode": "min", "run_dir": "", "kind": "a", "n": 1}
CONFIG |= {"data": {"root": "/elsewhere"}}


class Launcher(FakeJobs, SweepLauncher):
    """Fake jobs, whose config is what they were given."""

    def load_sweep_config(self, config: DictConfig, overrides: list[str]) -> DictConfig:
        return OmegaConf.merge(config, OmegaConf.from_dotlist(overrides))


class KilledError(BaseException):
    """What is here in place of SIGKILL."""


def loss(config: Any) -> float:
    return (config["x"] - 3) ** 2 + math.log10(config["y"]) ** 2 + (config["kind"] != "b")


def curve(config: Any) -> list[float]:
    """Falls to the loss in five epochs; a few runs fail in the third."""
    values = [loss(config) * (2 - epoch / 5) for epoch in range(1, 6)]
    if 7 < config["x"] < 8:
        values[2] = math.nan
    return values


def prepare(folder: Path, **given: Any) -> tuple[Launcher, Callable[[], None]]:
    """A launcher, and what starts the search."""
    options = {"params": SPACE, **SETTINGS, **given}
    launcher = Launcher()
    launcher.started = []
    launcher.curve = options.pop("curve", curve)
    config = CONFIG | {key: options.pop(key) for key in CONFIG if key in options}
    hydra = {"sweep": {"dir": str(folder)}, "runtime": {"config_sources": []}}
    hydra |= {"job": {"config_name": "train"}, "overrides": {"hydra": []}}
    cfg = OmegaConf.create(config | {"hydra": hydra})
    context = SimpleNamespace(config_loader=launcher)
    launcher.setup(hydra_context=context, task_function=None, config=cfg)  # type: ignore[arg-type]
    sweeper = TPESweeper(**options)
    sweeper.launcher, sweeper.parser = launcher, OverridesParser.create()
    return launcher, lambda: sweeper.sweep([])


def search(folder: Path, **options: Any) -> Launcher:
    """Searches to the end."""
    launcher, go = prepare(folder, **options)
    go()  # a trial that fails is an answer too
    return launcher


def study_of(folder: Path) -> optuna.Study:
    journal = optuna.storages.JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    return optuna.load_study(study_name="sweep", storage=journal)


def trials_of(folder: Path) -> list[Any]:
    return [
        (t.number, t.state.name, t.params, t.distributions, t.values, t.intermediate_values)
        for t in study_of(folder).trials
    ]


@pytest.fixture(scope="module", autouse=True)
def no_pause() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sweep, "_PAUSE", 0)
        patched.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("searches") / "undisturbed"
    search(folder)
    return folder


def test_a_search_is_told_as_it_went(
    undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    launcher = search(tmp_path)  # the same one a second time
    trials = trials_of(undisturbed)
    assert trials == trials_of(tmp_path)
    states = [state for _, state, *_ in trials]
    assert {"COMPLETE", "PRUNED", "FAIL"} == {*states}
    assert len(trials) == 9
    assert "PRUNED" not in states[:3]  # of no generation but its own does a trial know
    for number, state, params, _, values, intermediate in trials:
        expected = dict(enumerate(curve(params), 1))
        assert intermediate.items() <= expected.items()
        last = intermediate[max(intermediate)]
        assert values == {"COMPLETE": [expected[5]], "PRUNED": [last], "FAIL": None}[state]
        assert -10 <= params["x"] <= 10 and 1e-3 <= params["y"] <= 1e3 and params["kind"] in "abc"
        assert isinstance(params["n"], int) and 1 <= params["n"] <= 64
        (name,) = (name for name in launcher.started if name.startswith(f"trial={number:03},"))
        assert f"x={params['x']:.3g},y={params['y']:.3g},n={params['n']}," in name
        record = read_json(tmp_path / name / "run.json")
        assert {key: float(v) for key, v in record["varies"].items() if key in "xy"} == {
            key: params[key] for key in "xy"
        }
        if state == "PRUNED":
            assert "pruned after epoch" in record["error"]
    table = {row["job"]: row["status"] for row in read_csv(tmp_path / "jobs.csv")}
    told = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed"}
    assert list(table.values()) == [told[state] for state in states]
    best = study_of(tmp_path).best_trial
    err = capsys.readouterr().err
    assert f"best         trial {best.number:03}, val/loss {best.value:.4f}" in err
    (again,) = (line for line in err.splitlines() if line.startswith("again "))
    assert f" x={best.params['x']} " in again and again.endswith(" hydra.mode=RUN")
    # More trials go on with the study; whole generations are the same, however many come.
    search(tmp_path / "longer", n_trials=6)
    search(tmp_path / "longer")
    assert trials_of(tmp_path / "longer") == trials


# How each start ends: how, at which look or line of the journal, how much of that line is
# written, and how fast jobs are.
ENDS = st.tuples(
    st.sampled_from(["stopped", "killed", "killed with its jobs"]),
    st.integers(1, 110),
    st.floats(0, 1),
    st.integers(0, 9),
)


@pytest.mark.parametrize("warmup", [9, 2])
@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],  # a search takes too long to look for a simpler one
    suppress_health_check=list(HealthCheck),
)
@given(ends=st.lists(ENDS, min_size=1, max_size=2))
@example(ends=[("killed", 10, 0.5, 0)])  # between two draws of a trial
@example(ends=[("killed", 42, 0.9, 0)])  # likewise, of one that TPE draws
@example(ends=[("stopped", 12, 0, 0)])  # with one trial of three to go on with
def test_a_search_that_is_stopped_or_killed_anywhere_ends_as_if_it_had_not_been(
    ends: list[tuple[str, int, float, int]], warmup: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    undisturbed = tmp_path_factory.getbasetemp() / f"undisturbed {warmup}"
    if not undisturbed.exists():
        search(undisturbed, warmup=warmup)
    folder = tmp_path_factory.mktemp("search")
    for how, moment, torn, speeds in ends:
        launcher, go = prepare(folder, warmup=warmup)
        luck = random.Random(speeds)
        launcher.chance = lambda luck=luck: luck.random() < 0.5  # type: ignore[method-assign]
        with pytest.MonkeyPatch.context() as patched:
            if how == "stopped":
                patched.setattr(launcher, "chance", _stop_at(launcher, moment))
            else:
                _kill_at(patched, moment, torn)
            try:
                go()
            except KeyboardInterrupt as stopped:
                assert "to go on: python" in str(stopped)
                assert "running" not in [launcher.status(job) for job in launcher.jobs]
            except KilledError:
                launcher.dead = "with" in how
                launcher.stop([job for job in launcher.jobs if job.handle is not None])
                (folder / "study.journal.lock").touch()
    search(folder, warmup=warmup)
    assert trials_of(folder) == trials_of(undisturbed)


def _stop_at(launcher: Launcher, look: int) -> Callable[[], bool]:
    looks = iter(range(look))

    def chance() -> bool:
        if next(looks, None) is None:
            launcher.interrupts.received_signal = signal.SIGINT
        return False

    return chance


def _kill_at(patched: pytest.MonkeyPatch, nth: int, torn: float) -> None:
    append, count = JournalFileBackend.append_logs, iter(range(nth - 1))

    def killed(self: JournalFileBackend, logs: list[dict[str, Any]]) -> None:
        if next(count, None) is None:
            line = json.dumps(logs[0])
            with Path(self._file_path).open("a") as file:
                file.write(line[: int(torn * len(line))])
            raise KilledError
        append(self, logs)

    patched.setattr(JournalFileBackend, "append_logs", killed)


def test_a_hopeless_trial_is_pruned_and_told_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def dice(config: Any) -> list[float]:
        return [0.1 * (1 + epoch / 9) if config["n"] == 1 else 0.8 for epoch in range(9)]

    options = {"monitor": "val/dice_per_image_net", "monitor_mode": "max", "curve": dice}
    options |= {"params": {"n": "choice(1,2)"}, "startup": 3, "generation": 1, "n_trials": 12}
    launcher, go = prepare(tmp_path, **options)
    go()  # no job counts as failed
    err = capsys.readouterr().err
    trials = trials_of(tmp_path)
    assert [state for _, state, *_ in trials[:3]] == ["COMPLETE"] * 3
    pruned = [number for number, state, *_ in trials if state == "PRUNED"]
    assert pruned
    for number in pruned:
        assert trials[number][2] == {"n": "1"}
        text = "pruned after epoch [2-9]: val/dice_per_image_net 0.1[0-9]{3} is worse than the"
        assert [job for job in launcher.jobs if re.match(text, job.stopped)]
    assert f"{len(pruned)} pruned" in err


def test_no_trial_is_pruned_while_it_warms_up(tmp_path: Path) -> None:
    search(tmp_path, startup=1, generation=1, curve=lambda config: [loss(config)] * 5)
    pruned = [max(t[-1]) for t in trials_of(tmp_path) if t[1] == "PRUNED"]
    assert pruned and min(pruned) == SETTINGS["warmup"] + 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"params": SPACE | {"x": "interval(-9.0, 9.0)"}}, "another space"),
        ({"params": {"x": SPACE["x"]}}, "another space"),
        ({"params": SPACE | {"seed": "1"}}, "another fixed"),
        ({"monitor": "val/dice_per_image"}, "another monitor"),
        ({"seed": 1}, "another seed"),
        ({"generation": 2}, "another generation"),
        ({"startup": 5}, "another startup"),
        ({"warmup": 3}, "another warmup"),
        ({"monitor": None}, "monitor=None"),
        ({"monitor": "test/dice_per_image"}, "monitor=test/dice_per_image"),
        ({"monitor": "train/loss"}, "monitor=train/loss"),
        ({"params": {"n": "3"}}, "hydra.sweeper.params"),
        ({"n_trials": 0}, "hydra.sweeper.n_trials=0"),
        ({"generation": 0}, "hydra.sweeper.generation=0"),
    ],
    ids=str,
)
def test_another_search_is_refused_in_a_line(
    change: dict[str, Any], told: str, undisturbed: Path
) -> None:
    before = trials_of(undisturbed), read_csv(undisturbed / "jobs.csv")
    with pytest.raises(InputError, match=rf".*{re.escape(told)}[^\n]*\Z"):
        prepare(undisturbed, **change)[1]()
    assert (trials_of(undisturbed), read_csv(undisturbed / "jobs.csv")) == before


@pytest.mark.parametrize("first", [6, 9])
def test_a_search_that_went_on_tells_of_all_trials(
    first: int, undisturbed: Path, tmp_path: Path
) -> None:
    search(tmp_path, n_trials=first)
    search(tmp_path)
    assert (tmp_path / "jobs.csv").read_text() == (undisturbed / "jobs.csv").read_text()


def test_a_search_in_which_no_trial_finished_has_failed(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(InputError, match="no trial finished; "):
            search(tmp_path, curve=lambda config: [math.nan])
    assert [state for _, state, *_ in trials_of(tmp_path)] == ["FAIL"] * 9


def test_tpe_comes_nearer_to_an_optimum_than_chance(tmp_path: Path) -> None:
    options = {"n_trials": 40, "generation": 4, "startup": 8, "warmup": 9}
    space = {"x": "interval(-10.0, 10.0)", "y": "tag(log, interval(1e-3, 1e3))"}

    def bowl(config: Any) -> list[float]:
        return [loss(config | {"kind": "b"})]

    found = []
    for seed in range(5):
        folder = tmp_path / str(seed)
        search(folder, params=space, curve=bowl, **(options | {"seed": seed}))
        found.append(study_of(folder).best_value)
    draws = np.random.default_rng(0)
    x, y = draws.uniform(-10, 10, (1000, 40)), draws.uniform(-3, 3, (1000, 40))
    by_chance = ((x - 3) ** 2 + y**2).min(1)
    # Ranks among searches by chance, whose mean would be 0.5.
    ranks = [(by_chance < value).mean() for value in found]
    print(found, ranks)
    assert np.mean(ranks) < 0.3


@pytest.mark.long
def test_a_real_search_that_is_killed_goes_on(
    tiny_ph2: Path, cache_dir: Path, tmp_path: Path
) -> None:
    arguments = [
        *(sys.executable, str(REPO / "scripts" / "train.py"), "sweep=tpe", *TINY),
        *(f"data.root={tiny_ph2}", f"data.cache_dir={cache_dir}", "model.width=choice(4,6)"),
        *("logger=null", "callbacks.pictures=null", "data.batch_size=4"),
        *("hydra.sweeper.n_trials=4", "hydra.sweeper.generation=2", "hydra.launcher.n_jobs=2"),
        f"hydra.sweep.dir={tmp_path}",
    ]
    environment = os.environ | ONE_THREAD
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, env=environment)
    wait_until(lambda: any(tmp_path.glob("trial=00[01]*/metrics.csv")))
    process.kill()
    process.communicate()
    subprocess.run(arguments, check=True, env=environment, timeout=200)
    trials = study_of(tmp_path).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 4
    for trial in trials:
        (run,) = tmp_path.glob(f"trial={trial.number:03},*")
        rows = [float(row["val/dice_per_image_net"]) for row in read_csv(run / "metrics.csv")]
        assert trial.intermediate_values == dict(enumerate(rows, 1))
        assert trial.value == max(rows)
        assert read_json(run / "run.json")["status"] == "finished"
