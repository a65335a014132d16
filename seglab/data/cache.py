"""One cache of uint8 arrays at network size, keyed by content and settings."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from tqdm import tqdm

from seglab.core.errors import InputError
from seglab.core.files import hash_json, name_file_in_errors, read_json, remove_partial, write_json
from seglab.data.cases import Case
from seglab.data.duplicates import THUMBNAIL, same_pictures, thumbnail
from seglab.data.images import read_image, read_mask
from seglab.data.resizing import to_network_size

log = logging.getLogger(__name__)

# Part of the key: raise it when what is stored for the same files changes.
VERSION = 2


def default_dir() -> str:
    """Where caches lie unless a config says otherwise, as conf/data/ph2.yaml has it."""
    return os.environ.get("SEGLAB_CACHE", "~/.cache/seglab")


@dataclass(frozen=True)
class Cache:
    """A data set at network size; row i is case i.

    Attributes:
        images: uint8 (N, S, S, 3), mapped from disk.
        masks: uint8 (N, S, S), 0 or 1, or class numbers; mapped from disk.
        groups: For each case a number, equal for equal pictures.
        sha256: Of each case's image and mask file together, by id.
        files: SHA-256 of every file that the cases come from, tables too.
    """

    images: np.ndarray
    masks: np.ndarray
    groups: list[int]
    sha256: dict[str, str]
    files: dict[Path, str]


def open_cache(cases: Sequence[Case], size: int, cache_dir: str | Path) -> Cache:
    """Opens the cache of these cases at this size; builds it first where it is not there.

    Processes that start at once build it once: the others wait. A process that is killed leaves
    nothing that is taken for a cache.

    Args:
        cases: All cases of the data set.
        size: Edge of the square network input, in pixels.
        cache_dir: Where caches lie. Each may be deleted at any time.

    Raises:
        InputError: An image or mask that cannot be read, or the two differ in size.
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
    if cases[0].classes.is_multiclass:
        content.append([len(cases[0].classes.names), cases[0].classes.colours])
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


def read_pair(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Reads a case at native size: uint8 (H, W, 3), and the mask as `read_mask` gives it.

    Raises:
        InputError: A file cannot be read, or the two differ in size.
    """
    image, mask = read_image(case.image), read_mask(case.mask, case.classes)
    if image.shape[:2] != mask.shape:
        raise InputError(
            f"{case.mask}: the mask is {mask.shape[1]} x {mask.shape[0]} pixels, its image "
            f"{image.shape[1]} x {image.shape[0]}; expected equal sizes, replace one of them"
        )
    return image, mask


def hash_cases(cases: Sequence[Case], files: Mapping[Path, str]) -> dict[str, str]:
    """SHA-256 of image and mask together, by case id, from those of the files."""
    return {case.id: hash_json([files[case.image], files[case.mask]]) for case in cases}


def hash_files(cases: Sequence[Case], index: Path | None = None) -> dict[Path, str]:
    """Hashes the files that cases come from: images, masks and tables.

    Args:
        cases: Any cases.
        index: File that remembers hashes: files whose path, size and times it knows are not read
            again. None reads all.

    Returns:
        SHA-256 of each file's content.

    Raises:
        InputError: A file cannot be read.
    """
    known: dict[str, list] = {}
    try:
        if index is not None:
            known = dict(json.loads(index.read_text("utf-8")))
            known = {name: state for name, state in known.items() if len(state) == 4}
    except (OSError, ValueError, TypeError):  # an index that is lost or damaged is made anew
        known = {}

    def hashed(path: Path, state: list) -> list:
        with name_file_in_errors(path):
            return [*state, hashlib.sha256(path.read_bytes()).hexdigest()]

    paths = dict.fromkeys(p for case in cases for p in (case.image, case.mask, *case.tables))
    names = {path: str(path.absolute()) for path in paths}
    seen, unread = {}, []
    try:
        for path, name in names.items():
            stat = path.stat()
            # The second time is the system's own: no program can set it back.
            state = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
            seen[name] = known.get(name, [])
            if seen[name][:3] != state:
                unread.append((path, state))
        new = _in_threads(hashed, unread, "hashing files", "file")
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from error
    seen |= {names[path]: state for (path, _), state in zip(unread, new, strict=True)}
    if index is not None and unread:
        with FileLock(index.with_suffix(".lock")):
            remove_partial(index.parent, index.name)
            write_json(index, known | seen)
    return {path: seen[name][3] for path, name in names.items()}


def _build(folder: Path, cases: Sequence[Case], size: int) -> None:
    thumbnails = np.empty((len(cases), THUMBNAIL, THUMBNAIL), np.uint8)
    with (
        _RowFile(folder / "images.npy", (len(cases), size, size, 3)) as images,
        _RowFile(folder / "masks.npy", (len(cases), size, size)) as masks,
    ):

        def fill(row: int, case: Case) -> None:
            image, mask = read_pair(case)
            thumbnails[row] = thumbnail(image)
            image, mask = to_network_size(image, mask, size)
            images.write(row, image)
            masks.write(row, mask)

        _in_threads(fill, enumerate(cases), "reading cases", "case")
    write_json(folder / "groups.json", same_pictures(thumbnails))


def _in_threads(work: Callable, arguments: Iterable[tuple], what: str, unit: str) -> list:
    """Results of `work(*arguments)`, in order. Hashing, decoding and filtering leave the lock."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [pool.submit(work, *each) for each in arguments]
        try:
            return [job.result() for job in tqdm(jobs, what, unit=unit, disable=None, leave=False)]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


class _RowFile:
    """A .npy file of uint8 that is written row by row, in any order, from any thread.

    Not mapped into memory: on a full disk a mapped page is a bus error, a write an OSError.
    """

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self.path = path
        self._row = math.prod(shape[1:])
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        with name_file_in_errors(path):
            self._file = path.open("wb", buffering=0)
            np.lib.format.write_array_header_1_0(self._file, header)
        self._start = self._file.tell()

    def write(self, row: int, values: np.ndarray) -> None:
        """Writes uint8 of a row's shape."""
        rest, at = memoryview(values.tobytes()), self._start + row * self._row
        with name_file_in_errors(self.path):
            while rest:
                written = os.pwrite(self._file.fileno(), rest, at)
                rest, at = rest[written:], at + written

    def __enter__(self) -> _RowFile:
        return self

    def __exit__(self, *_: object) -> None:
        with self._file, name_file_in_errors(self.path):
            os.fsync(self._file.fileno())
