"""Augmentation of whole batches, image and mask together."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from seglab.core.errors import InputError
from seglab.core.validation import check_number

_NODES = 5  # along an edge, of the grid that bends a picture
_HAIRS = 8  # in one picture, at most
_BROWN = torch.tensor([0.85, 0.95, 1]).view(3, 1, 1)  # what hair takes of red, green and blue


class Augment:
    """Random geometry, light and hair, drawn anew for each image of a batch.

    One map moves image and mask; what it brings in from outside is mirrored. All else changes the
    image alone. 0 switches a part off.

    Args:
        flip: Mirror left-right and up-down, each with probability 1/2.
        rotate: Largest turn either way, in degrees.
        scale: Largest zoom either way: 0.2 draws from 1/1.2 to 1.2.
        shift: Largest shift either way, as a share of the edge.
        brightness: Largest change of brightness either way, as a share of white.
        contrast: Largest change of contrast either way, as a share.
        saturation: Largest change of colour saturation either way, as a share.
        elastic: Standard deviation of smooth random displacements, as a share of the edge: normal
            at the nodes of a coarse grid, bicubic between them (Ronneberger et al., 2015).
        hair: Probability that an image gets dark hairs, up to 8 of them.
        colour: Largest change of each colour channel's gain either way, as a share: the white
            balance of other cameras.
        illumination: Largest change of light between centre and corners either way, as a share; it
            rises or falls evenly across the image.
        gamma: 0.2 raises the image to powers from 1/1.2 to 1.2.
    """

    def __init__(
        self,
        flip: bool = True,
        rotate: float = 180,
        scale: float = 0.2,
        shift: float = 0.1,
        brightness: float = 0.1,
        contrast: float = 0.2,
        saturation: float = 0.2,
        elastic: float = 0,
        hair: float = 0,
        colour: float = 0,
        illumination: float = 0,
        gamma: float = 0,
    ) -> None:
        if not isinstance(flip, bool):
            raise InputError(f"data.augment.flip={flip}: expected true or false")
        for name, value, most in (
            ("rotate", rotate, 180),
            ("scale", scale, 10),
            ("shift", shift, 1),
            ("brightness", brightness, 1),
            ("contrast", contrast, 1),
            ("saturation", saturation, 1),
            ("elastic", elastic, 0.1),
            ("hair", hair, 1),
            ("colour", colour, 1),
            ("illumination", illumination, 1),
            ("gamma", gamma, 10),
        ):
            check_number(f"data.augment.{name}", value, float, 0, most)
        self.flip = flip
        self.rotate = rotate
        self.scale = scale
        self.shift = shift
        self.brightness = brightness
        self.contrast = contrast
        self.saturation = saturation
        self.elastic = elastic
        self.hair = hair
        self.colour = colour
        self.illumination = illumination
        self.gamma = gamma

    def __call__(
        self, image: Tensor, mask: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Augments a batch.

        Args:
            image: float (N, 3, H, W) in [0, 1].
            mask: float (N, 1, H, W), 0 or 1, or class numbers.
            generator: On the CPU, so that every device draws the same.

        Returns:
            Both, shaped, ranged and laid out in memory as they came.
        """
        n, _, height, width = image.shape
        came = image

        def draw(*shape: int) -> Tensor:
            return torch.empty(n, *shape).uniform_(-1, 1, generator=generator)

        def light(change: float, channels: int = 1) -> Tensor:
            return (draw(channels) * change).view(n, channels, 1, 1).to(image)

        angle = draw() * math.radians(self.rotate)
        zoom = torch.exp(draw() * math.log1p(self.scale))
        mirror = torch.ones(n, 2)
        if self.flip:
            mirror[torch.stack([draw(), draw()], 1) < 0] = -1
        shift = torch.stack([draw(), draw()], 1) * 2 * self.shift
        saturation = light(self.saturation)
        contrast = light(self.contrast)
        brightness = light(self.brightness)
        # Nothing below draws where it is off, nor changes what was drawn above.

        turn = torch.stack(
            [torch.cos(angle), -torch.sin(angle), torch.sin(angle), torch.cos(angle)], 1
        ).view(n, 2, 2)
        affine = turn / zoom.view(n, 1, 1) * mirror.view(n, 1, 2)
        theta = torch.cat([affine, shift.unsqueeze(2)], 2).to(image)
        grid = F.affine_grid(theta, list(image.shape), align_corners=False)
        if self.elastic:
            # The grid's unit is half an edge.
            nodes = torch.randn(n, 2, _NODES, _NODES, generator=generator) * 2 * self.elastic
            grid += _bicubic(nodes.to(image), height, width).permute(0, 2, 3, 1)
        image = F.grid_sample(image, grid, padding_mode="reflection", align_corners=False)
        mask = F.grid_sample(
            mask, grid, mode="nearest", padding_mode="reflection", align_corners=False
        )

        if self.hair:
            image *= 1 - _hairs(image, self.hair, generator) * _BROWN.to(image)
        if self.colour:
            image *= 1 + light(self.colour, channels=3)
        if self.illumination:
            across, down = light(self.illumination / 2, channels=2).split(1, 1)
            x = torch.linspace(-1, 1, width).to(image)
            y = torch.linspace(-1, 1, height).to(image).view(-1, 1)
            image *= 1 + across * x + down * y
        if self.gamma:
            power = torch.exp(draw() * math.log1p(self.gamma)).view(n, 1, 1, 1).to(image)
            # x ** power, in half the time.
            image.clamp_(0, 1).log_().mul_(power).exp_()
        grey = image.mean(1, keepdim=True)
        image.sub_(grey).mul_(1 + saturation).add_(grey)
        level = image.mean((1, 2, 3), keepdim=True)
        image.sub_(level).mul_(1 + contrast).add_(level).add_(brightness)
        return torch.clamp(image, 0, 1, out=torch.empty_like(came)), mask


