"""Predicts masks, and what is made of them, for image files."""

from __future__ import annotations

import errno
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from seglab.core.errors import InputError
from seglab.core.files import hash_file, lock_folder, remove_partial, write_atomic, write_csv
from seglab.data.images import read_image
from seglab.inference.drawing import cut_out, draw_contours
from seglab.inference.image_files import find_images
from seglab.inference.manifest import (
    CUTOUTS,
    EXTRAS,
    INSTANCES,
    MASKS,
    OVERLAYS,
    PROBABILITIES,
    TABLE,
    Manifest,
    open_manifest,
    output_folders,
    prediction_settings,
)
from seglab.inference.models import Model, ensemble, open_model
from seglab.inference.postprocessing import measure_instances, number_instances

log = logging.getLogger(__name__)


def predict(
    paths: Sequence[str | Path],
    images: Sequence[str | Path],
    out: str | Path,
    extras: Sequence[str] = (),
    background: str | Path | None = None,
    overwrite: bool = False,
    trust: tuple[str, ...] = (),
    **inference: bool | None,
) -> dict[str, int]:
    """Write a mask for each image, at the image's own resolution.

    `out/masks/NAME.png` is 255 in lesions and 0 elsewhere; with several classes it holds class
    numbers, as indices into a palette. NAME is the image's name, with its folders below the one
    that all images share. `out/manifest.json` says what everything was made with. Started again,
    it goes on where it stopped.

    Args:
        paths: Networks as of `seglab.inference.models.open_model`; several are an ensemble.
        images: As of `seglab.inference.image_files.find_images`.
        out: The folder to write to.
        extras: Of `EXTRAS`. `probabilities/NAME.png` holds them as 0 to 65535 in 16 bits; with
            several classes `probabilities/CLASS/NAME.png`, for each but background.
            `overlays/NAME.png` is the image with the mask's contours. `instances/NAME.png` numbers
            connected lesions in 16 bits, and `instances.csv` measures them, as
            `seglab.inference.postprocessing.measure_instances` names it. `cutouts/NAME.png` is the
            image inside the mask, transparent elsewhere.
        background: An image to put behind each cut-out, filling it.
        overwrite: Replace what was made with another network, other settings or another version of
            an image, and files of others.
        trust: As of `open_model`.
        inference: `tta`, `largest_component` and `fill_holes`, as of `open_model`.

    Returns:
        How many images were `predicted`, were `there` already, and were `skipped` because they
        cannot be read; the log says why.

    Raises:
        InputError: A network cannot be read, there is no image, or `overwrite` is needed.
        OSError: A file cannot be written.
    """
    out = Path(out)
    if unknown := set(extras) - set(EXTRAS):
        raise InputError(f"{min(unknown)}: expected of {', '.join(EXTRAS)}")
    files = find_images(images, out)
    model = ensemble([open_model(path, trust, **inference) for path in paths])
    kinds = {MASKS, *extras}
    behind, cutouts = None, "transparent" if CUTOUTS in kinds else None
    if background is not None:
        kinds.add(CUTOUTS)
        cutouts = _hash_image(Path(background))
        behind = read_image(background)
    folders = output_folders(model.classes, [*kinds])
    planned = [out / folder / f"{name}.png" for folder in folders for name in files]
    planned += [out / TABLE] if INSTANCES in kinds else []
    counts = dict.fromkeys(("predicted", "there", "skipped"), 0)
    refusal = f"{out}: another process is writing here; wait for it, or name another with --out"
    with lock_folder(out, refusal, "--out"):
        settings = prediction_settings(model, cutouts)
        manifest = open_manifest(out, settings, planned, overwrite)
        for folder in folders:
            remove_partial(out / folder)
        job = _Job(model, folders, behind, overwrite, manifest)
        try:
            for name, file in tqdm(
                files.items(), "predicting", unit="image", disable=None, dynamic_ncols=True
            ):
                counts[job.run(name, file)] += 1
        finally:
            manifest.save()
        if INSTANCES in kinds:
            write_csv(out / TABLE, manifest.instance_rows())
    return counts


@dataclass(frozen=True)
class _Job:
    """What is done with each image."""

    model: Model
    folders: list[str]
    background: np.ndarray | None
    overwrite: bool
    manifest: Manifest

    def run(self, name: str, file: Path) -> str:
        """Predict one image, and return which of the counts of `predict` it belongs to."""
        try:
            sha256 = _hash_image(file)
            missing = self.manifest.find_missing(name, sha256, self.folders, self.overwrite)
            if not missing:
                return "there"
            outputs, rows = self.make_outputs(read_image(file), missing)
            for folder, png in outputs.items():
                path = self.manifest.output_file(folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(path, png)
            self.manifest.add(name, sha256, missing, rows)
            return "predicted"
        except (InputError, OSError) as error:
            if isinstance(error, OSError) and error.errno != errno.ENAMETOOLONG:
                raise
            reason = " ".join(str(error).split())
            log.warning("skipped: %s", reason if file.name in reason else f"{file}: {reason}")
            return "skipped"

    def make_outputs(
        self, image: np.ndarray, folders: Sequence[str]
    ) -> tuple[dict[str, bytes], list[dict[str, Any]] | None]:
        """Make the PNG files of some folders, and the rows of instances.csv if among them."""
        prob, classes = self.model.predict(image), self.model.classes
        if not np.isfinite(prob).all():
            raise InputError("the network predicts NaN or infinity; its weights are unusable")
        mask = self.model.make_mask(prob)
        outputs, rows = {}, None
        for folder in folders:
            kind, _, class_name = folder.partition("/")
            if kind == PROBABILITIES:
                channel = classes.names.index(class_name) if class_name else 0
                png = _encode_png(np.rint(prob[channel] * 65535).astype(np.uint16))
            elif kind == OVERLAYS:
                png = _encode_png(draw_contours(image, mask, classes))
            elif kind == INSTANCES:
                instances = number_instances(mask)
                rows = measure_instances(instances, mask, prob, classes)
                png = _encode_png(instances)
            elif kind == CUTOUTS:
                png = _encode_png(cut_out(image, mask > 0, self.background))
            elif classes.is_multiclass:
                png = _encode_png(mask, classes.palette)
            else:
                png = _encode_png(mask * np.uint8(255))
            outputs[folder] = png
        return outputs, rows


def _hash_image(file: Path) -> str:
    if not file.is_file():  # opening a pipe would block
        reason = "no such file"
        if file.exists():
            reason = "a folder" if file.is_dir() else "no file"
        raise InputError(f"{file}: cannot be read ({reason}); expected an image")
    try:
        return hash_file(file)
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); allow it") from error


def _encode_png(pixels: np.ndarray, palette: np.ndarray | None = None) -> bytes:
    image = Image.fromarray(pixels)
    if palette is not None:
        image.putpalette(palette.tobytes())
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()
