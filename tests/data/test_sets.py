"""Several data sets in one run: named, split as alone, and parted where they are equal."""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from seglab.core.errors import InputError
from seglab.core.files import write_json
from seglab.data.cache import hash_cases, hash_files
from seglab.data.cases import Case, read_pair
from seglab.data.datamodule import SegmentationDataModule
from seglab.data.layouts import find_cases
from seglab.data.resizing import to_network_size
from seglab.data.sets import JoinedArrays, find_roots, join_splits, name_cases, read_sets
from seglab.data.splits import Split, make_split

SPLIT = {"val": 0.2, "test": 0.25, "seed": 42, "fold": None, "folds": 5, "file": None}
SIZE = 16


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, write_pairs: Callable[..., Path]) -> Path:
    """Folders `a` of 20 and `b` of 12 pairs; no two pictures are equal."""
    root = tmp_path_factory.mktemp("sets")
    write_pairs(root / "a", 20)
    other = write_pairs(root / "more", 32)
    for kind in ("images", "masks"):
        for i, file in enumerate(sorted((other / kind).iterdir())[20:]):
            (root / "b" / kind).mkdir(parents=True, exist_ok=True)
            shutil.copy(file, root / "b" / kind / f"p{i:02}{file.suffix}")
    return root


@pytest.fixture
def make(root: Path, tmp_path: Path) -> Callable[..., SegmentationDataModule]:
    def make(
        sets: dict[str, Any], split: dict[str, Any] | None = None, **changed: Any
    ) -> SegmentationDataModule:
        arguments: dict[str, Any] = {
            "cases": find_cases,
            "root": str(root),
            "size": SIZE,
            "batch_size": 5,
            "eval_batch_size": 2,
            "cache_dir": str(tmp_path / "cache"),
            "split": SPLIT | (split or {}),
            "augment": None,
            "num_workers": 0,
            "seed": 42,
            "sets": sets,
        }
        module = SegmentationDataModule(**(arguments | changed))
        module.setup()
        return module

    return make


Make = Callable[..., SegmentationDataModule]
TWO: dict[str, Any] = {"a": {"root": "a"}, "b": {"root": "b"}}


def split_alone(root: Path, **settings: Any) -> Split:
    cases = find_cases(root)
    settings = {k: v for k, v in (SPLIT | settings).items() if k != "file"}
    return make_split(cases, range(len(cases)), hash_cases(cases, hash_files(cases)), **settings)


def test_each_set_is_split_as_alone(make: Make, root: Path) -> None:
    sets = {"a": {"root": "a"}, "b": {"root": "b", "split": {"fold": None, "test": 0.5, "val": 0}}}
    module = make(sets, {"fold": 1})
    a, b = split_alone(root / "a", fold=1), split_alone(root / "b", test=0.5, val=0)
    for subset in ("train", "val", "test"):
        expected = [f"a/{id}" for id in getattr(a, subset)]
        expected += [f"b/{id}" for id in getattr(b, subset)]
        assert getattr(module.split, subset) == expected
    assert module.split.protocol == f"a: {a.protocol}; b: {b.protocol}"
    assert module.split.sha256["a/p03"] == a.sha256["p03"]
    assert {case.id.split("/")[0] for case in module.cases if case.set == "b"} == {"b"}


def test_batches_hold_the_cases_of_all_sets(make: Make) -> None:
    module = make(TWO)
    seen = []
    for batch in [*module.train_dataloader(), *module.test_dataloader()]:
        for i, id in enumerate(batch["id"]):
            case = next(case for case in module.cases if case.id == id)
            image, mask = to_network_size(*read_pair(case), SIZE)
            assert np.array_equal(batch["image"][i].numpy(), image)
            assert np.array_equal(batch["mask"][i].numpy(), mask)
            seen.append(id)
    assert sorted(seen) == sorted(module.split.train + module.split.test)
    assert {"a", "b"} == {id.split("/")[0] for id in seen}
    assert set(module.files()) >= {"a/images/p00.png", "b/images/p00.png"}


def test_a_weight_repeats_training_images_alone(make: Make) -> None:
    module = make({"a": {"root": "a"}, "b": {"root": "b", "weight": 3}})
    times = Counter(id for batch in module.train_dataloader() for id in batch["id"])
    assert times == {id: 3 if id.startswith("b/") else 1 for id in module.split.train}
    tested = [id for batch in module.test_dataloader() for id in batch["id"]]
    assert tested == module.split.test


@pytest.mark.parametrize("fold", [None, 1])
def test_a_set_may_be_for_training_alone(fold: int | None, make: Make) -> None:
    sets = {"a": {"root": "a"}, "b": {"root": "b", "split": {"test": 0, "val": 0}}}
    split = make(sets, {"fold": fold}).split
    assert sum(id.startswith("b/") for id in split.train) == 12
    assert not any(id.startswith("b/") for id in split.val + split.test)


def test_the_cache_of_a_set_is_that_of_a_run_of_it_alone(make: Make, tmp_path: Path) -> None:
    make(TWO)
    folders = {path.name for path in (tmp_path / "cache").glob("*-16")}
    make({}, root=str(find_roots({"root": make(TWO).root, "sets": TWO})["a"]))
    assert {path.name for path in (tmp_path / "cache").glob("*-16")} == folders
    assert len(folders) == 2


