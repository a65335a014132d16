"""The DataModule: cases, cache, split and batches."""

import logging
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from seglab.core.errors import InputError
from seglab.core.files import hash_json
from seglab.data.cache import Cache, open_cache
from seglab.data.cases import Case
from seglab.data.checks import describe_checks, describe_split
from seglab.data.classes import ONE_CLASS, make_classes
from seglab.data.duplicates import equal_files
from seglab.data.sets import join_caches, join_splits, name_cases, read_sets
from seglab.data.splits import Split, load_split, make_split

log = logging.getLogger(__name__)


class CachedDataset(Dataset):
    """Slices of the cache; a batch is one indexing of one array."""

    def __init__(self, cache: Cache, cases: Sequence[Case], rows: list[int]) -> None:
        self.cache = cache
        self.ids = [cases[row].id for row in rows]
        self.rows = torch.tensor(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, positions: list[int]) -> dict[str, Tensor | list[str]]:
        index = self.rows[positions]
        return {
            "image": torch.from_numpy(self.cache.images[index.numpy()]),
            "mask": torch.from_numpy(self.cache.masks[index.numpy()]),
            "index": index,
            "id": [self.ids[position] for position in positions],
        }


class SegmentationDataModule(LightningDataModule):
    """Loads and splits a data set, or several.

    A batch is a dict: `image` float (N, 3, S, S) in [0, 1], `mask` float (N, 1, S, S) of class
    numbers, `index` int64 (N,) the row of each case, `id` a list of N case ids.

    Args:
        cases: Function from the root folder to the cases (`seglab.data.layouts`).
        root: The data's folder; of several sets the one that those are relative to.
        size: Edge of the square network input, in pixels.
        batch_size: Training images in a batch, over all devices.
        eval_batch_size: Images in a batch of val and test.
        cache_dir: Folder of all caches, outside the data.
        split: `val`, `test`, `seed`, `fold`, `folds` and `train_share` of `make_split`, and
            `file`: a saved split to use instead, or None.
        augment: Function that augments training batches, as `Augment` does, or None.
        num_workers: Number of loader processes; 0 suffices for a cache.
        seed: Seed of the order of training batches and of augmentation.
        classes: Names of the classes, as in `seglab.data.classes.Classes`.
        colours: Colours of several classes in mask files, as in `Classes`.
        find_duplicates: Whether nearly equal pictures count as the same one in splits, as in
            `same_pictures`; if not, only image files of equal content do.
        mask_suffix: What names of masks end with, for `cases`; None to recognise it.
        lesion_values: Values of one class in mask files, as in `Classes`.
        sets: Several data sets by name, see `seglab.data.sets.read_sets`, each with what differs
            of `split`, and `weight`, how often an epoch has each of its training images.
    """

    def __init__(
        self,
        cases: Callable[[str], list[Case]],
        root: str,
        size: int,
        batch_size: int,
        eval_batch_size: int,
        cache_dir: str,
        split: Mapping[str, Any],
        augment: Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]] | None,
        num_workers: int,
        seed: int,
        classes: Sequence[str] = ONE_CLASS.names,
        colours: Sequence[str] | None = None,
        lesion_values: Sequence[int] | str | None = None,
        find_duplicates: bool = True,
        mask_suffix: str | None = None,
        sets: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        self.sets = sets or {}
        for function in (cases, *(own["cases"] for own in self.sets.values() if "cases" in own)):
            if not callable(function):
                raise InputError(f"data.cases={function}: expected a function, see conf/data")
        if augment is not None and not callable(augment):
            raise InputError(
                f"data.augment={augment}: expected null or a callable (image, mask, generator)"
            )
        self.classes = make_classes(classes, colours, lesion_values)
        reader = {"root": root, "cases": cases, "mask_suffix": mask_suffix, "sets": sets}
        names = {"classes": classes, "colours": colours, "lesion_values": lesion_values}
        self.read_sets = partial(read_sets, reader | names)
        self.root = root
        self.size = size
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.cache_dir = cache_dir
        self.split_settings = dict(split)
        self.augment = augment
        self.num_workers = num_workers
        self.seed = seed
        self.find_duplicates = find_duplicates
        self.cases: list[Case] = []
        self.cache: Cache
        self.split: Split

    def setup(self, stage: str | None = None) -> None:
        """Reads the cases, opens the cache and splits. A second call does nothing."""
        if self.cases:
            return
        sets = self.read_sets()
        caches = {name: open_cache(own, self.size, self.cache_dir) for name, own in sets.items()}
        self.cache = join_caches(caches, self.cache_dir)
        cases = name_cases(sets)
        self.split = self._make_split(sets, caches, cases)
        self.cases = cases
        checks = self.cache.checks
        for warning in (
            *self.split.warnings,
            *describe_checks(checks, self.classes, self.size),
            *describe_split(self.split, checks, self.classes),
        ):
            log.warning("%s", warning)
        left_out = len(cases) - sum(map(len, (self.split.train, self.split.val, self.split.test)))
        if left_out:
            log.info("the split leaves out %d cases", left_out)

    def _make_split(
        self, sets: dict[str, list[Case]], caches: dict[str, Cache], cases: list[Case]
    ) -> Split:
        file = self.split_settings["file"]
        groups = self._group(self.cache, cases)
        if file is not None:
            return load_split(file, cases, groups, self.cache.sha256)
        splits = {}
        for name, own in sets.items():
            settings = self.split_settings | dict(self.sets.get(name, {}).get("split", {}))
            settings.pop("file")
            if not settings["test"]:  # a set for training alone has no folds
                settings["fold"] = None
            of_set = self._group(caches[name], own)
            splits[name] = make_split(own, of_set, caches[name].sha256, **settings)
        return join_splits(splits, cases, groups)

    def _group(self, cache: Cache, cases: Sequence[Case]) -> list[int]:
        """Returns a number for each case, equal for those of the same picture."""
        if self.find_duplicates:
            return cache.groups
        return equal_files([cache.files[case.image] for case in cases])

    def files(self) -> dict[str, str]:
        """SHA-256 of every file that was read, by its path below the root."""
        return files_below(self.root, self.cache.files)

    def subset_cases(self, subset: str) -> list[Case]:
        """The cases of 'train', 'val' or 'test'."""
        return [self.cases[row] for row in self.subset_indices(subset)]

    def subset_indices(self, subset: str) -> list[int]:
        """The cache's rows of 'train', 'val' or 'test'."""
        row = {case.id: i for i, case in enumerate(self.cases)}
        return [row[id] for id in getattr(self.split, subset)]

    def train_dataloader(self) -> DataLoader:
        """Batches of train, in an order that depends only on seed and epoch."""
        rank, world = self._rank_and_world()
        rows = self.subset_indices("train")
        weights = [self.sets.get(self.cases[row].set, {}).get("weight", 1) for row in rows]
        rows = [row for row, n in zip(rows, weights, strict=True) for _ in range(n)]
        dataset = CachedDataset(self.cache, self.cases, rows)
        size = self.batch_size // world
        sampler: DistributedSampler = DistributedSampler(
            dataset, world, rank, shuffle=True, seed=self.seed
        )
        if self.trainer is not None:
            # Lightning 2.6 makes the iterator of a resumed run's first epoch before it sets this.
            progress = self.trainer.fit_loop.epoch_progress.current
            sampler.set_epoch(progress.processed)  # type: ignore[attr-defined]
        return self._loader(dataset, size, sampler)

    def val_dataloader(self) -> DataLoader | list[Any]:
        """Batches of val, in order; an empty list if there is no val."""
        return self._in_order("val") if self.split.val else []

    def test_dataloader(self) -> DataLoader:
        """Batches of test, in order."""
        return self._in_order("test")

    def to_network_input(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Converts a batch of the cache's uint8, on its device, to what networks take."""
        # NHWC in memory: the layout of the cache, and the one that convolutions are fastest in.
        image = batch["image"].permute(0, 3, 1, 2).float().div_(255)
        return batch | {"image": image, "mask": batch["mask"].unsqueeze(1).float()}

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Converts a batch to what networks take, and augments it in training."""
        batch = self.to_network_input(batch)
        trainer = self.trainer
        if self.augment is None or trainer is None or not trainer.training:
            return batch
        # Seeded by epoch and cases, so that a resumed run draws the same numbers.
        seed = hash_json([self.seed, trainer.current_epoch, batch["index"].tolist()])
        generator = torch.Generator().manual_seed(int(seed[:15], 16))
        image, mask = self.augment(batch["image"], batch["mask"], generator)
        return batch | {"image": image, "mask": mask}

    def _in_order(self, subset: str) -> DataLoader:
        rank, world = self._rank_and_world()
        dataset = CachedDataset(self.cache, self.cases, self.subset_indices(subset))
        # Not padded as by torch's DistributedSampler: no case may count twice.
        return self._loader(dataset, self.eval_batch_size, range(rank, len(dataset), world))

    def _loader(self, dataset: CachedDataset, batch_size: int, sampler: Any) -> DataLoader:
        return DataLoader(
            dataset,
            batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=_as_is,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
            worker_init_fn=_leave_signals_to_the_parent,
            # Without it, each pass would draw from the generator that networks draw from.
            generator=torch.Generator().manual_seed(self.seed),
        )

    def _rank_and_world(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size


def files_below(root: str | Path, files: Mapping[Path, str]) -> dict[str, str]:
    """Files by their path below the data's root, so that data may be moved as a whole."""
    return {Path(os.path.relpath(path, root)).as_posix(): sha for path, sha in files.items()}


def _leave_signals_to_the_parent(worker: int) -> None:
    # Ctrl-C reaches all processes of a terminal, and schedulers signal all of a job's.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)


def _as_is(batch: Any) -> Any:
    return batch
