"""Draws dermoscopic images with their masks, and the rows of PH2's table that describe them."""

from dataclasses import dataclass
from math import cos, pi, sin, sqrt

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from scipy import ndimage

# Share of red, green and blue that each of PH2's six colours transmits from the skin below. As
# logarithms, because layers then add up.
_PIGMENTS = {
    color: np.log(np.array(rgb, np.float32)).reshape(3, 1, 1)
    for color, rgb in {
        1: (1.04, 1.05, 1.10),  # white
        2: (0.78, 0.45, 0.45),  # red
        3: (0.80, 0.63, 0.45),  # light brown
        4: (0.50, 0.35, 0.26),  # dark brown
        5: (0.50, 0.57, 0.70),  # blue-grey
        6: (0.24, 0.21, 0.24),  # black
    }.items()
}
_SKINS = ((238, 196, 182), (232, 186, 158), (222, 168, 132), (190, 136, 104), (140, 98, 74))


@dataclass(frozen=True)
class LesionTraits:
    """A case's entries in PH2's table, and the lesion's share of the image (0..1).

    The table's values are 'A' absent, 'P' present, 'T' typical and 'AT' atypical.
    """

    diagnosis: int
    area: float
    asymmetry: int
    network: str
    dots: str
    streaks: str
    regression: str
    veil: str
    colors: tuple[int, ...]

    def table_row(self, name: str) -> str:
        """Writes the row of PH2's table for a case of this name: 176 characters and a newline."""
        histology = "Melanoma" if self.diagnosis == 2 else ""
        colors = "  ".join(map(str, self.colors))
        return (
            f"|| {name} || {histology:>22} || {self.diagnosis:>18} || {self.asymmetry:>9} "
            f"| {self.network:>15} | {self.dots:>13} | {self.streaks:>7} | {self.regression:>16} "
            f"| {self.veil:>17} || {colors:>16} ||\n"
        )


def draw_case(seed: int, index: int, diagnosis: int) -> tuple[np.ndarray, np.ndarray, LesionTraits]:
    """Draws one dermoscopic image and its mask; the result depends on the arguments alone.

    Args:
        seed: Seed of the set, 0 or more.
        index: Number of the case in its set, 0 or more.
        diagnosis: 0 for a common nevus, 1 for an atypical nevus, 2 for a melanoma.

    Returns:
        The image, uint8 (H, W, 3), RGB; its classes, uint8 (H, W): 0 skin, 1 lesion, 2 the dark
        area outside the dermoscope's field, if any; and its traits. The sizes are PH2's: H 553 to
        577 and W 761 to 769 pixels. The lesion covers 3 % to 98 % and may cross the frame.
    """
    rng = np.random.default_rng([seed, index])
    traits = _draw_traits(rng, diagnosis)
    shape = int(rng.integers(553, 578)), int(rng.integers(761, 770))
    light, lit = _dermoscope_light(rng, shape, traits.area)
    distance = _outline(rng, traits, lit)
    color = np.exp(_skin(rng, shape, distance) + _lesion(rng, traits, distance))
    picture = Image.fromarray(to_bytes(np.moveaxis(color, 0, -1)))
    _draw_artefacts(rng, picture)
    picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 1.1)))
    grain = rng.standard_normal((*shape, 3), np.float32) * np.float32(rng.uniform(1.5, 4.0))
    classes = np.where(lit, distance > 0, 2).astype(np.uint8)
    return to_bytes(np.asarray(picture) * light[..., None] + grain), classes, traits


def _draw_traits(rng: np.random.Generator, diagnosis: int) -> LesionTraits:
    def present(share: float) -> str:
        return "P" if rng.random() < share else "A"

    if diagnosis == 0:
        area = np.clip(0.175 * np.exp(0.6 * rng.normal()), 0.036, 0.6)
        streaks, regression, veil = "A", "A", "A"
        color_set = set(((3,), (3,), (4,), (3, 4))[rng.integers(4)])
        network, dots, asymmetry = "T", ("A", "T")[rng.integers(2)], 0
    elif diagnosis == 1:
        area = np.clip(0.23 * np.exp(0.55 * rng.normal()), 0.04, 0.75)
        streaks, regression, veil = present(0.1), present(0.05), present(0.1)
        color_set = {3} | {c for c, share in ((2, 0.1), (4, 0.8)) if rng.random() < share}
        network, dots, asymmetry = "AT", ("A", "T", "AT")[rng.integers(3)], int(rng.integers(3))
    else:
        area = 0.18 + 0.78 * rng.beta(1.7, 1.2)
        streaks, regression, veil = present(0.4), present(0.6), present(0.6)
        color_set = {4} | {c for c, share in ((2, 0.3), (3, 0.8), (6, 0.5)) if rng.random() < share}
        network, dots, asymmetry = "AT", ("A", "AT")[rng.integers(2)], (1, 2, 2)[rng.integers(3)]
    color_set |= {color for color, value in ((1, regression), (5, veil)) if value == "P"}
    colors = tuple(sorted(color_set))
    return LesionTraits(
        diagnosis, float(area), asymmetry, network, dots, streaks, regression, veil, colors
    )


