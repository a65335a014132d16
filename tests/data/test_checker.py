"""Checking a data set: everything that is wrong is listed at once, and good data passes."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.layouts import image_path, mask_path
from helpers.tiny import Ended, write_tiny_classes, write_tiny_ph2
from PIL import Image

from seglab.data.checker import check_data
from seglab.data.layouts import find_cases

Script = Callable[..., Ended]
PairsWriter = Callable[[Path, int], Path]


def assert_messages(messages: list[str], *expected: tuple[object, str]) -> None:
    """Asserts that each message, in order, begins with a file or id and has these words."""
    assert len(messages) == len(expected), messages
    for message, (start, words) in zip(messages, expected, strict=True):
        assert message.startswith(str(start)) and words in message, (start, words, message)


def fill(mask: Path, value: bool) -> None:
    Image.fromarray(np.full_like(np.asarray(Image.open(mask).convert("1")), value)).save(mask)


def spoil(images: list[Path], masks: list[Path]) -> None:
    """Plants one defect in each of the first ten pairs; the eleventh gives the copies."""
    images[0].write_bytes(images[0].read_bytes()[:100])
    masks[1].write_bytes(b"")
    Image.open(masks[2]).resize((9, 7)).save(masks[2])
    shutil.copy(images[3], masks[3])  # a photograph
    fill(masks[4], False)
    fill(masks[5], True)
    Image.fromarray(~np.asarray(Image.open(masks[6]).convert("1"))).save(masks[6])
    images[7].write_bytes(b"no image")  # both files of one case
    masks[7].write_bytes(b"no mask")
    for source, copy in ((images[10], images[8]), (masks[10], masks[8])):
        Image.open(source).save(copy)
    for source, copy in ((images[10], images[9]), (masks[10], masks[9])):
        Image.open(source).transpose(Image.Transpose.ROTATE_90).save(copy)


def errors_of_files(images: list[Path], masks: list[Path]) -> list[tuple[object, str]]:
    return [
        (images[0], "cannot be read as an image"),
        (masks[1], "empty file"),
        (masks[2], "the mask is 9 x 7 pixels"),
        (masks[3], "not a mask"),
        (images[7], "cannot be read as an image"),
        (masks[7], "cannot be read as an image"),
    ]


def warnings_of_files(ids: list[str], n: int) -> list[tuple[object, str]]:
    return [
        (f"1 of {n} masks ({ids[4]}) are empty", "background"),
        (f"1 of {n} masks ({ids[5]}) are full", "one class"),
        (f"1 of {n} masks ({ids[6]}) are as if inverted", "corners"),
        (", ".join(ids[8:11]), "pictures are the same"),
    ]


def test_ph2_with_one_of_each(tmp_path: Path) -> None:
    root = write_tiny_ph2(tmp_path / "PH2Dataset", 20)
    ids = [f"IMD{i:03}" for i in range(20)]
    images, masks = ([path(root, id) for id in ids] for path in (image_path, mask_path))
    spoil(images, masks)
    masks[11].unlink()
    images[12].unlink()
    shutil.rmtree(root / "PH2 Dataset images" / ids[13])
    table = root / "PH2_dataset.txt"
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join(line for line in lines if ids[14] not in line))
    patients = root / "patients.csv"
    patients.write_text("id,patient\n" + "\n".join(f"{id},P" for id in ids))

    report = check_data(root)
    folders = [image.parents[1] for image in images]
    assert_messages(
        report.errors,
        (folders[11], f"{ids[11]} has no mask"),
        (folders[12], f"{ids[12]} has no image"),
        *errors_of_files(images, masks),
    )
    assert_messages(
        report.warnings,
        (
            table,
            f"1 of the listed cases have no folder, as in a download that was cut short: {ids[13]}",
        ),
        (root, f"no table names the diagnosis of 1 cases: {ids[14]}"),
        *warnings_of_files(ids, 12),
    )
    assert [case.id for case in report.cases] == [*ids[4:7], *ids[8:11], *ids[14:]]
    text = str(report)
    assert text.startswith(f"{root}: 12 good cases of layout ph2\n")
    assert "\npatients named: 1\nerrors: 8\n  " in text and "\nwarnings: 6\n  " in text

    table.write_text("|| damaged ||")
    patients.write_text("id,patient\nx\n")
    report = check_data(root)
    assert_messages([report.errors[0], report.errors[3]], (table, "line 1 "), (patients, "line 2 "))


def write_isic(root: Path, pairs: Path) -> Path:
    """The files of pairs under ISIC's names, 'p07' as 'ISIC_0000007'."""
    for file in sorted(pairs.rglob("*.png")):
        name, end = ("Input", "") if file.parent.name == "images" else ("Truth", "_segmentation")
        (root / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, root / name / f"ISIC_00000{file.stem[1:]}{end}.png")
    return root


