"""SegNet and U-Net: equal to the recipe's networks of scripts/recipe.py, and their properties."""

import itertools
import runpy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers.tiny import DEVICES, REPO
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from seglab.networks import SegNet, UNet
from seglab.networks.fast_conv import (
    convolve,
    convolve_normalized,
    convolve_upsampled,
    expand,
    upsample,
)

NETWORKS = [SegNet, UNet]
make_recipe_network = runpy.run_path(str(REPO / "scripts" / "recipe.py"))["make_network"]


def up(x: Tensor) -> Tensor:
    return nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)(x)


def make_pair(make: type[nn.Module]) -> tuple[nn.Module, nn.Module]:
    """Make our network and the recipe's, with equal weights and no BatchNorm at its start.

    The recipe's parameters are in the order of its forward pass, and so are ours.
    """
    torch.manual_seed(0)
    net, recipe = make(), make_recipe_network(make.__name__.lower())
    for module in batch_norms(recipe):
        nn.init.uniform_(module.weight, 0.5, 2)
        nn.init.normal_(module.bias)
        nn.init.normal_(module.running_mean)
        nn.init.uniform_(module.running_var, 0.5, 2)
    for kind in (nn.Module.parameters, nn.Module.buffers):
        for ours, theirs in zip(kind(net), kind(recipe), strict=True):
            assert ours.shape == theirs.shape
            assert ours.dtype == theirs.dtype
            ours.data.copy_(theirs)
    return net, recipe


def batch_norms(net: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]


@pytest.mark.parametrize("make", NETWORKS)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype, atol", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_gives_what_the_recipe_gives(
    make: type[nn.Module], training: bool, dtype: torch.dtype, atol: float
) -> None:
    net, recipe = (module.to(dtype).train(training) for module in make_pair(make))
    image = torch.rand(2, 3, 64, 96, dtype=dtype)
    with torch.no_grad():
        ours, theirs = torch.sigmoid(net(image)), recipe(image)
    assert theirs.std() > 1e-3
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)
    # The recipe's U-Net updates the statistics of its encoder twice.
    for a, b in zip(net.decoder.buffers(), recipe.decoder.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=10 * atol)


@pytest.mark.parametrize("make", NETWORKS)
def test_gradients_are_the_recipes(make: type[nn.Module]) -> None:
    net, recipe = (module.double() for module in make_pair(make))
    image = torch.rand(2, 3, 32, 48, dtype=torch.float64)
    mask = (torch.rand(2, 1, 32, 48) > 0.5).double()
    ours, theirs = image.clone().requires_grad_(), image.clone().requires_grad_()
    F.binary_cross_entropy_with_logits(net(ours), mask).backward()
    F.binary_cross_entropy(recipe(theirs), mask).backward()
    tensors = zip([ours, *net.parameters()], [theirs, *recipe.parameters()], strict=True)
    for a, b in tensors:
        assert b.grad.abs().max() > 1e-6
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-10)


def value_and_gradients(
    function: Callable[..., Tensor], inputs: list[Tensor], factor: Tensor
) -> tuple[Tensor, ...]:
    """Compute the function, and the gradient of its product with `factor` for each input."""
    inputs = [value.clone().requires_grad_() for value in inputs]
    out = function(*inputs)
    return (out.detach(), *torch.autograd.grad((out * factor).sum(), inputs))