def to_bytes(image: np.ndarray) -> np.ndarray:
    """Rounds and clips to uint8."""
    return np.clip(image + np.float32(0.5), 0, 255).astype(np.uint8)


def _smoothstep(low: float, high: float, x: np.ndarray) -> np.ndarray:
    """Smooth step from 0 at `low` to 1 at `high`."""
    t = np.clip((x - low) * np.float32(1 / (high - low)), 0, 1)
    return t * t * (3 - 2 * t)


def _resize(
    field: np.ndarray, shape: tuple[int, int], how: Image.Resampling = Image.Resampling.BILINEAR
) -> np.ndarray:
    return np.asarray(Image.fromarray(field.astype(np.float32)).resize(shape[::-1], how))


def _noise(rng: np.random.Generator, shape: tuple[int, int], scale: float) -> np.ndarray:
    """Smooth noise, float32, mean 0 and deviation 1, in blobs about `scale` pixels wide."""
    coarse = rng.standard_normal([int(2 * side / scale) + 6 for side in shape], np.float32)
    # Blurred first, as interpolation alone lets the coarse grid show through.
    field = _resize(ndimage.gaussian_filter(coarse, 1.0), shape, Image.Resampling.BICUBIC)
    return (field - field.mean()) / field.std()


def _honeycomb(
    rng: np.random.Generator, shape: tuple[int, int], size: float
) -> tuple[np.ndarray, np.ndarray]:
    """A honeycomb with cells about `size` pixels wide: its walls, its centres, float32 in 0..1."""
    half = shape[0] // 2, shape[1] // 2
    # In units of cells, one seed point in each unit square, bent so that no rows show.
    y, x = (
        grid * (2 / size) + 0.5 * _noise(rng, half, 3 * size) + 4
        for grid in np.indices(half, np.float32)
    )
    seeds = rng.random((2, int(y.max()) + 3, int(x.max()) + 3), np.float32)
    row, column = y.astype(int), x.astype(int)
    nearest = second = np.full(half, 9, np.float32)
    for i in (-1, 0, 1):
        for j in (-1, 0, 1):
            at = row + i, column + j
            distance = np.hypot(
                at[0] + seeds[0][at] - y, at[1] + seeds[1][at] - x, dtype=np.float32
            )
            second = np.minimum(second, np.maximum(nearest, distance))
            nearest = np.minimum(nearest, distance)
    walls = 1 - _smoothstep(0.0, 0.45, second - nearest)
    centres = 1 - _smoothstep(0.15, 0.4, nearest)
    return _resize(walls, shape), _resize(centres, shape)


def _dermoscope_light(
    rng: np.random.Generator, shape: tuple[int, int], area: float
) -> tuple[np.ndarray, np.ndarray]:
    """Light through the dermoscope, float32 (H, W) in 0..1, and its field of view, bool (H, W)."""
    h, w = shape
    y, x = np.ogrid[:h, :w]
    y, x = y - h * rng.normal(0.5, 0.03), x - w * rng.normal(0.5, 0.03)
    # The largest lesions need a field that fills nearly the whole frame.
    radius, rim = w * (rng.uniform(0.42, 0.54) + 0.15 * (area > 0.75)), rng.uniform(40, 170)
    shade = _smoothstep(radius, radius + rim, np.hypot(y, x, dtype=np.float32))
    return 1 - np.float32(rng.uniform(0.6, 0.88)) * shade, shade < 0.75


