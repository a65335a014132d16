"""What is odd about data that can be read: the checker, a new cache and an old one say the same."""

import itertools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny import write_tiny_classes
from PIL import Image, ImageOps

from seglab.core.errors import InputError
from seglab.core.files import write_json
from seglab.data.cases import Case
from seglab.data.checker import check_data
from seglab.data.checks import check_case, describe_checks
from seglab.data.classes import ONE_CLASS, Classes
from seglab.data.datamodule import SegmentationDataModule
from seglab.data.layouts import find_cases
from seglab.data.masks import DecodedMask

PairsWriter = Callable[[Path, int], Path]
THREE = Classes(("skin", "disc", "square"))
ORIENTATION = 0x112


def warnings_of_train(
    root: Path,
    caplog: pytest.LogCaptureFixture,
    size: int = 32,
    classes: Classes = ONE_CLASS,
    test: int = 10,
) -> list[str]:
    """The warnings of a DataModule that tests the first cases."""
    ids = [case.id for case in find_cases(root)]
    file = root.parent / "split.json"
    write_json(file, {"train": ids[test:], "test": ids[:test]})
    split = {"file": str(file), "val": 0, "test": 0, "seed": 0}
    settings = {"batch_size": 1, "eval_batch_size": 1, "num_workers": 0, "seed": 0, "augment": None}
    cache_dir = str(root.parent / "cache")
    caplog.clear()
    SegmentationDataModule(
        find_cases,
        str(root),
        size,
        cache_dir=cache_dir,
        split=split,
        classes=classes.names,
        **settings,
    ).setup()
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


def fill(file: Path, value: int) -> None:
    Image.new("L", Image.open(file).size, value).save(file)


@pytest.fixture
def masks(tmp_path: Path, write_pairs: PairsWriter) -> list[Path]:
    """The masks of twelve pairs in tmp_path / 'data', to be changed."""
    write_pairs(tmp_path / "data", 12)
    return sorted((tmp_path / "data" / "masks").iterdir())


