"""A damaged image or table is read, or refused in one line that names it."""

import shutil
from pathlib import Path
from random import Random

import numpy as np
import pytest
from helpers.spoil import damage
from PIL import Image

from seglab.core.errors import InputError
from seglab.data.images import read_image, read_mask
from seglab.data.layouts import find_cases


@pytest.mark.parametrize("name", ["24.bmp", "rgb.png", "grey.png", "photo.jpg", "lzw.tif"])
def test_a_damaged_image_is_read_or_refused(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    pixels = np.random.default_rng(0).integers(0, 2, (37, 45), np.uint8) * 255
    image = Image.fromarray(pixels)
    image = image if name == "grey.png" else image.convert("RGB")
    image.save(file, **({"compression": "tiff_lzw"} if name == "lzw.tif" else {}))
    whole = file.read_bytes()
    for number in range(200):
        file.write_bytes(damage(Random(f"{name} {number}"), whole))
        for read, dimensions in ((read_image, 3), (read_mask, 2)):
            try:
                pixels = read(file)
                assert pixels.dtype == np.uint8 and pixels.ndim == dimensions and pixels.size
            except InputError as error:
                assert str(error).startswith(f"{file}: ") and "\n" not in str(error)


def test_a_damaged_table_is_read_or_refused(tiny_ph2: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(tiny_ph2, tmp_path / "data"))
    whole = (root / "PH2_dataset.txt").read_bytes()
    for number in range(60):
        (root / "PH2_dataset.txt").write_bytes(damage(Random(number), whole))
        try:
            assert find_cases(root)
        except InputError as error:
            assert str(root) in str(error) and "\n" not in str(error)
