"""Pairs images with masks by their names."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from seglab.core.errors import name_some
from seglab.data.cases import Case
from seglab.data.scan import SECOND_FILE, Scan, choose_file, is_map, is_picture

# What names of masks usually have after those of their images: with a number where an image has
# several masks; and the suffix of the image, as in NAME.jpg.png.
_MASK_SUFFIX = re.compile(
    r"([ ._-]?(masks?|segmentations?|segs?|lesions?|gt|ground[ _-]?truth|labels?|annotations?))+"
    r"([ ._-]?\(?\d+\)?)?|\.(bmp|png|tiff?|jpe?g)|"
)
_LAYOUTS_OF_ONE_FOLDER = ("isic2018", "flat")  # a mask without the suffix counts as an image


def group_by_name(scan: Scan, *names: str) -> dict[str, list[Path]] | None:
    """Groups the pictures in the root, or in the first of these subfolders, by their path there.

    The path is without suffix. Returns None if there is no such subfolder; capitals do not count.
    """
    folder = scan.root
    if names:
        folders = {path.name.lower(): path for path in sorted(scan.root.glob("*/"))}
        found = [folders[name] for name in names if name in folders]
        if not found:
            return None
        folder = found[0]
    files_by_name: dict[str, list[Path]] = defaultdict(list)
    for file in filter(is_picture, scan.files):
        if file.is_relative_to(folder) and not is_map(file):
            path = file.relative_to(folder).with_suffix("").as_posix()
            # macOS writes umlauts as two characters.
            files_by_name[unicodedata.normalize("NFC", path)].append(file)
    return files_by_name


def match_masks(
    scan: Scan, images: Mapping[str, list[Path]], masks: Mapping[str, list[Path]]
) -> dict[str, list[Path]]:
    """Finds the mask of each image: the file with the image's name and a suffix such as '_mask'.

    All masks have the same suffix, which may be empty. If several suffixes are found, an error is
    added, and the masks with the most frequent one are returned.

    Args:
        scan: Its `mask_suffix` is used if it is set.
        images: Files by name.
        masks: Files by name; the same as `images` if both lie in one folder.

    Returns:
        The files of the masks by the name of their image.
    """
    pattern = _MASK_SUFFIX if scan.mask_suffix is None else re.compile(re.escape(scan.mask_suffix))
    found: dict[str, dict[str, list[Path]]] = defaultdict(dict)
    for name, files in masks.items():
        for length in range(len(name), 0, -1):
            image, suffix = name[:length], name[length:].lower()
            if image in images and files is not images[image] and pattern.fullmatch(suffix):
                found[suffix].setdefault(image, []).extend(files)
                break
    if not found:
        return {}
    suffix, *others = sorted(found, key=lambda suffix: len(found[suffix]), reverse=True)
    if others:
        first, other = (next(iter(found[s].values()))[0] for s in (suffix, others[0]))
        lone = [m for s in others for i, (m, *_) in found[s].items() if i not in found[suffix]]
        scan.errors.append(
            f"{other}: a mask that ends with '{others[0]}', but {first} ends with '{suffix}'; "
            + (f"all need the same end: rename {name_some(lone)}" if lone else "")
            + ("" if lone else "choose one with data.mask_suffix (--mask-suffix)")
        )
    return found[suffix]


def add_pairs(
    scan: Scan, images: Mapping[str, list[Path]], masks: Mapping[str, list[Path]]
) -> None:
    """Adds a case for each image that has a mask, both by id, and an error for each other."""
    for id in [id for id in images if id in masks]:
        case = Case(id, choose_file(images[id]), choose_file(masks[id]))
        scan.cases.append(case)
        scan.leave_out(SECOND_FILE, {*images[id], *masks[id]} - {case.image, case.mask})
    for id in sorted(images.keys() - masks.keys()):
        # Further pictures of the case c1 may be c1_mask_2 and c1 drawn, but not c10 and c1/2.
        starts = {id[:end] for end in range(1, len(id)) if id[end] not in "/0123456789"}
        is_further = scan.layout in _LAYOUTS_OF_ONE_FOLDER and starts & images.keys() & masks.keys()
        if is_further and scan.mask_suffix:
            scan.leave_out("pictures have a case's name and another suffix", images[id])
            continue
        nearest = "" if scan.errors else _find_nearest(scan, id, images)
        if is_further:
            nearest = "to leave it out, set data.mask_suffix (--mask-suffix); "
        scan.leave_out("", images[id])
        scan.errors.append(
            f"{choose_file(images[id])}: case {id} has no mask; {nearest}expected {scan.expected}"
        )


def _find_nearest(scan: Scan, id: str, images: Mapping[str, list[Path]]) -> str:
    """Points out a file whose name holds that of an image, to be made its mask."""
    others = [images[id]] if scan.layout in _LAYOUTS_OF_ONE_FOLDER else images.values()
    used = {file for files in others for file in files}
    used |= {file for case in scan.cases for file in (case.image, case.mask)}
    name = re.escape(id.rpartition("/")[2])
    pattern = re.compile(rf"(?<!\d){name}(?!\d)", re.IGNORECASE)
    for file in scan.files:
        if file not in used and not is_map(file) and pattern.search(file.stem):
            if not is_picture(file):
                return f"{file} is there, of a format that is not read; "
            return (
                f"{file} is there: rename it, or set data.mask_suffix (--mask-suffix) to what the "
                "names of all masks end with; "
            )
    return ""
