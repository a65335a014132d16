"""Finds equal and nearly equal pictures."""

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter, maximum_filter, minimum_filter, uniform_filter
from tqdm import tqdm

# Correlation of coarse brightness gradients above which two pictures may be the same. The most
# similar different ones, turned and mirrored, reach 0.87 over 140 PH2 cases and 0.85 over 1,800 of
# ISIC, but 0.99 where all have the round black frame of a dermatoscope.
SAME_PICTURE = 0.9
# Least correlations of details, without black or white: of gradients, and of these without shading.
# The same picture after JPEG at quality 30, resizing to 256 x 256 and brightening by 20 % keeps
# 0.84 and 0.91 in PH2, 0.85 and 0.95 in 80 pictures of people; of 360 of ISIC, 355 are found. In
# drawn sets, different pictures with a frame, ruler or caption stay below 0.45 in the first, those
# that share their shading, as retinas, below 0.70 in the second.
SAME_DETAILS = (0.52, 0.76)
# With less than this share of the picture to compare, pictures are the same only if practically
# equal: copies (JPEG, quality 50) differ by a mean square below 1, drawn cells mostly above 2.
LEAST_INSIDE = 0.02
THUMBNAIL = 64
_BLOCK = 128  # pictures compared at a time, which bounds the memory


def thumbnail(image: np.ndarray) -> np.ndarray:
    """Reduces an image, uint8 (H, W, 3), to the grey uint8 (64, 64) that is compared."""
    size = (THUMBNAIL, THUMBNAIL)
    return np.asarray(
        Image.fromarray(image).convert("L").resize(size, Image.Resampling.BILINEAR, reducing_gap=3)
    )


def same_pictures(thumbnails: np.ndarray) -> list[int]:
    """Groups pictures that are equal or nearly so, also turned or mirrored.

    Two pictures are the same if, in one of the eight orientations, the gradients of their
    thumbnails at half size correlate above `SAME_PICTURE` and so do their details, without what is
    in or near black or white: a common frame, ruler or shading makes no two pictures the same.
    Where hardly anything else is in them, only practically equal thumbnails are the same. Encoding,
    resizing and brightening change little; cropping by 2 % an edge or turning by 2 degrees mostly
    escapes, and JPEG at quality 30 of skin with hardly any contrast, or at 50 of dark pictures.

    From thumbnails, uint8 (N, 64, 64), come N group numbers: the smallest index of the group.
    """
    group = np.arange(len(thumbnails))
    blocks = [slice(start, start + _BLOCK) for start in range(0, len(group), _BLOCK)]
    coarse = {block.start: _halve(thumbnails[block]) for block in blocks}
    for block in tqdm(blocks, "comparing pictures", delay=1, disable=None, leave=False):
        oriented, numbers = _turn_and_mirror(thumbnails[block]), np.tile(group[block], 8)
        gradients = _gradients(_turn_and_mirror(coarse[block.start]))
        # Earlier blocks too: turning a picture and turning it back is not quite the same.
        for other in blocks:
            same = gradients @ _gradients(coarse[other.start]).T > SAME_PICTURE
            same &= numbers[:, None] != group[None, other]
            rows, columns = same.any(axis=1), same.any(axis=0)
            if rows.any():
                agree = _details_agree(oriented[rows], thumbnails[other][columns])
                same[np.ix_(rows, columns)] &= agree
            for row, j in np.argwhere(same):
                i = block.start + row % len(thumbnails[block])
                merge_groups(group, i, other.start + j)
    return group.tolist()


def equal_files(sha256: Sequence[str]) -> list[int]:
    """Groups files of equal content by their hashes, numbered as by `same_pictures`."""
    first: dict[str, int] = {}
    return [first.setdefault(content, i) for i, content in enumerate(sha256)]


def merge_groups(group: np.ndarray, i: int, j: int) -> None:
    """Merges the groups of two indices in place; a group's number is its smallest index."""
    if group[i] != group[j]:
        low, high = sorted((group[i], group[j]))
        group[group == high] = low


