"""Cases by the names of their files, as public data sets and people call them."""

import functools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.layouts import (
    IMAGES,
    assert_refused,
    patients,
    touch,
    touch_pairs,
    touch_ph2,
    write_txt,
)
from helpers.tiny import REPO, Ended
from PIL import Image

from seglab.core.errors import InputError
from seglab.data.cases import Case
from seglab.data.layouts import find_cases, scan_cases
from seglab.data.splits import read_split

KINDS = ("python", "yaml")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return touch_ph2(tmp_path / "PH2Dataset")


def touch_isic(root: Path) -> list[Case]:
    """The challenge of 2018, and its cases."""
    pictures, masks = root / "ISIC2018_Task1-2_Training_Input", root / "GroundTruth"
    names = ["ISIC_0000000", "ISIC_0000001", "ISIC_0016072"]
    for i in (2, 0, 1):
        touch(pictures / f"{names[i]}.jpg")
        touch(masks / f"{names[i]}_segmentation.png")
    touch(pictures / "LICENSE.txt")
    return [
        Case(name, pictures / f"{name}.jpg", masks / f"{name}_segmentation.png") for name in names
    ]


# By name: the layout, files of pairs with '*' for what differs, and files beside them.
DATA_SETS: dict[str, tuple[str, list[str], list[str]]] = {
    **{
        f"masks with {end}": ("pairs", ["images/X*.jpg", f"masks/X*{end}"], [])
        for end in (
            "_mask.png",
            "_segmentation.png",
            "-mask.png",
            "_lesion.bmp",
            "_GT.png",
            " seg.png",
        )
    },
    "mirrored folders": ("pairs", ["Images/a/X*.jpg", "Masks/a/X*_mask.png"], []),
    "masks called as the image's file": ("pairs", ["image/X*.jpg", "mask/X*.jpg.png"], []),
    "flat": ("flat", ["X*.jpg", "X*_mask.png"], ["readme.txt"]),
    "a folder for each patient": ("flat", ["p*/X.tif", "p*/X_mask.tif"], ["data.csv"]),
    "nnU-Net": ("nnunet", ["imagesTr/X*_0000.png", "labelsTr/X*.png"], ["dataset.json"]),
    "HAM10000 of Kaggle": (
        "isic2018",
        [
            "HAM10000_images_part_2/ISIC_002430*.jpg",
            "HAM10000_segmentations_lesion_tschandl/ISIC_002430*_segmentation.png",
        ],
        [
            "HAM10000_metadata.csv",
            "hmnist_28_28_RGB.csv",
            "ham10000_images_part_2/ISIC_0024300.jpg",
        ],
    ),
    "HAM10000 of Dataverse": (
        "isic2018",
        [
            "HAM10000_images_part_1/ISIC_002430*.jpg",
            "HAM10000_segmentations_lesion_tschandl/ISIC_002430*_segmentation.png",
        ],
        ["HAM10000_metadata.tab", "ISIC2018_Task3_Test_Images/ISIC_0034524.jpg"],
    ),
    "HAM10000 as images and masks": (
        "pairs",
        ["images/ISIC_002430*.png", "masks/ISIC_002430*_segmentation.png"],
        [],
    ),
    "ISIC 2016": (
        "isic2018",
        [
            "ISBI2016_ISIC_Part1_Training_Data/ISIC_000000*.jpg",
            "ISBI2016_ISIC_Part1_Training_GroundTruth/ISIC_000000*_Segmentation.png",
        ],
        [
            "ISBI2016_ISIC_Part3_Training_GroundTruth.csv",
            "ISBI2016_ISIC_Part3B_Training_Data/ISIC_0000000.jpg",
            "ISBI2016_ISIC_Part3B_Training_Data/ISIC_0000000_Segmentation.png",
        ],
    ),
    "ISIC 2017": (
        "isic2018",
        [
            "ISIC-2017_Training_Data/ISIC_000000*.jpg",
            "ISIC-2017_Training_Part1_GroundTruth/ISIC_000000*_segmentation.png",
        ],
        [
            "ISIC-2017_Training_Data/ISIC_0000000_superpixels.png",
            "ISIC-2017_Training_Data/ISIC-2017_Training_Data_metadata.csv",
        ],
    ),
    "ISIC 2018": (
        "isic2018",
        [
            "ISIC2018_Task1-2_Validation_Input/ISIC_000000*.jpg",
            "ISIC2018_Task1_Validation_GroundTruth/ISIC_000000*_segmentation.png",
        ],
        [
            "ISIC2018_Task1-2_Validation_Input/ATTRIBUTION.txt",
            "ISIC2018_Task1-2_Test_Input/ISIC_0012169.jpg",
            "ISIC2018_Task2_Training_GroundTruth_v3/ISIC_0000000_attribute_globules.png",
        ],
    ),
}


