"""Multiply-adds, counted by hand and by hooks."""

import random as python_random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from seglab.networks import SegNet, UNet
from seglab.networks.cost import multiply_adds


class Counted(nn.Module):
    """Layers whose multiply-adds can be told by hand; moody, for those that count them."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm, self.drop = nn.BatchNorm2d(8), nn.Dropout(0.5)
        self.grouped = nn.Conv2d(8, 8, 5, padding=2, groups=4)
        self.gate = nn.Linear(8, 8)
        self.up = nn.ConvTranspose2d(8, 1, 2, stride=2)
        self.register_buffer("calls", torch.zeros(2))

    def forward(self, image: Tensor) -> Tensor:
        assert torch.is_tensor(self.calls.add_(1)) and not self.training
        x = self.drop(torch.relu(self.norm(self.down(image))))
        x = self.grouped(x) + torch.rand_like(x) + python_random.random() + np.random.random()
        x = x * torch.sigmoid(self.gate(x.mean((2, 3))))[..., None, None]
        return self.up(x)


def random_states() -> list[object]:
    numpy_state = np.random.get_state()[1].tolist()  # type: ignore[index]
    return [python_random.getstate(), numpy_state, torch.get_rng_state().tolist()]


def test_multiply_adds_by_hand_and_nothing_changes() -> None:
    net = Counted().train()
    net.norm.eval()  # frozen, as fine-tuning has it
    modes = {name: module.training for name, module in net.named_modules()}
    before = {name: value.clone() for name, value in net.state_dict().items()}
    states = random_states()
    # 12 px in, 6 px within.
    by_hand = 36 * 8 * 3 * 9 + 36 * 8 * 2 * 25 + 8 * 8 + 36 * 8 * 4
    assert multiply_adds(net, 12) == by_hand
    assert random_states() == states
    assert {name: module.training for name, module in net.named_modules()} == modes
    assert set(net.state_dict()) == set(before)
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(value.equal(before[name]) for name, value in net.state_dict().items())


# U-Net's head is no layer that is called: 8 channels at 16 px, 4 at 32 px.
@pytest.mark.parametrize(("kind", "head"), [(UNet, 8 * 16 * 16 + 4 * 32 * 32), (SegNet, 0)])
def test_multiply_adds_are_those_of_the_layers(kind: Callable[..., nn.Module], head: int) -> None:
    net, expected = kind(width=4, depth=2), head

    def count(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        nonlocal expected
        expected += output.shape[2] * output.shape[3] * layer.weight.numel()

    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(count)
    net.eval()(torch.zeros(1, 3, 32, 32))
    # Nor is the decoder's convolution, at 16 px.
    by_layer = expected + 16 * 16 * net.decoder[0][0].weight.numel()
    assert multiply_adds(net, 32) == by_layer > 10_000
