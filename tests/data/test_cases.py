"""Who the cases are: PH2 with its table in either form, ISIC, pairs, and what does not belong."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openpyxl
import pytest
from PIL import Image

from seglab.core.errors import InputError
from seglab.data.cases import Case
from seglab.data.images import read_mask
from seglab.data.layouts import find_cases, isic2018_cases, pairs_cases, ph2_cases, scan_cases

IMAGES = "PH2 Dataset images"
HEADER = (
    "||   Name || Histological Diagnosis || Clinical Diagnosis || Asymmetry | Pigment Network | "
    "Dots/Globules | Streaks | Regression Areas | Blue-Whitish Veil ||           Colors ||"
)
ROWS = {
    "IMD003": ("", 0, 0, "T", "A", "A", "A", "A", (4,)),
    "IMD016": ("", 0, 0, "T", "T", "A", "A", "A", (3, 4)),
    "IMD076": ("", 1, 1, "AT", "AT", "A", "A", "A", (3, 4)),
    "IMD424": ("Melanoma", 2, 2, "AT", "AT", "P", "A", "P", (3, 4, 5, 6)),
    "IMD435": ("Lentigo Maligna", 2, 2, "AT", "A", "A", "A", "P", (3, 4, 5, 6)),
}
LEGENDS = ["", "", "Legends for Clinical Diagnosis: ", "   0 - Common Nevus;", "   6 - Black."]
DIAGNOSES = {
    "IMD003": "common nevus",
    "IMD016": "common nevus",
    "IMD076": "atypical nevus",
    "IMD424": "melanoma",
    "IMD435": "melanoma",
}
CRITERIA = {
    "histological_diagnosis": "Melanoma",
    "asymmetry": "2",
    "pigment_network": "AT",
    "dots_globules": "AT",
    "streaks": "P",
    "regression_areas": "A",
    "blue_whitish_veil": "P",
    "colors": "3  4  5  6",
}


def touch(path: Path) -> Path:
    """Who the cases are shows by names alone, so the files stay empty."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def image_path(root: Path, id: str) -> Path:
    return root / IMAGES / id / f"{id}_Dermoscopic_Image" / f"{id}.bmp"


def mask_path(root: Path, id: str) -> Path:
    return root / IMAGES / id / f"{id}_lesion" / f"{id}_lesion.bmp"


def txt_row(id: str) -> str:
    histology, *values, colors = ROWS[id]
    widths = (18, 9, 15, 13, 7, 16, 17)
    diagnosis, *criteria = (
        f"{value:>{width}}" for value, width in zip(values, widths, strict=True)
    )
    middle = f"{histology:>22} || {diagnosis} || {' | '.join(criteria)}"
    return f"|| {id} || {middle} || {'  '.join(map(str, colors)):>16} ||"


def write_txt(root: Path, lines: list[str]) -> Path:
    path = root / "PH2_dataset.txt"
    path.write_bytes("\r\n".join([HEADER, *lines, *LEGENDS]).encode("ascii"))
    return path