@pytest.mark.parametrize("name", DATA_SETS)
def test_data_sets_as_they_are_given(name: str, tmp_path: Path) -> None:
    layout, pair, others = DATA_SETS[name]
    expected = [
        tuple(touch(tmp_path / file.replace("*", str(i))) for file in pair) for i in range(5)
    ]
    for file in others:
        touch(tmp_path / file).write_text("" if file.endswith(("jpg", "png")) else "number,dx\n")
    for file in (".DS_Store", "Thumbs.db", "__MACOSX/images/._X0.jpg", "@eaDir/X0.jpg/thumb.jpg"):
        touch(tmp_path / file)
    assert [(case.image, case.mask) for case in find_cases(tmp_path)] == expected
    scan = scan_cases(tmp_path)
    assert (scan.layout, scan.errors) == (layout, [])
    assert find_cases(tmp_path, layout) == scan.cases
    # Named or silent: what is read as a picture is named.
    pictures = [file for file in others if file.endswith(("jpg", "png"))]
    assert sum(str(tmp_path / file) in "".join(scan.warnings) for file in pictures) == len(pictures)


def test_a_layout_without_pairs_is_passed_over(
    tmp_path: Path, messages: Callable[[], list[str]]
) -> None:
    expected = touch_isic(tmp_path)
    touch(tmp_path / "images" / "sketch.png")
    touch(tmp_path / "masks" / "logo.png")
    assert find_cases(tmp_path) == expected  # 'pairs' has errors alone
    assert any("belong to no pair" in m and "sketch" in m for m in messages())


def test_another_layout_does_not_change_masks(tmp_path: Path) -> None:
    """Predictions beside the data are no masks because a mask is missing."""
    names = [f"ISIC_000000{i}" for i in range(3)]
    touch_pairs(tmp_path, *names)
    for name in names:
        touch(tmp_path / "predictions" / f"{name}_segmentation.png")
    (tmp_path / "masks" / f"{names[1]}.png").unlink()
    assert_refused(tmp_path, str(tmp_path / "images" / names[1]), "no mask")


def test_channels_of_nnunet_are_refused(tmp_path: Path) -> None:
    for name in ("imagesTr/X_0000.png", "imagesTr/X_0001.png", "imagesTs/Y_0000.png"):
        touch(tmp_path / name)
    touch(tmp_path / "labelsTr" / "X.png")
    assert_refused(tmp_path, "X_0001.png: case X_0001 has no mask; expected one imagesTr")
    assert any("imagesTs" in w and "Y_0000" in w for w in scan_cases(tmp_path).warnings)


def test_images_of_the_same_name_in_two_folders(tmp_path: Path) -> None:
    expected = touch_isic(tmp_path)
    second = touch(tmp_path / "copy" / expected[0].image.name)
    assert find_cases(tmp_path) == expected
    second.write_text("other content")
    assert_refused(tmp_path, f"{second}: a second case named ISIC_0000000")
    second.unlink()
    mask = touch(tmp_path / "other masks" / expected[1].mask.name)
    mask.write_text("other content")
    assert_refused(tmp_path, "a second case named", expected[1].id, str(mask))


@pytest.mark.parametrize(
    ("folders", "name"),
    [
        (["im", "m"], "ISIC_000000"),
        (["JPEGImages", "SegmentationClassPNG"], "c"),
        (["SegmentationClass", "SegmentationObject", "VOC", "test"], "c"),
        (["ann_dir/train", "img_dir/train"], "c"),
        (["Ground Truth", "Original"], "c"),
        (["all/gt", "all/image"], "c"),
    ],
)
def test_folders_of_the_same_names_are_named(folders: list[str], name: str, tmp_path: Path) -> None:
    for folder in folders[:3]:
        for i in range(9):
            touch(tmp_path / folder / f"{name}{i}.png").write_text(folder)
    for folder in folders[2:]:
        touch(tmp_path / folder / "other.jpg")
    same = ", ".join(str(tmp_path / folder) for folder in folders[:3])
    remedy = f"call the folders {tmp_path}/images and {tmp_path}/masks"
    for read in (find_cases, scan_cases):
        assert_refused(tmp_path, f"{same} hold pictures of the same names", remedy, read=read)
    for folder, end in zip((folders[0], folders[1]), ("images", "masks"), strict=True):
        (tmp_path / folder).rename(tmp_path / end)
    assert len(find_cases(tmp_path)) == 9


def test_folders_of_patients_are_no_images_and_masks(tmp_path: Path) -> None:
    for i in range(9):
        for name in ("photo", "drawn"):
            touch(tmp_path / f"p{i}" / f"{name}.png")
    assert_refused(tmp_path, "holds no data set")


def test_names_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    root = touch_pairs(tmp_path / "my data", os.fsdecode(b"l\xe4sion"), "two")
    command = f'convmv -f latin1 -t utf8 -r --notest "{root}"'
    assert_refused(root, "2 files are not UTF-8: l\\xe4sion.jpg, l\\xe4sion.png; ", command)
    (root / "masks" / os.fsdecode(b"l\xe4sion.png")).unlink()
    assert_refused(root, "1 files are not UTF-8: l\\xe4sion.jpg; ", command)
    root = touch_pairs(tmp_path / os.fsdecode(b"\xe4"), "one")
    assert_refused(root, f"data.root={tmp_path}/\\xe4: a name in it is not UTF-8")


