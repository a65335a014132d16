"""Training that starts from the weights of another run: `init`."""

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.resume import assert_same
from helpers.spoil import BEST, change_checkpoint
from helpers.tiny import (
    TINY,
    Ended,
    refused,
    write_ph2_case,
    write_tiny_classes,
)
from lightning import Trainer
from omegaconf import DictConfig
from PIL import Image
from torch import nn

from seglab.analysis.compare import compare
from seglab.analysis.grouping import make_rows
from seglab.config import check_config
from seglab.core.errors import InputError
from seglab.core.files import hash_file
from seglab.data.layouts import find_cases
from seglab.inference.evaluate import evaluate
from seglab.inference.models import load_model
from seglab.networks import EncoderUNet
from seglab.runs.checkpoints import ChecksummedCheckpointIO
from seglab.runs.initial_weights import InitialWeights
from seglab.runs.paths import FORMAT
from seglab.runs.provenance import hash_modules
from seglab.runs.records import find_runs
from seglab.training.build import Components, build, build_network
from seglab.training.callbacks.recorder import RunRecorder
from seglab.training.reproduce import reproduce
from seglab.training.train import train

Compose = Callable[..., DictConfig]
Script = Callable[..., Ended]
PLAIN = ["model.width=2", "trainer.max_epochs=1", "logger=none", "callbacks.pictures=null"]


@pytest.fixture
def built(tiny_config: Compose, tmp_path: Path) -> Callable[..., Components]:
    """built(*overrides): the components of a run; `run` is the run that others start from."""

    def make(*overrides: str) -> Components:
        torch.manual_seed(1)
        config = tiny_config(tmp_path / "new", *PLAIN, *overrides)
        return build(check_config(config), tmp_path / "new")

    return make


@pytest.fixture
def trained(tiny_config: Compose, tmp_path: Path) -> Callable[..., Path]:
    """trained(name, *overrides): the directory of a run."""

    def make(name: str, *overrides: str) -> Path:
        train(tiny_config(tmp_path / name, *PLAIN, *overrides))
        return tmp_path / name

    return make


def interrupt_second_epoch(self: RunRecorder, trainer: Trainer, *args: Any) -> None:
    if trainer.current_epoch == 1:
        raise KeyboardInterrupt
    start_step(self, trainer, *args)


start_step = RunRecorder.on_train_batch_start


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    state = torch.load(run / BEST, weights_only=True)["state_dict"]
    return {name.removeprefix("net."): v for name, v in state.items() if name.startswith("net.")}


def write_other_ph2(root: Path, seed: int, n: int = 8) -> Path:
    """Writes n new cases, and a saved split of which the first two are val and test."""
    random = np.random.default_rng(seed)
    for i in range(n):
        y, x = np.mgrid[:48, :60]
        mask = (y - random.uniform(15, 30)) ** 2 + (x - random.uniform(20, 40)) ** 2 < 150
        image = random.normal(180, 14, (48, 60, 3)) - 90 * mask[..., None]
        write_ph2_case(root, f"NEW{i}", image.clip(0, 255).astype(np.uint8), mask)
    ids = [f"NEW{i}" for i in range(n)]
    split = {"val": ids[:1], "test": ids[1:2], "train": ids[2:]}
    (root.parent / f"{root.name}.json").write_text(json.dumps(split))
    return root


def on(root: Path) -> list[str]:
    split = root.parent / f"{root.name}.json"
    return [f"data.root={root}", f"data.split.file={split}", "data.find_duplicates=true"]


def copy_image(
    case: Any, root: Path, id: str, change: Callable[[Image.Image], Image.Image]
) -> None:
    image = change(Image.open(case.image))
    image.save(root / "PH2 Dataset images" / id / f"{id}_Dermoscopic_Image" / f"{id}.bmp")
    mask = change(Image.open(case.mask))
    mask.save(root / "PH2 Dataset images" / id / f"{id}_lesion" / f"{id}_lesion.bmp")


def test_the_network_holds_the_weights_of_the_run(run: Path, built: Script) -> None:
    expected = weights_of(run)
    for path in (run, run / BEST):
        components = built(f"init={path}")
        found = components.task.net.state_dict()
        assert found.keys() == expected.keys()
        assert any("running_mean" in name for name in found)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert components.initial.record["trained_on"] == "known"
        assert components.initial.record["new"] == []
    fresh = built().task.net.state_dict()
    assert not torch.equal(fresh["head.weight"], expected["head.weight"])


