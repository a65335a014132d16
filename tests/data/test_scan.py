"""Files of a folder: links, what cannot be read, and what is no part of a case."""

import os
from pathlib import Path

import pytest
from helpers.layouts import IMAGES, assert_refused, image_path, touch, touch_pairs, touch_ph2

from seglab.data.images import SUFFIXES
from seglab.data.layouts import find_cases, scan_cases
from seglab.data.scan import OTHER_FORMATS


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return touch_ph2(tmp_path / "PH2Dataset")


def test_what_is_left_out_is_named(tmp_path: Path) -> None:
    touch_pairs(tmp_path, *"abcdefgh")
    for name in (
        "photo.HEIC",
        "scan.dcm",
        "brain.nii.gz",
        "array.npy",
        "notes.txt",
        "LICENSE",
        "a.py",
    ):
        touch(tmp_path / "images" / name)
    for i in range(8):
        touch(tmp_path / "figures" / f"{i}.png")
    warnings = scan_cases(tmp_path).warnings
    figures = ", ".join(str(tmp_path / "figures" / f"{i}.png") for i in range(5))
    assert warnings == [
        f"8 pictures belong to no pair: {figures} and 3 more",
        "4 files are of formats that are not read; save them as PNG or TIFF: "
        + ", ".join(
            str(tmp_path / "images" / name)
            for name in ("array.npy", "brain.nii.gz", "photo.HEIC", "scan.dcm")
        ),
    ]


def test_a_link_to_a_folder_is_followed(tmp_path: Path) -> None:
    elsewhere = touch_pairs(tmp_path / "elsewhere", "one")
    root = tmp_path / "data"
    root.mkdir()
    for folder in ("images", "masks"):
        (root / folder).symlink_to(elsewhere / folder)
    (root / "up").symlink_to(tmp_path)
    (case,) = find_cases(root)
    assert case.image == root / "images" / "one.jpg"


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


def test_what_can_be_read_is_no_other_format() -> None:
    assert not {*SUFFIXES} & {*OTHER_FORMATS}
