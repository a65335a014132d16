"""Losses: from logits and masks to one value an image.

A loss is a function `(logits, mask) -> loss`: logits float (N, 1, H, W), mask float (N, 1, H, W)
of 0 and 1, loss float (N,) >= 0. One value an image and not one a batch, so that what is
reported over a data set does not depend on how it was cut into batches.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def bce(logits: Tensor, mask: Tensor, lesion_weight: float = 1.0) -> Tensor:
    """Binary cross-entropy, averaged over the pixels of each image.

    Args:
        logits: float (N, 1, H, W).
        mask: float (N, 1, H, W) of 0 and 1.
        lesion_weight: What a lesion pixel counts, where one of background counts 1.
    """
    weight = None if lesion_weight == 1 else logits.new_tensor(lesion_weight)
    loss = F.binary_cross_entropy_with_logits(logits, mask, reduction="none", pos_weight=weight)
    return loss.flatten(1).mean(1)


def double_sigmoid_bce(logits: Tensor, mask: Tensor) -> Tensor:
    """The recipe's mistake: probabilities handed in as logits, so the sigmoid is taken twice.

    No pixel falls under ln(1 + 1/e) = 0.313 (lesion) or ln 2 = 0.693 (background).
    """
    return bce(torch.sigmoid(logits), mask)
