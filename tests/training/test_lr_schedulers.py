"""Learning rates over a run, by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from seglab.training.lr_schedulers import cosine


def sgd(*rates: float) -> torch.optim.SGD:
    return torch.optim.SGD([{"params": [torch.zeros(1)], "lr": rate} for rate in rates])


def follow(lr_scheduler: LRScheduler, epochs: int) -> list[list[float]]:
    """Rates of each group, epoch by epoch."""
    rates = []
    for _ in range(epochs):
        rates.append([group["lr"] for group in lr_scheduler.optimizer.param_groups])
        lr_scheduler.optimizer.step()
        lr_scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("epochs", "warmup", "shares"),
    [
        (1, 0, [1]),
        (4, 0, [1, (2 + math.sqrt(2)) / 4, 1 / 2, (2 - math.sqrt(2)) / 4]),
        (3, 1, [1 / 3, 2 / 3, 1]),
        (6, 0.5, [1 / 4, 1 / 2, 3 / 4, 1, 3 / 4, 1 / 4]),
        (2, 0.1, [1, 1 / 2]),
    ],
)
def test_rates_rise_and_fall(epochs: int, warmup: float, shares: list[float]) -> None:
    rates = follow(cosine(sgd(0.1, 2.0), epochs, warmup), epochs + 3)
    for share, (one, other) in zip(shares, rates[:epochs], strict=True):
        assert (one, other) == pytest.approx((0.1 * share, 2.0 * share))
    assert rates[epochs:] == [[0, 0]] * 3


@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*")
@given(st.integers(1, 30), st.data())
@settings(deadline=None, max_examples=40)
def test_after_warm_up_it_is_torchs(epochs: int, data: st.DataObject) -> None:
    warmup = data.draw(st.integers(0, epochs - 1))
    falling = follow(CosineAnnealingLR(sgd(0.3), epochs - warmup), epochs - warmup)
    ours = follow(cosine(sgd(0.3), epochs, warmup / epochs), epochs)
    assert [rate for (rate,) in ours[warmup:]] == pytest.approx([rate for (rate,) in falling])
    rising = [0.3 * (epoch + 1) / (warmup + 1) for epoch in range(warmup)]
    assert [rate for (rate,) in ours[:warmup]] == pytest.approx(rising)


def test_the_lr_scheduler_goes_on_where_it_stopped() -> None:
    whole = follow(cosine(sgd(0.1, 0.2), 7, 0.3), 7)
    first = cosine(sgd(0.1, 0.2), 7, 0.3)
    begun = follow(first, 4)
    optimizer = sgd(0.1, 0.2)
    second = cosine(optimizer, 7, 0.3)
    optimizer.load_state_dict(first.optimizer.state_dict())
    second.load_state_dict(first.state_dict())
    assert begun + follow(second, 3) == whole
