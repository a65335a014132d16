"""PH2's table of diagnoses, and the patients of CSV files."""

import codecs
import re
from collections import Counter
from pathlib import Path

import pytest
from helpers.layouts import (
    DIAGNOSES,
    LEGENDS,
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
from hypothesis import given, settings
from hypothesis import strategies as st

from seglab.core.errors import InputError
from seglab.data.cases import Case
from seglab.data.layouts import find_cases

GOOD = txt_row("IMD016")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return touch_ph2(tmp_path / "PH2Dataset")


def diagnoses(cases: list[Case]) -> dict[str, str]:
    return {case.id: case.diagnosis for case in cases}


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


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(data=st.data())
@pytest.mark.parametrize("name", ["PH2_dataset.txt", "patients.csv"])
def test_a_damaged_table_is_read_or_named(
    name: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    root = touch_ph2(tmp_path_factory.mktemp("damaged") / "PH2Dataset")
    path = root / name
    if name.endswith("txt"):
        write_txt(root)
    else:
        path.write_text("image_id,age,patient_id\nIMD003,40,P1\nIMD016.bmp,40,P1\n")
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        length = data.draw(st.sampled_from([0, 1, 1, 20, 10**6]))
        content[start : start + length] = data.draw(st.binary(max_size=4))
    path.write_bytes(content)
    try:
        cases = find_cases(root)
    except InputError as error:
        assert str(path) in str(error)
    else:
        assert [case.id for case in cases] == list(ROWS)
        assert {case.diagnosis for case in cases} <= {*DIAGNOSES.values(), "unknown"}


def test_patients_of_ph2_are_read_beside_its_table(root: Path) -> None:
    table = write_txt(root)
    csv = root / "patients.csv"
    csv.write_text("image_id,age,patient_id\nIMD003,40,P1\nIMD016.bmp,40,P1\nIMD424,50,P2\n")
    named = {"IMD003": "P1", "IMD016": "P1", "IMD076": "", "IMD424": "P2", "IMD435": ""}
    # A CSV elsewhere is not read.
    for folder in (root.parent, image_path(root, "IMD003").parents[2]):
        (folder / "patients.csv").write_bytes(b"\xff")
    for folder in (root, root.parent):
        cases = find_cases(folder)
        assert patients(cases) == named
        assert [case.tables for case in cases] == [
            (table, csv) if named[case.id] else (table,) for case in cases
        ]


@pytest.mark.parametrize(
    "content",
    [
        codecs.BOM_UTF8 + b"ID;PATIENT_ID\r\none.JPG;P1\r\na/two.png;P1\r\n",
        b"image\tlesion_id\none\tP1\na/two\tP1",
        b" image_name , patient ,age\n one , P1 ,3\n\n,,\n a/two , P1 ,4\n",
        b"lesion_id,patient,patient_id,name,image\nL1,x,P1,n,one\nL2,y,P1,m,a/two\n",
        b"id,patient\none,P1\none,P1\na/two,\na/two,P1\nthree,\n",
        b'isic_id,attribution,lesion_id\none,"Somebody, MD",P1\na/two,"Two\nlines",P1\n',
    ],
    ids=["semicolons", "tabs", "blanks", "preference", "twice alike", "quotes"],
)
def test_columns_are_found(tmp_path: Path, content: bytes) -> None:
    touch_pairs(tmp_path, "one", "a/two", "three")
    (tmp_path / "Who.CSV").write_bytes(content)
    assert patients(find_cases(tmp_path)) == {"a/two": "P1", "one": "P1", "three": ""}


def test_two_tables_of_patients(tmp_path: Path) -> None:
    touch_pairs(tmp_path, "one", "two")
    first, second = tmp_path / "a.csv", tmp_path / "b.csv"
    first.write_text("id,patient\none,P1\n")
    second.write_text("id,patient\ntwo,P2\n")
    cases = find_cases(tmp_path)
    assert patients(cases) == {"one": "P1", "two": "P2"}
    assert [case.tables for case in cases] == [(first,), (second,)]
    second.write_text("id,patient\ntwo,P2\none,P2\n")
    assert_refused(tmp_path, f"{second}: line 3 ", "one", "P2", str(first), "P1")


@pytest.mark.parametrize("content", [b"", b"\n", b"id,age\none,40\n", b"patient,age\nP1,40\n"])
def test_other_csv_files_are_ignored(tmp_path: Path, content: bytes) -> None:
    touch_pairs(tmp_path, "one")
    (tmp_path / "other.csv").write_bytes(content)
    (tmp_path / "._patients.csv").write_bytes(b"\0\xff")
    (tmp_path / "folder.csv").mkdir()
    (case,) = find_cases(tmp_path)
    assert (case.patient, case.tables) == ("", ())


@pytest.mark.parametrize(
    "content, words",
    [
        ("id,patient\none,P1\n".encode("utf-16"), "cannot be read as CSV in UTF-8"),
        (b'id,patient\none,"P1\ntwo,P2\n', "cannot be read as CSV"),
        (b"id,patient\ntwo,P1\none\n", "line 3 "),
        (b"id,patient\ntwo,P1\n,P2\n", "line 3 "),
        (b'id,patient,note\none,P1,"two\nlines"\none,P2,\n', "line 4 "),
    ],
    ids=["UTF-16", "unclosed", "short", "no id", "two patients"],
)
def test_a_damaged_csv_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    touch_pairs(tmp_path, "one", "two")
    (tmp_path / "patients.csv").write_bytes(content)
    assert_refused(tmp_path, str(tmp_path / "patients.csv"), words)


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
