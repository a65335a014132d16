"""Callback that validates and saves an exponential moving average of the weights."""

from typing import Any

import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class ExponentialAverage(WeightAveraging):
    """Lightning's WeightAveraging with a decay that is smaller in the first steps.

    The average of weights and buffers is what is validated, saved in `state_dict` of checkpoints,
    and used later. Lightning's EMAWeightAveraging has a constant decay, with which a short run
    keeps too much of its first step.

    Args:
        decay: Share of the average that each step keeps, in [0, 1); less in the first steps.
    """

    def __init__(self, decay: float = 0.99) -> None:
        self.decay = decay
        super().__init__(multi_avg_fn=self._update)

    def _update(self, average: list[Tensor], current: list[Tensor], steps: Any) -> None:
        # The tensors of a call have one type. Steps are read once, because reading waits for the
        # device. 9 / (10 + t) is 1 - (1 + t) / (10 + t), as in TensorFlow's
        # ExponentialMovingAverage with num_updates.
        if average[0].is_floating_point():
            torch._foreach_lerp_(average, current, max(1 - self.decay, 9 / (10 + int(steps))))
        else:  # BatchNorm's count of batches
            torch._foreach_copy_(average, current)
