"""The task: what each stage logs, what is descended, and how it fails."""

import logging
import math
import warnings
from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, GradientAccumulationScheduler
from torch import Tensor, nn

from seglab.core.errors import InputError
from seglab.losses import bce, double_sigmoid_bce
from seglab.metrics.modules import count_calibration, count_confusion
from seglab.metrics.scores import calibration_error, scores
from seglab.networks import UNet
from seglab.training.callbacks import ExponentialAverage
from seglab.training.lr_schedulers import cosine
from seglab.training.task import SegmentationTask

Batch = dict[str, Any]
still = partial(torch.optim.SGD, lr=0.0)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """No hints of Lightning's."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logger.setLevel(level)


def batches(seed: int, sizes: tuple[int, ...] = (3, 3, 1), edge: int = 8) -> list[Batch]:
    """Random images, the bright side of which is lesion."""
    generator = torch.Generator().manual_seed(seed)
    out: list[Batch] = []
    for n in sizes:
        image = torch.rand(n, 3, edge, edge, generator=generator)
        noise = 0.4 * torch.rand(n, 1, edge, edge, generator=generator)
        ids = [f"S{seed}B{len(out)}I{i}" for i in range(n)]
        mask = (image.mean(1, keepdim=True) + noise > 0.7).float()
        out.append({"image": image, "mask": mask, "id": ids})
    return out


def joined(batch_list: list[Batch]) -> tuple[Tensor, Tensor]:
    return torch.cat([b["image"] for b in batch_list]), torch.cat([b["mask"] for b in batch_list])


class Loader:
    """Other batches in every epoch."""

    def __init__(self, *epochs: list[Batch]) -> None:
        self.epochs = epochs
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.epochs[0])

    def __iter__(self) -> Iterator[Batch]:
        # A generator: an iterator that nobody asks for a batch does not count.
        self.epoch += 1
        yield from self.epochs[(self.epoch - 1) % len(self.epochs)]


class MetricsRecorder(Callback):
    """What was logged, epoch by epoch."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.epochs.append({k: v.item() for k, v in trainer.callback_metrics.items()})


class Steps(Callback):
    """The network after each step of the optimizer, and the rates of all groups."""

    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []
        self.rates: list[list[float]] = []

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        if trainer.global_step > len(self.states):
            self.states.append(deepcopy(module.net.state_dict()))

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])


def trainer_of(epochs: int = 1, **settings: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **settings,
    )


def validated(
    trainer: Trainer, task: SegmentationTask, batch_list: list[Batch]
) -> dict[str, float]:
    trainer.validate(task, Loader(batch_list), verbose=False)
    return {name: value.item() for name, value in trainer.callback_metrics.items()}


def pixelwise() -> nn.Module:
    """Logits from each pixel alone, and not far from right."""
    net = nn.Conv2d(3, 1, 1)
    with torch.no_grad():
        net.weight.fill_(2.0)
        net.bias.fill_(-3.0)
    return net


def expected(
    net: nn.Module, batch_list: list[Batch], stage: str, threshold: float
) -> dict[str, float]:
    """All images at once, through the pure functions."""
    image, mask = joined(batch_list)
    with torch.no_grad():
        logits = net(image)
    prob = torch.sigmoid(logits)
    values = scores(count_confusion(prob > threshold, mask > 0).numpy())
    values["ece"] = calibration_error(count_calibration(prob, mask > 0).numpy())
    losses = [F.binary_cross_entropy(p, m).item() for p, m in zip(prob, mask, strict=True)]
    named = {f"{stage}/{name}_net": value for name, value in values.items()}
    return named | {f"{stage}/loss": sum(losses) / len(losses)}


def close(values: dict[str, float]) -> dict[str, Any]:
    return pytest.approx(values, abs=2e-6)


