"""Finds and reads masks, and probabilities, that another program wrote."""

import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from seglab.core.errors import InputError, name_some
from seglab.core.files import expand_user
from seglab.data.cases import Case
from seglab.data.images import SUFFIXES, open_image
from seglab.data.pairing import match_masks
from seglab.data.scan import Scan, list_files

ARRAYS = (".npy", ".npz")
_PREDICTED = re.compile(r"[ ._-]?pred(s|icted|ictions?)?$", re.IGNORECASE)


@dataclass(frozen=True)
class ImportedMasks:
    """The files that another program wrote for cases that are to be scored.

    Attributes:
        masks: Of each case that has one, by its id.
        probabilities: Of the same cases; empty where the program gave none.
        missing: Ids of the cases without a mask.
        extra: Masks that belong to no case of the data set.
    """

    masks: dict[str, Path]
    probabilities: dict[str, Path]
    missing: list[str]
    extra: list[Path]


def find_imported_masks(
    cases: Sequence[Case],
    tested: Sequence[str],
    masks: str | Path,
    probabilities: str | Path | None = None,
    pattern: str | None = None,
) -> ImportedMasks:
    """Finds the mask of each case, and its probabilities, by its name.

    Args:
        cases: The cases of the data set.
        tested: Ids of those that are to be scored.
        masks: A folder of pictures at any depth, called as the cases are, or with one of the usual
            ends such as '_mask' or '_pred'.
        probabilities: A folder of grey pictures, or arrays (.npy, .npz), called in the same way.
        pattern: How files are called, without suffix, with '{id}' for the case, such as
            'pred_{id}'; None for the usual ways.

    Raises:
        InputError: A folder cannot be read or holds nothing of these cases, several files have the
            name of one case, or a mask has no probabilities.
    """
    if pattern is not None and "{id}" not in pattern:
        raise InputError(f"--pattern {pattern}: expected a name with {{id}}, such as pred_{{id}}")
    ids = [case.id for case in cases]
    of_all, extra = _find_files(masks, ids, pattern, SUFFIXES)
    found = {id: of_all[id] for id in tested if id in of_all}
    if not found:
        raise InputError(
            f"{masks}: holds no mask of the {len(tested)} cases to be scored; add them"
        )
    of_prob: dict[str, Path] = {}
    if probabilities is not None:
        of_every, _ = _find_files(probabilities, ids, pattern, (*SUFFIXES, *ARRAYS))
        of_prob = {id: of_every[id] for id in found if id in of_every}
        lacking = [id for id in found if id not in of_prob]
        if lacking:
            raise InputError(
                f"{probabilities}: holds no probabilities of {len(lacking)} cases that have a mask "
                f"({name_some(lacking)}); add them, or leave out --probabilities"
            )
    return ImportedMasks(found, of_prob, [id for id in tested if id not in found], extra)


def _find_files(
    folder: str | Path, ids: Sequence[str], pattern: str | None, suffixes: Sequence[str]
) -> tuple[dict[str, Path], list[Path]]:
    """Returns the file of each id that has one, and the files of no id."""
    root = expand_user(folder)
    if not root.is_dir():
        raise InputError(f"{folder}: no such folder; expected the masks of another program")
    files = [file for file in list_files(root) if file.suffix.lower() in suffixes]
    by_name: dict[str, list[Path]] = {}
    has_folders = any("/" in name for name in (*ids, pattern or ""))
    for file in files:
        path = file.relative_to(root).with_suffix("").as_posix()
        by_name.setdefault(path if has_folders else file.stem, []).append(file)
    if pattern is None:
        by_name = _drop_end(by_name, ids)
        scan = Scan(root, "masks", "one mask for each case")
        found = match_masks(scan, {id: [] for id in ids}, by_name)
        if scan.errors:
            error = scan.errors[0].partition(";")[0]
            raise InputError(f"{error}; say how masks are called, as in --pattern '{{id}}_mask'")
    else:
        names = {id: pattern.replace("{id}", id) for id in ids}
        found = {id: by_name[name] for id, name in names.items() if name in by_name}
    if not found:
        raise InputError(
            f"{folder}: none of {len(files)} files has the name of a case, such as {ids[0]}; it "
            f"holds {name_some([f.name for f in files]) or 'no picture'}; say how masks are "
            "called with --pattern, such as 'pred_{id}'"
        )
    for id, several in found.items():
        if len(several) > 1:
            raise InputError(
                f"{several[0]} and {several[1].name}: two files of case {id}; remove one"
            )
    chosen = {id: file for id, (file,) in found.items()}
    return chosen, sorted({*files} - {*chosen.values()})


def _drop_end(by_name: dict[str, list[Path]], ids: Sequence[str]) -> dict[str, list[Path]]:
    """Renames files that end in '_pred', which no mask of a data set does, unless a case does."""
    renamed: dict[str, list[Path]] = {}
    for name, files in by_name.items():
        short = name if name in ids else _PREDICTED.sub("", name)
        renamed.setdefault(short, []).extend(files)
    return renamed


def read_probabilities(file: Path, channels: int) -> np.ndarray:
    """Reads probabilities of a picture.

    Args:
        file: A grey picture, whose white is 1, or an array: float (H, W) or (2, H, W), background
            first, for one class, (C, H, W) for several; in an .npz the one called
            'probabilities', as nnU-Net writes it, or the only one. Axes of length 1 do not count.
        channels: C; 1 for one class.

    Returns:
        float32 (C, H, W).

    Raises:
        InputError: The file cannot be read, has other channels, or a value is outside [0, 1].
    """
    array = _read_array(file) if file.suffix.lower() in ARRAYS else _read_grey(file)
    array = np.squeeze(array).astype(np.float32)
    if channels == 1 and array.ndim == 3 and len(array) == 2:
        array = array[1:]
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3 or len(array) != channels:
        raise InputError(
            f"{file}: holds {' x '.join(map(str, array.shape))} values; expected height x width"
            + (f", for each of {channels} classes" if channels > 1 else "")
        )
    if not (array.min() >= 0 and array.max() <= 1):  # NaN is neither
        raise InputError(
            f"{file}: holds values from {array.min():g} to {array.max():g}; expected "
            "probabilities, from 0 to 1 (of logits, their sigmoid or softmax)"
        )
    return array


def _read_array(file: Path) -> np.ndarray:
    try:
        stored: Any = np.load(file, allow_pickle=False)
        if isinstance(stored, np.ndarray):
            return stored
        with stored:
            names = [n for n in stored.files if n == "probabilities"] or stored.files
            (name,) = names
            return stored[name]
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{file}: cannot be read as one array ({error}); expected numpy.save or numpy.savez of "
            "'probabilities'"
        ) from error


def _read_grey(file: Path) -> np.ndarray:
    image = open_image(file)
    whites = {"1": 1, "L": 255, "I;16": 65535, "F": 1}
    if image.mode not in whites:
        raise InputError(
            f"{file}: is of mode {image.mode}; expected a grey picture of 8 or 16 bits"
        )
    return np.asarray(image, np.float32) / whites[image.mode]