def test_cases_that_were_seen_are_refused_with_their_ids(run: Path, built: Script) -> None:
    split = json.loads((run / "splits.json").read_text())
    with pytest.raises(InputError) as caught:
        built(f"init={run}", "data.split.seed=7")
    new = built("data.split.seed=7").data.split
    held_out = {*new.val, *new.test} & {*split["train"]} | {*new.test} & {*split["val"]}
    assert held_out
    assert f"{len(held_out)} cases" in str(caught.value)
    assert all(id in str(caught.value) for id in sorted(held_out)[:5])
    assert "fold-${data.split.fold}" in str(caught.value)


@pytest.mark.parametrize(
    ("part", "place", "is_refused"),
    [
        ("train", "NEW0", True),
        ("train", "NEW1", True),
        ("train", "NEW2", False),
        ("val", "NEW0", False),  # to choose on the same case again is no leak
        ("val", "NEW1", True),
        ("test", "NEW1", False),
    ],
)
def test_a_turned_jpeg_of_a_seen_case_is_found(
    part: str,
    place: str,
    is_refused: bool,
    run: Path,
    tiny_ph2: Path,
    built: Script,
    tmp_path: Path,
) -> None:
    root = write_other_ph2(tmp_path / "other_PH2Dataset", 1)
    id = json.loads((run / "splits.json").read_text())[part][0]
    case = next(case for case in find_cases(tiny_ph2) if case.id == id)

    def turn_and_save(image: Image.Image) -> Image.Image:
        turned = image.transpose(Image.Transpose.ROTATE_90)
        if image.mode == "RGB":
            turned.save(tmp_path / "turned.jpg", quality=90)
            turned = Image.open(tmp_path / "turned.jpg")
        return turned

    copy_image(case, root, place, turn_and_save)
    if is_refused:
        with pytest.raises(InputError, match=rf"init=.* 1 cases .*\({place}\)"):
            built(f"init={run}", *on(root))
    else:
        built(f"init={run}", *on(root))


def test_without_find_duplicates_equal_pictures_are_found(
    run: Path, tiny_ph2: Path, built: Script, tmp_path: Path
) -> None:
    root = write_other_ph2(tmp_path / "other_PH2Dataset", 1)
    id = json.loads((run / "splits.json").read_text())["train"][0]
    case = next(case for case in find_cases(tiny_ph2) if case.id == id)
    copy_image(case, root, "NEW1", lambda image: image)
    # Another mask, as where the same pictures get more classes.
    mask = root / "PH2 Dataset images/NEW1/NEW1_lesion/NEW1_lesion.bmp"
    Image.fromarray(~np.asarray(Image.open(mask)).astype(bool)).save(mask)
    with pytest.raises(InputError, match="NEW1"):
        built(f"init={run}", *on(root), "data.find_duplicates=false")


@pytest.mark.parametrize("names", [["background", "disc", "square"], ["mole"]])
def test_a_head_of_other_classes_starts_anew_and_says_so(
    names: list[str],
    run: Path,
    built: Script,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    classes = [f"data.classes=[{','.join(names)}]"]
    if len(names) > 1:
        root = write_tiny_classes(tmp_path / "classes")
        classes += [
            "data=pairs",
            f"data.root={root}",
            "task.loss._target_=seglab.losses.cross_entropy",
        ]
    with caplog.at_level(logging.WARNING, "seglab"):
        components = built(f"init={run}", *classes)
    assert components.initial.record["new"] == ["head.weight", "head.bias"]
    (warning,) = (r.getMessage() for r in components.warnings if "init=" in r.getMessage())
    assert "['lesion']; start anew: ['head.weight', 'head.bias']" in warning
    found, fresh, expected = (
        components.task.net.state_dict(),
        built(*classes).task.net.state_dict(),
        weights_of(run),
    )
    for name, value in found.items():
        assert torch.equal(value, (fresh if name.startswith("head.") else expected)[name]), name


def test_a_head_of_several_layers_starts_anew() -> None:
    def make(n: int) -> nn.Module:  # as the last blocks of MONAI's UNet
        head = [nn.ConvTranspose2d(4, n, 2), nn.PReLU(), nn.Conv2d(n, n, 3)]
        return nn.Sequential(nn.Conv2d(3, 4, 3), *head)

    first, net = make(1), make(3)
    record = {"path": "first", "model": "a", "classes": ["lesion"], "new": []}
    InitialWeights(first.state_dict(), {}, record).load_into(net, "a", ["background", "b", "c"])
    assert record["new"] == ["1.weight", "1.bias", "3.weight", "3.bias"]
    assert torch.equal(net.state_dict()["0.weight"], first.state_dict()["0.weight"])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.width=4"], ["seglab.networks.UNet", "encoder.blocks.0.0.weight"]),
        (["model=segnet", "model.width=2", "model.depth=2"], ["seglab.networks.SegNet", "UNet"]),
        (["model.depth=1"], ["seglab.networks.UNet", "encoder"]),
    ],
)
def test_another_network_is_refused(
    overrides: list[str], words: list[str], run: Path, built: Script
) -> None:
    with pytest.raises(InputError) as caught:
        built(f"init={run}", *overrides)
    message = str(caught.value)
    assert message.startswith(f"init={run}: ") and "\n" not in message and len(message) < 500
    assert all(word in message for word in words), message