def _outline(rng: np.random.Generator, traits: LesionTraits, lit: np.ndarray) -> np.ndarray:
    """Distance in pixels from the lesion's border, float32 (H, W), positive inside."""
    half = lit.shape[0] // 2, lit.shape[1] // 2
    lobes, warp, spread = ((0.05, 0.03, 0.09), (0.16, 0.07, 0.09), (0.30, 0.10, 0.08))[
        traits.diagnosis
    ]
    radius = sqrt(traits.area * half[0] * half[1] / pi)
    y, x = np.indices(half, np.float32)
    y, x = y - half[0] * rng.normal(0.5, spread), x - half[1] * rng.normal(0.5, spread)
    tilt, aspect = rng.uniform(0, pi), rng.uniform(1.0, 1.15 + 0.15 * traits.diagnosis)
    u, v = (cos(tilt) * x + sin(tilt) * y) / aspect, cos(tilt) * y - sin(tilt) * x
    angle = np.arctan2(v, u)
    field = -np.hypot(u, v) / radius
    for k in range(1, 7):
        height = lobes * (0.4 + 0.3 * traits.asymmetry) / k * rng.normal()
        field += height * np.cos(k * angle + rng.uniform(0, 2 * pi))
    for scale, share in ((0.6, 1.0), (0.25, 0.6), (0.09, 0.3)):
        field += warp * share * _noise(rng, half, max(scale * radius, 3))
    if traits.streaks == "P":
        field += 0.08 * np.clip(np.cos(26 * angle + 2 * _noise(rng, half, radius)), 0, 1) ** 4
    visible = field[_resize(lit, half) > 0.5]
    # A quantile as level gives the wanted area, however much the frame cuts off.
    level = np.quantile(visible, 1 - min(traits.area * field.size / visible.size, 0.985))
    pieces, _ = ndimage.label(field > level)
    inside = ndimage.binary_fill_holes(pieces == np.bincount(pieces[pieces > 0]).argmax())
    distance = ndimage.distance_transform_edt(inside) - ndimage.distance_transform_edt(~inside)
    return _resize(ndimage.gaussian_filter(2 * distance, 1), lit.shape)


def _skin(rng: np.random.Generator, shape: tuple[int, int], distance: np.ndarray) -> np.ndarray:
    """Logarithm of the bare skin's colour, float32 (3, H, W)."""
    tone = rng.beta(1.1, 1.9) * (len(_SKINS) - 1)
    color = np.array([np.interp(tone, range(len(_SKINS)), c) for c in zip(*_SKINS, strict=True)])
    color *= rng.normal(1, 0.025, 3) * rng.uniform(0.92, 1.06)
    y, x = np.indices(shape, np.float32)
    slope, toward = rng.uniform(0, 0.5) / shape[1], rng.uniform(0, 2 * pi)
    light = slope * (cos(toward) * (x - shape[1] / 2) + sin(toward) * (y - shape[0] / 2))
    for scale, height in ((170, 0.04), (25, 0.013), (4, 0.012)):
        light += height * _noise(rng, shape, scale)
    if rng.random() < 0.5:
        furrows, _ = _honeycomb(rng, shape, rng.uniform(14, 26))
        light += rng.uniform(0.02, 0.06) * furrows * _smoothstep(-0.5, 1.0, _noise(rng, shape, 120))
    blush = 0.018 * _noise(rng, shape, 60) + 0.02 * _noise(rng, shape, 9)
    skin = np.stack([light + 0.2 * blush, light - blush, light - blush])
    skin += np.log(color).astype(np.float32).reshape(3, 1, 1)
    if rng.random() < 0.5:
        # Freckles keep off the border, whose course would be unclear otherwise.
        freckles = _smoothstep(1.0, 2.0, _noise(rng, shape, rng.uniform(15, 70)))
        skin += rng.uniform(0.15, 0.6) * freckles * _smoothstep(-15, -45, distance) * _PIGMENTS[3]
    return skin


def _lesion(rng: np.random.Generator, traits: LesionTraits, distance: np.ndarray) -> np.ndarray:
    """Logarithm of the share of the skin's colour that the lesion transmits, float32 (3, H, W)."""
    shape, inradius = distance.shape, float(distance.max())
    base, *other_colors = sorted(traits.colors, key=lambda color: color not in (3, 4))
    pigment = np.broadcast_to(_PIGMENTS[base], (3, *shape))
    for color in other_colors:
        where = _noise(rng, shape, max(rng.uniform(0.5, 1.0) * inradius, 12))
        where += 0.2 * _noise(rng, shape, 24)
        share = _smoothstep(-0.1, rng.uniform(0.8, 2.2), where)
        if color in (1, 5):
            # White and blue-grey keep off the border: beside pale skin they would hide it.
            share = share * _smoothstep(0.1, 0.4, distance / inradius)
        pigment = pigment + share * (_PIGMENTS[color] - pigment)
    walls, centres = _honeycomb(rng, shape, rng.uniform(9, 14) + 3 * traits.diagnosis)
    patches = 1.0 if traits.network == "T" else _smoothstep(-0.8, 0.8, _noise(rng, shape, 70))
    density = 1 + 0.12 * _noise(rng, shape, 0.5 * inradius + 8) + 0.1 * _noise(rng, shape, 7)
    density += rng.uniform(0.1, 0.5) * patches * (walls - 0.4)
    if traits.dots != "A":
        density += rng.uniform(0.2, 0.6) * centres * _smoothstep(0.3, 0.6, _noise(rng, shape, 14))
    density += rng.uniform(-0.25, 0.35) * (np.clip(distance / inradius, 0, 1) - 0.5)
    blur = rng.uniform(8, (26, 50, 40)[traits.diagnosis])
    fringe = 0.12 * blur * (_noise(rng, shape, 9) + _noise(rng, shape, 26))
    # The mask's border lies at a third of the full opacity: where an eye sees the lesion begin.
    opacity = _smoothstep(-0.6 * blur, blur, distance + fringe)
    strength = rng.uniform((0.35, 0.4, 0.5)[traits.diagnosis], 1.15)
    return strength * opacity * np.maximum(density, 0.25) * pigment


