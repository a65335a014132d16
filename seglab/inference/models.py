"""Trained networks, ready for pictures: from run directories, checkpoints and exported files."""

from __future__ import annotations

import logging
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from seglab.config import DEFAULT_INFERENCE, Inference, stored_inference
from seglab.core.errors import InputError
from seglab.core.files import hash_file, read_json
from seglab.data.classes import Classes, make_classes
from seglab.inference.postprocessing import Predictor, predicted_mask
from seglab.runs.paths import RunPaths

log = logging.getLogger(__name__)

ONNX = ".onnx"


@dataclass(frozen=True)
class Model:
    """What a picture's mask comes from: a network, or several as one.

    Attributes:
        path: What it was read from.
        predict: From image to probability, both at native size.
        classes: What it tells apart.
        threshold: Probability above which a pixel is lesion; of no use with several classes.
        inference: How its masks come about besides.
        sha256: Of the files it was read from, where that is asked for.
    """

    path: Path
    predict: Predictor
    classes: Classes
    threshold: float
    inference: Inference
    sha256: tuple[str, ...] = ()

    def make_mask(self, prob: np.ndarray) -> np.ndarray:
        """Turn probabilities, float32 (C, H, W), into class numbers, uint8 (H, W)."""
        return predicted_mask(prob, self.threshold, self.inference)


def open_model(path: str | Path, trust: tuple[str, ...] = (), **inference: bool | None) -> Model:
    """Opens a trained network of anyone: nothing in its files is unpickled or run.

    Args:
        path: A run directory, of which the checkpoint is read; a checkpoint; or a file of
            `scripts/export.py`, for which torch is not imported.
        trust: Modules whose names its config may use besides seglab's own, such as a library
            that a network comes from.
        inference: `tta`, `largest_component` and `fill_holes`, in place of what it says itself;
            None for that.

    Raises:
        InputError: It cannot be read, is damaged, or names code that is not trusted.
    """
    file = find_network(path)
    given = {key: value for key, value in inference.items() if value is not None}
    if file.suffix.lower() == ONNX:
        from seglab.inference.onnx_predictor import exported_predictor, open_exported

        session, metadata = open_exported(file.read_bytes(), file)
        own = replace(stored_inference(metadata["inference"], file), **given)
        classes = make_classes(metadata["classes"], metadata.get("colours"), f"{file}: ")
        predict = exported_predictor(session, metadata["size"], len(classes.names), own.tta)
        return Model(file, predict, classes, metadata["threshold"], own, (hash_file(file),))
    import torch

    from seglab.inference.predictor import make_predictor
    from seglab.runs.checkpoints import load_network

    net, stored = load_network(file, trust)
    config = stored["config"]
    own = replace(stored_inference(config.get("inference", DEFAULT_INFERENCE), file), **given)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    predict = make_predictor(net, config["data"]["size"], device, own.tta)
    sha256 = (hash_file(file),)
    return Model(file, predict, stored["classes"], stored["threshold"], own, sha256)


def refuse_twice(paths: Sequence[str | Path]) -> None:
    """Refuses an ensemble that counts one network twice.

    Raises:
        InputError: Two are one file or folder.
    """
    twice = [path for path, n in Counter(Path(p).resolve() for p in paths).items() if n > 1]
    if twice:
        raise InputError(f"{twice[0]}: given twice; expected runs that differ")


def find_network(path: str | Path) -> Path:
    """The file that holds a network: of a run directory its chosen checkpoint.

    Raises:
        InputError: There is none.
    """
    path = Path(path)
    if not path.is_dir():
        if not path.is_file():
            raise InputError(f"{path}: no file; expected a run directory, a checkpoint or .onnx")
        return path
    paths = RunPaths(path)
    if not paths.record.is_file():
        raise InputError(
            f"{path}: no run directory (it holds no run.json); expected one of train.py's, a "
            "checkpoint, or a file of export.py's"
        )
    record = read_json(paths.record)
    status = record.get("status") if isinstance(record, dict) else None
    if status != "finished":
        log.warning("%s: the run has not finished (%s), so neither has its network", path, status)
    return paths.best_checkpoint


def ensemble(models: Sequence[Model]) -> Model:
    """Makes several one: the mean of their probabilities, and of their thresholds.

    Args:
        models: At least one. Each keeps its own `inference.tta`; that of the whole says nothing.

    Raises:
        InputError: They tell other classes apart, or clean masks otherwise: of an ensemble there
            is one mask.
    """
    first = models[0]
    for model in models:
        if model.classes.names != first.classes.names:
            raise InputError(
                f"{model.path}: tells {', '.join(model.classes.names)} apart, {first.path} "
                f"{', '.join(first.classes.names)}; expected networks of the same classes"
            )
        for key in ("largest_component", "fill_holes"):
            value = getattr(model.inference, key)
            if value != getattr(first.inference, key):
                option = key.replace("_", "-")
                raise InputError(
                    f"{model.path}: cleans its masks otherwise than {first.path} (inference.{key}: "
                    f"{value}, not {not value}); say --{option} or --no-{option}"
                )
    return replace(
        first,
        predict=mean_predictor([model.predict for model in models]),
        threshold=statistics.fmean(model.threshold for model in models),
        sha256=tuple(sha256 for model in models for sha256 in model.sha256),
    )


def mean_predictor(predictors: Sequence[Predictor]) -> Predictor:
    """Make an ensemble's predictor: the mean of its members' probabilities, at native size."""

    def predict(image: np.ndarray) -> np.ndarray:
        # Summed one by one: a large image's probabilities are large, too.
        total = predictors[0](image)
        for predictor in predictors[1:]:
            total = total + predictor(image)
        return total / np.float32(len(predictors))

    return predict
