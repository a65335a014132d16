"""Keeps small copies of the pictures that a run has seen, and finds these among others."""

import io
from collections import ChainMap
from collections.abc import Mapping, Sequence

import numpy as np

from seglab.core.files import read_json, write_atomic
from seglab.data.duplicates import THUMBNAIL, equal_files, same_pictures
from seglab.runs.paths import RunPaths, refuse_damaged
from seglab.runs.records import Run

_MAX_BYTES = 2**30  # a few kilobytes a picture

# For 'train' and 'val' the thumbnails of cases, uint8 (S, S), by the hash of each case's files.
SeenCases = dict[str, dict[str, np.ndarray]]


def write_thumbnails(paths: RunPaths, thumbnails: np.ndarray) -> None:
    """Writes thumbnails, uint8 (N, S, S), in the order of splits.json and then of data.json."""
    content = io.BytesIO()
    np.save(content, thumbnails, allow_pickle=False)
    write_atomic(paths.thumbnails, content.getvalue())


def read_seen_cases(run: Run) -> SeenCases:
    """Reads the cases that a run, or the weights that it started from, was trained on."""
    keys = [(part, run.sha256[id]) for part in ("train", "val") for id in run.ids[part]]
    if run.provenance.init:
        with refuse_damaged(run.paths.data) as file:
            before = read_json(file)["seen_before"]
            keys += [(part, str(sha)) for part in ("train", "val") for sha in before[part]]
    with refuse_damaged(run.paths.thumbnails, _MAX_BYTES) as file:
        # Mapped: a header that promises more than the file holds allocates nothing.
        thumbnails = np.lib.format.open_memmap(file, mode="r")
        if thumbnails.dtype != np.uint8 or thumbnails.shape != (len(keys), THUMBNAIL, THUMBNAIL):
            raise ValueError(f"expected {len(keys)} thumbnails")
        seen: SeenCases = {"train": {}, "val": {}}
        for (part, sha256), thumbnail in zip(keys, np.array(thumbnails), strict=True):
            seen[part][sha256] = thumbnail
        return seen


def find_trained_on(
    runs: Sequence[Run], sha256: Mapping[str, str], thumbnails: np.ndarray
) -> list[str]:
    """Returns the ids of the cases that any of some runs has seen, by `find_seen`."""
    seen = dict(ChainMap(*(cases for run in runs for cases in read_seen_cases(run).values())))
    near = any(run.config["data"].get("find_duplicates", True) for run in runs)
    return find_seen(seen, sha256, thumbnails, near)


def find_seen(
    seen: Mapping[str, np.ndarray],
    sha256: Mapping[str, str],
    thumbnails: np.ndarray,
    find_duplicates: bool,
) -> list[str]:
    """Returns the ids of the cases that were seen, by their files and by their pictures.

    Another format, size or orientation hides none, by `same_pictures`; without `find_duplicates`
    only equal thumbnails, uint8 (N, S, S), are the same picture. `sha256` holds the hash of each
    case's files by id, as `seglab.data.cache.hash_cases` does.
    """
    pictures = np.stack([*seen.values(), *thumbnails])
    if find_duplicates:
        groups = same_pictures(pictures)
    else:
        groups = equal_files([picture.tobytes().hex() for picture in pictures])
    seen_groups, new_groups = {*groups[: len(seen)]}, groups[len(seen) :]
    return [
        id
        for (id, hash), group in zip(sha256.items(), new_groups, strict=True)
        if hash in seen or group in seen_groups
    ]
