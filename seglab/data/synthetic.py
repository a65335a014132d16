"""Draws synthetic dermoscopy in PH2's layout, to try everything without PH2.

As in PH2, a threshold on grey level does not suffice (dark corners, hair, uneven light, faint
lesions, pale areas inside them), and the three diagnoses differ in size, outline and colours. A
score on these images shows that the code works; it says nothing about PH2.
"""

import json
import math
from pathlib import Path

from filelock import FileLock
from PIL import Image

from seglab.core.errors import InputError, check_number
from seglab.core.files import create_folder
from seglab.data.cases import Case
from seglab.data.classes import Classes
from seglab.data.layouts import find_cases
from seglab.data.synthetic_drawing import draw_case
from seglab.data.threads import map_in_threads

# Raise it when the same seed gives other files than before: a set on disk states its version.
VERSION = 1
MARKER = "synthetic.json"
DARK_CORNERS = Classes(("skin", "lesion", "dark_corner"))

# PH2's 40 % common nevi, 40 % atypical nevi and 20 % melanomas, in any stretch of the sequence.
DIAGNOSES = (0, 1, 2, 0, 1)

_HEADER = (
    "||   Name || Histological Diagnosis || Clinical Diagnosis || Asymmetry | Pigment Network "
    "| Dots/Globules | Streaks | Regression Areas | Blue-Whitish Veil ||           Colors ||\n"
)
# Spelling and blanks are PH2's.
_LEGENDS = (
    "\n\nLegends for Clinical Diagnosis: \n   0 - Common Nevus;\n   1 - Atypical Nevus;\n"
    "   2 - Melanoma.\n\nLegends for Asymmetry: \n   0 - Fully Symmetric;\n"
    "   1 - Symetric in 1 axe;\n   2 - Fully Asymmetric;\n\nLegends for Pigment Network, "
    "Dots/Globules, Streaks, Regression Areas, and Blue-Whitish Veil: \n   A  - Absent;\n"
    "   AT - Atypical;\n   P  - Present;\n   T  - Typical.\n\nLegends for Colors: \n   1 - White;\n"
    "   2 - Red;\n   3 - Light-Brown;\n   4 - Dark-Brown;\n   5 - Blue-Gray;\n   6 - Black."
)


def synthetic_cases(
    root: str | Path, n: int = 100, seed: int = 0, dark_corners: bool = False
) -> list[Case]:
    """Draws cases SYN001, SYN002, ... in PH2's layout: a table, 24-bit images and 1-bit masks.

    A set that exists with the same arguments and `VERSION` is left as it is. The folder appears
    complete or not at all; of several processes one draws and the others wait.

    Args:
        root: The set's folder: absent, empty, or holding the set already.
        n: Number of cases, 1 to 999, as PH2's table has room for three digits.
        seed: Seed of the set, 0 or more.
        dark_corners: Whether the dark area outside the dermoscope's field is a third class: masks
            then hold class numbers with a palette, 0 skin, 1 lesion and 2 dark corner.

    Returns:
        The cases, sorted by id.

    Raises:
        InputError: `n` or `seed` out of range, or `root` holds another set or anything else.
    """
    check_number("data.cases.n", n, int, 1, 999)
    check_number("data.cases.seed", seed, int, 0, math.inf)
    folder = Path(root).resolve()
    settings = {"n": n, "seed": seed, "version": VERSION}
    if dark_corners:
        settings["dark_corners"] = True
    # Without a lock first, so that a set on a read-only disk can be used.
    if not _is_drawn(folder, settings):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if not _is_drawn(folder, settings):
                with create_folder(folder) as partial:
                    _draw(partial, settings)
    return find_cases(root, "ph2")


def _is_drawn(root: Path, settings: dict[str, int]) -> bool:
    """Returns True if `root` holds the set, False if it is absent or empty."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        stored = json.loads((root / MARKER).read_text())
    except (OSError, ValueError):
        stored = f"something else (no readable {MARKER})"
    if stored != settings:
        raise InputError(
            f"{root}: holds {stored}, expected nothing or synthetic cases of {settings}; choose "
            "another data.root, or delete that folder to draw them again"
        )
    return True


def _draw(folder: Path, settings: dict[str, int]) -> None:
    def write_case(index: int) -> str:
        name, diagnosis = f"SYN{index + 1:03d}", DIAGNOSES[index % len(DIAGNOSES)]
        image, classes, traits = draw_case(settings["seed"], index, diagnosis)
        mask = Image.fromarray(classes == 1)
        if settings.get("dark_corners"):
            mask = Image.fromarray(classes)
            mask.putpalette(DARK_CORNERS.palette.tobytes())
        case = folder / "PH2 Dataset images" / name
        for picture, file in (
            (Image.fromarray(image), case / f"{name}_Dermoscopic_Image" / f"{name}.bmp"),
            (mask, case / f"{name}_lesion" / f"{name}_lesion.bmp"),
        ):
            file.parent.mkdir(parents=True)
            picture.save(file)
        return traits.table_row(name)

    rows = map_in_threads(write_case, range(settings["n"]), "drawing synthetic cases", "case")
    table = _HEADER + "".join(rows) + _LEGENDS
    (folder / "PH2_dataset.txt").write_bytes(table.replace("\n", "\r\n").encode("ascii"))
    (folder / MARKER).write_text(json.dumps(settings) + "\n")
