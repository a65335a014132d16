"""From a trained network and pictures of anyone to masks, and what is made of them."""

from __future__ import annotations

import contextlib
import errno
import glob
import io
import itertools
import json
import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin
from tqdm import tqdm

from seglab.core.errors import InputError, find_input_error
from seglab.core.files import hash_file, lock_folder, remove_partial, write_atomic, write_csv
from seglab.data.classes import Classes
from seglab.data.images import SUFFIXES, read_image
from seglab.inference.models import Model, ensemble, open_model, refuse_twice
from seglab.inference.postprocessing import (
    draw_contours,
    measure_instances,
    number_instances,
    soft_mask,
)

log = logging.getLogger(__name__)

# What is taken from folders; a file that is named itself may have any name.
IMAGES = (
    *SUFFIXES,
    *(".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".pbm", ".pgm", ".pnm", ".ppm", ".webp"),
)
MASKS, PROBABILITIES, OVERLAYS = "masks", "probabilities", "overlays"
INSTANCES, CUTOUTS = "instances", "cutouts"
EXTRAS = (PROBABILITIES, OVERLAYS, INSTANCES, CUTOUTS)
# Masks come last: where one is, all is.
KINDS = (*EXTRAS, MASKS)
# Keywords of every PNG's text, by which it is told what it was made of.
_MADE_OF, _ROWS = "seglab", "seglab instances"
_TABLE = "instances.csv"


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
    """Writes a mask for each picture, at the picture's own resolution.

    `out/masks/NAME.png` is 255 in lesion and 0 elsewhere; of several classes it holds their
    numbers, as indices into a palette. NAME is the picture's, with its folders
    below the one that all pictures share. Started again, it goes on where it stopped: a file that
    was made of the same network, settings and picture is left as it is.

    Args:
        paths: As `seglab.inference.models.open_model` reads; several are an ensemble.
        images: Files, folders, which are searched to any depth, and patterns with * and **.
        out: Where to write.
        extras: Of `EXTRAS`. `probabilities/NAME.png` holds them as 0 to 65535 in 16 bits; of
            several classes `probabilities/CLASS/NAME.png`, of each but background.
            `overlays/NAME.png` is the picture with the mask's outline. `instances/NAME.png`
            numbers connected lesions in 16 bits, and `instances.csv` measures them, as
            `seglab.inference.postprocessing.measure_instances` names it. `cutouts/NAME.png` is the picture within
            the mask, transparent elsewhere.
        background: A picture to put behind each cut-out, filling it.
        overwrite: Replace files that were made of something else; what else there is of such a
            picture is removed, since it belongs to another mask.
        trust: As in `open_model`.
        inference: `tta`, `largest_component` and `fill_holes`, as in `open_model`.

    Returns:
        How many pictures were `predicted`, were `there` already, and were `skipped` because they
        cannot be read; why is in the log.

    Raises:
        InputError: A network cannot be read, there is no picture, or files that were made of
            something else are in the way.
        OSError: A file cannot be written.
    """
    out = Path(out)
    unknown = set(extras) - set(EXTRAS)
    if unknown:
        raise InputError(f"{min(unknown)}: expected of {', '.join(EXTRAS)}")
    received_signal = {MASKS, *extras, *([] if background is None else [CUTOUTS])}
    names = find_images(images, out)
    refuse_twice(paths)
    model = ensemble([open_model(path, trust, **inference) for path in paths])
    settings = {
        "networks": list(model.sha256),
        "threshold": model.threshold,
        "inference": asdict(model.inference),
    }
    kinds = _kinds(model.classes)
    made_of = {kind: settings for kind in kinds if kind.split("/")[0] in received_signal}
    behind = None
    if background is not None:
        made_of[CUTOUTS] = settings | {"background": _hash(Path(background))}
        behind = Image.fromarray(read_image(background))
    if not overwrite:
        _refuse_others(out, made_of, names)
    counts = dict.fromkeys(("predicted", "there", "skipped"), 0)
    refusal = f"{out}: another process is writing here; wait for it, or name another with --out"
    with lock_folder(out, refusal, "--out"):
        for kind in kinds:
            remove_partial(out / kind)
        for name, image in tqdm(
            names.items(), "predicting", unit="picture", disable=None, dynamic_ncols=True
        ):
            files = {kind: out / kind / f"{name}.png" for kind in made_of}
            try:
                sha256 = _hash(image)
                own = {kind: made_of[kind] | {"image": sha256} for kind in files}
                missing = [kind for kind, file in files.items() if _made_of(file) != own[kind]]
                in_the_way = [files[kind] for kind in missing if files[kind].exists()]
                if in_the_way and not overwrite:
                    raise InputError(
                        f"{in_the_way[0]}: is of another picture than {image} is now; replace it "
                        "with --overwrite"
                    )
                made = _make(model, read_image(image), missing, behind) if missing else {}
                if in_the_way:
                    _remove_others(out, name, kinds, settings | {"image": sha256})
                for kind, (picture, text) in made.items():
                    files[kind].parent.mkdir(parents=True, exist_ok=True)
                    text = {_MADE_OF: json.dumps(own[kind])} | text
                    indexed = kind == MASKS and model.classes.is_multiclass
                    palette = model.classes.palette if indexed else None
                    write_atomic(files[kind], _png(picture, text, palette))
                counts["predicted" if made else "there"] += 1
            except (InputError, OSError) as error:
                if isinstance(error, OSError) and error.errno != errno.ENAMETOOLONG:
                    raise
                reason = " ".join((find_input_error(error) or str(error)).split())
                log.warning("skipped: %s", reason if image.name in reason else f"{image}: {reason}")
                counts["skipped"] += 1
        if INSTANCES in made_of:
            write_csv(out / _TABLE, _read_instances(out / INSTANCES))
    return counts


def _kinds(classes: Classes) -> list[str]:
    """`KINDS`, as folders."""
    own = [f"{PROBABILITIES}/{name}" for name in classes.names[1:]] or [PROBABILITIES]
    return [folder for kind in KINDS for folder in (own if kind == PROBABILITIES else [kind])]


def find_images(images: Sequence[str | Path], out: str | Path | None = None) -> dict[str, Path]:
    """Finds pictures, and names them.

    Args:
        images: As in `predict`.
        out: Where `predict` writes: its own files are no pictures, unless they are named.

    Returns:
        Pictures by name: the path below the folder that they share, without suffix; with it where
        two would have one name on any file system, and numbered where they still would.

    Raises:
        InputError: Nothing is there.
    """
    own = set() if out is None else {os.path.realpath(Path(out, kind)) for kind in KINDS}
    folders, files = set[Path](), dict[Path, None]()
    for given in map(str, images):
        if os.path.lexists(given):
            paths = [_absolute(given)]
        else:
            matches = map(_absolute, sorted(glob.glob(given, recursive=True)))  # noqa: PTH207
            paths = [
                path
                for path in matches
                if os.path.lexists(path) and own.isdisjoint(map(str, Path(path.resolve()).parents))
            ]
        if not paths:
            raise InputError(f"{given!r}: not there; expected a picture, a folder or a pattern")
        for path in paths:
            if path.is_dir():
                folders.add(path)
                files |= dict.fromkeys(_pictures_in(path, own))
            else:
                folders.add(path.parent)
                files[path] = None
    if not files:
        raise InputError(f"{', '.join(map(str, images))}: no picture in it ({', '.join(IMAGES)})")
    shared = os.path.commonpath(folders)
    relative = {file: file.relative_to(shared) for file in sorted(files)}
    stems = Counter(_alike(name.with_suffix("")) for name in relative.values())
    # A folder takes its name too, even one that looks like a picture.
    taken = {_alike(folder) for name in relative.values() for folder in name.parents}
    names: dict[str, Path] = {}
    for file, whole in relative.items():
        stem = whole.with_suffix("")
        first = whole if stems[_alike(stem)] > 1 else stem
        numbered = (f"{first.as_posix()}~{i}" for i in itertools.count(2))
        for name in itertools.chain([first.as_posix()], numbered):
            if _alike(f"{name}.png") not in taken:
                break
        taken.add(_alike(f"{name}.png"))
        names[name] = file
    return names


def _absolute(path: str | Path) -> Path:
    """Without '..', which no name can hold."""
    return Path(os.path.abspath(path))  # noqa: PTH100


def _pictures_in(folder: Path, own: set[str]) -> Iterator[Path]:
    """All pictures below a folder, and folders that cannot be read.

    Links to folders are not followed, hidden ones not entered.
    """
    unreadable: list[Path] = []
    for parent, below, files in os.walk(folder, onerror=lambda e: unreadable.append(e.filename)):
        if os.path.realpath(parent) in own:
            below.clear()
            continue
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in files:
            if not name.startswith(".") and name.lower().endswith(IMAGES):
                yield Path(parent, name)
    yield from map(Path, unreadable)


def _alike(name: str | Path) -> str:
    """Equal for names that some file system takes for one."""
    return unicodedata.normalize("NFC", str(name)).casefold()


def _hash(image: Path) -> str:
    if not image.is_file():  # a pipe would be waited on for ever
        what = "no such file" if not image.exists() else "a folder" if image.is_dir() else "no file"
        raise InputError(f"{image}: cannot be read ({what}); expected a picture")
    try:
        return hash_file(image)
    except OSError as error:
        raise InputError(f"{image}: cannot be read ({error.strerror}); allow it") from error


def _refuse_others(out: Path, made_of: dict[str, dict[str, Any]], names: dict[str, Path]) -> None:
    """Refuses to begin where files of another network, other settings, or of others lie."""
    for kind, settings in made_of.items():
        for file in (out / kind / f"{name}.png" for name in names):
            there = _made_of(file) if os.path.lexists(file) else settings
            if {key: value for key, value in there.items() if key != "image"} != settings:
                raise InputError(
                    f"{file}: is there already, of another network or settings; replace it with "
                    "--overwrite, or name another folder with --out"
                )
    table = out / _TABLE
    if INSTANCES in made_of and os.path.lexists(table) and not _is_ours(table):
        raise InputError(
            f"{table}: is there already, and no table of predict.py's; replace it with "
            "--overwrite, or name another folder with --out"
        )


def _is_ours(table: Path) -> bool:
    with contextlib.suppress(OSError, ValueError):
        first = table.open(encoding="utf-8").readline() if table.is_file() else "no file"
        return first.strip() == "" or first.startswith("image,lesion,")
    return False


def _remove_others(out: Path, name: str, kinds: Sequence[str], made_of: dict[str, Any]) -> None:
    """Removes what is of another mask: network, settings or picture were others."""
    for kind in kinds:
        file = out / kind / f"{name}.png"
        there = _made_of(file)
        if there and {key: there.get(key) for key in made_of} != made_of:
            file.unlink()
    # Those of a network that told other classes apart.
    for file in (out / PROBABILITIES).glob(f"*/{glob.escape(name)}.png"):
        networks = _made_of(file).get("networks")
        if networks is not None and networks != made_of["networks"]:
            file.unlink()


def _make(
    model: Model, image: np.ndarray, kinds: Sequence[str], behind: Image.Image | None
) -> dict[str, tuple[np.ndarray, dict[str, str]]]:
    """The pictures of some kinds, each with texts to be stored in it."""
    prob = model.predict(image)
    if not np.isfinite(prob).all():
        raise InputError("the network gives no number for some pixels; its weights are ruined")
    classes = model.classes
    mask = model.make_mask(prob)
    made: dict[str, tuple[np.ndarray, dict[str, str]]] = {}
    for kind in kinds:
        text = {}
        if kind.startswith(PROBABILITIES):
            own = classes.names.index(kind.split("/")[1]) if classes.is_multiclass else 0
            picture = np.rint(prob[own] * 65535).astype(np.uint16)
        elif kind == OVERLAYS:
            picture = draw_contours(image, mask, classes)
        elif kind == INSTANCES:
            picture = number_instances(mask)
            text = {_ROWS: json.dumps(measure_instances(picture, mask, prob, classes))}
        elif kind == CUTOUTS:
            picture = _cut_out(image, mask > 0, behind)
        else:
            picture = mask if classes.is_multiclass else mask * np.uint8(255)
        made[kind] = picture, text
    return made


def _cut_out(image: np.ndarray, mask: np.ndarray, behind: Image.Image | None) -> np.ndarray:
    opacity = soft_mask(mask)
    if behind is None:
        return np.dstack([image, opacity])
    height, width = mask.shape
    below = ImageOps.fit(behind, (width, height), Image.Resampling.LANCZOS)
    return np.asarray(Image.composite(Image.fromarray(image), below, Image.fromarray(opacity)))


def _png(picture: np.ndarray, texts: dict[str, str], palette: np.ndarray | None = None) -> bytes:
    info = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        info.add_itxt(key, text)
    data = io.BytesIO()
    png = Image.fromarray(picture)
    if palette is not None:
        png.putpalette(palette.tobytes())
    png.save(data, "PNG", pnginfo=info)
    return data.getvalue()


def _text(file: Path, key: str) -> Any:
    """What a PNG of `_png` says of itself; None where it says nothing."""
    if not file.is_file():
        return None
    try:
        with Image.open(file, formats=["PNG"]) as picture:
            return json.loads(picture.info[key])
    except Exception:  # a file of anyone
        return None


def _made_of(file: Path) -> dict[str, Any]:
    stored = _text(file, _MADE_OF)
    return stored if isinstance(stored, dict) else {}


def _read_instances(folder: Path) -> list[dict[str, Any]]:
    """The rows of instances.csv: of all that lie there."""
    files = {
        file.relative_to(folder).with_suffix("").as_posix(): file for file in folder.rglob("*.png")
    }
    return [
        {"image": name} | row for name in sorted(files) for row in _text(files[name], _ROWS) or []
    ]
