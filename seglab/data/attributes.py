"""Measures attributes of a case in its image and mask: what may make a lesion hard to segment."""

from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from seglab.data.cases import Case
from seglab.metrics.boundary import EIGHT_NEIGHBOURS

# Lengths are in pixels of a copy whose longer edge has this many, lightness in L* of CIE Lab.
EDGE = 256
DARK = 25  # corners are darker
HAIR_WIDTH, HAIR_LENGTH, HAIR_CONTRAST = 9, 32, 8
# Attributes that are cut here into slices, at most this and above, instead of into thirds.
FIXED_BOUNDS = {"frame_share": 0.0, "pieces": 1.0, "hair": 0.005, "dark_corners": 0.01}


def describe_case(case: Case, image: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
    """Returns a row of case_attributes.csv: id, attributes from tables, measured attributes."""
    return {"id": case.id, **case.attributes, **measure_attributes(image, mask)}


def measure_attributes(image: np.ndarray, mask: np.ndarray) -> dict[str, float | None]:
    """Measures the attributes that the package's README.md defines.

    Args:
        image: uint8 (H, W, 3).
        mask: Class numbers, uint8 (H, W); lesion is all but 0.

    Returns:
        Values by name; None where the definition needs a surround, and the mask is empty or leaves
        less than 0.5 % of the picture.
    """
    from skimage.color import rgb2lab  # slow to import, not needed where tables are read

    native = mask > 0
    outermost = [native[0], native[-1], native[1:-1, 0], native[1:-1, -1]]
    height, width = native.shape
    scale = EDGE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    picture = Image.fromarray(image).resize(size, Image.Resampling.BOX, reducing_gap=1.0)
    lab = rgb2lab(np.asarray(picture, np.float32) / 255)  # of uint8 it takes four times as long
    lesion_copy = Image.fromarray(native.astype(np.uint8) * 255)
    lesion = np.asarray(lesion_copy.resize(size, Image.Resampling.BOX)) > 127
    corners = _find_dark_corners(lab[..., 0], lesion)
    usable = ~ndimage.maximum_filter(corners, 17)  # what is not within 8 pixels of them
    usable[:4] = usable[-4:] = usable[:, :4] = usable[:, -4:] = False
    return {
        "lesion_share": float(native.mean()),
        "frame_share": float(np.concatenate(outermost).mean()),
        "pieces": int(ndimage.label(native, EIGHT_NEIGHBOURS)[1]),
        **_measure_border(lab, lesion, usable),
        "hair": float(_find_hair(lab[..., 0], usable).mean()),
        "dark_corners": float(corners.mean()),
    }


def _find_dark_corners(lightness: np.ndarray, lesion: np.ndarray) -> np.ndarray:
    """Returns the dark regions that reach a corner, bool (H, W)."""
    regions = ndimage.label((lightness < DARK) & ~lesion, EIGHT_NEIGHBOURS)[0]
    near = [0, 1, 2, -3, -2, -1]  # some pictures have a bright line along the frame
    in_corners = regions[:, near][near] if min(regions.shape) > 2 else regions
    return (regions > 0) & np.isin(regions, in_corners)


def _measure_border(
    lab: np.ndarray, lesion: np.ndarray, usable: np.ndarray
) -> dict[str, float | None]:
    """Measures contrast, sharpness and the colour of the surround; float32 (H, W, 3), bool (H, W).

    The colour along which sharpness is measured is the one in which lesion and surround differ, so
    that it does not depend on their contrast.
    """
    names = ("contrast", "sharpness", "surround_a", "surround_b")
    edge = lesion & ~ndimage.binary_erosion(lesion, border_value=1)
    distance = ndimage.distance_transform_edt(~edge)
    surround = ~lesion & usable & (distance <= 16)
    if not edge.any() or surround.mean() < 0.005:
        return dict.fromkeys(names)
    # The outline runs between pixels: half a pixel outside the lesion's edge.
    distance = np.where(lesion, -0.5 - distance, distance - 0.5)
    band = usable & (abs(distance) <= 4)
    inside, outside = (lab[part].mean(0, dtype=np.float64) for part in (lesion, surround))
    contrast = float(np.linalg.norm(outside - inside))
    sharpness = None
    if contrast > 0:
        colour = ((lab[band] - inside) * (outside - inside)).sum(1) / contrast**2
        offset = distance[band] - distance[band].mean()
        sharpness = float((offset * colour).sum() / (offset**2).sum())
    return dict(zip(names, (contrast, sharpness, *map(float, outside[1:])), strict=True))


def _find_hair(lightness: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """Returns the pixels of hair, bool (H, W): a black top-hat, as DullRazor (Lee et al. 1997).

    Closings along rows and columns fill dark lines of any direction. Of the pieces that they fill
    short ones are left out, and pigment network: pieces around whose pixels, on average, more than
    25 % of a window of 25 x 25 pixels are filled.
    """
    sizes = (1, HAIR_WIDTH), (HAIR_WIDTH, 1)
    closed = np.maximum(*(ndimage.grey_closing(lightness, size) for size in sizes))
    lines = (closed - lightness > HAIR_CONTRAST) & usable
    density = ndimage.uniform_filter(lines.astype(np.float32), 25)
    regions, n_regions = ndimage.label(lines, EIGHT_NEIGHBOURS)
    boxes = ndimage.find_objects(regions)
    lengths = np.array([max(part.stop - part.start for part in box) for box in boxes])
    densities = ndimage.mean(density, regions, range(1, n_regions + 1))
    is_hair = (lengths >= HAIR_LENGTH) & (np.array(densities) <= 0.25)
    return np.concatenate([[False], is_hair])[regions]