@pytest.mark.parametrize("layout", ["ph2", "isic2018", "pairs", None])
def test_no_data_says_how_to_go_on(
    layout: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    read = functools.partial(find_cases, layout=layout)
    words = ("seglab prepare", "data=synthetic")
    assert_refused(Path("data"), f"{tmp_path / 'data'} is no folder", *words, read=read)
    touch(tmp_path / "data" / "other" / "one.jpg")
    (tmp_path / "data" / IMAGES).mkdir()
    write_txt(tmp_path / "data")
    assert_refused(Path("data"), f"{tmp_path / 'data'} holds no data set", *words, read=read)


def test_what_is_there_instead_is_pointed_out(tmp_path: Path) -> None:
    assert_refused(tmp_path, "holds no data set, but no file")
    scan = touch(tmp_path / "labelsTr" / "BRATS_001.nii.gz")
    assert_refused(tmp_path, f"holds no data set, but {scan}")


@pytest.mark.parametrize("layout", ["ph3", ["ph2"]])
def test_an_unknown_layout_is_refused(layout: Any, root: Path) -> None:
    with pytest.raises(InputError, match=r"data\.cases\.layout=.*: expected one of ph2, pairs"):
        find_cases(root, layout)


def test_isic_2018(tmp_path: Path, messages: Callable[[], list[str]]) -> None:
    expected = touch_isic(tmp_path)
    assert find_cases(str(tmp_path)) == expected
    csv = tmp_path / "metadata.csv"
    csv.write_text("isic_id,patient_id\nISIC_0000000,P1\nISIC_0016072,P1\nISIC_9999999,P2\n")
    cases = find_cases(tmp_path)
    assert patients(cases) == {"ISIC_0000000": "P1", "ISIC_0000001": "", "ISIC_0016072": "P1"}
    assert [case.tables for case in cases] == [(csv,), (), (csv,)]
    assert messages()[-2:] == [
        f"{tmp_path}: no table names the patient of 1 cases: ISIC_0000001",
        f"{tmp_path}: 3 cases, patients named: 1",
    ]


def test_isic_2017_in_any_folders(tmp_path: Path) -> None:
    for name in ("ISIC_0000001", "ISIC_0000000"):
        touch(tmp_path / "images" / f"{name}.jpg")
        touch(tmp_path / "images" / f"{name}_superpixels.png")
        touch(tmp_path / "Training_Part1" / f"{name}_Segmentation.png")
    touch(tmp_path / "__MACOSX" / "images" / "ISIC_0000001.jpg")
    touch(tmp_path / "images" / "._ISIC_0000001.jpg")
    # Sorted by id, whatever their folders.
    touch(tmp_path / "a" / "ISIC_0000003.jpg")
    touch(tmp_path / "a" / "ISIC_0000003_segmentation.png")
    cases = find_cases(tmp_path)
    assert [case.id for case in cases] == ["ISIC_0000000", "ISIC_0000001", "ISIC_0000003"]
    assert cases[0].image == tmp_path / "images" / "ISIC_0000000.jpg"
    assert cases[0].mask == tmp_path / "Training_Part1" / "ISIC_0000000_Segmentation.png"


def test_a_layout_of_ones_own(
    tiny_ph2: Path,
    tiny_train: Callable[..., Ended],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the two files that the README of seglab.data shows."""
    readme = (REPO / "seglab" / "data" / "README.md").read_text()
    module, config = (re.search(f"```{kind}\n(.*?)```", readme, re.DOTALL)[1] for kind in KINDS)
    (tmp_path / "my_data.py").write_text(module)
    touch(tmp_path / "conf" / "data" / "mine.yaml").write_text(config)
    monkeypatch.syspath_prepend(tmp_path)
    root = tmp_path / "data"
    root.mkdir()
    for case in find_cases(tiny_ph2):
        Image.open(case.image).save(root / f"{case.id}.jpg")
        Image.open(case.mask).save(root / f"{case.id}.mask.png")
    options = [f"hydra.searchpath=[file://{tmp_path}/conf]", "data=mine", f"data.root={root}"]
    ended = tiny_train(tmp_path / "run", *options, "logger=none", "trainer.max_epochs=1")
    assert ended.code == 0, ended.err
    split = read_split(tmp_path / "run" / "splits.json")
    assert len(split.train + split.val + split.test) == 20


@pytest.mark.parametrize("layout", ["ph2", "isic2018", "nnunet"])
def test_a_folder_of_another_layout_is_named_with_it(layout: str, tmp_path: Path) -> None:
    touch_pairs(tmp_path, "a", "b")
    with pytest.raises(InputError, match=r"is of layout pairs; use data=pairs$"):
        find_cases(tmp_path, layout)
