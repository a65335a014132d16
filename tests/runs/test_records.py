"""Opening a finished run: damaged, foreign and changed files are refused in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from helpers.tiny import Ended, refused
from PIL import Image

from seglab.runs.checkpoints import SealedCheckpoints


def image_of(root: Path, id: str) -> Path:
    return root / "PH2 Dataset images" / id / f"{id}_Dermoscopic_Image" / f"{id}.bmp"


def test_weights_that_do_not_fit_are_refused(run: Path, script: Callable[..., Ended]) -> None:
    file = run / "checkpoints" / "best.ckpt"
    content = torch.load(file, weights_only=True)
    content["state_dict"]["net.head.weight"] = torch.zeros(1, 99, 1, 1)
    SealedCheckpoints().save_checkpoint(content, file)
    refused(script("evaluate", run), None, "best.ckpt", "not those of the network", "head.weight")


def test_a_split_that_tests_on_train_is_refused(run: Path, script: Callable[..., Ended]) -> None:
    file = run / "splits.json"
    split = json.loads(file.read_text())
    file.write_text(json.dumps(split | {"test": split["train"]}))
    refused(script("evaluate", run), None, str(file))


def test_what_is_no_run_is_refused(script: Callable[..., Ended], tmp_path: Path) -> None:
    refused(script("evaluate", tmp_path / "nowhere"), None, str(tmp_path / "nowhere"))
    refused(script("evaluate", tmp_path), None, str(tmp_path), "run.json")
    (tmp_path / "run.json").write_text("[1]")
    refused(script("evaluate", tmp_path), None, str(tmp_path))


def test_a_run_whose_test_images_changed_is_refused(
    run: Path, script: Callable[..., Ended], tmp_path: Path
) -> None:
    config = (run / "config.yaml").read_text()
    root = next(line.split()[1] for line in config.splitlines() if line.strip().startswith("root:"))
    copy = Path(shutil.copytree(root, tmp_path / "copy"))
    (run / "config.yaml").write_text(config.replace(root, str(copy)))
    assert script("evaluate", run).code == 0
    id = json.loads((run / "splits.json").read_text())["test"][0]
    pixels = np.array(Image.open(image_of(copy, id)))
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(image_of(copy, id))
    refused(script("evaluate", run), None, id, "changed")
