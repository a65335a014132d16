"""Data sets of empty files, for tests that read names and tables alone."""

from pathlib import Path

import pytest
from helpers.tiny import HEADER

from seglab.core.errors import InputError
from seglab.data.cases import Case
from seglab.data.layouts import find_cases

IMAGES = "PH2 Dataset images"
# Rows of PH2: histological and clinical diagnosis, criteria, colours.
ROWS = {
    "IMD003": ("", 0, 0, "T", "A", "A", "A", "A", (4,)),
    "IMD016": ("", 0, 0, "T", "T", "A", "A", "A", (3, 4)),
    "IMD076": ("", 1, 1, "AT", "AT", "A", "A", "A", (3, 4)),
    "IMD424": ("Melanoma", 2, 2, "AT", "AT", "P", "A", "P", (3, 4, 5, 6)),
    "IMD435": ("Lentigo Maligna", 2, 2, "AT", "A", "A", "A", "P", (3, 4, 5, 6)),
}
DIAGNOSES = {
    "IMD003": "common nevus",
    "IMD016": "common nevus",
    "IMD076": "atypical nevus",
    "IMD424": "melanoma",
    "IMD435": "melanoma",
}
LEGENDS = ["", "", "Legends for Clinical Diagnosis: ", "   0 - Common Nevus;", "   6 - Black."]


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def image_path(root: Path, id: str) -> Path:
    return root / IMAGES / id / f"{id}_Dermoscopic_Image" / f"{id}.bmp"


def mask_path(root: Path, id: str) -> Path:
    return root / IMAGES / id / f"{id}_lesion" / f"{id}_lesion.bmp"


def touch_ph2(root: Path) -> Path:
    """A PH2 of five cases, without a table."""
    for id in ROWS:
        touch(image_path(root, id))
        touch(mask_path(root, id))
    return root


def touch_pairs(root: Path, *names: str) -> Path:
    for name in names:
        touch(root / "images" / f"{name}.jpg")
        touch(root / "masks" / f"{name}.png")
    return root


def txt_row(id: str) -> str:
    """A row of PH2_dataset.txt."""
    histology, *values, colors = ROWS[id]
    widths = (18, 9, 15, 13, 7, 16, 17)
    diagnosis, *criteria = (
        f"{value:>{width}}" for value, width in zip(values, widths, strict=True)
    )
    middle = f"{histology:>22} || {diagnosis} || {' | '.join(criteria)}"
    return f"|| {id} || {middle} || {'  '.join(map(str, colors)):>16} ||"


def write_txt(root: Path, lines: list[str] | None = None) -> Path:
    """Writes PH2_dataset.txt, by default of all five cases."""
    lines = [txt_row(id) for id in ROWS] if lines is None else lines
    path = root / "PH2_dataset.txt"
    path.write_bytes("\r\n".join([HEADER, *lines, *LEGENDS]).encode("ascii"))
    return path


def patients(cases: list[Case]) -> dict[str, str]:
    return {case.id: case.patient for case in cases}


def assert_refused(root: Path, *words: str, read=find_cases) -> None:
    """Asserts that reading raises an InputError of one line with these words."""
    with pytest.raises(InputError) as caught:
        read(root)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