def test_what_is_no_run_or_checkpoint_is_refused(
    run: Path,
    built: Script,
    tiny_train: Script,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "net.onnx").write_bytes((run / BEST).read_bytes())
    (tmp_path / "net.pth").write_bytes(b"PK")
    for name in ("net.onnx", "nowhere", "net.pth", "."):
        with pytest.raises(InputError, match=rf"\A.*{tmp_path / name}.*\Z"):
            built(f"init={tmp_path / name}")
    for value in ("", "3", "[a]"):
        with pytest.raises(InputError, match=r"\Ainit=.*: expected a path or null"):
            built(f"init={value}")
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"status": "interrupted"}))
    # Relative to the working directory, and before the data is looked for.
    monkeypatch.chdir(run.parent)
    ended = tiny_train(tmp_path / "new", f"init={run.name}", "data.root=nowhere")
    refused(ended, tmp_path / "new", f"init={run}", "not finished", BEST)
    built(f"init={run / BEST}")


def test_nothing_that_a_strangers_config_names_is_built(run: Path, built: Script) -> None:
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("seglab.networks.UNet", "os.abort"))

    def name_code(checkpoint: dict[str, Any]) -> None:
        checkpoint["seglab"]["config"]["model"]["_target_"] = "os.abort"

    change_checkpoint(run, name_code)
    assert built(f"init={run}", "model.width=2").initial.record["model"] == "os.abort"


