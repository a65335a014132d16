"""The output folder of `predict`: its parts, and manifest.json, which lists finished images."""

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seglab.core.errors import InputError
from seglab.core.files import read_json, write_json

MASKS, PROBABILITIES, OVERLAYS = "masks", "probabilities", "overlays"
INSTANCES, CUTOUTS, QUALITY = "instances", "cutouts", "quality"
# Folders of the output; masks are always written.
KINDS = (PROBABILITIES, OVERLAYS, INSTANCES, CUTOUTS, MASKS)
TABLES = {INSTANCES: "instances.csv", QUALITY: "quality.csv"}
MANIFEST = "manifest.json"
# After a kill, at most this many finished images are predicted again.
SAVE_EVERY = 100


@dataclass
class Manifest:
    """What `predict` has written into a folder."""

    out: Path
    settings: dict[str, Any]  # that everything in the folder was made with
    # Of each finished image, by name: its file's `sha256`, its rows of the tables.
    images: dict[str, dict[str, Any]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def is_done(self, name: str, sha256: str, overwrite: bool) -> bool:
        """Whether an image has its outputs.

        Raises an InputError if they are of another version of it, and `overwrite` is False.
        """
        mask = self.out / MASKS / f"{name}.png"
        if name not in self.images or not mask.exists():
            return False
        is_same = bool(self.images[name]["sha256"] == sha256)
        if not is_same and not overwrite:
            raise InputError(
                f"{mask}: was made of another version of this image; replace it with --overwrite"
            )
        return is_same

    def add(self, name: str, **record: Any) -> None:
        """Add an image whose outputs have been written, see `images`; from any thread."""
        with self._lock:
            self.images[name] = record
            if len(self.images) % SAVE_EVERY == 0:
                self.save()

    def save(self) -> None:
        """Write manifest.json, with the images by name: threads finish them in any order."""
        images = dict(sorted(self.images.items()))
        write_json(self.out / MANIFEST, {**self.settings, "images": images})


def open_manifest(out: Path, settings: dict[str, Any], overwrite: bool) -> Manifest:
    """Read or begin the manifest of a folder.

    Where the folder holds outputs of other `settings`, which are JSON values, `overwrite` deletes
    them.

    Raises:
        InputError: `overwrite` is needed, or `predict` has not written what is in the folder.
    """
    file = out / MANIFEST
    outputs = [out / name for name in (*KINDS, *TABLES.values()) if (out / name).exists()]
    if file.exists():
        stored = read_json(file)
        if (
            not isinstance(stored, dict)
            or stored.keys() != {*settings, "images"}
            or not isinstance(stored["images"], dict)
        ):
            raise InputError(
                f"{file}: is no manifest of seglab predict; name another folder with --out"
            )
        images = stored.pop("images")
        if stored == settings:
            return Manifest(out, settings, images)
        if not overwrite:
            key = next(key for key in settings if stored[key] != settings[key])
            raise InputError(
                f"{file}: is of other {key}: {stored[key]}, not {settings[key]}; replace "
                "what is there with --overwrite, or name another folder with --out"
            )
        _delete_outputs(outputs, images)
    elif outputs:
        raise InputError(
            f"{outputs[0]}: is there already, without a {MANIFEST} of seglab predict; name another "
            "folder with --out"
        )
    manifest = Manifest(out, settings)
    manifest.save()
    return manifest


def _delete_outputs(outputs: list[Path], images: dict[str, dict[str, Any]]) -> None:
    """Delete the outputs of images. Other files in these folders stay; links are not followed."""
    for output in outputs:
        if output.is_symlink() or output.is_file():
            output.unlink()
            continue
        for file in list(output.rglob("*.png")):
            name = file.relative_to(output).with_suffix("").as_posix()
            if name in images or name.partition("/")[2] in images:  # probabilities/CLASS/NAME.png
                file.unlink()
