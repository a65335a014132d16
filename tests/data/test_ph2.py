"""PH2: its folders and its table of diagnoses."""

import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.layouts import (
    DIAGNOSES,
    IMAGES,
    LEGENDS,
    ROWS,
    assert_refused,
    image_path,
    mask_path,
    touch,
    touch_ph2,
    txt_row,
    write_txt,
)
from PIL import Image

from seglab.data.cases import Case
from seglab.data.layouts import find_cases, scan_cases
from seglab.data.masks import read_mask

GOOD = txt_row("IMD016")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return touch_ph2(tmp_path / "PH2Dataset")


def diagnoses(cases: list[Case]) -> dict[str, str]:
    return {case.id: case.diagnosis for case in cases}


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
        assert find_cases(".") == cases
    assert all("missing" in w for w in scan_cases(".").warnings)


def test_attributes_are_read_from_the_table(root: Path) -> None:
    assert find_cases(root)[0].attributes == {}
    write_txt(root)
    by_id = {case.id: case.attributes for case in find_cases(root)}
    assert by_id["IMD003"] == {
        "asymmetry": "fully symmetric",
        "pigment_network": "typical",
        **dict.fromkeys(("dots_globules", "streaks", "regression_areas"), "absent"),
        "blue_whitish_veil": "absent",
        "colours": "1",
    }
    assert [*by_id["IMD424"].values()] == [
        *("fully asymmetric", "atypical", "atypical", "present", "absent", "present", "4")
    ]
    assert by_id["IMD076"]["asymmetry"] == "symmetric in one axis"


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


def test_a_case_that_the_table_lacks_is_unknown(root: Path) -> None:
    write_txt(root, [txt_row(id) for id in ROWS if id != "IMD076"])
    cases = find_cases(root)
    assert diagnoses(cases) == DIAGNOSES | {"IMD076": "unknown"}
    assert cases[2].tables == ()


@pytest.mark.parametrize(
    "row",
    [
        GOOD[:-30],
        GOOD.replace("IMD016 ||", "IMD016 || x ||"),
        GOOD.replace("                  0 ||", "                  3 ||"),
        GOOD.replace("                  0 ||", "                    ||"),
        txt_row("IMD003"),
        "||",
    ],
    ids=["cut", "longer", "diagnosis 3", "none", "twice", "bars"],
)
def test_a_damaged_row_is_named_by_its_line(root: Path, row: str) -> None:
    table = write_txt(root, [txt_row("IMD003"), row, txt_row("IMD424")])
    assert_refused(root, str(table), "line 3 ")


def test_a_table_without_rows_is_refused(root: Path) -> None:
    assert_refused(root, str(write_txt(root, LEGENDS)), "no row")


def test_the_real_table(ph2: Path, tmp_path: Path) -> None:
    """All 200 rows, even if the copy lacks cases."""
    text = (ph2 / "PH2_dataset.txt").read_bytes()
    ids = re.findall(rb"^\|\| (IMD\d+) ", text, re.MULTILINE)
    assert len(ids) == len(set(ids)) == 200
    for id in map(bytes.decode, ids):
        touch(image_path(tmp_path, id))
        touch(mask_path(tmp_path, id))
    (tmp_path / "PH2_dataset.txt").write_bytes(text)
    assert Counter(case.diagnosis for case in find_cases(tmp_path)) == {
        "common nevus": 80,
        "atypical nevus": 80,
        "melanoma": 40,
    }