def _bicubic(nodes: Tensor, height: int, width: int) -> Tensor:
    """`F.interpolate(mode="bicubic", align_corners=True)` as two small matrix products.

    Args:
        nodes: float (N, C, K, K), the first and last of which lie on the edges.
        height: Of the result, in pixels.
        width: The same.

    Returns:
        float (N, C, H, W).
    """
    k = nodes.shape[-1]
    one = torch.eye(k).to(nodes).view(1, 1, k, k)
    down, across = (
        F.interpolate(one, (size, k), mode="bicubic", align_corners=True)[0, 0]
        for size in (height, width)
    )
    return down @ nodes @ across.T


def _hairs(image: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Draws hairs: parabolas, roughly aligned, as a share of the light that they take.

    Their roots are 1 to 2 pixels thick at 256 pixels, they are 0.3 to 1 edge long, end in a point
    and are antialiased.

    Args:
        image: float (N, C, H, W), for its shape, type and device.
        probability: That a picture has any.
        generator: On the CPU. How much is drawn depends on N alone.

    Returns:
        (N, 1, H, W) in [0, 1), 0 where no hair is.
    """
    n, _, height, width = image.shape
    hairy, many, slant = torch.rand(3, n, 1, generator=generator).expand(3, n, _HAIRS)
    numbers = torch.rand(7, n, _HAIRS, generator=generator)
    drawn = (hairy < probability) & (torch.arange(_HAIRS) <= many * _HAIRS)
    # From here on a row is a hair, and then a column a point of it, at most 0.6 pixels apart.
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
    reach = (thickness + 1) / 2
    near = torch.arange(math.ceil(2 * edge + 1), device=device)
    column, row = ((to - reach).ceil() + near for to in (x, y))
    squares = ((row - y) ** 2).unsqueeze(3) + ((column - x) ** 2).unsqueeze(2)
    cover = (reach.unsqueeze(3) - squares.sqrt_()).clamp_(0)
    share = cover.minimum(thickness.clamp(max=1).unsqueeze(3)) * (0.5 + 0.45 * dark).unsqueeze(3)
    # What lies outside goes to a margin that is cut off.
    row = row.long().clamp(-1, height).unsqueeze(3) + 1
    column = column.long().clamp(-1, width).unsqueeze(2) + 1
    taken = torch.zeros(n * (height + 2) * (width + 2), device=device)
    index = (picture * (height + 2) + row) * (width + 2) + column
    taken.scatter_reduce_(0, index.flatten(), share.flatten(), "amax")
    return taken.view(n, 1, height + 2, width + 2)[..., 1:-1, 1:-1].to(image)
