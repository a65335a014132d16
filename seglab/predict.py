"""From a trained network and pictures of anyone to masks, and what is made of them."""

from __future__ import annotations

import glob
import io
import json
import logging
import os
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin
from tqdm import tqdm

from seglab.data.images import SUFFIXES, read_image
from seglab.errors import InputError, find_input_error
from seglab.files import hash_of_file, locked, remove_partial, write_csv, write_whole
from seglab.masks import clean, draw_contours, measure_instances, number_instances, soft_mask
from seglab.models import Model, ensemble, open_model

log = logging.getLogger(__name__)

# What is taken from folders; a file that is named itself may have any name.
IMAGES = (*SUFFIXES, ".gif", ".jp2", ".pgm", ".ppm", ".webp")
MASKS, PROBABILITIES, OVERLAYS = "masks", "probabilities", "overlays"
INSTANCES, CUTOUTS = "instances", "cutouts"
EXTRAS = (PROBABILITIES, OVERLAYS, INSTANCES, CUTOUTS)
# Keywords of every PNG's text, by which it is told what it was made of.
_MADE_OF, _ROWS = "seglab", "seglab instances"


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
    """Writes a lesion mask for each picture, at the picture's own resolution.

    `out/masks/NAME.png` is 255 in lesion and 0 elsewhere. NAME is the picture's, with its folders
    below the one that all pictures share. Started again, it goes on where it stopped: a file that
    was made of the same network, settings and picture is left as it is.

    Args:
        paths: As `seglab.models.open_model` reads; several are an ensemble.
        images: Files, folders, which are searched to any depth, and patterns with * and **.
        out: Where to write.
        extras: Of `EXTRAS`. `probabilities/NAME.png` holds them as 0 to 65535 in 16 bits.
            `overlays/NAME.png` is the picture with the mask's outline. `instances/NAME.png`
            numbers connected lesions in 16 bits, and `instances.csv` measures them, as
            `seglab.masks.measure_instances` names it. `cutouts/NAME.png` is the picture within
            the mask, transparent elsewhere.
        background: A picture to put behind each cut-out, filling it.
        overwrite: Replace files that were made of something else.
        trust: As in `open_model`.
        inference: `tta`, `largest_component` and `fill_holes`, as in `open_model`.

    Returns:
        How many pictures were `predicted`, were `there` already, and were `skipped` because they
        cannot be read; why is in the log.

    Raises:
        InputError: A network cannot be read, there is no picture, two would be written to one
            name, or files that were made of something else are in the way.
        OSError: A file cannot be written.
    """
    out = Path(out)
    unknown = set(extras) - set(EXTRAS)
    if unknown:
        raise InputError(f"{min(unknown)}: expected of {', '.join(EXTRAS)}")
    names = find_images(images, out)
    if background is not None:
        extras = [*extras, CUTOUTS]
    kinds = [kind for kind in (*EXTRAS, MASKS) if kind == MASKS or kind in extras]
    model = ensemble([open_model(path, trust, **inference) for path in paths])
    made_of = {
        "networks": list(model.sha256),
        "threshold": model.threshold,
        "inference": asdict(model.inference),
    }
    behind = None
    if background is not None:
        behind = Image.fromarray(read_image(background))
        made_of["background"] = hash_of_file(background)
    if not overwrite:
        _refuse_others(out, kinds, names, made_of)
    counts = dict.fromkeys(("predicted", "there", "skipped"), 0)
    refusal = f"{out}: another process is writing here; wait for it, or name another with --out"
    with locked(out, refusal, "--out"):
        remove_partial(out)
        for name, image in tqdm(
            names.items(), "predicting", unit="picture", disable=None, dynamic_ncols=True
        ):
            files = {kind: out / kind / f"{name}.png" for kind in kinds}
            try:
                own = made_of | {"image": hash_of_file(image)}
                missing = [k for k, file in files.items() if overwrite or _made_of(file) != own]
                if not missing:
                    counts["there"] += 1
                    continue
                for kind in missing:
                    if files[kind].exists() and _made_of(files[kind]) != own and not overwrite:
                        raise InputError(
                            f"{files[kind]}: is of another picture than {image} is now; replace "
                            "it with --overwrite"
                        )
                made = _make(model, read_image(image), missing, behind)
            except (InputError, OSError) as error:
                reason = find_input_error(error) or str(error)
                log.warning("skipped: %s", reason if str(image) in reason else f"{image}: {reason}")
                counts["skipped"] += 1
                continue
            # Masks come last: where one is, all is.
            for kind, (picture, text) in made.items():
                files[kind].parent.mkdir(parents=True, exist_ok=True)
                write_whole(files[kind], _png(picture, {_MADE_OF: json.dumps(own)} | text))
            counts["predicted"] += 1
        if INSTANCES in kinds:
            write_csv(out / f"{INSTANCES}.csv", _read_instances(out / INSTANCES, names))
    return counts


