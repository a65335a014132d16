"""Random changes of training batches, image and mask together."""

import math
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from seglab.core.errors import InputError, check_number

# Largest value of the strengths for which it is not 1.
_LIMITS = {"rotate": 180, "scale": 10, "elastic": 0.1, "gamma": 10}
_NODES = 5  # along an edge, of the grid of elastic displacements
_MAX_HAIRS = 8  # in one image
# Share of red, green and blue that brown hair absorbs.
_BROWN = torch.tensor([0.85, 0.95, 1]).view(3, 1, 1)
# Smallest share that a pen's ink absorbs, and by how much the largest is greater.
_VIOLET = torch.tensor([[0.55, 0.75, 0.2], [0.35, 0.2, 0.5]]).view(2, 3, 1, 1)


@dataclass(frozen=True)
class Augment:
    """Random geometry, light and objects, drawn anew for each image of a batch.

    Image and mask are resampled by one map, in which the outside of the image is its mirror image.
    Everything else changes the image alone. A strength of 0 switches a component off.

    Args:
        flip: Mirror left-right and up-down, each with probability 1/2.
        rotate: Largest rotation in either direction, in degrees.
        scale: Largest zoom in either direction: 0.2 draws from 1/1.2 to 1.2.
        shift: Largest shift in either direction, as a share of the edge.
        brightness: Largest change of brightness, as a share of white.
        contrast: Largest change of contrast, as a share.
        saturation: Largest change of colour saturation, as a share.
        elastic: Standard deviation of smooth random displacements, as a share of the edge: normal
            at the nodes of a coarse grid, bicubic between them (Ronneberger et al., 2015).
        hair: Probability that an image gets dark hairs, up to 8 of them.
        colour: Largest change of each colour channel's gain, as a share, like the white balance of
            another camera.
        illumination: Largest change of light between centre and corners, as a share; it rises or
            falls linearly across the image.
        gamma: 0.2 raises the image to powers from 1/1.2 to 1.2.
        ink: Probability that an image gets hatched marks of a surgical pen, on lesions too.
        sticker: Probability that an image gets part of a vivid disc at its edge, below the lesion.
    """

    flip: bool = True
    rotate: float = 180
    scale: float = 0.2
    shift: float = 0.1
    brightness: float = 0.1
    contrast: float = 0.2
    saturation: float = 0.2
    elastic: float = 0
    hair: float = 0
    colour: float = 0
    illumination: float = 0
    gamma: float = 0
    ink: float = 0
    sticker: float = 0

    def __post_init__(self) -> None:
        if not isinstance(self.flip, bool):
            raise InputError(f"data.augment.flip={self.flip}: expected true or false")
        for name in (field.name for field in fields(self) if field.name != "flip"):
            limit = _LIMITS.get(name, 1)
            check_number(f"data.augment.{name}", getattr(self, name), float, 0, limit)

    def __call__(
        self, image: Tensor, mask: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Augments a batch.

        Args:
            image: float (N, 3, H, W) in [0, 1].
            mask: float (N, 1, H, W), class numbers.
            generator: On the CPU, so that every device draws the same numbers.

        Returns:
            Image and mask with the shapes, ranges and memory layout of the arguments.
        """
        n = len(image)
        affine = self._draw_affine(n, generator).to(image)
        saturation, contrast, brightness = (
            _draw_like(image, strength, generator)
            for strength in (self.saturation, self.contrast, self.brightness)
        )
        # Below, a component that is off draws nothing, so switching it on leaves the numbers
        # above as they are.
        out, mask = self._resample(image, mask, affine, generator)
        if self.hair:
            out *= 1 - _draw_hairs(out, self.hair, generator) * _BROWN.to(out)
        if self.colour:
            out *= 1 + _draw_like(out, self.colour, generator, channels=3)
        if self.illumination:
            out *= self._draw_illumination(out, generator)
        if self.gamma:
            power = torch.exp(_uniform(n, generator) * math.log1p(self.gamma)).view(n, 1, 1, 1)
            # x ** power, in half the time.
            out.clamp_(0, 1).log_().mul_(power.to(out)).exp_()
        if self.ink:
            out *= 1 - _draw_ink(out, self.ink, generator)
        if self.sticker:
            cover, colour = _draw_stickers(out, self.sticker, generator)
            out += (colour - out) * cover * (mask == 0)
        grey = out.mean(1, keepdim=True)
        out.sub_(grey).mul_(1 + saturation).add_(grey)
        level = out.mean((1, 2, 3), keepdim=True)
        out.sub_(level).mul_(1 + contrast).add_(level).add_(brightness)
        return torch.clamp(out, 0, 1, out=torch.empty_like(image)), mask

    def _draw_affine(self, n: int, generator: torch.Generator) -> Tensor:
        """Draws rotation, zoom, flips and shift: float (N, 2, 3) as `F.affine_grid` takes it."""
        angle = _uniform(n, generator) * math.radians(self.rotate)
        zoom = torch.exp(_uniform(n, generator) * math.log1p(self.scale))
        mirror = torch.ones(n, 2)
        if self.flip:
            mirror[torch.stack([_uniform(n, generator), _uniform(n, generator)], 1) < 0] = -1
        shift = torch.stack([_uniform(n, generator), _uniform(n, generator)], 1) * 2 * self.shift
        cos, sin = torch.cos(angle), torch.sin(angle)
        rotation = torch.stack([cos, -sin, sin, cos], 1).view(n, 2, 2)
        matrix = rotation / zoom.view(n, 1, 1) * mirror.view(n, 1, 2)
        return torch.cat([matrix, shift.unsqueeze(2)], 2)

    def _resample(
        self, image: Tensor, mask: Tensor, affine: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Moves image (bilinear) and mask (nearest) by an affine map and elastic displacements."""
        n, _, height, width = image.shape
        grid = F.affine_grid(affine, list(image.shape), align_corners=False)
        if self.elastic:
            # The grid's unit is half an edge.
            nodes = torch.randn(n, 2, _NODES, _NODES, generator=generator) * 2 * self.elastic
            grid += _bicubic(nodes.to(image), height, width).permute(0, 2, 3, 1)
        image = F.grid_sample(image, grid, padding_mode="reflection", align_corners=False)
        mask = F.grid_sample(
            mask, grid, mode="nearest", padding_mode="reflection", align_corners=False
        )
        return image, mask

    def _draw_illumination(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """Draws factors that rise or fall linearly across the image, float (N, 1, H, W)."""
        gain = _draw_like(image, self.illumination / 2, generator, channels=2)
        x, y = _axes(image)
        return 1 + gain[:, :1] * x + gain[:, 1:] * y


def _uniform(n: int, generator: torch.Generator, *shape: int) -> Tensor:
    """Draws numbers from -1 to 1, float (N, *shape)."""
    return torch.empty(n, *shape).uniform_(-1, 1, generator=generator)


def _draw_like(
    image: Tensor, strength: float, generator: torch.Generator, channels: int = 1
) -> Tensor:
    """Draws changes up to a strength, float (N, channels, 1, 1) on the image's device."""
    n = len(image)
    return (_uniform(n, generator, channels) * strength).view(n, channels, 1, 1).to(image)


def _axes(image: Tensor) -> tuple[Tensor, Tensor]:
    """Returns x, float (W), and y, float (H, 1), of an image's pixels, from -1 to 1."""
    height, width = image.shape[-2:]
    x, y = (torch.linspace(-1, 1, size).to(image) for size in (width, height))
    return x, y.view(-1, 1)


def _bicubic(nodes: Tensor, height: int, width: int) -> Tensor:
    """`F.interpolate(mode="bicubic", align_corners=True)` as two small matrix products.

    float (N, C, K, K) nodes, of which the first and last lie on the edges, give (N, C, H, W).
    """
    k = nodes.shape[-1]
    one = torch.eye(k).to(nodes).view(1, 1, k, k)
    down, across = (
        F.interpolate(one, (size, k), mode="bicubic", align_corners=True)[0, 0]
        for size in (height, width)
    )
    return down @ nodes @ across.T


def _draw_hairs(image: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Draws hairs as the share of light that they absorb, (N, 1, H, W) in [0, 1), 0 without hair.

    Hairs are antialiased parabolas, roughly parallel, 0.3 to 1 edge long. At 256 pixels they are
    1 to 2 pixels thick at the root and end in a point. An image has any with this probability.
    The image, float (N, C, H, W), gives shape, type and device. How many numbers are drawn depends
    on N alone.
    """
    n, _, height, width = image.shape
    hairy, many, slant = torch.rand(3, n, 1, generator=generator).expand(3, n, _MAX_HAIRS)
    numbers = torch.rand(7, n, _MAX_HAIRS, generator=generator)
    drawn = (hairy < probability) & (torch.arange(_MAX_HAIRS) <= many * _MAX_HAIRS)
    # From here on rows are hairs, and columns are points of a hair, at most 0.6 pixels apart.
    x, y, turn, length, bend, thick, dark = numbers[:, drawn].unsqueeze(2)
    angle = 2 * math.pi * slant[drawn].unsqueeze(1) + turn - 0.5
    across, down = (f(angle) * (0.15 + 0.35 * length) for f in (torch.cos, torch.sin))
    s = torch.linspace(-1, 1, 2 * max(height, width))
    bow = (bend - 0.5) * s**2
    # Pixel centres are integers.
    x = (x + across * s - down * bow) * width - 0.5
    y = (y + down * s + across * bow) * height - 0.5
    edge = min(height, width) / 256
    thickness = (1 + thick) * edge * (0.5 - 0.5 * s).sqrt()

    device = image.device
    picture = drawn.nonzero()[:, :1, None, None].to(device)
    x, y, thickness, dark = (t.to(device).unsqueeze(2) for t in (x, y, thickness, dark))
    # Coverage of the pixels around each point, by their distance from it.
    reach = (thickness + 1) / 2
    near = torch.arange(math.ceil(2 * edge + 1), device=device)
    column, row = ((to - reach).ceil() + near for to in (x, y))
    squares = ((row - y) ** 2).unsqueeze(3) + ((column - x) ** 2).unsqueeze(2)
    cover = (reach.unsqueeze(3) - squares.sqrt_()).clamp_(0)
    share = cover.minimum(thickness.clamp(max=1).unsqueeze(3)) * (0.5 + 0.45 * dark).unsqueeze(3)
    # Pixels outside the image go to a margin that is cut off.
    row = row.long().clamp(-1, height).unsqueeze(3) + 1
    column = column.long().clamp(-1, width).unsqueeze(2) + 1
    absorbed = torch.zeros(n * (height + 2) * (width + 2), device=device)
    index = (picture * (height + 2) + row) * (width + 2) + column
    absorbed.scatter_reduce_(0, index.flatten(), share.flatten(), "amax")
    return absorbed.view(n, 1, height + 2, width + 2)[..., 1:-1, 1:-1].to(image)


def _draw_ink(image: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Draws violet, hatched, grainy pen marks as light absorbed, float (N, 3, H, W) in [0, 1)."""
    n, _, height, width = image.shape
    numbers = torch.rand(7, n, 1, 1, 1, generator=generator)
    inked, level, slant, pitch, gap, grain, dark = numbers.to(image)
    tone = torch.rand(n, 3, 1, 1, generator=generator).to(image)
    nodes = torch.randn(n, 2, 6, 6, generator=generator).to(image)
    field, bend = _bicubic(nodes, height, width).split(1, 1)
    x, y = _axes(image)
    across = x * torch.cos(math.pi * slant) + y * torch.sin(math.pi * slant)
    wave = torch.sin(across * (20 + 90 * pitch) + 1.5 * bend)
    cover = torch.sigmoid(12 * (field - 0.4 - 1.1 * level))
    cover *= torch.sigmoid(5 * (wave + 1.6 * gap - 0.4))
    specks = torch.randn(n, 1, 48, 48, generator=generator).to(image)
    cover *= torch.sigmoid(2 * _bicubic(specks, height, width) + 1 + grain)
    least, more = _VIOLET.to(image)
    return (inked < probability) * (0.15 + 0.8 * dark) * cover * (least + more * tone)


def _draw_stickers(
    image: Tensor, probability: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draws discs at edges: their cover, float (N, 1, H, W), and colour, float (N, 3, 1, 1)."""
    numbers = torch.rand(8, len(image), 1, 1, 1, generator=generator)
    has, turn, size, inside, edge, hue, saturation, value = numbers.to(image)
    radius = 0.25 + 0.55 * size
    centre = torch.cat([torch.cos(2 * math.pi * turn), torch.sin(2 * math.pi * turn)], 1)
    # On the image's edge, then up to 0.35 radii into the image or 0.65 out of it.
    centre *= (1 + (inside - 0.35) * radius) / centre.abs().amax(1, keepdim=True)
    x, y = _axes(image)
    distance = ((x - centre[:, :1]) ** 2 + (y - centre[:, 1:]) ** 2).sqrt()
    cover = torch.sigmoid((radius - distance) * (70 + 140 * edge))
    sixths = hue * 6 + torch.tensor([0.0, 4, 2]).view(3, 1, 1).to(image)  # HSV to RGB
    pure = (sixths % 6 - 3).abs().sub(1).clamp(0, 1)
    colour = (0.45 + 0.55 * value) * (1 - (0.35 + 0.65 * saturation) * (1 - pure))
    return cover * (has < probability), colour
