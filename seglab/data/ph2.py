"""Finds the cases of PH2, and reads its table of diagnoses and dermoscopic criteria."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import mode

from seglab.core.errors import InputError, name_some
from seglab.data.cases import UNKNOWN_DIAGNOSIS, Case
from seglab.data.scan import Scan, choose_file, is_picture

DIAGNOSES = {"0": "common nevus", "1": "atypical nevus", "2": "melanoma"}
_CRITERIA = ("pigment_network", "dots_globules", "streaks", "regression_areas", "blue_whitish_veil")
_ASYMMETRY = {"0": "fully symmetric", "1": "symmetric in one axis", "2": "fully asymmetric"}
_CRITERION = {"A": "absent", "P": "present", "T": "typical", "AT": "atypical"}
_CELLS = 10  # name, two diagnoses, six criteria, colours
_IMAGES = "PH2 Dataset images"


def find_ph2_images(files: Iterable[Path]) -> Path | None:
    """Finds the folder of PH2's case folders: of several, the one with most images."""
    images = (file for file in files if file.parent.name.endswith("_Dermoscopic_Image"))
    folders = [file.absolute().parents[2] for file in images]
    return mode(folders) if folders else None


def scan_ph2(scan: Scan) -> None:
    """Scans PH2 as distributed: a folder for each case, and `PH2_dataset.txt`."""
    images = find_ph2_images(scan.files)
    if images is None:
        return
    if scan.mask_suffix is not None:
        raise InputError("data.mask_suffix: names of PH2's masks are known; remove it")
    scan.files = [file.absolute() for file in scan.files]
    files_by_case: dict[Path, list[Path]] = defaultdict(list)
    for file in scan.files:
        if images in file.parents[1:]:
            files_by_case[images / file.relative_to(images).parts[0]].append(file)
            scan.leave_out("", [file])
    if images.name == _IMAGES and images == scan.root.absolute():
        scan.files += sorted(images.parent.glob("*.[cCtT][sS][vV]"))
    tables = [f / "PH2_dataset.txt" for f in (images.parent, images, scan.root)]
    table = next(filter(Path.is_file, tables), tables[0])
    attributes: dict[str, dict[str, str]] = {}
    if table.is_file():
        try:
            attributes = _read_table(table)
        except InputError as error:
            scan.errors.append(str(error))
    else:
        scan.warnings.append(f"{table}: missing, so there are no diagnoses to stratify by")
    for case_folder, files in files_by_case.items():
        id = case_folder.name
        image = _choose_file(scan, case_folder, files, "image")
        mask = _choose_file(scan, case_folder, files, "mask")
        if image is not None and mask is not None:
            others = dict(attributes.get(id, {}))
            diagnosis = others.pop("diagnosis", UNKNOWN_DIAGNOSIS)
            used = (table,) if id in attributes else ()
            case = Case(id, image, mask, diagnosis, tables=used, attributes=others)
            scan.cases.append(case)
    absent = sorted(attributes.keys() - {folder.name for folder in files_by_case})
    if absent:
        scan.warnings.append(
            f"{table}: {len(absent)} of the listed cases have no folder, as in a download that "
            f"was cut short: {name_some(absent)}"
        )


def _choose_file(scan: Scan, folder: Path, files: list[Path], part: str) -> Path | None:
    """The image or the mask among files of a case folder; adds an error if there is none."""
    id = folder.name
    subfolder, stem = {"image": ("Dermoscopic_Image", id), "mask": ("lesion", f"{id}_lesion")}[part]
    candidates = [f for f in files if f.parent == folder / f"{id}_{subfolder}" and is_picture(f)]
    if candidates:
        return choose_file(candidates, stem)
    scan.errors.append(
        f"{folder}: case {id} has no {part}; expected {id}_Dermoscopic_Image/{id}.bmp and "
        f"{id}_lesion/{id}_lesion.bmp, put it there or delete the folder"
    )
    return None


def _read_table(path: Path) -> dict[str, dict[str, str]]:
    """Reads `PH2_dataset.txt`: by case id the diagnosis and the attributes, by name.

    Raises an InputError if it is damaged.
    """
    remedy = "restore the file, or delete it to go without diagnoses"
    try:
        lines = path.read_text("latin-1").splitlines()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error
    attributes: dict[str, dict[str, str]] = {}
    for number, line in enumerate(lines, 1):
        # Cells are separated by '||', the criteria by '|'.
        cells = [cell.strip() for cell in line.strip().strip("|").replace("||", "|").split("|")]
        if "|" not in line or cells[0] == "Name":
            continue
        if len(cells) != _CELLS or cells[2] not in DIAGNOSES or cells[0] in attributes:
            raise InputError(
                f"{path}: line {number} is no row of PH2's table (name, diagnosis 0 to 2, six "
                f"criteria, colours, each name once); {remedy}"
            )
        criteria = zip(_CRITERIA, cells[4:9], strict=True)
        attributes[cells[0]] = {
            "diagnosis": DIAGNOSES[cells[2]],
            "asymmetry": _ASYMMETRY.get(cells[3], cells[3]),
            **{name: _CRITERION.get(cell, cell) for name, cell in criteria},
            "colours": str(len(cells[9].split())),
        }
    if not attributes:
        raise InputError(f"{path}: holds no row of PH2's table; {remedy}")
    return attributes
