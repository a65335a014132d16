"""Learning rate schedulers, stepped once per epoch."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def cosine(optimizer: Optimizer, epochs: int, warmup: float = 0) -> LambdaLR:
    """Linear warmup, then cosine annealing to nearly 0 (arXiv 1706.02677, 1608.03983).

    Args:
        optimizer: Each group's rate is scaled by the same factor in [0, 1].
        epochs: Number of epochs of the run, at least 1; after them the rate is 0.
        warmup: Share of the epochs with a rising rate, in [0, 1]. At least one epoch is left, and
            the first one after the warmup has the full rate.
    """
    warmup_epochs = min(round(warmup * epochs), epochs - 1)

    def factor(epoch: int) -> float:
        if epoch < warmup_epochs:
            return (epoch + 1) / (warmup_epochs + 1)
        progress = min((epoch - warmup_epochs) / (epochs - warmup_epochs), 1)
        return 0.5 * (1 + math.cos(math.pi * progress))

    return LambdaLR(optimizer, factor)
