"""Splits cases into train, val and test, and reads splits that were saved.

Two cases of the same picture or of the same patient are never in different subsets.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from seglab.core.errors import InputError, name_some
from seglab.core.files import hash_json, read_json
from seglab.data.cases import Case
from seglab.data.duplicates import merge_groups

Groups = list[list[Case]]  # cases of one patient or picture, which stay together


@dataclass(frozen=True)
class Split:
    """Case ids of train, val and test.

    Attributes:
        train: Ids to train on.
        val: Ids to choose checkpoint and threshold on; may be empty.
        test: Ids to score once.
        protocol: How the split was made, for readers.
        seed: The seed it was made with, None if it was written by hand.
        sha256: Hash of each case's image and mask file, by id.
        warnings: Where groups made a subset far larger or smaller than was asked; not saved.
    """

    train: list[str]
    val: list[str]
    test: list[str]
    protocol: str
    seed: int | None
    sha256: dict[str, str]
    warnings: tuple[str, ...] = field(default=(), compare=False)

    @property
    def hash(self) -> str:
        """SHA-256 of ids and contents: equal for equal splits of equal files."""
        return hash_json([self.train, self.val, self.test, self.sha256])

    def to_json(self) -> dict[str, Any]:
        """Converts the split to the content of `splits.json`."""
        return {k: v for k, v in asdict(self).items() if k != "warnings"} | {"hash": self.hash}


def make_split(
    cases: Sequence[Case],
    groups: Sequence[int],
    sha256: dict[str, str],
    *,
    val: float,
    test: float,
    seed: int,
    fold: int | None = None,
    folds: int = 5,
    train_share: float = 1,
) -> Split:
    """Splits cases, stratified by diagnosis.

    The cases are put in a sequence in which every stretch holds the diagnoses in proportion. The
    order within a diagnosis is that of hashes of seed and id, so it is the same on every machine
    and with every version of any library. Test is the first stretch of the sequence (or the
    fold), val the next. A group of cases that must stay together is passed over where it is
    larger than the share, and so goes to train. Every case is tested in one fold.

    Args:
        cases: All cases.
        groups: A number for each case, equal for equal pictures (`same_pictures`).
        sha256: Hash of each case's files, by id.
        val: Share of the cases outside test to hold out as val; 0 for none.
        test: Share of all cases to test, without folds; 0 for none.
        seed: Seed of the order.
        fold: Number of the fold to test, from 0; None to hold out the share `test`.
        folds: Number of folds.
        train_share: Share of what is left that train gets, the first of the sequence: a smaller
            share is part of a larger one. The rest is left out.

    Raises:
        InputError: There is no such fold, or there are too few cases for the shares or folds.
    """
    sequence = _order_groups(cases, groups, seed)
    n_test: float
    if fold is None:
        n_test = max(1, round(test * len(cases))) if test else 0
        tested, rest = _take(sequence, n_test)
        protocol = f"holdout, {test:.0%} test, {val:.0%} of the rest val"
    else:
        if fold >= folds:
            raise InputError(
                f"data.split.fold={fold} with data.split.folds={folds}: expected 0 to folds - 1"
            )
        n_test = len(cases) / folds
        cut = _cut_folds(sequence, folds)
        tested, rest = cut[fold], list(chain(*cut[fold + 1 :], *cut[:fold]))
        protocol = f"fold {fold} of {folds}, {val:.0%} of the rest val"
    n_val = max(1, round(val * sum(map(len, rest)))) if val else 0
    held_out, trained = _take(rest, n_val)
    if train_share < 1:
        trained = trained[: max(1, round(train_share * len(trained)))]
        protocol += f", {train_share:.4g} of what is left trains"
    split = Split(
        train=_sorted_ids(trained),
        val=_sorted_ids(held_out),
        test=_sorted_ids(tested),
        protocol=protocol,
        seed=seed,
        sha256=dict(sorted(sha256.items())),
    )
    is_too_small = not split.train or (n_test and not split.test)
    if is_too_small or (fold is not None and len(sequence) < folds):
        largest = max(sequence, key=len, default=[])
        reason = ""
        if len(largest) > 1:
            ids = name_some([case.id for case in largest])
            reason = f"; {ids} stay together: {_describe_reason(largest)}"
        raise InputError(
            f"{len(cases)} cases are too few, {len(sequence)} with those of one picture or patient "
            f"counted once, for {protocol}{reason}; add cases or change data.split"
        )
    warning = _describe_sizes(split, {"val": n_val, "test": n_test}, max(sequence, key=len))
    return replace(split, warnings=(warning,)) if warning else split


def load_split(
    path: str | Path, cases: Sequence[Case], groups: Sequence[int], sha256: dict[str, str]
) -> Split:
    """Reads a split that was saved or written by hand, and checks it against the data.

    It is JSON with lists of ids under 'train', 'val' (may be missing) and 'test'. Where it has
    'sha256', the contents of the files are compared, too. Cases, groups and hashes are those of
    `make_split`. Raises an InputError if the file is no split, an id is unknown or repeated, a
    case's files have changed, or cases of one picture or patient are in different subsets.
    """
    split = read_split(path)
    group_by_id = dict(zip((case.id for case in cases), merge_patients(cases, groups), strict=True))
    seen: set[str] = set()
    first: dict[int, tuple[str, str]] = {}  # id and subset of the first case of each group
    for subset in ("train", "val", "test"):
        for id in getattr(split, subset):
            if id not in sha256:
                raise InputError(f"{path}: case {id} of '{subset}' is not in the data; remove it")
            if split.sha256.get(id, sha256[id]) != sha256[id]:
                raise InputError(
                    f"{path}: case {id} is not the one that the split was made of (its files have "
                    "changed); restore its files, or remove 'sha256' from the split"
                )
            if id in seen:
                raise InputError(f"{path}: case {id} of '{subset}' is listed twice; list it once")
            seen.add(id)
            other, other_subset = first.setdefault(group_by_id[id], (id, subset))
            if other_subset != subset:
                raise InputError(
                    f"{path}: {other} in '{other_subset}' and {id} in '{subset}' are of the same "
                    "picture, or nearly, or of the same patient; move both to one side, or set "
                    "data.find_duplicates=false if the pictures differ"
                )
    return replace(split, sha256={id: sha256[id] for id in sorted(seen)})


def read_split(path: str | Path) -> Split:
    """Reads a split file without comparing it with the data; raises an InputError if it is none."""
    return _to_split(read_json(path), path)


def read_folds(path: str | Path) -> list[Split]:
    """Reads a split file as `read_split` does, or all folds of nnU-Net's splits_final.json.

    What nnU-Net calls val is tested out of fold, and so becomes test here. Raises an InputError if
    the file is neither, or two folds test the same case.
    """
    stored = read_json(path)
    if not isinstance(stored, list):
        return [_to_split(stored, path)]
    folds = [f if isinstance(f, dict) else {} for f in stored]
    splits = [_to_split({"train": f.get("train"), "test": f.get("val")}, path) for f in folds]
    times = Counter(id for split in splits for id in split.test)
    twice = [id for id, n in times.items() if n > 1]
    if twice or not splits:
        raise InputError(f"{path}: expected folds that test each case once, not {name_some(twice)}")
    return splits


def _to_split(stored: Any, path: str | Path) -> Split:
    if not isinstance(stored, dict):
        stored = {}
    subsets = {name: stored.get(name, []) for name in ("train", "val", "test")}
    sha256 = stored.get("sha256") or {}
    are_ids = all(
        isinstance(ids, list) and all(isinstance(id, str) for id in ids) for ids in subsets.values()
    )
    if not are_ids or not subsets["train"] or not subsets["test"] or not isinstance(sha256, dict):
        raise InputError(
            f"{path}: expected a saved split: lists of case ids under 'train', 'val' (may be "
            "missing) and 'test', and 'sha256' by id, if any"
        )
    return Split(
        train=sorted(subsets["train"]),
        val=sorted(subsets["val"]),
        test=sorted(subsets["test"]),
        protocol=str(stored.get("protocol", "from a file")),
        seed=stored.get("seed"),
        sha256=sha256,
    )


def _order_groups(cases: Sequence[Case], groups: Sequence[int], seed: int) -> Groups:
    """Orders groups of cases that must stay together, so that diagnoses are spread evenly."""
    members = defaultdict(list)
    for case, number in zip(cases, merge_patients(cases, groups), strict=True):
        members[number].append(case)
    strata = defaultdict(list)
    for group in members.values():
        group.sort(key=lambda case: case.id)
        strata[group[0].diagnosis].append(group)
    ranked = []
    for diagnosis, stratum in strata.items():
        stratum.sort(key=lambda group: hashlib.sha256(f"{seed}/{group[0].id}".encode()).digest())
        n = len(stratum)
        ranked += [((2 * i + 1) / (2 * n), diagnosis, group) for i, group in enumerate(stratum)]
    return [group for _, _, group in sorted(ranked, key=lambda entry: entry[:2])]


def merge_patients(cases: Sequence[Case], groups: Sequence[int]) -> list[int]:
    """Joins groups of equal pictures that share a patient: a number for each case, as `groups`."""
    merged = np.arange(len(cases))
    first: dict[int | str, int] = {}
    for i, (case, group) in enumerate(zip(cases, groups, strict=True)):
        for key in (group, case.patient):
            if key != "":
                merge_groups(merged, first.setdefault(key, i), i)
    return merged.tolist()


def _take(sequence: Groups, count: int) -> tuple[Groups, Groups]:
    """Takes about `count` cases from the head of a sequence of groups: what is taken, and the rest.

    Groups are taken whole until there are `count` cases. One that is larger than `count`, or would
    make too many cases, is passed over; where all are larger, the smallest is taken.
    """
    taken, rest, n_cases = [], [], 0
    for group in sequence:
        size = len(group)
        if n_cases >= count or size > count or n_cases + size > count + _tolerance(count):
            rest.append(group)
        else:
            taken.append(group)
            n_cases += size
    if count and rest and not taken:
        taken = [rest.pop(rest.index(min(rest, key=len)))]
    return taken, rest


def _cut_folds(sequence: Groups, folds: int) -> list[Groups]:
    """Cuts a sequence of groups into folds of as equally many cases as the groups allow.

    Groups of several cases go to the smallest fold, the largest group first. Single cases fill up:
    each fold gets a stretch of them. No fold is empty if there are as many groups as folds.
    """
    n = sum(map(len, sequence))
    ends = [round(i * n / folds) for i in range(folds + 1)]
    sizes = [0] * folds

    def choose_fold(size: int) -> int:
        """Adds a group to the smallest fold; of equal ones to one that is to get a case more."""
        fold = min(range(folds), key=lambda i: (sizes[i], ends[i] - ends[i + 1]))
        sizes[fold] += size
        return fold

    several = [i for i, group in enumerate(sequence) if len(group) > 1]
    # Groups of one size and diagnosis in turn, which spreads the diagnoses.
    several.sort(key=lambda i: (-len(sequence[i]), sequence[i][0].diagnosis))
    fold_of = {i: choose_fold(len(sequence[i])) for i in several}
    single = [i for i, group in enumerate(sequence) if len(group) == 1]
    fold_of |= zip(single, sorted(choose_fold(1) for _ in single), strict=True)
    cut: list[Groups] = [[] for _ in range(folds)]
    for i, group in enumerate(sequence):
        cut[fold_of[i]].append(group)
    return cut


def _tolerance(count: float) -> float:
    """Number of cases by which a subset of `count` cases may be larger or smaller."""
    return max(1, count / 2)


def _describe_sizes(split: Split, wanted: dict[str, float], largest: list[Case]) -> str:
    """Returns a warning if sizes are far from what was asked for, with the largest group."""
    sizes = {"val": len(split.val), "test": len(split.test)}
    if all(abs(sizes[name] - wanted[name]) <= _tolerance(wanted[name]) for name in sizes):
        return ""
    return (
        f"data.split: {len(split.train)} train, {sizes['val']} val, {sizes['test']} test, where "
        f"{wanted['val']:.3g} val and {wanted['test']:.3g} test were asked for, because "
        f"{len(largest)} cases ({name_some([case.id for case in largest])}) stay together: "
        f"{_describe_reason(largest)}; choose other shares or folds, or name a split of your own "
        "with data.split.file"
    )


def _describe_reason(group: list[Case]) -> str:
    """Says why cases stay together, and how to part them if they need not."""
    patients = {case.patient for case in group} - {""}
    if patients:
        return f"they are of patient {name_some(sorted(patients))}"
    return "their pictures are the same, or nearly (if they differ, set data.find_duplicates=false)"


def _sorted_ids(groups: Groups) -> list[str]:
    return sorted(case.id for group in groups for case in group)
