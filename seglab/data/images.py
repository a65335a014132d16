"""Reads any image and any mask, and brings them to network size: the only place that does."""

from __future__ import annotations

import warnings
from functools import lru_cache, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageChops, ImageOps

from seglab.core.errors import InputError
from seglab.data.classes import ONE_CLASS, Classes

if TYPE_CHECKING:
    from scipy.sparse import csr_array

# Lossless first: copies of PH2 carry JPEG versions beside the BMPs.
SUFFIXES = (".bmp", ".png", ".tif", ".tiff", ".jpg", ".jpeg")
# Anti-aliased edges and JPEG noise leave some pixels of a mask between black and white; a
# photograph has most of its pixels there.
MAX_GREY_SHARE = 0.25
# A header may claim any size; beyond this the file is refused before memory is taken.
MAX_PIXELS = Image.MAX_IMAGE_PIXELS or 2**26
# Pixel values that are turned to float32 at a time: of large images they take four times as much.
_BLOCK = 2**24
# Whatever the suffix says. Of others, EPS starts a program: Ghostscript.
FORMATS = ("BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def read_image(path: str | Path) -> np.ndarray:
    """Reads an image of any mode as RGB, turned as its EXIF orientation says.

    Args:
        path: A file of one of `FORMATS`. Grey, palette, CMYK, 16-bit and images with an alpha
            channel are converted; the alpha channel is dropped.

    Returns:
        uint8 (H, W, 3), values 0 to 255.

    Raises:
        InputError: The file is missing, damaged or no image.
    """
    image = _open(path)
    if _is_deep(image):
        grey = _deep_to_uint8(np.asarray(image), path)
        return np.repeat(grey[..., None], 3, axis=2)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def read_mask(path: str | Path, classes: Classes = ONE_CLASS) -> np.ndarray:
    """Reads a mask of any mode: of one class, what is bright is lesion.

    1-bit, 8-bit (0 and 255, or 0 and 1), 24-bit, RGBA, palette (the colours count, not the
    indices), 16-bit and anti-aliased masks all give the same mask. Pixels above one half of the
    mask's white are lesion.

    Of several classes, each pixel has its class's colour where `classes` names colours; else it
    has its class's number, as a grey value or as the index of its colour in a palette.

    Args:
        path: A file of one of `FORMATS`.
        classes: What it is a mask of.

    Returns:
        bool (H, W), True for lesion; of several classes their numbers, uint8 (H, W).

    Raises:
        InputError: The file is missing, damaged, no image, so grey that it is no mask, or holds
            what is of no class.
    """
    image = _open(path)
    if classes.is_multiclass:
        read = _by_number if classes.colours is None else _by_colour
        return read(image, classes, path)
    if _is_deep(image):
        values = np.asarray(image)
        if not np.isfinite(values).all() or values.min() < 0:
            raise InputError(f"{path}: not a mask: negative or no numbers; save it with 8 bits")
        levels, counts = np.unique(values, return_counts=True)
    else:
        if image.mode in ("LA", "PA", "La", "RGBa") or "transparency" in image.info:
            image = image.convert("RGBA")
        if image.mode == "RGBA":
            alpha = np.asarray(image.getchannel("A"))
            extrema: Any = image.convert("RGB").getextrema()
            plain = all(low == high for low, high in extrema)
            if plain and alpha.min() < 255:  # drawn in transparency alone
                image = image.getchannel("A")
            else:  # what is transparent is background, whatever its colour
                black = Image.new("RGBA", image.size, (0, 0, 0, 255))
                image = Image.alpha_composite(black, image)
        # The brightest channel, not luminance: a pure blue lesion is a lesion.
        bands = image.convert("L" if image.mode in ("1", "L") else "RGB").split()
        brightest = reduce(ImageChops.lighter, bands)
        values, counts = np.asarray(brightest), np.array(brightest.histogram())
        levels = np.flatnonzero(counts)
        counts = counts[levels]

    if len(levels) <= 2 and levels[0] == 0:
        return values > 0
    white = 1 if levels[-1] == 1 else 255 if levels[-1] <= 255 else 65535
    if levels[-1] <= 0.5 * white:
        raise InputError(
            f"{path}: not a mask: {len(levels)} grey values, the greatest {levels[-1]}, as of "
            "class numbers; expected 0 for background and one other value for lesion"
        )
    share = counts[(levels > 0.1 * white) & (levels < 0.9 * white)].sum() / values.size
    if share > MAX_GREY_SHARE or (levels[0] > 0.5 * white and len(levels) > 2):
        raise InputError(
            f"{path}: not a mask: {share:.0%} of its pixels are neither black nor white; expected "
            "a lesion mask (0 for background, 1, 255 or 65535 for lesion), put it in this place"
        )
    return values > 0.5 * white


def to_network_size(
    image: np.ndarray, mask: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Resizes a pair as the recipe does: the image anti-aliased, the mask cut at one half.

    Of several classes a pixel takes the one that covers most of it, of equal ones the first.

    Args:
        image: uint8 (H, W, 3).
        mask: bool (H, W), or of several classes their numbers, uint8 (H, W).
        size: Edge of the square result, in pixels.

    Returns:
        uint8 (size, size, 3), and the mask in its own type (size, size).
    """
    small = image_to_network_size(image, size)
    if mask.shape == (size, size):
        return small, mask
    from skimage.transform import resize  # heavy, not needed with a cache

    def share(part: np.ndarray) -> np.ndarray:
        return resize(part.astype(np.float64), (size, size), order=1, anti_aliasing=False)

    if mask.dtype == bool:
        # Many a pixel is exactly one half: it falls as scikit-image's arithmetic has it.
        return small, share(mask) > 0.5
    shares = [share(mask == number) for number in range(mask.max() + 1)]
    return small, np.argmax(shares, axis=0).astype(np.uint8)


def image_to_network_size(image: np.ndarray, size: int) -> np.ndarray:
    """Resizes an image as scikit-image's `resize` does with anti-aliasing, many times faster.

    Args:
        image: uint8 (H, W, 3).
        size: Edge of the square result, in pixels.

    Returns:
        uint8 (size, size, 3), rounded.
    """
    height, width, channels = image.shape
    if height == width == size:
        return image
    # Linear along each axis by itself, so two products with sparse matrices. float32 suffices:
    # the result is rounded to uint8.
    flat, along = image.reshape(height, -1), _resizing(height, size)
    step = max(1, _BLOCK // height)
    starts = range(0, flat.shape[1], step)
    rows = np.hstack([along @ flat[:, i : i + step].astype(np.float32) for i in starts])
    small = (_resizing(width, size, channels) @ rows.T).T
    return np.rint(small).astype(np.uint8, order="C").reshape(size, size, channels)


@lru_cache(maxsize=128)
def _resizing(n: int, size: int, channels: int = 1) -> csr_array:
    """The matrix that scikit-image's anti-aliased `resize` is along an axis.

    A Gaussian of sigma (n / size - 1) / 2, cut at 4 sigma, then linear interpolation; beyond its
    edges the axis goes on as its mirror image.

    Args:
        n: Length of the axis.
        size: What it is resized to.
        channels: How many values a place of the axis holds, each resized by itself.

    Returns:
        float32 (size * channels, n * channels).
    """
    from scipy.sparse import csr_array, eye_array, kron  # heavy, not needed with a cache

    scale = n / size
    sigma = (scale - 1) / 2
    radius = int(4 * sigma + 0.5) if sigma > 0 else 0
    offsets = np.arange(-radius, radius + 1)
    gaussian = np.exp(-0.5 * (offsets / sigma) ** 2) if radius else np.ones(1)
    gaussian /= gaussian.sum()
    at = (np.arange(size) + 0.5) * scale - 0.5
    left = np.floor(at).astype(int)
    share = (at - left)[:, None]
    weights = np.zeros((size, 2 * radius + 2), np.float32)
    weights[:, :-1] = (1 - share) * gaussian
    weights[:, 1:] += share * gaussian
    # `left` is -1 or more, so the leftmost source pixel is -1 - radius: place 0 of `source`.
    source = np.pad(np.arange(n), radius + 1, "reflect")
    columns = source[left[:, None] + 1 + np.arange(2 * radius + 2)]
    starts = np.arange(size + 1) * weights.shape[1]
    matrix = csr_array((weights.ravel(), columns.ravel(), starts), (size, n))
    return csr_array(kron(matrix, eye_array(channels, dtype=np.float32)))


def _open(path: str | Path) -> Image.Image:
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels, at most {MAX_PIXELS:,}")
            if image.format == "BMP" and image.mode == "1" and _bmp_bits(path) != 1:
                # Pillow goes by the number of colours and takes a byte for eight pixels.
                raise ValueError("two colours at several bits a pixel; save it as PNG")
            image.load()
            return ImageOps.exif_transpose(image)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected an image") from None
    except Exception as error:  # Pillow's plugins raise a dozen kinds on damaged files
        reason = "empty file" if Path(path).is_file() and not Path(path).stat().st_size else error
        raise InputError(
            f"{path}: cannot be read as an image ({reason}); replace it with an undamaged copy"
        ) from error


def _by_number(image: Image.Image, classes: Classes, path: str | Path) -> np.ndarray:
    if image.mode not in ("1", "L", "P") and not _is_deep(image):
        bands = [np.asarray(band) for band in image.convert("RGB").split()]
        if any((band != bands[0]).any() for band in bands):
            raise InputError(
                f"{path}: is coloured; expected class numbers, grey or with a palette, or name "
                "the classes' colours in data.colours"
            )
        values = bands[0]
    else:
        values = np.asarray(image)
    wrong = values[~np.isin(values, np.arange(len(classes.names)))]
    if wrong.size:
        raise InputError(
            f"{path}: holds {wrong[0]}, which is no class; expected 0 to {len(classes.names) - 1} "
            f"for {', '.join(classes.names)}; add a class for it, or name colours in data.colours"
        )
    return values.astype(np.uint8)


def _by_colour(image: Image.Image, classes: Classes, path: str | Path) -> np.ndarray:
    def code(rgb: np.ndarray) -> np.ndarray:
        return rgb.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)

    if _is_deep(image):
        raise InputError(
            f"{path}: has no colours; expected 8 bits a channel, or data.colours=null for numbers"
        )
    codes, known = code(np.asarray(image.convert("RGB"))), code(classes.palette)
    numbers = np.full(codes.shape, 255, np.uint8)
    for number, colour in enumerate(known):
        numbers[codes == colour] = number
    wrong = codes[numbers == 255]
    if wrong.size:
        raise InputError(
            f"{path}: holds #{wrong[0]:06x}, which is no class's colour; expected "
            f"{', '.join(classes.colours or ())}"
        )
    return numbers


def _bmp_bits(path: str | Path) -> int:
    with Path(path).open("rb") as file:
        return int.from_bytes(file.read(30)[28:], "little")


def _is_deep(image: Image.Image) -> bool:
    return image.mode.startswith("I") or image.mode == "F"


def _deep_to_uint8(values: np.ndarray, path: str | Path) -> np.ndarray:
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > 65535:
        raise InputError(f"{path}: pixel values outside 0 to 65535; save it with 8 or 16 bits")
    return (values.astype(np.uint32) // 257).astype(np.uint8)
