"""Predicts masks, and what is made of them, for image files."""

import hashlib
import json
import logging
import os
from collections.abc import Collection, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from seglab.core.commands import format_command
from seglab.core.errors import InputError
from seglab.core.files import (
    expand_user,
    hash_file,
    lock_folder,
    remove_partial,
    write_atomic,
    write_csv,
)
from seglab.data.images import read_image
from seglab.data.threads import map_in_threads
from seglab.inference.calibration import LEVEL
from seglab.inference.drawing import (
    cut_out,
    draw_contours,
    draw_review_mark,
    encode_mask,
    encode_png,
)
from seglab.inference.image_files import find_images
from seglab.inference.manifest import (
    CUTOUTS,
    INSTANCES,
    KINDS,
    MASKS,
    OVERLAYS,
    PROBABILITIES,
    QUALITY,
    TABLES,
    Manifest,
    open_manifest,
)
from seglab.inference.models import Model, ensemble, find_members, load_model
from seglab.inference.postprocessing import measure_instances, number_instances
from seglab.inference.quality import REVIEW_BELOW
from seglab.runs.paths import refuse_run_files

log = logging.getLogger(__name__)

# Images in work at once: one is read or written while the network runs on another. More would take
# memory. torch's number of threads stays, as with another one a network rounds differently.
WORKERS = min(4, os.cpu_count() or 1)


def predict(
    paths: Sequence[str | Path],
    images: Sequence[str | Path],
    out: str | Path,
    extras: Sequence[str] = (),
    background: str | Path | None = None,
    review_below: float = REVIEW_BELOW,
    level: float = LEVEL,
    overwrite: bool = False,
    trust: tuple[str, ...] = (),
    **inference: bool | None,
) -> dict[str, int]:
    """Write a mask for each image, at the image's own resolution.

    The README of this package lists the files in `out`. Started again, it goes on where it stopped.

    Args:
        paths: Networks, see `seglab.inference.models.load_model`; several are an ensemble.
        images: See `seglab.inference.image_files.find_images`.
        out: The folder to write to.
        extras: What to write in addition to masks: `probabilities`, `overlays`, `instances`,
            `cutouts`, and `quality`, a table of how far each mask can be trusted.
        background: An image to put behind each cut-out, scaled and cropped to fill it.
        review_below: With `quality`, masks whose Dice may be lower are to be reviewed, and marked
            in overlays.
        level: With `quality`, share of images for which the lower bound of Dice holds.
        overwrite: Replace what was made with other networks or settings, or of another version of
            an image.
        trust: See `load_model`.
        inference: `tta`, `largest_component` and `fill_holes`, see `load_model`.

    Returns:
        How many images were `predicted`, were `there` already, and were `skipped` because they
        cannot be read; the log says why.

    Raises:
        InputError: A network cannot be read, there is no image, `overwrite` is needed, or there
            are too few calibration cases for `level`.
        OSError: A file cannot be written.
    """
    out = expand_user(out)
    refuse_run_files(out)
    files = find_images(images)
    members = [member for path in paths for member in find_members(path)]
    model = ensemble([load_model(member, trust, **inference) for member in members])
    kinds = {MASKS, *extras, *([] if background is None else [CUTOUTS])}
    settings = _describe_model(model) | {
        "outputs": sorted(kinds),
        "background": None if background is None else _hash_image(expand_user(background)),
        "quality": _check_quality(model, kinds, paths[0], review_below, level),
    }
    behind = None if background is None else read_image(expand_user(background))
    refusal = f"{out}: another process is writing here; wait for it, or name another with --out"
    counts = dict.fromkeys(("predicted", "there", "skipped"), 0)

    def predict_image(item: tuple[str, Path]) -> tuple[str, str]:
        """Write an image's outputs, unless they are there; return what to count, and a reason."""
        name, file = item
        try:
            sha256 = _hash_image(file)
            if manifest.is_done(name, sha256, overwrite):
                return "there", ""
            image = read_image(file)
            pngs, rows = _make_outputs(model, image, kinds, behind, review_below, level)
        except InputError as error:
            reason = str(error)
            return "skipped", reason if file.name in reason else f"{file}: {reason}"
        for folder, png in pngs.items():
            path = out / folder / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, png)
        manifest.add(name, sha256=sha256, **rows)
        return "predicted", ""

    with lock_folder(out, refusal):
        manifest = open_manifest(out, settings, overwrite)
        for kind in KINDS:
            remove_partial(out / kind)
        try:
            items = list(files.items())
            outcomes = map_in_threads(predict_image, items, "predicting", "image", WORKERS)
            with closing(outcomes):  # before the manifest is saved, also after an error
                for outcome, reason in outcomes:
                    counts[outcome] += 1
                    if outcome == "skipped":
                        log.warning("skipped: %s", reason)
        finally:
            manifest.save()
        _write_tables(manifest, kinds)
    return counts