def workbook() -> openpyxl.Workbook:
    """The real one's layout: legends above, crosses for diagnosis and colours."""
    book = openpyxl.Workbook()
    sheet = book.active
    sheet["F2"] = "Legends"
    sheet["F3"], sheet["G3"], sheet["H3"] = "Asymmetry", 0, "Fully Simmetric"
    sheet["F6"], sheet["G6"], sheet["H6"] = "Pigment Network\nDots/Globules", "AT", "Atypical"
    sheet["C12"], sheet["L12"] = "Clinical Diagnosis", "Colors"
    head = ["Image Name", "Histological Diagnosis", "Common Nevus", "Atypical Nevus", "Melanoma"]
    head += ["Asymmetry\n(0/1/2)", "Pigment Network\n(AT/T)", "Dots/Globules\n(A/AT/T)"]
    head += ["Streaks\n(A/P)", "Regression Areas\n(A/P)", "Blue-Whitish Veil\n(A/P)"]
    head += ["White", "Red", "Light-Brown", "Dark-Brown", "Blue-Gray", "Black"]
    rows: list[list[object]] = [head]
    for id, (histology, diagnosis, *criteria, colors) in ROWS.items():
        crosses = ["X" if i == diagnosis else None for i in range(3)]
        dabs = ["X" if color in colors else None for color in range(1, 7)]
        rows.append([id, histology or None, *crosses, *criteria, *dabs])
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            sheet.cell(13 + i, 1 + j, value)
    return book


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """PH2 of five cases, without a table."""
    root = tmp_path / "PH2Dataset"
    for id in ROWS:
        touch(image_path(root, id))
        touch(mask_path(root, id))
    return root


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What the log says, once for each time it is said."""
    caplog.set_level(logging.INFO, "seglab.data.layouts")
    return lambda: [record.getMessage() for record in caplog.records]


def refused(read: Callable[[Path], list[Case]], root: Path, *words: str) -> None:
    with pytest.raises(InputError) as caught:
        read(root)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_rows_written_here_are_the_real_files() -> None:
    assert txt_row("IMD003") == (
        "|| IMD003 ||                        ||                  0 ||         0 |"
        "               T |             A |       A |                A |                 A ||"
        "                4 ||"
    )
    assert {len(txt_row(id)) for id in ROWS} == {176}


def test_ph2_with_its_text_table(root: Path, said: Callable[[], list[str]]) -> None:
    write_txt(root, [txt_row(id) for id in ROWS])
    cases = ph2_cases(str(root))
    assert [case.id for case in cases] == list(ROWS)
    assert {case.id: case.diagnosis for case in cases} == DIAGNOSES
    assert [case.image for case in cases] == [image_path(root, id) for id in ROWS]
    assert [case.mask for case in cases] == [mask_path(root, id) for id in ROWS]
    assert {case.tables for case in cases} == {(root / "PH2_dataset.txt",)}
    assert {case.patient for case in cases} == {""}
    assert cases[3].criteria == CRITERIA
    assert cases[4].criteria["histological_diagnosis"] == "Lentigo Maligna"
    assert cases[0].criteria == CRITERIA | {
        "histological_diagnosis": "",
        "asymmetry": "0",
        "pigment_network": "T",
        "dots_globules": "A",
        "streaks": "A",
        "blue_whitish_veil": "A",
        "colors": "4",
    }
    assert said() == [f"{root}: 5 cases"]


def test_the_workbook_says_what_the_text_says(root: Path) -> None:
    table = write_txt(root, [txt_row(id) for id in ROWS])
    from_text = ph2_cases(root)
    table.unlink()
    workbook().save(root / "PH2_dataset.xlsx")
    from_workbook = ph2_cases(root)
    assert from_workbook == from_text
    assert [case.criteria for case in from_workbook] == [case.criteria for case in from_text]
    assert {case.tables for case in from_workbook} == {(root / "PH2_dataset.xlsx",)}


def test_the_text_goes_before_the_workbook(root: Path) -> None:
    write_txt(root, [txt_row(id) for id in ROWS])
    (root / "PH2_dataset.xlsx").write_bytes(b"not looked at")
    assert ph2_cases(root)[3].diagnosis == "melanoma"


def test_without_a_table_diagnoses_are_unknown(root: Path, said: Callable[[], list[str]]) -> None:
    cases = ph2_cases(root)
    assert [case.id for case in cases] == list(ROWS)
    assert {case.diagnosis for case in cases} == {"unknown"}
    assert all(case.criteria == {} and case.tables == () for case in cases)
    warning, count = said()
    assert str(root) in warning and "no PH2_dataset.txt or .xlsx" in warning
    assert count == f"{root}: 5 cases"


def test_a_case_that_the_table_lacks_is_unknown(root: Path) -> None:
    write_txt(root, [txt_row(id) for id in ROWS if id != "IMD076"])
    cases = ph2_cases(root)
    assert {case.id: case.diagnosis for case in cases} == DIAGNOSES | {"IMD076": "unknown"}
    assert cases[2].tables == ()


@pytest.mark.parametrize("table", [True, False])
def test_the_root_may_be_above_or_below(root: Path, table: bool) -> None:
    if table:
        write_txt(root, [txt_row(id) for id in ROWS])
    cases = ph2_cases(root)
    assert ph2_cases(root.parent) == cases
    assert ph2_cases(root / IMAGES) == cases


def test_the_root_may_be_the_working_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_txt(root, [txt_row(id) for id in ROWS])
    for folder in (root.parent, root, root / IMAGES):
        monkeypatch.chdir(folder)
        assert {case.id: case.diagnosis for case in ph2_cases(".")} == DIAGNOSES


def test_case_folders_alone_will_do(tmp_path: Path) -> None:
    touch(tmp_path / "IMD003" / "IMD003_Dermoscopic_Image" / "IMD003.bmp")
    touch(tmp_path / "IMD003" / "IMD003_lesion" / "IMD003_lesion.bmp")
    write_txt(tmp_path, [txt_row("IMD003")])
    (tmp_path / "patients.csv").write_text("image_id,patient_id\nIMD003,P1\n")
    (case,) = ph2_cases(tmp_path)
    assert (case.id, case.diagnosis, case.patient) == ("IMD003", "common nevus", "P1")
    assert scan_cases(tmp_path).stray_files == 0  # tables are none


def test_what_does_not_belong_is_counted_once(root: Path, said: Callable[[], list[str]]) -> None:
    write_txt(root, [txt_row(id) for id in ROWS])
    expected = ph2_cases(root)
    assert len(said()) == 1
    case = root / IMAGES / "IMD016"
    touch(root / IMAGES / "Thumbs.db")
    touch(root / IMAGES / ".DS_Store")
    touch(root / IMAGES / "__MACOSX" / "._IMD003")
    touch(root / IMAGES / "sort_images.py")
    touch(case / "Thumbs.db")
    touch(case / "IMD016_Dermoscopic_Image" / ".DS_Store")
    touch(case / "IMD016_Dermoscopic_Image" / "._IMD016.bmp")
    touch(case / "IMD016_Dermoscopic_Image" / "IMD016.jpg")
    touch(case / "IMD016_lesion" / "IMD016_lesion.jpg")
    touch(case / "IMD016_lesion" / "Thumbs.db")
    touch(case / "IMD016_roi" / "IMD016_R1_Label4.bmp")  # belongs, but is no lesion
    touch(case / "IMD016_roi" / "IMD016_R2_Label3.bmp")
    assert ph2_cases(root) == expected
    assert said()[1:] == [f"{root}: 5 cases", f"{root}: left out 10 stray files"]


def test_a_cut_copy_is_counted(root: Path, said: Callable[[], list[str]]) -> None:
    write_txt(root, [txt_row(id) for id in ROWS])
    shutil.rmtree(root / IMAGES / "IMD003")
    shutil.rmtree(root / IMAGES / "IMD424")
    (root / IMAGES / "IMD999").mkdir()
    touch(root / IMAGES / "IMD998" / "IMD998_Dermoscopic_Image" / "Thumbs.db")
    cases = ph2_cases(root)
    assert [case.id for case in cases] == ["IMD016", "IMD076", "IMD435"]
    assert [case.diagnosis for case in cases] == ["common nevus", "atypical nevus", "melanoma"]
    first, second = said()
    assert first == f"{root}: 3 cases"
    head, _, counts = second.partition(": left out ")
    assert head == str(root)
    assert sorted(counts.split(", ")) == [
        "2 folders without pictures",
        "2 listed cases without a folder",
    ]


def test_an_empty_folder_is_no_missing_folder(root: Path, said: Callable[[], list[str]]) -> None:
    write_txt(root, [txt_row(id) for id in ROWS])
    image_path(root, "IMD003").unlink()
    mask_path(root, "IMD003").unlink()
    assert len(ph2_cases(root)) == 4
    assert said() == [f"{root}: 4 cases", f"{root}: left out 1 folders without pictures"]


@pytest.mark.parametrize("missing, path", [("mask", mask_path), ("image", image_path)])
def test_half_a_case_is_refused(
    missing: str, path: Callable[[Path, str], Path], root: Path
) -> None:
    path(root, "IMD076").unlink()
    touch(root / IMAGES / "IMD076" / "IMD076_roi" / "IMD076_R1_Label4.bmp")
    touch(path(root, "IMD076").parent / "._IMD076.bmp")
    folder = str(root / IMAGES / "IMD076")
    refused(ph2_cases, root, folder, f"no {missing}", path(root, "IMD076").name)
    path(root, "IMD076").parent.joinpath("Thumbs.db").touch()
    shutil.rmtree(path(root, "IMD076").parent)
    refused(ph2_cases, root, folder, f"no {missing}")


def test_the_picture_named_like_the_case_is_preferred(root: Path) -> None:
    for path in (image_path(root, "IMD076"), mask_path(root, "IMD076")):
        touch(path.with_name(f"Copy of {path.name}"))
    case = ph2_cases(root)[2]
    assert (case.image, case.mask) == (image_path(root, "IMD076"), mask_path(root, "IMD076"))


def test_suffixes_of_any_case_and_kind(root: Path) -> None:
    image, mask = image_path(root, "IMD076"), mask_path(root, "IMD076")
    case = ph2_cases(root)[2]
    assert (case.image, case.mask) == (image, mask)
    image, mask = image.rename(image.with_suffix(".JPG")), mask.rename(mask.with_suffix(".PNG"))
    case = ph2_cases(root)[2]
    assert (case.image, case.mask) == (image, mask)


GOOD = txt_row("IMD016")


@pytest.mark.parametrize(
    "row",
    [
        GOOD[:100],
        GOOD[:-30],
        GOOD.replace("IMD016 ||", "IMD016 || x ||"),
        GOOD.replace("                  0 ||", "                  3 ||"),
        GOOD.replace("                  0 ||", "                    ||"),
        GOOD.replace("                  0 ||", "                  X ||"),
        GOOD.replace("       T |", "         "),
        txt_row("IMD003"),
        "||",
    ],
    ids=["cut", "cut late", "longer", "diagnosis 3", "none", "X", "no bar", "twice", "bars"],
)
def test_a_damaged_row_is_named_by_its_line(root: Path, row: str) -> None:
    table = write_txt(root, [txt_row("IMD003"), row, txt_row("IMD424")])
    refused(ph2_cases, root, str(table), "line 3 ")


def test_a_row_without_its_first_bars_is_not_passed_over(root: Path) -> None:
    table = write_txt(root, [txt_row("IMD003"), GOOD[3:], txt_row("IMD424")])
    try:
        cases = ph2_cases(root)
    except InputError as error:
        assert f"{table}: line 3 " in str(error)
    else:
        assert cases[1].diagnosis == "common nevus"


@pytest.mark.parametrize("lines", [[], LEGENDS])
def test_a_table_without_rows_is_refused(root: Path, lines: list[str]) -> None:
    refused(ph2_cases, root, str(write_txt(root, lines)), "no row")


@pytest.mark.parametrize(
    "cell, value",
    [("D15", "X"), ("C15", None), ("A15", "IMD003")],
    ids=["two diagnoses", "no diagnosis", "twice"],
)
def test_a_damaged_row_of_the_workbook(root: Path, cell: str, value: str | None) -> None:
    book = workbook()
    book.active[cell] = value
    book.save(root / "PH2_dataset.xlsx")
    refused(ph2_cases, root, str(root / "PH2_dataset.xlsx"), "row 15 ")


@pytest.mark.parametrize("columns", [1, 2, 5, 10])
def test_a_workbook_without_its_last_columns(root: Path, columns: int) -> None:
    book = workbook()
    book.active.delete_cols(columns + 1, 17)
    book.save(root / "PH2_dataset.xlsx")
    refused(ph2_cases, root, str(root / "PH2_dataset.xlsx"), "row 14 ")


def test_a_workbook_that_is_none(root: Path) -> None:
    path = root / "PH2_dataset.xlsx"
    path.write_bytes(b"PK\3\4 no workbook")
    refused(ph2_cases, root, str(path), "cannot be read as a workbook")
    openpyxl.Workbook().save(path)
    refused(ph2_cases, root, str(path), "no row")


@pytest.mark.parametrize("read", [ph2_cases, isic2018_cases, pairs_cases])
@pytest.mark.parametrize("there", [True, False])
def test_no_data_says_how_to_go_on(
    read: Callable[[str], list[Case]],
    there: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    if there:
        (tmp_path / "data").mkdir()
    with pytest.raises(InputError) as caught:
        read("data")
    message = str(caught.value)
    assert message.startswith(str(tmp_path / "data"))
    assert "holds no case" in message if there else "is no folder" in message
    assert "scripts/prepare_ph2.py" in message
    assert "data=synthetic" in message
    assert "\n" not in message


def test_ph2_without_case_folders(tmp_path: Path) -> None:
    (tmp_path / IMAGES).mkdir()
    write_txt(tmp_path, [txt_row(id) for id in ROWS])
    refused(ph2_cases, tmp_path, str(tmp_path), "holds no case", "data=synthetic")


def isic(root: Path) -> list[Case]:
    """As unpacked from the challenge of 2018."""
    pictures, masks = root / "ISIC2018_Task1-2_Training_Input", root / "GroundTruth"
    names = ["ISIC_0000000", "ISIC_0000001", "ISIC_0016072"]
    for i in (2, 0, 1):
        touch(pictures / f"{names[i]}.jpg")
        touch(masks / f"{names[i]}_segmentation.png")
    touch(pictures / "LICENSE.txt")
    touch(pictures / "ATTRIBUTION.txt")
    return [
        Case(name, pictures / f"{name}.jpg", masks / f"{name}_segmentation.png") for name in names
    ]


def test_isic_2018(tmp_path: Path, said: Callable[[], list[str]]) -> None:
    expected = isic(tmp_path)
    assert isic2018_cases(str(tmp_path)) == expected
    assert {case.diagnosis for case in expected} == {"unknown"}
    assert said() == [f"{tmp_path}: 3 cases", f"{tmp_path}: left out 2 stray files"]


def test_isic_2017(tmp_path: Path, said: Callable[[], list[str]]) -> None:
    for name in ("ISIC_0000001", "ISIC_0000000"):
        touch(tmp_path / "Training_Data" / f"{name}.jpg")
        touch(tmp_path / "Training_Data" / f"{name}_superpixels.png")
        touch(tmp_path / "Training_Part1" / f"{name}_Segmentation.png")
    touch(tmp_path / "__MACOSX" / "Training_Data" / "ISIC_0000001.jpg")
    touch(tmp_path / "Training_Data" / "._ISIC_0000001.jpg")
    cases = isic2018_cases(tmp_path)
    assert [case.id for case in cases] == ["ISIC_0000000", "ISIC_0000001"]
    assert cases[0].image == tmp_path / "Training_Data" / "ISIC_0000000.jpg"
    assert cases[0].mask == tmp_path / "Training_Part1" / "ISIC_0000000_Segmentation.png"
    assert said()[1:] == [f"{tmp_path}: left out 2 stray files"]


def test_cases_are_sorted_by_id_whatever_their_folders(tmp_path: Path) -> None:
    for part, name in (("train", "ISIC_0000002"), ("val", "ISIC_0000001"), ("a", "ISIC_0000003")):
        touch(tmp_path / part / f"{name}.jpg")
        touch(tmp_path / part / f"{name}_segmentation.png")
    ids = [case.id for case in isic2018_cases(tmp_path)]
    assert ids == ["ISIC_0000001", "ISIC_0000002", "ISIC_0000003"]


def test_isic_images_and_masks_that_do_not_match(
    tmp_path: Path, said: Callable[[], list[str]]
) -> None:
    isic(tmp_path)
    touch(tmp_path / "GroundTruth" / "ISIC_0000009_segmentation.png")
    assert len(isic2018_cases(tmp_path)) == 3
    assert "1 masks without an image" in said()[1]
    lonely = touch(tmp_path / "ISIC2018_Task1-2_Training_Input" / "ISIC_0000008.jpg")
    refused(isic2018_cases, tmp_path, str(lonely), "ISIC_0000008", "no mask")


def test_two_isic_images_of_one_name(tmp_path: Path) -> None:
    expected = isic(tmp_path)
    other = touch(tmp_path / "z" / "ISIC_0000001.jpg")
    refused(isic2018_cases, tmp_path, str(other), str(expected[1].image), "ISIC_0000001")


def test_pairs_with_subfolders_and_any_suffix(
    tmp_path: Path, said: Callable[[], list[str]]
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
    assert pairs_cases(str(tmp_path)) == [
        Case(id, tmp_path / "images" / image, tmp_path / "masks" / mask)
        for id, (image, mask) in pairs.items()
    ]
    first, second = said()
    assert first == f"{tmp_path}: 5 cases"
    assert sorted(second.partition(": left out ")[2].split(", ")) == [
        "1 masks without an image",
        "3 stray files",
    ]


def test_a_pair_without_its_mask(tmp_path: Path) -> None:
    touch(tmp_path / "images" / "a" / "one.jpg")
    touch(tmp_path / "masks" / "one.png")
    image = str(tmp_path / "images" / "a" / "one.jpg")
    refused(pairs_cases, tmp_path, image, "a/one", "no mask", "masks/NAME.png")


def patients(cases: list[Case]) -> dict[str, str]:
    return {case.id: case.patient for case in cases}


def pairs(root: Path, *names: str) -> Path:
    for name in names:
        touch(root / "images" / f"{name}.jpg")
        touch(root / "masks" / f"{name}.png")
    return root


def test_patients_of_ph2_stand_beside_its_table(root: Path, said: Callable[[], list[str]]) -> None:
    table = write_txt(root, [txt_row(id) for id in ROWS])
    csv = root / "patients.csv"
    csv.write_text("image_id,age,patient_id\nIMD003,40,P1\nIMD016.bmp,40,P1\nIMD424,50,P2\n")
    named = {"IMD003": "P1", "IMD016": "P1", "IMD076": "", "IMD424": "P2", "IMD435": ""}
    for folder in (root, root.parent, root / IMAGES):
        said_before = len(said())
        cases = ph2_cases(folder)
        assert patients(cases) == named
        assert [case.tables for case in cases] == [
            (table, csv) if named[case.id] else (table,) for case in cases
        ]
        assert said()[said_before + 1 :] == [f"{folder}: 2 patients are named, for 3 cases"]
    # Where it is not asked for, it is not looked at.
    (root / IMAGES / "patients.csv").write_bytes(b"\xff")
    (root.parent / "patients.csv").write_bytes(b"\xff")
    assert patients(ph2_cases(root)) == named


def test_patients_of_isic_and_ham10000(tmp_path: Path, said: Callable[[], list[str]]) -> None:
    isic(tmp_path)
    csv = tmp_path / "metadata.csv"
    csv.write_text(
        "isic_id,attribution,patient_id,lesion_id\n"
        'ISIC_0000000,"Somebody, MD",IP_1,IL_1\n'
        'ISIC_0000001,"Two\nlines",IP_1,IL_2\n'
        "ISIC_0016072,Nobody,,IL_3\n"
        "ISIC_9999999,Nobody,IP_9,\n"
    )
    cases = isic2018_cases(tmp_path)
    expected = {"ISIC_0000000": "IP_1", "ISIC_0000001": "IP_1", "ISIC_0016072": "IL_3"}
    assert patients(cases) == patients(find_cases(tmp_path)) == expected
    assert {case.tables for case in cases} == {(csv,)}
    assert said()[:3] == [
        f"{tmp_path}: 3 cases",
        f"{tmp_path}: 2 patients are named, for 3 cases",
        f"{tmp_path}: left out 1 listed cases without an image, 2 stray files",
    ]
    csv.rename(tmp_path / "HAM10000_metadata.csv").write_text(
        "lesion_id,image_id,dx\nHAM_1,ISIC_0000000,nv\nHAM_1,ISIC_0000001,nv\n"
    )
    named = {"ISIC_0000000": "HAM_1", "ISIC_0000001": "HAM_1", "ISIC_0016072": ""}
    assert patients(isic2018_cases(tmp_path)) == named


@pytest.mark.parametrize(
    "text",
    [
        "Name,Patient\none,P1\na/two,P1\n",
        "\ufeffID;PATIENT_ID\r\none.JPG;P1\r\na/two.png;P1\r\n",
        "image\tlesion_id\none\tP1\na/two\tP1",
        " image_name , patient ,age\n one , P1 ,3\n\n,,\n a/two , P1 ,4\n",
        "lesion_id,patient,patient_id,name,image\nL1,x,P1,n,one\nL2,y,P1,m,a/two\n",
        "id,patient\none,P1\none,P1\na/two,\na/two,P1\nthree,\n",
    ],
    ids=["plain", "semicolons", "tabs", "blanks", "preference", "twice alike"],
)
def test_columns_are_found(tmp_path: Path, text: str) -> None:
    pairs(tmp_path, "one", "a/two", "three")
    (tmp_path / "Who.CSV").write_bytes(text.encode())
    assert patients(pairs_cases(tmp_path)) == {"a/two": "P1", "one": "P1", "three": ""}


def test_two_tables_of_patients(tmp_path: Path) -> None:
    pairs(tmp_path, "one", "two")
    first, second = tmp_path / "a.csv", tmp_path / "b.csv"
    first.write_text("id,patient\none,P1\n")
    second.write_text("id,patient\ntwo,P2\n")
    cases = pairs_cases(tmp_path)
    assert patients(cases) == {"one": "P1", "two": "P2"}
    assert [case.tables for case in cases] == [(first,), (second,)]
    second.write_text("id,patient\ntwo,P2\none,P2\n")
    refused(pairs_cases, tmp_path, f"{second}: line 3 ", "one", "P2", str(first), "P1")


@pytest.mark.parametrize(
    "text",
    ["", "\n", "id,age\none,40\n", "patient,age\nP1,40\n", 'image,MEL\n"unclosed,1\n', "a,b"],
)
def test_csvs_of_something_else_are_passed_over(tmp_path: Path, text: str) -> None:
    pairs(tmp_path, "one")
    (tmp_path / "other.csv").write_text(text)
    (tmp_path / "._patients.csv").write_bytes(b"\0\xff")
    (tmp_path / "folder.csv").mkdir()
    (case,) = pairs_cases(tmp_path)
    assert (case.patient, case.tables) == ("", ())


@pytest.mark.parametrize(
    "content, words",
    [
        (b"id,patient\none,\xff\n", "cannot be read as CSV"),
        (b'id,patient\none,"P1\ntwo,P2\n', "cannot be read as CSV"),
        (b"id,patient\ntwo,P1\none\n", "line 3 "),
        (b"id,patient\ntwo,P1\n,P2\n", "line 3 "),
        (b"id,patient\none,P1,P2\n", "line 2 "),
        (b'id,patient,note\none,P1,"two\nlines"\none,P2,\n', "line 4 "),
    ],
    ids=["latin-1", "unclosed", "short", "no id", "long", "two patients"],
)
def test_a_damaged_csv_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    pairs(tmp_path, "one", "two")
    (tmp_path / "patients.csv").write_bytes(content)
    refused(pairs_cases, tmp_path, str(tmp_path / "patients.csv"), words)


def test_a_scan_goes_on_where_reading_stops(root: Path) -> None:
    table = write_txt(root, [txt_row("IMD003"), "|| x |", txt_row("IMD003"), txt_row("IMD424")])
    mask_path(root, "IMD016").unlink()
    image_path(root, "IMD435").unlink()
    scan = scan_cases(root)
    assert [case.id for case in scan.cases] == ["IMD003", "IMD076", "IMD424"]
    messages = [finding.message for finding in scan.findings if finding.is_error]
    assert len(messages) == 4
    assert f"{table}: line 3 " in messages[0] and f"{table}: line 4 " in messages[1]
    assert "IMD016 has no mask" in messages[2] and "IMD435 has no image" in messages[3]
    refused(ph2_cases, root, messages[0])
    refused(find_cases, root, messages[0])
    table.unlink()
    refused(find_cases, root, messages[2])


def test_folders_that_cannot_be_read(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shut by its owner: tests may run as root, to whom nothing is shut."""
    shut = image_path(root, "IMD016").parent
    scandir = os.scandir

    def deny(path: str | Path) -> object:
        if Path(path) == shut:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", deny)
    refused(ph2_cases, root, f"{shut}: cannot be read (Permission denied)")
    shut = pairs(tmp_path / "pairs", "one", "a/two") / "images" / "a"
    refused(pairs_cases, tmp_path / "pairs", f"{shut}: cannot be read (Permission denied)")


