"""Cache of a data set's images and masks at network size, keyed by their content.

A cache is a folder of `images.npy`, `masks.npy` and `groups.json` below the cache directory.
`hashes.json` beside the folders remembers the hashes of files that have not changed since.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from seglab.core.errors import InputError
from seglab.core.files import (
    hash_file,
    hash_json,
    name_file_in_errors,
    read_json,
    remove_partial,
    write_json,
)
from seglab.data.cases import Case, read_pair
from seglab.data.duplicates import THUMBNAIL, same_pictures, thumbnail
from seglab.data.resizing import to_network_size
from seglab.data.threads import map_in_threads

log = logging.getLogger(__name__)

# Part of the key: raise it when what is stored for the same files changes.
VERSION = 2


def default_dir() -> str:
    """The cache directory unless a config names another, as in conf/data/default.yaml."""
    return os.environ.get("SEGLAB_CACHE", "~/.cache/seglab")


@dataclass(frozen=True)
class Cache:
    """A data set at network size; row i is case i.

    Attributes:
        images: uint8 (N, S, S, 3), mapped from disk.
        masks: uint8 (N, S, S), class numbers, mapped from disk.
        groups: A number for each case, equal for equal pictures.
        sha256: Hash of each case's image and mask file together, by id.
        files: SHA-256 of every file that the cases come from, tables too.
    """

    images: np.ndarray
    masks: np.ndarray
    groups: list[int]
    sha256: dict[str, str]
    files: dict[Path, str]


def open_cache(cases: Sequence[Case], size: int, cache_dir: str | Path) -> Cache:
    """Opens the cache of these cases at this size, and builds it first if it does not exist.

    Of several processes one builds the cache and the others wait. A killed process leaves only a
    `.partial` folder, which the next one removes.

    Args:
        cases: All cases of the data set.
        size: Edge of the square network input, in pixels.
        cache_dir: Folder that holds all caches. Each may be deleted at any time.

    Raises:
        InputError: An image or mask cannot be read, or the two differ in size.
    """
    cache_dir = Path(cache_dir).expanduser()
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        files = hash_files(cases, cache_dir / "hashes.json")
    except OSError as error:
        raise InputError(
            f"{cache_dir}: the cache cannot be written ({error.strerror}); name another folder "
            "with data.cache_dir=... or SEGLAB_CACHE"
        ) from error
    sha256 = hash_cases(cases, files)
    content: list[Any] = [VERSION, size, [[case.id, sha256[case.id]] for case in cases]]
    classes = cases[0].classes
    if classes.is_multiclass:
        content.append([len(classes.names), classes.colours])
    key = hash_json(content)[:24]
    folder = cache_dir / f"{key}-{size}"
    with FileLock(cache_dir / f"{key}.lock"):
        if not folder.exists():
            partial = cache_dir / f"{key}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            try:
                _build(partial, cases, size)
                partial.rename(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
            log.info("cache built: %s", folder)
    try:
        images = np.load(folder / "images.npy", mmap_mode="r")
        masks = np.load(folder / "masks.npy", mmap_mode="r")
        groups = read_json(folder / "groups.json")
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: damaged cache ({error}); delete it") from error
    return Cache(images, masks, groups, sha256, files)


def hash_cases(cases: Sequence[Case], files: Mapping[Path, str]) -> dict[str, str]:
    """Combines the hashes of image and mask of each case, by case id."""
    return {case.id: hash_json([files[case.image], files[case.mask]]) for case in cases}


def hash_files(cases: Sequence[Case], index: Path | None = None) -> dict[Path, str]:
    """Hashes the files that cases come from: images, masks and tables.

    Args:
        cases: Any cases.
        index: JSON file that remembers hashes. A file whose size and times it knows is not read
            again. None to read all files.

    Returns:
        SHA-256 of each file's content.

    Raises:
        InputError: A file cannot be read.
    """
    known = {} if index is None else _read_index(index)
    paths = dict.fromkeys(p for case in cases for p in (case.image, case.mask, *case.tables))
    names = {path: str(path.absolute()) for path in paths}
    entries: dict[str, list] = {}
    unread = []
    try:
        for path, name in names.items():
            stat = path.stat()
            # The system alone sets the time of the last status change.
            state = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
            entries[name] = known.get(name, [])
            if entries[name][:3] != state:
                unread.append((path, state))
        hashes = map_in_threads(_hash_content, [(p,) for p, _ in unread], "hashing files", "file")
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from error
    for (path, state), sha256 in zip(unread, hashes, strict=True):
        entries[names[path]] = [*state, sha256]
    if index is not None and unread:
        with FileLock(index.with_suffix(".lock")):
            remove_partial(index.parent, index.name)
            write_json(index, known | entries)
    return {path: entries[name][3] for path, name in names.items()}


def _read_index(index: Path) -> dict[str, list]:
    """Size, times and hash by path; empty if the index is missing or damaged."""
    try:
        entries = dict(json.loads(index.read_text("utf-8")))
        return {name: entry for name, entry in entries.items() if len(entry) == 4}
    except (OSError, ValueError, TypeError):
        return {}


def _hash_content(path: Path) -> str:
    with name_file_in_errors(path):
        return hash_file(path)


def _build(folder: Path, cases: Sequence[Case], size: int) -> None:
    thumbnails = np.empty((len(cases), THUMBNAIL, THUMBNAIL), np.uint8)
    with (
        _RowFile(folder / "images.npy", (len(cases), size, size, 3)) as images,
        _RowFile(folder / "masks.npy", (len(cases), size, size)) as masks,
    ):

        def write_case(row: int, case: Case) -> None:
            image, mask = read_pair(case)
            thumbnails[row] = thumbnail(image)
            image, mask = to_network_size(image, mask, size)
            images.write(row, image)
            masks.write(row, mask)

        map_in_threads(write_case, enumerate(cases), "reading cases", "case")
    write_json(folder / "groups.json", same_pictures(thumbnails))


class _RowFile:
    """Writes a .npy file of uint8 row by row, in any order, from any thread.

    Not mapped into memory: on a full disk, writing to a mapped page ends the process with a bus
    error, and a write to a file raises an OSError.
    """

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self.path = path
        self._row_bytes = math.prod(shape[1:])
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        with name_file_in_errors(path):
            self._file = path.open("wb", buffering=0)
            np.lib.format.write_array_header_1_0(self._file, header)
        self._start = self._file.tell()

    def write(self, row: int, values: np.ndarray) -> None:
        """Writes uint8 values of a row's shape."""
        remaining = memoryview(values.tobytes())
        position = self._start + row * self._row_bytes
        with name_file_in_errors(self.path):
            while remaining:
                written = os.pwrite(self._file.fileno(), remaining, position)
                remaining, position = remaining[written:], position + written

    def __enter__(self) -> _RowFile:
        return self

    def __exit__(self, *_: object) -> None:
        with self._file, name_file_in_errors(self.path):
            os.fsync(self._file.fileno())
