"""Opens image files of any format, and reads those that are pictures."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from seglab.core.errors import InputError

# Lossless first: copies of PH2 carry JPEG versions beside the BMPs.
_USUAL_SUFFIXES = (".bmp", ".png", ".tif", ".tiff", ".jpg", ".jpeg")
SUFFIXES = (*_USUAL_SUFFIXES, ".gif", ".jp2", ".pgm", ".ppm", ".webp")
# Whatever the suffix says. Of others, EPS starts a program: Ghostscript.
FORMATS = ("BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
# A header may claim any size; beyond this the file is refused before memory is allocated.
MAX_PIXELS = Image.MAX_IMAGE_PIXELS or 2**26
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
    image = open_image(path)
    if not is_deep(image):
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    values = np.asarray(image)
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > 65535:
        raise InputError(f"{path}: pixel values outside 0 to 65535; save it with 8 or 16 bits")
    return np.repeat((values.astype(np.uint32) // 257).astype(np.uint8)[..., None], 3, axis=2)


def read_orientation(path: str | Path) -> int:
    """Reads the EXIF orientation of an image file, 1 to 8; 1 if it states none.

    Reads the header only. Raises an InputError if the file is missing, damaged or no image.
    """
    with _name_in_errors(path), Image.open(path, formats=FORMATS) as image:
        # PNG's own getexif decodes the picture, to find what follows it.
        exif = Image.Image.getexif(image)
        orientation = exif.get(ExifTags.Base.Orientation, 1)
        return orientation if orientation in range(1, 9) else 1


def open_image(path: str | Path) -> Image.Image:
    """Opens and decodes an image file, turned as its EXIF orientation says.

    Raises an InputError if the file is missing, damaged or no image.
    """
    with _name_in_errors(path), Image.open(path, formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels, at most {MAX_PIXELS:,}")
        if image.format == "BMP" and image.mode == "1" and _bmp_bits(path) != 1:
            # Pillow goes by the number of colours and takes a byte for eight pixels.
            raise ValueError("two colours at several bits a pixel; save it as PNG")
        ImageOps.exif_transpose(image, in_place=True)
        return image


@contextmanager
def _name_in_errors(path: str | Path) -> Iterator[None]:
    """Turns whatever an image file raises into an InputError that names it."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected an image") from None
    except Exception as error:  # Pillow's plugins raise a dozen kinds on damaged files
        reason = "empty file" if Path(path).is_file() and not Path(path).stat().st_size else error
        raise InputError(
            f"{path}: cannot be read as an image ({reason}); replace it with an undamaged copy"
        ) from error


def _bmp_bits(path: str | Path) -> int:
    """Bits a pixel, as the header of a BMP file states them."""
    with Path(path).open("rb") as file:
        return int.from_bytes(file.read(30)[28:], "little")


def is_deep(image: Image.Image) -> bool:
    """Whether an image has one channel of more than 8 bits."""
    return image.mode.startswith("I") or image.mode == "F"
