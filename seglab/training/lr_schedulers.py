"""Learning rates over a run, stepped once an epoch."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from seglab.core.validation import check_number


def cosine(optimizer: Optimizer, epochs: int, warmup: float = 0) -> LambdaLR:
    """Rises linearly, then falls to nearly 0 along half a cosine (arXiv 1608.03983, 1706.02677).

    Args:
        optimizer: Each of its groups moves between 0 and its own rate.
        epochs: All of the run's; any after them have a rate of 0.
        warmup: Share of them that rise, all but the last at most; the one after has the whole
            rate.

    Raises:
        InputError: No epoch, or no share.
    """
    check_number("task.lr_scheduler.epochs", epochs, int, 1, math.inf)
    check_number("task.lr_scheduler.warmup", warmup, float, 0, 1)
    rising = min(round(warmup * epochs), epochs - 1)

    def share(epoch: int) -> float:
        if epoch < rising:
            return (epoch + 1) / (rising + 1)
        fallen = min((epoch - rising) / (epochs - rising), 1)
        return 0.5 * (1 + math.cos(math.pi * fallen))

    return LambdaLR(optimizer, share)
