"""Augmentation: image and mask move together, as far as the settings say, from the seed alone."""

import colorsys
import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor

from seglab.core.errors import InputError
from seglab.data.augment import Augment

N, S = 32, 64
NONE = {"flip": False} | dict.fromkeys(
    ("rotate", "scale", "shift", "brightness", "contrast", "saturation"), 0.0
)
ADDED = {"elastic": 0.03, "hair": 1.0, "colour": 0.3, "illumination": 0.3, "gamma": 0.3}
ADDED |= {"ink": 1.0, "sticker": 1.0}
MOST = {"rotate": 180, "elastic": 0.1, "scale": 10, "gamma": 10}  # 1 for all others


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
    "elastic": only(elastic=0.03),
    "all and elastic": Augment(brightness=0, contrast=0, saturation=0, elastic=0.03),
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
    light = only(brightness=0.3, contrast=0.3, saturation=0.3, **(ADDED | {"elastic": 0}))
    changed, same = light(image, mask, seeded())
    assert torch.equal(same, mask)
    assert ((changed - image).abs().mean((1, 2, 3)) > 0.005).all()


@given(data=st.data(), channels_last=st.booleans(), seed=st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_all_settings_give_images_and_masks(
    data: st.DataObject, channels_last: bool, seed: int
) -> None:
    names = [*NONE, *ADDED][1:]
    strengths = {n: data.draw(st.floats(0, MOST.get(n, 1)), label=n) for n in names}
    height, width = (data.draw(st.integers(8, 40)) for _ in range(2))
    image = torch.rand(3, 3, height, width, generator=seeded(seed))
    image[0], image[1] = 0, 1
    if channels_last:
        image = image.contiguous(memory_format=torch.channels_last)
    mask = (image.mean(1, keepdim=True) > 0.5).float()
    before = image.clone(), mask.clone()
    augment = Augment(flip=data.draw(st.booleans()), **strengths)
    changed, moved = augment(image, mask, seeded(seed))
    assert (changed.shape, changed.dtype) == (image.shape, image.dtype)
    assert (moved.shape, moved.dtype) == (mask.shape, mask.dtype)
    assert changed.stride() == image.stride()
    assert changed.isfinite().all()
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert set(moved.unique().tolist()) <= {0, 1}
    assert torch.equal(image, before[0]) and torch.equal(mask, before[1])
    # Nor does it matter what else is in the batch.
    image[1:] = 1 - image[1:]
    assert torch.equal(augment(image, mask, seeded(seed))[0][0], changed[0])


@pytest.mark.parametrize("augment", [Augment(), Augment(**ADDED)])
def test_the_generator_alone_decides(augment: Augment) -> None:
    image, mask = lesions(8)
    torch.manual_seed(1)
    first = augment(image, mask, seeded(3))
    torch.manual_seed(2)
    second = augment(image, mask, seeded(3))
    other = augment(image, mask, seeded(4))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    for one, two in zip(first, other, strict=True):
        assert ((one - two).abs().mean((1, 2, 3)) > 0.005).all()


STRENGTHS = dict.fromkeys(("scale", "shift", "brightness", "contrast", "saturation"), 0.3) | ADDED


@pytest.mark.parametrize("name", STRENGTHS)
def test_each_strength_is_drawn_for_each_image(name: str) -> None:
    image, mask = (one.repeat(9, 1, 1, 1) for one in lesions(1))
    changed, _ = only(**{name: STRENGTHS[name]})(image, mask, seeded())
    assert all((changed[0] - other).abs().max() > 1e-4 for other in changed[1:])


def test_no_strength_is_no_change() -> None:
    image, mask = lesions()
    same, same_mask = only()(image, mask, seeded())
    assert (same - image).abs().max() < 1e-5
    assert torch.equal(same_mask, mask)


def test_flips_are_torchs_each_with_probability_one_half() -> None:
    image, mask = lesions(256)
    changed, moved = only(flip=True)(image, mask, seeded())
    seen = []
    for i in range(256):
        (which,) = (
            axes
            for axes in ([], [1], [2], [1, 2])
            if torch.allclose(changed[i], image[i].flip(axes), atol=1e-4)
        )
        assert torch.equal(moved[i], mask[i].flip(which))
        seen.append(tuple(which))
    assert len(set(seen)) == 4
    assert all(40 < seen.count(which) < 88 for which in set(seen))


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


@pytest.mark.parametrize("name, axes", [("contrast", (1, 2, 3)), ("saturation", (1,))])
def test_contrast_and_saturation_stretch_about_a_mean(name: str, axes: tuple[int, ...]) -> None:
    image, mask = torch.rand(400, 3, 8, 8) * 0.2 + 0.4, torch.zeros(400, 1, 8, 8)
    changed = only(**{name: 0.25})(image, mask, seeded())[0]
    mean, mean_after = (one.mean(axes, keepdim=True) for one in (image, changed))
    assert torch.allclose(mean, mean_after, atol=1e-5)
    factors = (changed - mean).flatten(1).norm(dim=1) / (image - mean).flatten(1).norm(dim=1)
    assert 1.24 < factors.max() <= 1.2501
    assert 0.76 > factors.min() >= 0.7499


def drawn_before(n: int) -> torch.Generator:
    """A generator that has drawn what is drawn before any part that was added."""
    generator = seeded()
    only()(torch.zeros(n, 3, 8, 8), torch.zeros(n, 1, 8, 8), generator)
    return generator


@pytest.mark.parametrize("name", ADDED)
def test_a_part_that_was_added_changes_nothing_that_was_drawn(name: str) -> None:
    """So that an ablation compares the same turns."""
    image, mask = lesions()
    _, without = Augment()(image, mask, seeded())
    changed, moved = Augment(**{name: ADDED[name]})(image, mask, seeded())
    assert ((moved != without).float().mean() < (0.1 if name == "elastic" else 1e-9)).all()
    assert not torch.allclose(changed, Augment()(image, mask, seeded())[0], atol=0.01)


def test_elastic_moves_by_bicubic_displacements() -> None:
    image, mask = coordinates(N), torch.zeros(N, 1, S, S)
    bent = only(elastic=0.04)(image, mask, seeded())[0][:, :2]
    nodes = torch.randn(N, 2, 5, 5, generator=drawn_before(N)) * 0.04
    moves = F.interpolate(nodes, (S, S), mode="bicubic", align_corners=True)
    expected = image[:, :2] + moves
    inside = ((expected > 0.5 / S) & (expected < 1 - 0.5 / S)).all(1, keepdim=True)
    assert inside.float().mean() > 0.8
    assert ((bent - expected) * inside).abs().max() < 1e-5
    flat = torch.full((N, 3, S, S), 0.3)
    assert (only(elastic=0.1)(flat, mask, seeded())[0] - 0.3).abs().max() < 1e-5


def test_elastic_bends_oblongs_too() -> None:
    image = torch.rand(2, 1, 24, 40).repeat(1, 3, 1, 1).round()
    bent, moved = only(elastic=0.03)(image, image[:, :1], seeded())
    assert moved.shape == (2, 1, 24, 40)
    # Nearest and bilinear of the same point of an image of 0 and 1.
    assert ((bent[:, :1] - moved).abs() < 0.75 + 1e-4).all()
    assert (moved != image[:, :1]).float().mean() > 0.05


def test_colour_gains_are_those_drawn() -> None:
    image, mask = torch.rand(N, 3, 8, 8), torch.zeros(N, 1, 8, 8)
    changed, _ = only(colour=0.3)(image, mask, seeded())
    gains = 1 + 0.3 * torch.empty(N, 3).uniform_(-1, 1, generator=drawn_before(N))
    assert torch.allclose(changed, (image * gains[:, :, None, None]).clamp(0, 1), atol=1e-6)
    assert gains.min() < 0.75
    assert gains.max() > 1.25


def test_gamma_raises_to_powers_drawn_log_uniformly() -> None:
    image, mask = torch.rand(N, 3, 8, 8), torch.zeros(N, 1, 8, 8)
    image[:, :, 0, 0], image[:, :, 0, 1] = 0, 1
    changed, _ = only(gamma=0.5)(image, mask, seeded())
    drawn = torch.empty(N).uniform_(-1, 1, generator=drawn_before(N)).numpy()
    powers = np.float64(1.5) ** drawn
    expected = image.numpy() ** powers[:, None, None, None]
    assert np.abs(changed.numpy() - expected).max() < 1e-5
    assert 1 / 1.5 <= powers.min() < 0.75
    assert 1.35 < powers.max() <= 1.5


def test_cameras_clip_before_gamma() -> None:
    white, mask = torch.ones(N, 3, 8, 8), torch.zeros(N, 1, 8, 8)
    gains = torch.empty(N, 3).uniform_(-1, 1, generator=drawn_before(N))
    brightness = only(brightness=0.3)(white / 2, mask, seeded())[0] - 0.5
    changed, _ = only(brightness=0.3, colour=0.3, gamma=0.3)(white, mask, seeded())
    expected = (1 + brightness).clamp(max=1)
    assert torch.allclose(changed[gains > 0], expected[gains > 0], atol=1e-6)


def test_illumination_rises_evenly_to_as_much_as_set() -> None:
    image, mask = torch.full((400, 3, 9, 13), 0.6), torch.zeros(400, 1, 9, 13)
    changed, _ = only(illumination=0.4)(image, mask, seeded())
    gains = (changed / 0.6).double().numpy()
    assert np.ptp(gains, axis=1).max() < 1e-5
    y, x = np.mgrid[-1:1:9j, -1:1:13j]
    plane = np.stack([np.ones(9 * 13), x.ravel(), y.ravel()], 1)
    (level, across, down), residuals, *_ = np.linalg.lstsq(plane, gains[:, 0].reshape(400, -1).T)
    assert residuals.max() < 1e-9
    assert np.abs(level - 1).max() < 1e-5
    for slope in (across, down):
        assert 0.195 < slope.max() <= 0.2001
        assert -0.195 > slope.min() >= -0.2001
    assert abs(np.corrcoef(across, down)[0, 1]) < 0.2


def hair(size: int, n: int = N, probability: float = 1) -> Tensor:
    """What hair leaves of white."""
    white, mask = torch.ones(n, 3, size, size), torch.zeros(n, 1, size, size)
    return only(hair=probability)(white, mask, seeded())[0]


def test_hair_is_thin_dark_and_brown() -> None:
    left = hair(256)
    hairy = left[:, 2] < 1
    assert hairy.float().mean((1, 2)).min() > 0.001
    assert 0.01 < hairy.float().mean() < 0.03
    assert hairy.float().mean((1, 2)).max() < 0.08
    assert 0.04 < left.min() < 0.2
    taken = 1 - left
    assert torch.allclose(taken[:, 0], 0.85 * taken[:, 2], atol=1e-6)
    assert torch.allclose(taken[:, 1], 0.95 * taken[:, 2], atol=1e-6)
    # No square of 5 pixels, other than where hairs run side by side.
    thick = -F.max_pool2d(-hairy.float()[:, None], 5, 1)
    assert thick.mean() < 0.002
    image, mask = lesions()
    darker, same = only(hair=1)(image, mask, seeded())
    assert torch.equal(same, mask)
    assert (darker <= image + 1e-5).all()


def test_hair_comes_as_often_as_set() -> None:
    def share(probability: float) -> float:
        return (hair(32, 400, probability).amin((1, 2, 3)) < 0.99).double().mean().item()

    assert 0.25 < share(0.3) < 0.35
    assert share(1) > 0.97  # some lie in a corner, and a few outside
    assert share(1e-9) == 0


def test_ink_is_a_violet_that_darkens_a_part_of_as_many_images_as_set() -> None:
    white, mask = torch.ones(400, 3, S, S), torch.ones(400, 1, S, S)
    left = only(ink=0.5)(white, mask, seeded())[0]
    inked = left.amin((1, 2, 3)) < 0.99
    assert 0.4 < inked.float().mean() < 0.55  # not where no blot lies in the image
    taken = (1 - left[inked]).flatten(2)
    assert (taken[:, 1] >= taken[:, 2] - 1e-6).all()  # green more than blue
    assert taken.min() >= 0
    assert 0.8 < taken.max() < 0.95
    shares = (taken[:, 1] > 0.1).float().mean(1)
    assert 0.02 < shares.mean() < 0.2
    # One colour in all of an image: shares taken of two channels are in proportion.
    matrix = taken[:, :2] / taken.amax((1, 2), keepdim=True)
    assert torch.linalg.svdvals(matrix)[:, 1].max() < 1e-3
    image, mask = lesions()
    darker, same = only(ink=1)(image, mask, seeded())
    assert torch.equal(same, mask)
    assert (darker <= image + 1e-5).all()
    assert (darker < image - 0.1)[:, 0][mask[:, 0] == 1].any()


def test_stickers_are_discs_at_the_edge_and_below_the_lesion() -> None:
    grey, mask = torch.full((400, 3, S, S), 0.5), torch.zeros(400, 1, S, S)
    changed = only(sticker=0.5)(grey, mask, seeded())[0].numpy()
    covered = np.abs(changed - 0.5).max(1) > 0.01
    assert 0.42 < covered.any((1, 2)).mean() < 0.55  # some lie in a corner outside
    assert covered[:, 24:40, 24:40].mean() < 0.2
    hues = []
    for image, cover in zip(changed, covered, strict=True):
        solid = ndimage.binary_erosion(cover, iterations=4)  # without what is half covered
        if not solid.any():
            continue
        pieces, n = ndimage.label(cover)
        assert n == 1
        assert pieces[[0, -1]].any() or pieces[:, [0, -1]].any()
        red, green, blue = np.median(image[:, solid], 1)
        assert np.ptp(image[:, solid], axis=1).max() < 0.1
        hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
        assert saturation > 0.34 and value > 0.44
        hues.append(hue)
    assert np.histogram(hues, 6, (0, 1))[0].min() > len(hues) / 12  # any hue
    image, mask = lesions()
    changed, same = only(sticker=1)(image, mask, seeded())
    assert torch.equal(same, mask)
    assert ((changed - image).abs() * mask).max() < 1e-5


@pytest.mark.parametrize("name", [*NONE, *ADDED][1:])
@pytest.mark.parametrize("value", [-0.01, 1.01, math.nan, "much", True])
def test_settings_out_of_range_are_named(name: str, value: float | str) -> None:
    most = MOST.get(name, 1)
    value = value * most if isinstance(value, float) else value
    told = re.escape(f"data.augment.{name}={value!r}: expected a number from 0 to {most}")
    with pytest.raises(InputError, match=f"^{told}$"):
        Augment(**{name: value})
    assert Augment(**{name: most})


@pytest.mark.parametrize("value", ["no", 1, None])
def test_flip_is_true_or_false(value: object) -> None:
    with pytest.raises(InputError, match=rf"^data\.augment\.flip={value}: expected true or false$"):
        Augment(flip=value)  # type: ignore[arg-type]
