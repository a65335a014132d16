"""Losses: functions from logits and mask to one value per image.

A loss is a function `(logits, mask) -> loss`. Binary losses take logits float (N, 1, H, W) and a
mask float (N, 1, H, W) of 0 and 1; `cross_entropy` and `cross_entropy_dice` take logits float
(N, K, H, W) of K classes, the first of which is background, and a mask float (N, 1, H, W) of
class numbers. The loss is float (N,) >= 0: one value per image and not per batch, so that the
mean over a data set does not depend on how it was divided into batches.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def bce(logits: Tensor, mask: Tensor, lesion_weight: float = 1.0) -> Tensor:
    """Binary cross-entropy, averaged over the pixels of each image.

    Args:
        logits: float (N, 1, H, W).
        mask: float (N, 1, H, W) of 0 and 1.
        lesion_weight: Weight of a lesion pixel; a background pixel has weight 1.
    """
    return _pixel_bce(logits, mask, lesion_weight).flatten(1).mean(1)


def double_sigmoid_bce(logits: Tensor, mask: Tensor) -> Tensor:
    """Binary cross-entropy with the recipe's mistake, a sigmoid applied twice.

    Probabilities are passed as logits. The loss of a pixel cannot fall below
    ln(1 + 1/e) = 0.313 (lesion) or ln 2 = 0.693 (background).
    """
    return bce(torch.sigmoid(logits), mask)


def dice(logits: Tensor, mask: Tensor) -> Tensor:
    """1 - soft Dice of each image, after Milletari et al. (V-Net, 2016).

    Unlike theirs, the denominator does not square the probabilities, so the value is Dice where
    they are 0 and 1: `tversky` with weights of 1/2, and smoothed like it.
    """
    return tversky(logits, mask, alpha=0.5, beta=0.5)


def bce_dice(logits: Tensor, mask: Tensor, lesion_weight: float = 1.0) -> Tensor:
    """`bce` + `dice`."""
    return bce(logits, mask, lesion_weight) + dice(logits, mask)


def focal(logits: Tensor, mask: Tensor, gamma: float = 2.0, lesion_weight: float = 1.0) -> Tensor:
    """Focal loss: `bce` with less weight on pixels that are nearly right (Lin et al. 2017).

    Args:
        logits: float (N, 1, H, W).
        mask: float (N, 1, H, W) of 0 and 1.
        gamma: A pixel's weight is its probability of the wrong class to this power; 0 is `bce`.
        lesion_weight: As for `bce`. Up to a factor for all pixels, the paper's alpha is
            `lesion_weight` / (1 + `lesion_weight`).
    """
    # From logarithms, because powers below 1 have no gradient at 0.
    wrong = torch.exp(gamma * F.logsigmoid(logits * (1 - 2 * mask)))
    return (wrong * _pixel_bce(logits, mask, lesion_weight)).flatten(1).mean(1)


def tversky(logits: Tensor, mask: Tensor, alpha: float = 0.3, beta: float = 0.7) -> Tensor:
    """1 - soft Tversky index of each image (Salehi et al. 2017, whose best weights are default).

    One pixel is added to the true positives, so that an empty prediction of an empty mask has a
    loss of 0 and not 0/0.

    Args:
        logits: float (N, 1, H, W).
        mask: float (N, 1, H, W) of 0 and 1.
        alpha: Weight of a false positive; a true positive has weight 1.
        beta: Weight of a false negative; more than `alpha` favours sensitivity. With both 0 the
            loss is 0 for all logits.
    """
    return _overlap_loss(torch.sigmoid(logits), mask, alpha, beta)


def structure(logits: Tensor, mask: Tensor, window: float = 0.088) -> Tensor:
    """Cross-entropy + 1 - soft IoU with up to 6 times the weight near the lesion's border.

    A pixel's weight is 1 + 5 |mean of the mask in a window around it - mask| (Wei, Wang and
    Huang, F3Net, 2020). Windows end at the image's edge; the authors pad with background, which
    makes the edge a border. IoU is smoothed like `tversky`.

    Args:
        logits: float (N, 1, H, W).
        mask: float (N, 1, H, W) of 0 and 1.
        window: Edge of the window as a share of the image's shorter edge, rounded to an odd number
            of pixels: the authors' 31 at 352 px, 11 at 128, 23 at 256.
    """
    radius = int(window * min(mask.shape[-2:]) / 2)
    weight = 1 + 5 * (_window_mean(mask, radius) - mask).abs()
    weighted = (weight * _pixel_bce(logits, mask)).flatten(1).sum(1) / weight.flatten(1).sum(1)
    return weighted + _overlap_loss(torch.sigmoid(logits), mask, 1, 1, weight)


def cross_entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of several classes, averaged over the pixels of each image.

    Args:
        logits: float (N, K, H, W), K >= 2.
        mask: float (N, 1, H, W) of class numbers, 0 to K - 1.
    """
    return F.cross_entropy(logits, mask[:, 0].long(), reduction="none").flatten(1).mean(1)


