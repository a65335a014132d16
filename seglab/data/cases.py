"""Who the cases of a data set are, and where their files lie. Nothing is read here but tables.

Each layout is a function from a root folder to sorted `Case` records. A new layout is a new
function of this kind, named by `cases:` in a file under `conf/data/`.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from seglab.errors import InputError

log = logging.getLogger(__name__)

# Lossless first: copies of PH2 carry JPEG versions beside the BMPs.
SUFFIXES = (".bmp", ".png", ".tif", ".tiff", ".jpg", ".jpeg")
UNKNOWN = "unknown"
_PH2_IMAGES = "PH2 Dataset images"
_PH2_FORM = "'PH2 Dataset images/IMD003/...'"
PH2_DIAGNOSES = {"0": "common nevus", "1": "atypical nevus", "2": "melanoma"}
PH2_CRITERIA = (
    "asymmetry",
    "pigment_network",
    "dots_globules",
    "streaks",
    "regression_areas",
    "blue_whitish_veil",
)


@dataclass(frozen=True)
class Case:
    """One image with its mask.

    Attributes:
        id: Unique in its data set.
        image: The image's file.
        mask: The lesion mask's file.
        diagnosis: What splits are stratified by; 'unknown' where no table tells.
        criteria: What else the table says, by name.
    """

    id: str
    image: Path
    mask: Path
    diagnosis: str = UNKNOWN
    criteria: dict[str, str] = field(default_factory=dict, compare=False)


def ph2_cases(root: str | Path) -> list[Case]:
    """Reads PH2 as distributed: a folder a case, and `PH2_dataset.txt` or `.xlsx` where there.

    Args:
        root: `PH2Dataset`, the folder above it, or the folder of the case folders.

    Returns:
        The cases, sorted by id. Listed cases without a folder, folders without any picture and
        stray files are left out, and counted in the log.

    Raises:
        InputError: No case there, a case without its image or mask, or a damaged table.
    """
    folders, table, left_out = ph2_folders(root)
    cases = []
    for folder in folders:
        case, stray = ph2_case(folder, table.pop(folder.name, {}))
        left_out["stray files"] += stray
        cases.append(case)
    left_out["listed cases without a folder"] = len(table)
    return _checked(cases, root, left_out, "PH2", _PH2_FORM)


def ph2_folders(root: str | Path) -> tuple[list[Path], dict[str, dict[str, str]], Counter[str]]:
    """Finds PH2's case folders and its table.

    Args:
        root: As in `ph2_cases`.

    Returns:
        The folders with any picture, sorted; the table's rows by id, empty where there is no
        table; and how many of what was left out.

    Raises:
        InputError: No PH2 there, or a damaged table.
    """
    images = _find_ph2(root)
    if images is None:
        raise InputError(_nothing_in(root, "PH2", _PH2_FORM))
    table = _read_ph2_table(images.parent if images.name == _PH2_IMAGES else images)
    folders, left_out = [], Counter[str]()
    for entry in sorted(images.iterdir()):
        if not entry.is_dir() or entry.name.startswith((".", "__MACOSX")):
            left_out["stray files"] += 1
        elif _pictures(entry):
            folders.append(entry)
        else:
            left_out["folders without pictures"] += 1
            table.pop(entry.name, None)
    return folders, table, left_out


def ph2_case(folder: Path, row: dict[str, str]) -> tuple[Case, int]:
    """Reads one case folder of PH2's.

    Args:
        folder: Named by the case's id.
        row: Of the table; empty where the table has none.

    Returns:
        The case, and how many stray files lie in its folder.

    Raises:
        InputError: The image or the mask is missing.
    """
    id = folder.name
    images = _pictures(folder / f"{id}_Dermoscopic_Image")
    masks = _pictures(folder / f"{id}_lesion")
    for name, files in (("image", images), ("mask", masks)):
        if not files:
            raise InputError(
                f"{folder}: case {id} has no {name}; expected {id}_Dermoscopic_Image/{id}.bmp "
                f"and {id}_lesion/{id}_lesion.bmp, put it there or delete the folder"
            )
    roi = folder / f"{id}_roi"
    stray = sum(file.is_file() and roi not in file.parents for file in folder.rglob("*")) - 2
    diagnosis = PH2_DIAGNOSES.get(row.get("clinical_diagnosis", ""), UNKNOWN)
    criteria = {name: value for name, value in row.items() if name != "clinical_diagnosis"}
    image, mask = _preferred(images, id), _preferred(masks, f"{id}_lesion")
    return Case(id, image, mask, diagnosis, criteria), stray


def isic2018_cases(root: str | Path) -> list[Case]:
    """Reads ISIC challenge folders: `ISIC_0000000.jpg` and `ISIC_0000000_segmentation.png`.

    The files are told apart by their names alone, so the challenges of 2016 to 2018 are read,
    whatever their folders are called. Arguments and errors are those of `ph2_cases`.
    """
    images: list[Path] = []
    masks: dict[str, list[Path]] = {}
    left_out = Counter[str]()
    for file in _files(root):
        match = re.fullmatch(r"(.+)_segmentation", file.stem, re.IGNORECASE)
        if file.suffix.lower() not in SUFFIXES or file.stem.lower().endswith("_superpixels"):
            left_out["stray files"] += 1
        elif match:
            masks.setdefault(match[1], []).append(file)
        elif re.match(r"ISIC_\d+", file.stem):
            images.append(file)
        else:
            left_out["stray files"] += 1
    return _join(root, images, masks, left_out, "ISIC", "ISIC_*.jpg and ISIC_*_segmentation.png")


def pairs_cases(root: str | Path) -> list[Case]:
    """Reads `images/NAME.*` and `masks/NAME.*`; NAME, with its subfolder if any, is the id.

    Arguments and errors are those of `ph2_cases`.
    """
    root = Path(root)
    found: dict[str, dict[str, list[Path]]] = {"images": {}, "masks": {}}
    left_out = Counter[str]()
    for part, files in found.items():
        for file in _files(root / part):
            if file.suffix.lower() in SUFFIXES:
                name = file.relative_to(root / part).with_suffix("").as_posix()
                files.setdefault(name, []).append(file)
            else:
                left_out["stray files"] += 1
    images = [_preferred(files) for files in found["images"].values()]
    left_out["stray files"] += sum(len(files) - 1 for files in found["images"].values())
    return _join(root, images, found["masks"], left_out, "pairs", "images/NAME.jpg, masks/NAME.png")


def find_cases(root: str | Path) -> list[Case]:
    """Reads a data set of any supported layout, recognised by its form.

    Args:
        root: Its folder.

    Raises:
        InputError: No layout fits, or what the layout's own function raises.
    """
    root = Path(root)
    if _find_ph2(root) is not None:
        return ph2_cases(root)
    if (root / "images").is_dir() and (root / "masks").is_dir():
        return pairs_cases(root)
    if any(re.search(r"_segmentation$", f.stem, re.IGNORECASE) for f in _files(root)):
        return isic2018_cases(root)
    raise InputError(
        f"{root}: no data set of a known layout; expected PH2's folders, ISIC's "
        "ISIC_*_segmentation.png, or images/ and masks/"
    )


def _find_ph2(root: str | Path) -> Path | None:
    root = Path(root).absolute()  # '.' has no name to tell the folder by
    for folder in (root, root / "PH2Dataset"):
        if (folder / _PH2_IMAGES).is_dir():
            return folder / _PH2_IMAGES
    return root if next(root.glob("*/*_Dermoscopic_Image"), None) else None


def _read_ph2_table(folder: Path) -> dict[str, dict[str, str]]:
    """Rows of the table by case id, empty where there is no table."""
    for file, rows_of in (("PH2_dataset.txt", _txt_rows), ("PH2_dataset.xlsx", _xlsx_rows)):
        path = folder / file
        if not path.is_file():
            continue
        table: dict[str, dict[str, str]] = {}
        for where, cells in rows_of(path):
            names = ("histological_diagnosis", "clinical_diagnosis", *PH2_CRITERIA, "colors")
            id, values = cells[0], cells[1:]
            if len(values) != len(names) or values[1] not in PH2_DIAGNOSES or id in table:
                raise InputError(
                    f"{path}: {where} is no row of PH2's table (name, diagnosis 0 to 2, six "
                    "criteria, colours, each name once); restore the file, or delete it to go "
                    "without diagnoses"
                )
            table[id] = dict(zip(names, values, strict=True))
        if not table:
            raise InputError(
                f"{path}: holds no row of PH2's table; restore the file, or delete it to go "
                "without diagnoses"
            )
        return table
    log.warning("%s: no PH2_dataset.txt or .xlsx, so no diagnoses to stratify by", folder)
    return {}


def _txt_rows(path: Path) -> Iterable[tuple[str, list[str]]]:
    for number, line in enumerate(path.read_text("latin-1").splitlines(), 1):
        # '||' between most columns and '|' between the criteria: both are bars.
        cells = [cell.strip() for cell in line.strip().strip("|").replace("||", "|").split("|")]
        if "|" in line and cells[0] != "Name":
            yield f"line {number}", cells


def _xlsx_rows(path: Path) -> Iterable[tuple[str, list[str]]]:
    import openpyxl

    try:
        sheet = openpyxl.load_workbook(path, read_only=True, data_only=True).worksheets[0]
        rows = [["" if v is None else str(v).strip() for v in row] for row in sheet.values]
    except Exception as error:  # zip, XML and openpyxl's own kinds
        raise InputError(
            f"{path}: cannot be read as a workbook ({error}); restore the file, or delete it to go "
            "without diagnoses"
        ) from error
    head = next((i for i, row in enumerate(rows) if row and row[0] == "Image Name"), len(rows))
    for number, row in enumerate(rows[head + 1 :], head + 2):
        if any(row):
            row += [""] * (2 - len(row))
            # Diagnosis and colours are crosses in a column each.
            diagnosis = "".join(str(i) for i, cell in enumerate(row[2:5]) if cell)
            colors = "  ".join(str(i) for i, cell in enumerate(row[11:17], 1) if cell)
            yield f"row {number}", [row[0], row[1], diagnosis, *row[5:11], colors]


def _join(
    root: str | Path,
    images: list[Path],
    masks: dict[str, list[Path]],
    left_out: Counter[str],
    layout: str,
    expected: str,
) -> list[Case]:
    """Cases of the images and of the masks of the same name."""
    masks = dict(masks)
    base = Path(root) / "images" if layout == "pairs" else None
    cases: dict[str, Case] = {}
    for image in images:
        id = image.relative_to(base).with_suffix("").as_posix() if base else image.stem
        if id in cases:
            raise InputError(
                f"{image}: a second case named {id}, the first is {cases[id].image}; rename or "
                "delete one"
            )
        if id not in masks:
            raise InputError(f"{image}: case {id} has no mask; expected {expected}")
        candidates = masks.pop(id)
        left_out["stray files"] += len(candidates) - 1
        cases[id] = Case(id, image, _preferred(candidates))
    left_out["masks without an image"] = len(masks)
    return _checked(list(cases.values()), root, left_out, layout, expected)


def _checked(
    cases: list[Case], root: str | Path, left_out: Counter[str], layout: str, expected: str
) -> list[Case]:
    if not cases:
        raise InputError(_nothing_in(root, layout, expected))
    cases.sort(key=lambda case: case.id)
    log.info("%s: %d cases", root, len(cases))
    counts = [f"{n} {what}" for what, n in left_out.items() if n]
    if counts:
        log.info("%s: left out %s", root, ", ".join(counts))
    return cases


def _nothing_in(root: str | Path, layout: str, expected: str) -> str:
    folder = Path(root).absolute()
    what = "holds no case" if folder.is_dir() else "is no folder"
    return (
        f"{folder} {what} of layout {layout} (expected {expected}); name the data's folder with "
        "data.root=..., unpack PH2 with 'python scripts/prepare_ph2.py', or go without it: "
        "data=synthetic"
    )


def _files(folder: str | Path) -> list[Path]:
    """All files below a folder, sorted; what macOS and Windows leave behind is passed over."""
    folder = Path(folder)
    return sorted(
        file
        for file in folder.rglob("*")
        if file.is_file()
        and not any(p.startswith((".", "__MACOSX")) for p in file.relative_to(folder).parts)
    )


def _pictures(folder: Path) -> list[Path]:
    return [file for file in _files(folder) if file.suffix.lower() in SUFFIXES]


def _preferred(files: list[Path], stem: str = "") -> Path:
    """The file that is named as it should be, in the best format."""
    return min(files, key=lambda f: (f.stem != stem, SUFFIXES.index(f.suffix.lower()), f.name))
