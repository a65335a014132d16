"""Reads masks of any file format and mode as class numbers; README.md lists what is lesion."""

from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageChops
from PIL.TiffImagePlugin import IMAGEDESCRIPTION, SOFTWARE

from seglab.core.errors import InputError
from seglab.data.classes import ONE_CLASS, Classes
from seglab.data.images import is_deep, is_white_zero, open_image

# Anti-aliased edges and JPEG noise leave some pixels of a mask between black and white; a
# photograph has most of its pixels there.
MAX_GREY_SHARE = 0.25
# A share of the pixels. Ringing of JPEG at quality 30 leaves at most 0.03 % flat, resizing 0.03 %.
MAX_AREA_SHARE = 0.001
LOSSY_FORMATS = ("JPEG", "JPEG2000", "MPO", "WEBP")


class DecodedMask(NamedTuple):
    """A mask, and how it was read.

    Attributes:
        mask: Class numbers, uint8 (H, W); 0 and 1 in the binary case.
        value: The value that lesion has in the file, of the brightest channel; None where there is
            no lesion, or `Classes` say which values count.
        note: How a file was read that may also be read in another way, else None. It ends
            'masks are ...'.
    """

    mask: np.ndarray
    value: float | None = None
    note: str | None = None


def read_mask(path: str | Path, classes: Classes = ONE_CLASS) -> np.ndarray:
    """Reads a mask as `decode_mask` does: uint8 (H, W), class numbers."""
    return decode_mask(path, classes).mask


def decode_mask(path: str | Path, classes: Classes = ONE_CLASS) -> DecodedMask:
    """Reads a mask of any mode as class numbers, and says how an ambiguous file was read.

    README.md lists what counts as lesion in each kind of file. With `classes.lesion_values`, these
    values do. A mask of several classes has at each pixel its class's colour where `classes` names
    colours; else its class's number, as a grey value or as an index into a palette.

    Args:
        path: A file of one of `FORMATS`.
        classes: The classes that the mask distinguishes.

    Raises:
        InputError: The file is missing, damaged or no image, a binary mask holds more than one
            class or many grey pixels, or a pixel is of no class.
    """
    image = open_image(path)
    if classes.colours is not None:
        return DecodedMask(_decode_colours(image, classes, path))
    white_is_zero, tags = is_white_zero(image), getattr(image, "tag_v2", {})
    if white_is_zero and image.mode in ("1", "L"):
        image = ImageChops.invert(image)  # back to the stored values
    if classes.is_multiclass:
        return DecodedMask(_decode_numbers(image, classes, path))
    if classes.lesion_values is not None:
        return DecodedMask(_select_values(image, classes.lesion_values, path).astype(np.uint8))
    mask, value = _decode_binary(image, path)
    note = None
    if white_is_zero:
        mask, note = _choose_polarity(mask, tags)
    return DecodedMask(mask, value if mask.any() else None, note)


def looks_inverted(mask: np.ndarray) -> bool:
    """Whether the corners of a binary mask, (H, W), are lesion more than its middle is.

    Over 140 masks of PH2, 80 of people and 1,800 of ISIC it is so for one, ISIC_0012837, whose
    mask is wrong. Of the inverted masks, 2,013 of 2,020 are found. Where the corners hold hardly
    any lesion it is chance which holds more.
    """
    corners, middle = _measure_corners(mask)
    return corners > max(middle, 0.02)