def _draw_artefacts(rng: np.random.Generator, picture: Image.Image) -> None:
    """Draws hair, a ruler, bubbles and reflections of gel onto `picture`."""
    size = np.array(picture.size)
    # Drawn at twice the size and reduced, as Pillow's lines have hard edges.
    layers = [Image.new("L", (2 * picture.width, 2 * picture.height)) for _ in range(3)]
    hair, pale_hair, gel = (ImageDraw.Draw(layer) for layer in layers)
    lean = rng.uniform(0, pi)
    for _ in range(rng.choice([0, 0, 1, 1, 2]) * rng.integers(2, 14)):
        angle, length = lean + 0.5 * rng.normal(), rng.uniform(40, 450)
        middle = rng.uniform(0, size)
        reach = length / 2 * np.array([cos(angle), sin(angle)])
        line = bend_line(middle - reach, middle + rng.normal(0, 0.15 * length, 2), middle + reach)
        brush = pale_hair if rng.random() < 0.2 else hair
        brush.line(line, int(rng.integers(110, 250)), int(rng.choice([2, 2, 3, 4, 6])), "curve")
    if rng.random() < 0.08:
        edge, gap = rng.choice([0.08, 1.92]) * size[1], rng.uniform(24, 40)
        for i, x in enumerate(np.arange(0, 2 * size[0], gap)):
            tick = (60 if i % 5 == 0 else 34) * (1 if edge < size[1] else -1)
            hair.line([(x, edge), (x, edge + tick)], 190, 4)
    for _ in range(rng.choice([0, 1, 3]) * rng.integers(2, 12)):
        (x, y), r = rng.uniform(0, 2 * size), rng.gamma(2.0, 4.0) + 5
        width = int(rng.integers(2, 5))
        gel.ellipse((x - r, y - r, x + r, y + r), outline=int(rng.integers(60, 200)), width=width)
        gel.line([(x - 0.4 * r, y - 0.5 * r), (x, y - 0.6 * r)], 220, 3)
    for _ in range(rng.choice([0, 1, 1, 4]) * rng.integers(5, 30)):
        start, bend, end = rng.uniform(0, size) + rng.normal(0, ((0.1,), (4,), (6,)), (3, 2))
        gel.line(bend_line(start, bend, end), int(rng.integers(70, 240)), 3)
    if rng.random() < 0.25:
        # Where the gel under the glass ends: a bright, wobbly ring.
        turn, r = np.linspace(0, 2 * pi, 60), rng.uniform(20, 90)
        waves = [np.cos(k * turn + rng.uniform(0, 2 * pi)) for k in (2, 3)]
        wobble = r * (1 + 0.16 * np.sum(waves, 0))
        ring = rng.uniform(0, size) + wobble[:, None] * np.stack([np.cos(turn), np.sin(turn)], 1)
        gel.line([tuple(point) for point in 2 * ring], int(rng.integers(70, 190)), 3, "curve")
    dark = tuple(int(c * rng.uniform(0.5, 1.2)) for c in (62, 45, 40))
    for layer, color in zip(layers, (dark, (225, 205, 180), (250, 248, 245)), strict=True):
        picture.paste(color, mask=layer.reduce(2))


def bend_line(start: np.ndarray, bend: np.ndarray, end: np.ndarray) -> list[tuple[float, ...]]:
    """Returns points of a bent line, at twice the size; the arguments are (x, y) in pixels."""
    t = np.linspace(0, 1, 24)[:, None]
    points = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end
    return [tuple(point) for point in 2 * points]
