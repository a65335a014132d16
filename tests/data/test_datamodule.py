"""The DataModule: batches as documented, orders from the seed alone, every case in its subset."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from seglab.core.errors import InputError
from seglab.core.files import write_json
from seglab.data.augment import Augment
from seglab.data.cases import Case, read_pair
from seglab.data.datamodule import SegmentationDataModule
from seglab.data.layouts import find_cases
from seglab.data.resizing import to_network_size

N, SIZE = 20, 16
SPLIT = {"val": 0.2, "test": 0.25, "seed": 42, "fold": None, "folds": 5, "file": None}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, write_pairs: Callable[..., Path]) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs") / "data", N)


@pytest.fixture(scope="module")
def make(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Makes a DataModule of 20 cases: 5 test, 3 val, 12 train."""
    cache_dir = tmp_path_factory.mktemp("cache")

    def make(
        split: dict[str, Any] | None = None, setup: bool = True, **settings: Any
    ) -> SegmentationDataModule:
        arguments: dict[str, Any] = {
            "cases": find_cases,
            "root": str(data),
            "size": SIZE,
            "batch_size": 5,
            "eval_batch_size": 2,
            "cache_dir": str(cache_dir),
            "split": SPLIT | (split or {}),
            "augment": None,
            "num_workers": 0,
            "seed": 42,
        }
        module = SegmentationDataModule(**(arguments | settings))
        if setup:
            module.setup()
        return module

    return make


def trainer(training: bool = True, epoch: int = 0, rank: int = 0, world: int = 1) -> Any:
    fit_loop = SimpleNamespace(epoch_progress=SimpleNamespace(current=SimpleNamespace(processed=0)))
    return SimpleNamespace(
        training=training,
        current_epoch=epoch,
        global_rank=rank,
        world_size=world,
        fit_loop=fit_loop,
    )


def ids_of(loader: DataLoader, epoch: int | None = None) -> list[str]:
    if epoch is not None:
        loader.sampler.set_epoch(epoch)
    return [id for batch in loader for id in batch["id"]]


def delivered(module: SegmentationDataModule, batch: dict[str, Any]) -> dict[str, Any]:
    return module.on_after_batch_transfer(batch, 0)


def assert_holds_its_cases(module: SegmentationDataModule, batch: dict[str, Any]) -> None:
    n = len(batch["id"])
    image, mask = batch["image"], batch["mask"]
    assert image.shape == (n, 3, SIZE, SIZE)
    assert mask.shape == (n, 1, SIZE, SIZE)
    assert image.dtype == mask.dtype == torch.float32
    assert batch["index"].dtype == torch.int64
    assert batch["index"].shape == (n,)
    for i, id in enumerate(batch["id"]):
        case = module.cases[int(batch["index"][i])]
        assert case.id == id
        expected, expected_mask = to_network_size(*read_pair(case), SIZE)
        assert np.allclose(image[i].permute(1, 2, 0).numpy(), expected / 255, atol=1e-6)
        assert np.array_equal(mask[i, 0].numpy(), expected_mask)


@pytest.mark.parametrize(
    "subset, sizes", [("train", [5, 5, 2]), ("val", [2, 1]), ("test", [2, 2, 1])]
)
def test_batches_are_as_documented(
    subset: str, sizes: list[int], make: Callable[..., SegmentationDataModule]
) -> None:
    module = make()
    loader = getattr(module, f"{subset}_dataloader")()
    batches = [delivered(module, batch) for batch in loader]
    assert [len(batch["id"]) for batch in batches] == sizes
    assert len(loader) == len(sizes)
    for batch in batches:
        assert set(batch) == {"image", "mask", "index", "id"}
        assert_holds_its_cases(module, batch)
    ids = [id for batch in batches for id in batch["id"]]
    expected = getattr(module.split, subset)
    assert sorted(ids) == expected if subset == "train" else ids == expected


