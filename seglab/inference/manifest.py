"""The output folder of `predict`: where outputs lie, and manifest.json, which lists them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from seglab.core.errors import InputError
from seglab.core.files import read_json, write_json
from seglab.data.classes import Classes
from seglab.inference.models import Model

MASKS, PROBABILITIES, OVERLAYS = "masks", "probabilities", "overlays"
INSTANCES, CUTOUTS = "instances", "cutouts"
# The outputs that can be chosen; masks are always written.
EXTRAS = (PROBABILITIES, OVERLAYS, INSTANCES, CUTOUTS)
KINDS = (*EXTRAS, MASKS)
TABLE = "instances.csv"
MANIFEST = "manifest.json"
FORMAT = 1
SAVE_SECONDS = 5.0


def output_folders(classes: Classes, kinds: Sequence[str]) -> list[str]:
    """List the folders of some kinds of output: one each, one for each class of probabilities."""
    folders = []
    for kind in KINDS:
        if kind == PROBABILITIES and kind in kinds and classes.is_multiclass:
            folders += [f"{kind}/{class_name}" for class_name in classes.foreground.values()]
        elif kind in kinds:
            folders.append(kind)
    return folders


def prediction_settings(model: Model, cutouts: str | None) -> dict[str, Any]:
    """Collect what decides the outputs, apart from the image.

    Args:
        model: The network or ensemble.
        cutouts: 'transparent', the background's SHA-256, or None where there are no cut-outs.
    """
    return {
        "format": FORMAT,
        "networks": list(model.sha256),
        "threshold": model.threshold,
        "inference": asdict(model.inference),
        "cutouts": cutouts,
    }


@dataclass
class Manifest:
    """What `predict` has written into a folder.

    It is saved every few seconds; what a killed process had written since then is predicted again.

    Attributes:
        out: The folder.
        settings: The one set of settings that everything in the folder was made with.
        images: For each image, by name: its file's `sha256`, its `outputs` as folders below `out`,
            and its rows of instances.csv under `instances`.
    """

    out: Path
    settings: dict[str, Any]
    images: dict[str, dict[str, Any]] = field(default_factory=dict)
    saved_at: float = 0.0

    def output_file(self, folder: str, name: str) -> Path:
        """Return the path of an output."""
        return self.out / folder / f"{name}.png"

    def find_missing(
        self, name: str, sha256: str, folders: Sequence[str], overwrite: bool
    ) -> list[str]:
        """List the folders in which an image's output is not there yet.

        Raises:
            InputError: The outputs are of another image, and may not be overwritten.
        """
        record = self.images.get(name, {"sha256": sha256, "outputs": []})
        if record["sha256"] != sha256:
            if not overwrite:
                raise InputError(
                    f"{self.output_file(MASKS, name)}: was made of another version of this image; "
                    "replace it with --overwrite"
                )
            self.remove(name)
            return list(folders)
        return [
            folder
            for folder in folders
            if folder not in record["outputs"] or not self.output_file(folder, name).exists()
        ]

    def add(
        self, name: str, sha256: str, folders: Sequence[str], rows: list[dict[str, Any]] | None
    ) -> None:
        """Add outputs of an image that have been written, and its instances where measured."""
        record = self.images.setdefault(name, {"sha256": sha256, "outputs": [], "instances": []})
        record["outputs"] = sorted({*record["outputs"], *folders})
        if rows is not None:
            record["instances"] = rows
        if time.monotonic() - self.saved_at > SAVE_SECONDS:
            self.save()

    def remove(self, name: str) -> None:
        """Delete all outputs of an image."""
        for folder in self.images.pop(name)["outputs"]:
            self.output_file(folder, name).unlink(missing_ok=True)

    def save(self) -> None:
        """Write manifest.json."""
        write_json(self.out / MANIFEST, {**self.settings, "images": self.images})
        self.saved_at = time.monotonic()

    def instance_rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of instances.csv."""
        for name in sorted(self.images):
            for row in self.images[name]["instances"]:
                yield {"image": name, **row}


def open_manifest(
    out: Path, settings: dict[str, Any], planned: Sequence[Path], overwrite: bool
) -> Manifest:
    """Read or begin the manifest of a folder.

    Args:
        out: The folder.
        settings: Of `prediction_settings`. Without cut-outs in them, those of the folder stay.
        planned: Files that will be written.
        overwrite: Whether to begin anew where the folder was made with other settings, whose
            outputs are then deleted, or holds files that `predict` has not written.

    Raises:
        InputError: `overwrite` is needed.
    """
    file = out / MANIFEST
    manifest = Manifest(out, settings)
    if not os.path.lexists(file):
        in_the_way = next(filter(os.path.lexists, planned), None)
        if in_the_way is not None and not overwrite:
            raise InputError(
                f"{in_the_way}: is there already, and {file.name} does not list it; replace it "
                "with --overwrite, or name another folder with --out"
            )
        manifest.save()
        return manifest
    try:
        stored = _read_manifest(file)
    except InputError:
        if not overwrite:
            raise
        stored = manifest
    before, now = stored.settings, manifest.settings
    for one, other in ((before, now), (now, before)):
        one["cutouts"] = one.get("cutouts") or other.get("cutouts")
    if before == now:
        manifest.images = stored.images
    elif overwrite:
        for name in list(stored.images):
            stored.remove(name)
        (out / TABLE).unlink(missing_ok=True)
    else:
        key = next(key for key in now if before.get(key) != now[key])
        raise InputError(
            f"{file}: is of other {key}: {before.get(key)}, not {now[key]}; replace what is there "
            "with --overwrite, or name another folder with --out"
        )
    manifest.save()
    return manifest


def _read_manifest(file: Path) -> Manifest:
    stored = read_json(file)
    images = stored.pop("images", None) if isinstance(stored, dict) else None
    if not isinstance(images, dict) or not all(_is_record(*item) for item in images.items()):
        raise InputError(
            f"{file}: is no manifest of predict.py; replace what is there with --overwrite, or "
            "name another folder with --out"
        )
    return Manifest(file.parent, stored, images)


def _is_record(name: str, record: Any) -> bool:
    """Whether a record is complete and names outputs below the folder alone."""
    if not isinstance(record, dict) or record.keys() != {"sha256", "outputs", "instances"}:
        return False
    outputs, rows = record["outputs"], record["instances"]
    if not isinstance(outputs, list) or not isinstance(rows, list):
        return False
    folders = [PurePosixPath(str(folder)) for folder in outputs]
    return (
        not PurePosixPath(name).is_absolute()
        and ".." not in PurePosixPath(name).parts
        and all(folder.parts[:1] and folder.parts[0] in KINDS for folder in folders)
        and not any(".." in folder.parts for folder in folders)
        and all(isinstance(row, dict) for row in rows)
    )