def test_isic_with_one_of_each(tmp_path: Path, write_pairs: PairsWriter) -> None:
    root = write_isic(tmp_path / "isic", write_pairs(tmp_path / "pairs", 17))
    ids = [f"ISIC_00000{i:02}" for i in range(17)]
    images = [root / "Input" / f"{id}.png" for id in ids]
    masks = [root / "Truth" / f"{id}_segmentation.png" for id in ids]
    spoil(images, masks)
    masks[11].unlink()
    images[12].unlink()
    (root / "more").mkdir()
    second = root / "more" / images[13].name
    shutil.copy(images[14], second)
    rows = [f"{id},IP_{i // 2}" for i, id in enumerate([*ids[:15], *ids[16:], "ISIC_9999999"])]
    (root / "metadata.csv").write_text("\n".join(["isic_id,patient_id", *rows]))

    report = check_data(root)
    assert_messages(
        report.errors,
        (second, f"a second case named {ids[13]}, the first is {images[13]}"),
        (images[11], f"{ids[11]} has no mask"),
        *errors_of_files(images, masks),
    )
    assert_messages(
        report.warnings,
        (root, f"no table names the patient of 1 cases: {ids[15]}"),
        ("1 files are second ones of a name", str(second)),
        ("1 pictures belong to no pair", str(masks[12])),
        *warnings_of_files(ids, 10),
    )
    assert report.layout == "isic2018"


def test_what_is_good_is_left_alone(tmp_path: Path, write_pairs: PairsWriter) -> None:
    pairs = write_pairs(tmp_path / "pairs", 8)
    for root in (pairs, write_isic(tmp_path / "isic", pairs), write_tiny_ph2(tmp_path / "ph2", 8)):
        before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
        report = check_data(root)
        assert report.cases == find_cases(root)
        assert "errors: none\nwarnings: none" in str(report)
        assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_files_that_no_reader_takes(tmp_path: Path, write_pairs: PairsWriter) -> None:
    root = write_pairs(tmp_path / "pairs", 4)
    (root / "images" / "p00.png").write_bytes(b"P5 12000 12000 255\n")  # a bomb's head
    os.mkfifo(root / "images" / "p04.png")  # would wait for ever
    (root / "images" / "p05.png").symlink_to("p05.png")
    name = "n\n\u202e.png"
    for subfolder in ("images", "masks"):
        (root / subfolder / "p01.png").rename(root / subfolder / name)
    (root / "masks" / name).write_bytes(b"")
    report = check_data(root)
    assert [case.id for case in report.cases] == ["p02", "p03"]
    assert "12000 x 12000 pixels" in str(report)
    # One line each, that any terminal can show.
    assert len(str(report).encode().splitlines()) == 7


def test_nothing_good_is_no_crash(tmp_path: Path, write_pairs: PairsWriter) -> None:
    root = write_pairs(tmp_path / "pairs", 2)
    for file in (root / "images").iterdir():
        file.write_bytes(b"")
    report = check_data(root)
    assert (report.cases, len(report.errors)) == ([], 2)


