"""Slices of cases, against masks made by hand, SciPy's tests, and runs that the tests write."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from helpers.fake_runs import HOSTILE, counts_of, write_run
from helpers.tiny import Ended

from seglab.analysis import statistics
from seglab.analysis.compare import compare
from seglab.analysis.results import load_results
from seglab.analysis.slices import make_slices
from seglab.core.files import write_csv
from seglab.runs.tables import CaseKey

Script = Callable[..., Ended]
CASES = {f"C{i:02}": ("common nevus", "melanoma")[i % 3 == 2] for i in range(60)}


def cut(attribute: str, values: list[object]) -> dict[str, list[int]]:
    """Numbers of the members of each slice by its name."""
    texts = {f"C{i}": {attribute: str(v)} if v != "" else {} for i, v in enumerate(values)}
    slices = make_slices([CaseKey(id, "", "unknown") for id in texts], texts)
    known = np.array([value != "" for value in values])
    for part in slices:
        assert part.attribute == attribute
        assert (part.members ^ part.others == known).all()
    return {part.name: np.flatnonzero(part.members).tolist() for part in slices}


def test_texts_and_few_numbers_are_slices_as_they_are() -> None:
    assert cut("veil", ["b", "a", "", "b"]) == {"a": [1], "b": [0, 3]}
    assert cut("colours", [10, 2, 2, 1, 3]) == {"1": [3], "2": [1, 2], "3": [4], "10": [0]}
    assert cut("veil", ["a", "a", ""]) == {}
    assert cut("name", [f"text {i}" for i in range(13)]) == {}


def test_many_numbers_are_cut_into_thirds() -> None:
    values = [0.9, 0.1, 0.3, "", 0.5, 0.7, 0.2, 0.8, 0.4, 0.6]
    assert cut("contrast", values) == {
        "up to 0.367": [1, 2, 6],
        "0.367 to 0.633": [4, 8, 9],
        "above 0.633": [0, 5, 7],
    }
    mostly = [0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6]
    assert [len(members) for members in cut("age", mostly).values()] == [8, 1, 5]
    assert cut("age", [0] * 20 + mostly[8:]) == {
        "up to 0": [*range(20)],
        "above 0": [*range(20, 26)],
    }


def test_some_attributes_have_a_fixed_bound() -> None:
    assert cut("hair", [0.0, 0.005, 0.006, 0.2]) == {"up to 0.005": [0, 1], "above 0.005": [2, 3]}
    assert cut("pieces", [1, 3, 1, 2]) == {"up to 1": [0, 2], "above 1": [1, 3]}
    assert cut("frame_share", [0.0, 0.0]) == {}


@pytest.fixture
def three_slices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values of 30 cases; members and others of slices: one disjoint from unknown cases."""
    values = np.random.default_rng(1).beta(8, 1, 30)
    members = np.arange(30) < np.array([[10], [20], [12]])
    others = ~members
    others[2, 25:] = False
    values[:10] -= 0.1
    return values, members, others


