"""The data sets of a run: one, or several that are trained on together and scored apart.

Of several, a case's id begins with the name of its set, as in 'ph2/IMD003', and `Case.set` is that
name; of one set ids are plain and the name is ''.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from seglab.core.errors import InputError, name_some
from seglab.core.files import expand_user, hash_json, read_json, write_json
from seglab.data.cache import VERSION, Cache
from seglab.data.cases import Case, with_classes
from seglab.data.classes import make_classes
from seglab.data.duplicates import same_pictures
from seglab.data.splits import Split, merge_patients

T = TypeVar("T")
SUBSETS = ("train", "val", "test")  # a case of two sets stays in the later one


def find_roots(data: Mapping[str, Any]) -> dict[str, Path]:
    """Returns the folder of each data set by name, from section `data` of a config."""
    root, sets = Path(data["root"]), data.get("sets") or {}
    return {name: root / expand_user(own["root"]) for name, own in sets.items()} or {"": root}


def read_sets(data: Mapping[str, Any]) -> dict[str, list[Case]]:
    """Reads the cases of each data set of a run, by the set's name.

    `data` is section `data` of a config, with functions in the place of `cases`. Each of its `sets`
    holds its `root`, and what differs of `cases`, `mask_suffix` and `lesion_values`.
    """
    sets = {}
    for name, root in find_roots(data).items():
        own = {**data, **(data.get("sets") or {}).get(name, {})}
        classes = make_classes(data["classes"], data.get("colours"), own.get("lesion_values"))
        try:
            cases = _with_mask_suffix(own["cases"], own.get("mask_suffix"))(str(root))
        except InputError as error:
            if not name:
                raise
            text = str(error).replace("data.root=", f"data.sets.{name}.root=")
            raise InputError(f"data.sets.{name}: {text}") from error
        sets[name] = with_classes(cases, classes)
    return sets


def name_cases(sets: Mapping[str, Sequence[Case]]) -> list[Case]:
    """Lists the cases of all sets, with the name of their set in front of their ids."""
    return [
        replace(case, id=_prefix(name, case.id), set=name)
        for name, cases in sets.items()
        for case in cases
    ]


def join_caches(caches: Mapping[str, Cache], cache_dir: str | Path) -> Cache:
    """Joins the caches of several sets, and groups equal pictures; rows are as in `name_cases`."""
    if list(caches) == [""]:
        return caches[""]
    thumbnails = np.concatenate([cache.thumbnails for cache in caches.values()])
    key = hash_json([VERSION, *(list(cache.sha256.values()) for cache in caches.values())])[:24]
    file = Path(cache_dir).expanduser() / f"{key}-groups.json"
    if not file.exists():
        write_json(file, same_pictures(thumbnails))
    return Cache(
        JoinedArrays([cache.images for cache in caches.values()]),
        JoinedArrays([cache.masks for cache in caches.values()]),
        thumbnails,
        read_json(file),
        join_sets({name: cache.checks for name, cache in caches.items()}),
        join_sets({name: cache.sha256 for name, cache in caches.items()}),
        {path: sha256 for cache in caches.values() for path, sha256 in cache.files.items()},
    )


class JoinedArrays:
    """Arrays of equal shape but for their length, indexed as one; nothing is read or copied."""

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        self.arrays = arrays
        self.ends = np.cumsum([len(array) for array in arrays])

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Returns a row, or those of a sequence of row numbers."""
        if np.ndim(rows):
            return np.stack([self[row] for row in rows])
        number = int(np.searchsorted(self.ends, rows, side="right"))
        return self.arrays[number][rows - self.ends[number]]


def join_splits(splits: Mapping[str, Split], cases: Sequence[Case], groups: Sequence[int]) -> Split:
    """Joins splits of several sets, whose ids are plain, and parts what is equal among them.

    A case of train whose picture or patient is in val or test of another set is left out, and so is
    one of val that is in test of another. `cases` are those of `name_cases`; `groups` has a number
    for each, equal for equal pictures of any sets.
    """
    if list(splits) == [""]:
        return splits[""]
    subsets = {
        subset: [_prefix(name, id) for name in splits for id in getattr(splits[name], subset)]
        for subset in SUBSETS
    }
    ids = [case.id for case in cases]
    group = dict(zip(ids, merge_patients(cases, groups), strict=True))
    last = {group[id]: subset for subset in SUBSETS for id in subsets[subset]}
    kept = {
        subset: sorted(id for id in ids if last[group[id]] == subset)
        for subset, ids in subsets.items()
    }
    left_out = sorted(set(chain(*subsets.values())) - set(chain(*kept.values())))
    warnings = [f"{name}: {text}" for name, split in splits.items() for text in split.warnings]
    if left_out:
        warnings.append(
            f"{len(left_out)} cases ({name_some(left_out)}) are left out: their picture, nearly "
            "the same one, or their patient is in val or test of another set"
        )
    return Split(
        **kept,
        protocol="; ".join(f"{name}: {split.protocol}" for name, split in splits.items()),
        seed=next(iter(splits.values())).seed,
        sha256=dict(sorted(join_sets({n: splits[n].sha256 for n in splits}).items())),
        warnings=tuple(warnings),
    )


def _prefix(name: str, text: str) -> str:
    return f"{name}/{text}" if name else text


def join_sets(by_set: Mapping[str, Mapping[str, T]]) -> dict[str, T]:
    """Joins values by name; those of a set that has a name get it in front: 'ph2/IMD003'."""
    return {_prefix(name, key): v for name, values in by_set.items() for key, v in values.items()}


def _with_mask_suffix(
    cases: Callable[..., list[Case]], mask_suffix: str | None
) -> Callable[[str], list[Case]]:
    """Gives a function such as `find_cases` the suffix of masks' names, where one is set."""
    if mask_suffix is None:
        return cases
    if "mask_suffix" not in inspect.signature(cases).parameters:
        raise InputError(
            f"data.mask_suffix={mask_suffix}: this data set (data.cases) has names of its own; set "
            "it to null"
        )
    return partial(cases, mask_suffix=mask_suffix)