def test_the_script(
    tmp_path: Path, write_pairs: PairsWriter, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = write_pairs(tmp_path / "pairs", 6)
    ended = script("prepare_ph2", "--check", root)
    assert ended.code == 0
    assert ended.out.startswith(f"{root}: 6 good cases of layout pairs\n     6 unknown\n")
    assert ended.out.endswith(f"use it: python scripts/train.py data=pairs data.root={root}\n")
    # A warning alone is no failure.
    mask = root / "masks" / "p03.png"
    fill(mask, False)
    assert script("prepare_ph2", "--check", root, "--json", "odd.json").code == 0
    assert json.loads(Path("odd.json").read_text("utf-8")) == {
        "root": str(root),
        "layout": "pairs",
        "cases": [f"p{i:02}" for i in range(6)],
        "diagnoses": {"unknown": 6},
        "patients": 0,
        "errors": [],
        "warnings": [
            "1 of 6 masks (p03) are empty (background at every pixel); see whether that is right"
        ],
        "oddities": {"p03": ["empty (background at every pixel); see whether that is right"]},
    }
    (root / "masks" / "p02.png").unlink()
    ended = script("prepare_ph2", "--check", root, "--json", "bad.json")
    assert ended.code == 1
    assert "use it" not in ended.out
    assert_messages(
        json.loads(Path("bad.json").read_text("utf-8"))["errors"],
        (root / "images" / "p02.png", "p02 has no mask"),
    )
    ended = script("prepare_ph2", "--check", root, "--json", "nowhere/bad.json")
    assert ended.code == 1
    assert ended.err.count("\n") == 1 and "nowhere/bad.json" in ended.err
    assert script("prepare_ph2", root, "--check", root).code == 2


def test_masks_of_several_classes(script: Script, tmp_path: Path) -> None:
    root, coloured = tmp_path / "data", tmp_path / "coloured"
    names, colours = "skin,disc,square", "#000000,#ff0080,#00ff00"
    write_tiny_classes(root, n=6)
    write_tiny_classes(coloured, colours.split(","), n=6)
    ended = script("prepare_ph2", "--check", root, "--classes", names)
    assert ended.code == 0, ended.out
    assert f'data=pairs data.root={root} "data.classes=[{names}]" experiment' in ended.out
    one = script("prepare_ph2", "--check", root, "--classes", "thing")
    assert one.code == 1 and "of 3 colours" in one.out
    any_colour = script("prepare_ph2", "--check", root, "--lesion-values", "nonzero")
    assert any_colour.out.endswith(" data.lesion_values=nonzero\n")
    square = ["--classes", "square", "--lesion-values", "2,3"]
    one = script("prepare_ph2", "--check", root, *square)
    assert one.out.endswith('"data.classes=[square]" "data.lesion_values=[2,3]"\n')
    more = ["--classes", names, "--colours", colours]
    assert script("prepare_ph2", "--check", coloured, *more).code == 0
    wrong = script("prepare_ph2", "--check", coloured, "--classes", names)
    assert wrong.code == 1 and "errors: 6\n" in wrong.out
    Image.new("L", (60, 45)).save(root / "masks" / "case00.png")
    empty = script("prepare_ph2", "--check", root, "--classes", names)
    assert empty.code == 0 and "1 of 6 masks (case00) are empty" in empty.out


def test_the_real_cases_are_good(ph2: Path) -> None:
    report = check_data(ph2)
    assert report.errors == []
    assert report.cases == find_cases(ph2)
    assert all("have no folder" in warning for warning in report.warnings)


def test_the_real_masks_inverted(ph2: Path, tmp_path: Path) -> None:
    """Each is found: the images are small, as only the masks matter."""
    for subfolder in ("images", "masks"):
        (tmp_path / subfolder).mkdir()
    cases = find_cases(ph2)
    for case in cases:
        mask = ~np.asarray(Image.open(case.mask).convert("1").resize((96, 72)))
        Image.fromarray(mask).save(tmp_path / "masks" / f"{case.id}.png")
        Image.new("RGB", (96, 72)).save(tmp_path / "images" / f"{case.id}.png")
    warnings = check_data(tmp_path).warnings
    assert warnings[0].startswith(f"{len(cases)} of {len(cases)} masks (")
    assert "as if inverted" in warnings[0]
