"""compare --only-cases: rows cut to the test cases that a file names, by hand."""

import csv
import json
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.fake_runs import (
    CASES,
    SEEDS,
    assert_values,
    by_hand,
    cases_of,
    contents,
    read_table,
    write_run,
    write_sets_run,
    write_sweep,
)
from helpers.tiny import Ended

from seglab.analysis.compare import compare
from seglab.analysis.selection import read_case_ids
from seglab.core.files import write_json

Script = Callable[..., Ended]
pytestmark = pytest.mark.usefixtures("few_resamples", "no_figures")


def write_ids(folder: Path, *lines: str) -> Path:
    (folder / "hard.txt").write_text("".join(f"{line}\n" for line in lines))
    return folder / "hard.txt"


def test_tables_are_of_the_cases_in_the_file_alone(tmp_path: Path, script: Script) -> None:
    root, out, all_out = write_sweep(tmp_path / "runs"), tmp_path / "out", tmp_path / "all"
    ids = ["C1", "C2", "C7"]
    file = write_ids(tmp_path, "# blurred", "C7", "", "  C2", "C1", "C7")
    options = ("--versus", "unet", "otsu", "--power", "--slices", "--by-diagnosis", "--out")
    ended = script("compare", root, *options, out, "--only-cases", file)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("3 of 9 test cases, those of hard.txt; 2 folds, each case out of ")
    assert "if cases were selected by their scores, intervals and p values do not" in ended.out
    table = read_table(out / "table.csv")
    for name, seeds in (("UNet", SEEDS), ("SegNet", SEEDS), ("otsu", (0,))):
        values = by_hand(name, seeds, ids)
        assert_values(table[name], values)
        assert (table[name]["n"], table[name]["ece"]) == ("3", "")
        assert_values(table[f"{name}, melanoma"], by_hand(name, seeds, ["C2"]))
    (test,) = csv.DictReader((out / "versus.csv").open(newline=""))
    unet, otsu = (
        statistics.mean(by_hand(who, seeds, ids)["dice_per_image"])
        for who, seeds in (("UNet", SEEDS), ("otsu", (0,)))
    )
    assert (test["n"], float(test["difference"])) == ("3", pytest.approx(unet - otsu))
    (power,) = csv.DictReader((out / "power.csv").open(newline=""))
    assert power["n"] == "3"
    slices = [*csv.DictReader((out / "slices.csv").open(newline=""))]
    assert {(s["slice"], s["n"]) for s in slices} == {("common nevus", "2"), ("melanoma", "1")}
    script("compare", root, *options, all_out)
    assert contents(out)["runs.csv"] == contents(all_out)["runs.csv"]
    # All of them are the table as it is, but for what is stored for all cases together.
    every = write_ids(tmp_path, *CASES)
    script("compare", root, *options, out, "--only-cases", every)
    expected = read_table(all_out / "table.csv")
    found = read_table(out / "table.csv")
    assert expected["UNet"].pop("ece")
    assert not found["UNet"].pop("ece")
    assert found["UNet"] | {"ece_sd": ""} == expected["UNet"] | {"ece_sd": ""}
    assert found["otsu"] == expected["otsu"]


def test_seeds_are_complete_by_all_cases(tmp_path: Path) -> None:
    root, out = write_sweep(tmp_path / "runs", ("UNet",)), tmp_path / "out"
    shutil.rmtree(root / "UNet-1-1")
    ids = cases_of(0)[:3]
    text = compare([root], only_cases=write_ids(tmp_path, *ids), out=out)
    record = read_table(out / "table.csv")["baseline, UNet"]
    # Seed 1 has these cases, and lacks others.
    assert_values(record, by_hand("UNet", (0, 2), ids))
    assert record["status"] == "incomplete"
    assert "left out of the values, as incomplete: seed 1 (5 of 9 cases)" in text
    assert text.startswith("3 of 9 test cases, those of hard.txt; ")


def test_a_case_is_chosen_wherever_its_files_are(tmp_path: Path) -> None:
    runs, out = tmp_path / "runs", tmp_path / "out"
    write_run(runs / "one")
    sets = {"ph2": CASES, "isic": {"D1": "", "D2": ""}}
    write_sets_run(runs / "two", sets, model="SegNet")
    ids = ["C0", "C3"]
    file = write_ids(tmp_path, *ids)
    pairs = [("UNet", "SegNet, set=ph2")]
    text = compare([runs], only_cases=file, versus=pairs, slices=True, out=out)
    table = read_table(out / "table.csv")
    assert_values(table["UNet"], by_hand("UNet", (0,), ids))
    assert_values(table["SegNet, set=ph2"], by_hand("SegNet", (0,), ids))
    isic = table["SegNet, set=isic"]
    assert (isic["n"], isic["dice_per_image"], isic["status"]) == ("0", "", "finished")
    (test,) = csv.DictReader((out / "versus.csv").open(newline=""))
    assert test["n"] == "2"
    assert text.startswith("0 to 2 of 2 to 9 test cases, those of hard.txt; ")


def test_of_two_cases_with_the_same_files_one_can_be_chosen(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs" / "a")
    split = json.loads((run / "splits.json").read_text())
    split["sha256"]["C1"] = split["sha256"]["C0"]
    write_json(run / "splits.json", split)
    out = tmp_path / "out"
    compare([run], only_cases=write_ids(tmp_path, "C1"), out=out)
    assert_values(read_table(out / "table.csv")["baseline, UNet"], by_hand("UNet", (0,), ["C1"]))


@pytest.mark.parametrize("start", ["id,diagnosis\n", "\ufeffid\n", "# mine\n\nid\n"])
def test_a_table_names_cases_in_its_first_column(tmp_path: Path, start: str) -> None:
    rows = "".join(f"{id}{',x' * ('diag' in start)}\n" for id in ("C1", '"C,2"', "C1"))
    (tmp_path / "cases.csv").write_text(start + rows, "utf-8")
    assert read_case_ids(tmp_path / "cases.csv") == {"C1", "C,2"}


def test_files_that_name_no_case(tmp_path: Path, script: Script) -> None:
    write_run(tmp_path / "runs" / "a")
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00")
    unknown = [f"X{i}" for i in range(9)]
    for file, words in (
        (write_ids(tmp_path, "C1", *unknown), "no row has X0, X1, X2, X3, X4 and 4 more; expected"),
        (tmp_path / "none.txt", "no such file"),
        (binary, "cannot be read as text"),
        (tmp_path, "cannot be read as text"),
    ):
        ended = script("compare", tmp_path / "runs", "--only-cases", file)
        assert (ended.code, ended.out, ended.err.count("\n")) == (1, "", 1)
        assert str(file) in ended.err
        assert words in ended.err
    for lines in ((), ("# none", ""), ("id",)):
        ended = script("compare", tmp_path / "runs", "--only-cases", write_ids(tmp_path, *lines))
        assert (ended.code, ended.err.count("\n")) == (1, 1)
        assert "holds no id; expected ids of test cases, one a line" in ended.err