def test_train_order_depends_on_seed_and_epoch_alone(
    make: Callable[..., SegmentationDataModule],
) -> None:
    torch.manual_seed(1)
    loader = make().train_dataloader()
    orders = [ids_of(loader, epoch) for epoch in range(3)]
    assert all(sorted(order) == make().split.train != order for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    torch.manual_seed(2)
    np.random.seed(3)
    loader = make(batch_size=4, augment=Augment()).train_dataloader()
    assert [ids_of(loader, epoch) for epoch in (2, 0, 1)] == [orders[2], orders[0], orders[1]]
    for seed in (0, 43):
        assert ids_of(make(seed=seed).train_dataloader(), 0) != orders[0]


def test_the_seed_does_not_change_the_split(make: Callable[..., SegmentationDataModule]) -> None:
    assert make(seed=1).split == make(seed=2).split
    assert make(split={"seed": 43}).split.test != make().split.test


def test_devices_share_the_cases(make: Callable[..., SegmentationDataModule]) -> None:
    module = make(batch_size=4)
    loaders: dict[str, list[DataLoader]] = {"train": [], "val": [], "test": []}
    for rank in range(2):
        module.trainer = trainer(rank=rank, world=2)
        for subset, made in loaders.items():
            made.append(getattr(module, f"{subset}_dataloader")())
    for subset, made in loaders.items():
        shares = [ids_of(loader) for loader in made]
        assert sorted(shares[0] + shares[1]) == getattr(module.split, subset)  # none twice
    assert all(len(batch["id"]) == 2 for loader in loaders["train"] for batch in loader)


def batch_of(module: SegmentationDataModule) -> dict[str, Any]:
    return next(iter(module.test_dataloader()))


def test_only_training_is_augmented(make: Callable[..., SegmentationDataModule]) -> None:
    module = make(augment=Augment())
    plain = delivered(module, batch_of(module))  # no trainer
    assert_holds_its_cases(module, plain)
    module.trainer = trainer(training=False)
    assert_holds_its_cases(module, delivered(module, batch_of(module)))
    module.trainer = trainer(training=True)
    batch = delivered(module, batch_of(module))
    assert batch["id"] == plain["id"]
    assert torch.equal(batch["index"], plain["index"])
    for name in ("image", "mask"):
        assert batch[name].shape == plain[name].shape
        assert not torch.equal(batch[name], plain[name])
    assert batch["image"].min() >= 0
    assert batch["image"].max() <= 1
    assert set(batch["mask"].unique().tolist()) == {0, 1}


def test_augmentation_depends_on_seed_epoch_and_cases_alone(
    make: Callable[..., SegmentationDataModule],
) -> None:
    def augmented(seed: int = 42, epoch: int = 0, position: int = 0) -> Tensor:
        module = make(augment=Augment(), seed=seed)
        module.trainer = trainer(epoch=epoch)
        batches = list(module.test_dataloader())
        return delivered(module, batches[position])["image"]

    first = augmented()
    torch.manual_seed(9)
    assert torch.equal(augmented(), first)
    assert not torch.equal(augmented(epoch=1), first)
    assert not torch.equal(augmented(seed=43), first)

    seen = []

    def spy(image: Tensor, mask: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        seen.append(torch.rand(3, generator=generator).tolist())
        return image, mask

    module = make(augment=spy)
    module.trainer = trainer()
    for batch in module.test_dataloader():
        delivered(module, batch)
    assert len({tuple(draws) for draws in seen}) == 3


def test_a_split_is_handed_in(
    make: Callable[..., SegmentationDataModule], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "seglab.data.datamodule")
    split = make(split={"seed": 7}).split
    assert split != make().split
    write_json(tmp_path / "splits.json", split.to_json())
    module = make(split={"file": str(tmp_path / "splits.json"), "val": -1})
    assert module.split == split
    assert ids_of(module.test_dataloader()) == split.test
    assert all(record.levelno == logging.WARNING for record in caplog.records)
    write_json(tmp_path / "few.json", {"train": ["p03", "p01"], "test": ["p02"]})
    module = make(split={"file": str(tmp_path / "few.json")})
    assert sorted(ids_of(module.train_dataloader())) == ["p01", "p03"]
    assert module.val_dataloader() == []
    messages = [r.getMessage() for r in caplog.records if r.levelno == logging.INFO]
    assert messages == ["the split leaves out 17 cases"]


def test_no_val_is_no_loader(make: Callable[..., SegmentationDataModule]) -> None:
    module = make(split={"val": 0})
    assert module.split.val == []
    assert module.val_dataloader() == []
    assert len(ids_of(module.train_dataloader())) == 15


def test_setup_can_be_tried_again(
    make: Callable[..., SegmentationDataModule], tmp_path: Path
) -> None:
    """As in a notebook: the split file was missing, and now it is there."""
    path, calls = tmp_path / "splits.json", []

    def cases(root: str) -> list[Case]:
        calls.append(root)
        return find_cases(root)

    module = make(setup=False, split={"file": str(path)}, cases=cases)
    assert calls == []
    with pytest.raises(InputError, match="no such file"):
        module.setup()
    write_json(path, {"train": ["p03", "p01"], "test": ["p02"]})
    for stage in ("fit", "validate", "test"):
        module.setup(stage)
    assert module.split.test == ["p02"]
    assert len(calls) == 2


def test_loader_processes_change_nothing(make: Callable[..., SegmentationDataModule]) -> None:
    plain, other = make(), make(num_workers=1)
    for subset in ("train", "test"):
        batches = [list(getattr(m, f"{subset}_dataloader")()) for m in (plain, other)]
        assert len(batches[0]) == len(batches[1]) > 1
        for one, two in zip(*batches, strict=True):
            assert one["id"] == two["id"]
            for name in ("image", "mask", "index"):
                assert torch.equal(one[name], two[name])


def test_the_suffix_of_masks_reaches_the_function_that_finds_cases(make: Callable) -> None:
    for cases in (find_cases, partial(find_cases, layout="pairs")):
        with pytest.raises(InputError, match=r"p00\.png is there: .* set data\.mask_suffix"):
            make(cases=cases, mask_suffix="_x")
    with pytest.raises(InputError, match=r"data\.mask_suffix=_x: .* names of its own"):
        make(cases=lambda root: find_cases(root), mask_suffix="_x")
    assert len(make(mask_suffix="").cases) == N
