"""One cache of uint8 arrays at network size, keyed by content and settings."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.lib.format import open_memmap
from tqdm import tqdm

from seglab.data.cases import Case
from seglab.data.images import read_image, read_mask, to_network_size
from seglab.data.splits import THUMBNAIL, same_pictures, thumbnail
from seglab.errors import InputError
from seglab.files import hash_of, read_json, write_json

log = logging.getLogger(__name__)

# Part of the key: raise it when what is stored for the same files changes.
VERSION = 1


@dataclass(frozen=True)
class Cache:
    """A data set at network size; row i is case i.

    Attributes:
        images: uint8 (N, S, S, 3), mapped from disk.
        masks: uint8 (N, S, S), 0 or 1, mapped from disk.
        groups: For each case a number, equal for equal pictures.
        sha256: Of each case's image and mask file, by id.
        fingerprint: SHA-256 over ids, diagnoses and contents.
    """

    images: np.ndarray
    masks: np.ndarray
    groups: list[int]
    sha256: dict[str, str]
    fingerprint: str


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
        sha256 = content_hashes(cases, cache_dir / "hashes.json")
    except OSError as error:
        raise InputError(
            f"{cache_dir}: the cache cannot be written ({error.strerror}); name another folder "
            "with data.cache_dir=... or SEGLAB_CACHE"
        ) from error
    fingerprint = hash_of([[case.id, case.diagnosis, sha256[case.id]] for case in cases])
    key = hash_of([VERSION, size, fingerprint])[:24]
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
    return Cache(images, masks, groups, sha256, fingerprint)


def read_pair(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Reads a case at native size: uint8 (H, W, 3) and bool (H, W).

    Raises:
        InputError: A file cannot be read, or the two differ in size.
    """
    image, mask = read_image(case.image), read_mask(case.mask)
    if image.shape[:2] != mask.shape:
        raise InputError(
            f"{case.mask}: the mask is {mask.shape[1]} x {mask.shape[0]} pixels, its image "
            f"{image.shape[1]} x {image.shape[0]}; expected equal sizes, replace one of them"
        )
    return image, mask


def content_hashes(cases: Sequence[Case], index: Path | None = None) -> dict[str, str]:
    """Hashes the files of cases.

    Args:
        cases: Any cases.
        index: File that remembers hashes: files whose path, size and time it knows are not read
            again. None reads all.

    Returns:
        SHA-256 of image and mask together, by case id.

    Raises:
        InputError: A file cannot be read.
    """
    known: dict[str, list] = {}
    try:
        if index is not None:
            known = dict(json.loads(index.read_text("utf-8")))
            known = {name: state for name, state in known.items() if len(state) == 3}
    except (OSError, ValueError, TypeError):  # an index that is lost or damaged is made anew
        known = {}
    seen: dict[str, list] = {}

    def sha256(path: Path) -> str:
        name = str(path.absolute())
        try:
            stat = path.stat()
            state = [stat.st_size, stat.st_mtime_ns]
            old = known.get(name, [])
            seen[name] = (
                old if old[:2] == state else [*state, hashlib.sha256(path.read_bytes()).hexdigest()]
            )
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from error
        return seen[name][2]

    hashes = {
        case.id: hash_of([sha256(case.image), sha256(case.mask)])
        for case in tqdm(cases, "hashing files", unit="case", disable=None, leave=False)
    }
    if index is not None and any(known.get(name) != state for name, state in seen.items()):
        write_json(index, known | seen)
    return hashes


def _build(folder: Path, cases: Sequence[Case], size: int) -> None:
    shape = (len(cases), size, size)
    images = open_memmap(folder / "images.npy", "w+", np.uint8, (*shape, 3))
    masks = open_memmap(folder / "masks.npy", "w+", np.uint8, shape)
    thumbnails = np.empty((len(cases), THUMBNAIL, THUMBNAIL), np.uint8)

    def fill(row: int) -> None:
        image, mask = read_pair(cases[row])
        thumbnails[row] = thumbnail(image)
        images[row], masks[row] = to_network_size(image, mask, size)

    # Threads: decoding and filtering leave Python's lock, and the arrays are shared.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [pool.submit(fill, row) for row in range(len(cases))]
        try:
            for job in tqdm(jobs, "reading cases", unit="case", disable=None):
                job.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    images.flush()
    masks.flush()
    write_json(folder / "groups.json", same_pictures(thumbnails))
