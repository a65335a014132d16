"""Splits: complete, disjoint, stratified, the same everywhere, and checked when they are read."""

import itertools
import json
import random
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seglab.core.errors import InputError
from seglab.core.files import write_json
from seglab.data.cases import Case
from seglab.data.splits import Split, load_split, make_split

KINDS = ("atypical nevus", "common nevus", "melanoma")
QUICK = settings(max_examples=60, deadline=None, derandomize=True, database=None)

SHARES = st.sampled_from([0.1, 0.2, 0.3, 0.5])
SEEDS = st.integers(0, 2**32)


def cases_of(counts: Sequence[int]) -> list[Case]:
    """`counts` cases of each diagnosis, sorted by id as a layout's function returns them."""
    kinds = [kind for kind, n in zip(KINDS, counts, strict=True) for _ in range(n)]
    random.Random(0).shuffle(kinds)
    return [Case(f"IMD{i:03}", Path(), Path(), kind) for i, kind in enumerate(kinds)]


def hashes_of(cases: Sequence[Case]) -> dict[str, str]:
    return {case.id: f"sha of {case.id}" for case in cases}


def split_of(cases: Sequence[Case], groups: Sequence[int] | None = None, **settings: Any) -> Split:
    settings = {"val": 0.1, "test": 0.1, "seed": 42} | settings
    groups = range(len(cases)) if groups is None else groups
    return make_split(cases, groups, hashes_of(cases), **settings)


def subsets(split: Split) -> tuple[list[str], list[str], list[str]]:
    return split.train, split.val, split.test


COUNTS = st.tuples(*[st.integers(0, 30)] * 3).filter(lambda counts: sum(counts) >= 10)


@QUICK
@given(COUNTS, SHARES, SHARES, SEEDS)
def test_parts_are_disjoint_and_cover_all(
    counts: tuple[int, int, int], val: float, test: float, seed: int
) -> None:
    cases = cases_of(counts)
    split = split_of(cases, val=val, test=test, seed=seed)
    assert sorted(sum(subsets(split), [])) == [case.id for case in cases]
    assert len(split.test) == round(test * len(cases))
    assert len(split.val) == max(1, round(val * (len(cases) - len(split.test))))
    assert all(subset == sorted(subset) for subset in subsets(split))
    assert split.sha256 == hashes_of(cases)
    assert split.seed == seed


@QUICK
@given(COUNTS, SHARES, SEEDS)
def test_test_is_stratified(counts: tuple[int, int, int], test: float, seed: int) -> None:
    cases = cases_of(counts)
    split = split_of(cases, test=test, seed=seed)
    kind = {case.id: case.diagnosis for case in cases}
    tested = Counter(kind[id] for id in split.test)
    for name, count in zip(KINDS, counts, strict=True):
        assert abs(tested[name] - count * len(split.test) / len(cases)) <= 1


def test_ph2s_proportions_hold_in_every_part() -> None:
    cases = cases_of((80, 80, 40))
    kind = {case.id: case.diagnosis for case in cases}

    def counts(ids: list[str]) -> list[int]:
        return [sum(kind[id] == name for id in ids) for name in KINDS]

    split = split_of(cases)
    assert [len(subset) for subset in subsets(split)] == [162, 18, 20]
    assert counts(split.test) == [8, 8, 4]
    assert np.abs(np.subtract(counts(split.val), [7.2, 7.2, 3.6])).max() < 1
    for fold in range(5):
        assert counts(split_of(cases, fold=fold).test) == [16, 16, 8]


