"""Finds the cases of a data set by the names of its files.

`LAYOUTS` lists the supported layouts. To add one, write a function that adds cases and errors to a
`Scan`, list it there, and name it in a file of `conf/data/`.
"""

import logging
import os
import re
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from seglab.core.errors import InputError, name_some, quote_for_shell
from seglab.core.files import expand_user, is_utf8, refuse_non_utf8
from seglab.data.cases import UNKNOWN_DIAGNOSIS, Case
from seglab.data.images import SUFFIXES
from seglab.data.pairing import add_pairs, group_by_name, match_masks
from seglab.data.ph2 import scan_ph2
from seglab.data.scan import OTHER_FORMATS, WITHOUT_IMAGE, Scan, is_map, is_picture, list_files
from seglab.data.tables import read_patients

log = logging.getLogger(__name__)

# Folders of layout 'pairs', the preferred first; the last are those of Pascal VOC and labelme.
_IMAGES = ("images", "image", "imgs", "img", "jpegimages")
_MASKS = ("masks", "mask", "labels", "label", "annotations", "segmentationclass")


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

    Of several layouts that find cases the one with most is taken, unless it gives an image another
    mask than one before it in `LAYOUTS`; 'flat', whose files may have any names, comes last.

    Raises an InputError if no case is found or a folder cannot be read.
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
    scans: list[Scan] = []
    for name in LAYOUTS if layout is None else [layout]:
        if name != "flat" or not any(scan.cases for scan in scans):
            expected, add_cases = LAYOUTS[name]
            scans.append(Scan(root, name, expected, mask_suffix, files))
            add_cases(scans[-1])
    found = [scan for scan in scans if scan.cases] or [scan for scan in scans if scan.errors]
    if not found:
        _refuse_folder(root, files, scans)
    scan = found[0]
    for other in found[1:]:
        masks = {case.image: case.mask for case in scan.cases}
        agree = all(masks.get(case.image, case.mask) == case.mask for case in other.cases)
        if agree and (len(other.cases), -len(other.errors)) > (len(scan.cases), -len(scan.errors)):
            scan = other
    _complete(scan, found)
    return scan


def _refuse_folder(root: Path, files: list[Path], scans: list[Scan]) -> NoReturn:
    """Raises an InputError that says what a folder holds instead of a data set."""
    problem = "holds no data set" if root.is_dir() else "is no folder"
    inside = {f.parents[1] for f in files if f.parent.name.lower() in (*_MASKS, "labelstr")}
    unread = [file for file in files if file.name.lower().endswith(OTHER_FORMATS)]
    if inside - {root}:
        problem += f", though {min(inside - {root})} looks like one"
    elif unread:
        problem += f", but formats that are not read: {name_some(unread)}"
    expected = ", ".join(f"{scan.expected} ({scan.layout})" for scan in scans)
    raise InputError(
        f"{root.absolute()} {problem} (expected {expected}); name the data's folder with "
        "data.root=..., the end of masks' names with data.mask_suffix=..., unpack PH2 with "
        "'python scripts/prepare_ph2.py', or go without it: data=synthetic"
    )


def _complete(scan: Scan, found: list[Scan]) -> None:
    """Sorts the cases, adds their patients, and names what is left out."""
    scan.cases.sort(key=lambda case: case.id)
    images = {case.image for case in scan.cases}
    for other in found:
        cases = [case for case in other.cases if case.image not in images]
        reason = f"files are of cases of layout {other.layout}"
        scan.leave_out(reason, [file for case in cases for file in (case.image, case.mask)])
    _refuse_names(scan)
    _add_patients(scan)
    for name, unknown in (("diagnosis", UNKNOWN_DIAGNOSIS), ("patient", "")):
        unlisted = [case.id for case in scan.cases if getattr(case, name) == unknown]
        if 0 < len(unlisted) < len(scan.cases):
            scan.warnings.append(
                f"{scan.root}: no table names the {name} of {len(unlisted)} cases: "
                f"{name_some(unlisted)}"
            )
    scan.warn_of_files_left_out()


def _refuse_names(scan: Scan) -> None:
    """Adds an error if names are not UTF-8, as JSON and CSV are, and leaves those cases out."""
    files = [file for case in scan.cases for file in (case.image, case.mask)]
    files += filter(is_picture, scan.not_taken.get("", []))
    refused = [file for file in files if not is_utf8(file)]
    if refused:
        scan.cases = [c for c in scan.cases if is_utf8(c.image) and is_utf8(c.mask)]
        scan.leave_out("", refused)
        names = [os.fsencode(file.name).decode("utf-8", "backslashreplace") for file in refused]
        command = f"convmv -f latin1 -t utf8 -r --notest {quote_for_shell(scan.root)}"
        scan.errors.insert(
            0,
            f"{scan.root}: names of {len(refused)} files are not UTF-8: {name_some(names)}; rename "
            f"them, such as by: {command}",
        )


