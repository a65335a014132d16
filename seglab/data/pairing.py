"""Pairs images with masks by their names."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path

from seglab.core.errors import quote_for_shell
from seglab.data.cases import Case
from seglab.data.scan import WITHOUT_IMAGE, Scan, choose_file, is_map, is_picture

# What names of masks usually have after those of their images: with a number where an image has
# several masks; and the suffix of the image, as in NAME.jpg.png.
_MASK_SUFFIX = re.compile(
    r"([ ._-]?(masks?|segmentations?|segs?|lesions?|gt|ground[ _-]?truth|labels?|annotations?))+"
    r"([ ._-]?\(?\d+\)?)?|\.(bmp|png|tiff?|jpe?g)|"
)


def group_by_name(scan: Scan, *names: str) -> dict[str, list[Path]] | None:
    """Groups the pictures in the root, or in the first of these subfolders, by their path there.

    The path is without suffix. Returns None if there is no such subfolder; capitals do not count.
    """
    folder = scan.root
    if names:
        folders = {path.name.lower(): path for path in sorted(scan.root.glob("*/"), reverse=True)}
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
    return dict(files_by_name)


def match_masks(
    scan: Scan,
    masks: Mapping[str, list[Path]],
    find_image: Callable[[str], str | None],
    among_images: bool = False,
) -> dict[str, list[Path]]:
    """Finds masks by the id of their image, all with the same suffix: that which fits most images.

    Args:
        scan: Gets errors, and the masks that fit no image.
        masks: Files by name.
        find_image: Returns the id of the image of a name, or None.
        among_images: Whether `masks` are all pictures, so that a mask needs a suffix.
    """
    pattern = _MASK_SUFFIX if scan.mask_suffix is None else re.compile(re.escape(scan.mask_suffix))
    found: dict[str, dict[str, list[Path]]] = defaultdict(dict)
    for name, files in masks.items():
        for end in range(len(name) - among_images, 0, -1):
            id = find_image(name[:end])
            if id is not None and pattern.fullmatch(name[end:].lower()):
                found[name[end:].lower()].setdefault(id, []).extend(files)
                break
    suffix = max(found, key=lambda text: (len(found[text]), text == ""), default="")
    matched = found.get(suffix, {})
    for other in found.keys() - {suffix, ""} if suffix else ():
        both = sorted(matched.keys() & found[other].keys())
        if both:
            scan.errors.append(
                f"{found[other][both[0]][0]}: a second mask of {both[0]}, as {len(both)} images "
                f"have; merge each with {matched[both[0]][0].name}, or choose one kind by "
                f"{_suggest(suffix)}"
            )
    if not among_images:
        used = {file for files in matched.values() for file in files}
        unused = (file for files in masks.values() for file in files if file not in used)
        scan.leave_out(WITHOUT_IMAGE, unused)
    return matched


def add_pairs(
    scan: Scan, images: Mapping[str, list[Path]], masks: Mapping[str, list[Path]]
) -> None:
    """Adds a case for each image that has a mask, both by id, and an error for each other."""
    pairs = [*images.values(), *(masks[id] for id in images if id in masks)]
    used = {file for files in pairs for file in files}
    for id, files in images.items():
        image = choose_file(files)
        if id in masks:
            scan.cases.append(Case(id, image, choose_file(masks[id])))
            continue
        nearest = "" if scan.errors else _find_nearest(scan, id, used)
        scan.leave_out("", files)
        scan.errors.append(f"{image}: case {id} has no mask; {nearest}expected {scan.expected}")


def _find_nearest(scan: Scan, id: str, used: set[Path]) -> str:
    """Points out a file whose name holds or resembles that of an image, to be made its mask."""
    name = id.rpartition("/")[2]
    pattern = re.compile(rf"(?<!\d){re.escape(name)}(?!\d)", re.IGNORECASE)
    others = [file for file in scan.files if file not in used]
    file = next((file for file in others if pattern.search(file.stem)), None)
    if file is None:
        by_stem = {file.stem: file for file in filter(is_picture, others)}
        file = by_stem.get("".join(get_close_matches(name, by_stem, 1)))
    if file is None:
        return ""
    if not is_picture(file):
        return f"{file} is there, of a format that is not read; "
    suffix = file.stem.removeprefix(name)
    advice = f"rename it, or use {_suggest(suffix)}"
    if suffix in ("", file.stem):
        advice = (
            "rename it, or leave out data.mask_suffix" if scan.mask_suffix else "rename or move it"
        )
    return f"{file} is there: {advice}; "


def _suggest(suffix: str) -> str:
    """An override of `data.mask_suffix` that can be pasted, and the option of other commands."""
    value = suffix if re.fullmatch(r"[_-][a-zA-Z][\w.]*", suffix) else f"'{suffix}'"
    override = quote_for_shell(f"data.mask_suffix={value}")
    return f"{override} (other commands: {quote_for_shell(f'--mask-suffix={suffix}')})"