@QUICK
@given(COUNTS, SEEDS, st.randoms(use_true_random=False), st.sampled_from([None, 0, 2]))
def test_the_order_of_the_cases_does_not_matter(
    counts: tuple[int, int, int], seed: int, shuffle: random.Random, fold: int | None
) -> None:
    cases = cases_of(counts)
    group = {case.id: i // 2 if i < 6 else i for i, case in enumerate(cases)}
    mixed = list(cases)
    shuffle.shuffle(mixed)
    splits = [split_of(c, [group[x.id] for x in c], seed=seed, fold=fold) for c in (cases, mixed)]
    assert splits[0] == splits[1]
    assert splits[0].hash == splits[1].hash
    assert list(splits[0].sha256) == list(splits[1].sha256)


@QUICK
@given(COUNTS, st.integers(2, 10), SEEDS, st.sampled_from([0, 0.1]))
def test_folds_test_every_case_once(
    counts: tuple[int, int, int], folds: int, seed: int, val: float
) -> None:
    cases = cases_of(counts)
    kind = {case.id: case.diagnosis for case in cases}
    splits = [split_of(cases, fold=i, folds=folds, seed=seed, val=val) for i in range(folds)]
    assert sorted(sum((split.test for split in splits), [])) == [case.id for case in cases]
    for split in splits:
        assert sorted(sum(subsets(split), [])) == [case.id for case in cases]
        assert abs(len(split.test) - len(cases) / folds) < 1
        assert bool(split.val) == bool(val)
        tested = Counter(kind[id] for id in split.test)
        for name, count in zip(KINDS, counts, strict=True):
            assert abs(tested[name] - count * len(split.test) / len(cases)) < 2
    assert len({split.protocol for split in splits}) == folds
    assert len({split.hash for split in splits}) == folds


@QUICK
@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 40)), min_size=30, max_size=40),
    SEEDS,
    st.integers(-1, 2),
)
def test_pictures_and_patients_are_never_parted(
    keys: list[tuple[int, int]], seed: int, fold: int
) -> None:
    """Nor are cases that are connected by pictures and patients in turn."""
    bare = cases_of((len(keys) - 9, 6, 3))
    # Half of the cases name a patient.
    cases = [
        replace(case, patient=f"P{name}" if name < 20 else "")
        for case, (_, name) in zip(bare, keys, strict=True)
    ]
    groups = [group for group, _ in keys]
    settings = {"fold": None if fold < 0 else fold, "folds": 3}
    try:
        split = split_of(cases, groups, seed=seed, test=0.2, **settings)
    except InputError as error:
        assert "too few" in str(error)
        return
    side = {id: name for name in ("train", "val", "test") for id in getattr(split, name)}
    assert sorted(side) == [case.id for case in cases]
    for i, one in enumerate(cases):
        for j, other in enumerate(cases[:i]):
            if groups[i] == groups[j] or one.patient == other.patient != "":
                assert side[one.id] == side[other.id]


SIZES = st.lists(st.sampled_from([1, 1, 1, 2, 3, 7, 40]), min_size=6, max_size=25)


def patients_of(sizes: Sequence[int]) -> list[Case]:
    """Cases c000, c001, ... of patients P0, P1, ... with so many cases each."""
    patients = [f"P{i}" for i, size in enumerate(sizes) for _ in range(size)]
    return [
        Case(f"c{i:03}", Path(), Path(), KINDS[i % 3], patient)
        for i, patient in enumerate(patients)
    ]


def check_patients_together(split: Split, cases: Sequence[Case]) -> None:
    side = {id: name for name in ("train", "val", "test") for id in getattr(split, name)}
    assert sorted(side) == [case.id for case in cases]
    assert len({(case.patient, side[case.id]) for case in cases}) == len({c.patient for c in cases})


@QUICK
@given(SIZES, st.integers(2, 6), SEEDS, st.randoms(use_true_random=False))
def test_folds_are_as_even_as_patients_allow(
    sizes: list[int], folds: int, seed: int, shuffle: random.Random
) -> None:
    cases = patients_of(sizes)
    mixed = shuffle.sample(cases, len(cases))
    splits = [split_of(mixed, fold=i, folds=folds, seed=seed, val=0) for i in range(folds)]
    assert sorted(sum((split.test for split in splits), [])) == [case.id for case in cases]
    share, tested = len(cases) / folds, [len(split.test) for split in splits]
    assert min(tested) > 0
    assert all(abs(n - share) < max(sizes) for n in tested)
    assert max(tested) - min(tested) <= max(sizes)
    for i, split in enumerate(splits):
        check_patients_together(split, cases)
        assert split == split_of(cases, fold=i, folds=folds, seed=seed, val=0)


@QUICK
@given(st.lists(st.integers(1, 12), min_size=3, max_size=7), SEEDS)
def test_the_largest_fold_is_near_the_smallest_possible(sizes: list[int], seed: int) -> None:
    cases = patients_of(sizes)
    largest = max(len(split_of(cases, fold=i, folds=3, seed=seed, val=0).test) for i in range(3))
    choices = itertools.product(range(3), repeat=len(sizes))
    optimum = min(max(np.bincount(choice, sizes)) for choice in choices)
    assert largest <= optimum * 4 / 3  # Graham 1969


