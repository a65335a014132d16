"""From networks to masks at native resolution: predict, choose a threshold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from seglab.core.errors import InputError
from seglab.data.cases import Case, read_pair
from seglab.data.resizing import image_to_network_size
from seglab.inference.postprocessing import Predictor, predicted_mask
from seglab.metrics.scores import confusion_counts, scores

# A few cases of val tell no finer steps apart.
THRESHOLDS = tuple(percent / 100 for percent in range(5, 100, 5))


def probabilities(logits: Tensor) -> Tensor:
    """Turns logits (N, C, ...) into probabilities: sigmoid where C is 1, else softmax."""
    return torch.sigmoid(logits) if logits.shape[1] == 1 else torch.softmax(logits, 1)


def make_predictor(
    net: nn.Module, size: int, device: torch.device | str = "cpu", tta: bool = False
) -> Predictor:
    """Makes a predictor of a network: resize, network, sigmoid, resize back.

    Images pass one by one and in float32, so that a value depends on nothing but the image.

    Args:
        net: From images (N, 3, S, S) in [0, 1] to logits (N, C, S, S); put into eval mode.
        size: S, in pixels.
        device: Where to compute.
        tta: Test-time augmentation: the mean probability, at network size, of the image's eight
            flips and quarter turns, each turned back. They pass as one batch.
    """
    net = net.to(device).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    @torch.inference_mode()
    def predict(image: np.ndarray) -> np.ndarray:
        small = torch.from_numpy(image_to_network_size(image, size)).to(device)
        batch = small[None].permute(0, 3, 1, 2).float() / 255
        if tta:
            batch = torch.cat(_turned(batch)).contiguous(memory_format=torch.channels_last)
        with torch.backends.cudnn.flags(deterministic=True):
            prob = probabilities(net(batch).float())
        if tta:
            prob = torch.stack(_turned_back(prob)).mean(0, keepdim=True)
        return resize_probabilities(prob, image.shape[:2])

    return predict


def predictions(
    predict: Predictor, cases: Sequence[Case], name: str
) -> Iterator[tuple[Case, np.ndarray, np.ndarray]]:
    """Predicts cases one by one.

    Args:
        predict: From image to probabilities, both at native size.
        cases: In any order.
        name: For the progress bar.

    Yields:
        The case, its probabilities, float32 (C, H, W), and its untouched mask (H, W), as
        `read_mask` gives it.

    Raises:
        InputError: A case cannot be read, or its prediction is not finite.
    """
    for case in tqdm(cases, name, unit="case", disable=None, leave=False):
        image, mask = read_pair(case)
        prob = predict(image)
        if not np.isfinite(prob).all():
            raise InputError(
                f"{case.image}: the network gives no number for some of its pixels; its weights "
                "are ruined, train it again"
            )
        yield case, prob, mask


def tune_threshold(
    predict: Predictor, cases: Sequence[Case], default: float, postprocessing: Mapping[str, bool]
) -> float:
    """Chooses the threshold of the best mean Dice per image, at native resolution.

    Args:
        predict: From image to probability, (1, H, W), both at native size.
        cases: Of val, at least one.
        default: Tried besides `THRESHOLDS`, so that no choice is below it; of equal ones the
            nearest to it is taken, of two such the lower.
        postprocessing: Of the masks, keywords of `clean`.

    Raises:
        InputError: As `predictions`.
    """
    counts: dict[float, list[np.ndarray]] = {t: [] for t in sorted({*THRESHOLDS, default})}
    for _, prob, mask in predictions(predict, cases, "choosing the threshold"):
        for threshold, rows in counts.items():
            pred = predicted_mask(prob, threshold, postprocessing)
            rows.append(confusion_counts(pred == 1, mask == 1))
    dice = {t: scores(np.stack(rows))["dice_per_image"] for t, rows in counts.items()}
    return min(dice, key=lambda t: (-dice[t], round(abs(t - default), 9)))


def resize_probabilities(prob: Tensor, shape: tuple[int, int]) -> np.ndarray:
    """Resizes probabilities from (1, C, S, S) to float32 (C, H, W), bilinearly."""
    large = F.interpolate(prob, shape, mode="bilinear", align_corners=False)[0]
    return large.cpu().numpy()


def _turned(image: Tensor) -> list[Tensor]:
    """The eight flips and quarter turns of (..., S, S)."""
    return [torch.rot90(x, k, (-2, -1)) for x in (image, image.flip(-1)) for k in range(4)]


def _turned_back(views: Tensor) -> list[Tensor]:
    """The reverse, of (8, ..., S, S)."""
    back = [torch.rot90(view, -(i % 4), (-2, -1)) for i, view in enumerate(views)]
    return back[:4] + [view.flip(-1) for view in back[4:]]
