"""Writes a trained network as ONNX, for programs without torch, and holds it against itself."""

from __future__ import annotations

import io
import json
import logging
import statistics
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from seglab.config import stored_inference
from seglab.core.errors import InputError
from seglab.core.files import hash_file, write_atomic
from seglab.data.images import read_image
from seglab.inference.evaluate import read_cases
from seglab.inference.image_files import find_images
from seglab.inference.models import ONNX, find_network
from seglab.inference.onnx_predictor import (
    IMAGE,
    METADATA,
    PROBABILITY,
    UNSEALED,
    exported_predictor,
    open_exported,
    sealed,
)
from seglab.inference.postprocessing import predicted_mask
from seglab.inference.predictor import make_predictor, probabilities
from seglab.networks.fast_conv import reference_ops
from seglab.runs.checkpoints import load_network
from seglab.runs.opening import open_run

log = logging.getLogger(__name__)

# Two ways to one sum of float32; what a pixel's probability may differ by.
TOLERANCE = 1e-4
_NAME = "network" + ONNX
_IMAGES = 20
_OPSET = 18


@dataclass(frozen=True)
class Parity:
    """How an exported network compares to its checkpoint.

    Attributes:
        images: How many pictures both predicted.
        difference: The largest of any pixel's probability.
        pixels: Share of pixels whose mask differs.
        torch_ms: Median time to predict a picture, read already, with torch.
        onnx_ms: The same with ONNX Runtime.
    """

    images: int
    difference: float
    pixels: float
    torch_ms: float
    onnx_ms: float


def export(
    path: str | Path,
    out: str | Path | None = None,
    images: Sequence[str | Path] = (),
    overwrite: bool = False,
    trust: tuple[str, ...] = (),
) -> tuple[Parity, Path]:
    """Writes a network as ONNX, if ONNX Runtime then predicts what torch does.

    The file takes `image`, uint8 (N, 3, H, W), any N, H and W that the network takes, and gives
    `probability` of lesion, float32 (N, 1, H, W), or of each of K classes (N, K, H, W): division
    by 255, normalisation and sigmoid or softmax are inside. Under `seglab` its metadata hold, as
    JSON, `size`, the edge that it was trained at, `threshold`, `classes`, `colours`, `inference`,
    `run`, the folder's name or the checkpoint's, `checkpoint_sha256`, `split_hash`, and `sha256`,
    of the file with zeros in that place.

    Args:
        path: A run directory, or a checkpoint.
        out: File to write; by default `network.onnx` in the run directory, or beside the
            checkpoint.
        images: Pictures to compare on, as in `seglab.inference.predict.predict`; by default the run's test
            cases, 20 of them.
        overwrite: Replace a file that is there.
        trust: As in `seglab.inference.models.open_model`.

    Returns:
        How they compare, and the file.

    Raises:
        InputError: The network cannot be read or exported, there is no picture, a file is in the
            way, or ONNX Runtime predicts otherwise; then nothing is written.
    """
    path, file = Path(path), find_network(path)
    out = Path(out) if out is not None else (path if path.is_dir() else path.parent) / _NAME
    if out.suffix.lower() != ONNX:
        raise InputError(f"{out}: expected a name that ends in {ONNX}")
    if out.exists() and not overwrite:
        raise InputError(f"{out}: is there already; replace it with --overwrite, or name --out")
    net, stored = load_network(file, trust)
    pictures = _pictures(path, images, trust)
    inference = stored_inference(stored["config"]["inference"], file)
    metadata = {
        "size": stored["config"]["data"]["size"],
        "threshold": stored["threshold"],
        "classes": stored["classes"].names,
        "colours": stored["classes"].colours,
        "inference": asdict(inference),
        "run": path.absolute().name,
        "checkpoint_sha256": hash_file(file),
        "split_hash": stored["split_hash"],
        "sha256": UNSEALED,
    }
    log.info("exporting %s", file)
    content = _to_onnx(net, metadata["size"], {METADATA: json.dumps(metadata)}, file)
    parity = _compare(net, content, out, metadata, inference.tta, pictures)
    if not parity.difference <= TOLERANCE:  # nor is a NaN
        raise InputError(
            f"{file}: ONNX Runtime predicts otherwise than torch, by up to {parity.difference:.2g} "
            f"where {TOLERANCE} is allowed; nothing was written"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, content)
    return parity, out