@QUICK
@given(SIZES, SHARES, SHARES, SEEDS)
def test_shares_hold_as_far_as_patients_allow(
    sizes: list[int], val: float, test: float, seed: int
) -> None:
    cases = patients_of(sizes)
    try:
        split = split_of(cases, val=val, test=test, seed=seed)
    except InputError as error:
        # Few patients have nearly all cases.
        assert "too few" in str(error) and sum(sorted(sizes)[-3:]) > len(cases) / 2
        return
    check_patients_together(split, cases)
    for subset, count in (
        (split.test, max(1, round(test * len(cases)))),
        (split.val, max(1, round(val * (len(cases) - len(split.test))))),
    ):
        of_subset = Counter(case.patient for case in cases if case.id in subset)
        left = Counter(case.patient for case in cases if case.id in split.train)
        if len(subset) > max(count + 1, 1.5 * count):
            assert len(of_subset) == 1 and min(left.values()) >= len(subset)
            assert split.warnings
        elif len(subset) < count:
            # Each patient who is left has too many cases for what is missing.
            assert all(
                len(subset) + n > max(count + 1, 1.5 * count) or n > count for n in left.values()
            )


def test_a_patient_with_most_cases_is_trained_on() -> None:
    cases = patients_of([40] + [1] * 20)
    split = split_of(cases)
    assert [len(subset) for subset in subsets(split)] == [49, 5, 6]
    assert split.warnings == ()
    folds = [split_of(cases, fold=i) for i in range(5)]
    assert [len(fold.test) for fold in folds] == [40, 5, 5, 5, 5]
    (warning,) = folds[1].warnings
    words = (
        "49 train, 6 val, 5 test, where 6 val and 12 test",
        "40 cases (c000, c001, c002, c003, c004 and 35 more) stay together: they are of patient P0",
        "data.split.file",
    )
    assert all(word in warning for word in words)
    assert "find_duplicates" not in warning
    assert "18 train, 2 val, 40 test, where 2 val and 12 test" in folds[0].warnings[0]
    assert "warnings" not in folds[1].to_json()
    # One picture of many encodings is no other than a patient.
    bare = [replace(case, patient="") for case in cases]
    (other,) = split_of(bare, [0] * 40 + [*range(1, 21)], fold=1).warnings
    assert "data.find_duplicates=false" in other


def test_where_all_patients_are_larger_than_a_share_one_is_tested() -> None:
    split = split_of(patients_of([20, 15, 18, 20]), test=0.1, val=0)
    assert [len(subset) for subset in subsets(split)] == [58, 0, 15]
    assert "15 test, where 0 val and 7 test were asked for" in split.warnings[0]


@QUICK
@given(COUNTS, SEEDS, st.sampled_from([None, 0, 3]), SHARES)
def test_nothing_is_said_of_cases_without_groups(
    counts: tuple[int, int, int], seed: int, fold: int | None, share: float
) -> None:
    assert not split_of(cases_of(counts), seed=seed, fold=fold, test=share, val=share).warnings


def with_patients(**patient: str) -> list[Case]:
    return [replace(case, patient=patient.get(case.id, "")) for case in GOLDEN_CASES]


def test_pictures_and_patients_together() -> None:
    """a1 is the same picture as m0, and m0 is of the patient of c4: all three stand where a1 did.

    c's five and m's one are left: c3 1/10, a1 1/8, c0 3/10, ...
    """
    groups = [0 if case.id in ("a1", "m0") else i + 1 for i, case in enumerate(GOLDEN_CASES)]
    cases = with_patients(m0="P", c4="P", a2="Q")
    split = make_split(cases, groups, hashes_of(cases), val=0, test=0.3, seed=42)
    assert split.test == ["a1", "c3", "c4", "m0"]
    with pytest.raises(InputError, match="12 cases are too few, 10 with"):
        make_split(cases, groups, hashes_of(cases), val=0, test=0, seed=42, fold=0, folds=11)


# Worked by hand. Within a diagnosis cases stand by SHA-256 of 'seed/id', for seed 42:
#   common nevus    c3 0f08, c0 2e07, c4 517e, c5 849e, c2 d66b, c1 d79d
#   atypical nevus  a1 2cf0, a2 361c, a0 a72a, a3 bdbc
#   melanoma        m1 39dd, m0 5d05
# and the i-th of n stands at (i + 1/2) / n, so one behind the other (by name at a tie):
#   c3 1/12, a1 1/8, c0 1/4, m1 1/4, a2 3/8, c4 5/12, c5 7/12, a0 5/8, c2 3/4, m0 3/4, a3 7/8, c1
GOLDEN_CASES = [
    Case(f"{kind[0]}{i}", Path(), Path(), kind)
    for kind, n in (("atypical nevus", 4), ("common nevus", 6), ("melanoma", 2))
    for i in range(n)
]
GOLDEN_FOLDS = [["a1", "c3"], ["a2", "c0", "m1"], ["c4", "c5"], ["a0", "c2", "m0"], ["a3", "c1"]]