def test_links_in_a_circle_do_no_harm(root: Path, tmp_path: Path) -> None:
    expected = ph2_cases(root)
    (root / IMAGES / "loop").symlink_to("loop")
    (root / IMAGES / "IMD003" / "IMD003_lesion" / "up").symlink_to(root)
    (root / IMAGES / "IMD003" / "IMD003_lesion" / "gone.bmp").symlink_to("nowhere")
    assert ph2_cases(root) == expected
    pairs(tmp_path / "pairs", "one")
    (tmp_path / "pairs" / "images" / "up").symlink_to(tmp_path)
    (tmp_path / "pairs" / "images" / "loop.jpg").symlink_to("loop.jpg")
    assert [case.id for case in pairs_cases(tmp_path / "pairs")] == ["one"]


def test_layouts_are_recognised(root: Path, tmp_path: Path) -> None:
    write_txt(root, [txt_row(id) for id in ROWS])
    for folder in (tmp_path, root, root / IMAGES):
        assert {case.id: case.diagnosis for case in find_cases(str(folder))} == DIAGNOSES
    expected = isic(tmp_path / "isic")
    assert find_cases(tmp_path / "isic") == expected
    (tmp_path / "isic" / "GroundTruth").rename(tmp_path / "isic" / "masks")
    (tmp_path / "isic" / expected[0].image.parent.name).rename(tmp_path / "isic" / "data")
    assert [case.id for case in find_cases(tmp_path / "isic")] == [case.id for case in expected]
    touch(tmp_path / "pairs" / "images" / "one.jpg")
    touch(tmp_path / "pairs" / "masks" / "one.png")
    (case,) = find_cases(tmp_path / "pairs")
    assert case.id == "one"
    touch(tmp_path / "other" / "one.jpg")
    refused(find_cases, tmp_path / "other", str(tmp_path / "other"), "PH2", "ISIC", "masks/")
    refused(find_cases, tmp_path / "none", str(tmp_path / "none"))


