"""Finds the cases of PH2, and reads its table of diagnoses."""

from collections import Counter
from pathlib import Path

from seglab.core.errors import InputError, name_some
from seglab.data.cases import UNKNOWN_DIAGNOSIS, Case
from seglab.data.scan import HIDDEN, Scan, choose_file, is_picture, list_files

DIAGNOSES = {"0": "common nevus", "1": "atypical nevus", "2": "melanoma"}
_CELLS = 10  # name, two diagnoses, six criteria, colours
_IMAGES = "PH2 Dataset images"


def find_ph2_images(root: Path) -> Path | None:
    """Finds the folder of PH2's case folders at any depth: of several, the one with most images."""
    root = root.absolute()  # '.' has no name
    counts: Counter[Path] = Counter()
    for file in list_files(root):
        case = file.parents[1]
        if file.parent.name.endswith("_Dermoscopic_Image") and root in case.parents:
            counts[case.parent] += 1
    return max(counts, key=counts.__getitem__, default=None)


def scan_ph2(scan: Scan) -> None:
    """Scans PH2 as distributed: a folder for each case, and `PH2_dataset.txt`."""
    images = find_ph2_images(scan.root)
    if images is None:
        return
    if scan.mask_suffix is not None:
        raise InputError("data.mask_suffix: names of PH2's masks are known; remove it")
    scan.leave_out("", list_files(images))
    scan.files = [file.absolute() for file in scan.files]  # as all paths here
    if images.name == _IMAGES and images == scan.root.absolute():
        scan.files += sorted(images.parent.glob("*.[cCtT][sS][vV]"))
    tables = [f / "PH2_dataset.txt" for f in (images.parent, images, scan.root)]
    table = next(filter(Path.is_file, tables), tables[0])
    diagnoses: dict[str, str] = {}
    if table.is_file():
        try:
            diagnoses = _read_table(table)
        except InputError as error:
            scan.errors.append(str(error))
    else:
        scan.warnings.append(f"{table}: missing, so there are no diagnoses to stratify by")
    case_folders = [
        f for f in sorted(images.iterdir()) if f.is_dir() and not f.name.startswith(HIDDEN)
    ]
    for case_folder in case_folders:
        id = case_folder.name
        image, mask = (_find_file(case_folder, part, scan) for part in ("image", "mask"))
        if image is not None and mask is not None:
            diagnosis = diagnoses.get(id, UNKNOWN_DIAGNOSIS)
            used = (table,) if id in diagnoses else ()
            scan.cases.append(Case(id, image, mask, diagnosis, tables=used))
    absent = sorted(diagnoses.keys() - {f.name for f in case_folders})
    if absent:
        scan.warnings.append(
            f"{table}: {len(absent)} of the listed cases have no folder, as in a download that "
            f"was cut short: {name_some(absent)}"
        )


def _find_file(folder: Path, part: str, scan: Scan) -> Path | None:
    """The image or the mask of a case folder; adds an error if there is none."""
    id = folder.name
    subfolder, stem = {"image": ("Dermoscopic_Image", id), "mask": ("lesion", f"{id}_lesion")}[part]
    candidates = [*filter(is_picture, list_files(folder / f"{id}_{subfolder}"))]
    if candidates:
        return choose_file(candidates, stem)
    scan.errors.append(
        f"{folder}: case {id} has no {part}; expected {id}_Dermoscopic_Image/{id}.bmp and "
        f"{id}_lesion/{id}_lesion.bmp, put it there or delete the folder"
    )
    return None


def _read_table(path: Path) -> dict[str, str]:
    """Reads `PH2_dataset.txt`: diagnoses by case id; raises an InputError if it is damaged."""
    remedy = "restore the file, or delete it to go without diagnoses"
    try:
        lines = path.read_text("latin-1").splitlines()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error
    diagnoses: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        # Cells are separated by '||', the criteria by '|'.
        cells = [cell.strip() for cell in line.strip().strip("|").replace("||", "|").split("|")]
        if "|" not in line or cells[0] == "Name":
            continue
        if len(cells) != _CELLS or cells[2] not in DIAGNOSES or cells[0] in diagnoses:
            raise InputError(
                f"{path}: line {number} is no row of PH2's table (name, diagnosis 0 to 2, six "
                f"criteria, colours, each name once); {remedy}"
            )
        diagnoses[cells[0]] = DIAGNOSES[cells[2]]
    if not diagnoses:
        raise InputError(f"{path}: holds no row of PH2's table; {remedy}")
    return diagnoses
