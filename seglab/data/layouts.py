"""Finds the cases of a data set by the names of its files.

`LAYOUTS` lists the supported layouts. To add one, write a function that adds cases and errors to a
`Scan`, list it there, and name it in a file of `conf/data/`.
"""

import logging
import os
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from seglab.core.commands import format_command, quote_for_shell
from seglab.core.errors import InputError, name_some
from seglab.core.files import expand_user, is_utf8, refuse_non_utf8
from seglab.data.cases import UNKNOWN_DIAGNOSIS, Case
from seglab.data.images import SUFFIXES
from seglab.data.pairing import add_pairs, group_by_name, match_masks
from seglab.data.ph2 import scan_ph2
from seglab.data.scan import Scan, is_map, is_picture, list_files
from seglab.data.tables import add_patients

log = logging.getLogger(__name__)


def find_cases(
    root: str | Path, layout: str | None = None, mask_suffix: str | None = None
) -> list[Case]:
    """Reads the cases of a data set.

    Args:
        root: Its folder. For PH2: `PH2Dataset`, a folder above it, or that of the case folders.
        layout: Name of its layout; None to recognise it, see `scan_cases`.
        mask_suffix: What the name of a mask has after that of its image, such as '_mask'; None to
            recognise usual ones.

    Returns:
        The cases, sorted by id.

    Raises:
        InputError: There is no case, a case lacks its image or mask, or a folder or table cannot
            be read.
    """
    scan = scan_cases(root, layout, mask_suffix)
    if scan.errors:
        others = len(scan.errors) - 1
        more = f" ({others} more errors, which the data checker lists)" if others else ""
        raise InputError(f"{scan.errors[0]}{more}")
    for warning in scan.warnings:
        log.warning("%s", warning)
    patients = len({case.patient for case in scan.cases} - {""})
    log.info("%s: %d cases, patients named: %d", scan.root, len(scan.cases), patients)
    return scan.cases


def scan_cases(root: str | Path, layout: str | None = None, mask_suffix: str | None = None) -> Scan:
    """Lists the cases of a data set and everything that is wrong with it, as `find_cases` reads it.

    Without a layout, the first of `LAYOUTS` that finds a case is taken.

    Raises an InputError if no case is found, a folder cannot be read, or a name is not UTF-8.
    """
    root = expand_user(root)
    if layout is not None and layout not in tuple(LAYOUTS):
        raise InputError(f"data.cases.layout={layout}: expected one of {', '.join(LAYOUTS)}")
    if not isinstance(mask_suffix, str | None):
        raise InputError(f"data.mask_suffix={mask_suffix}: expected one text, such as _mask")
    if mask_suffix is not None:
        mask_suffix = re.sub(rf"({'|'.join(map(re.escape, SUFFIXES))})$", "", mask_suffix.lower())
    refuse_non_utf8("data.root", root.absolute())
    files = list_files(root)
    _refuse_names(root, files)
    scans: list[Scan] = []
    for name in LAYOUTS if layout is None else [layout]:
        expected, add_cases = LAYOUTS[name]
        scans.append(Scan(root, name, expected, mask_suffix, files))
        add_cases(scans[-1])
        if scans[-1].cases:
            break
    scan = max(scans, key=lambda scan: (bool(scan.cases), bool(scan.errors)))
    if layout is not None and not scan.cases:
        _refuse_other_layout(root, mask_suffix)
    if not scan.cases and (not scan.errors or scan.layout == "isic2018"):
        _refuse_same_names(scan)
    if not scan.cases and not scan.errors:
        problem = f"holds no data set, but {name_some(files) or 'no file'}"
        expected = ", ".join(f"{scan.expected} ({scan.layout})" for scan in scans)
        raise InputError(
            f"{root.absolute()} {problem if root.is_dir() else 'is no folder'} (expected "
            f"{expected}); name the data's folder with data.root=..., the end of masks' names with "
            f"data.mask_suffix=..., unpack PH2 with '{format_command('prepare')}', or go without "
            "it: data=synthetic"
        )
    scan.cases.sort(key=lambda case: case.id)
    add_patients(scan)
    _warn_of_unlisted(scan)
    scan.warn_of_files_left_out()
    return scan


def _refuse_other_layout(root: Path, mask_suffix: str | None) -> None:
    """Raises an InputError if a folder is a data set of any layout."""
    try:
        other = scan_cases(root, None, mask_suffix)
    except InputError:
        return
    if other.cases:
        raise InputError(f"{root}: is of layout {other.layout}; use data={other.layout}")


