"""Cases by the names of their files: PH2, ISIC, pairs, and files that do not belong."""

import functools
import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.layouts import (
    DIAGNOSES,
    IMAGES,
    ROWS,
    assert_refused,
    image_path,
    mask_path,
    patients,
    touch,
    touch_pairs,
    touch_ph2,
    txt_row,
    write_txt,
)
from helpers.tiny import REPO, Ended
from PIL import Image

from seglab.core.errors import InputError
from seglab.data.cases import Case
from seglab.data.layouts import find_cases
from seglab.data.masks import read_mask
from seglab.data.splits import read_split

KINDS = ("python", "yaml")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return touch_ph2(tmp_path / "PH2Dataset")


@pytest.fixture
def messages(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.INFO, "seglab.data.layouts")
    return lambda: [record.getMessage() for record in caplog.records]


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


def test_ph2(root: Path, messages: Callable[[], list[str]]) -> None:
    write_txt(root)
    cases = find_cases(str(root))
    assert {case.id: case.diagnosis for case in cases} == DIAGNOSES
    assert [case.image for case in cases] == [image_path(root, id) for id in ROWS]
    assert [case.mask for case in cases] == [mask_path(root, id) for id in ROWS]
    assert {case.patient for case in cases} == {""}
    assert messages() == [f"{root}: 5 cases, patients named: 0"]


def test_without_a_table_diagnoses_are_unknown(
    root: Path, messages: Callable[[], list[str]]
) -> None:
    cases = find_cases(root)
    assert [case.id for case in cases] == list(ROWS)
    assert {case.diagnosis for case in cases} == {"unknown"}
    assert all(case.tables == () for case in cases)
    assert messages()[0].startswith(f"{root / 'PH2_dataset.txt'}: missing")