@pytest.mark.parametrize("threshold", [0.5, 0.35])
def test_an_epochs_values_are_those_of_its_images(threshold: float) -> None:
    recorder, net = MetricsRecorder(), pixelwise()
    task = SegmentationTask(net, bce, still, threshold=threshold)
    trainer = trainer_of(2, callbacks=[recorder])
    train, val, others = [batches(0), batches(1)], [batches(2), batches(3)], batches(4)
    trainer.fit(task, Loader(*train), Loader(*val))
    for epoch in range(2):
        hand = expected(net, train[epoch], "train", threshold)
        hand |= expected(net, val[epoch], "val", threshold)
        assert recorder.epochs[epoch] == close(hand)  # no other names
        assert 0 < hand["val/dice_per_image_net"] < 1
        assert hand["val/dice_per_image_net"] != hand["val/dice_pooled_net"]
    assert recorder.epochs[0] != close(recorder.epochs[1])
    values = validated(trainer, task, others)
    assert values == close(expected(net, others, "val", threshold))
    # Nor does it matter how the images come in batches.
    image, mask = joined(others)
    whole = [{"image": image, "mask": mask, "id": ["x"] * 7}]
    in_one_batch = validated(trainer, task, whole)
    assert in_one_batch == pytest.approx(values, abs=1e-7)


def test_the_logged_loss_is_the_exact_mean_over_images() -> None:
    values: list[float] = []

    def loss(logits: Tensor, mask: Tensor) -> Tensor:
        by_image = bce(logits, mask)
        values.extend(by_image.tolist())
        return by_image

    task, trainer = SegmentationTask(pixelwise(), loss, still), trainer_of()
    for seed in range(5):
        values.clear()
        logged = validated(trainer, task, batches(seed))
        assert logged["val/loss"] == math.fsum(values) / 7


def test_val_values_are_those_of_the_weights_after_the_epoch() -> None:
    recorder, net = MetricsRecorder(), pixelwise()
    task = SegmentationTask(net, bce, partial(torch.optim.SGD, lr=0.5))
    val = batches(1)
    before = expected(net, val, "val", 0.5)
    trainer_of(2, callbacks=[recorder]).fit(task, Loader(batches(0)), Loader(val))
    after = expected(net, val, "val", 0.5)
    assert {k: v for k, v in recorder.epochs[1].items() if k in after} == close(after)
    assert abs(after["val/loss"] - before["val/loss"]) > 1e-3


@pytest.mark.parametrize("loss", [bce, double_sigmoid_bce])
def test_a_step_descends_the_mean_over_images(loss: Any) -> None:
    batch = batches(0, (3,))
    net, by_hand = pixelwise(), pixelwise()
    task = SegmentationTask(net, loss, partial(torch.optim.SGD, lr=1.0))
    trainer_of().fit(task, Loader(batch))
    image, mask = joined(batch)
    logits = by_hand(image)
    logits = logits if loss is bce else torch.sigmoid(logits)
    F.binary_cross_entropy_with_logits(logits, mask).backward()
    for ours, theirs in zip(net.parameters(), by_hand.parameters(), strict=True):
        assert theirs.grad.abs().max() > 1e-3
        torch.testing.assert_close(ours.data, theirs.data - theirs.grad)


def test_the_network_trains_in_training_alone() -> None:
    modes: list[tuple[bool, bool]] = []
    net = pixelwise()
    net.register_forward_hook(lambda *_: modes.append((net.training, torch.is_grad_enabled())))
    task = SegmentationTask(net, bce, still)
    trainer = trainer_of()
    trainer.fit(task, Loader(batches(0)), Loader(batches(1)))
    assert modes == [(True, True)] * 3 + [(False, False)] * 3


@pytest.mark.parametrize(("pixel", "loss"), [(float("nan"), "nan"), (-5e37, "inf")])
def test_a_loss_that_is_no_number_names_epoch_and_cases(pixel: float, loss: str) -> None:
    bad = batches(1)
    bad[1]["image"][2], bad[1]["mask"][2] = pixel, 1
    net = pixelwise()
    task = SegmentationTask(net, bce, partial(torch.optim.SGD, lr=0.1))
    batch = "batch 2 of S1B1I0, S1B1I1, S1B1I2;"
    with pytest.raises(InputError, match=f"loss is {loss} in train, epoch 2, {batch}"):
        trainer_of(3).fit(task, Loader(batches(0), bad))
    assert all(p.isfinite().all() for p in net.parameters())
    with pytest.raises(InputError, match=f"loss is {loss} in val, epoch 1, {batch}"):
        trainer_of().fit(task, Loader(batches(0)), Loader(bad))


