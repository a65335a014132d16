"""The recipe that seglab starts from, as it is written: what benchmark.py compares with.

It is that of lesson 12, on segmentation, of Microsoft's AI for Beginners. Its two mistakes are left
in: the sigmoid is taken twice, and U-Net computes its encoder twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


def make_network(name: str) -> nn.Module:
    """Build the recipe's 'unet' or 'segnet': images (N, 3, S, S) to probabilities (N, 1, S, S)."""
    import torch
    from torch import nn

    def block(a: int, b: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(b))

    def level(a: int, b: int) -> nn.Sequential:
        return nn.Sequential(block(a, b), nn.MaxPool2d(2))

    class SegNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            levels = level(3, 16), level(16, 32), level(32, 64), level(64, 128)
            self.encoder: Any = nn.Sequential(*levels)
            self.bottleneck = nn.Conv2d(128, 256, 3, padding=1)
            self.decoder = nn.Sequential(block(256, 128), block(128, 64), block(64, 32))
            self.head = nn.Conv2d(32, 1, 1)
            self.upsample = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)

        def forward(self, x: Tensor) -> Tensor:
            x = self.bottleneck(self.encoder(x))
            for block in self.decoder:
                x = block(self.upsample(x))
            return torch.sigmoid(self.head(self.upsample(x)))

    class UNet(SegNet):
        def __init__(self) -> None:
            super().__init__()
            self.decoder = nn.Sequential(block(256 + 128, 128), block(128 + 64, 64), block(96, 32))
            self.head = nn.Conv2d(32 + 16, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            skips = []
            for block, pool in self.encoder:
                skips.append(block(x))
                x = pool(block(x))  # every block of the encoder is computed twice
            x = self.bottleneck(x)
            for block, skip in zip(self.decoder, skips[:0:-1], strict=True):
                x = block(torch.cat([self.upsample(x), skip], 1))
            return torch.sigmoid(self.head(torch.cat([self.upsample(x), skips[0]], 1)))

    return {"unet": UNet, "segnet": SegNet}[name]()


def train_steps(net: nn.Module, loader: Iterable[Any], device: str = "cpu") -> Iterator[float]:
    """Train without end as the recipe does; yields the loss of each step.

    Args:
        net: `make_network`.
        loader: Pairs of images float (N, 3, S, S) in [0, 1] and masks float (N, 1, S, S).
        device: 'cpu' or 'cuda'.
    """
    import torch

    net = net.to(device).train()
    criterion = torch.nn.BCEWithLogitsLoss()  # of probabilities: the second sigmoid
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, weight_decay=1e-6)
    while True:
        for images, masks in loader:
            optimizer.zero_grad()
            loss = criterion(net(images.to(device)), masks.to(device))
            loss.backward()
            optimizer.step()
            yield loss.item()  # for its progress bar


def predict_mask(net: nn.Module, image: Any, size: int, device: str = "cpu") -> Any:
    """Predict the mask, bool (H, W), of a native image, uint8 (H, W, 3), at network size."""
    import torch
    from skimage.transform import resize

    small = resize(image, (size, size), anti_aliasing=True)
    with torch.no_grad():
        x = torch.tensor(small, dtype=torch.float32).permute(2, 0, 1)[None].to(device)
        prob = net(x)[0, 0].cpu().numpy()
    return resize(prob, image.shape[:2]) > 0.5


def read_case(image: Path, mask: Path, size: int) -> tuple[Any, Any]:
    """Read and resize one case: image float (S, S, 3) in [0, 1], mask bool (S, S)."""
    from skimage.io import imread
    from skimage.transform import resize

    lesion = imread(mask)
    lesion = lesion[..., 0] if lesion.ndim == 3 else lesion  # the recipe fails here
    return (
        resize(imread(image), (size, size), anti_aliasing=True),
        resize(lesion.astype(float), (size, size), anti_aliasing=False) > 0.5,
    )
