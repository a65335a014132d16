"""Opens image files of any format, and reads those that are pictures."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps, TiffImagePlugin

from seglab.core.errors import InputError
from seglab.core.files import expand_user

# Lossless first: copies of PH2 carry JPEG versions beside the BMPs.
_USUAL_SUFFIXES = (".bmp", ".png", ".tif", ".tiff", ".jpg", ".jpeg")
_OTHER_SUFFIXES = ".gif .jp2 .pgm .ppm .webp .dib .j2k .jfif .jpe .pbm .pnm"
SUFFIXES = (*_USUAL_SUFFIXES, *_OTHER_SUFFIXES.split())
# Whatever the suffix says. Of others, EPS starts a program: Ghostscript.
FORMATS = ("BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
ImageLike = np.ndarray | Image.Image | str | Path
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
    return _to_rgb(open_image(path), path)


def to_array(image: ImageLike) -> np.ndarray:
    """Returns an image as `read_image` does; raises an InputError for anything else.

    The pixels of a Pillow image are taken as they stand: what turns a file, EXIF, is left out.
    """
    if isinstance(image, str | Path):
        return read_image(expand_user(image))
    if isinstance(image, Image.Image):
        return _to_rgb(image, "image")
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape[2:] == (3,):
        return image
    kind, shape = (getattr(image, key, "") for key in ("dtype", "shape"))
    raise InputError(
        "image: expected a path, a Pillow image (Image.fromarray makes one) or an RGB array, uint8 "
        f"(H, W, 3), not {kind or type(image).__name__} {shape}"
    )


def _to_rgb(image: Image.Image, path: str | Path) -> np.ndarray:
    if not is_deep(image):
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    values = np.asarray(image)
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > 65535:
        raise InputError(f"{path}: pixel values outside 0 to 65535; save it with 8 or 16 bits")
    _check_range(path, int(values.max()))
    if is_white_zero(image):  # Pillow inverts 1 and 8 bits, not 16
        values = 65535 - values.astype(np.uint32)
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
        _check_pages(path, image)
        # Pillow takes the upper 8 bits of colours of 16.
        is_cut = not is_deep(image) and any(";16" in str(tile) for tile in image.tile)
        ImageOps.exif_transpose(image, in_place=True)
        if is_cut:
            _check_range(path, int(np.asarray(image.convert("RGB")).max()) * 256)
        return image


@contextmanager
def _name_in_errors(path: str | Path) -> Iterator[None]:
    """Turns whatever an image file raises into an InputError that names it."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected an image") from None
    except Exception as error:  # Pillow's plugins raise a dozen kinds on damaged files
        reason = "empty file" if Path(path).is_file() and not Path(path).stat().st_size else error
        raise InputError(
            f"{path}: cannot be read as an image ({reason}); replace it with an undamaged "
            "copy, or save it as a PNG of 8 bits"
        ) from error


def _check_pages(path: str | Path, image: ImageFile.ImageFile) -> None:
    """Refuses files of several pictures, and those whose channels Pillow reads wrongly."""
    # Further JPEGs in a JPEG file are previews or depth maps.
    pages = getattr(image, "n_frames", 1) if image.format != "MPO" else 1
    if pages > 1:
        first = image.size
        image.seek(1)
        is_smaller = image.width < first[0] and image.height < first[1]  # a preview
        image.seek(0)
        if not is_smaller:
            raise InputError(
                f"{path}: holds {pages} pages, frames or channels in a row, of which only the "
                "first would be read; save the right one, or all channels of a picture, as PNG"
            )
    tags = getattr(image, "tag_v2", {})
    if (
        tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2
        and max(tags[TiffImagePlugin.BITSPERSAMPLE]) > 8
    ):
        raise InputError(
            f"{path}: holds channels of 16 bits one after the other, which Pillow reads wrongly; "
            "save it with 8 bits, or with the channels of each pixel together"
        )


def _check_range(path: str | Path, highest: int) -> None:
    """Refuses 16-bit files that use less than a quarter of the range."""
    if highest < 2**14:
        raise InputError(
            f"{path}: its highest value is about {highest} of 65535, as if fewer bits were stored "
            "in 16, and would be nearly black; save all files with 8 bits, scaled by one factor"
        )


def is_white_zero(image: Image.Image) -> bool:
    """Whether a grey TIFF file states that 0 is white."""
    return getattr(image, "tag_v2", {}).get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0


def _bmp_bits(path: str | Path) -> int:
    """Bits a pixel, as the header of a BMP file states them."""
    with Path(path).open("rb") as file:
        return int.from_bytes(file.read(30)[28:], "little")


def is_deep(image: Image.Image) -> bool:
    """Whether an image has one channel of more than 8 bits."""
    return image.mode.startswith("I") or image.mode == "F"
