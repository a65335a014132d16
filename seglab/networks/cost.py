"""Multiply-adds of a forward pass."""

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from seglab.networks.fast_conv import reference_ops


@torch.no_grad()
def multiply_adds(net: nn.Module, size: int) -> int:
    """Count the multiply-adds of one image's forward pass, in eval mode.

    Convolutions, matrix products and attention are counted; biases, normalisation, activations
    and pooling are not, as is usual. What `seglab.networks.fast_conv` saves is not subtracted. The
    network's buffers and modes and all random generators stay as they are.

    Args:
        net: From images (1, 3, S, S) to logits, on any device.
        size: S, in pixels.
    """
    image = torch.zeros(1, 3, size, size, device=next(net.parameters()).device)
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    training = [module for module in net.modules() if module.training]
    net.eval()
    counter = FlopCounterMode(display=False)
    with isolate_rng(include_cuda=image.is_cuda), reference_ops(), counter:
        functional_call(net, buffers, image)
    for module in training:
        module.training = True
    # The counter counts two operations per multiply-add.
    return counter.get_total_flops() // 2