@pytest.mark.parametrize("weights", ["imagenet", None])
def test_imagenet_weights_are_not_read_and_frozen_stages_hold_those_of_the_run(
    weights: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = {"_target_": "seglab.networks.EncoderUNet", "encoder": "resnet18", "freeze": 2}
    model |= {"decoder": [4, 4, 4, 4], "weights": weights}
    config: dict[str, Any] = {"model": model, "data": {"classes": ["lesion"], "size": 32}}
    first = EncoderUNet("resnet18", [4, 4, 4, 4])
    metadata = {"format": FORMAT, "config": config, "classes": ["lesion"]}
    metadata |= {"threshold": 0.5, "split_hash": ""}
    state = {f"net.{name}": value for name, value in first.state_dict().items()}
    checkpoint = {"epoch": 0, "state_dict": state, "seglab": metadata}
    ChecksummedCheckpointIO().save_checkpoint(checkpoint, tmp_path / "first.ckpt")

    def refuse(*args: object) -> None:
        raise AssertionError("weights of ImageNet are read")

    for module in ("encoders", "unet"):
        monkeypatch.setattr(f"seglab.networks.{module}.load_weights", refuse)
    config["init"] = str(tmp_path / "first.ckpt")
    net, _ = build_network(config, tmp_path / "new")
    assert [*hash_modules(config)][-1] == "init"
    for name, value in net.state_dict().items():
        assert torch.equal(value, first.state_dict()[name]), name
    frozen = {name for name, p in net.named_parameters() if not p.requires_grad}
    prefixes = ("encoder.conv1.", "encoder.bn1.", "encoder.layer1.")
    assert frozen == {name for name, _ in net.named_parameters() if name.startswith(prefixes)}
    # BatchNorm keeps its statistics where `model.weights` says that they are worth it, as before.
    assert net.train().encoder.bn1.training == (weights is None)


def test_a_chain_of_runs_remembers_what_each_has_seen(
    run: Path, trained: Callable[..., Path], built: Script, tiny_ph2: Path, tmp_path: Path
) -> None:
    id = json.loads((run / "splits.json").read_text())["train"][0]
    case = next(case for case in find_cases(tiny_ph2) if case.id == id)
    second = trained("second", f"init={run}", *on(write_other_ph2(tmp_path / "b_PH2Dataset", 2)))
    shutil.rmtree(run)
    third_root = write_other_ph2(tmp_path / "c_PH2Dataset", 3)
    third = trained("third", f"init={second}", *on(third_root))
    shutil.rmtree(second)
    root = write_other_ph2(tmp_path / "d_PH2Dataset", 4)
    copy_image(case, root, "NEW1", lambda image: image.transpose(Image.Transpose.ROTATE_180))
    assert evaluate(third, data_root=root, out=tmp_path / "out")["trained_on"] == 1
    assert evaluate(third, out=tmp_path / "own")["trained_on"] == 0
    assert json.loads((third / "run.json").read_text())["init"]["trained_on"] == "known"
    with pytest.raises(InputError, match=r"1 cases .*\(NEW1\)"):
        built(f"init={third}", *on(root))


def test_unknown_training_cases_are_noted_along_a_chain(
    run: Path, trained: Callable[..., Path], tmp_path: Path
) -> None:
    alone = tmp_path / "alone.ckpt"
    shutil.copy(run / BEST, alone)
    first = trained("runs/first", f"init={alone}")
    second = trained("runs/second", f"init={first}")
    for folder in (first, second):
        record = json.loads((folder / "run.json").read_text())
        assert record["init"]["trained_on"] == "unknown"
        assert any("unknown" in warning for warning in record["warnings"])
        assert record["init"]["sha256"] == record["modules"]["init"]
        card = (folder / "MODEL_CARD.md").read_text()
        assert record["init"]["sha256"] in card and "unknown" in card
    text = compare([tmp_path / "runs"])
    assert text.count("trained on unknown cases") == 2
    (run / "thumbnails.npy").unlink()
    third = trained("third", f"init={run}")
    assert json.loads((third / "run.json").read_text())["init"]["trained_on"] == "unknown"


@pytest.mark.slow
def test_an_interrupted_run_goes_on_without_what_it_started_from(
    run: Path, trained: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = [f"init={run}", "trainer.max_epochs=3"]
    reference = trained("reference", *short)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunRecorder, "on_train_batch_start", interrupt_second_epoch)
        trained("new", *short)
    record = json.loads((tmp_path / "new" / "run.json").read_text())
    assert record["status"] == "interrupted"
    moved = run.rename(tmp_path / "moved")
    shutil.copytree(moved, run)
    change_checkpoint(run, lambda checkpoint: checkpoint.update(epoch=7))
    with pytest.raises(InputError, match="init is another file than when this run began"):
        trained("new", *short)
    shutil.rmtree(run)
    assert_same(trained("new", *short), reference)
    assert json.loads((tmp_path / "new" / "run.json").read_text())["init"] == record["init"]


@pytest.mark.slow
def test_a_run_repeats_while_what_it_started_from_is_there(
    run: Path, trained: Callable[..., Path], tmp_path: Path
) -> None:
    new = trained("new", f"init={run}")
    assert reproduce(new) == 0
    change_checkpoint(run, lambda checkpoint: checkpoint.update(epoch=7))
    record = json.loads((new / "run.json").read_text())
    for _ in range(2):
        with pytest.raises(InputError) as caught:
            reproduce(new)
        assert str(run) in str(caught.value) and record["init"]["sha256"] in str(caught.value)
        shutil.rmtree(run, ignore_errors=True)
    # A pipe would be waited on.
    os.mkfifo(run)
    load_model(new)
    evaluate(new, out=tmp_path / "out")


@pytest.mark.slow
def test_each_fold_of_a_sweep_starts_from_the_run_of_its_fold(
    trained: Callable[..., Path],
    built: Script,
    script: Script,
    tiny_ph2: Path,
    cache_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for fold in (0, 1):
        trained(f"first/fold-{fold}", f"data.split.fold={fold}", "data.split.folds=2")
    arguments = ["-m", *TINY, *PLAIN, f"data.root={tiny_ph2}", f"data.cache_dir={cache_dir}"]
    arguments += ["init=first/fold-${data.split.fold}", "data.split.fold=0,1"]
    arguments += ["data.split.folds=2", "hydra.sweep.dir=second"]
    monkeypatch.chdir(tmp_path)
    assert script("train", *arguments).code == 0
    for fold in (0, 1):
        record = json.loads((tmp_path / f"second/fold-{fold}/run.json").read_text())
        assert record["init"]["sha256"] == hash_file(tmp_path / f"first/fold-{fold}" / BEST)
    rows, _ = make_rows(find_runs([tmp_path / "first", tmp_path / "second"]))
    labels = [row.label for row in rows if row.finished_runs]
    assert labels == ["init=first/fold-*", "init=null"]
    with pytest.raises(InputError, match="was trained on"):
        built(f"init={tmp_path}/first/fold-0", "data.split.fold=1", "data.split.folds=2")
