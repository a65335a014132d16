"""Networks: from images (N, 3, H, W) in [0, 1] to logits (N, classes, H, W)."""

from seglab.networks.libraries import Normalized, SMPNetwork
from seglab.networks.segnet import SegNet
from seglab.networks.unet import EncoderUNet, UNet

__all__ = ["EncoderUNet", "Normalized", "SMPNetwork", "SegNet", "UNet"]
