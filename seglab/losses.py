"""Losses: from logits and masks to one value an image.

A loss is a function `(logits, mask) -> loss`: logits float (N, 1, H, W), mask float (N, 1, H, W)
of 0 and 1, loss float (N,) >= 0. One value an image and not one a batch, so that what is
reported over a data set does not depend on how it was cut into batches. A weight that makes no
sense is an `InputError` that names its key, `task.loss.gamma` say.

Of K classes, of which the first is background, logits are float (N, K, H, W) and the mask holds
class numbers: `cross_entropy` and `cross_entropy_dice` are for these, all others for one class.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from seglab.core.errors import InputError
from seglab.core.validation import check_number


def bce(logits: Tensor, mask: Tensor, lesion_weight: float = 1.0) -> Tensor:
    """Binary cross-entropy, averaged over the pixels of each image.

    Args:
        logits: float (N, 1, H, W).
        mask: float (N, 1, H, W) of 0 and 1.
        lesion_weight: What a lesion pixel counts, where one of background counts 1.
    """
    return _pixel_bce(logits, mask, lesion_weight).flatten(1).mean(1)


def double_sigmoid_bce(logits: Tensor, mask: Tensor) -> Tensor:
    """The recipe's mistake: probabilities handed in as logits, so the sigmoid is taken twice.

    No pixel falls under ln(1 + 1/e) = 0.313 (lesion) or ln 2 = 0.693 (background).
    """
    return bce(torch.sigmoid(logits), mask)


def dice(logits: Tensor, mask: Tensor) -> Tensor:
    """1 - soft Dice of each image, after Milletari et al. (V-Net, 2016).

    Theirs squares the probabilities in the denominator; without, it is Dice itself where they are
    0 and 1, and `tversky` at 1/2 and 1/2. The smoothing is the one of `tversky`.
    """
    return tversky(logits, mask, alpha=0.5, beta=0.5)


def bce_dice(logits: Tensor, mask: Tensor, lesion_weight: float = 1.0) -> Tensor:
    """`bce` + `dice`."""
    return bce(logits, mask, lesion_weight) + dice(logits, mask)


def focal(logits: Tensor, mask: Tensor, gamma: float = 2.0, lesion_weight: float = 1.0) -> Tensor:
    """Focal loss: `bce` in which pixels count less the more they are right (Lin et al. 2017).

    Args:
        logits: float (N, 1, H, W).
        mask: float (N, 1, H, W) of 0 and 1.
        gamma: Power of a pixel's probability of the wrong class, which is its weight; 0 is `bce`.
        lesion_weight: As in `bce`; the paper's alpha, but for a factor of all pixels, is
            `lesion_weight` / (1 + `lesion_weight`).
    """
    check_number("task.loss.gamma", gamma, float, 0, 10)
    # From logarithms, for powers below 1 have no slope at 0.
    wrong = torch.exp(gamma * F.logsigmoid(logits * (1 - 2 * mask)))
    return (wrong * _pixel_bce(logits, mask, lesion_weight)).flatten(1).mean(1)


def tversky(logits: Tensor, mask: Tensor, alpha: float = 0.3, beta: float = 0.7) -> Tensor:
    """1 - soft Tversky index of each image (Salehi et al. 2017, whose best weights are default).

    To the pixels found one is added: nothing beside a lesion, and an empty prediction of an empty
    mask is right, 0, where 0/0 would be no number.

    Args:
        logits: float (N, 1, H, W).
        mask: float (N, 1, H, W) of 0 and 1.
        alpha: What a false positive counts, where a pixel found counts 1.
        beta: What a false negative counts; more than `alpha` favours sensitivity.
    """
    check_number("task.loss.alpha", alpha, float, 0, 1)
    check_number("task.loss.beta", beta, float, 0, 1)
    if alpha == beta == 0:
        raise InputError("task.loss.alpha=0, task.loss.beta=0: expected one of them above 0")
    return _overlap_loss(logits, mask, alpha, beta)


def structure(logits: Tensor, mask: Tensor, window: float = 0.088) -> Tensor:
    """Cross-entropy + 1 - soft IoU, in which pixels near the lesion's border count up to 6 times.

    A pixel counts 1 + 5 |share of lesion in a window around it - mask| (Wei, Wang and Huang,
    F3Net, 2020). Where the picture ends so does the window, whereas the authors' goes on over
    background and takes the picture's edge for a border. IoU is smoothed as in `tversky`.

    Args:
        logits: float (N, 1, H, W).
        mask: float (N, 1, H, W) of 0 and 1.
        window: The window's edge as a share of the picture's shorter one, made odd in pixels: the
            authors' 31 at 352 px, 11 at 128, 23 at 256.
    """
    check_number("task.loss.window", window, float, 0, 1)
    radius = int(window * min(mask.shape[-2:]) / 2)
    weight = 1 + 5 * (_window_mean(mask, radius) - mask).abs()
    weighted = (weight * _pixel_bce(logits, mask)).flatten(1).sum(1) / weight.flatten(1).sum(1)
    return weighted + _overlap_loss(logits, mask, alpha=1, beta=1, weight=weight)


def cross_entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of several classes, averaged over the pixels of each image.

    Args:
        logits: float (N, K, H, W), K >= 2.
        mask: float (N, 1, H, W) of class numbers, 0 to K - 1.
    """
    _check_classes(logits, is_multiclass=True)
    return F.cross_entropy(logits, mask[:, 0].long(), reduction="none").flatten(1).mean(1)


