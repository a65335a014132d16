"""Every shipped config composes, and runs on the tiny data set."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.tiny import REPO, Ended, write_tiny_classes
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from seglab.config import check_config
from seglab.runs.allowed_targets import ALL_ALLOWED_TARGETS
from seglab.runs.loading import read_config

CONF = REPO / "conf"


def shipped(group: str) -> list[str]:
    files = (CONF / group).rglob("*.yaml")
    names = sorted(file.relative_to(CONF / group).with_suffix("").as_posix() for file in files)
    assert len(names) >= 2, "a folder under conf/ has at least two real options"
    return names


GROUPS = sorted(
    {
        file.parent.relative_to(CONF).as_posix()
        for files in ("*/*.yaml", "hydra/*/*.yaml")
        for file in CONF.glob(files)
    }
)
NAMES = [f"{group}={name}" for group in GROUPS for name in shipped(group)]


def composed(*overrides: str) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", ["run_dir=nowhere", *overrides])


def small(choice: str) -> list[str]:
    """What makes a run of it take seconds, not minutes."""
    config = composed(choice)
    overrides = [choice, "data.size=32", "trainer.max_epochs=2"]
    if "width" in config.model:
        overrides += ["model.width=4", "model.depth=2"]
    else:
        overrides += ["model.decoder=[8,8,8,8]"]
    return overrides


@pytest.mark.parametrize("choice", NAMES)
def test_it_composes_and_names_only_what_is_there_and_trusted(choice: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(check_config(composed(choice))))
    read_config(tmp_path / "config.yaml")  # or its runs could not be opened again
    for name in ALL_ALLOWED_TARGETS:
        assert name.split(".")[0] in ("seglab", "torch", "lightning")


@pytest.mark.parametrize("model", shipped("model"))
def test_every_model_gives_logits(model: str) -> None:
    net = instantiate(composed(f"model={model}").model)
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, 1, 32, 32)


@pytest.mark.parametrize(
    "choice",
    [
        *(f"experiment={name}" for name in shipped("experiment")),
        *(f"model={name}" for name in shipped("model")),
        "trainer=debug",
    ],
)
def test_it_trains(
    choice: str, script: Callable[..., Ended], tiny_ph2: Path, cache_dir: Path, tmp_path: Path
) -> None:
    where = ["data=ph2", f"data.root={tiny_ph2}", f"data.cache_dir={cache_dir}"]
    if choice == "experiment=classes":
        root = write_tiny_classes(tmp_path / "classes")
        where = ["data=pairs", f"data.root={root}", "data.classes=[skin,disc,square]"]
    ended = script("train", *small(choice), *where, f"hydra.run.dir={tmp_path / 'run'}")
    assert ended.code == 0, ended.err
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "finished"


def test_the_baseline_has_the_recipes_settings() -> None:
    config = composed()
    assert config.name == "baseline"
    recipe = {"_target_": "torch.optim.Adam", "lr": 1e-3, "weight_decay": 1e-6}
    assert {key: config.task.optimizer[key] for key in recipe} == recipe
    assert config.data.batch_size == 32
    assert config.seed == 42


@pytest.mark.parametrize("without", ["~logger", "logger=none", "callbacks=none", "~callbacks"])
def test_groups_can_be_left_out(without: str) -> None:
    config = check_config(composed(without))
    assert not config[without.strip("~").partition("=")[0]]
