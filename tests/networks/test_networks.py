"""SegNet and U-Net against the recipe, written out as its table reads."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from seglab.networks import SegNet, UNet
from seglab.networks.fast_conv import convolve, convolve_upsampled

NETS = [SegNet, UNet]


def up(x: Tensor) -> Tensor:
    return nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)(x)


class RecipeSegNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv0, self.act0, self.bn0 = nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), bn(16)
        self.conv1, self.act1, self.bn1 = nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), bn(32)
        self.conv2, self.act2, self.bn2 = nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), bn(64)
        self.conv3, self.act3, self.bn3 = nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(), bn(128)
        self.pool = nn.MaxPool2d(2)
        self.bottleneck = nn.Conv2d(128, 256, 3, padding=1)
        self.conv4, self.act4, self.bn4 = nn.Conv2d(256, 128, 3, padding=1), nn.ReLU(), bn(128)
        self.conv5, self.act5, self.bn5 = nn.Conv2d(128, 64, 3, padding=1), nn.ReLU(), bn(64)
        self.conv6, self.act6, self.bn6 = nn.Conv2d(64, 32, 3, padding=1), nn.ReLU(), bn(32)
        self.head, self.sigmoid = nn.Conv2d(32, 1, 1), nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.bn0(self.act0(self.conv0(x))))
        x = self.pool(self.bn1(self.act1(self.conv1(x))))
        x = self.pool(self.bn2(self.act2(self.conv2(x))))
        x = self.pool(self.bn3(self.act3(self.conv3(x))))
        x = self.bottleneck(x)
        x = self.bn4(self.act4(self.conv4(up(x))))
        x = self.bn5(self.act5(self.conv5(up(x))))
        x = self.bn6(self.act6(self.conv6(up(x))))
        return self.sigmoid(self.head(up(x)))


class RecipeUNet(nn.Module):
    """`twice`: as the recipe is written, which computes every encoder block again for the skip."""

    def __init__(self, twice: bool = False) -> None:
        super().__init__()
        self.twice = twice
        self.conv0, self.act0, self.bn0 = nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), bn(16)
        self.conv1, self.act1, self.bn1 = nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), bn(32)
        self.conv2, self.act2, self.bn2 = nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), bn(64)
        self.conv3, self.act3, self.bn3 = nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(), bn(128)
        self.pool = nn.MaxPool2d(2)
        self.bottleneck = nn.Conv2d(128, 256, 3, padding=1)
        self.conv4, self.act4, self.bn4 = nn.Conv2d(384, 128, 3, padding=1), nn.ReLU(), bn(128)
        self.conv5, self.act5, self.bn5 = nn.Conv2d(192, 64, 3, padding=1), nn.ReLU(), bn(64)
        self.conv6, self.act6, self.bn6 = nn.Conv2d(96, 32, 3, padding=1), nn.ReLU(), bn(32)
        self.head, self.sigmoid = nn.Conv2d(48, 1, 1), nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        skip0 = self.bn0(self.act0(self.conv0(x)))
        e0 = self.pool(self.bn0(self.act0(self.conv0(x))) if self.twice else skip0)
        skip1 = self.bn1(self.act1(self.conv1(e0)))
        e1 = self.pool(self.bn1(self.act1(self.conv1(e0))) if self.twice else skip1)
        skip2 = self.bn2(self.act2(self.conv2(e1)))
        e2 = self.pool(self.bn2(self.act2(self.conv2(e1))) if self.twice else skip2)
        skip3 = self.bn3(self.act3(self.conv3(e2)))
        e3 = self.pool(self.bn3(self.act3(self.conv3(e2))) if self.twice else skip3)
        x = self.bottleneck(e3)
        x = self.bn4(self.act4(self.conv4(torch.cat([up(x), skip3], dim=1))))
        x = self.bn5(self.act5(self.conv5(torch.cat([up(x), skip2], dim=1))))
        x = self.bn6(self.act6(self.conv6(torch.cat([up(x), skip1], dim=1))))
        return self.sigmoid(self.head(torch.cat([up(x), skip0], dim=1)))


def bn(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels)


def copied(recipe: nn.Module, net: nn.Module) -> None:
    """Copies parameters and buffers in order."""
    for kind in (nn.Module.parameters, nn.Module.buffers):
        for a, b in zip(kind(recipe), kind(net), strict=True):
            assert a.shape == b.shape
            assert a.dtype == b.dtype
            b.data.copy_(a)


def twins(make: type[nn.Module], make_recipe: type[nn.Module]) -> tuple[nn.Module, nn.Module]:
    """Both with the same weights, and with no BatchNorm at its start values."""
    torch.manual_seed(0)
    net, recipe = make(), make_recipe()
    for module in batch_norms(recipe):
        nn.init.uniform_(module.weight, 0.5, 2)
        nn.init.normal_(module.bias)
        nn.init.normal_(module.running_mean)
        nn.init.uniform_(module.running_var, 0.5, 2)
    copied(recipe, net)
    return net, recipe


def batch_norms(net: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]


PAIRS = [(SegNet, RecipeSegNet), (UNet, RecipeUNet)]


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype, atol", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_gives_what_the_recipe_gives(
    pair: tuple[type[nn.Module], type[nn.Module]], training: bool, dtype: torch.dtype, atol: float
) -> None:
    net, recipe = (module.to(dtype).train(training) for module in twins(*pair))
    image = torch.rand(2, 3, 64, 96, dtype=dtype)
    with torch.no_grad():
        ours, theirs = torch.sigmoid(net(image)), recipe(image)
    assert theirs.std() > 1e-3
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)
    for a, b in zip(net.buffers(), recipe.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=10 * atol)


@pytest.mark.parametrize("pair", PAIRS)
def test_gradients_are_the_recipes(pair: tuple[type[nn.Module], type[nn.Module]]) -> None:
    net, recipe = (module.double() for module in twins(*pair))
    image = torch.rand(2, 3, 32, 48, dtype=torch.float64)
    mask = (torch.rand(2, 1, 32, 48) > 0.5).double()
    ours, theirs = image.clone().requires_grad_(), image.clone().requires_grad_()
    F.binary_cross_entropy_with_logits(net(ours), mask).backward()
    F.binary_cross_entropy(recipe(theirs), mask).backward()
    tensors = zip([ours, *net.parameters()], [theirs, *recipe.parameters()], strict=True)
    for a, b in tensors:
        assert b.grad.abs().max() > 1e-6
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-10)


def gradients(
    function: Callable[..., Tensor], inputs: list[Tensor], of: Tensor
) -> tuple[Tensor, ...]:
    """The function's value, and the gradient of its product with `of` for each input."""
    inputs = [value.clone().requires_grad_() for value in inputs]
    out = function(*inputs)
    return (out.detach(), *torch.autograd.grad((out * of).sum(), inputs))


