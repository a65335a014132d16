"""Drawings of masks: contours in an image, a mark for review, and cut-outs. No torch."""

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
    """Draw an orange triangle with an exclamation mark into the upper left corner of an image.

    It is large enough to be seen among thumbnails; returns uint8 (H, W, 3).
    """
    drawn = Image.fromarray(image)
    draw = ImageDraw.Draw(drawn)
    edge = max(8, min(image.shape[:2]) / 5)

    def scale(*points: tuple[float, float]) -> list[tuple[float, float]]:
        return [(x * edge, y * edge) for x, y in points]

    draw.polygon(scale((0, 0), (1.06, 0), (0, 1.06)), OUTSIDE)
    draw.polygon(scale((0, 0), (1, 0), (0, 1)), REVIEW)
    draw.polygon(scale((0.21, 0.1), (0.35, 0.1), (0.31, 0.42), (0.25, 0.42)), OUTSIDE)
    draw.ellipse(scale((0.22, 0.47), (0.34, 0.59)), OUTSIDE)
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