def test_the_lr_scheduler_steps_once_an_epoch() -> None:
    optimizer = partial(torch.optim.SGD, lr=1e-2)
    step = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.1)
    stepped = [1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4]
    for lr_scheduler, expected_rates in ((step, stepped), (None, [1e-2] * 6)):
        steps = Steps()
        task = SegmentationTask(pixelwise(), bce, optimizer, lr_scheduler)
        trainer_of(3, callbacks=[steps]).fit(task, Loader(batches(0, (2, 2))))
        assert [rate for (rate,) in steps.rates] == pytest.approx(expected_rates)


def test_schedules_of_steps_are_torchs() -> None:
    """OneCycleLR and CyclicLR, and others by `interval`; steps of several batches count once."""
    six = 3 * 2  # epochs of four batches, two a step
    one_cycle = partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1)
    cyclic = partial(torch.optim.lr_scheduler.CyclicLR, base_lr=0.1, max_lr=0.3, step_size_up=4)
    exponential = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5)
    for lr_scheduler, interval, filled in (
        (one_cycle, None, {"total_steps": six}),
        (partial(one_cycle, epochs=3, steps_per_epoch=2), None, {}),
        (cyclic, None, {}),
        (exponential, "step", {}),
        (exponential, None, None),
    ):
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=1e-2)
        reference, expected_rates = lr_scheduler(optimizer, **(filled or {})), []
        for step in range(six):
            expected_rates += [optimizer.param_groups[0]["lr"]] * 2
            optimizer.step()
            if filled is not None or step % 2:
                reference.step()
        steps, make = Steps(), partial(torch.optim.SGD, lr=1e-2)
        task = SegmentationTask(pixelwise(), bce, make, lr_scheduler, {"interval": interval})
        trainer = trainer_of(3, callbacks=[steps], accumulate_grad_batches=2)
        trainer.fit(task, Loader(batches(0, (1,) * 4)))
        assert [rate for (rate,) in steps.rates] == expected_rates
    task = SegmentationTask(pixelwise(), bce, make, one_cycle)
    with pytest.raises(InputError, match="GradientAccumulationScheduler"):
        trainer_of(callbacks=[GradientAccumulationScheduler({0: 2})]).fit(task, Loader(batches(0)))


