"""Finds images, and gives each a name for its outputs."""

from __future__ import annotations

import glob
import itertools
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from seglab.core.errors import InputError
from seglab.data.images import SUFFIXES
from seglab.inference.manifest import KINDS

# Suffixes of files that are taken from folders; a file that is given by name may have any.
IMAGE_SUFFIXES = (
    *SUFFIXES,
    *(".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".pbm", ".pgm", ".pnm", ".ppm", ".webp"),
)


def find_images(images: Sequence[str | Path], out: str | Path | None = None) -> dict[str, Path]:
    """Find images, and name their outputs.

    Args:
        images: Files, folders, which are searched to any depth, and patterns with * and **.
        out: The folder that `predict` writes to. Outputs in it are not taken for images unless
            they are given by name.

    Returns:
        Files by name: the path below the folder that all share, without suffix; with suffix where
        two would have the same name on any file system, and with a number where they still would.

    Raises:
        InputError: There is no image.
    """
    ignored = set() if out is None else {os.path.realpath(Path(out, kind)) for kind in KINDS}
    folders, files = set[Path](), dict[Path, None]()
    for given in map(str, images):
        for path in _expand(given, ignored):
            if path.is_dir():
                folders.add(path)
                files |= dict.fromkeys(_images_in(path, ignored))
            else:
                folders.add(path.parent)
                files[path] = None
    if not files:
        suffixes = ", ".join(IMAGE_SUFFIXES)
        raise InputError(f"{', '.join(map(str, images))}: no image in it ({suffixes})")
    shared = os.path.commonpath(folders)
    return _name_files({file: file.relative_to(shared) for file in sorted(files)})


def _expand(given: str, ignored: set[str]) -> list[Path]:
    """Return the files and folders that an argument names, without '..' in their paths."""
    if os.path.lexists(given):
        return [Path(os.path.abspath(given))]  # noqa: PTH100
    paths = [
        Path(os.path.abspath(match))  # noqa: PTH100
        for match in sorted(glob.glob(given, recursive=True))  # noqa: PTH207
        if os.path.lexists(match)
    ]
    paths = [path for path in paths if ignored.isdisjoint(map(str, path.resolve().parents))]
    if not paths:
        raise InputError(f"{given!r}: not there; expected an image, a folder or a pattern")
    return paths


def _images_in(folder: Path, ignored: set[str]) -> Iterator[Path]:
    """Yield all images below a folder, and the folders that cannot be read.

    Links to folders are not followed; hidden files and folders are left out.
    """
    unreadable: list[Path] = []
    for parent, below, files in os.walk(folder, onerror=lambda e: unreadable.append(e.filename)):
        if os.path.realpath(parent) in ignored:
            below.clear()
            continue
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in files:
            if not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES):
                yield Path(parent, name)
    yield from map(Path, unreadable)


def _name_files(relative: dict[Path, Path]) -> dict[str, Path]:
    """Name files by their relative paths, so that no two outputs have one path."""
    stems = Counter(_normalize(path.with_suffix("")) for path in relative.values())
    # Folders need their names, too, even one that is called like an output.
    taken = {_normalize(folder) for path in relative.values() for folder in path.parents}
    names: dict[str, Path] = {}
    for file, path in relative.items():
        stem = path.with_suffix("")
        first = (path if stems[_normalize(stem)] > 1 else stem).as_posix()
        candidates = itertools.chain([first], (f"{first}~{i}" for i in itertools.count(2)))
        name = next(name for name in candidates if _normalize(f"{name}.png") not in taken)
        taken.add(_normalize(f"{name}.png"))
        names[name] = file
    return names


def _normalize(name: str | Path) -> str:
    """Make names equal that some file system takes for one."""
    return unicodedata.normalize("NFC", str(name)).casefold()
