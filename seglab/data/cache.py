"""Cache of a data set's images and masks at network size, keyed by their content.

A cache is a folder of `images.npy`, `masks.npy`, `thumbnails.npy`, `groups.json` and `checks.json`
below the cache directory.
"""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock

from seglab.core.errors import InputError
from seglab.core.files import (
    create_folder,
    hash_file,
    hash_json,
    name_file_in_errors,
    read_json,
    write_json,
)
from seglab.data.cases import Case, decode_pair
from seglab.data.checks import CaseCheck, check_case
from seglab.data.duplicates import same_pictures, thumbnail
from seglab.data.resizing import to_network_size
from seglab.data.threads import map_in_threads

log = logging.getLogger(__name__)

# Part of the key: raise it when what is stored for the same files changes.
VERSION = 5


@dataclass(frozen=True)
class Cache:
    """A data set at network size; row i is case i.

    Attributes:
        images: uint8 (N, S, S, 3), mapped from disk, or `JoinedArrays` of them.
        masks: uint8 (N, S, S), class numbers, as `images`.
        thumbnails: Small grey pictures, uint8, see `seglab.data.duplicates.thumbnail`.
        groups: A number for each case, equal for equal pictures.
        checks: What was found while each case was read, by id.
        sha256: Hash of each case's image and mask file together, by id.
        files: SHA-256 of every file that the cases come from, tables too.
    """

    images: Any
    masks: Any
    thumbnails: np.ndarray
    groups: list[int]
    checks: dict[str, CaseCheck]
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
        InputError: An image or mask cannot be read, the two differ in size, or the cache cannot be
            written.
    """
    cache_dir = Path(cache_dir).expanduser()
    files = hash_files(cases)
    sha256 = hash_cases(cases, files)
    classes = cases[0].classes
    content: list[Any] = [VERSION, size, len(classes.names), classes.colours, [*sha256.items()]]
    if classes.lesion_values is not None:
        content.append(classes.lesion_values)
    key = hash_json(content)[:24]
    folder = cache_dir / f"{key}-{size}"
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(cache_dir / f"{key}.lock"):
            if not folder.exists():
                with create_folder(folder) as partial:
                    _build(partial, cases, size)
                log.info("cache built: %s", folder)
    except OSError as error:
        raise InputError(
            f"{cache_dir}: the cache cannot be written ({error.strerror}); name another folder "
            "with data.cache_dir=... or SEGLAB_CACHE"
        ) from error
    try:
        images = np.load(folder / "images.npy", mmap_mode="r")
        masks = np.load(folder / "masks.npy", mmap_mode="r")
        thumbnails = np.load(folder / "thumbnails.npy")
        groups = read_json(folder / "groups.json")
        found = [CaseCheck(**check) for check in read_json(folder / "checks.json")]
        checks = {case.id: check for case, check in zip(cases, found, strict=True)}
    except (OSError, EOFError, ValueError) as error:
        raise InputError(f"{folder}: damaged cache ({error}); delete it") from error
    return Cache(images, masks, thumbnails, groups, checks, sha256, files)


def hash_cases(cases: Sequence[Case], files: Mapping[Path, str]) -> dict[str, str]:
    """Combines the hashes of image and mask of each case, by case id."""
    return {case.id: hash_json([files[case.image], files[case.mask]]) for case in cases}


def hash_files(cases: Sequence[Case]) -> dict[Path, str]:
    """SHA-256 of each image, mask and table; raises an InputError if one cannot be read."""
    paths = list(dict.fromkeys(p for case in cases for p in (case.image, case.mask, *case.tables)))
    try:
        hashes = map_in_threads(hash_file, paths, "hashing files", "file")
        return dict(zip(paths, hashes, strict=True))
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from error


def _build(folder: Path, cases: Sequence[Case], size: int) -> None:
    def read_case(case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray, CaseCheck]:
        image, decoded = decode_pair(case)
        small_image, small_mask = to_network_size(image, decoded.mask, size)
        check = check_case(case, decoded, small_mask)
        return small_image, small_mask, thumbnail(image), check

    thumbnails, checks = [], []
    with (
        _create_npy(folder / "images.npy", (len(cases), size, size, 3)) as image_file,
        _create_npy(folder / "masks.npy", (len(cases), size, size)) as mask_file,
    ):
        for image, mask, small, check in map_in_threads(read_case, cases, "reading cases", "case"):
            image_file.write(image.tobytes())
            mask_file.write(mask.tobytes())
            thumbnails.append(small)
            checks.append(asdict(check))
    stacked = np.stack(thumbnails)
    with _create_npy(folder / "thumbnails.npy", stacked.shape) as thumbnail_file:
        thumbnail_file.write(stacked.tobytes())
    write_json(folder / "groups.json", same_pictures(stacked))
    write_json(folder / "checks.json", checks)


@contextmanager
def _create_npy(path: Path, shape: tuple[int, ...]) -> Iterator[BinaryIO]:
    """Opens a .npy file of uint8, to which all values are then written in order.

    Not mapped into memory: on a full disk, writing to a mapped page ends the process with a bus
    error, and a write to a file raises an OSError.
    """
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with name_file_in_errors(path), path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        yield file
        file.flush()
        os.fsync(file.fileno())