def _describe_model(model: Model) -> dict[str, Any]:
    """Return everything of a model that masks depend on."""
    return {
        "networks": list(model.sha256),
        "threshold": model.threshold,
        "inference": asdict(model.inference),
    }


def _check_quality(
    model: Model, kinds: Collection[str], path: str | Path, review_below: float, level: float
) -> dict[str, Any] | None:
    """Return everything that quality.csv depends on, or warn that its columns will be empty."""
    if QUALITY not in kinds:
        return None
    if not 0 <= review_below <= 1:
        raise InputError(f"review_below={review_below}: expected a Dice between 0 and 1")
    stored = None
    if model.calibration is None:
        log.warning(
            "%s: no calibration was made of these networks with these settings of inference, so "
            "%s holds confidence alone; make it with %s, of their sweep of folds or of a run with "
            "val cases (and export again)",
            *(path, TABLES[QUALITY], format_command("calibrate", "SWEEP")),
        )
    else:
        model.calibration.lower_bound(1.0, level)
        content = json.dumps(model.calibration.to_json()).encode()
        stored = hashlib.sha256(content).hexdigest()
    return {"review_below": review_below, "level": level, "calibration": stored}


def _write_tables(manifest: Manifest, kinds: Collection[str]) -> None:
    """Write the tables of all finished images."""
    records = sorted(manifest.images.items())
    if INSTANCES in kinds:
        rows = ({"image": name} | row for name, done in records for row in done["instances"])
        write_csv(manifest.out / TABLES[INSTANCES], rows)
    if QUALITY in kinds:
        rated = [{"picture": name} | done["quality"] for name, done in records]
        write_csv(manifest.out / TABLES[QUALITY], rated)
        if manifest.settings["quality"]["calibration"]:
            log.info(
                "%d of %d masks to review, %d of them of images unlike the training images",
                sum(row["review"] for row in rated),
                len(rated),
                sum(not row["familiar"] for row in rated),
            )


def _make_outputs(
    model: Model,
    image: np.ndarray,
    kinds: Collection[str],
    background: np.ndarray | None,
    review_below: float,
    level: float,
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Predict an image: the content of its PNG files by folder, and its rows of the tables."""
    prob, classes = model.probabilities(image), model.classes
    mask = model.make_mask(prob)
    pngs, rows, quality = dict[str, bytes](), list[dict[str, Any]](), None
    if QUALITY in kinds:
        quality = model.measure_quality(image, prob, mask, level).to_row(review_below)
    if PROBABILITIES in kinds:
        scaled = np.rint(prob * 65535).astype(np.uint16)
        for class_name in classes.foreground.values():
            folder = f"{PROBABILITIES}/{class_name}" if classes.is_multiclass else PROBABILITIES
            pngs[folder] = encode_png(scaled[classes.names.index(class_name)])
    if OVERLAYS in kinds:
        overlay = draw_contours(image, mask, classes)
        if quality is not None and quality["review"]:
            overlay = draw_review_mark(overlay)
        pngs[OVERLAYS] = encode_png(overlay)
    if INSTANCES in kinds:
        instances = number_instances(mask)
        rows = measure_instances(instances, mask, prob, classes)
        pngs[INSTANCES] = encode_png(instances)
    if CUTOUTS in kinds:
        pngs[CUTOUTS] = encode_png(cut_out(image, mask > 0, background))
    # The mask is written last: where it exists, the other files do.
    pngs[MASKS] = encode_mask(mask, classes)
    return pngs, {"instances": rows, "quality": quality}


def _hash_image(file: Path) -> str:
    try:
        if file.is_file():  # opening a pipe would block
            return hash_file(file)
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); allow it") from error
    raise InputError(f"{file}: no such file; expected an image")
