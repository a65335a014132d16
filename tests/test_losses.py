"""Losses: values by hand, one per image; their properties; the floors of the double sigmoid."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import uniform_filter
from torch import Tensor

from seglab.losses import (
    BINARY,
    MULTICLASS,
    bce,
    bce_dice,
    check_channels,
    cross_entropy,
    cross_entropy_dice,
    dice,
    double_sigmoid_bce,
    focal,
    structure,
    tversky,
)
from seglab.runs.loading import ALLOWED_TARGETS

# The window of 'structure' is 3 x 3 of the 5 x 7 and 4 x 4 pixels below.
near = partial(structure, window=0.5)
LOSSES = [bce, double_sigmoid_bce, dice, bce_dice, focal, tversky, near]
OVERLAPS = [dice, tversky]
Loss = Callable[[Tensor, Tensor], Tensor]


def batch(n: int = 3, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    logits = scale * torch.randn(n, 1, 5, 7, generator=generator, dtype=torch.float64)
    return logits, (torch.rand(n, 1, 5, 7, generator=generator) > 0.6).double()


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


@settings(deadline=None, max_examples=60)
@given(
    logits=arrays(np.float64, (2, 1, 2, 3), elements=st.floats(-30, 30)),
    mask=arrays(np.float64, (2, 1, 2, 3), elements=st.sampled_from([0.0, 1.0])),
)
def test_entropies_are_their_formulas_and_the_double_sigmoid_has_floors(
    logits: np.ndarray, mask: np.ndarray
) -> None:
    inputs = torch.from_numpy(logits), torch.from_numpy(mask)
    single = np.maximum(logits, 0) - logits * mask + np.log1p(np.exp(-np.abs(logits)))
    prob = sigmoid(sigmoid(logits))
    double = -(mask * np.log(prob) + (1 - mask) * np.log(1 - prob))
    for loss, pixels in ((bce, single), (double_sigmoid_bce, double)):
        expected = pixels.reshape(2, -1).mean(1)
        np.testing.assert_allclose(loss(*inputs).numpy(), expected, rtol=1e-12, atol=1e-14)
    floors = np.where(mask == 1, math.log(1 + 1 / math.e), math.log(2))
    assert (double >= floors - 1e-12).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_one_value_an_image_that_no_other_image_changes(loss: Loss) -> None:
    logits, mask = batch(3)
    values = loss(logits, mask)
    assert values.shape == (3,)
    assert len(set(values.tolist())) == 3
    for i in range(3):
        alone = loss(logits[i : i + 1], mask[i : i + 1])
        torch.testing.assert_close(alone, values[i : i + 1], rtol=1e-14, atol=0)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_agree_with_differences(loss: Loss) -> None:
    logits, mask = batch(2)
    assert torch.autograd.gradcheck(lambda x: loss(x, mask), logits.requires_grad_())


@pytest.mark.parametrize("loss", [bce, double_sigmoid_bce])
@pytest.mark.parametrize("value", [1e4, -1e4, 88.8, -88.8, 3e38, -3e38])
@pytest.mark.parametrize("target", [0.0, 1.0])
def test_extreme_logits_stay_finite_and_exact(loss: Loss, value: float, target: float) -> None:
    logits = torch.full((2, 1, 1, 1), value, requires_grad=True)
    values = loss(logits, torch.full((2, 1, 1, 1), target))
    values.sum().backward()
    assert values.isfinite().all()
    if loss is bce:
        # The distance on the wrong side, nothing on the right one.
        expected = max(0.0, -value if target else value)
    else:
        expected = math.log(1 + math.exp((1 if value > 0 else 0) * (-1 if target else 1)))
    assert values.tolist() == pytest.approx([expected] * 2, rel=1e-6, abs=1e-30)
    assert logits.grad.isfinite().all()


# Probabilities 1/2, 3/4 of lesion, 1/4, 3/4 of background: found are 5/4 pixels, false positive 1,
# false negative 3/4; ln 2, ln 4/3, ln 4/3 and ln 4 are their cross-entropies.
LN2, LN3, LN4 = (math.log(n) for n in (2, 3, 4))
SQUARE = Tensor([[0, LN3], [-LN3, LN3]]), Tensor([[1, 1], [0, 0]])


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (partial(bce, lesion_weight=3), (3 * (LN4 + LN2 - LN3) + LN4 - LN3 + LN4) / 4),
        (dice, 1 - (2 * 5 / 4 + 2) / (5 / 2 + 1 + 3 / 4 + 2)),
        # Pixels count 1/4, 1/16, 1/16 and 9/16.
        (focal, (LN2 / 4 + (LN4 - LN3) / 8 + 9 / 16 * LN4) / 4),
        (
            partial(focal, gamma=1, lesion_weight=3),
            (3 * (LN2 / 2 + (LN4 - LN3) / 4) + (LN4 - LN3) / 4 + 3 / 4 * LN4) / 4,
        ),
        (tversky, 1 - (5 / 4 + 1) / (5 / 4 + 0.3 + 0.7 * 3 / 4 + 1)),
        (partial(tversky, alpha=1, beta=0.2), 1 - (5 / 4 + 1) / (5 / 4 + 1 + 0.15 + 1)),
    ],
)
def test_by_hand(loss: Loss, expected: float) -> None:
    logits, mask = (array[None, None] for array in SQUARE)
    assert loss(logits, mask).tolist() == pytest.approx([expected], rel=1e-6)


def test_identities() -> None:
    logits, mask = batch(4)
    mask[0], mask[1] = 0, 1
    equal = partial(torch.testing.assert_close, rtol=1e-12, atol=0)
    equal(tversky(logits, mask, alpha=0.5, beta=0.5), dice(logits, mask))
    for weight in (1, 2.5):
        plain = bce(logits, mask, lesion_weight=weight)
        equal(focal(logits, mask, gamma=0, lesion_weight=weight), plain)
        equal(bce_dice(logits, mask, lesion_weight=weight), plain + dice(logits, mask))
    # No border, no weights: of empty and full masks, also along the picture's edge.
    plain = bce(logits, mask) + tversky(logits, mask, alpha=1, beta=1)
    equal(near(logits, mask)[:2], plain[:2])
    assert (near(logits, mask)[2:] - plain[2:]).abs().min() > 0.01
    equal(structure(logits, mask, window=0), plain)
    # Of certain predictions dice is Dice, but for the pixel that is added.
    certain, target = logits[2:].sign() * 100, mask[2:]
    tp = ((certain > 0) * target).sum((1, 2, 3))
    pixels = (certain > 0).sum((1, 2, 3)) + target.sum((1, 2, 3))
    equal(dice(certain, target), 1 - (2 * tp + 2) / (pixels + 2))


@pytest.mark.parametrize(("edge", "window"), [(32, 3), (128, 11), (352, 31)])
def test_structure_is_the_papers_within_the_picture(edge: int, window: int) -> None:
    generator = np.random.default_rng(edge)
    logits, noise = generator.normal(size=(2, edge, edge + 9))
    mask = (uniform_filter(noise, edge // 8) > 0).astype(float)
    share = uniform_filter(mask, window, mode="constant")
    share /= uniform_filter(np.ones_like(mask), window, mode="constant")
    weight = 1 + 5 * np.abs(share - mask)
    prob = sigmoid(logits)
    entropy = -np.log(np.where(mask == 1, prob, 1 - prob))
    tp, union = (weight * prob * mask).sum(), (weight * (prob + mask - prob * mask)).sum()
    expected = (weight * entropy).sum() / weight.sum() + 1 - (tp + 1) / (union + 1)
    ours = structure(*(torch.from_numpy(array)[None, None] for array in (logits, mask)))
    assert ours.tolist() == pytest.approx([expected], rel=1e-12)


def test_structure_is_float32_under_autocast_too() -> None:
    # bfloat16 counts to 256, and the windows hold more.
    logits = torch.randn(1, 1, 40, 40, generator=torch.Generator().manual_seed(2))
    mask = (logits.roll(9, 3) > -1).float()
    expected = structure(logits, mask, window=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(structure(logits, mask, window=1), expected)


pictures = st.tuples(
    arrays(np.float64, (2, 1, 4, 4), elements=st.floats(-8, 8)),
    arrays(np.float64, (2, 1, 4, 4), elements=st.sampled_from([0.0, 1.0])),
).map(lambda case: (torch.from_numpy(case[0]), torch.from_numpy(case[1])))


@pytest.mark.parametrize("loss", LOSSES)
@settings(deadline=None, max_examples=30)
@given(case=pictures, pixel=st.integers(0, 15), step=st.floats(0.5, 5))
def test_a_better_pixel_lowers_the_loss_of_its_image(
    loss: Loss, case: tuple[Tensor, Tensor], pixel: int, step: float
) -> None:
    logits, mask = case
    better = logits.clone()
    better[0].view(-1)[pixel] += step * (2 * mask[0].view(-1)[pixel] - 1)
    before, after = loss(logits, mask), loss(better, mask)
    assert 0 < after[0] < before[0]
    assert after[1] == before[1]
    assert loss not in OVERLAPS or before.max() < 1


@pytest.mark.parametrize("lesion", [0, 3, 16])
def test_certain_predictions_have_finite_losses(lesion: int) -> None:
    mask = (torch.arange(16) < lesion).float().view(1, 1, 4, 4)
    # Where all 16 pixels are wrong; those of 'structure' count 16 to 96, which is W / (W + 1).
    wrong_losses = {
        bce: 1e4,
        focal: 1e4,
        partial(focal, gamma=0.5): 1e4,
        dice: 8 / 9,
        bce_dice: 1e4 + 8 / 9,
        tversky: 1 - 1 / (0.3 * (16 - lesion) + 0.7 * lesion + 1),
        near: 1e4 + 16 / 17,
    }
    for loss, wrong in wrong_losses.items():
        for side, expected in ((1, 0), (-1, wrong)):
            logits = (side * 1e4 * (2 * mask - 1)).requires_grad_()
            value = loss(logits, mask)
            value.sum().backward()
            assert value.item() == pytest.approx(expected, rel=1e-5, abs=1e-12)
            assert logits.grad.isfinite().all()


def test_cross_entropy_by_hand() -> None:
    logits = torch.zeros(2, 3, 1, 2)
    logits[0, 1, 0, 0] = math.log(2)  # probabilities 1/4, 1/2, 1/4
    mask = torch.tensor([[[[1.0, 0.0]]], [[[2.0, 2.0]]]])
    first = (math.log(2) + math.log(3)) / 2
    assert cross_entropy(logits, mask).tolist() == pytest.approx([first, math.log(3)])
    # First image, class 1: correct 1/2, wrong (1/2 + 1/3) / 2; class 2: correct 0, wrong
    # (1/4 + 1/3) / 2. Second image: correct 0, wrong (2/3) / 2; correct 2/3, wrong (4/3) / 2.
    overlap = [
        (5 / 12 / (1 / 2 + 5 / 12 + 1) + 7 / 24 / (7 / 24 + 1)) / 2,
        (1 / 3 / (1 / 3 + 1) + 2 / 3 / (2 / 3 + 2 / 3 + 1)) / 2,
    ]
    expected = [first + overlap[0], math.log(3) + overlap[1]]
    assert cross_entropy_dice(logits, mask).tolist() == pytest.approx(expected)


def test_two_classes_are_the_binary_loss() -> None:
    logits, mask = batch()
    both = torch.cat([torch.zeros_like(logits), logits], 1)
    torch.testing.assert_close(cross_entropy(both, mask), bce(logits, mask))
    torch.testing.assert_close(cross_entropy_dice(both, mask), bce_dice(logits, mask))


def test_losses_for_another_number_of_channels_are_refused() -> None:
    for fitting, wrong, channels in ((BINARY, MULTICLASS, 1), (MULTICLASS, BINARY, 3)):
        for loss in fitting:
            check_channels(partial(loss), channels)
        for loss in (*wrong, partial(wrong[0])):
            with pytest.raises(ValueError, match=f"expected one of {fitting[0].__name__}, "):
                check_channels(loss, channels)
    check_channels(lambda logits, mask: mask, 3)


def test_stored_configs_may_name_each_loss() -> None:
    names = {f"seglab.losses.{loss.__name__}" for loss in (*BINARY, *MULTICLASS)}
    assert ALLOWED_TARGETS["task.loss"] == names