def test_settings_of_a_set_are_its_own(make: Make, tmp_path: Path) -> None:
    for name, suffix, value in (("plain", "", 255), ("labels", "_by_hand", 7)):
        for i in range(8):
            pixels = np.random.default_rng(i + value).integers(0, 255, (20, 20, 3), np.uint8)
            mask = np.zeros((20, 20), np.uint8)
            mask[5:15, i : i + 9] = value
            mask[0, :5] = 3 if value == 7 else 0  # another label
            for folder, array, end in (("images", pixels, ""), ("masks", mask, suffix)):
                file = tmp_path / name / folder / f"{i}{end}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(file)
    labels = {"root": str(tmp_path / "labels"), "mask_suffix": "_by_hand", "lesion_values": [7]}
    module = make({"plain": {"root": "plain"}, "labels": labels}, root=str(tmp_path))
    by_id = {case.id: case for case in module.cases}
    assert read_pair(by_id["plain/2"])[1].sum() == 90
    assert read_pair(by_id["labels/2"])[1].sum() == 90  # without the other label


@pytest.mark.parametrize("sets", [TWO, {"a": TWO["a"]}])
def test_a_saved_split_is_read(sets: dict[str, Any], make: Make, tmp_path: Path) -> None:
    module = make(sets, {"seed": 7})
    assert {case.id for case in module.cases} == {*module.cache.sha256}
    write_json(tmp_path / "splits.json", module.split.to_json())
    assert make(sets, {"file": str(tmp_path / "splits.json")}).split == module.split


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_what_another_set_holds_out_is_not_trained_on(
    held_out: str, make: Make, root: Path, tmp_path: Path
) -> None:
    shutil.copytree(root / "a", tmp_path / "a")
    shutil.copytree(root / "b", tmp_path / "b")
    (id,) = getattr(split_alone(root / "a"), held_out)[:1]
    trained = split_alone(root / "b").train[0]
    for kind in ("images", "masks"):
        (tmp_path / "b" / kind / f"{trained}.png").unlink()
        with Image.open(tmp_path / "a" / kind / f"{id}.png") as picture:
            picture.save(tmp_path / "b" / kind / f"{trained}.bmp")
    module = make(TWO, root=str(tmp_path))
    assert f"a/{id}" in getattr(module.split, held_out)
    everywhere = module.split.train + module.split.val + module.split.test
    assert f"b/{trained}" not in everywhere and len(everywhere) == 31
    (warning,) = [text for text in module.split.warnings if "left out" in text]
    assert f"b/{trained}" in warning


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.sampled_from(["", "p1", "p2"])), min_size=24),
    st.integers(0, 99),
)
def test_groups_and_patients_are_on_one_side(drawn: list[tuple[int, str]], seed: int) -> None:
    """Whatever is equal among three sets: nothing in train is in val or test of another set."""
    sets: dict[str, list[Case]] = {"a": [], "b": [], "c": []}
    for i, (_, patient) in enumerate(drawn):
        sets["abc"[i % 3]].append(Case(f"{i:03}", Path(), Path(), patient=patient))
    groups = {f"{i:03}": number for i, (number, _) in enumerate(drawn)}
    splits = {}
    for name, cases in sets.items():
        hashes = {case.id: f"{name}{case.id}" for case in cases}
        try:
            splits[name] = make_split(
                cases, [groups[case.id] for case in cases], hashes, val=0.2, test=0.2, seed=seed
            )
        except InputError:  # one group holds all cases
            return
    named = name_cases(sets)
    numbers = [groups[case.id.split("/")[1]] for case in named]
    joined = join_splits(splits, named, numbers)
    side = {id: name for name in ("train", "val", "test") for id in getattr(joined, name)}
    of_group: dict[object, set[str]] = {}
    for case, number in zip(named, numbers, strict=True):
        for key in (number, case.patient):
            if key != "" and case.id in side:
                of_group.setdefault(key, set()).add(side[case.id])
    assert all(len(sides) == 1 for sides in of_group.values())
    tested = {f"{name}/{id}" for name, split in splits.items() for id in split.test}
    assert tested == set(joined.test)  # no test case is lost
    assert set(joined.sha256) == {case.id for case in named}


def test_joined_arrays_are_indexed_as_one() -> None:
    arrays = [np.arange(n * 6).reshape(n, 2, 3) + 100 * n for n in (4, 1, 7)]
    joined, expected = JoinedArrays(arrays), np.concatenate(arrays)
    for rows in ([0, 11, 4, 5, 3, 3], np.array([7, 2]), [5]):
        assert np.array_equal(joined[rows], expected[rows])
    assert all(np.array_equal(joined[row], expected[row]) for row in range(12))


def test_a_folder_that_cannot_be_read_is_named_by_its_key(root: Path) -> None:
    data = {"root": root, "classes": ["skin", "lesion"], "cases": find_cases}
    data["sets"] = {"a": {"root": "a"}, "b": {"root": "nowhere"}}
    with pytest.raises(InputError, match=r"^data\.sets\.b: .*nowhere is no folder") as caught:
        read_sets(data)
    assert "with data.sets.b.root=" in str(caught.value)