@given(
    shape=st.tuples(
        st.integers(1, 3),  # images
        st.sampled_from([1, 3, 31, 32, 33, 40]),  # channels in
        st.integers(1, 20),  # channels out
        st.integers(1, 40),  # height
        st.integers(1, 40),  # width
    ),
    layout=st.sampled_from([torch.contiguous_format, torch.channels_last]),
)
@settings(max_examples=60, deadline=None)
def test_convolutions_are_torchs(
    shape: tuple[int, int, int, int, int], layout: torch.memory_format
) -> None:
    n, channels, out, height, width = shape
    torch.manual_seed(0)
    x = torch.randn(n, channels, height, width).double().to(memory_format=layout)
    weight, bias = torch.randn(out, channels, 3, 3).double(), torch.randn(out).double()
    cases = (
        (upsample, up, [x]),
        (convolve, lambda x, w, b: F.conv2d(x, w, b, padding=1), [x, weight, bias]),
        (convolve_upsampled, lambda x, w: F.conv2d(up(x), w, padding=1), [x, weight]),
    )
    for device, (ours, theirs, inputs) in itertools.product(DEVICES, cases):
        inputs = [value.to(device) for value in inputs]
        factor = torch.randn(theirs(*inputs).shape).to(inputs[0])
        pairs = (value_and_gradients(function, inputs, factor) for function in (ours, theirs))
        for a, b in zip(*pairs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_fast_ways_are_taken_where_they_are_meant_to_be() -> None:
    weight, narrow = torch.randn(4, 32, 3, 3), torch.randn(4, 31, 3, 3)
    x = torch.randn(1, 32, 8, 8, requires_grad=True)
    assert "_Convolution" in convolve(x, weight, None).grad_fn.name()
    assert "_Convolution" not in convolve(x[:, 1:], narrow, None).grad_fn.name()
    assert "_Convolution" not in convolve(x.bfloat16(), weight.bfloat16(), None).grad_fn.name()
    with torch.autocast("cpu", torch.bfloat16):
        assert "_Convolution" not in convolve(x, weight, None).grad_fn.name()
        assert convolve_upsampled(x, weight).dtype == torch.bfloat16
    convolve(x, weight.requires_grad_(), None).sum().backward()
    assert x.grad is not None and weight.grad is not None


@pytest.mark.parametrize("make", NETWORKS)
def test_bfloat16_is_near(make: type[nn.Module]) -> None:
    net, recipe = (module.train() for module in make_pair(make))
    image = torch.rand(2, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        ours, theirs = torch.sigmoid(net(image).float()), recipe(image).float()
    exact = make_pair(make)[1].train()(image)
    # No further from float32 than the plain formula in bfloat16 is, but for chance.
    assert (ours - exact).square().mean() < 2 * (theirs - exact).square().mean()


def test_running_statistics_move_once_a_step() -> None:
    net, recipe = make_pair(UNet)
    start = batch_norms(make_pair(UNet)[0])[0].running_mean
    image = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        net(image), recipe(image)
        mean = F.relu(net.encoder.blocks[0][0](image)).mean((0, 2, 3))
    assert [int(m.num_batches_tracked) for m in batch_norms(net)] == [1] * 7
    assert [int(m.num_batches_tracked) for m in batch_norms(recipe)] == [2] * 4 + [1] * 3
    once = 0.9 * start + 0.1 * mean
    torch.testing.assert_close(batch_norms(net)[0].running_mean, once)
    torch.testing.assert_close(batch_norms(recipe)[0].running_mean, 0.9 * once + 0.1 * mean)


@pytest.mark.parametrize(
    "make, settings, channels",
    [
        (SegNet, {"in_channels": 1, "classes": 4, "width": 5, "depth": 1}, "1-5 5-10 10-4"),
        (UNet, {"in_channels": 1, "classes": 4, "width": 5, "depth": 1}, "1-5 5-10 15-4"),
        (UNet, {"width": 1, "depth": 5}, "3-1 1-2 2-4 4-8 8-16 16-32 48-16 24-8 12-4 6-2 3-1"),
    ],
)
def test_channels_follow_width_and_depth(
    make: type[nn.Module], settings: dict[str, int], channels: str
) -> None:
    net = make(**settings)
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert " ".join(f"{m.in_channels}-{m.out_channels}" for m in convolutions) == channels
    depth = settings.get("depth", 4)
    image = torch.rand(2, settings.get("in_channels", 3), 2 * 2**depth, 2**depth)
    assert net(image).shape == (2, settings.get("classes", 1), *image.shape[2:])


@pytest.mark.parametrize("make", NETWORKS)
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_logits_have_the_images_size(make: type[nn.Module], data: st.DataObject) -> None:
    depth = data.draw(st.integers(1, 4), "depth")
    height, width = (2**depth * data.draw(st.integers(1, 4), "edge") for _ in range(2))
    n, classes = data.draw(st.integers(1, 3), "n"), data.draw(st.integers(1, 2), "classes")
    net = make(classes=classes, width=data.draw(st.integers(1, 3), "width"), depth=depth)
    net.train(data.draw(st.booleans(), "training"))
    logits = net(torch.rand(n, 3, height, width))
    assert logits.shape == (n, classes, height, width)
    assert logits.isfinite().all()


@pytest.mark.parametrize("make", NETWORKS)
@pytest.mark.parametrize(
    "shape, edge, nearest",
    [
        ((256, 250), 250, "240 and 256"),
        ((5, 16), 5, "16"),
        ((0, 16), 0, "16"),
    ],
)
def test_other_sizes_are_refused(
    make: type[nn.Module], shape: tuple[int, int], edge: int, nearest: str
) -> None:
    message = f"edge of {edge} pixels is not a multiple of 16; the nearest: {nearest}$"
    with pytest.raises(ValueError, match=message):
        make(width=1)(torch.zeros(1, 3, *shape))


@pytest.mark.parametrize("make", NETWORKS)
@pytest.mark.parametrize("width, depth", [(0, 4), (-1, 4), (16, 0), (16, -1)])
def test_bad_width_and_depth_are_refused(make: type[nn.Module], width: int, depth: int) -> None:
    with pytest.raises(ValueError, match=f"^width={width}, depth={depth}: "):
        make(width=width, depth=depth)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("kernel", "groups"), [(1, 1), (3, 1), (3, 6), (5, 6), (5, 2)])
def test_convolve_normalized_has_pytorchs_values_and_gradients(
    kernel: int, groups: int, stride: int, training: bool
) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 6, kernel, stride, kernel // 2, groups=groups, bias=False).double()
    norm = nn.BatchNorm2d(6).double().train(training)
    for values in (*norm.parameters(), *norm.buffers()):
        if values.is_floating_point():
            values.data.uniform_(0.5, 1.5)
    x = torch.randn(2, 6, 9, 12, dtype=torch.float64).to(memory_format=torch.channels_last)
    x.requires_grad_()
    wanted = [x, conv.weight, *norm.parameters()]
    fast = convolve_normalized(x, conv, norm)
    grad = torch.randn_like(fast)
    gradients = torch.autograd.grad(fast, wanted, grad)
    expected = norm(conv(x))
    torch.testing.assert_close(fast, expected)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, wanted, grad))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("padding", [(0, 0, 0, 0), (0, 1, 0, 1), (1, 2, 3, 4)])
