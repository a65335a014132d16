"""The patients of cases from tables beside the images."""

import codecs
import unicodedata
from pathlib import Path

import pytest
from helpers.layouts import (
    DIAGNOSES,
    ROWS,
    assert_refused,
    image_path,
    patients,
    touch,
    touch_pairs,
    touch_ph2,
    write_txt,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from seglab.core.errors import InputError
from seglab.data.layouts import find_cases

NOBODY = ("", "NA", "n/a", "NaN", "None", "null", "unknown", "-")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return touch_ph2(tmp_path / "PH2Dataset")


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
    for folder in (root, root.parent, image_path(root, "IMD003").parents[2]):
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
        b"image,pid\none,P1\na/two,P1\n",
        b"MRN;file name\nP1;one.jpg\nP1;a/two.jpg\n",
        b" image_name , patient ,age\n one , P1 ,3\n\n,,\n a/two , P1 ,4\n",
        b"lesion_id,patient,patient_id,name,image\nL1,x,P1,n,one\nL2,y,P1,m,a/two\n",
        b"id,patient\none,P1\none,P1\na/two,\na/two,P1\nthree,\n",
        b'isic_id,attribution,lesion_id\none,"Somebody, MD",P1\na/two,"Two\nlines",P1\n',
        b"Patient-ID;File Name\r\nP1;images\\a\\two.jpg\r\nP1;C:\\data\\one.JPG\r\n",
        b"id,filename,patient no\n1,one.jpg,P1\n2,two.jpg,P1\n",
        b"image,patient,lesion_id\none,P1,L1\na/two,NA,L1\nthree,n/a,\n",
        b'image,person,"remarks\n(long)"\none,P1,\na/two,P1,\n',
        b"image,patient_id\none,P1\na/two,P1\nthree,\n",
    ],
    ids=[
        *(
            "semicolons",
            "tabs",
            "pid",
            "MRN",
            "blanks",
            "preference",
            "twice alike",
            "quotes",
            "Windows",
        ),
        *("row numbers", "lesion of a patient", "long header", "missing"),
    ],
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
        (b'id,patient\none,"P1\ntwo,P2\n', "cannot be read as a table"),
        (b"id,patient\ntwo,P1\none\n", "line 3 "),
        (b"id,patient\ntwo,P1\n,P2\n", "line 3 "),
        (b'id,patient,note\none,P1,"two\nlines"\none,P2,\n', "line 4 "),
    ],
    ids=["unclosed", "short", "no id", "two patients"],
)
def test_a_damaged_csv_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    touch_pairs(tmp_path, "one", "two")
    (tmp_path / "patients.csv").write_bytes(content)
    assert_refused(tmp_path, str(tmp_path / "patients.csv"), words)


