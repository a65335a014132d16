"""Opens trained networks for prediction: run directories, checkpoints, ONNX files, ensembles."""

from __future__ import annotations

import functools
import hashlib
import logging
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seglab.core.errors import InputError
from seglab.core.files import expand_user, hash_file
from seglab.data.classes import Classes, make_classes
from seglab.data.images import ImageLike, to_array
from seglab.inference.calibration import LEVEL, Calibration, find_calibration
from seglab.inference.postprocessing import Prediction, Predictor, class_confidences, predicted_mask
from seglab.inference.quality import Quality
from seglab.runs.paths import RunPaths
from seglab.runs.records import find_runs, name_init, refuse_scores_alone
from seglab.schema import Inference, read_inference

if TYPE_CHECKING:
    import torch
    from torch import nn

log = logging.getLogger(__name__)

ONNX_SUFFIX = ".onnx"


@dataclass(frozen=True)
class Model:
    """A network, or several as an ensemble, with everything that is needed to predict masks.

    Attributes:
        path: Where it was read from.
        predictor: Maps an image, uint8 (H, W, 3), to a `Prediction`.
        classes: Its classes.
        threshold: Probability above which a pixel is of class 1; not used with several classes.
        inference: Test-time augmentation and post-processing.
        sha256: Of each file it was read from.
        calibration: What the confidence of its masks says about their Dice; None if unknown.
    """

    path: Path
    predictor: Predictor
    classes: Classes
    threshold: float
    inference: Inference
    sha256: tuple[str, ...]
    calibration: Calibration | None = None

    def predict(self, image: ImageLike) -> np.ndarray:
        """Predict class numbers, uint8 (H, W), of an image of this height and width."""
        return self.make_mask(self.probabilities(image))

    def probabilities(self, image: ImageLike) -> np.ndarray:
        """Predict the probability of each channel's class, float32 (C, H, W) in [0, 1]."""
        return self.predictor(to_array(image)).prob

    def assess(self, image: ImageLike, level: float = LEVEL) -> tuple[np.ndarray, Quality]:
        """Predict a mask as `predict` does, and how far it can be trusted.

        Args:
            image: See `to_array`.
            level: Share of images like the training images for which the lower bound holds.

        Raises:
            InputError: The calibration has too few cases for this level.
        """
        pixels = to_array(image)
        prob = self.probabilities(pixels)
        mask = self.make_mask(prob)
        return mask, self.measure_quality(pixels, prob, mask, level)

    def measure_quality(
        self, image: np.ndarray, prob: np.ndarray, mask: np.ndarray, level: float = LEVEL
    ) -> Quality:
        """Measure how far a mask can be trusted, see `assess`.

        `image` is uint8 (H, W, 3), `prob` is of `probabilities`, and `mask` is of `make_mask`.
        """
        by_class = class_confidences(prob, mask)
        confidence = statistics.fmean(by_class[1:] or by_class)
        if self.calibration is None:
            return Quality(confidence)
        expected, bound, familiar = self.calibration.assess(confidence, image, level)
        if not familiar:
            return Quality(confidence, familiar=False)
        return Quality(confidence, expected, bound, familiar)

    def make_mask(self, prob: np.ndarray) -> np.ndarray:
        """Turn probabilities, float32 (C, H, W), into class numbers, uint8 (H, W)."""
        return predicted_mask(prob, self.threshold, self.inference)


def load_model(path: str | Path, trust: tuple[str, ...] = (), **inference: bool | None) -> Model:
    """Open a trained network, which may be a stranger's: nothing in its files is executed.

    Args:
        path: A run directory, whose best checkpoint is read; a checkpoint; an ONNX file of
            `seglab.inference.export`, for which torch is not imported; or a sweep, whose runs
            become an ensemble, see `find_members`.
        trust: Names that its config may hold as `_target_` in addition to seglab's, such as
            'my_networks.MyNet'.
        inference: `tta`, `largest_component` and `fill_holes`, to replace its own settings; None
            keeps them.

    Raises:
        InputError: It cannot be read, is damaged, or names code that is not trusted.
    """
    members = find_members(path)
    if members != [path]:
        return ensemble([load_model(member, trust, **inference) for member in members])
    file = find_network(path)
    if file.suffix.lower() == ONNX_SUFFIX:
        return load_onnx_model(file, file.read_bytes(), **inference)
    import torch

    from seglab.runs.checkpoints import load_network

    device = "cuda" if torch.cuda.is_available() else "cpu"
    net, stored = load_network(file, trust)
    return make_model(file, net, stored, device, **inference)