def test_masks_without_meaning_are_counted_and_named(
    tmp_path: Path, masks: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    for mask in masks[:7]:
        fill(mask, 0)
    fill(masks[7], 255)
    mask = Image.open(masks[8]).convert("L")
    ImageOps.invert(mask).save(masks[8])
    expected = [
        "7 of 12 masks (p00, p01, p02, p03, p04 and 2 more) are empty (background at every pixel); "
        "see whether that is right",
        "1 of 12 masks (p07) are full (one class at every pixel); see whether that is right",
        "1 of 12 masks (p08) are as if inverted (more lesion in the corners than in the middle); "
        "if all masks are, data.lesion_values=[0] takes 0 for lesion",
    ]
    root = tmp_path / "data"
    assert check_data(root, size=32).warnings == expected
    for _ in ("built", "opened"):
        assert warnings_of_train(root, caplog) == expected


def test_all_masks_empty_is_one_line(
    tmp_path: Path, masks: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    for mask in masks:
        fill(mask, 0)
    root = tmp_path / "data"
    (line,) = check_data(root).warnings
    assert line.startswith("12 of 12 masks (p00, p01, p02, p03, p04 and 7 more) are empty")
    assert warnings_of_train(root, caplog) == [line]


def test_a_lesion_lost_at_network_size_is_counted(
    tmp_path: Path, masks: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    for mask in masks[:2]:  # the size of the others is that of the network
        small = np.zeros((320, 320), np.uint8)
        small[100:103, 100:103] = 255
        Image.fromarray(small).save(mask)
        Image.new("RGB", (320, 320), (len(mask.stem), 0, 0)).save(
            mask.parents[1] / "images" / mask.name
        )
    root = tmp_path / "data"
    (line,) = [w for w in check_data(root, size=32).warnings if "data.size" in w]
    assert (
        line == "2 of 12 masks (p00, p01) are without their lesion at data.size=32; raise data.size"
    )
    assert line in warnings_of_train(root, caplog, 32)
    assert not any("data.size" in warning for warning in check_data(root, size=320).warnings)
    assert warnings_of_train(root, caplog, 320) == []


def orientations() -> Iterator[tuple[int, int]]:
    """Every orientation of the image beside some of the mask, and the other way round."""
    pairs = {*itertools.product(range(1, 9), (1, 3, 6)), *itertools.product((1, 6), range(1, 9))}
    yield from sorted(pairs)


@pytest.mark.parametrize("stored", [(8, 8), (8, 12)])
def test_a_pair_that_exif_turns_differently(tmp_path: Path, stored: tuple[int, int]) -> None:
    """Image and mask are stored in one size, or as Pillow turns them to one size."""
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    picture = Image.new("RGB", stored)
    for turns in orientations():
        name = "i{}m{}".format(*turns)
        for folder, turn, mode in zip(("images", "masks"), turns, ("RGB", "L"), strict=True):
            exif = Image.Exif()
            exif[ORIENTATION] = turn
            drawn = picture.convert(mode)
            drawn.paste(255 if mode == "L" else (9, 9, 9), (3, 3, 6, 6))
            drawn.save(tmp_path / folder / f"{name}.png", exif=exif)
    report = check_data(tmp_path, size=8)
    odd = report.oddities
    for turns in orientations():
        name = "i{}m{}".format(*turns)
        files = [tmp_path / folder / f"{name}.png" for folder in ("images", "masks")]
        sizes = {ImageOps.exif_transpose(Image.open(file)).size for file in files}
        errors = [error for error in report.errors if f"{name}.png" in error]
        if len(sizes) == 2:
            (error,) = errors
            turned = files[0] if turns[0] > 4 else files[1]
            assert "the mask was drawn on the stored pixels" in error
            assert f"remove the orientation tag of {turned}" in error
            continue
        assert not errors
        found = any("orientation" in what for what in odd.get(name, []))
        assert found == (turns[0] != turns[1]), name


def test_a_mask_that_fits_the_upright_picture_is_right(
    tmp_path: Path, masks: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    for file in (tmp_path / "data" / "images").iterdir():
        image = Image.open(file)
        image.transpose(Image.Transpose.ROTATE_90).save(file, exif=exif)
    assert check_data(tmp_path / "data").warnings == []
    assert warnings_of_train(tmp_path / "data", caplog) == []


def test_train_refuses_what_the_checker_refuses(
    tmp_path: Path, masks: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "data" / "images" / masks[3].name
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.open(file).save(file, exif=exif)
    (error,) = check_data(tmp_path / "data").errors
    with pytest.raises(InputError) as caught:
        warnings_of_train(tmp_path / "data", caplog)
    assert str(caught.value) == error


def test_few_test_cases_and_absent_classes(
    tmp_path: Path, masks: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "data"
    for mask in masks[:9]:
        fill(mask, 0)
    few, absent = warnings_of_train(root, caplog, test=9)[1:]
    assert few.startswith("test holds 9 of 12 cases: its scores say little; ")
    assert absent.startswith("no mask of test holds lesion; ")
    assert warnings_of_train(root, caplog, test=10)[1:] == []

    root = write_tiny_classes(tmp_path / "several" / "data", n=12)  # case00, 04, 08: no square
    assert warnings_of_train(root, caplog, classes=THREE) == []
    names = Classes((*THREE.names, "hair"))
    (line,) = check_data(root, names, size=32).warnings
    assert line == "no mask holds hair at data.size=32; see whether data.classes is right"
    few, absent = warnings_of_train(root, caplog, classes=names, test=1)[1:]
    assert warnings_of_train(root, caplog, classes=names, test=1)[0] == line
    assert absent == "no mask of test holds square; change data.split or add cases"


def test_a_note_of_the_reader_is_told(tmp_path: Path, masks: list[Path]) -> None:
    case = Case("a", tmp_path / "data" / "images" / masks[0].name, masks[0])
    mask = np.zeros((20, 27), np.uint8)
    mask[8:12, 8:12] = 1
    checks = {
        "a": check_case(case, DecodedMask(mask, 255, "of a format that is read as X"), mask),
        "b": check_case(case, DecodedMask(mask, 255), mask),
    }
    (line,) = describe_checks(checks, ONE_CLASS, 32)
    assert line.startswith("1 of 2 masks (a) are of a format that is read as X; ")


def test_values_that_differ_between_files_are_told(
    tmp_path: Path, masks: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    for mask, value in zip(masks[:3], (128, 1, 1), strict=True):
        lesion = np.asarray(Image.open(mask).convert("L")) > 127
        Image.fromarray(lesion * np.uint8(value)).save(mask)
    (warning,) = check_data(tmp_path / "data", size=32).warnings
    assert warning.startswith("lesion is 255 in 9 masks, 1 in 2 masks, 128 in 1 masks: ")
    assert warning in warnings_of_train(tmp_path / "data", caplog)


def test_the_checker_tells_of_a_split_that_training_refuses(
    tmp_path: Path, masks: list[Path]
) -> None:
    rows = [f"{path.stem},p{i % 2}" for i, path in enumerate(masks)]
    (tmp_path / "data" / "meta.csv").write_text("\n".join(["image,patient_id", *rows]) + "\n")
    (warning,) = check_data(tmp_path / "data", size=32).warnings
    assert "12 cases are too few, 2 with those of one picture or patient" in warning
    assert "they are of patient p1" in warning