def test_the_golden_split() -> None:
    split = split_of(GOLDEN_CASES, val=0.25, test=0.25)
    assert split.test == ["a1", "c0", "c3"]
    assert split.val == ["a2", "m1"]
    assert split.train == ["a0", "a3", "c1", "c2", "c4", "c5", "m0"]
    folds = [split_of(GOLDEN_CASES, val=0.2, fold=i, folds=5) for i in range(5)]
    assert [split.test for split in folds] == GOLDEN_FOLDS
    assert folds[1].val == ["c4", "c5"]
    assert folds[4].val == ["a1", "c3"]
    # a1 and c4 as one picture stand where a1 stood; c's five are left: c3 1/10, c0 3/10, ...
    groups = [0 if case.id in ("a1", "c4") else i + 1 for i, case in enumerate(GOLDEN_CASES)]
    assert split_of(GOLDEN_CASES, groups, val=0, test=0.25).test == ["a1", "c3", "c4"]


def test_every_process_makes_the_same_split(
    start_python: Callable[..., subprocess.Popen[str]],
) -> None:
    code = (
        "import json; from pathlib import Path; from seglab.data.cases import Case; "
        "from seglab.data.splits import make_split; "
        "kinds = {'a': 'atypical nevus', 'c': 'common nevus', 'm': 'melanoma'}; "
        "ids = {id for id in 'a0 a1 a2 a3 c0 c1 c2 c3 c4 c5 m0 m1'.split()}; "
        "cases = [Case(id, Path(), Path(), kinds[id[0]]) for id in ids]; "
        "sha256 = {id: f'sha of {id}' for id in ids}; "
        "split = make_split(cases, range(12), sha256, val=0.25, test=0.25, seed=42); "
        "print(json.dumps(split.to_json()))"
    )
    processes = [start_python(code, PYTHONHASHSEED=seed) for seed in ("0", "1", "77")]
    outputs = {process.communicate(timeout=60)[0] for process in processes}
    assert len(outputs) == 1
    expected = split_of(GOLDEN_CASES, val=0.25, test=0.25).to_json()
    assert json.loads(outputs.pop()) == expected


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"val": 1}, "12 cases are too few"),
        ({"fold": 5, "folds": 5}, "data.split.fold=5"),
        ({"fold": 0, "folds": 13}, "12 cases are too few"),
        ({"test": 0.99}, "99% test"),
        ({"val": 0.99}, "99% of the rest val"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        split_of(GOLDEN_CASES, **settings)
    for n in (0, 2):
        with pytest.raises(InputError, match=f"{n} cases are too few"):
            split_of(GOLDEN_CASES[:n])


@pytest.fixture
def split() -> Split:
    return split_of(GOLDEN_CASES, val=0.25, test=0.25)


def load(
    path: Path,
    groups: Sequence[int] = range(12),
    sha256: dict[str, str] | None = None,
    cases: Sequence[Case] = GOLDEN_CASES,
) -> Split:
    return load_split(path, cases, groups, sha256 or hashes_of(GOLDEN_CASES))


def refused(stored: Any, tmp_path: Path, *words: str, **data: Any) -> None:
    path = tmp_path / "splits.json"
    write_json(path, stored)
    with pytest.raises(InputError, match=rf"\A{path}: .*\Z") as caught:
        load(path, **data)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("settings", [{}, {"val": 0}, {"fold": 3, "folds": 4}])
def test_a_saved_split_comes_back(settings: dict[str, Any], tmp_path: Path) -> None:
    split = split_of(GOLDEN_CASES, **settings)
    write_json(tmp_path / "splits.json", split.to_json())
    loaded = load(tmp_path / "splits.json")
    assert loaded == split
    assert loaded.hash == split.hash
    assert loaded.to_json() == split.to_json()


def test_the_hash_names_ids_and_contents(split: Split) -> None:
    assert replace(split, protocol="another", seed=None).hash == split.hash
    assert replace(split, test=split.test[1:]).hash != split.hash
    assert replace(split, train=split.test, test=split.train).hash != split.hash
    assert replace(split, sha256=split.sha256 | {"c3": "other"}).hash != split.hash
    assert split.to_json()["hash"] == split.hash


def test_a_split_written_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{"train": ["c5", "a0"], "test": ["m1"]}')
    split = load(path)
    assert subsets(split) == (["a0", "c5"], [], ["m1"])
    assert split.seed is None
    assert split.sha256 == {id: f"sha of {id}" for id in ("a0", "c5", "m1")}


def test_unknown_and_repeated_cases_are_refused(split: Split, tmp_path: Path) -> None:
    stored = split.to_json()
    refused(stored | {"val": ["a2", "IMD999"]}, tmp_path, "IMD999", "'val'")
    refused(stored | {"val": ["a2", "c3"]}, tmp_path, "c3", "'test'")
    refused(stored | {"val": ["a2", "a2"]}, tmp_path, "a2", "'val'")


def test_equal_pictures_and_patients_on_two_sides_are_refused(split: Split, tmp_path: Path) -> None:
    groups = list(range(12))
    ids = [case.id for case in GOLDEN_CASES]
    words = ("m0 in 'train' and c0 in 'test' are of the same picture, or nearly, or of the same",)
    refused(split.to_json(), tmp_path, *words, cases=with_patients(m0="P7", c0="P7", a2="Q"))
    groups[ids.index("c0")] = groups[ids.index("m0")]
    refused(split.to_json(), tmp_path, *words, groups=groups)
    # Kept together by a case that the split leaves out.
    stored = {"train": ["a0", "m0"], "test": ["c1"]}
    cases = with_patients(c0="P7", c1="P7")
    refused(stored, tmp_path, "m0 in 'train' and c1 in 'test'", cases=cases, groups=groups)
    # Each on one side.
    cases = with_patients(c0="P7", c3="P7", a2="Q", m1="Q")
    groups[ids.index("c0")] = groups[ids.index("c3")]
    write_json(tmp_path / "splits.json", split.to_json())
    assert load(tmp_path / "splits.json", cases=cases, groups=groups) == split


def test_changed_contents_are_refused(split: Split, tmp_path: Path) -> None:
    sha256 = hashes_of(GOLDEN_CASES) | {"a2": "another"}
    refused(split.to_json(), tmp_path, "a2", "changed", sha256=sha256)
    without = {k: v for k, v in split.to_json().items() if k != "sha256"}
    write_json(tmp_path / "splits.json", without)
    assert load(tmp_path / "splits.json", sha256=sha256).sha256 == sha256


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        '{"train": ["c0"]}',
        '{"train": [], "test": ["c0"]}',
        '{"train": ["c0"], "test": [1]}',
        '{"train": ["c0"], "test": ["c1"], "val": {"c2": 1}}',
        '{"train": ["c0"], "test": ["c1"], "sha256": "abc"}',
        "train: [c0]",
    ],
)
def test_what_is_no_split_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "splits.json"
    path.write_text(content)
    with pytest.raises(InputError, match=rf"\A{path}: .*\Z"):
        load(path)


