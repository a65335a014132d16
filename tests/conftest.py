"""Configs composed for the tiny PH2, scripts run as from the command line, what they predict."""

import functools
import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny import REPO, TINY, Ended, train_command, write_tiny_ph2
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig
from PIL import Image

from seglab import compose
from seglab.core.files import write_atomic
from seglab.data.layouts import find_cases
from seglab.runs import provenance

# As many tests at once as there are cores (pytest -n), so one thread each, and in what they start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What a shell starts in the background ignores Ctrl-C, and so would all that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


_PROVENANCE = {
    name: functools.cache(getattr(provenance, name))
    for name in ("installed_versions", "read_code_state")
}


def _save_nothing(path: Path, *args: Any, **options: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    write_atomic(path, b"")


@pytest.fixture(autouse=True)
def quick_runs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets runs in this process leave empty figures, and look at the code and versions once.

    Both take most of a tiny run's time. Tests that look at figures are marked `figures`.
    """
    if "figures" not in request.keywords:
        for name in ("train.save_curves", "summary.save_cases"):
            monkeypatch.setattr(f"seglab.training.{name}", _save_nothing)
    for name, cached in _PROVENANCE.items():
        monkeypatch.setattr(provenance, name, cached)


@pytest.fixture(scope="session")
def forks() -> Any:
    """What forks processes off one that has imported everything, which takes seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            *("pytest", "helpers.processes", "tensorboard", "seglab.sweeps.plugins"),
            *("seglab.training.train", "seglab.inference.predict"),
        ]
    )
    return context


@pytest.fixture(scope="session")
def tiny_ph2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PH2 of 20 cases; read-only by agreement."""
    return write_tiny_ph2(tmp_path_factory.mktemp("data") / "PH2Dataset")


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def tiny_config(tiny_ph2: Path, cache_dir: Path) -> Callable[..., DictConfig]:
    """Composes conf/train.yaml for the tiny PH2: tiny_config(run_dir, *overrides)."""

    def make(run_dir: Path, *overrides: str) -> DictConfig:
        return compose(
            [
                f"run_dir={run_dir}",
                f"data.root={tiny_ph2}",
                f"data.cache_dir={cache_dir}",
                *TINY,
                *overrides,
            ],
        )

    return make


@pytest.fixture
def script(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Ended]:
    """Runs scripts/NAME.py with arguments in this process, as Python would run it."""

    def run(name: str, *arguments: object) -> Ended:
        GlobalHydra.instance().clear()
        path = os.path.relpath(REPO / "scripts" / f"{name}.py")
        monkeypatch.setattr(sys, "argv", [path, *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            runpy.run_path(str(REPO / "scripts" / f"{name}.py"), run_name="__main__")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        out, err = capsys.readouterr()
        return Ended(code, out, err)

    return run


@pytest.fixture
def tiny_train(
    script: Callable[..., Ended], tiny_ph2: Path, cache_dir: Path
) -> Callable[..., Ended]:
    """Runs train.py on the tiny PH2: tiny_train(run_dir, *overrides)."""

    def run(run_dir: Path, *overrides: str) -> Ended:
        # Without the interpreter and the script.
        return script("train", *train_command(run_dir, tiny_ph2, cache_dir, *overrides)[2:])

    return run


@pytest.fixture
def predicting_runs(
    tmp_path_factory: pytest.TempPathFactory, tiny_train: Callable[..., Ended]
) -> tuple[Path, Path]:
    """Two trained for other sizes, one of them predicting with everything on.

    Read-only by agreement, but for the first one's network.onnx: test_export.py makes it once.
    """
    folder = tmp_path_factory.getbasetemp()  # of the session
    on, off = folder / "predicting_on", folder / "predicting_off"
    if not on.exists():
        plain = ["logger=none", "callbacks.pictures=null", "monitor=null", "task.optimizer.lr=0.02"]
        inference = [f"inference.{key}=true" for key in ("tta", "largest_component", "fill_holes")]
        for run, overrides in ((on, inference), (off, ["data.size=24", "seed=1"])):
            ended = tiny_train(
                run, *plain, "trainer.max_epochs=20", "data.batch_size=4", *overrides
            )
            assert ended.code == 0, ended.err
    return on, off


@pytest.fixture
def pictures(tiny_ph2: Path, tmp_path: Path) -> Path:
    """A folder of pictures in two folders, in several formats."""
    root = tmp_path / "pictures"
    (root / "a" / "deep").mkdir(parents=True)
    (root / "b").mkdir()
    names = ("a/one.png", "a/deep/one.png", "b/two.jpg", "b/three.TIFF")
    for case, name in zip(find_cases(tiny_ph2), names, strict=False):
        Image.open(case.image).save(root / name)
    (root / "notes.txt").write_text("not a picture")
    (root / ".hidden.png").write_text("not one either")
    return root
