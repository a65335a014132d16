"""Splits cases into train, val and test, and reads splits that were saved.

Two cases of the same picture or of the same patient are never in different parts.
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
        if len(sequence) < folds:
            raise InputError(
                f"data.split.folds={folds}: only {len(sequence)} different cases, those of one "
                "picture or patient counted once; choose fewer folds or add cases"
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
    if not split.train or not split.test:
        raise InputError(
            f"{len(cases)} cases are too few, {len(sequence)} with those of one picture or patient "
            f"counted once, to split into train, val and test with data.split.val={val}; add cases "
            "or change the shares"
        )
    return split


def load_split(
    path: str | Path, cases: Sequence[Case], groups: Sequence[int], sha256: dict[str, str]
) -> Split:
    """Reads a split that was saved or written by hand, and checks it against the data.

    Args:
        path: JSON with lists of ids under 'train', 'val' (may be missing) and 'test'. Where it
            has 'sha256', the contents of the files are compared, too.
        cases: All cases of the data set.
        groups: As in `make_split`.
        sha256: As in `make_split`.

    Raises:
        InputError: The file is no split, an id is unknown or repeated, a case's files have
            changed, or cases of one picture or patient are in different parts.
    """
    split = read_split(path)
    part_by_id: dict[str, str] = {}
    for part in ("train", "val", "test"):
        for id in getattr(split, part):
            if id not in sha256:
                raise InputError(f"{path}: case {id} of '{part}' is not in the data; remove it")
            if id in part_by_id:
                raise InputError(
                    f"{path}: case {id} stands in '{part_by_id[id]}' and in '{part}'; "
                    "keep it in one of them"
                )
            part_by_id[id] = part
    _check_parts(path, part_by_id, cases, groups)
    for id in part_by_id:
        if split.sha256.get(id, sha256[id]) != sha256[id]:
            raise InputError(
                f"{path}: case {id} is not the one that the split was made of (its files have "
                "changed); restore its files, or remove 'sha256' from the split"
            )
    return replace(split, sha256={id: sha256[id] for id in sorted(part_by_id)})


def read_split(path: str | Path) -> Split:
    """Reads a split file without comparing it with the data.

    Args:
        path: As in `load_split`.

    Raises:
        InputError: The file is no split.
    """
    stored = read_json(path)
    if not isinstance(stored, dict):
        stored = {}
    parts = {name: stored.get(name, []) for name in ("train", "val", "test")}
    for name, ids in parts.items():
        if not isinstance(ids, list) or not all(isinstance(id, str) for id in ids):
            raise InputError(f"{path}: '{name}' is no list of case ids; expected a saved split")
        if not ids and name != "val":
            raise InputError(f"{path}: '{name}' is missing or empty; expected a saved split")
    sha256 = stored.get("sha256") or {}
    if not isinstance(sha256, dict):
        raise InputError(f"{path}: 'sha256' is no table of ids and hashes; expected a saved split")
    return Split(
        **{name: sorted(ids) for name, ids in parts.items()},
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


def _check_parts(
    path: str | Path, part_by_id: dict[str, str], cases: Sequence[Case], groups: Sequence[int]
) -> None:
    """Raises an InputError if cases of one picture or patient are in different parts."""
    picture = {case.id: group for case, group in zip(cases, groups, strict=True)}
    merged = dict(zip(picture, _merge_patients(cases, groups), strict=True))
    first_id: dict[int, str] = {}
    for id, part in part_by_id.items():
        first = first_id.setdefault(merged[id], id)
        if part_by_id[first] == part:
            continue
        # Cases that are joined by more than their picture are of one patient.
        patients = {c.patient for c in cases if merged[c.id] == merged[id]} - {""}
        relation = (
            "the same picture, or nearly"
            if picture[id] == picture[first]
            else f"of the same patient, {', '.join(sorted(patients))}"
        )
        raise InputError(
            f"{path}: {first} in '{part_by_id[first]}' and {id} in '{part}' are {relation}; move "
            "both to one side"
        )


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
