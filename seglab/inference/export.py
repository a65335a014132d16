"""Exports a trained network as ONNX, for programs without torch, and compares it with torch."""

import io
import json
import logging
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from seglab.core.errors import InputError
from seglab.core.files import expand_user, write_atomic
from seglab.data.images import read_image
from seglab.inference.evaluate import read_cases
from seglab.inference.image_files import find_images
from seglab.inference.models import ONNX_SUFFIX, Model, find_network, load_onnx_model, make_model
from seglab.inference.onnx_predictor import (
    HASH_PLACEHOLDER,
    IMAGE,
    METADATA,
    PROBABILITY,
    first_line,
    insert_hash,
)
from seglab.inference.predictor import probabilities
from seglab.networks.fast_conv import reference_ops
from seglab.runs.checkpoints import load_network
from seglab.runs.paths import refuse_run_files
from seglab.runs.records import open_run

log = logging.getLogger(__name__)

# Largest difference of a pixel's probability: torch and ONNX Runtime sum float32 in other orders.
TOLERANCE = 1e-4
COMPARED_IMAGES = 20
_OPSET = 18


def export(
    path: str | Path,
    out: str | Path | None = None,
    images: Sequence[str | Path] = (),
    overwrite: bool = False,
    trust: tuple[str, ...] = (),
    moved_to: str | Path | None = None,
) -> Path:
    """Write a network as ONNX, if ONNX Runtime then predicts what torch does.

    The exported network maps `image`, uint8 (N, 3, H, W), to `probability`, float32 (N, C, H, W),
    for any N, H and W that the network takes: normalisation and sigmoid or softmax are inside. Its
    metadata hold under `seglab`, as JSON: `size`, the edge in pixels that it was trained at,
    `threshold`, `classes`, `colours`, `lesion_values`, `inference`, `run`, the name of the run
    directory or checkpoint, `checkpoint_sha256`, `split_hash`, `calibration`, as calibration.json
    holds it or null, and `sha256` of the file with zeros in its place.

    Args:
        path: A run directory, or a checkpoint.
        out: File to write; by default `network.onnx` in the run directory, or beside the
            checkpoint.
        images: Images to compare on, see `seglab.inference.image_files.find_images`; by default
            up to 20 of the run's test cases.
        overwrite: Replace the file if it exists.
        trust: See `seglab.inference.models.load_model`.
        moved_to: Where the run's data is today; None for where it was.

    Returns:
        The file.

    Raises:
        InputError: The network cannot be read or exported, there is no image, the file exists, or
            ONNX Runtime predicts something else, in which case nothing is written.
    """
    path, file = expand_user(path), find_network(path)
    folder = path if path.is_dir() else path.parent
    out = folder / f"network{ONNX_SUFFIX}" if out is None else expand_user(out)
    refuse_run_files(out)
    if out.exists() and not overwrite:
        raise InputError(f"{out}: is there already; replace it with --overwrite, or name --out")
    net, stored = load_network(file, trust)
    files = (
        list(find_images(images).values()) if images else _find_test_images(path, trust, moved_to)
    )
    model = make_model(file, net, stored)
    metadata = {
        "size": stored["config"]["data"]["size"],
        "threshold": model.threshold,
        "classes": model.classes.names,
        "colours": model.classes.colours,
        "lesion_values": model.classes.lesion_values,
        "inference": asdict(model.inference),
        "run": path.absolute().name,
        "checkpoint_sha256": model.sha256[0],
        "split_hash": stored["split_hash"],
        "calibration": model.calibration.to_json() if model.calibration else None,
        "sha256": HASH_PLACEHOLDER.decode(),
    }
    log.info("exporting %s", file)
    content = _to_onnx(net, metadata, file)
    difference = _compare(model, load_onnx_model(out, content), files)
    if difference > TOLERANCE:
        raise InputError(
            f"{file}: predictions of ONNX Runtime differ from those of torch by up to "
            f"{difference:.2g}; expected at most {TOLERANCE}; nothing was written"
        )
    log.info("%d images: probabilities differ by %.1e at most", len(files), difference)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, content)
    log.info("written to %s", out)
    return out


def _find_test_images(
    path: Path, trust: tuple[str, ...], moved_to: str | Path | None
) -> list[Path]:
    try:
        run = open_run(path, trust, moved_to)
        images = [case.image for case in read_cases(run) if case.id in run.ids["test"]]
        if not images:
            raise InputError(f"{run.config['data']['root']}: has none of the run's test cases")
    except InputError as error:
        raise InputError(f"{error}; or name images to compare on with --images") from error
    return images[:COMPARED_IMAGES]


def _to_onnx(net: nn.Module, metadata: dict[str, Any], path: Path) -> bytes:
    """Return the content of an ONNX file."""
    try:
        import onnx
    except ImportError:
        raise InputError(f"{path}: needs onnx: pip install 'seglab[onnx]'") from None
    content: Any = io.BytesIO()  # accepted by the exporter, unlike its annotation says
    image = torch.zeros(1, 3, metadata["size"], metadata["size"], dtype=torch.uint8)
    free_axes = {0: "n", 2: "h", 3: "w"}
    try:
        with warnings.catch_warnings(), reference_ops(), torch.no_grad():
            warnings.simplefilter("ignore")
            # By tracing: torch 2.13's newer exporter takes minutes for a deep network.
            torch.onnx.export(
                _ProbabilityNet(net).eval(),
                (image,),
                content,
                dynamo=False,
                input_names=[IMAGE],
                output_names=[PROBABILITY],
                dynamic_axes={IMAGE: free_axes, PROBABILITY: free_axes},
                opset_version=_OPSET,
            )
    except Exception as error:  # any network may fail in any way
        raise InputError(f"{path}: its network cannot be exported ({first_line(error)})") from error
    onnx_model = onnx.load_from_string(content.getvalue())
    onnx.helper.set_model_props(onnx_model, {METADATA: json.dumps(metadata)})
    return insert_hash(onnx_model.SerializeToString())


def _compare(torch_model: Model, onnx_model: Model, files: Sequence[Path]) -> float:
    """Return the largest difference of both models' probabilities, at native resolution."""
    differences = []
    for file in tqdm(files, "comparing", unit="image", disable=None, leave=False):
        image = read_image(file)
        first, second = (model.probabilities(image) for model in (onnx_model, torch_model))
        differences.append(np.abs(first - second).max())
    return float(max(differences))


class _ProbabilityNet(nn.Module):
    """Maps images, uint8 (N, 3, H, W), to probabilities, float32 (N, C, H, W)."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        return probabilities(self.net(image.float() / 255))