def _refuse_names(root: Path, files: list[Path]) -> None:
    """Raises an InputError if names of pictures are not UTF-8, as JSON and CSV are."""
    refused = [file for file in files if is_picture(file) and not is_utf8(file)]
    if refused:
        names = [os.fsencode(file.name).decode("utf-8", "backslashreplace") for file in refused]
        command = f"convmv -f latin1 -t utf8 -r --notest {quote_for_shell(root)}"
        raise InputError(
            f"{root}: names of {len(refused)} files are not UTF-8: {name_some(names)}; rename "
            f"them, such as by: {command}"
        )


def _refuse_same_names(scan: Scan) -> None:
    """Raises an InputError if folders share many names, as those of images and masks do."""
    names: dict[Path, set[str]] = defaultdict(set)
    for file in filter(is_picture, scan.files):
        names[file.parent].add(file.stem)
    # Folders of patients share fewer names, such as 'image' and 'mask', than there are folders.
    large = [a for a in names if len(names[a]) > len(names)]
    shared = [a for a in large if sum(len(names[a] & names[b]) > len(names) for b in large) > 1]
    if shared:
        raise InputError(
            f"{name_some(shared)} hold pictures of the same names, but no masks are found; if "
            f"some are masks, call the folders {scan.root}/images and {scan.root}/masks"
        )


def _warn_of_unlisted(scan: Scan) -> None:
    """Warns if tables name the diagnosis or the patient of some cases only."""
    for name, unknown in (("diagnosis", UNKNOWN_DIAGNOSIS), ("patient", "")):
        unlisted = [case.id for case in scan.cases if getattr(case, name) == unknown]
        if 0 < len(unlisted) < len(scan.cases):
            scan.warnings.append(
                f"{scan.root}: no table names the {name} of {len(unlisted)} cases: "
                f"{name_some(unlisted)}"
            )


def _scan_pairs(scan: Scan) -> None:
    """Scans two folders; the subfolder of an image or a mask is part of its name."""
    images = group_by_name(scan, "images", "image", "imgs", "img")
    masks = group_by_name(scan, "masks", "mask", "labels", "label", "annotations")
    if images is not None and masks is not None:
        add_pairs(scan, images, match_masks(scan, images, masks))


def _scan_nnunet(scan: Scan) -> None:
    """Scans nnU-Net's training set, where the name of an image ends with its channel."""
    images, masks = group_by_name(scan, "imagestr"), group_by_name(scan, "labelstr")
    if images is not None and masks is not None:
        # Further channels, _0001 and so on, are images without a mask.
        images = {name.removesuffix("_0000"): files for name, files in images.items()}
        add_pairs(scan, images, match_masks(scan, images, masks))


def _scan_isic2018(scan: Scan) -> None:
    """Scans HAM10000 and the ISIC challenges of 2016 to 2018, whatever their folders are called."""
    images: dict[str, list[Path]] = defaultdict(list)
    masks: dict[str, list[Path]] = defaultdict(list)
    suffix = "_segmentation" if scan.mask_suffix is None else scan.mask_suffix
    for file in filter(is_picture, scan.files):
        if suffix and file.stem.lower().endswith(suffix):
            masks[file.stem[: -len(suffix)]].append(file)
        elif re.match(r"ISIC_\d+", file.stem) and not is_map(file):
            images[file.stem].append(file)
    # Kaggle's HAM10000 holds a folder twice.
    for first, *others in (*images.values(), *masks.values()):
        for other in others:
            if other.stat().st_size != first.stat().st_size:
                scan.errors.append(
                    f"{other}: a second case named {other.stem}, the first is {first}; rename or "
                    "delete one"
                )
    # Challenges publish the masks of their test set later, if at all.
    folders = {images[id][0].parent for id in images.keys() & masks.keys()}
    expected = {id: files for id, files in images.items() if files[0].parent in folders}
    add_pairs(scan, expected or images, masks)


def _scan_flat(scan: Scan) -> None:
    """Scans images with their masks beside them, called as the image with a suffix."""
    pictures = group_by_name(scan) or {}
    masks = match_masks(scan, pictures, pictures)
    used = {file for files in masks.values() for file in files}
    if masks:
        images = {name: files for name, files in pictures.items() if files[0] not in used}
        add_pairs(scan, images, masks)


# By name, what the files are called and the function that finds the cases. In the order in which
# they are tried, because files of the others may also be called ISIC_....
LAYOUTS: dict[str, tuple[str, Callable[[Scan], None]]] = {
    "ph2": ("'PH2 Dataset images/IMD003/...'", scan_ph2),
    "pairs": ("images/NAME.jpg, masks/NAME.png", _scan_pairs),
    "nnunet": ("one imagesTr/NAME_0000.png for each labelsTr/NAME.png", _scan_nnunet),
    "isic2018": ("ISIC_*.jpg and ISIC_*_segmentation.png", _scan_isic2018),
    "flat": ("NAME.jpg and NAME_mask.png", _scan_flat),
}
