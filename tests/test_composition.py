"""Configs of the user's own: conf/ in the working directory."""

from pathlib import Path

import hydra
import pytest
from helpers.tiny import REPO

import seglab


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a model of a new name and a trainer of seglab's name in conf/."""
    for name, text in {
        "model/mine.yaml": "_target_: my_networks.MyNet\n",
        "trainer/cpu.yaml": "_target_: lightning.Trainer\nmax_epochs: 7\n",
        "train.yml": "no config, for its name\n",
    }.items():
        (tmp_path / "conf" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "conf" / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_conf_of_the_working_directory_comes_first(project: Path) -> None:
    cfg = seglab.compose(["model=mine"])
    assert cfg.model == {"_target_": "my_networks.MyNet"}
    assert cfg.trainer == {"_target_": "lightning.Trainer", "max_epochs": 7}
    assert cfg.task._target_ == "seglab.training.task.SegmentationTask"


def test_the_folder_may_be_missing_or_seglabs_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (tmp_path, REPO):
        monkeypatch.chdir(folder)
        assert seglab.compose().trainer.max_epochs == 30


def test_other_programs_that_use_hydra_are_left_alone(project: Path) -> None:
    other = project / "other"
    (other / "trainer").mkdir(parents=True)
    (other / "main.yaml").write_text("defaults: [trainer: cpu]\n")
    (other / "trainer" / "cpu.yaml").write_text("theirs: true\n")
    with hydra.initialize_config_dir(str(other), version_base="1.3"):
        assert hydra.compose("main") == {"trainer": {"theirs": True}}
