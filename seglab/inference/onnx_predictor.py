"""Predicts with networks that `seglab.inference.export` has written, by ONNX Runtime. No torch."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seglab.core.errors import InputError
from seglab.data.resizing import image_to_network_size
from seglab.inference.calibration import parse_calibration
from seglab.inference.postprocessing import Prediction, Predictor
from seglab.inference.tta import make_views, merge_views

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

METADATA = "seglab"  # key of the metadata, which are JSON
IMAGE, PROBABILITY = "image", "probability"
# A file's metadata hold its own SHA-256, computed with this in its place.
HASH_PLACEHOLDER = b"0" * 64
# ONNX Runtime's sigmoid may leave [0, 1] by a rounding error.
ROUNDING = 1e-5
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"


def open_exported(content: bytes, path: str | Path) -> tuple[InferenceSession, dict[str, Any]]:
    """Open the content of a file of `export`: its session, on CUDA if possible, and its metadata.

    Raises:
        InputError: ONNX Runtime is not installed, or the file is damaged or not of `export`.
    """
    try:
        import onnxruntime
    except ImportError:
        raise InputError(
            f"{path}: needs ONNX Runtime; install it with pip install 'seglab[onnx]'"
        ) from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised, so they need not be printed, too
    # A file from a stranger must not read weights from other files.
    options.add_session_config_entry(_WEIGHTS_FOLDER, os.devnull)
    available = onnxruntime.get_available_providers()
    providers = [p for p in ("CUDAExecutionProvider", "CPUExecutionProvider") if p in available]
    try:
        session = onnxruntime.InferenceSession(content, options, providers)
        metadata = json.loads(session.get_modelmeta().custom_metadata_map[METADATA])
        if not (0 < metadata["size"] <= 2**14 and 0 < metadata["threshold"] < 1):
            raise ValueError("its size or threshold is out of range")
        if metadata.get("calibration"):
            metadata["calibration"] = parse_calibration(metadata["calibration"], Path(path))
        sha256 = metadata["sha256"].encode()
        if insert_hash(content.replace(sha256, HASH_PLACEHOLDER)) != content or len(sha256) != 64:
            raise ValueError("its content does not have the SHA-256 in its metadata")
    except Exception as error:  # the exceptions of ONNX Runtime have no common class
        raise InputError(
            f"{path}: is no network of seglab export, or damaged ({first_line(error)}); export it "
            "again"
        ) from error
    return session, metadata


def insert_hash(content: bytes) -> bytes:
    """Replace `HASH_PLACEHOLDER` in a file's content by the content's SHA-256."""
    return content.replace(HASH_PLACEHOLDER, hashlib.sha256(content).hexdigest().encode())


def make_exported_predictor(
    session: InferenceSession, size: int, channels: int, tta: bool = False
) -> Predictor:
    """Make a predictor that, except for rounding, predicts what that of `make_predictor` does.

    `size` is the edge of the network's input in pixels, `channels` its number of probabilities.
    """

    def predict(image: np.ndarray) -> Prediction:
        small = image_to_network_size(image, size)
        batch = (make_views(small) if tta else small[None]).transpose(0, 3, 1, 2)
        try:
            (prob,) = session.run([PROBABILITY], {IMAGE: np.ascontiguousarray(batch)})
        except Exception as error:  # the exceptions of ONNX Runtime have no common class
            raise InputError(f"the exported network cannot be run ({first_line(error)})") from error
        is_probability = (prob >= -ROUNDING) & (prob <= 1 + ROUNDING)  # False for NaN
        if prob.shape != (len(batch), channels, size, size) or not is_probability.all():
            raise InputError("the exported network gives no probabilities; export it again")
        return merge_views(prob.clip(0, 1), image.shape[:2])

    return predict


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the error's type where it has none."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