def test_intervals_of_slices_are_scipys(
    three_slices: tuple[np.ndarray, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 999)
    values, members, others = three_slices
    found = statistics.compare_slices(*three_slices)
    for test, inside, outside in zip(found, members, others, strict=True):

        def mean(drawn: np.ndarray, chosen: np.ndarray = inside) -> float:
            return values[drawn[chosen[drawn]]].mean()

        def difference(drawn: np.ndarray, rest: np.ndarray = outside) -> float:
            return mean(drawn) - mean(drawn, rest)

        ends = [
            scipy.stats.bootstrap(
                (np.arange(30),),
                statistic,
                n_resamples=999,
                vectorized=False,
                random_state=np.random.default_rng(0),
            ).confidence_interval
            for statistic in (mean, difference)
        ]
        assert (test.low, test.high) == pytest.approx(ends[0], abs=1e-6)
        assert (test.difference_low, test.difference_high) == pytest.approx(ends[1], abs=1e-6)
        assert test.difference == pytest.approx(values[inside].mean() - values[outside].mean())


def test_p_of_slices_is_that_of_scipys_test(three_slices: tuple[np.ndarray, ...]) -> None:
    values, members, others = three_slices
    found = statistics.compare_slices(*three_slices)
    for test, inside, outside in zip(found[:2], members, others, strict=False):
        plain = scipy.stats.permutation_test(
            (values[inside], values[outside]),
            lambda a, b, axis: a.mean(axis) - b.mean(axis),
            vectorized=True,
            n_resamples=29_999,
            random_state=np.random.default_rng(2),
        )
        assert test.p == pytest.approx(plain.pvalue, rel=0.15, abs=0.005)
    assert found[0].p < 0.01


def test_p_of_few_cases_is_nearly_exact() -> None:
    # Of the 20 choices of 3 of 6 cases one has a sum as small as 1 + 2 + 3, and one as large.
    values, members = np.array([1.0, 2, 3, 4, 5, 6]), np.arange(6)[None] < 3
    (test,) = statistics.compare_slices(values, members, ~members)
    assert test.difference == pytest.approx(-3)
    assert test.p == pytest.approx(2 / 20, abs=0.01)
    members = np.arange(40)[None] < 20
    (constant,) = statistics.compare_slices(np.full(40, 0.3), members, ~members)
    assert constant == pytest.approx((0.3, 0.3, 0, 0, 0, 1))


def test_batches_change_nothing(
    three_slices: tuple[np.ndarray, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = statistics.compare_slices(*three_slices)
    monkeypatch.setattr(statistics, "BATCH_SIZE", 100 * 30)
    assert statistics.compare_slices(*three_slices) == at_once


def test_where_nothing_differs_one_test_in_twenty_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 999)
    random = np.random.default_rng(3)
    members = random.permuted(np.tile(np.arange(40) < 15, (400, 1)), axis=1)
    tests = statistics.compare_slices(random.beta(8, 1, 40), members, ~members)
    assert 0.03 < np.mean([test.p <= 0.05 for test in tests]) < 0.07


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A row of two folds, with a third attribute unknown in the second fold."""
    for fold in (0, 1):
        run = write_run(tmp_path / "runs" / f"f{fold}", fold=fold, cases=CASES, varies={"a": 1})
        rows = []
        for id in list(CASES)[fold::2]:
            tp, fp, fn, _ = counts_of("UNet", 0, id)
            row = {"id": id, "contrast": f"{2 * tp / (2 * tp + fp + fn)}"}
            row |= {"pieces": 1 + (id == "C07"), "lens": HOSTILE if fold else ""}
            rows.append(row)
        write_csv(run / "case_attributes.csv", rows)
    return tmp_path / "runs"


def dice_of(id: str) -> float:
    tp, fp, fn, _ = counts_of("UNet", 0, id)
    return 2 * tp / (2 * tp + fp + fn)


@pytest.mark.usefixtures("no_figures")
def test_compare_shows_slices(runs: Path, tmp_path: Path, script: Script) -> None:
    ended = script("compare", runs, "--slices", "--out", tmp_path / "out")
    assert (ended.code, ended.err) == (0, "")
    table = ended.out.split("\n\n", 2)[2]
    assert "dice_per_image by slices of the test cases" in ended.out
    for text in (
        "above 1",
        "1*",
        "* fewer than 10 cases",
        "p (Holm) below 0.05: contrast up to ",
    ):
        assert text in table
    with (tmp_path / "out" / "slices.csv").open(newline="") as text:
        records = list(csv.DictReader(text))
    assert [(r["attribute"], r["slice"], r["n"]) for r in records[:2]] == [
        ("diagnosis", "common nevus", "40"),
        ("diagnosis", "melanoma", "20"),
    ]
    means = {
        diagnosis: np.mean([dice_of(id) for id, other in CASES.items() if other == diagnosis])
        for diagnosis in ("common nevus", "melanoma")
    }
    assert [float(r["value"]) for r in records[:2]] == pytest.approx([*means.values()])
    assert float(records[1]["difference"]) == pytest.approx(
        means["melanoma"] - means["common nevus"]
    )
    # Of two slices one is tested; the thirds of contrast, which is Dice here, are three tests.
    assert [bool(r["p_holm"]) for r in records] == [False, True, True, True, True, False, False]
    p = [float(r["p"]) for r in records if r["p_holm"]]
    corrected = scipy.stats.false_discovery_control(p)  # Benjamini-Hochberg: below Holm's
    found = [float(r["p_holm"]) for r in records if r["p_holm"]]
    assert found == pytest.approx(statistics.correct_holm(p))
    assert (np.array(found) >= corrected).all()
    assert {f"slices.{suffix}" for suffix in ("md", "tex", "csv")} < {
        path.name for path in (tmp_path / "out").iterdir()
    }
    script("compare", runs, "--out", tmp_path / "out")
    assert not list((tmp_path / "out").glob("slices.*"))


def test_another_metric_and_runs_without_attributes(runs: Path) -> None:
    text = compare([runs], slices=True, metric="hd95")
    assert "hd95 by slices" in text
    for file in runs.glob("*/case_attributes.csv"):
        file.unlink()
    text = compare([runs], slices=True)
    assert "diagnosis  common nevus" in text
    assert "contrast" not in text


def test_results_hold_attributes(runs: Path) -> None:
    cases = load_results(runs).cases
    assert [case["contrast"] for case in cases] == [dice_of(case["id"]) for case in cases]
    assert {case["lens"] for case in cases} == {None, HOSTILE}


def test_damaged_attributes_are_named(runs: Path, script: Script) -> None:
    file = runs / "f0" / "case_attributes.csv"
    file.write_text("name,contrast\nC00,1\n")
    ended = script("compare", runs, "--slices")
    assert ended.code == 1
    assert ended.err.startswith(f"error: {file}: damaged")