@QUICK
@given(COUNTS, SHARES, SEEDS, st.integers(-1, 2), st.booleans())
def test_a_share_of_train_is_part_of_a_larger_one(
    counts: tuple[int, int, int], val: float, seed: int, fold: int, grouped: bool
) -> None:
    cases = cases_of(counts)
    groups = [i // 3 for i in range(len(cases))] if grouped else range(len(cases))
    settings = {"fold": None if fold < 0 else fold, "folds": 3, "val": val, "seed": seed}
    whole = split_of(cases, groups, **settings)
    assert split_of(cases, groups, train_share=1, **settings) == whole
    larger = set(whole.train)
    for share in (0.75, 0.5, 0.25, 0.01):
        split = split_of(cases, groups, train_share=share, **settings)
        assert (split.val, split.test) == (whole.val, whole.test)
        assert split.train and set(split.train) <= larger
        larger = set(split.train)
        n_groups = len({groups[cases.index(case)] for case in cases if case.id in whole.train})
        kept = {groups[cases.index(case)] for case in cases if case.id in larger}
        assert len(kept) == max(1, round(share * n_groups))


def test_a_share_of_train_has_all_diagnoses() -> None:
    cases = cases_of((40, 40, 20))
    split = split_of(cases, val=0, fold=2, train_share=0.25)
    kinds = Counter(case.diagnosis for case in cases if case.id in split.train)
    assert [kinds[kind] for kind in KINDS] == pytest.approx([8, 8, 4], abs=1)
    assert split.protocol == "fold 2 of 5, 0% of the rest val, 0.25 of what is left trains"