@pytest.mark.parametrize("table", [True, False])
def test_the_root_may_be_above_or_below(
    root: Path, table: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if table:
        write_txt(root)
    cases = find_cases(root)
    for folder in (root.parent, root, root / IMAGES):
        assert find_cases(folder) == cases
        monkeypatch.chdir(folder)
        assert [case.diagnosis for case in find_cases(".")] == [case.diagnosis for case in cases]


def test_case_folders_suffice(tmp_path: Path) -> None:
    shutil.copytree(touch_ph2(tmp_path / "whole") / IMAGES / "IMD003", tmp_path / "IMD003")
    shutil.rmtree(tmp_path / "whole")
    write_txt(tmp_path, [txt_row("IMD003")])
    (tmp_path / "patients.csv").write_text("image_id,patient_id\nIMD003,P1\n")
    (case,) = find_cases(tmp_path)
    assert (case.id, case.diagnosis, case.patient) == ("IMD003", "common nevus", "P1")


@pytest.mark.parametrize("name", ["PH2_Dataset_images", "images/PH2 Dataset images", "a/b/c"])
@pytest.mark.parametrize("beside", [True, False], ids=["table beside", "table in root"])
def test_ph2_in_any_folder(name: str, beside: bool, tmp_path: Path) -> None:
    images = touch_ph2(tmp_path / "whole") / IMAGES
    (tmp_path / "data" / name).parent.mkdir(parents=True)
    images.rename(tmp_path / "data" / name)
    # A part of a second copy, and what macOS adds to archives.
    shutil.copytree(tmp_path / "data" / name / "IMD003", tmp_path / "data" / "a copy" / "IMD003")
    touch(tmp_path / "data" / "__MACOSX" / "IMD003" / "IMD003_Dermoscopic_Image" / "._IMD003.bmp")
    write_txt((tmp_path / "data" / name).parent if beside else tmp_path / "data")
    cases = find_cases(tmp_path / "data")
    assert {case.id: case.diagnosis for case in cases} == DIAGNOSES
    assert cases[0].image.is_relative_to(tmp_path / "data" / name)


def test_other_files_are_ignored(root: Path) -> None:
    write_txt(root)
    expected = find_cases(root)
    case = root / IMAGES / "IMD016"
    touch(root / IMAGES / "Thumbs.db")
    touch(root / IMAGES / "__MACOSX" / "._IMD003")
    touch(root / IMAGES / "sort_images.py")
    touch(case / "IMD016_Dermoscopic_Image" / ".DS_Store")
    touch(case / "IMD016_Dermoscopic_Image" / "._IMD016.bmp")
    touch(case / "IMD016_Dermoscopic_Image" / "IMD016.jpg")
    touch(case / "IMD016_lesion" / "IMD016_lesion.jpg")
    touch(case / "IMD016_lesion" / "Copy of IMD016_lesion.bmp")
    touch(case / "IMD016_roi" / "IMD016_R1_Label4.bmp")
    assert find_cases(root) == expected


@pytest.mark.parametrize("missing, path", [("mask", mask_path), ("image", image_path)])
def test_half_a_case_is_refused(
    missing: str, path: Callable[[Path, str], Path], root: Path
) -> None:
    path(root, "IMD076").unlink()
    touch(root / IMAGES / "IMD076" / "IMD076_roi" / "IMD076_R1_Label4.bmp")
    touch(path(root, "IMD076").parent / "._IMD076.bmp")
    folder = str(root / IMAGES / "IMD076")
    assert_refused(root, folder, f"no {missing}", path(root, "IMD076").name)
    shutil.rmtree(path(root, "IMD076").parent)
    assert_refused(root, folder, f"no {missing}")


@pytest.mark.parametrize("layout", ["ph2", "isic2018", "pairs", None])
def test_no_data_says_how_to_go_on(
    layout: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    read = functools.partial(find_cases, layout=layout)
    words = ("scripts/prepare_ph2.py", "data=synthetic")
    assert_refused(Path("data"), f"{tmp_path / 'data'} is no folder", *words, read=read)
    touch(tmp_path / "data" / "other" / "one.jpg")
    (tmp_path / "data" / IMAGES).mkdir()
    write_txt(tmp_path / "data")
    assert_refused(Path("data"), f"{tmp_path / 'data'} holds no data set", *words, read=read)


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


def test_pairs_with_subfolders_and_any_suffix(
    tmp_path: Path, messages: Callable[[], list[str]]
) -> None:
    for name in ("b/one.jpg", "one.jpeg", "a/one.PNG", "v1.2.tif", "a/two.bmp", "a/two.jpg"):
        touch(tmp_path / "images" / name)
    for name in ("b/one.png", "one.bmp", "a/one.png", "v1.2.png", "a/two.png", "spare.png"):
        touch(tmp_path / "masks" / name)
    touch(tmp_path / "images" / "Thumbs.db")
    touch(tmp_path / "masks" / "a" / ".DS_Store")
    touch(tmp_path / "masks" / "a" / "two.jpg")
    pairs = {
        "a/one": ("a/one.PNG", "a/one.png"),
        "a/two": ("a/two.bmp", "a/two.png"),
        "b/one": ("b/one.jpg", "b/one.png"),
        "one": ("one.jpeg", "one.bmp"),
        "v1.2": ("v1.2.tif", "v1.2.png"),
    }
    assert find_cases(str(tmp_path)) == [
        Case(id, tmp_path / "images" / image, tmp_path / "masks" / mask)
        for id, (image, mask) in pairs.items()
    ]
    assert messages()[0] == f"1 masks have no image: {tmp_path / 'masks' / 'spare.png'}"


def test_a_pair_without_its_mask(tmp_path: Path) -> None:
    image = touch(tmp_path / "images" / "a" / "one.jpg")
    touch(tmp_path / "masks" / "one.png")
    assert_refused(tmp_path, str(image), "a/one", "no mask", "masks/NAME.png")


def test_folders_that_cannot_be_read(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a fake error, because tests may run as root, who can read everything."""
    shut = image_path(root, "IMD016").parent
    scandir = os.scandir

    def deny(path: str | Path) -> object:
        if Path(path) == shut:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", deny)
    assert_refused(root, f"{shut}: cannot be read (Permission denied)")
    shut = touch_pairs(tmp_path / "pairs", "one", "a/two") / "images" / "a"
    assert_refused(tmp_path / "pairs", f"{shut}: cannot be read (Permission denied)")


def test_circular_links_are_ignored(root: Path, tmp_path: Path) -> None:
    expected = find_cases(root)
    (root / IMAGES / "loop").symlink_to("loop")
    (root / IMAGES / "IMD003" / "IMD003_lesion" / "up").symlink_to(root)
    (root / IMAGES / "IMD003" / "IMD003_lesion" / "gone.bmp").symlink_to("nowhere")
    assert find_cases(root) == expected
    touch_pairs(tmp_path / "pairs", "one")
    (tmp_path / "pairs" / "images" / "up").symlink_to(tmp_path)
    (tmp_path / "pairs" / "images" / "loop.jpg").symlink_to("loop.jpg")
    assert [case.id for case in find_cases(tmp_path / "pairs")] == ["one"]


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


def test_the_real_cases(ph2: Path) -> None:
    """Holds for all 200 cases, and for a copy that lacks some."""
    cases = find_cases(ph2)
    assert len(cases) == sum(path.name.startswith("IMD") for path in (ph2 / IMAGES).iterdir())
    assert {case.diagnosis for case in cases} == set(DIAGNOSES.values())
    shares = []
    for case in cases:
        with Image.open(case.image) as image, Image.open(case.mask) as mask:
            assert image.mode == "RGB"
            assert image.size == mask.size
            assert 761 <= image.width <= 769
            assert 553 <= image.height <= 577
        shares.append(read_mask(case.mask).mean())
    assert min(shares) > 0.025
    assert max(shares) < 0.985
    assert 0.18 < np.median(shares) < 0.28