def test_expand_has_pytorchs_values_and_gradients(padding: tuple[int, ...], training: bool) -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(4, 6, 1, bias=False), nn.BatchNorm2d(6).train(training)
    for values in (*norm.parameters(), norm.running_mean, norm.running_var):
        values.data.uniform_(2, 4)
    conv, norm = conv.double(), norm.double()
    x = 6 * torch.randn(2, 4, 5, 7, dtype=torch.float64)
    x = x.to(memory_format=torch.channels_last).requires_grad_()
    wanted = [x, conv.weight, *norm.parameters()]
    expected = F.pad(F.relu6(norm(conv(x))), padding)
    fast = expand(x, conv, norm, padding)
    grad = torch.randn_like(fast)
    torch.testing.assert_close(fast, expected)
    assert ((fast == 0).any(), (fast == 6).any()) == (True, True)
    mine, theirs = (torch.autograd.grad(y, wanted, grad) for y in (fast, expected))
    torch.testing.assert_close(mine, theirs)
    assert training or torch.autograd.gradgradcheck(lambda x: expand(x, conv, norm, padding), x)
    with torch.no_grad():
        torch.testing.assert_close(expand(x, conv, norm, padding), expected)


def test_expand_and_convolve_normalized_under_autocast() -> None:
    torch.manual_seed(0)
    first, second = nn.Conv2d(4, 8, 1, bias=False), nn.Conv2d(8, 8, 5, groups=8, bias=False)
    norms, x = [nn.BatchNorm2d(8).eval() for _ in range(2)], torch.randn(2, 4, 9, 12)
    modules = [first, second, *norms]
    wanted = [x.requires_grad_(), *(p for module in modules for p in module.parameters())]
    with torch.autocast("cpu", torch.bfloat16):
        y = expand(x, first, norms[0], (2, 2, 2, 2))
        fast = convolve_normalized(y, second, norms[1])
    assert y.dtype == fast.dtype == torch.bfloat16
    grad = torch.randn_like(fast).float()
    gradients = torch.autograd.grad(fast.float(), wanted, grad)
    plain = norms[1](second(F.pad(F.relu6(norms[0](first(x))), (2, 2, 2, 2))))
    expected = torch.autograd.grad(plain, wanted, grad)
    for mine, theirs in zip(gradients, expected, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - theirs).norm() < 0.02 * theirs.norm()  # bfloat16 has 8 bits