SHAPES = st.tuples(
    st.integers(1, 3),  # images
    st.sampled_from([1, 3, 31, 32, 33, 40]),  # channels in
    st.integers(1, 20),  # channels out
    st.integers(1, 40),  # height
    st.integers(1, 40),  # width
)


@given(SHAPES, st.sampled_from([torch.contiguous_format, torch.channels_last]))
@settings(max_examples=60, deadline=None)
def test_convolution_is_torchs(
    shape: tuple[int, int, int, int, int], layout: torch.memory_format
) -> None:
    n, channels, out, height, width = shape
    torch.manual_seed(0)
    x = torch.randn(n, channels, height, width).double().to(memory_format=layout)
    inputs = [x, torch.randn(out, channels, 3, 3).double(), torch.randn(out).double()]
    of = torch.randn(n, out, height, width).double()
    ours = gradients(convolve, inputs, of)
    theirs = gradients(lambda x, w, b: F.conv2d(x, w, b, padding=1), inputs, of)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@given(SHAPES, st.sampled_from([torch.contiguous_format, torch.channels_last]))
@settings(max_examples=60, deadline=None)
def test_convolution_of_the_upsampled_is_torchs(
    shape: tuple[int, int, int, int, int], layout: torch.memory_format
) -> None:
    n, channels, out, height, width = shape
    torch.manual_seed(0)
    x = torch.randn(n, channels, height, width).double().to(memory_format=layout)
    inputs = [x, torch.randn(out, channels, 3, 3).double()]
    of = torch.randn(n, out, 2 * height, 2 * width).double()
    ours = gradients(convolve_upsampled, inputs, of)
    theirs = gradients(lambda x, w: F.conv2d(up(x), w, padding=1), inputs, of)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_second_derivatives_are_torchs() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 32, 4, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 32, 3, 3, dtype=torch.float64, requires_grad=True)
    for ours, theirs in (
        (convolve(x, weight, None), F.conv2d(x, weight, padding=1)),
        (convolve_upsampled(x, weight), F.conv2d(up(x), weight, padding=1)),
    ):
        found = []
        for out in (ours, theirs):
            (of_x,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
            found.append(torch.autograd.grad(of_x.square().sum(), (x, weight)))
        torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("make", NETS)
def test_an_empty_batch_gives_an_empty_batch(make: type[nn.Module]) -> None:
    net = make(width=16).eval()
    out = net(torch.rand(0, 3, 32, 32))
    assert out.shape == (0, 1, 32, 32)
    out.sum().backward()
    assert all(not p.grad.any() for p in net.parameters())


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
    # Each encoder convolution but the first two, and each of a skip.
    used = []
    graph = [UNet()(torch.rand(1, 3, 32, 32)).grad_fn]
    while graph:
        node = graph.pop()
        if node not in used:
            used.append(node)
            graph += [parent for parent, _ in node.next_functions if parent is not None]
    names = [node.name() for node in used]
    assert sum("_Convolution" in name for name in names) == 3 + 3
    assert sum("_Interpolation" in name for name in names) == 2 * 3


@pytest.mark.parametrize("pair", PAIRS)
def test_bfloat16_is_near(pair: tuple[type[nn.Module], type[nn.Module]]) -> None:
    net, recipe = (module.train() for module in twins(*pair))
    image = torch.rand(2, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        ours, theirs = torch.sigmoid(net(image).float()), recipe(image).float()
    exact = twins(*pair)[1].train()(image)
    # No further from float32 than the plain formula in bfloat16 is, but for chance.
    assert (ours - exact).square().mean() < 2 * (theirs - exact).square().mean()


def test_running_statistics_move_once_a_step() -> None:
    net, once = twins(UNet, RecipeUNet)
    twice = RecipeUNet(twice=True)
    copied(once, twice)
    image = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        outputs = [net(image).sigmoid(), once(image), twice(image)]
    # While training nothing shows: the second time gives the same.
    torch.testing.assert_close(outputs[1], outputs[2], rtol=0, atol=0)
    torch.testing.assert_close(outputs[0], outputs[2], rtol=0, atol=1e-5)
    assert [int(m.num_batches_tracked) for m in batch_norms(net)] == [1] * 7
    assert [int(m.num_batches_tracked) for m in batch_norms(twice)] == [2] * 4 + [1] * 3
    first = F.relu(F.conv2d(image, once.conv0.weight, once.conv0.bias, padding=1))
    start = batch_norms(twins(UNet, RecipeUNet)[0])[0]
    mean = 0.9 * start.running_mean + 0.1 * first.mean((0, 2, 3))
    torch.testing.assert_close(batch_norms(net)[0].running_mean, mean)
    moved_again = 0.9 * mean + 0.1 * first.mean((0, 2, 3))
    torch.testing.assert_close(twice.bn0.running_mean, moved_again)
    assert (moved_again - mean).abs().max() > 0.01


@pytest.mark.parametrize("make, count", [(SegNet, 780_865), (UNet, 974_417)])
def test_parameter_counts(make: type[nn.Module], count: int) -> None:
    assert sum(p.numel() for p in make().parameters() if p.requires_grad) == count


@pytest.mark.parametrize("make", NETS)
def test_state_is_parameters_and_batch_norm_buffers(make: type[nn.Module]) -> None:
    net = make()
    norms = [name for name, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 7
    state = ("running_mean", "running_var", "num_batches_tracked")
    buffers = {f"{name}.{key}" for name in norms for key in state}
    assert set(net.state_dict()) == {name for name, _ in net.named_parameters()} | buffers


class FirstUse(TorchFunctionMode):
    """Notes parameters in the order in which any function of torch first takes them."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.names = {id(p): name for name, p in net.named_parameters()}
        self.order: list[str] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        for arg in [*args, *(kwargs or {}).values()]:
            name = self.names.get(id(arg))
            if name is not None and name not in self.order:
                self.order.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("make", NETS)
def test_parameters_are_registered_in_order_of_use(make: type[nn.Module]) -> None:
    net = make(width=2)
    with torch.no_grad(), FirstUse(net) as used:
        net(torch.rand(2, 3, 32, 32))
    assert used.order == [name for name, _ in net.named_parameters()]


@pytest.mark.parametrize("make", NETS)
def test_layers_are_called_once_and_in_order(make: type[nn.Module]) -> None:
    net = make(width=2)
    leaves = [name for name, m in net.named_modules() if name and not list(m.children())]
    calls: list[str] = []
    for name in leaves:
        net.get_submodule(name).register_forward_hook(lambda *_, name=name: calls.append(name))
    net(torch.rand(2, 3, 32, 32))
    # Weights that are used in parts, or on what is not upsampled yet, not by a call.
    functional = {"decoder.0.0", "decoder.1.0", "decoder.2.0"}
    if make is UNet:
        functional.add("head")
    assert calls == [name for name in leaves if name not in functional]


@pytest.mark.parametrize(
    "make, settings, channels",
    [
        (SegNet, {}, "3-16 16-32 32-64 64-128 128-256 256-128 128-64 64-32 32-1"),
        (UNet, {}, "3-16 16-32 32-64 64-128 128-256 384-128 192-64 96-32 48-1"),
        (SegNet, {"in_channels": 1, "classes": 4, "width": 5, "depth": 1}, "1-5 5-10 10-4"),
        (UNet, {"in_channels": 1, "classes": 4, "width": 5, "depth": 1}, "1-5 5-10 15-4"),
        (SegNet, {"width": 3, "depth": 2}, "3-3 3-6 6-12 12-6 6-1"),
        (UNet, {"width": 3, "depth": 2}, "3-3 3-6 6-12 18-6 9-1"),
        (
            UNet,
            {"width": 1, "depth": 5},
            "3-1 1-2 2-4 4-8 8-16 16-32 48-16 24-8 12-4 6-2 3-1",
        ),
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


@pytest.mark.parametrize("make", NETS)
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


@pytest.mark.parametrize("make", NETS)
@pytest.mark.parametrize(
    "shape, edge, nearest",
    [
        ((30, 32), 30, "16 and 32"),
        ((32, 33), 33, "32 and 48"),
        ((256, 250), 250, "240 and 256"),
        ((5, 16), 5, "16"),
        ((16, 1), 1, "16"),
        ((0, 16), 0, "16"),
    ],
)
def test_other_sizes_are_refused(
    make: type[nn.Module], shape: tuple[int, int], edge: int, nearest: str
) -> None:
    said = f"edge of {edge} pixels is not a multiple of 16; the nearest: {nearest}$"
    with pytest.raises(ValueError, match=said):
        make(width=1)(torch.zeros(1, 3, *shape))


@settings(deadline=None, max_examples=30)
@given(depth=st.integers(1, 4), edge=st.integers(1, 100))
def test_named_sizes_are_the_nearest_good_ones(depth: int, edge: int) -> None:
    net = UNet(width=1, depth=depth).eval()
    good = [size for size in range(1, 130) if size % 2**depth == 0]
    image = torch.zeros(1, 3, 2**depth, edge)
    if edge in good:
        assert net(image).shape[-1] == edge
        return
    near = [max((s for s in good if s < edge), default=0), min(s for s in good if s > edge)]
    nearest = " and ".join(str(size) for size in near if size)
    with pytest.raises(ValueError, match=f"edge of {edge} pixels .*: {nearest}$"):
        net(image)


@pytest.mark.parametrize("make", NETS)
@pytest.mark.parametrize("width, depth", [(0, 4), (-1, 4), (16, 0), (16, -1)])
def test_bad_width_and_depth_are_refused(make: type[nn.Module], width: int, depth: int) -> None:
    with pytest.raises(ValueError, match=f"^width={width}, depth={depth}: "):
        make(width=width, depth=depth)


@pytest.mark.parametrize("make", NETS)
@pytest.mark.parametrize("training", [False, True])
def test_memory_layout_changes_no_value(make: type[nn.Module], training: bool) -> None:
    torch.manual_seed(0)
    net = make(width=4).train(training).double()
    other = copy.deepcopy(net).to(memory_format=torch.channels_last)
    image = torch.rand(2, 3, 32, 48, dtype=torch.float64)
    before = image.clone()
    last = image.to(memory_format=torch.channels_last)
    torch.testing.assert_close(net(image), other(last), rtol=0, atol=1e-10)
    assert torch.equal(image, before)
    assert torch.equal(last, before)


@pytest.mark.parametrize("make", NETS)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_can_be_traced_and_saved(make: type[nn.Module], tmp_path: Path) -> None:
    net = make(width=2).eval()
    with torch.no_grad():
        torch.jit.save(torch.jit.trace(net, torch.rand(1, 3, 32, 32)), tmp_path / "net.pt")
    traced = torch.jit.load(tmp_path / "net.pt")
    image = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(traced(image), net(image), rtol=0, atol=1e-6)
