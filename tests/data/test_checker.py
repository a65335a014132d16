"""Checking a data set: everything that is wrong is listed at once, and good data passes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny import Ended, write_tiny_classes, write_tiny_ph2
from PIL import Image

from seglab.core.errors import InputError
from seglab.data.checker import Report, check_data
from seglab.data.layouts import find_cases

Script = Callable[..., Ended]
PairsWriter = Callable[[Path, int], Path]


def kinds(report: Report, errors: bool) -> dict[str, list[tuple[str, ...]]]:
    """The cases of each finding, by kind."""
    found: dict[str, list[tuple[str, ...]]] = {}
    for finding in report.findings:
        if finding.is_error == errors:
            found.setdefault(finding.kind, []).append(finding.cases)
    return found


def spoil(images: list[Path], masks: list[Path]) -> None:
    """Plants one defect in each of the first ten pairs; the eleventh gives the copies."""
    images[0].write_bytes(images[0].read_bytes()[:100])
    masks[1].write_bytes(b"")
    Image.open(masks[2]).resize((9, 7)).save(masks[2])
    shutil.copy(images[3], masks[3])  # a photograph
    shape = np.asarray(Image.open(masks[4])).shape
    Image.fromarray(np.zeros(shape, bool)).save(masks[4])
    shape = np.asarray(Image.open(masks[5])).shape
    Image.fromarray(np.ones(shape, bool)).save(masks[5])
    Image.fromarray(~np.asarray(Image.open(masks[6]).convert("1"))).save(masks[6])
    images[7].write_bytes(b"no image")  # both files of one case
    masks[7].write_bytes(b"no mask")
    for source, copy in ((images[10], images[8]), (masks[10], masks[8])):
        Image.open(source).save(copy)
    Image.open(images[10]).transpose(Image.Transpose.ROTATE_90).save(images[9])
    Image.open(masks[10]).transpose(Image.Transpose.ROTATE_90).save(masks[9])


def bad_files(ids: list[str]) -> dict[str, list[tuple[str, ...]]]:
    return {
        "unreadable images": [(ids[0],), (ids[7],)],
        "unreadable masks": [(ids[1],), (ids[3],), (ids[7],)],
        "masks of another size than their image": [(ids[2],)],
    }


def odd_files(ids: list[str]) -> dict[str, list[tuple[str, ...]]]:
    return {
        "empty masks": [(ids[4],)],
        "full masks": [(ids[5],)],
        "inverted masks": [(ids[6],)],
        "cases of the same picture": [tuple(ids[8:11])],
    }


def test_ph2_with_one_of_each(tmp_path: Path) -> None:
    root = write_tiny_ph2(tmp_path / "PH2Dataset", 24)
    ids = [f"IMD{i:03}" for i in range(24)]
    folders = [root / "PH2 Dataset images" / id for id in ids]
    images = [
        folder / f"{folder.name}_Dermoscopic_Image" / f"{folder.name}.bmp" for folder in folders
    ]
    masks = [folder / f"{folder.name}_lesion" / f"{folder.name}_lesion.bmp" for folder in folders]
    spoil(images, masks)
    masks[11].unlink()
    images[12].unlink()
    shutil.rmtree(folders[13])
    images[14].unlink()
    masks[14].unlink()
    shutil.copy(images[16], images[15])
    shutil.copy(masks[16], masks[15])
    table = root / "PH2_dataset.txt"
    lines = table.read_text().splitlines()
    lines[1 + 17] = lines[1 + 17].replace("|| 0 ||", "|| 7 ||")
    lines[1 + 18] = lines[1 + 19]
    table.write_text("\n".join(lines))
    (root / "patients.csv").write_text(
        "id,patient\n" + "\n".join(f"{id},P" for id in ids) + "\n,\nx\n"
    )

    report = check_data(root)
    assert kinds(report, errors=True) == bad_files(ids) | {
        "cases without a mask": [(ids[11],)],
        "cases without an image": [(ids[12],)],
        "damaged table rows": [(), (), ()],
    }
    same = {"cases of the same picture": [tuple(ids[8:11]), (ids[15], ids[16])]}
    assert kinds(report, errors=False) == odd_files(ids) | same | {
        "folders without pictures": [(ids[14],)],
        "listed cases without a folder": [(ids[13],)],
        "cases that the table does not list": [(ids[18],)],
    }
    assert [case.id for case in report.cases] == [*ids[4:7], *ids[8:11], *ids[15:]]
    assert report.patients == 1
    text = str(report)
    for words in (
        f"{root}: 15 good cases of layout ph2\n",
        f"{table}: line 19 is no row",
        f"{table}: line 21 is no row",  # the second row of its name
        f"{root / 'patients.csv'}: line 27 is no row",
        f"{masks[6]}: the corners are lesion more than the middle",
        f"\n    {ids[15]}, {ids[16]}: their pictures are the same",
        "\nerrors: 11\n",
        "\nwarnings: 8\n",
        *map(
            str, (images[0], masks[1], masks[2], masks[3], masks[4], masks[5], images[7], masks[7])
        ),
        *map(str, (folders[11], folders[12], folders[14])),
    ):
        assert words in text
    assert "  2 unreadable images\n" in text


def write_isic(root: Path, pairs: Path) -> Path:
    """The files of pairs under ISIC's names, 'p07' as 'ISIC_0000007'."""
    for file in sorted(pairs.rglob("*.png")):
        part, end = ("Input", "") if file.parent.name == "images" else ("Truth", "_segmentation")
        (root / part).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, root / part / f"ISIC_00000{file.stem[1:]}{end}.png")
    return root


