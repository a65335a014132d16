"""Networks: from images (N, 3, H, W) in [0, 1] to logits (N, classes, H, W)."""

from seglab.nets.segnet import SegNet
from seglab.nets.unet import EncoderUNet, UNet

__all__ = ["EncoderUNet", "SegNet", "UNet"]