def cross_entropy_dice(logits: Tensor, mask: Tensor) -> Tensor:
    """`cross_entropy` + 1 - soft Dice, the mean over all classes but background.

    As in nnU-Net (Isensee et al. 2021). Dice is smoothed as in `tversky`.

    Args:
        logits: float (N, K, H, W), K >= 2.
        mask: float (N, 1, H, W) of class numbers, 0 to K - 1.
    """
    loss = cross_entropy(logits, mask)
    prob = torch.softmax(logits, 1)
    overlaps = [
        _soft_overlap_loss(prob[:, k : k + 1], (mask == k).to(prob), 0.5, 0.5)
        for k in range(1, logits.shape[1])
    ]
    return loss + torch.stack(overlaps).mean(0)


def _check_classes(logits: Tensor, is_multiclass: bool) -> None:
    if (logits.shape[1] > 1) != is_multiclass:
        raise InputError(
            "task.loss: is for one class, and data.classes names several; expected "
            "seglab.losses.cross_entropy or cross_entropy_dice"
            if logits.shape[1] > 1
            else "task.loss: is for several classes, and data.classes names one; expected "
            "seglab.losses.bce or another of it"
        )


def _pixel_bce(logits: Tensor, mask: Tensor, lesion_weight: float = 1.0) -> Tensor:
    """Binary cross-entropy of each pixel."""
    _check_classes(logits, is_multiclass=False)
    check_number("task.loss.lesion_weight", lesion_weight, float, 0, 1000)
    weight = None if lesion_weight == 1 else logits.new_tensor(lesion_weight)
    return F.binary_cross_entropy_with_logits(logits, mask, reduction="none", pos_weight=weight)


def _overlap_loss(
    logits: Tensor, mask: Tensor, alpha: float, beta: float, weight: float | Tensor = 1.0
) -> Tensor:
    """What is wrong in each image as a share of it and what is found, (N,); `weight` of pixels."""
    _check_classes(logits, is_multiclass=False)
    return _soft_overlap_loss(torch.sigmoid(logits), mask, alpha, beta, weight)


def _soft_overlap_loss(
    prob: Tensor, mask: Tensor, alpha: float, beta: float, weight: float | Tensor = 1.0
) -> Tensor:
    """The same, of probabilities (N, 1, H, W)."""
    found = weight * prob * mask
    wrong = weight * (alpha * prob * (1 - mask) + beta * (1 - prob) * mask)
    found, wrong = found.flatten(1).sum(1), wrong.flatten(1).sum(1)
    return wrong / (found + wrong + 1)


def _window_mean(mask: Tensor, radius: int) -> Tensor:
    """Means over the pixels at most `radius` away in either direction, within the picture.

    As two products of matrices: on CPUs many times faster than pooling, and exact.
    """
    rows, columns = (
        ((at[:, None] - at).abs() <= radius).to(mask.dtype)
        for at in (torch.arange(n, device=mask.device) for n in mask.shape[-2:])
    )
    with torch.autocast(mask.device.type, enabled=False):
        return (rows @ mask @ columns) / (rows.sum(1, keepdim=True) * columns.sum(0))