def _measure_corners(mask: np.ndarray) -> tuple[float, float]:
    """Share of lesion in the corners of a mask, and in its middle."""
    height, width = mask.shape
    y, x = max(1, height // 10), max(1, width // 10)
    corners = np.array([mask[:y, :x], mask[:y, -x:], mask[-y:, :x], mask[-y:, -x:]])
    middle = mask[height // 4 : height - height // 4, width // 4 : width - width // 4]
    in_corners, in_middle = np.count_nonzero(corners), np.count_nonzero(middle)
    return in_corners / corners.size, in_middle / middle.size


def _choose_polarity(stored: np.ndarray, tags: Mapping[int, Any]) -> tuple[np.ndarray, str | None]:
    """Decides which of a TIFF's two colours is lesion, if its tags state that 0 is white."""
    program, description = str(tags.get(SOFTWARE)), str(tags.get(IMAGEDESCRIPTION))
    # tifffile writes True as 1 and says so of any bool array; ImageJ's inverting table shows 255,
    # its foreground, in black.
    if program.startswith("tifffile") or description.startswith("ImageJ="):
        return stored, None
    corners, middle = _measure_corners(1 - stored)
    if abs(corners - middle) >= 0.1:
        reason, zero_is_lesion = "corners", corners < middle
    else:  # small lesions, or none
        reason, zero_is_lesion = "area", not 0 < np.mean(stored) < 0.5
    note = (
        f"TIFF files that store white as 0, from an unknown program; judged by their {reason}, 0 "
        f"is taken for {'lesion' if zero_is_lesion else 'background'}"
    )
    return 1 - stored if zero_is_lesion else stored, note


def _decode_binary(image: Image.Image, path: str | Path) -> tuple[np.ndarray, float]:
    """Cuts a mask at one half of its bright value: uint8 (H, W), and that value."""
    rgb = None
    if is_deep(image):
        values = _read_values(image, path)
        levels, counts = np.unique(values, return_counts=True)
    else:
        grey, rgb = _find_brightest(_flatten_alpha(image))
        values, counts = np.asarray(grey), np.array(grey.histogram())
        levels = np.flatnonzero(counts)
        counts = counts[levels]
    if len(levels) <= 2 and levels[0] == 0:
        bright, mask = levels[-1], values > 0
    else:
        is_lossy = image.format in LOSSY_FORMATS
        bright = _find_bright_value(values, levels, counts, is_lossy, path)
        mask = values > 0.5 * bright
    if rgb is not None:
        _refuse_second_colour(rgb, mask, bright, path)
    return mask.astype(np.uint8), float(bright)


def _find_bright_value(
    values: np.ndarray, levels: np.ndarray, counts: np.ndarray, is_lossy: bool, path: str | Path
) -> Any:
    """Finds the value that lesion has in a mask of several grey levels.

    Usually it is white. Otherwise it is the most frequent value of flat bright areas, as the noise
    of JPEG exceeds it. Raises an InputError if there is no background, or other values have areas.
    """
    top = levels[-1]
    white = 1 if top <= 1 else 255 if top <= 255 else 65535
    # Blurred edges and noise leave many levels, dark ones too; otherwise each is meant.
    is_exact = not is_lossy and (len(levels) <= 8 or levels[1] > 0.3 * top)
    in_area = _find_areas(values, top // 50 if is_lossy else 0, is_exact and len(levels) <= 4)
    areas, sizes = np.unique(values[1:-1, 1:-1][in_area], return_counts=True)
    is_bright = areas > 0.5 * top
    if is_bright.any():
        bright = areas[is_bright][sizes[is_bright].argmax()]
    else:
        bright = top if top >= 0.9 * white else np.median(values[values > 0.5 * top])
    bright = white if 0.9 * white <= bright <= white else bright

    # JPEG at quality 30 shows flat areas of up to 1.27 times the bright value.
    dark, least, most = (
        (levels[0], 0.97 * bright, 1.03 * bright)
        if is_exact
        else (0.2 * bright, 0.8 * bright, 1.3 * bright)
    )
    is_other = (areas > dark) & (areas < least) | (areas > most)
    is_grey = (levels > 0.1 * bright) & (levels < 0.9 * bright) | (levels > 1.3 * bright)
    n_lesion = counts[levels > 0.5 * top].sum()
    n_bright = counts[(levels >= 0.9 * bright) & (levels <= 1.1 * bright)].sum()
    # Noise grows with the file; without it, other values are few beside those of lesion.
    most_other = MAX_AREA_SHARE * (values.size if is_lossy else min(values.size, 10 * n_lesion))
    if (
        sizes[is_other].sum() > max(most_other, 20)
        or (bright < 0.9 * white and 2 * n_bright < n_lesion and n_lesion > 0.001 * values.size)
        or counts[is_grey].sum() > MAX_GREY_SHARE * values.size
        or (levels[0] > 0.5 * bright and (len(levels) > 2 or levels[0] < 0.9 * white))  # no black
        or (0.1 * bright < levels[0] < 0.97 * top and len(levels) == 2)  # no edge is grey
        or 1 < top < 32
    ):
        frequent = [f"{value:g}" for value in levels[np.argsort(-counts, kind="stable")]]
        raise InputError(
            f"{path}: not a mask: {', '.join(frequent[:4])} are its most frequent of {len(levels)} "
            "values; expected 0 for background and one value for lesion; for labels, say which are "
            "lesion with data.lesion_values=nonzero or a list such as [2,3]; for classes, name "
            "them with data.classes"
        )
    return bright


def _find_areas(values: np.ndarray, tolerance: Any, with_lines: bool = False) -> np.ndarray:
    """Where a pixel is no edge: bool (H - 2, W - 2).

    Its 3 x 3 neighbours differ by no more than a tolerance, or, with lines, are all as bright or
    all as dark as it is.
    """
    low = high = values
    for _ in range(2):  # rows, then columns
        low = np.minimum(np.minimum(low[:-2], low[1:-1]), low[2:]).T
        high = np.maximum(np.maximum(high[:-2], high[1:-1]), high[2:]).T
    if with_lines:
        return (values[1:-1, 1:-1] == low) | (values[1:-1, 1:-1] == high)
    return high - low <= tolerance


def _find_brightest(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Brightest channel of an image of 8 bits, and the image in RGB if it is coloured.

    Not luminance: a pure blue lesion is a lesion.
    """
    if image.mode in ("1", "L"):
        return image.convert("L"), None
    image = image.convert("RGB")
    red, *others = image.split()
    if all(ImageChops.difference(red, band).getbbox() is None for band in others):
        return red, None
    return reduce(ImageChops.lighter, others, red), image


def _refuse_second_colour(
    rgb: Image.Image, mask: np.ndarray, bright: float, path: str | Path
) -> None:
    """Refuses a mask of two colours neither of which is black, or with two colours of lesion."""
    two: Any = rgb.getcolors(2) or ()
    has_two = len(two) == 2 and all(max(colour) > 0.1 * bright for _, colour in two)
    for band in map(np.asarray, rgb.split()):
        inner = band[1:-1, 1:-1][_find_areas(band, 5) & mask[1:-1, 1:-1]]
        if inner.size:
            distance = np.abs(inner - np.float32(np.bincount(inner).argmax()))
            has_two |= np.sum(distance > 0.3 * bright) > MAX_AREA_SHARE * mask.size
    if has_two:
        colours: Any = rgb.getcolors(rgb.width * rgb.height)
        frequent = [f"#{bytes(colour).hex()}" for _, colour in sorted(colours, reverse=True)]
        raise InputError(
            f"{path}: not a mask: {', '.join(frequent[:3])} are its most frequent of "
            f"{len(frequent)} colours; expected black for background and one colour for lesion; "
            "save it so, name classes with data.classes and data.colours, or take all colours with "
            "data.lesion_values=nonzero"
        )


def _flatten_alpha(image: Image.Image) -> Image.Image:
    """Turns transparent pixels black, or takes the alpha channel if one colour was drawn alone.

    An alpha channel of one value everywhere says nothing.
    """
    image, alpha = _split_alpha(image)
    if alpha is None:
        return image
    opacity = np.asarray(alpha)
    opaque = np.asarray(image)[opacity == opacity.max()]
    if opacity.min() == 0 and (opaque == opaque[0]).all():
        return alpha
    return Image.composite(image, Image.new(image.mode, image.size), alpha)


def _split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """RGB of an image, and its alpha channel if it has one that varies."""
    if image.mode in ("LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode != "RGBA":
        return image, None
    rgb, alpha = image.convert("RGB"), image.getchannel("A")
    least, most = alpha.getextrema()
    if most == 0 and len(rgb.getcolors(1) or ()) == 1:  # nothing was drawn
        rgb = Image.new("RGB", image.size)
    return rgb, None if least == most else alpha


def _select_values(
    image: Image.Image, lesion_values: Sequence[int] | str, path: str | Path
) -> np.ndarray:
    """Takes the pixels of these grey values, or indices of a coloured palette, as lesion."""
    if image.format in LOSSY_FORMATS:
        raise InputError(
            f"{path}: {image.format} need not keep values; expected a PNG for "
            f"data.lesion_values={lesion_values}, or data.lesion_values=null"
        )
    values = _read_values(image, path, any_colour=lesion_values == "nonzero")
    return values != 0 if lesion_values == "nonzero" else np.isin(values, lesion_values)


def _decode_numbers(image: Image.Image, classes: Classes, path: str | Path) -> np.ndarray:
    """Takes grey values or palette indices as class numbers: uint8 (H, W)."""
    values = np.asarray(image) if image.mode == "P" else _read_values(image, path)
    unknown = values[~np.isin(values, np.arange(len(classes.names)))]
    if unknown.size:
        raise InputError(
            f"{path}: holds {unknown[0]}, which is no class; expected 0 to "
            f"{len(classes.names) - 1} for {', '.join(classes.names)}; add a class for it, or "
            "name colours in data.colours"
        )
    return values.astype(np.uint8)


def _read_values(image: Image.Image, path: str | Path, any_colour: bool = False) -> np.ndarray:
    """Grey values as stored, or indices of a coloured palette; transparent pixels are 0.

    Raises an InputError if the image is coloured, unless with `any_colour`.
    """
    if is_deep(image) or image.mode == "1":
        values = np.asarray(image)
        if not np.isfinite(values).all() or values.min() < 0:
            raise InputError(f"{path}: negative or not finite values; save the mask with 8 bits")
        return values
    rgb, alpha = _split_alpha(image)
    brightest, colours = _find_brightest(rgb)
    values = np.asarray(brightest if colours is None or image.mode != "P" else image)
    if colours is not None and image.mode != "P" and not any_colour:
        raise InputError(
            f"{path}: is coloured; expected class numbers, grey or with a palette, or name the "
            "classes' colours in data.colours"
        )
    return values if alpha is None else np.where(np.asarray(alpha) > 127, values, 0)


def _decode_colours(image: Image.Image, classes: Classes, path: str | Path) -> np.ndarray:
    """Maps colours to class numbers: uint8 (H, W)."""

    def pack(rgb: np.ndarray) -> np.ndarray:
        return rgb.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)

    if is_deep(image):
        raise InputError(
            f"{path}: has no colours; expected 8 bits a channel, or data.colours=null for numbers"
        )
    rgb, alpha = _split_alpha(image)
    packed = pack(np.asarray(rgb.convert("RGB")))
    numbers = np.full(packed.shape, 255, np.uint8)
    for number, colour in enumerate(pack(classes.palette)):
        numbers[packed == colour] = number
    if alpha is not None:
        numbers[np.asarray(alpha) <= 127] = 0
    unknown = packed[numbers == 255]
    if unknown.size:
        raise InputError(
            f"{path}: holds #{unknown[0]:06x}, which is no class's colour; expected "
            f"{', '.join(classes.colours or ())}"
        )
    return numbers
