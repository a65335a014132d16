"""A tiny PH2 on disk, and what tests share besides fixtures."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

REPO = Path(__file__).resolve().parents[1]
HEADER = (
    "||   Name || Histological Diagnosis || Clinical Diagnosis || Asymmetry | Pigment Network | "
    "Dots/Globules | Streaks | Regression Areas | Blue-Whitish Veil ||           Colors ||"
)
# Seconds, not minutes: a small network on small pictures.
TINY = ["model.width=4", "model.depth=2", "data.size=32", "trainer.max_epochs=2"]


def write_ph2_case(root: Path, id: str, image: np.ndarray, mask: np.ndarray) -> None:
    folder = root / "PH2 Dataset images" / id
    (folder / f"{id}_Dermoscopic_Image").mkdir(parents=True)
    (folder / f"{id}_lesion").mkdir()
    Image.fromarray(image).save(folder / f"{id}_Dermoscopic_Image" / f"{id}.bmp")
    Image.fromarray(mask).save(folder / f"{id}_lesion" / f"{id}_lesion.bmp")


def write_tiny_ph2(root: Path, n: int = 20) -> Path:
    """Writes n cases of dark discs on bright, noisy skin, in PH2's layout and formats."""
    random = np.random.default_rng(7)
    lines = [HEADER]
    for i in range(n):
        height, width = 45 + i % 3, 60 + i % 2
        y, x = np.mgrid[:height, :width]
        cy, cx, radius = random.uniform(15, 30), random.uniform(20, 40), random.uniform(8, 18)
        mask = (y - cy) ** 2 + (x - cx) ** 2 < radius**2
        skin = random.normal(190, 12, (height, width, 3)) + random.uniform(-15, 15, 3)
        image = np.where(mask[..., None], skin - 90, skin).clip(0, 255).astype(np.uint8)
        id = f"IMD{i:03}"
        write_ph2_case(root, id, image, mask)
        diagnosis = (0, 1, 0, 1, 2)[i % 5]
        lines.append(f"|| {id} ||  || {diagnosis} || 0 | T | A | A | A | A || 3  4 ||")
    lines += ["", "", "Legends for Clinical Diagnosis: "]
    (root / "PH2_dataset.txt").write_text("\r\n".join(lines))
    return root


class Ended(NamedTuple):
    """How a script ended."""

    code: int
    out: str
    err: str
