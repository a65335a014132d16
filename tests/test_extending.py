"""A loss, a network, a data layout and an augmentation of one's own: one file and one YAML each."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from helpers.processes import Process
from helpers.tiny import TINY


class Extension(NamedTuple):
    code: str
    group: str
    yaml: str


EXTENSIONS = {
    "loss": Extension(
        """
from pathlib import Path
import torch

def squared_error(logits, mask):
    Path(__file__).with_name("called").touch()
    return (torch.sigmoid(logits) - mask).square().flatten(1).mean(1)
""",
        "experiment",
        """# @package _global_
name: mine
task:
  loss:
    _target_: mine.squared_error
    _partial_: true
""",
    ),
    "network": Extension(
        """
from pathlib import Path
from torch import nn

class Pixelwise(nn.Sequential):
    def __init__(self, classes, width=8):
        super().__init__(nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, classes, 1))

    def forward(self, image):
        Path(__file__).with_name("called").touch()
        return super().forward(image)
""",
        "model",
        "_target_: mine.Pixelwise\nclasses: ${len:${data.classes}}\n",
    ),
    "data layout": Extension(
        """
from pathlib import Path
from seglab.data.layouts import find_cases

def first_cases(root, n):
    Path(__file__).with_name("called").touch()
    return find_cases(root)[:n]
""",
        "data",
        """defaults:
  - default
  - _self_

cases:
  _target_: mine.first_cases
  _partial_: true
  n: 12
root: data
""",
    ),
    "augmentation": Extension(
        """
from pathlib import Path
import torch

class Darken:
    def __init__(self, most):
        self.most = most

    def __call__(self, image, mask, generator):
        Path(__file__).with_name("called").touch()
        factor = 1 - self.most * torch.rand(len(image), 1, 1, 1, generator=generator)
        return image * factor.to(image), mask
""",
        "experiment",
        """# @package _global_
name: mine
data:
  augment:
    _target_: mine.Darken
    most: 0.3
""",
    ),
}


@pytest.mark.parametrize("name", EXTENSIONS)
def test_an_extension_trains(
    name: str, forks: Any, tiny_ph2: Path, cache_dir: Path, tmp_path: Path
) -> None:
    extension, run = EXTENSIONS[name], tmp_path / "run"
    (tmp_path / "mine.py").write_text(extension.code)
    # Hydra looks into conf/ of the working directory without being told.
    folder, options = ("own", ["--config-dir", "own"]) if name == "loss" else ("conf", [])
    config = tmp_path / folder / extension.group / "mine.yaml"
    config.parent.mkdir(parents=True)
    config.write_text(extension.yaml)
    arguments = [
        *(*options, f"{extension.group}=mine", "trainer.max_epochs=1", "data.size=32"),
        *([] if extension.group == "model" else TINY[:2]),
        *(f"data.root={tiny_ph2}", f"data.cache_dir={cache_dir}", f"hydra.run.dir={run}"),
    ]
    done = Process(forks, tmp_path / "log", "train", arguments, cwd=tmp_path).wait()
    assert done.code == 0, done.err
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    assert "mine." in (run / "config.yaml").read_text()
    assert (tmp_path / "called").exists()
    # The commands to go on with can be pasted.
    assert done.err.count(" --trust=mine.") == 2
