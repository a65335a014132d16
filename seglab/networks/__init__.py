"""Networks: from images (N, 3, H, W) in [0, 1] to logits (N, classes, H, W)."""

from seglab.networks.segnet import SegNet
from seglab.networks.unet import EncoderUNet, UNet

__all__ = ["EncoderUNet", "SegNet", "UNet"]
