"""Augmentation of whole batches, image and mask together."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from seglab.errors import InputError


class Augment:
    """Random flips, turns, zooms, shifts and light, drawn anew for each image of a batch.

    One affine map moves image and mask; what it brings in from outside is mirrored. Light changes
    the image alone.

    Args:
        flip: Mirror left-right and up-down, each with probability 1/2.
        rotate: Largest turn either way, in degrees.
        scale: Largest zoom either way: 0.2 draws from 1/1.2 to 1.2.
        shift: Largest shift either way, as a share of the edge.
        brightness: Largest change of brightness either way, as a share of white.
        contrast: Largest change of contrast either way, as a share.
        saturation: Largest change of colour saturation either way, as a share.
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
    ) -> None:
        for name, value, most in (
            ("rotate", rotate, 180),
            ("scale", scale, 10),
            ("shift", shift, 1),
            ("brightness", brightness, 1),
            ("contrast", contrast, 1),
            ("saturation", saturation, 1),
        ):
            if not isinstance(value, int | float) or not 0 <= value <= most:
                raise InputError(f"data.augment.{name}={value}: expected 0 to {most}")
        self.flip = flip
        self.rotate = rotate
        self.scale = scale
        self.shift = shift
        self.brightness = brightness
        self.contrast = contrast
        self.saturation = saturation

    def __call__(
        self, image: Tensor, mask: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Augments a batch.

        Args:
            image: float (N, 3, H, W) in [0, 1].
            mask: float (N, 1, H, W), 0 or 1.
            generator: On the CPU, so that every device draws the same.

        Returns:
            Both, shaped and ranged as they came.
        """
        n = len(image)

        def draw(low: float, high: float) -> Tensor:
            return torch.empty(n).uniform_(low, high, generator=generator)

        angle = draw(-1, 1) * math.radians(self.rotate)
        zoom = torch.exp(draw(-1, 1) * math.log1p(self.scale))
        mirror = torch.ones(n, 2)
        if self.flip:
            mirror[torch.stack([draw(-1, 1), draw(-1, 1)], 1) < 0] = -1
        shift = torch.stack([draw(-1, 1), draw(-1, 1)], 1) * 2 * self.shift
        turn = torch.stack(
            [torch.cos(angle), -torch.sin(angle), torch.sin(angle), torch.cos(angle)], 1
        ).view(n, 2, 2)
        affine = turn / zoom.view(n, 1, 1) * mirror.view(n, 1, 2)
        theta = torch.cat([affine, shift.unsqueeze(2)], 2).to(image)
        grid = F.affine_grid(theta, list(image.shape), align_corners=False)
        image = F.grid_sample(image, grid, padding_mode="reflection", align_corners=False)
        mask = F.grid_sample(
            mask, grid, mode="nearest", padding_mode="reflection", align_corners=False
        )

        def light(change: float) -> Tensor:
            return (draw(-1, 1) * change).view(n, 1, 1, 1).to(image)

        grey = image.mean(1, keepdim=True)
        image = grey + (image - grey) * (1 + light(self.saturation))
        level = image.mean((1, 2, 3), keepdim=True)
        image = level + (image - level) * (1 + light(self.contrast)) + light(self.brightness)
        return image.clamp(0, 1), mask