def test_isic_with_one_of_each(tmp_path: Path, write_pairs: PairsWriter) -> None:
    root = write_isic(tmp_path / "isic", write_pairs(tmp_path / "pairs", 20))
    ids = [f"ISIC_00000{i:02}" for i in range(20)]
    images = [root / "Input" / f"{id}.png" for id in ids]
    masks = [root / "Truth" / f"{id}_segmentation.png" for id in ids]
    spoil(images, masks)
    masks[11].unlink()
    images[12].unlink()
    (root / "more").mkdir()
    second = root / "more" / images[13].name
    shutil.copy(images[14], second)
    table = root / "metadata.csv"
    rows = [f"{id},IP_{i // 2}" for i, id in enumerate([*ids[:15], *ids[16:], "ISIC_9999999"])]
    table.write_text("\n".join(["isic_id,patient_id", *rows, f"{ids[0]},IP_7", "cut"]))

    report = check_data(root)
    assert kinds(report, errors=True) == bad_files(ids) | {
        "cases without a mask": [(ids[11],)],
        "second cases of one name": [(ids[13],)],
        "damaged table rows": [(), ()],
    }
    assert kinds(report, errors=False) == odd_files(ids) | {
        "masks without an image": [(ids[12],)],
        "listed cases without an image": [("ISIC_9999999",)],
        "cases that the table does not list": [(ids[15],)],
    }
    assert [case.id for case in report.cases] == [*ids[4:7], *ids[8:11], *ids[14:]]
    text = str(report)
    assert f"{root}: 12 good cases of layout isic2018\n" in text
    assert f"{table}: line 22 states that case {ids[0]} is of patient IP_7" in text
    assert f"{table}: line 23 is no row" in text
    assert f"{second}: a second case named {ids[13]}, the first is {images[13]}" in text
    assert f"{masks[12]}: mask {ids[12]} has no image" in text


def test_what_is_good_is_left_alone(tmp_path: Path, write_pairs: PairsWriter) -> None:
    pairs = write_pairs(tmp_path / "pairs", 8)
    for root in (pairs, write_isic(tmp_path / "isic", pairs), write_tiny_ph2(tmp_path / "ph2", 8)):
        before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
        report = check_data(root)
        assert report.findings == []
        assert report.cases == find_cases(root)
        assert "errors: none\nwarnings: none" in str(report)
        assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_without_a_table_ph2_is_suspicious(tmp_path: Path) -> None:
    root = write_tiny_ph2(tmp_path / "ph2", 3)
    (root / "PH2_dataset.txt").unlink()
    assert kinds(check_data(root), errors=False) == {"missing tables": [()]}
    (root / "PH2_dataset.xlsx").write_bytes(b"no workbook")
    report = check_data(root)
    assert kinds(report, errors=True) == {"damaged tables": [()]}
    assert (len(report.cases), report.warnings) == (3, [])


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_files_that_no_reader_takes(tmp_path: Path, write_pairs: PairsWriter) -> None:
    root = write_pairs(tmp_path / "pairs", 4)
    (root / "images" / "p00.png").write_bytes(b"P5 12000 12000 255\n")  # a bomb's head
    os.mkfifo(root / "images" / "p04.png")  # would wait for ever
    (root / "images" / "p05.png").symlink_to("p05.png")
    (root / "images" / "up").symlink_to(root)
    name = os.fsdecode(b"n\xff\n.png")
    for part in ("images", "masks"):
        (root / part / "p01.png").rename(root / part / name)
    (root / "masks" / name).write_bytes(b"")
    report = check_data(root)
    assert kinds(report, errors=True) == {
        "unreadable images": [("p00",)],
        "unreadable masks": [(name[:-4],)],
    }
    assert "12000 x 12000 pixels" in str(report)
    # One line each, that any terminal can show.
    assert len(str(report).encode().splitlines()) == 9
    assert "n\\udcff .png: cannot be read" in str(report)


