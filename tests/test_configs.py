"""Every shipped config composes, and runs on the tiny data set."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from tiny import REPO, Ended

from seglab.config import check_config
from seglab.trust import TRUSTED_TARGETS, check_targets


def shipped(group: str) -> list[str]:
    names = sorted(file.stem for file in (REPO / "conf" / group).glob("*.yaml"))
    assert len(names) >= 2, "a folder under conf/ has at least two real options"
    return names


GROUPS = sorted({file.parent.relative_to(REPO / "conf") for file in REPO.glob("conf/*/**/*.yaml")})
CHOICES = [f"{group}={name}" for group in GROUPS for name in shipped(str(group))]


@pytest.mark.parametrize("choice", CHOICES)
def test_it_composes_and_names_only_what_is_there_and_trusted(
    choice: str, tiny_config: Callable[..., DictConfig], tmp_path: Path
) -> None:
    cfg = tiny_config(tmp_path / "run", choice)
    config = check_config(cfg)
    check_targets(OmegaConf.create(config), choice)
    for name in TRUSTED_TARGETS:
        assert name.split(".")[0] in ("seglab", "torch", "lightning")


@pytest.mark.parametrize("model", shipped("model"))
def test_every_model_gives_logits(
    model: str, tiny_config: Callable[..., DictConfig], tmp_path: Path
) -> None:
    net = instantiate(tiny_config(tmp_path / "run", f"model={model}").model)
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, 1, 32, 32)


@pytest.mark.parametrize(
    "choice",
    [
        *(f"experiment={name}" for name in shipped("experiment")),
        *(f"model={name}" for name in shipped("model")),
        "trainer=smoke",
    ],
)
def test_it_trains(choice: str, tiny_train: Callable[..., Ended], tmp_path: Path) -> None:
    ended = tiny_train(tmp_path / "run", choice)
    assert ended.code == 0, ended.err
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "finished"


def test_the_baseline_is_train_yaml_itself(
    tiny_config: Callable[..., DictConfig], tmp_path: Path
) -> None:
    config = OmegaConf.to_container(tiny_config(tmp_path / "run"), resolve=True)
    named = OmegaConf.to_container(
        tiny_config(tmp_path / "run", "experiment=baseline"), resolve=True
    )
    assert config == named
    recipe = {"lr": 1e-3, "weight_decay": 1e-6}
    assert {k: config["task"]["optimizer"][k] for k in recipe} == recipe
    assert config["task"]["optimizer"]["_target_"] == "torch.optim.Adam"
    assert config["data"]["batch_size"] == 32
    assert config["seed"] == 42
