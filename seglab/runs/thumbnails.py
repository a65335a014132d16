"""Keeps small copies of the pictures that a run has seen, and finds these among others."""

import io
from collections.abc import Mapping, Sequence

import numpy as np

from seglab.core.files import write_atomic
from seglab.data.duplicates import THUMBNAIL, same_pictures
from seglab.runs.paths import RunPaths, refuse_damaged
from seglab.runs.records import Run

_MAX_BYTES = 2**30  # a few kilobytes a picture


def write_thumbnails(paths: RunPaths, thumbnails: np.ndarray) -> None:
    """Writes thumbnails, uint8 (N, S, S), of train and val in the order of splits.json."""
    content = io.BytesIO()
    np.save(content, thumbnails, allow_pickle=False)
    write_atomic(paths.thumbnails, content.getvalue())


def read_thumbnails(run: Run) -> np.ndarray:
    """Reads what `write_thumbnails` wrote; raises an InputError if it is missing or damaged."""
    with refuse_damaged(run.paths.thumbnails, _MAX_BYTES) as file:
        # Mapped: a header that promises more than the file holds allocates nothing.
        thumbnails = np.lib.format.open_memmap(file, mode="r")
        n = len(run.ids["train"]) + len(run.ids["val"])
        if thumbnails.dtype != np.uint8 or thumbnails.shape != (n, THUMBNAIL, THUMBNAIL):
            raise ValueError(f"expected {n} thumbnails")
        return np.array(thumbnails)


def find_trained_on(
    runs: Sequence[Run], sha256: Mapping[str, str], thumbnails: np.ndarray
) -> list[str]:
    """Returns the ids of the cases that any of some runs has seen in train or val.

    They are found by their files, and by their pictures as `same_pictures` does for splits, so that
    another format, size or orientation hides none; of runs with `data.find_duplicates=false` by
    their files alone.

    Args:
        runs: At least one.
        sha256: Of each case's files, by id, see `seglab.data.cache.hash_cases`.
        thumbnails: Of each case's picture, uint8 (N, S, S), see `duplicates.thumbnail`.

    Raises:
        InputError: The thumbnails of a run are missing or damaged.
    """
    seen_files = {run.sha256[id] for run in runs for id in (*run.ids["train"], *run.ids["val"])}
    of_runs = [
        read_thumbnails(run) for run in runs if run.config["data"].get("find_duplicates", True)
    ]
    seen = np.unique(np.concatenate(of_runs), axis=0) if of_runs else thumbnails[:0]
    groups = same_pictures(np.concatenate([seen, thumbnails]))
    seen_groups, new_groups = {*groups[: len(seen)]}, groups[len(seen) :]
    return [
        id
        for (id, hash), group in zip(sha256.items(), new_groups, strict=True)
        if hash in seen_files or group in seen_groups
    ]