def test_nothing_good_is_no_crash(tmp_path: Path, write_pairs: PairsWriter) -> None:
    root = write_pairs(tmp_path / "pairs", 2)
    for file in (root / "images").iterdir():
        file.write_bytes(b"")
    report = check_data(root)
    assert (report.cases, len(report.errors)) == ([], 2)
    shutil.rmtree(root / "masks")
    (root / "masks").mkdir()
    assert kinds(check_data(root), errors=True) == {"cases without a mask": [("p00",), ("p01",)]}


@pytest.mark.parametrize("layout", ["", "images", "PH2 Dataset images"])
def test_no_data_set_is_bad_input(tmp_path: Path, layout: str, script: Script) -> None:
    for folder in (layout, layout.replace("images", "masks")):
        (tmp_path / folder).mkdir(exist_ok=True)
    with pytest.raises(InputError):
        check_data(tmp_path)
    for root in (tmp_path, tmp_path / "none"):
        ended = script("prepare_ph2", "--check", root)
        (line,) = ended.err.strip().splitlines()
        assert ended.code == 1
        assert line.startswith(f"error: {root}")


def test_the_script(
    tmp_path: Path, write_pairs: PairsWriter, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = write_pairs(tmp_path / "pairs", 6)
    ended = script("prepare_ph2", "--check", root, "--json", "good.json")
    assert ended.code == 0
    assert ended.out.startswith(f"{root}: 6 good cases of layout pairs\n     6 unknown\n")
    assert ended.out.endswith(f"use it: python scripts/train.py data=pairs data.root={root}\n")
    assert json.loads(Path("good.json").read_text("utf-8")) == {
        "root": str(root),
        "layout": "pairs",
        "cases": [f"p{i:02}" for i in range(6)],
        "diagnoses": {"unknown": 6},
        "patients": 0,
        "findings": [],
    }
    # Suspicious alone is no failure.
    mask = root / "masks" / "p03.png"
    Image.fromarray(np.zeros_like(np.asarray(Image.open(mask)))).save(mask)
    empty = {
        "kind": "empty masks",
        "message": f"{mask}: no pixel is lesion; see whether it is right",
        "is_error": False,
        "cases": ["p03"],
    }
    assert script("prepare_ph2", "--check", root, "--json", "odd.json").code == 0
    assert json.loads(Path("odd.json").read_text("utf-8"))["findings"] == [empty]
    (root / "images" / "p01.png").unlink()
    (root / "masks" / "p02.png").unlink()
    ended = script("prepare_ph2", "--check", root, "--json", "bad.json")
    assert ended.code == 1
    assert "use it" not in ended.out
    found = json.loads(Path("bad.json").read_text("utf-8"))
    assert found["cases"] == ["p00", "p03", "p04", "p05"]
    assert [(f["kind"], f["is_error"], f["cases"]) for f in found["findings"]] == [
        ("cases without a mask", True, ["p02"]),
        ("masks without an image", False, ["p01"]),
        ("empty masks", False, ["p03"]),
    ]
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
    assert f"data=pairs data.root={root} 'data.classes=[{names}]' experiment" in ended.out
    one = script("prepare_ph2", "--check", root, "--classes", "thing")
    assert one.out.endswith("'data.classes=[thing]'\n")
    more = script("prepare_ph2", "--check", root, "--classes", f"{names},other")
    assert "no mask holds other, class 3" in more.out
    more = ["--classes", names, "--colours", colours]
    assert script("prepare_ph2", "--check", coloured, *more).code == 0
    wrong = script("prepare_ph2", "--check", coloured, "--classes", names)
    assert wrong.code == 1 and "6 unreadable masks" in wrong.out
    Image.new("L", (60, 45)).save(root / "masks" / "case00.png")
    empty = script("prepare_ph2", "--check", root, "--classes", names)
    assert empty.code == 0 and "no pixel is other than skin" in empty.out


def test_the_real_cases_are_good(ph2: Path) -> None:
    report = check_data(ph2)
    assert report.errors == []
    assert report.cases == find_cases(ph2)
    assert kinds(report, errors=False).keys() <= {"listed cases without a folder"}


def test_the_real_masks_inverted(ph2: Path, tmp_path: Path) -> None:
    """Each is found: the images are small, as only the masks matter."""
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    cases = find_cases(ph2)
    for case in cases:
        mask = ~np.asarray(Image.open(case.mask).convert("1").resize((96, 72)))
        Image.fromarray(mask).save(tmp_path / "masks" / f"{case.id}.png")
        Image.new("RGB", (96, 72)).save(tmp_path / "images" / f"{case.id}.png")
    found = kinds(check_data(tmp_path), errors=False)
    assert found["inverted masks"] == [(case.id,) for case in cases]
