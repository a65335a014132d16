"""Images with masks by their names, usual ones and any others."""

import functools
import logging
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.layouts import (
    assert_refused,
    touch,
    touch_pairs,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from seglab.core.errors import InputError
from seglab.data.cases import Case
from seglab.data.layouts import find_cases, scan_cases


@pytest.fixture
def messages(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.INFO, "seglab.data.layouts")
    return lambda: [record.getMessage() for record in caplog.records]


NAMES = st.text("aB1é皮 ._-()[]'&", min_size=1, max_size=6).filter(
    lambda name: name == name.strip() and name[0] != "." and not name.endswith(".")
)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    names=st.sets(NAMES, min_size=1, max_size=6),
    suffix=st.sampled_from(["", "_mask", "_Segmentation", "-GT", ".lesion", " by hand", "_x-1"]),
    is_beside=st.booleans(),
    data=st.data(),
)
def test_each_image_gets_the_mask_of_its_name(
    tmp_path_factory: pytest.TempPathFactory,
    names: set[str],
    suffix: str,
    is_beside: bool,
    data: st.DataObject,
) -> None:
    """Against names that were joined here: whatever they are, and however accents are written."""
    is_usual = suffix not in (" by hand", "_x-1")
    folders = ("a", "a") if is_beside and suffix else ("images", "masks")
    root = tmp_path_factory.mktemp("names")
    expected = {}
    for name in names:
        form = data.draw(st.sampled_from(["NFC", "NFD"]))
        image = touch(root / folders[0] / f"{name}.jpg")
        mask = touch(root / folders[1] / f"{unicodedata.normalize(form, name)}{suffix}.png")
        expected[f"a/{name}" if folders[0] == "a" else name] = (image, mask)
    cases = find_cases(root, mask_suffix=None if is_usual else suffix)
    assert {case.id: (case.image, case.mask) for case in cases} == expected


def test_the_suffix_of_masks_can_be_given(tmp_path: Path) -> None:
    touch_pairs(tmp_path, "one", "two")
    for name in ("one", "two"):
        file = tmp_path / "masks" / f"{name}.png"
        file.rename(file.with_stem(f"{name}_By.Hand"))
    assert_refused(
        tmp_path,
        "images/one.jpg: case one has no mask; "
        f"{tmp_path}/masks/one_By.Hand.png is there: rename it, or set data.mask_suffix",
        "1 more error",
    )
    for suffix in ("_By.Hand", "_by.hand.png"):
        assert len(find_cases(tmp_path, mask_suffix=suffix)) == 2
        assert len(find_cases(tmp_path, "pairs", mask_suffix=suffix)) == 2
    assert_refused(tmp_path, "no mask", read=functools.partial(find_cases, mask_suffix="_mask"))
    several = functools.partial(find_cases, mask_suffix=["_mask", "_seg"])
    assert_refused(tmp_path, "data.mask_suffix=['_mask', '_seg']: expected one text", read=several)


def test_two_masks_of_one_image_are_a_question(tmp_path: Path) -> None:
    """As in BUSI: whoever takes the first alone loses lesions."""
    for name in (
        "benign (1)",
        "benign (1)_mask",
        "benign (1)_mask_1",
        "benign (2)",
        "benign (2)_mask",
    ):
        touch(tmp_path / "benign" / f"{name}.png")
    words = "benign (1)_mask_1.png: a mask that ends with '_mask_1', but "
    assert_refused(tmp_path, words, "benign (1)_mask.png ends with '_mask'", "data.mask_suffix")
    folder = touch_pairs(tmp_path / "pairs", "one")
    for kind in ("lesion", "mask"):
        touch(folder / "masks" / f"two_{kind}.png")
    touch(folder / "images" / "two.jpg")
    touch(folder / "images" / "three.jpg")
    touch(folder / "masks" / "three_mask.png")
    (folder / "masks" / "one.png").rename(folder / "masks" / "one_mask.png")
    assert_refused(folder, "two_lesion.png: a mask that ends with '_lesion', but ")
    cases = find_cases(folder, mask_suffix="_mask")
    assert [case.mask.name for case in cases] == ["one_mask.png", "three_mask.png", "two_mask.png"]


@pytest.mark.parametrize(
    ("image", "suffix", "others"),
    [
        ("c*", "_gt1", ["_gt2", "_overlay"]),
        ("c*", "_gt2", ["_gt1"]),
        ("benign/benign (*)", "_mask", ["_mask_1"]),
        ("Image_*L", "_1stHO", ["_2ndHO"]),
        ("c*", "gt", ["gtB"]),
        ("ISIC_*", "_expert", ["_novice"]),
        ("ISIC_*", "_segmentation", ["_overlay"]),
    ],
)
def test_a_chosen_suffix_leaves_further_pictures_out(
    image: str, suffix: str, others: list[str], tmp_path: Path
) -> None:
    """As in BUSI, CHASE, and where several people drew, in the folder of the images."""
    names = [image.replace("*", number) for number in ("2", "20", "31")]
    for name in names:
        touch(tmp_path / f"{name}.jpg")
        for end in (suffix, *others):
            touch(tmp_path / f"{name}{end}.png")
    scan = scan_cases(tmp_path, mask_suffix=suffix)
    assert scan.errors == []
    expected = [(tmp_path / f"{name}.jpg", tmp_path / f"{name}{suffix}.png") for name in names]
    assert {(case.image, case.mask) for case in scan.cases} == {*expected}
    (warning,) = scan.warnings
    words = f"{3 * len(others)} pictures have a case's name and another suffix: {tmp_path}/"
    assert warning.startswith(words)
    # An image without its mask is one, though its name begins with that of another.
    expected[1][1].unlink()
    for end in others:
        (tmp_path / f"{names[1]}{end}.png").unlink()
    (error,) = scan_cases(tmp_path, mask_suffix=suffix).errors
    assert error.startswith(f"{expected[1][0]}: case {names[1]} has no mask; expected")