def _turn_and_mirror(thumbnails: np.ndarray) -> np.ndarray:
    """Puts N thumbnails into the eight orientations: (8 * N, S, S), by orientation."""
    mirrored = thumbnails, thumbnails[:, :, ::-1]
    return np.concatenate(
        [np.rot90(pictures, k, (1, 2)) for pictures in mirrored for k in range(4)]
    )


def _halve(thumbnails: np.ndarray) -> np.ndarray:
    """Reduces thumbnails to half their size: uint8 (N, 32, 32)."""
    edge = THUMBNAIL // 2
    means = thumbnails.reshape(-1, edge, 2, edge, 2).mean((2, 4), np.float32)
    return np.rint(means).astype(np.uint8)


def _gradients(coarse: np.ndarray) -> np.ndarray:
    """Computes normalised gradients, whose dot product is their correlation: float32 (N, D)."""
    flat = _steps(coarse.astype(np.float32)).reshape(len(coarse), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    # A picture of one colour has no gradients and is represented by its brightness.
    blank = length[:, 0] < 1e-3
    out = np.concatenate([flat / np.maximum(length, 1e-3), np.zeros((len(coarse), 256), "f4")], 1)
    out[blank, :] = 0
    out[blank, flat.shape[1] + coarse[blank, 0, 0].astype(int)] = 1
    return out


def _steps(grey: np.ndarray) -> np.ndarray:
    """Differences of neighbours, right and below: (N, 2, S - 1, S - 1) from (N, S, S)."""
    return np.stack([np.diff(grey, axis=2)[:, :-1], np.diff(grey, axis=1)[:, :, :-1]], axis=1)


def _details_agree(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Tells of each of N thumbnails and each of M whether their details correlate: bool (N, M)."""
    left_inside, right_inside = _inside(left), _inside(right)
    agree = np.ones((len(left), len(right)), bool)
    pairs = zip(SAME_DETAILS, _details(left), _details(right), strict=True)
    for least, a, b in pairs:
        a, b = a * np.tile(left_inside, 2), b * np.tile(right_inside, 2)
        # The energy of each is that of the area inside both.
        energy = _energy(a) @ right_inside.T + left_inside @ _energy(b).T
        agree &= 2 * (a @ b.T) >= least * energy
    enough = left_inside @ right_inside.T >= LEAST_INSIDE * left_inside.shape[1]
    return np.where(enough, agree, _mean_squares(left, right) < 1)


def _mean_squares(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Mean squared differences of each of N thumbnails and each of M: float32 (N, M)."""
    a, b = (grey.reshape(len(grey), -1).astype(np.float32) for grey in (left, right))
    return (a**2).mean(1)[:, None] + (b**2).mean(1) - 2 * (a @ b.T) / THUMBNAIL**2


def _inside(thumbnails: np.ndarray) -> np.ndarray:
    """Where a picture is compared: not in or near black or white; float32 (N, 63 * 63)."""
    window = (1, 7, 7)
    dark, bright = minimum_filter(thumbnails, window), maximum_filter(thumbnails, window)
    # In a dark picture, what counts as black is darker.
    black = np.clip(0.4 * np.percentile(thumbnails, 95, (1, 2), keepdims=True), 4, 40)
    inside = (dark >= black) & (bright < 250)
    return inside[:, :-1, :-1].reshape(len(thumbnails), -1).astype(np.float32)


def _details(thumbnails: np.ndarray) -> Iterator[np.ndarray]:
    """Yields gradients, and blurred ones less their local mean: float32 (N, 2 * 63 * 63).

    Strong ones are reduced to the same length, so that no edge outweighs all the rest.
    """
    grey = thumbnails.astype(np.float32)
    blurred = _steps(gaussian_filter(grey, (0, 0.85, 0.85)))
    for details in (_steps(grey), blurred - uniform_filter(blurred, (0, 0, 5, 5))):
        length = np.sqrt((details**2).sum(axis=1, keepdims=True) + 2**2)
        yield (details / length).reshape(len(grey), -1)


def _energy(details: np.ndarray) -> np.ndarray:
    """Squares of vectors, from (N, 2 * D) to (N, D)."""
    return (details**2).reshape(len(details), 2, -1).sum(axis=1)
