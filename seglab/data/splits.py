"""Who is trained on, who is chosen on, who is tested on: made once, saved, handed in again."""

from __future__ import annotations

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
    """Ids of the three parts.

    Attributes:
        train: Ids to fit on.
        val: Ids to choose checkpoint and threshold on; may be empty.
        test: Ids to score once.
        protocol: How it was made, in words.
        seed: The seed it was made with, None for a file made by others.
        sha256: Of each case's image and mask file, by id.
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
        """What `splits.json` holds."""
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
    """Splits cases, stratified by diagnosis; equal pictures and a patient's stay on one side.

    Cases stand in one sequence of which every stretch holds the diagnoses in proportion; the
    order within a diagnosis is that of hashes of seed and id, so it is the same on every machine
    and with every version of any library. Test is the first stretch (or the fold's), val the
    next.

    Args:
        cases: All cases.
        groups: For each case a number, equal for equal pictures (`same_pictures`).
        sha256: Of each case's files, by id.
        val: Share of the cases that are not tested to hold out as val; 0 for none.
        test: Share of all cases to test, for holdout.
        seed: Of the order.
        fold: Which of the folds is tested, from 0; None for holdout.
        folds: How many folds there are.

    Raises:
        InputError: A share or a fold out of range, or too few cases for them.
    """
    if not 0 <= val < 1:
        raise InputError(f"data.split.val={val}: expected a share from 0 to below 1")
    if fold is None and not 0 < test < 1:
        raise InputError(f"data.split.test={test}: expected a share between 0 and 1")
    members = defaultdict(list)
    for case, together in zip(cases, _kept_together(cases, groups), strict=True):
        members[together].append(case)
    strata = defaultdict(list)
    for same in members.values():
        same.sort(key=lambda case: case.id)
        strata[same[0].diagnosis].append(same)
    if fold is not None:
        if folds < 2 or not 0 <= fold < folds:
            raise InputError(
                f"data.split.fold={fold} with data.split.folds={folds}: expected a fold from 0 to "
                "folds - 1, and at least 2 folds"
            )
        if len(members) < folds:
            raise InputError(
                f"data.split.folds={folds}: only {len(members)} different cases, those of one "
                "picture or patient counted once; choose fewer folds or add cases"
            )

    ranked = []
    for diagnosis, stratum in strata.items():
        stratum.sort(key=lambda group: hashlib.sha256(f"{seed}/{group[0].id}".encode()).digest())
        ranked += [((2 * i + 1) / (2 * len(stratum)), diagnosis, g) for i, g in enumerate(stratum)]
    sequence = [group for _, _, group in sorted(ranked, key=lambda r: r[:2])]

    if fold is None:
        tested, rest = _cut(sequence, max(1, round(test * len(cases))))
        protocol = f"holdout, {test:.0%} test, {val:.0%} of the rest val"
    else:
        start = [round(i * len(sequence) / folds) for i in range(folds + 1)]
        tested = sequence[start[fold] : start[fold + 1]]
        rest = sequence[start[fold + 1] :] + sequence[: start[fold]]
        protocol = f"fold {fold} of {folds}, {val:.0%} of the rest val"
    size = sum(map(len, rest))
    held_out, trained = _cut(rest, max(1, round(val * size)) if val else 0)
    split = Split(
        _ids(trained), _ids(held_out), _ids(tested), protocol, seed, dict(sorted(sha256.items()))
    )
    if not split.train or not split.test:
        raise InputError(
            f"{len(cases)} cases are too few, {len(members)} with those of one picture or patient "
            f"counted once, to split into train, val and test with data.split.val={val}; add cases "
            "or change the shares"
        )
    return split


def load_split(
    path: str | Path, cases: Sequence[Case], groups: Sequence[int], sha256: dict[str, str]
) -> Split:
    """Reads a split that was saved or written by hand, and holds it against the data.

    Args:
        path: JSON with lists of ids under 'train', 'val' (may be missing) and 'test'; contents
            are compared where 'sha256' is there.
        cases: All cases of the data set.
        groups: As in `make_split`.
        sha256: As in `make_split`.

    Raises:
        InputError: Not a split, unknown or repeated ids, other contents, or equal pictures or a
            patient's on two sides.
    """
    split = read_split(path)
    parts = {name: getattr(split, name) for name in ("train", "val", "test")}
    picture = {case.id: group for case, group in zip(cases, groups, strict=True)}
    together = dict(zip(picture, _kept_together(cases, groups), strict=True))
    side_of_id: dict[str, str] = {}
    first_of: dict[int, tuple[str, str]] = {}
    for name, ids in parts.items():
        for id in ids:
            if id not in picture:
                raise InputError(f"{path}: case {id} of '{name}' is not in the data; remove it")
            if id in side_of_id:
                raise InputError(
                    f"{path}: case {id} stands in '{side_of_id[id]}' and in '{name}'; "
                    "keep it in one of them"
                )
            side_of_id[id] = name
            side, other = first_of.setdefault(together[id], (name, id))
            if side != name:
                # All that are kept together by more than their picture are of one patient.
                patients = {c.patient for c in cases if together[c.id] == together[id]} - {""}
                same = (
                    "the same picture, or nearly"
                    if picture[id] == picture[other]
                    else f"of the same patient, {', '.join(sorted(patients))}"
                )
                raise InputError(
                    f"{path}: {other} in '{side}' and {id} in '{name}' are {same}; move both to "
                    "one side"
                )
    for id in side_of_id:
        if split.sha256.get(id, sha256[id]) != sha256[id]:
            raise InputError(
                f"{path}: case {id} is not the one that the split was made of (its files have "
                "changed); restore its files, or remove 'sha256' from the split"
            )
    return replace(split, sha256={id: sha256[id] for id in sorted(side_of_id)})


def read_split(path: str | Path) -> Split:
    """Reads a split file, as it is.

    Args:
        path: As in `load_split`.

    Raises:
        InputError: It is no split.
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
    if not isinstance(sha256, dict) or not all(isinstance(h, str) for h in sha256.values()):
        raise InputError(f"{path}: 'sha256' is no table of ids and hashes; expected a saved split")
    return Split(
        **{name: sorted(ids) for name, ids in parts.items()},
        protocol=str(stored.get("protocol", "from a file")),
        seed=stored.get("seed"),
        sha256=sha256,
    )


def _kept_together(cases: Sequence[Case], groups: Sequence[int]) -> list[int]:
    """Joins groups of equal pictures that share a patient: for each case a number, as `groups`."""
    together = np.arange(len(cases))
    first: dict[int | str, int] = {}
    for i, (case, group) in enumerate(zip(cases, groups, strict=True)):
        for name in (group, case.patient):
            if name != "":
                merge_groups(together, first.setdefault(name, i), i)
    return together.tolist()


def _cut(sequence: list[list[Case]], count: int) -> tuple[list[list[Case]], list[list[Case]]]:
    """The shortest head of groups with at least `count` cases, and the rest."""
    taken = 0
    for position, group in enumerate(sequence):
        if taken >= count:
            return sequence[:position], sequence[position:]
        taken += len(group)
    return sequence, []


def _ids(groups: list[list[Case]]) -> list[str]:
    return sorted(case.id for group in groups for case in group)
