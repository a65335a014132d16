"""Reads masks of any file format and mode as class numbers; README.md lists what is lesion."""

from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageChops

from seglab.core.errors import InputError
from seglab.data.classes import ONE_CLASS, Classes
from seglab.data.images import is_deep, open_image

# Anti-aliased edges and JPEG noise leave some pixels of a mask between black and white; a
# photograph has most of its pixels there.
MAX_GREY_SHARE = 0.25


def read_mask(path: str | Path, classes: Classes = ONE_CLASS) -> np.ndarray:
    """Reads a mask as `decode_mask` does: uint8 (H, W), class numbers."""
    return decode_mask(path, classes)[0]


def decode_mask(path: str | Path, classes: Classes = ONE_CLASS) -> tuple[np.ndarray, str | None]:
    """Reads a mask of any mode as class numbers, and says how an ambiguous file was read.

    A binary mask may be 1-bit, 8-bit (0 and 255, or 0 and 1), 24-bit, RGBA, of a palette (the
    colours count, not the indices), 16-bit or anti-aliased: pixels above one half of the mask's
    white are 1. A mask of several classes has at each pixel its class's colour where `classes`
    names colours; else its class's number, as a grey value or as an index into a palette.

    Args:
        path: A file of one of `FORMATS`.
        classes: The classes that the mask distinguishes.

    Returns:
        uint8 (H, W), class numbers, 0 and 1 in the binary case; and a note for the log if the file
        may also be read in another way, else None.

    Raises:
        InputError: The file is missing, damaged or no image, a binary mask has many grey pixels,
            or a pixel is of no class.
    """
    image = open_image(path)
    if not classes.is_multiclass:
        return _decode_binary(image, path).astype(np.uint8), None
    if classes.colours is None:
        return _decode_numbers(image, classes, path), None
    return _decode_colours(image, classes, path), None


def looks_inverted(mask: np.ndarray) -> bool:
    """Whether the corners of a binary mask, (H, W), are lesion more than its middle is.

    Over 140 masks of PH2, 80 of people and 1,800 of ISIC it is so for one, ISIC_0012837, whose
    mask is wrong. Of the inverted masks, 2,015 of 2,020 are found.
    """
    height, width = mask.shape
    y, x = max(1, height // 10), max(1, width // 10)
    corners = [mask[:y, :x], mask[:y, -x:], mask[-y:, :x], mask[-y:, -x:]]
    middle = mask[height // 4 : height - height // 4, width // 4 : width - width // 4]
    return bool(np.mean(corners) > middle.mean())


def _decode_binary(image: Image.Image, path: str | Path) -> np.ndarray:
    """Cuts a mask at one half of its white: bool (H, W)."""
    if is_deep(image):
        values = np.asarray(image)
        if not np.isfinite(values).all() or values.min() < 0:
            raise InputError(
                f"{path}: not a mask: negative or not finite values; save it with 8 bits"
            )
        levels, counts = np.unique(values, return_counts=True)
    else:
        # The brightest channel, not luminance: a pure blue lesion is a lesion.
        bands = _flatten_alpha(image).convert("L" if image.mode in ("1", "L") else "RGB").split()
        brightest = reduce(ImageChops.lighter, bands)
        values, counts = np.asarray(brightest), np.array(brightest.histogram())
        levels = np.flatnonzero(counts)
        counts = counts[levels]

    if len(levels) <= 2 and levels[0] == 0:
        return values > 0
    white = 1 if levels[-1] == 1 else 255 if levels[-1] <= 255 else 65535
    if levels[-1] <= 0.5 * white:
        raise InputError(
            f"{path}: not a mask: {len(levels)} grey values, the greatest {levels[-1]}, as if they "
            "were class numbers; expected 0 for background and one other value for lesion"
        )
    share = counts[(levels > 0.1 * white) & (levels < 0.9 * white)].sum() / values.size
    if share > MAX_GREY_SHARE or (levels[0] > 0.5 * white and len(levels) > 2):
        raise InputError(
            f"{path}: not a mask: {share:.0%} of its pixels are neither black nor white; expected "
            "a lesion mask with 0 for background and 1, 255 or 65535 for lesion"
        )
    return values > 0.5 * white


def _flatten_alpha(image: Image.Image) -> Image.Image:
    """Turns transparent pixels black, or takes the alpha channel if nothing else was drawn on."""
    if image.mode in ("LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode != "RGBA":
        return image
    alpha = image.getchannel("A")
    extrema: Any = image.convert("RGB").getextrema()
    if all(low == high for low, high in extrema) and np.asarray(alpha).min() < 255:
        return alpha
    black = Image.new("RGBA", image.size, (0, 0, 0, 255))
    return Image.alpha_composite(black, image)


def _decode_numbers(image: Image.Image, classes: Classes, path: str | Path) -> np.ndarray:
    """Takes grey values or palette indices as class numbers: uint8 (H, W)."""
    if image.mode in ("1", "L", "P") or is_deep(image):
        values = np.asarray(image)
    else:
        values, *other_bands = (np.asarray(band) for band in image.convert("RGB").split())
        if any((band != values).any() for band in other_bands):
            raise InputError(
                f"{path}: is coloured; expected class numbers, grey or with a palette, or name "
                "the classes' colours in data.colours"
            )
    unknown = values[~np.isin(values, np.arange(len(classes.names)))]
    if unknown.size:
        raise InputError(
            f"{path}: holds {unknown[0]}, which is no class; expected 0 to "
            f"{len(classes.names) - 1} for {', '.join(classes.names)}; add a class for it, or "
            "name colours in data.colours"
        )
    return values.astype(np.uint8)


def _decode_colours(image: Image.Image, classes: Classes, path: str | Path) -> np.ndarray:
    """Maps colours to class numbers: uint8 (H, W)."""

    def pack(rgb: np.ndarray) -> np.ndarray:
        return rgb.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)

    if is_deep(image):
        raise InputError(
            f"{path}: has no colours; expected 8 bits a channel, or data.colours=null for numbers"
        )
    packed = pack(np.asarray(image.convert("RGB")))
    numbers = np.full(packed.shape, 255, np.uint8)
    for number, colour in enumerate(pack(classes.palette)):
        numbers[packed == colour] = number
    unknown = packed[numbers == 255]
    if unknown.size:
        raise InputError(
            f"{path}: holds #{unknown[0]:06x}, which is no class's colour; expected "
            f"{', '.join(classes.colours or ())}"
        )
    return numbers
