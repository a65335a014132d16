"""Splits cases into train, val and test, and reads splits that were saved.

Two cases of the same picture or of the same patient are never in different subsets.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from seglab.core.errors import InputError
from seglab.core.files import hash_json, read_json
from seglab.data.cases import Case
from seglab.data.duplicates import merge_groups


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
    """

    train: list[str]
    val: list[str]
    test: list[str]
    protocol: str
    seed: int | None
    sha256: dict[str, str]

    @property
    def hash(self) -> str:
        """SHA-256 of ids and contents: equal for equal splits of equal files."""
        return hash_json([self.train, self.val, self.test, self.sha256])

    def to_json(self) -> dict[str, Any]:
        """Converts the split to the content of `splits.json`."""
        return asdict(self) | {"hash": self.hash}


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
) -> Split:
    """Splits cases, stratified by diagnosis.

    The cases are put in a sequence in which every stretch holds the diagnoses in proportion. The
    order within a diagnosis is that of hashes of seed and id, so it is the same on every machine
    and with every version of any library. Test is the first stretch of the sequence (or the
    fold's), val the next.

    Args:
        cases: All cases.
        groups: A number for each case, equal for equal pictures (`same_pictures`).
        sha256: Hash of each case's files, by id.
        val: Share of the cases outside test to hold out as val; 0 for none.
        test: Share of all cases to test, without folds.
        seed: Seed of the order.
        fold: Number of the fold to test, from 0; None to hold out the share `test`.
        folds: Number of folds.

    Raises:
        InputError: There is no such fold, or there are too few cases for the shares or folds.
    """
    sequence = _order_groups(cases, groups, seed)
    if fold is None:
        tested, rest = _cut(sequence, max(1, round(test * len(cases))))
        protocol = f"holdout, {test:.0%} test, {val:.0%} of the rest val"
    else:
        if fold >= folds:
            raise InputError(
                f"data.split.fold={fold} with data.split.folds={folds}: expected 0 to folds - 1"
            )
        starts = [round(i * len(sequence) / folds) for i in range(folds + 1)]
        tested = sequence[starts[fold] : starts[fold + 1]]
        rest = sequence[starts[fold + 1] :] + sequence[: starts[fold]]
        protocol = f"fold {fold} of {folds}, {val:.0%} of the rest val"
    n_rest = sum(map(len, rest))
    held_out, trained = _cut(rest, max(1, round(val * n_rest)) if val else 0)
    split = Split(
        train=_sorted_ids(trained),
        val=_sorted_ids(held_out),
        test=_sorted_ids(tested),
        protocol=protocol,
        seed=seed,
        sha256=dict(sorted(sha256.items())),
    )
    if not split.train or not split.test or (fold is not None and len(sequence) < folds):
        raise InputError(
            f"{len(cases)} cases are too few, {len(sequence)} with those of one picture or patient "
            f"counted once, for {protocol}; add cases or change data.split"
        )
    return split


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
    group_by_id = dict(
        zip((case.id for case in cases), _merge_patients(cases, groups), strict=True)
    )
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
                    "picture, or nearly, or of the same patient; move both to one side"
                )
    return replace(split, sha256={id: sha256[id] for id in sorted(seen)})


def read_split(path: str | Path) -> Split:
    """Reads a split file without comparing it with the data; raises an InputError if it is none."""
    stored = read_json(path)
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
        **{name: sorted(ids) for name, ids in subsets.items()},
        protocol=str(stored.get("protocol", "from a file")),
        seed=stored.get("seed"),
        sha256=sha256,
    )


def _order_groups(cases: Sequence[Case], groups: Sequence[int], seed: int) -> list[list[Case]]:
    """Orders groups of cases that must stay together, so that diagnoses are spread evenly."""
    members = defaultdict(list)
    for case, number in zip(cases, _merge_patients(cases, groups), strict=True):
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


def _merge_patients(cases: Sequence[Case], groups: Sequence[int]) -> list[int]:
    """Joins groups of equal pictures that share a patient: a number for each case, as `groups`."""
    merged = np.arange(len(cases))
    first: dict[int | str, int] = {}
    for i, (case, group) in enumerate(zip(cases, groups, strict=True)):
        for key in (group, case.patient):
            if key != "":
                merge_groups(merged, first.setdefault(key, i), i)
    return merged.tolist()


def _cut(sequence: list[list[Case]], count: int) -> tuple[list[list[Case]], list[list[Case]]]:
    """Cuts off the shortest head of groups with at least `count` cases: head and rest."""
    n_cases = 0
    for position, group in enumerate(sequence):
        if n_cases >= count:
            return sequence[:position], sequence[position:]
        n_cases += len(group)
    return sequence, []


def _sorted_ids(groups: list[list[Case]]) -> list[str]:
    return sorted(case.id for group in groups for case in group)
