"""Augmentation: image and mask move together, as far as the settings say, from the seed alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from seglab.data.augment import Augment

N, S = 32, 64
NONE = {"flip": False} | dict.fromkeys(
    ("rotate", "scale", "shift", "brightness", "contrast", "saturation"), 0.0
)


def only(**settings: float | bool) -> Augment:
    return Augment(**(NONE | settings))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def lesions(n: int = N) -> tuple[Tensor, Tensor]:
    """Blobs without any symmetry; the red channel is the mask, the others are skin."""
    y, x = torch.meshgrid(torch.arange(S), torch.arange(S), indexing="ij")
    mask = torch.stack(
        [
            (((y - 24 - i % 5) / 12) ** 2 + ((x - 38 + i % 7) / 18) ** 2 < 1)
            | ((y > 30) & (y < 50) & (x > 34) & (x < 44 + i % 3))
            for i in range(n)
        ]
    ).float()[:, None]
    skin = torch.rand(n, 2, S, S, generator=seeded(9))
    return torch.cat([mask, skin], 1), mask


def coordinates(n: int) -> Tensor:
    """Red is x and green is y, in edges from the centre, offset by one half."""
    at = (torch.arange(S) + 0.5) / S
    y, x = torch.meshgrid(at, at, indexing="ij")
    return torch.stack([x, y, torch.full_like(x, 0.5)]).repeat(n, 1, 1, 1)


def maps(augment: Augment, n: int = 400) -> tuple[Tensor, Tensor]:
    """The (N, 2, 2) matrices and (N, 2) shifts by which the centres of n images moved."""
    image, _ = augment(coordinates(n), torch.zeros(n, 1, S, S), seeded())
    m = S // 2
    here = image[:, :2, m - 1 : m + 1, m - 1 : m + 1].double()
    along_x = (here[..., 1] - here[..., 0]).mean(2) * S
    along_y = (here[..., 1, :] - here[..., 0, :]).mean(2) * S
    return torch.stack([along_x, along_y], 2), here.mean((2, 3)) - 0.5


GEOMETRY = {
    "flip": only(flip=True),
    "rotate": only(rotate=180),
    "scale": only(scale=0.5),
    "shift": only(shift=0.3),
    "all": Augment(brightness=0, contrast=0, saturation=0),
}


@pytest.mark.parametrize("name", GEOMETRY)
def test_image_and_mask_move_together(name: str) -> None:
    image, mask = lesions()
    moved, moved_mask = GEOMETRY[name](image, mask, seeded())
    red = moved[:, :1] > 0.5
    true = moved_mask > 0.5
    overlap = (red & true).sum((1, 2, 3)) / (red | true).sum((1, 2, 3)).clamp(min=1)
    assert overlap.min() > 0.97
    assert ((moved_mask != mask).float().mean((1, 2, 3)) > 0.01).float().mean() > 0.7


def test_light_leaves_the_mask_alone() -> None:
    image, mask = lesions()
    light = only(brightness=0.3, contrast=0.3, saturation=0.3)
    changed, same = light(image, mask, seeded())
    assert torch.equal(same, mask)
    assert ((changed - image).abs().mean((1, 2, 3)) > 0.005).all()


STRONG = Augment(brightness=0.9, contrast=0.9, saturation=0.9, scale=1, shift=0.5)


@pytest.mark.parametrize("augment", [Augment(), STRONG, *GEOMETRY.values()])
def test_shapes_types_and_ranges(augment: Augment) -> None:
    image, mask = lesions(8)
    changed, moved = augment(image, mask, seeded())
    assert changed.shape == image.shape
    assert moved.shape == mask.shape
    assert changed.dtype == moved.dtype == torch.float32
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert set(moved.unique().tolist()) == {0, 1}


def test_the_batch_that_came_stays_as_it_is() -> None:
    image, mask = lesions(4)
    before = image.clone(), mask.clone()
    Augment()(image, mask, seeded())
    assert torch.equal(image, before[0])
    assert torch.equal(mask, before[1])


def test_the_generator_alone_decides() -> None:
    image, mask = lesions(8)
    torch.manual_seed(1)
    first = Augment()(image, mask, seeded(3))
    torch.manual_seed(2)
    again = Augment()(image, mask, seeded(3))
    other = Augment()(image, mask, seeded(4))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    for one, two in zip(first, other, strict=True):
        assert ((one - two).abs().mean((1, 2, 3)) > 0.005).all()


@pytest.mark.parametrize(
    "augment", [only(**{name: 0.3}) for name in ("scale", "shift", "brightness", "contrast")]
)
def test_a_generator_goes_on(augment: Augment) -> None:
    image, mask = lesions(2)
    generator = seeded()
    first, second = (augment(image, mask, generator)[0] for _ in range(2))
    assert not torch.allclose(first, second)


def test_elements_of_a_batch_differ() -> None:
    image, mask = lesions(1)
    changed, moved = Augment()(image.repeat(N, 1, 1, 1), mask.repeat(N, 1, 1, 1), seeded())
    assert len({tuple(one.flatten().tolist()) for one in moved}) == N
    assert all(not torch.allclose(changed[0], other, atol=0.01) for other in changed[1:])


@pytest.mark.parametrize("name", [n for n in NONE if n not in ("flip", "rotate")])
def test_each_strength_is_drawn_for_each_image(name: str) -> None:
    image, mask = lesions(1)
    changed, _ = only(**{name: 0.3})(image.repeat(9, 1, 1, 1), mask.repeat(9, 1, 1, 1), seeded())
    assert all((changed[0] - other).abs().max() > 1e-4 for other in changed[1:])


def test_no_strength_is_no_change() -> None:
    image, mask = lesions()
    same, same_mask = only()(image, mask, seeded())
    assert (same - image).abs().max() < 1e-5
    assert torch.equal(same_mask, mask)


def test_flips_are_torchs() -> None:
    image, mask = lesions()
    changed, moved = only(flip=True)(image, mask, seeded())
    seen = []
    for i in range(N):
        (which,) = (
            axes
            for axes in ([], [1], [2], [1, 2])
            if torch.allclose(changed[i], image[i].flip(axes), atol=1e-4)
        )
        assert torch.equal(moved[i], mask[i].flip(which))
        seen.append(tuple(which))
    assert len(set(seen)) == 4
    assert min(seen.count(which) for which in set(seen)) >= 2


def test_each_flip_comes_with_probability_one_half() -> None:
    matrices, shifts = maps(only(flip=True))
    assert torch.allclose(matrices.abs(), torch.eye(2).double().expand(400, 2, 2), atol=1e-3)
    assert shifts.abs().max() < 1e-4
    left_right, up_down = matrices[:, 0, 0] < 0, matrices[:, 1, 1] < 0
    for share in (left_right, up_down, left_right == up_down):
        assert 0.4 < share.double().mean() < 0.6


@pytest.mark.parametrize("degrees", [20, 180])
def test_turns_reach_as_far_as_set(degrees: float) -> None:
    matrices, shifts = maps(only(rotate=degrees))
    determinants = torch.linalg.det(matrices)
    assert (determinants - 1).abs().max() < 1e-3
    assert torch.allclose(matrices[:, 0, 0], matrices[:, 1, 1], atol=1e-3)
    assert torch.allclose(matrices[:, 0, 1], -matrices[:, 1, 0], atol=1e-3)
    angles = torch.rad2deg(torch.atan2(matrices[:, 1, 0], matrices[:, 0, 0]))
    assert 0.97 * degrees < angles.max() <= degrees + 0.1
    assert -0.97 * degrees > angles.min() >= -degrees - 0.1
    assert angles.mean().abs() < 0.1 * degrees
    assert shifts.abs().max() < 1e-4


def test_zooms_reach_as_far_as_set() -> None:
    matrices, shifts = maps(only(scale=0.25))
    zooms = 1 / matrices[:, 0, 0]
    assert torch.allclose(zooms, 1 / matrices[:, 1, 1], atol=1e-3)
    assert matrices[:, [0, 1], [1, 0]].abs().max() < 1e-3
    assert 1.24 < zooms.max() <= 1.251
    assert 0.799 <= zooms.min() < 0.807
    assert 0.45 < (zooms > 1).double().mean() < 0.55
    assert shifts.abs().max() < 1e-4


def test_shifts_reach_as_far_as_set() -> None:
    matrices, shifts = maps(only(shift=0.2))
    assert torch.allclose(matrices, torch.eye(2).double().expand(400, 2, 2), atol=1e-3)
    for along in (shifts[:, 0], shifts[:, 1]):
        assert 0.195 < along.max() <= 0.2001
        assert -0.195 > along.min() >= -0.2001
    assert torch.corrcoef(shifts.T)[0, 1].abs() < 0.2


def test_what_comes_in_from_outside_is_mirrored() -> None:
    """So it is skin, and no black corner that only augmented images have."""
    image = torch.full((N, 3, S, S), 0.7)
    changed, moved = GEOMETRY["all"](image, torch.ones(N, 1, S, S), seeded())
    assert (changed - 0.7).abs().max() < 1e-4
    assert (moved == 1).all()
    ramp, _ = only(shift=0.3)(coordinates(1), torch.zeros(1, 1, S, S), seeded())
    row = ramp[0, 0, S // 2]
    turning = [int(row.argmin()), int(row.argmax())]
    edge = next(i for i in turning if 1 < i < S - 2)
    after, before = row[edge + 1 :], row[:edge].flip(0)
    n = min(len(after), len(before))
    assert torch.allclose(after[:n], before[:n], atol=1 / S)


def test_brightness_adds_as_much_as_set() -> None:
    image, mask = torch.rand(400, 3, 8, 8) * 0.2 + 0.4, torch.zeros(400, 1, 8, 8)
    change = only(brightness=0.15)(image, mask, seeded())[0] - image
    assert (change - change.mean((1, 2, 3), keepdim=True)).abs().max() < 1e-5
    assert 0.14 < change.max() <= 0.1501
    assert -0.14 > change.min() >= -0.1501


def test_contrast_stretches_about_the_mean_as_much_as_set() -> None:
    image, mask = torch.rand(400, 3, 8, 8) * 0.2 + 0.4, torch.zeros(400, 1, 8, 8)
    changed = only(contrast=0.25)(image, mask, seeded())[0]
    before, after = image.mean((1, 2, 3)), changed.mean((1, 2, 3))
    assert torch.allclose(before, after, atol=1e-5)
    factors = changed.std((1, 2, 3)) / image.std((1, 2, 3))
    assert 1.24 < factors.max() <= 1.2501
    assert 0.76 > factors.min() >= 0.7499


def test_saturation_stretches_colour_as_much_as_set() -> None:
    image, mask = torch.rand(400, 3, 8, 8) * 0.2 + 0.4, torch.zeros(400, 1, 8, 8)
    changed = only(saturation=0.25)(image, mask, seeded())[0]
    grey, grey_after = image.mean(1, keepdim=True), changed.mean(1, keepdim=True)
    assert torch.allclose(grey, grey_after, atol=1e-5)
    factors = (changed - grey).flatten(1).norm(dim=1) / (image - grey).flatten(1).norm(dim=1)
    assert 1.24 < factors.max() <= 1.2501
    assert 0.76 > factors.min() >= 0.7499
    colourless = torch.full((4, 3, 8, 8), 0.5)
    assert torch.allclose(only(saturation=0.5)(colourless, mask[:4], seeded())[0], colourless)
