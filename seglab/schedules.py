"""Learning rates over a run, stepped once an epoch."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from seglab.config import check_number


def cosine(optimizer: Optimizer, epochs: int, warmup: int = 0) -> LambdaLR:
    """Rises linearly, then falls to nearly 0 along half a cosine (arXiv 1608.03983, 1706.02677).

    Args:
        optimizer: Each of its groups moves between 0 and its own rate.
        epochs: All of the run's; any after them have a rate of 0.
        warmup: Epochs of rising; the one after has the whole rate.

    Raises:
        InputError: No epoch, or none after the warm-up.
    """
    check_number("task.schedule.epochs", epochs, int, 1, math.inf)
    check_number("task.schedule.warmup", warmup, int, 0, epochs - 1)

    def share(epoch: int) -> float:
        if epoch < warmup:
            return (epoch + 1) / (warmup + 1)
        fallen = min((epoch - warmup) / (epochs - warmup), 1)
        return 0.5 * (1 + math.cos(math.pi * fallen))

    return LambdaLR(optimizer, share)