def test_a_further_picture_can_be_left_out(tmp_path: Path) -> None:
    for end in (".jpg", "_mask.png", "_overlay.png"):
        touch(tmp_path / f"c1{end}")
    words = "case c1_overlay has no mask; to leave it out, set data.mask_suffix (--mask-suffix)"
    assert_refused(tmp_path, words)
    assert len(find_cases(tmp_path, mask_suffix="_mask")) == 1


@pytest.mark.parametrize("folders", [("images", "masks"), (".", ".")])
def test_masks_of_different_suffixes_are_to_be_renamed(
    folders: tuple[str, str], tmp_path: Path
) -> None:
    """No suffix fits all: with each the other was asked for."""
    for i, suffix in enumerate(("_mask", "_seg", "_mask", "_seg", "_mask")):
        touch(tmp_path / folders[0] / f"c{i}.jpg")
        touch(tmp_path / folders[1] / f"c{i}{suffix}.png")
    masks = tmp_path / folders[1]
    words = f"all need the same end: rename {masks}/c1_seg.png, {masks}/c3_seg.png"
    assert_refused(tmp_path, f"{masks}/c1_seg.png: a mask that ends with '_seg', but", words)
    for suffix, nearest in (("_mask", "c1_seg"), ("_seg", "c0_mask")):
        words = f"{masks}/{nearest}.png is there: rename it, or set data.mask_suffix"
        assert_refused(tmp_path, words, read=functools.partial(find_cases, mask_suffix=suffix))


@pytest.mark.parametrize("name", ["läsion 'a' [1] (2) \"x\" #=,&$", "皮膚", "été"])
def test_names_in_any_script(name: str, tmp_path: Path) -> None:
    """An image may be called as Linux does, its mask as macOS does, with accents apart."""
    image = touch(tmp_path / "images" / f"{unicodedata.normalize('NFC', name)}.jpg")
    mask = touch(tmp_path / "masks" / f"{unicodedata.normalize('NFD', name)}_mask.png")
    (case,) = find_cases(tmp_path)
    assert case == Case(unicodedata.normalize("NFC", name), image, mask)


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
    assert messages()[:2] == [
        "2 files are second ones of a name, of which one is taken: "
        f"{tmp_path / 'images' / 'a' / 'two.jpg'}, {tmp_path / 'masks' / 'a' / 'two.jpg'}",
        f"1 pictures belong to no pair: {tmp_path / 'masks' / 'spare.png'}",
    ]


def test_a_pair_without_its_mask(tmp_path: Path) -> None:
    image = touch(tmp_path / "images" / "a" / "one.jpg")
    touch(tmp_path / "masks" / "one.png")
    assert_refused(tmp_path, str(image), "a/one", "no mask", "masks/NAME.png")


def test_masks_of_a_format_that_is_not_read(tmp_path: Path) -> None:
    for folder, end in (("images", "jpg"), ("masks", "npy")):
        for name in ("one", "two"):
            touch(tmp_path / folder / f"{name}.{end}")
    assert_refused(tmp_path, f"{tmp_path}/masks/one.npy is there, of a format that is not read")


def test_the_nearest_file_is_named(tmp_path: Path) -> None:
    """But no mask of another image, however near its name is."""
    touch_pairs(tmp_path, "lesion_01", "lesion_02")
    touch(tmp_path / "images" / "lesion_03.jpg")
    with pytest.raises(InputError) as caught:
        find_cases(tmp_path)
    assert "is there" not in str(caught.value)
    touch(tmp_path / "masks" / "mask of LESION_03.png")
    assert_refused(tmp_path, f"{tmp_path}/masks/mask of LESION_03.png is there: rename it")


@pytest.mark.parametrize("folder", ["", "a", "z"])
def test_the_nearest_file_of_isic_is_named(folder: str, tmp_path: Path) -> None:
    """Which counts as an image, because its suffix is not known."""
    for i in range(3):
        touch(tmp_path / "im" / f"ISIC_000000{i}.jpg")
        touch(tmp_path / "im" / f"ISIC_000000{i}_superpixels.png")
        touch(tmp_path / (folder or "im") / f"ISIC_000000{i}_expert.png")
    words = f"{tmp_path}/{folder or 'im'}/ISIC_0000000_expert.png is there: rename it, or set data."
    assert_refused(tmp_path, f"{tmp_path}/im/ISIC_0000000.jpg: case ISIC_0000000 has no", words)
    assert len(find_cases(tmp_path, mask_suffix="_expert")) == 3
