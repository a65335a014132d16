"""Losses: values by hand, one an image; the floors of the recipe's double sigmoid."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from seglab.losses import bce, double_sigmoid_bce

LOSSES = [bce, double_sigmoid_bce]
Loss = Callable[[Tensor, Tensor], Tensor]


def batch(n: int = 3, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    logits = scale * torch.randn(n, 1, 5, 7, generator=generator, dtype=torch.float64)
    return logits, (torch.rand(n, 1, 5, 7, generator=generator) > 0.6).double()


def image(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).view(1, 1, 1, -1)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def test_bce_by_hand() -> None:
    # Probabilities 1/2, 3/4 and 1/4, of lesion, lesion and background.
    logits, mask = image(0, math.log(3), -math.log(3)), image(1, 1, 0)
    expected = -(math.log(1 / 2) + math.log(3 / 4) + math.log(1 - 1 / 4)) / 3
    assert bce(logits, mask).tolist() == pytest.approx([expected], rel=1e-14)


def test_double_sigmoid_by_hand() -> None:
    logits, mask = image(0, math.log(3)), image(1, 0)
    second = [1 / (1 + math.exp(-1 / 2)), 1 / (1 + math.exp(-3 / 4))]
    expected = -(math.log(second[0]) + math.log(1 - second[1])) / 2
    assert double_sigmoid_bce(logits, mask).tolist() == pytest.approx([expected], rel=1e-14)


@settings(deadline=None, max_examples=30)
@given(
    logits=arrays(np.float64, (2, 1, 2, 3), elements=st.floats(-30, 30)),
    mask=arrays(np.float64, (2, 1, 2, 3), elements=st.sampled_from([0.0, 1.0])),
)
def test_bce_is_the_formula(logits: np.ndarray, mask: np.ndarray) -> None:
    pixels = np.maximum(logits, 0) - logits * mask + np.log1p(np.exp(-np.abs(logits)))
    ours = bce(torch.from_numpy(logits), torch.from_numpy(mask)).numpy()
    np.testing.assert_allclose(ours, pixels.reshape(2, -1).mean(1), rtol=1e-12, atol=1e-14)


def test_bce_is_that_of_probabilities() -> None:
    logits, mask = batch()
    prob = torch.sigmoid(logits)
    expected = F.binary_cross_entropy(prob, mask, reduction="none").mean((1, 2, 3))
    torch.testing.assert_close(bce(logits, mask), expected, rtol=1e-9, atol=0)


@settings(deadline=None, max_examples=30)
@given(
    logits=arrays(np.float64, (2, 1, 2, 3), elements=st.floats(-30, 30)),
    mask=arrays(np.float64, (2, 1, 2, 3), elements=st.sampled_from([0.0, 1.0])),
)
def test_double_sigmoid_is_the_formula_and_has_floors(logits: np.ndarray, mask: np.ndarray) -> None:
    prob = sigmoid(sigmoid(logits))
    pixels = -(mask * np.log(prob) + (1 - mask) * np.log(1 - prob))
    ours = double_sigmoid_bce(torch.from_numpy(logits), torch.from_numpy(mask)).numpy()
    np.testing.assert_allclose(ours, pixels.reshape(2, -1).mean(1), rtol=1e-12, atol=1e-14)
    floors = np.where(mask == 1, math.log(1 + 1 / math.e), math.log(2))
    assert (ours >= floors.reshape(2, -1).mean(1) - 1e-12).all()


def test_floors_are_reached_where_the_network_is_right_and_sure() -> None:
    lesion = double_sigmoid_bce(image(60.0), image(1)).item()
    background = double_sigmoid_bce(image(-60.0), image(0)).item()
    assert lesion == pytest.approx(math.log(1 + math.exp(-1)), rel=1e-14)
    assert background == pytest.approx(math.log(2), rel=1e-14)
    assert round(lesion, 3) == 0.313
    assert round(background, 3) == 0.693
    assert bce(image(60.0), image(1)).item() < 1e-20


@pytest.mark.parametrize("loss", LOSSES)
def test_one_value_an_image_that_no_other_image_changes(loss: Loss) -> None:
    logits, mask = batch(3)
    values = loss(logits, mask)
    assert values.shape == (3,)
    assert len(set(values.tolist())) == 3
    for i in range(3):
        alone = loss(logits[i : i + 1], mask[i : i + 1])
        torch.testing.assert_close(alone, values[i : i + 1], rtol=1e-14, atol=0)


def test_mean_over_images_is_torchs_batch_loss() -> None:
    logits, mask = batch(4)
    expected = F.binary_cross_entropy_with_logits(logits, mask)
    torch.testing.assert_close(bce(logits, mask).mean(), expected, rtol=1e-13, atol=0)
    expected = F.binary_cross_entropy_with_logits(torch.sigmoid(logits), mask)
    torch.testing.assert_close(double_sigmoid_bce(logits, mask).mean(), expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_agree_with_differences(loss: Loss) -> None:
    logits, mask = batch(2)
    assert torch.autograd.gradcheck(lambda x: loss(x, mask), logits.requires_grad_())


def test_gradients_by_hand_and_how_the_double_sigmoid_shrinks_them() -> None:
    logits, mask = batch(1)
    plain, double = (logits.clone().requires_grad_() for _ in range(2))
    bce(plain, mask).sum().backward()
    double_sigmoid_bce(double, mask).sum().backward()
    once = torch.sigmoid(logits)
    torch.testing.assert_close(plain.grad, (once - mask) / 35)
    slope = once * (1 - once)
    torch.testing.assert_close(double.grad, (torch.sigmoid(once) - mask) * slope / 35)
    assert double.grad.abs().max() <= 0.25 / 35 * torch.sigmoid(torch.tensor(1.0)).item()
    # Sure and wrong: the plain loss pulls with all its force, the double one hardly.
    assert _pull(bce) == pytest.approx(1, rel=1e-4)
    assert _pull(double_sigmoid_bce) < 1e-4


def _pull(loss: Loss) -> float:
    logits = image(-10.0).requires_grad_()
    loss(logits, image(1)).sum().backward()
    return logits.grad.abs().item()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("value", [1e4, -1e4, 88.8, -88.8, 3e38, -3e38])
@pytest.mark.parametrize("target", [0.0, 1.0])
def test_extreme_logits_stay_finite_and_exact(loss: Loss, value: float, target: float) -> None:
    logits = torch.full((2, 1, 1, 1), value, requires_grad=True)
    values = loss(logits, torch.full((2, 1, 1, 1), target))
    values.sum().backward()
    assert values.isfinite().all()
    if loss is bce:
        # The distance on the wrong side, nothing on the right one.
        hand = max(0.0, -value if target else value)
    else:
        hand = math.log(1 + math.exp((1 if value > 0 else 0) * (-1 if target else 1)))
    assert values.tolist() == pytest.approx([hand] * 2, rel=1e-6, abs=1e-30)
    assert logits.grad.isfinite().all()