def _pictures(path: Path, images: Sequence[str | Path], trust: tuple[str, ...]) -> list[Path]:
    if images:
        return list(find_images(images).values())
    try:
        run = open_run(path, trust)
        by_id = {case.id: case.image for case in read_cases(run)}
        pictures = [by_id[id] for id in run.ids["test"] if id in by_id][:_IMAGES]
        if not pictures:
            raise InputError(f"{run.config['data']['root']}: none of the run's test cases is there")
        return pictures
    except InputError as error:
        raise InputError(f"{error}; or name pictures to compare on with --images") from error


def _to_onnx(net: nn.Module, size: int, metadata: dict[str, str], path: Path) -> bytes:
    """Exports, with what it says of itself."""
    try:
        import onnx
    except ImportError:
        raise InputError(
            f"{path}: takes onnx to export; install it with pip install -e '.[onnx]'"
        ) from None
    file: Any = io.BytesIO()  # which this exporter takes, whatever its annotation says
    free = {0: "n", 2: "h", 3: "w"}
    try:
        with warnings.catch_warnings(), reference_ops(), torch.no_grad():
            warnings.simplefilter("ignore")
            # By tracing: torch's newer exporter reasons about sizes, for minutes where a network
            # is deep.
            torch.onnx.export(
                _WithEnds(net).eval(),
                (torch.zeros(1, 3, size, size, dtype=torch.uint8),),
                file,
                dynamo=False,
                input_names=[IMAGE],
                output_names=[PROBABILITY],
                dynamic_axes={IMAGE: free, PROBABILITY: free},
                opset_version=_OPSET,
            )
    except Exception as error:  # what an exporter makes of a network that it does not know
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{path}: its network cannot be exported ({reason})") from error
    model = onnx.load_from_string(file.getvalue())
    onnx.helper.set_model_props(model, metadata)
    return sealed(model.SerializeToString())


def _compare(
    net: nn.Module,
    content: bytes,
    path: Path,
    metadata: dict[str, Any],
    tta: bool,
    pictures: Sequence[Path],
) -> Parity:
    """Predicts with both, at native resolution; damaged pictures raise."""
    session, read = open_exported(content, path)
    predictors = (
        make_predictor(net, metadata["size"], tta=tta),
        exported_predictor(session, read["size"], len(read["classes"]), tta),
    )
    differences, changed, pixels = [], 0, 0
    seconds: tuple[list[float], list[float]] = ([], [])
    for file in tqdm(pictures, "comparing", unit="picture", disable=None, leave=False):
        image = read_image(file)
        probs = []
        for predict, times in zip(predictors, seconds, strict=True):
            start = time.perf_counter()
            probs.append(predict(image))
            times.append(time.perf_counter() - start)
        masks = [predicted_mask(prob, metadata["threshold"]) for prob in probs]
        differences.append(float(np.abs(probs[0] - probs[1]).max()))
        changed += int(np.count_nonzero(masks[0] != masks[1]))
        pixels += masks[0].size
    of_torch, of_onnx = (1000 * statistics.median(times) for times in seconds)
    largest = float(np.max(differences))  # a NaN is one of them, not passed over
    return Parity(len(pictures), largest, changed / pixels, of_torch, of_onnx)


class _WithEnds(nn.Module):
    """From uint8 (N, 3, H, W) to probability float32 (N, 1, H, W) or (N, K, H, W)."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        return probabilities(self.net(image.float() / 255))
