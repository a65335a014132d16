"""Drawings of masks: contours in an image, a mark for review, cut-outs, PNG files. No torch."""

import io

import numpy as np
from PIL import Image, ImageDraw, ImageOps
from scipy.ndimage import binary_dilation, binary_erosion

from seglab.data.classes import ONE_CLASS, Classes
from seglab.metrics.boundary import EIGHT_NEIGHBOURS

# Differ from skin, hair, lesions and streets alike, for the colour-blind too.
CONTOUR, OUTSIDE = (0, 255, 255), (0, 0, 0)
REVIEW = (255, 140, 0)


def draw_contours(
    image: np.ndarray, mask: np.ndarray, classes: Classes = ONE_CLASS, width: int | None = None
) -> np.ndarray:
    """Draw the contours of a mask into its image: a bright line with a dark edge outside.

    Args:
        image: uint8 (H, W, 3).
        mask: Class numbers, uint8 (H, W); each class is outlined in its colour, in the binary case
            in `CONTOUR`.
        classes: Classes of the mask.
        width: Of the line and of its edge, in pixels; by default in proportion to the image.

    Returns:
        uint8 (H, W, 3).
    """
    width = width or max(1, round(max(mask.shape) / 500))
    palette = classes.palette if classes.is_multiclass else np.array([OUTSIDE, CONTOUR])
    regions = {number: mask == number for number in classes.foreground}
    out = image.copy()
    for region in regions.values():
        out[binary_dilation(region, EIGHT_NEIGHBOURS, width) & ~region] = OUTSIDE
    # Lines come last, so that no class's dark edge hides the line of one that it touches.
    for number, region in regions.items():
        inner = binary_erosion(region, EIGHT_NEIGHBOURS, width, border_value=1)
        out[region & ~inner] = palette[number]
    return out


def draw_review_mark(image: np.ndarray) -> np.ndarray:
    """Draw an orange triangle into the upper left corner of an image, both uint8 (H, W, 3).

    It is large enough to be seen among thumbnails.
    """
    drawn = Image.fromarray(image)
    edge = max(8, min(image.shape[:2]) / 5)
    for length, colour in ((1.06 * edge, OUTSIDE), (edge, REVIEW)):
        ImageDraw.Draw(drawn).polygon([(0, 0), (length, 0), (0, length)], colour)
    return np.asarray(drawn)


def cut_out(
    image: np.ndarray, mask: np.ndarray, background: np.ndarray | None = None
) -> np.ndarray:
    """Cut out what a mask, bool (H, W), covers of an image, uint8 (H, W, 3).

    Returns uint8 (H, W, 4), transparent elsewhere; or (H, W, 3) before a background, an image of
    any size that is scaled and cropped to (H, W).
    """
    if background is None:
        return np.dstack([image, mask * np.uint8(255)])
    height, width = mask.shape
    behind = ImageOps.fit(Image.fromarray(background), (width, height), Image.Resampling.LANCZOS)
    return np.where(mask[..., None], image, np.asarray(behind))


def encode_mask(mask: np.ndarray, classes: Classes = ONE_CLASS) -> bytes:
    """Encode a mask, uint8 (H, W) of class numbers, as PNG.

    One class is white on black; several are indices into a palette of their colours.
    """
    if classes.is_multiclass:
        return encode_png(mask, classes.palette)
    return encode_png(mask * np.uint8(255))


def encode_png(pixels: np.ndarray, palette: np.ndarray | None = None) -> bytes:
    """Encode an array as PNG; with a palette, uint8 (K, 3), its values are indices into this."""
    image = Image.fromarray(pixels)
    if palette is not None:
        image.putpalette(palette.tobytes())
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()