def test_no_case_is_written_to(root: Path) -> None:
    write_txt(root, [txt_row(id) for id in ROWS])
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    ph2_cases(root)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_the_real_tables_agree(ph2: Path, tmp_path: Path) -> None:
    """For all 200 rows, whatever the copy holds."""
    text = (ph2 / "PH2_dataset.txt").read_bytes()
    assert len(text) == 36_280
    ids = re.findall(rb"^\|\| (IMD\d+) ", text, re.MULTILINE)
    assert len(ids) == len(set(ids)) == 200
    for id in map(bytes.decode, ids):
        touch(image_path(tmp_path, id))
        touch(mask_path(tmp_path, id))
    table = tmp_path / "PH2_dataset.txt"
    table.write_bytes(text)
    from_text = ph2_cases(tmp_path)
    table.unlink()
    shutil.copy(ph2 / "PH2_dataset.xlsx", tmp_path)
    from_workbook = ph2_cases(tmp_path)
    assert from_workbook == from_text
    assert [case.criteria for case in from_workbook] == [case.criteria for case in from_text]
    assert Counter(case.diagnosis for case in from_text) == {
        "common nevus": 80,
        "atypical nevus": 80,
        "melanoma": 40,
    }
    assert sum(not case.criteria["histological_diagnosis"] for case in from_text) == 159


def test_the_real_cases(ph2: Path) -> None:
    """Holds for all 200 cases, and for a copy that was cut short."""
    cases = ph2_cases(ph2)
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


def test_excels_unicode_is_read(tmp_path: Path) -> None:
    pairs(tmp_path, "one")
    (tmp_path / "patients.csv").write_bytes("id\tpatient\r\none\tPé1\r\n".encode("utf-16"))
    assert pairs_cases(tmp_path)[0].patient == "Pé1"


def test_a_csv_of_something_else_may_be_in_any_encoding(tmp_path: Path) -> None:
    for part in ("images", "masks"):
        touch(tmp_path / part / "a.png")
    (tmp_path / "notes.csv").write_bytes("Größe;Bemerkung\n1;süß\n".encode("latin-1"))
    (case,) = pairs_cases(tmp_path)
    assert (case.patient, case.tables) == ("", ())