def cross_entropy_dice(logits: Tensor, mask: Tensor) -> Tensor:
    """`cross_entropy` + 1 - soft Dice, averaged over all classes but background.

    As in nnU-Net (Isensee et al. 2021). Dice is smoothed like `tversky`.

    Args:
        logits: float (N, K, H, W), K >= 2.
        mask: float (N, 1, H, W) of class numbers, 0 to K - 1.
    """
    prob = torch.softmax(logits, 1)
    overlaps = [
        _overlap_loss(prob[:, k : k + 1], (mask == k).to(prob), 0.5, 0.5)
        for k in range(1, logits.shape[1])
    ]
    return cross_entropy(logits, mask) + torch.stack(overlaps).mean(0)


BINARY = (bce, bce_dice, dice, double_sigmoid_bce, focal, structure, tversky)
MULTICLASS = (cross_entropy, cross_entropy_dice)


def check_channels(loss: Callable[..., Tensor], channels: int) -> None:
    """Check that a loss of this module fits the number of logit channels.

    Args:
        loss: A loss, or a `functools.partial` of one.
        channels: 1, or the number of classes.

    Raises:
        ValueError: It is one of `BINARY` for several channels, or of `MULTICLASS` for one.
    """
    function = getattr(loss, "func", loss)
    if function in (BINARY if channels > 1 else MULTICLASS):
        names = ", ".join(fitting.__name__ for fitting in (MULTICLASS if channels > 1 else BINARY))
        raise ValueError(
            f"seglab.losses.{function.__name__} does not fit {channels} channel(s) of logits; "
            f"expected one of {names}"
        )


def _pixel_bce(logits: Tensor, mask: Tensor, lesion_weight: float = 1.0) -> Tensor:
    """Return the binary cross-entropy of each pixel."""
    weight = None if lesion_weight == 1 else logits.new_tensor(lesion_weight)
    return F.binary_cross_entropy_with_logits(logits, mask, reduction="none", pos_weight=weight)


def _overlap_loss(
    prob: Tensor, mask: Tensor, alpha: float, beta: float, weight: float | Tensor = 1.0
) -> Tensor:
    """Return (N,): weighted errors over the sum of true positives, weighted errors and 1."""
    correct = weight * prob * mask
    wrong = weight * (alpha * prob * (1 - mask) + beta * (1 - prob) * mask)
    correct, wrong = correct.flatten(1).sum(1), wrong.flatten(1).sum(1)
    return wrong / (correct + wrong + 1)


def _window_mean(mask: Tensor, radius: int) -> Tensor:
    """Return means over the pixels at most `radius` away in each direction, within the image.

    Two matrix products are many times faster than pooling on CPUs, and exact.
    """
    rows, columns = (
        ((at[:, None] - at).abs() <= radius).to(mask.dtype)
        for at in (torch.arange(n, device=mask.device) for n in mask.shape[-2:])
    )
    with torch.autocast(mask.device.type, enabled=False):
        return (rows @ mask @ columns) / (rows.sum(1, keepdim=True) * columns.sum(0))