@pytest.mark.parametrize("batches_a_step", [1, 2])
def test_the_average_is_that_of_the_steps(batches_a_step: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    steps, net, optimizer = Steps(), UNet(width=2, depth=2), partial(torch.optim.SGD, lr=0.5)
    task = SegmentationTask(net, bce, optimizer)
    callbacks = [steps, ExponentialAverage(0.2)]
    trainer = trainer_of(callbacks=callbacks, accumulate_grad_batches=batches_a_step)
    val = batches(1)
    trainer.fit(task, Loader(batches(0, (3,) * 3 * batches_a_step)), Loader(val))
    one, two, three = steps.states
    average = net.state_dict()  # after training it is the network's own
    for name, value in average.items():
        if name.endswith("num_batches_tracked"):
            assert value.item() == 3 * batches_a_step
            continue
        # The first step's own; 9 / 11 of the second; of the third 9 / 12 would be less than 0.8.
        moved = one[name] + 9 / 11 * (two[name] - one[name])
        torch.testing.assert_close(value, moved + 0.8 * (three[name] - moved))
    tensors = [n for n in average if average[n].numel() > 1]
    assert not any(average[name].equal(three[name]) for name in tensors)
    assert any(name.endswith("running_var") for name in tensors)
    logged = {k: v.item() for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
    assert logged == close(expected(deepcopy(net).eval(), val, "val", 0.5))


def test_an_average_takes_no_part_in_training() -> None:
    states = []
    for callbacks in ([], [ExponentialAverage(0.9)]):
        torch.manual_seed(0)
        steps, net = Steps(), UNet(width=2, depth=2)
        task = SegmentationTask(net, bce, partial(torch.optim.Adam, lr=1e-2))
        trainer = trainer_of(2, callbacks=[steps, *callbacks])
        trainer.fit(task, Loader(batches(0)), Loader(batches(1)))
        states.append(steps.states[-1])
    assert all(value.equal(states[1][name]) for name, value in states[0].items())


def test_the_encoder_has_a_rate_of_its_own() -> None:
    steps, net = Steps(), UNet(width=2, depth=2)
    optimizer = partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1)
    lr_scheduler = partial(cosine, epochs=3, warmup=0.3)
    task = SegmentationTask(net, bce, optimizer, lr_scheduler, encoder_lr_factor=0.1)
    trainer = trainer_of(3, callbacks=[steps])
    trainer.fit(task, Loader(batches(0, (2,))))
    rest, encoder = trainer.optimizers[0].param_groups
    assert list(map(id, encoder["params"])) == list(map(id, net.encoder.parameters()))
    both = sorted(map(id, rest["params"] + encoder["params"]))
    assert both == sorted(map(id, net.parameters()))
    assert rest["weight_decay"] == encoder["weight_decay"] == 0.1
    for rates, share in zip(steps.rates, (0.5, 1, 0.5), strict=True):
        assert rates == pytest.approx([1e-2 * share, 1e-3 * share])


def test_an_encoder_without_a_rate_stays_as_it_is() -> None:
    net = UNet(width=2, depth=2)
    before = deepcopy(dict(net.named_parameters()))
    task = SegmentationTask(net, bce, partial(torch.optim.AdamW, lr=1e-2), encoder_lr_factor=0)
    trainer_of().fit(task, Loader(batches(0)))
    for name, value in net.named_parameters():
        assert value.equal(before[name]) == name.startswith("encoder."), name


def test_rates_that_cannot_be_are_refused() -> None:
    with pytest.raises(InputError, match=r"^task.encoder_lr_factor=0\.5: Conv2d "):
        SegmentationTask(pixelwise(), bce, still, encoder_lr_factor=0.5)
    one_cycle, net = torch.optim.lr_scheduler.OneCycleLR, UNet(width=2, depth=2)
    short = SegmentationTask(net, bce, still, partial(one_cycle, max_lr=0.1, total_steps=5))
    with pytest.raises(InputError, match=r"^task\.lr_scheduler: ends after 5 steps of 6"):
        trainer_of(3).fit(short, Loader(batches(0, (1, 1))))
    same = SegmentationTask(net, bce, still, partial(one_cycle, max_lr=0.1), None, 0.5, 0.1)
    with pytest.raises(InputError, match=r"^task\.encoder_lr_factor=0\.1: OneCycleLR .*0\.001\]"):
        same.configure_optimizers()
    rates = partial(one_cycle, max_lr=[0.1, 0.01])
    SegmentationTask(net, bce, still, rates, None, 0.5, 0.1).configure_optimizers()


def test_loss_and_metrics_are_float32_under_autocast() -> None:
    seen: list[tuple[torch.dtype, ...]] = []
    logits_of_net: list[Tensor] = []

    def loss(logits: Tensor, mask: Tensor) -> Tensor:
        values = bce(logits, mask)
        seen.append((logits.dtype, mask.dtype, values.dtype))
        return values

    net = pixelwise()
    net.register_forward_hook(lambda _, __, out: logits_of_net.append(out.detach()))
    recorder, train = MetricsRecorder(), batches(0)
    task = SegmentationTask(net, loss, still)
    trainer_of(callbacks=[recorder], precision="bf16-mixed").fit(task, Loader(train))
    assert {out.dtype for out in logits_of_net} == {torch.bfloat16}
    assert set(seen) == {(torch.float32, torch.float32, torch.float32)}
    # By hand from the network's own rounded logits: nothing after it was rounded to bfloat16.
    logits, (_, mask) = torch.cat(logits_of_net).float(), joined(train)
    by_image = F.binary_cross_entropy_with_logits(logits, mask, reduction="none").mean((1, 2, 3))
    assert recorder.epochs[0]["train/loss"] == pytest.approx(by_image.mean().item(), rel=1e-6)
    prob = torch.sigmoid(logits)
    ece = calibration_error(count_calibration(prob, mask > 0).numpy())
    assert recorder.epochs[0]["train/ece_net"] == pytest.approx(ece, abs=1e-7)
    dice = scores(count_confusion(prob > 0.5, mask > 0).numpy())["dice_per_image"]
    assert recorder.epochs[0]["train/dice_per_image_net"] == pytest.approx(dice, rel=1e-12)