def find_images(images: Sequence[str | Path], out: str | Path) -> dict[str, Path]:
    """Finds pictures, and names them.

    Args:
        images: As in `predict`.
        out: What lies there is not searched.

    Returns:
        Pictures by name, sorted: the path below the folder that they share, without suffix; with
        it where two would have one name, on any file system.

    Raises:
        InputError: Nothing is there, or two have one name all the same.
    """
    out = _absolute(out)
    own = {out, *(out / kind for kind in (*EXTRAS, MASKS))}
    folders, files = set[Path](), dict[Path, None]()
    for given in map(str, images):
        found = [given] if os.path.lexists(given) else glob.glob(given, recursive=True)  # noqa: PTH207
        paths = sorted(_absolute(path) for path in found if os.path.lexists(path))
        if not paths:
            raise InputError(f"{given}: not there; expected a picture, a folder or a pattern")
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
    by_name = defaultdict[str, list[Path]](list)
    for file in files:
        by_name[_alike(file.relative_to(shared).with_suffix(""))].append(file)
    named = [
        ((name if len(same) > 1 else name.with_suffix("")).as_posix(), file)
        for same in by_name.values()
        for name, file in ((file.relative_to(shared), file) for file in same)
    ]
    written: dict[str, Path] = {}
    for name, file in named:
        other = written.setdefault(_alike(name), file)
        if other != file:
            raise InputError(
                f"{file}: would be written to the same name as {other}; rename one, or name them "
                "in two commands"
            )
    return dict(sorted(named))


def _absolute(path: str | Path) -> Path:
    """Without '..', which no name can hold."""
    return Path(os.path.abspath(path))  # noqa: PTH100


def _pictures_in(folder: Path, own: set[Path]) -> Iterator[Path]:
    """All pictures below a folder; links to folders are not followed, hidden ones not entered."""

    def unreadable(error: OSError) -> None:
        raise error

    for parent, below, files in os.walk(folder, onerror=unreadable):
        below[:] = sorted(b for b in below if not b.startswith(".") and Path(parent, b) not in own)
        for name in sorted(files):
            if not name.startswith(".") and name.lower().endswith(IMAGES):
                yield Path(parent, name)


def _alike(name: str | Path) -> str:
    """Equal for names that some file system takes for one."""
    return unicodedata.normalize("NFC", str(name)).casefold()


def _refuse_others(
    out: Path, kinds: Sequence[str], names: dict[str, Path], made_of: dict[str, Any]
) -> None:
    """Refuses to begin where files of another network, other settings, or of others lie."""
    for kind in kinds:
        for name in names:
            file = out / kind / f"{name}.png"
            if file.exists():
                then = _made_of(file)
                if {key: value for key, value in then.items() if key != "image"} != made_of:
                    raise InputError(
                        f"{file}: is there already, of another network or settings; replace it "
                        "with --overwrite, or name another folder with --out"
                    )


def _make(
    model: Model, image: np.ndarray, kinds: Sequence[str], behind: Image.Image | None
) -> dict[str, tuple[np.ndarray, dict[str, str]]]:
    """The pictures of some kinds, each with texts to be stored in it."""
    prob = model.predict(image)
    if not np.isfinite(prob).all():
        raise InputError("the network gives no number for some pixels; its weights are ruined")
    mask = clean(prob > model.threshold, **model.inference.cleaning)
    makers: dict[str, Callable[[], tuple[np.ndarray, dict[str, str]]]] = {
        PROBABILITIES: lambda: (np.rint(prob * 65535).astype(np.uint16), {}),
        OVERLAYS: lambda: (draw_contours(image, mask), {}),
        INSTANCES: lambda: _instances(mask, prob),
        CUTOUTS: lambda: (_cut_out(image, mask, behind), {}),
        MASKS: lambda: (mask * np.uint8(255), {}),
    }
    return {kind: makers[kind]() for kind in kinds}


def _instances(mask: np.ndarray, prob: np.ndarray) -> tuple[np.ndarray, dict[str, str]]:
    instances = number_instances(mask)
    return instances, {_ROWS: json.dumps(measure_instances(instances, prob))}


def _cut_out(image: np.ndarray, mask: np.ndarray, behind: Image.Image | None) -> np.ndarray:
    opacity = soft_mask(mask)
    if behind is None:
        return np.dstack([image, opacity])
    height, width = mask.shape
    below = ImageOps.fit(behind, (width, height), Image.Resampling.LANCZOS)
    return np.asarray(Image.composite(Image.fromarray(image), below, Image.fromarray(opacity)))


def _png(picture: np.ndarray, texts: dict[str, str]) -> bytes:
    info = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        info.add_itxt(key, text)
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "PNG", pnginfo=info)
    return data.getvalue()


def _text(file: Path, key: str) -> Any:
    """What a PNG of `_png` says of itself; None where it says nothing."""
    try:
        with Image.open(file, formats=["PNG"]) as picture:
            return json.loads(picture.info[key])
    except (OSError, ValueError, KeyError, SyntaxError):
        return None


def _made_of(file: Path) -> dict[str, Any]:
    stored = _text(file, _MADE_OF) if file.exists() else None
    return stored if isinstance(stored, dict) else {}


def _read_instances(folder: Path, names: dict[str, Path]) -> list[dict[str, Any]]:
    """The rows of instances.csv, of all pictures that were predicted, now or before."""
    return [
        {"image": name} | row
        for name in names
        for row in _text(folder / f"{name}.png", _ROWS) or []
    ]
