"""Makes pictures worse in nine ways, each at three severities, the same way every time."""

import hashlib
import io
from collections.abc import Callable
from math import cos, pi, sin

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from seglab.data.synthetic_drawing import bend_line, to_bytes

SEVERITIES = (1, 2, 3)
GRAINS = 256  # of noise, along the shorter edge
JPEG_EDGE = 512  # pixels of the shorter edge at most; larger pictures are reduced, as by messengers


def corrupt(image: np.ndarray, name: str, severity: int, key: str) -> np.ndarray:
    """Make an image, uint8 (H, W, 3), worse in one of `CORRUPTIONS`; its mask still fits.

    `key` identifies the image, such as the SHA-256 of its files. With the name it is the seed, so
    that the same is drawn at each severity, only stronger.
    """
    function, strengths = CORRUPTIONS[name]
    rng = np.random.default_rng([*hashlib.sha256(f"{name} {key}".encode()).digest()])
    return function(image, strengths[severity - 1], rng)


def _blur(image: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    sigma = share * min(image.shape[:2])
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma)))


def _jpeg(image: np.ndarray, quality: float, rng: np.random.Generator) -> np.ndarray:
    file = io.BytesIO()
    _reduce(image, JPEG_EDGE).save(file, "JPEG", quality=int(quality))
    return _enlarge(Image.open(file), image)


def _noise(image: np.ndarray, sd: float, rng: np.random.Generator) -> np.ndarray:
    height, width = (round(GRAINS * n / min(image.shape[:2])) for n in image.shape[:2])
    grains = rng.standard_normal((3, height, width), np.float32) * np.float32(255 * sd)
    channels = [_enlarge(Image.fromarray(channel), image) for channel in grains]
    return to_bytes(image + np.stack(channels, -1))


def _low_resolution(image: np.ndarray, edge: float, rng: np.random.Generator) -> np.ndarray:
    return _enlarge(_reduce(image, edge), image)


def _brightness(image: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
    return to_bytes(image * np.float32(rng.choice([factor, 1 / factor])))


def _contrast(image: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    mean = image.mean((0, 1), dtype=np.float64).astype(np.float32)
    return to_bytes(mean + np.float32(share) * (image - mean))


def _colour_cast(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    # Too warm or too cold, with some green or magenta, as of a wrong white balance.
    gains = np.array([1, rng.uniform(-0.5, 0.5), -1]) * rng.choice([-1, 1])
    return to_bytes(image * np.exp(strength * gains).astype(np.float32))


def _hair(image: np.ndarray, number: float, rng: np.random.Generator) -> np.ndarray:
    picture = Image.fromarray(image)
    size, edge = np.array(picture.size), min(picture.size)
    # Drawn at twice the size and reduced, as Pillow's lines have hard edges.
    layer = Image.new("L", tuple(2 * size))
    brush, lean = ImageDraw.Draw(layer), rng.uniform(0, pi)
    for _ in range(int(number)):
        angle, length = lean + 0.5 * rng.normal(), edge * rng.uniform(0.2, 1)
        width, opacity = 2 * edge * rng.uniform(0.003, 0.008), int(rng.integers(150, 250))
        middle, reach = rng.uniform(0, size), length / 2 * np.array([cos(angle), sin(angle)])
        bend = middle + rng.normal(0, 0.15 * length, 2)
        line = bend_line(middle - reach, bend, middle + reach)
        brush.line(line, opacity, round(width), "curve")
    picture.paste((52, 38, 34), mask=layer.reduce(2))
    return np.asarray(picture)


def _dark_corners(image: np.ndarray, radius: float, rng: np.random.Generator) -> np.ndarray:
    half = np.array(image.shape[:2]) / 2
    centre = half + 0.02 * half.min() * rng.normal(size=2)
    y, x = np.ogrid[: image.shape[0], : image.shape[1]]
    distance = np.hypot(y + 0.5 - centre[0], x + 0.5 - centre[1]) / np.hypot(*half)
    light = np.clip((radius - distance) / 0.03, 0.02, 1).astype(np.float32)
    return to_bytes(image * light[..., None])


def _reduce(image: np.ndarray, edge: float) -> Image.Image:
    """Reduce an image to a shorter edge of `edge` pixels, unless it is smaller."""
    picture = Image.fromarray(image)
    scale = min(1, edge / min(picture.size))
    size = round(picture.width * scale), round(picture.height * scale)
    return picture.resize(size, Image.Resampling.BOX)


def _enlarge(picture: Image.Image, image: np.ndarray) -> np.ndarray:
    """Resize a picture to the size of an image."""
    return np.asarray(picture.resize(image.shape[1::-1], Image.Resampling.BICUBIC))


# By name the function, and its strength at severity 1, 2 and 3, in a unit that means the same at
# every resolution.
CORRUPTIONS: dict[str, tuple[Callable[..., np.ndarray], tuple[float, ...]]] = {
    "blur": (_blur, (0.005, 0.01, 0.02)),  # standard deviation / shorter edge
    "jpeg": (_jpeg, (25, 14, 8)),  # quality
    "noise": (_noise, (0.04, 0.08, 0.16)),  # standard deviation / white
    "low_resolution": (_low_resolution, (128, 64, 32)),  # pixels of the shorter edge
    "brightness": (_brightness, (1.15, 1.35, 1.6)),  # factor, or its inverse
    "contrast": (_contrast, (0.7, 0.5, 0.35)),  # share that is left
    "colour_cast": (_colour_cast, (0.06, 0.12, 0.24)),  # logarithm of the gain of red or blue
    "hair": (_hair, (8, 20, 45)),  # hairs
    "dark_corners": (_dark_corners, (0.95, 0.85, 0.75)),  # radius / half diagonal
}
