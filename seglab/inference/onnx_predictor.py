"""Networks that `seglab.inference.export` has written, run by ONNX Runtime: no torch."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.ndimage import zoom

from seglab.core.errors import InputError
from seglab.data.resizing import image_to_network_size
from seglab.inference.postprocessing import Predictor

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

METADATA = "seglab"
# In its metadata a file names its own hash, taken with this in that place.
UNSEALED = "0" * 64
IMAGE, PROBABILITY = "image", "probability"
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
_EXPECTED = {
    "size": lambda value: type(value) is int and 0 < value <= 2**14,
    "threshold": lambda value: type(value) is float and 0 < value < 1,
    "inference": lambda value: isinstance(value, dict),
    "classes": lambda value: isinstance(value, list) and value,
    "sha256": lambda value: type(value) is str and len(value) == len(UNSEALED),
}


def open_exported(content: bytes, path: str | Path) -> tuple[InferenceSession, dict[str, Any]]:
    """Opens an exported network.

    Args:
        content: Of a file of `scripts/export.py`.
        path: Where it lies, for messages.

    Returns:
        The session, on CUDA where ONNX Runtime has it, and what the file says of itself, as
        `seglab.inference.export.export` writes it.

    Raises:
        InputError: ONNX Runtime is not installed, or the file is missing, damaged or of others.
    """
    try:
        import onnxruntime
    except ImportError:
        raise InputError(
            f"{path}: takes ONNX Runtime to run; install it with pip install -e '.[onnx]'"
        ) from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what is wrong is said below
    # Weights in other files than this one are not looked for.
    options.add_session_config_entry(_WEIGHTS_FOLDER, os.devnull)
    known = onnxruntime.get_available_providers()
    providers = [p for p in ("CUDAExecutionProvider", "CPUExecutionProvider") if p in known]
    try:
        session = onnxruntime.InferenceSession(content, options, providers)
        stored = session.get_modelmeta().custom_metadata_map[METADATA]
        metadata = json.loads(stored)
        wrong = [key for key, is_right in _EXPECTED.items() if not is_right(metadata.get(key))]
        if wrong:
            raise ValueError(f"its metadata lack {', '.join(wrong)}")
        unsealed = content.replace(metadata["sha256"].encode(), UNSEALED.encode())
        if hashlib.sha256(unsealed).hexdigest() != metadata["sha256"]:
            raise ValueError("it does not have the hash that it names")
        sides = session.get_inputs(), session.get_outputs()
        ends = [[(node.name, node.type) for node in nodes] for nodes in sides]
        if ends != [[(IMAGE, "tensor(uint8)")], [(PROBABILITY, "tensor(float)")]]:
            raise ValueError(f"it takes and gives {ends}")
    except Exception as error:  # ONNX Runtime's own kinds have no common one
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path}: is no network of export.py's, or damaged ({reason}); export it again"
        ) from error
    return session, metadata


def sealed(content: bytes) -> bytes:
    """Puts a file's own hash in the place of `UNSEALED`."""
    return content.replace(UNSEALED.encode(), hashlib.sha256(content).hexdigest().encode())


def exported_predictor(
    session: InferenceSession, size: int, classes: int = 1, tta: bool = False
) -> Predictor:
    """Makes a predictor of an exported network: `seglab.inference.predictor.make_predictor`, to rounding.

    Args:
        session: Of `open_exported`.
        size: Edge of the square network input, in pixels.
        classes: How many it gives.
        tta: As there.
    """

    def predict(image: np.ndarray) -> np.ndarray:
        small = image_to_network_size(image, size)
        turned = [np.rot90(x, k) for x in (small, small[:, ::-1]) for k in range(4)]
        batch = np.stack(turned if tta else [small]).transpose(0, 3, 1, 2)
        try:
            (probs,) = session.run([PROBABILITY], {IMAGE: np.ascontiguousarray(batch)})
        except Exception as error:  # ONNX Runtime's own kinds have no common one
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"the exported network cannot be run ({reason})") from error
        expected = (len(batch), classes, size, size)
        if probs.shape != expected or not ((probs >= 0) & (probs <= 1)).all():
            raise InputError("the exported network gives no probabilities; export it again")
        prob = probs[0]
        if tta:
            back = [np.rot90(view, -(i % 4), (1, 2)) for i, view in enumerate(probs)]
            prob = np.mean(back[:4] + [view[..., ::-1] for view in back[4:]], axis=0)
        height, width = image.shape[:2]
        scale = height / size, width / size
        return np.stack([zoom(p, scale, order=1, mode="nearest", grid_mode=True) for p in prob])

    return predict