def make_model(
    file: Path,
    net: nn.Module,
    stored: dict[str, Any],
    device: torch.device | str = "cpu",
    **inference: bool | None,
) -> Model:
    """Make a model of what `seglab.runs.checkpoints.load_network` returns for a checkpoint."""
    from seglab.inference.predictor import make_predictor

    settings = _replace_settings(stored["config"].get("inference"), file, inference)
    predictor = make_predictor(net, stored["config"]["data"]["size"], device, settings.tta)
    classes, threshold = stored["classes"], stored["threshold"]
    sha256 = hash_file(file)
    calibration = find_calibration(file, sha256, settings)
    return Model(file, predictor, classes, threshold, settings, (sha256,), calibration)


def load_onnx_model(file: Path, content: bytes, **inference: bool | None) -> Model:
    """Open the content of an ONNX file, which need not be written yet."""
    from seglab.inference.onnx_predictor import make_exported_predictor, open_exported

    session, metadata = open_exported(content, file)
    settings = _replace_settings(metadata.get("inference"), file, inference)
    names, colours, values = map(metadata.get, ("classes", "colours", "lesion_values"))
    classes = make_classes(names, colours, values, f"{file}: ")
    predictor = make_exported_predictor(session, metadata["size"], len(classes.names), settings.tta)
    sha256 = (hashlib.sha256(content).hexdigest(),)
    calibration = metadata.get("calibration")
    if calibration and not calibration.holds_for(metadata.get("checkpoint_sha256", ""), settings):
        calibration = None
    return Model(file, predictor, classes, metadata["threshold"], settings, sha256, calibration)


def find_members(path: str | Path) -> list[str | Path]:
    """List the finished runs of a sweep, which form an ensemble; any other path is its own member.

    Raises an InputError if a folder holds no finished run, or runs that differ in more than seed
    and fold.
    """
    folder = expand_user(path)
    if not folder.is_dir() or RunPaths(folder).record.is_file():
        return [path]
    found = [run for run in find_runs([folder]) if run.was_trained]
    runs = [run for run in found if run.status == "finished"]
    if not runs:
        raise InputError(f"{path}: holds no finished run; the command that trains goes on with it")
    if len(runs) < len(found):
        log.warning("%s: %d of %d runs are finished, and used", path, len(runs), len(found))
    first, *others = [run.settings | {"init": name_init([run])} for run in runs]
    for run, settings in zip(runs[1:], others, strict=True):
        if settings != first:
            key = next(k for k in first | settings if first.get(k) != settings.get(k))
            raise InputError(
                f"{path}: {run.label} and {runs[0].label} differ in {key}; expected runs "
                "that differ in seed and fold alone: name one of them, or a folder of such"
            )
    return [run.folder for run in runs]


def find_network(path: str | Path) -> Path:
    """Return the file that holds a network, or raise an InputError if there is none."""
    path = expand_user(path)
    if path.is_file():
        return path
    paths = RunPaths(path)
    if not paths.record.is_file():
        raise InputError(
            f"{path}: expected a run directory, which holds {paths.record.name}, a checkpoint, or "
            "a file of seglab export"
        )
    refuse_scores_alone(paths)
    return paths.best_checkpoint


def ensemble(models: Sequence[Model]) -> Model:
    """Combine models, at least one: the mean of their probabilities, and of their thresholds.

    Each predicts with its own `inference.tta`.

    Raises:
        InputError: They have different classes or post-processing.
    """
    first, *others = models
    for model in others:
        if model.classes.names != first.classes.names:
            raise InputError(
                f"{model.path}: has the classes {', '.join(model.classes.names)}, {first.path} "
                f"{', '.join(first.classes.names)}; expected networks with the same classes"
            )
        for key in ("largest_component", "fill_holes"):
            value = getattr(model.inference, key)
            if value != getattr(first.inference, key):
                option = key.replace("_", "-")
                raise InputError(
                    f"{model.path}: has another post-processing than {first.path} (inference.{key}:"
                    f" {value}, not {not value}); choose --{option} or --no-{option}"
                )

    if not others:
        return first

    def predict(image: np.ndarray) -> Prediction:
        members = tuple(model.predictor(image).compute for model in models)

        def compute_mean() -> np.ndarray:
            # Summed one by one: a large image's probabilities are large, too.
            total = functools.reduce(np.add, (member() for member in members))
            return total / np.float32(len(members))

        return Prediction(compute_mean, members)

    return replace(
        first,
        predictor=predict,
        threshold=statistics.fmean(model.threshold for model in models),
        sha256=tuple(sha256 for model in models for sha256 in model.sha256),
        calibration=first.calibration if len({m.calibration for m in models}) == 1 else None,
    )


def _replace_settings(stored: Any, file: Path, given: dict[str, bool | None]) -> Inference:
    settings = {key: value for key, value in given.items() if value is not None}
    return replace(read_inference(stored, file), **settings)
