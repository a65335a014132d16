"""Finds images, and gives each a name for its outputs."""

import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from seglab.core.errors import InputError, name_some
from seglab.core.files import expand_user
from seglab.data.images import SUFFIXES
from seglab.inference.manifest import KINDS, MANIFEST

log = logging.getLogger(__name__)


def find_images(images: Sequence[str | Path]) -> dict[str, Path]:
    """Find images, and name their outputs.

    Args:
        images: Files, of any suffix; and folders, whose images with one of
            `seglab.data.images.SUFFIXES` are taken at any depth, hidden ones and what `predict`
            has written left out.

    Returns:
        Files by name: the path below the folder that all share, without suffix; with suffix where
        two would have the same name.

    Raises:
        InputError: There is no image, or two have the same name for the file system.
    """
    folders, files = set[Path](), set[Path]()
    for given in images:
        path = Path(os.path.abspath(expand_user(given)))  # noqa: PTH100
        if path.is_dir():
            if (path / "images").is_dir() and (path / "masks").is_dir():
                raise InputError(f"{given}: holds masks beside images; name {given}/images alone")
            folders.add(path)
            files |= {
                file
                for file in path.rglob("*")
                if file.suffix.lower() in SUFFIXES
                and not any(part.startswith(".") for part in file.relative_to(path).parts)
                and not file.is_dir()
            }
        elif os.path.lexists(path):
            folders.add(path.parent)
            files.add(path)
        else:
            raise InputError(f"{given}: not there; expected an image or a folder")
    written = {folder for folder in {f.parent for f in files} if _is_output(folder.resolve())}
    outputs = {file for file in files if file.parent in written}
    if outputs:
        names = name_some(sorted(outputs), 1)
        log.info("left out, as seglab predict has written them: %s", names)
    if not files - outputs:
        given = ", ".join(map(str, images))
        raise InputError(f"{given}: no image in it ({', '.join(SUFFIXES)})")
    return _name_files(files - outputs, os.path.commonpath(folders))


def _is_output(folder: Path) -> bool:
    """Whether `predict` has written what is in a folder, by the manifest beside masks and so on."""
    folders = (f for f in (folder, *folder.parents) if f.name in KINDS)
    return any((f.parent / MANIFEST).is_file() for f in folders)


def _name_files(files: set[Path], root: str) -> dict[str, Path]:
    """Name files by their paths below a folder; some file systems do not distinguish capitals."""
    stems = {file: file.relative_to(root).with_suffix("").as_posix() for file in sorted(files)}
    uses = Counter(map(str.casefold, stems.values()))
    names, taken = dict[str, Path](), dict[str, Path]()
    for file, stem in stems.items():
        name = stem if uses[stem.casefold()] == 1 else file.relative_to(root).as_posix()
        other = taken.setdefault(name.casefold(), file)
        if other is not file:
            raise InputError(f"{file}: its outputs would have the names of {other}'s; rename it")
        names[name] = file
    return names