@pytest.mark.parametrize("name", ["HAM10000_metadata.tab", "HAM10000_metadata", "a.TSV", "b.txt"])
@pytest.mark.parametrize("folder", ["", "images", "metadata/more"])
def test_tables_are_found_by_their_columns(name: str, folder: str, tmp_path: Path) -> None:
    """Names and places as of HAM10000 on Dataverse, of ISIC, and of people's own data."""
    touch_pairs(tmp_path, "one", "a/two", "three")
    table = touch(tmp_path / folder / name)
    table.write_text('lesion_id\timage_id\tdx\n"P1"\t"one"\t"nv"\n"P1"\t"two"\t"nv"\n')
    cases = find_cases(tmp_path)
    assert patients(cases) == {"a/two": "P1", "one": "P1", "three": ""}
    assert cases[0].tables == (table,)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_a_table_reads_the_same_however_it_is_written(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    ids = ["one", "b/läsion 2", "a/(three).x", "four"]
    root = touch_pairs(tmp_path_factory.mktemp("written"), *ids)
    delimiter = data.draw(st.sampled_from([",", ";", "\t"]))
    end = data.draw(st.sampled_from(["\r", "\n", "\r\n"]))
    names = (
        ("image", "id"),
        ("Image ID", "Patient ID"),
        ("isic-id", "PATIENT_ID"),
        (" File", "patientID"),
    )
    header = data.draw(st.sampled_from(names))
    owners = data.draw(
        st.lists(st.sampled_from(["Ä1", "7", "x y", *NOBODY]), min_size=4, max_size=4)
    )
    is_swapped = data.draw(st.booleans())
    rows = [("image", "patient_id") if header[1] == "id" else header]
    for id, owner in zip(ids, owners, strict=True):
        cell = unicodedata.normalize(data.draw(st.sampled_from(["NFC", "NFD"])), id)
        cell = data.draw(st.sampled_from(["", "images/", "./", "/data/set/images/"])) + cell
        cell += data.draw(st.sampled_from(["", ".jpg", ".JPG", ".png"]))
        if data.draw(st.booleans()):
            cell = cell.replace("/", "\\")
        rows.append((cell, owner))
    lines = [delimiter.join(row[::-1] if is_swapped else row) for row in rows]
    text = end.join(lines) + data.draw(st.sampled_from(["", end]))
    codes = ["utf-8", "utf-8-sig", "utf-16"]
    if all(ord(c) < 256 for c in text):
        codes.append("latin-1")
    (root / "who.csv").write_bytes(text.encode(data.draw(st.sampled_from(codes))))
    named = {id: "" if who in NOBODY else who for id, who in zip(ids, owners, strict=True)}
    assert patients(find_cases(root)) == named


def test_a_lesion_stays_with_its_patient(tmp_path: Path) -> None:
    touch_pairs(tmp_path, *"abcd")
    (tmp_path / "isic.csv").write_text(
        "isic_id,patient_id,lesion_id\na,P1,L1\nb,,L1\nc,,L2\nd,,L3\nother,P4,L2\n"
    )
    named = {"a": "P1", "b": "P1", "c": "P4", "d": "L3"}
    assert patients(find_cases(tmp_path)) == named


def test_a_table_of_other_cases_is_refused(tmp_path: Path) -> None:
    touch_pairs(tmp_path, "b/one", "two")
    table = tmp_path / "meta.csv"
    table.write_text("image,patient_id\nIMG_1,P1\nIMG_2,P2\n")
    assert_refused(tmp_path, f"{table}: names patients, but of no case", "IMG_1", "b/one")
    table.write_text("image,patient_id\na/one,P1\nc/one,P2\n")  # no folders of the data
    assert_refused(tmp_path, f"{table}: names patients, but of no case")
    table.write_text("image,patient_id\n")
    assert patients(find_cases(tmp_path)) == {"b/one": "", "two": ""}


def test_tables_that_are_not_read_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = touch_pairs(tmp_path / "data", "one")
    (root / "demography.csv").write_text("patient_id,age\nP1,40\n")
    (root / "notes.csv").write_text("image,age of the patient\none,40\n")
    (root / "about.txt").write_text("Images of patients, 2019\n")
    (root / "hmnist.csv").write_text("pixel0000,pixel0001\n1,2\n")
    touch(root / "patients.xlsx")
    touch(root / "PH2_dataset.xlsx")
    (root / "titled.csv").write_text("Patients of 2019\nimage,patient\none,P1\n")
    (root / "bars.csv").write_text("image|patient\none|P1\n")
    (root / "german.csv").write_text("Bild,PID\none,P1\n")
    (root / "fats.csv").write_text("lipids,rapid_pid_test\n1,2\n")
    assert patients(find_cases(root)) == {"one": ""}
    messages = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(messages) == 6
    tables = (
        "demography.csv",
        "notes.csv",
        "titled.csv",
        "bars.csv",
        "german.csv",
        "patients.xlsx",
    )
    for name in tables:
        assert any(str(root / name) in message for message in messages), name