def _add_patients(scan: Scan) -> None:
    """Adds the patients that tables name; points out tables in the folder above the data."""
    try:
        patients, warnings = read_patients(scan.files, scan.cases)
    except InputError as error:
        scan.errors.append(str(error))
        return
    scan.warnings += warnings
    for i, case in enumerate(scan.cases):
        if case.id in patients:
            patient, files = patients[case.id]
            scan.cases[i] = replace(case, patient=patient, tables=(*case.tables, *files))
    above = filter(Path.is_file, scan.root.absolute().parent.glob("*.*"))
    for file in sorted({*above} - {*scan.files}):
        with suppress(InputError):
            named, _ = read_patients([file], scan.cases)
            if any(patient for patient, _ in named.values()):
                scan.warnings.append(
                    f"{file}: names patients, but is not read outside the data; move it into "
                    f"{scan.root}, so that the cases of a patient stay together"
                )


def _scan_pairs(scan: Scan) -> None:
    """Scans two folders; the subfolder of an image or a mask is part of its name."""
    images, masks = group_by_name(scan, *_IMAGES), group_by_name(scan, *_MASKS)
    if images is not None and masks is not None:
        add_pairs(scan, images, match_masks(scan, masks, lambda n: n if n in images else None))


def _scan_nnunet(scan: Scan) -> None:
    """Scans nnU-Net's training set, where the name of an image ends with its channel."""
    images, labels = group_by_name(scan, "imagestr"), group_by_name(scan, "labelstr")
    if images is None or labels is None:
        return
    cases: dict[str, list[Path]] = {}
    for name, files in images.items():
        channel = re.search(r"_\d{4}$", name)
        if name in labels or channel is None:
            cases[name] = files
        elif channel[0] == "_0000":
            cases[name[:-5]] = files
        else:
            scan.leave_out("", files)
            scan.errors.append(
                f"{files[0]}: a second channel of {name[:-5]}; expected one file for each image, "
                "merge the channels into an RGB picture"
            )
    add_pairs(scan, cases, match_masks(scan, labels, lambda n: n if n in cases else None))


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
    for id, files in (*images.items(), *masks.items()):
        for other in files[1:]:
            # Kaggle's HAM10000 holds a folder twice. A mask may be there in several formats.
            sizes = {(file.suffix, file.stat().st_size) for file in (other, files[0])}
            if len(sizes) > 1 and (files is images.get(id) or other.parent != files[0].parent):
                files.remove(other)
                scan.leave_out("", [other])
                scan.errors.append(
                    f"{other}: a second case named {id}, the first is {files[0]}; rename or delete "
                    "one"
                )
    # Challenges publish the masks of their test set later, if at all.
    with_masks = {images[id][0].parent for id in images.keys() & masks.keys()}
    for id in [id for id in images if id not in masks]:
        if with_masks and images[id][0].parent not in with_masks:
            scan.leave_out("pictures are in folders without any mask", images.pop(id))
    for id in masks.keys() - images.keys():
        scan.leave_out(WITHOUT_IMAGE, masks[id])
    add_pairs(scan, images, masks)


def _scan_flat(scan: Scan) -> None:
    """Scans masks called as their image with a suffix, in its folder or in any other."""
    pictures = group_by_name(scan) or {}
    names_by_stem = defaultdict(list)
    for name in pictures:
        names_by_stem[name.rpartition("/")[2]].append(name)

    def find_image(name: str) -> str | None:
        same = [name] if name in pictures else names_by_stem[name.rpartition("/")[2]]
        return same[0] if len(same) == 1 else None

    masks = match_masks(scan, pictures, find_image, among_images=True)
    used = {file for files in masks.values() for file in files}
    if masks:
        images = {name: files for name, files in pictures.items() if files[0] not in used}
        add_pairs(scan, images, masks)


# By name, what the files are called and the function that finds the cases, in the order of
# preference.
LAYOUTS: dict[str, tuple[str, Callable[[Scan], None]]] = {
    "ph2": ("'PH2 Dataset images/IMD003/...'", scan_ph2),
    "pairs": ("images/NAME.jpg, masks/NAME.png", _scan_pairs),
    "nnunet": ("imagesTr/NAME_0000.png, labelsTr/NAME.png", _scan_nnunet),
    "isic2018": ("ISIC_*.jpg and ISIC_*_segmentation.png", _scan_isic2018),
    "flat": ("NAME.jpg and NAME_mask.png", _scan_flat),
}
