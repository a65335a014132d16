"""What the guard against equal pictures catches on real data, counted: README's figures."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from seglab.data.duplicates import same_pictures, thumbnail
from seglab.data.images import read_image
from seglab.data.layouts import find_cases


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def cropped(image: Image.Image, share: float) -> Image.Image:
    x, y = round(image.width * share), round(image.height * share)
    return image.crop((x, y, image.width - x, image.height - y))


# How a picture may come into a data set twice, and at least how many of 140 copies are found.
COPIES: dict[str, tuple[Callable[[Image.Image], Image.Image], int]] = {
    "JPEG, quality 75": (lambda i: jpeg(i, 75), 140),
    "JPEG, quality 10": (lambda i: jpeg(i, 10), 140),
    "resized to 256 px": (lambda i: i.resize((256, 256)), 140),
    "resized to 128 px": (lambda i: i.resize((128, 128)), 140),
    "mirrored": (lambda i: i.transpose(Image.Transpose.FLIP_LEFT_RIGHT), 140),
    "turned by 90 degrees": (lambda i: i.transpose(Image.Transpose.ROTATE_90), 140),
    "brightened by 20 %": (lambda i: ImageEnhance.Brightness(i).enhance(1.2), 140),
    "brightened by 40 %": (lambda i: ImageEnhance.Brightness(i).enhance(1.4), 135),
    "contrast less 30 %": (lambda i: ImageEnhance.Contrast(i).enhance(0.7), 140),
    "blurred, 5 px": (lambda i: i.filter(ImageFilter.GaussianBlur(5)), 140),
    "all: q 30, 256 px, turned, brightened": (
        lambda i: ImageEnhance.Brightness(
            jpeg(i, 30).resize((256, 256)).transpose(Image.Transpose.ROTATE_90)
        ).enhance(1.2),
        140,
    ),
    "cropped by 1 % an edge": (lambda i: cropped(i, 0.01), 130),
    "cropped by 2 % an edge": (lambda i: cropped(i, 0.02), 0),
    "turned by 2 degrees": (lambda i: i.rotate(2, Image.Resampling.BILINEAR), 0),
}


@pytest.mark.long
def test_copies_of_real_pictures_are_found(ph2: Path) -> None:
    images = [Image.fromarray(read_image(case.image)) for case in find_cases(ph2)]
    n = len(images)
    thumbnails = [thumbnail(np.asarray(image)) for image in images]
    alarms = n - len(set(same_pictures(np.stack(thumbnails))))
    print(f"\n{n} pictures, {alarms} false alarms; copies found:")
    assert alarms == 0
    for what, (change, least) in COPIES.items():
        copies = [thumbnail(np.asarray(change(image).convert("RGB"))) for image in images]
        groups = same_pictures(np.stack(thumbnails + copies))
        found = sum(groups[n + i] == groups[i] for i in range(n))
        print(f"{found:4} of {n}  {what}")
        assert found >= least * n / 140, what
