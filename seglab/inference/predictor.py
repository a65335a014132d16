"""From a network to probabilities and a threshold, at native resolution."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from seglab.core.errors import InputError
from seglab.data.cases import Case, read_pair
from seglab.data.resizing import image_to_network_size
from seglab.inference.postprocessing import Prediction, Predictor, predicted_mask
from seglab.inference.tta import make_views, merge_views
from seglab.metrics.scores import confusion_counts, scores
from seglab.schema import Inference

_GPU_LOCK = threading.Lock()
# Finer steps make no difference on the few cases of val.
THRESHOLDS = tuple(percent / 100 for percent in range(5, 100, 5))


def probabilities(logits: Tensor) -> Tensor:
    """Turn logits (N, C, ...) into probabilities: sigmoid where C is 1, else softmax."""
    return torch.sigmoid(logits) if logits.shape[1] == 1 else torch.softmax(logits, 1)


def make_predictor(
    net: nn.Module, size: int, device: torch.device | str = "cpu", tta: bool = False
) -> Predictor:
    """Make a predictor of a network: resize the image, run the network, resize probabilities back.

    Images pass one by one and in float32, so that a prediction depends on nothing but its image.

    Args:
        net: Maps images (N, 3, S, S) in [0, 1] to logits (N, C, S, S); put into eval mode.
        size: S, in pixels.
        device: Where to compute.
        tta: Test-time augmentation: the mean probability, at network size, over the image's eight
            flips and quarter turns, which pass as one batch.
    """
    turn = nullcontext if torch.device(device).type == "cpu" else _gpu_turn
    net = net.to(device).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    @torch.inference_mode()
    def predict(image: np.ndarray) -> Prediction:
        small = image_to_network_size(image, size)
        batch = torch.from_numpy(make_views(small) if tta else small[None])
        with turn():
            logits = net(batch.to(device).permute(0, 3, 1, 2).float() / 255).float()
            prob = probabilities(logits).cpu()
        if not prob.isfinite().all():
            raise InputError("the network predicts NaN: its weights are unusable, train it again")
        return merge_views(prob.numpy(), image.shape[:2])

    return predict


@contextmanager
def _gpu_turn() -> Iterator[None]:
    """Let one thread run a network: all share the GPU's memory and cuDNN's flags."""
    with _GPU_LOCK, torch.backends.cudnn.flags(deterministic=True):
        yield


def predict_cases(
    predict: Predictor, cases: Sequence[Case], name: str
) -> Iterator[tuple[Case, np.ndarray, np.ndarray, Prediction]]:
    """Read and predict cases one by one, under a progress bar with this name.

    Yields:
        The case, its image, uint8 (H, W, 3), its mask, uint8 (H, W), and its prediction.

    Raises:
        InputError: A case cannot be read or predicted.
    """
    for case in tqdm(cases, name, unit="case", disable=None, leave=False):
        image, target = read_pair(case)
        yield case, image, target, predict(image)


def tune_threshold(
    predict: Predictor, cases: Sequence[Case], default: float, inference: Inference
) -> float:
    """Choose the threshold with the highest mean Dice per image, at native resolution.

    `default` is tried in addition to `THRESHOLDS`, so that the choice is never worse. Among
    thresholds of equal Dice the nearest to it is taken, of two such the lower.
    """
    counts: dict[float, list[np.ndarray]] = {t: [] for t in sorted({*THRESHOLDS, default})}
    for _, _, target, prediction in predict_cases(predict, cases, "choosing the threshold"):
        for threshold, of_cases in counts.items():
            pred = predicted_mask(prediction.prob, threshold, inference)
            of_cases.append(confusion_counts(pred == 1, target == 1))
    dice = {t: scores(np.stack(of_cases))["dice_per_image"] for t, of_cases in counts.items()}
    return min(dice, key=lambda t: (-dice[t], round(abs(t - default), 9)))
