"""Composing configs in Python: what a command line would train, or its line of refusal."""

import re
from collections.abc import Callable
from pathlib import Path

import hydra
import pytest
from helpers.tiny import Ended
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

import seglab
from seglab.core.errors import InputError


@pytest.mark.parametrize(
    "overrides",
    [
        ["hydra.run.dir=FOLDER/a", "model=segnet", "~callbacks"],
        ["run_dir=FOLDER/b", "experiment=best", "logger=none"],
        ["run_dir=~/c", "data.root=~/d e"],
        ["hydra.run.dir=FOLDER/${name}/${seed}", "name=mine"],
        ["run_dir=FOLDER/${name}"],
    ],
)
def test_it_is_the_config_of_the_command_line(
    overrides: list[str],
    script: Callable[..., Ended],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    overrides = [word.replace("FOLDER", str(tmp_path)) for word in overrides]
    trained = []
    monkeypatch.setattr(
        "seglab.training.train.train",
        lambda cfg: trained.append(OmegaConf.to_container(cfg, resolve=True)),
    )
    assert script("train", *overrides).code == 0
    assert trained == [OmegaConf.to_container(seglab.compose(overrides), resolve=True)]


def test_each_run_has_a_new_directory_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = (Path(seglab.compose(["name=mine"]).run_dir) for _ in range(2))
    assert first.parent == second.parent == tmp_path / "runs" / "mine"
    assert first != second
    assert not [*tmp_path.iterdir()]  # train() makes it
    cfg = seglab.compose()
    cfg.run_dir = "elsewhere"  # what is derived of it follows
    assert cfg.logger.tensorboard.save_dir == "elsewhere"


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=unett"],
        ["data.sice=64"],
        ["data.root=a b(c"],
        ["seed=1,2"],
        ["seed"],
    ],
)
def test_errors_are_those_of_the_command_line(
    overrides: list[str], script: Callable[..., Ended]
) -> None:
    ended = script("train", *overrides)
    with pytest.raises(InputError) as caught:
        seglab.compose(overrides)
    assert ended.err == f"error: {caught.value}\n"


@pytest.mark.parametrize(
    "override", ["-m", "--help", "sweep=models", "hydra.mode=MULTIRUN", "seed=range(3)"]
)
def test_sweeps_and_options_are_refused(override: str) -> None:
    with pytest.raises(InputError, match=re.escape(override)):
        seglab.compose([override])


def test_hydra_is_left_as_it_was(tmp_path: Path) -> None:
    """Somebody's notebook may compose configs of its own."""
    (tmp_path / "mine.yaml").write_text("a: 1")
    GlobalHydra.instance().clear()
    before = HydraConfig.instance().cfg
    hydra.initialize_config_dir(str(tmp_path), version_base="1.3")
    try:
        seglab.compose()
        with pytest.raises(InputError):
            seglab.compose(["model=unett"])
        assert hydra.compose("mine") == {"a": 1}
        assert HydraConfig.instance().cfg is before
    finally:
        GlobalHydra.instance().clear()
