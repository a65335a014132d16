"""Finding images, and naming their outputs."""

from __future__ import annotations

import shutil
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from seglab.core.errors import InputError
from seglab.inference.image_files import find_images


def test_names_never_collide(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for name in ("a/one.jpg", "b/Two.png"):
        Image.new("RGB", (8, 8)).save(pictures / name)
    named = find_images([pictures], out)
    assert sorted(named) == [
        *("a/deep/one", "a/one.jpg", "a/one.png", "b/Two.png", "b/three", "b/two.jpg")
    ]
    # What is given as files keeps the folders below the one that they share.
    files = [pictures / "a" / "one.png", pictures / "a" / "deep" / "one.png"]
    assert find_images(files, out) == {"one": files[0], "deep/one": files[1]}
    assert find_images([files[1], files[1].parent], out) == {"one": files[1]}
    # Two alike, whose full names a third one has without its suffix; and a folder in the way.
    tricky = tmp_path / "tricky"
    (tricky / "y.png").mkdir(parents=True)
    for name in ("x.png", "x.jpg", "x.jpg.bmp", "y.jpg", "y.png/z.jpg"):
        Image.new("RGB", (8, 8)).save(tricky / name)
    named = find_images([tricky], out)
    assert sorted(named) == ["x.jpg", "x.jpg~2", "x.png", "y.png/z", "y~2"]
    assert len(set(named.values())) == 5
    # Names that are one where capitals do not count, or accents are written in two ways.
    for name in ("A.png", "a.png", "\u00e9.png", "e\u0301.png"):
        (tmp_path / "alike" / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "alike" / name)
    named = find_images([tmp_path / "alike"], out)
    there = len(list((tmp_path / "alike").iterdir()))  # 2 where the file system thinks so
    assert len({unicodedata.normalize("NFC", name).casefold() for name in named}) == there


def test_patterns_and_what_is_not_there(pictures: Path, tmp_path: Path) -> None:
    out = pictures / "out"
    (out / "masks").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(out / "masks" / "old.png")
    everything = find_images([pictures], out)
    assert sorted(everything) == ["a/deep/one", "a/one", "b/three", "b/two"]
    assert sorted(find_images([f"{pictures}/**/*.png"], tmp_path)) == [
        "a/deep/one",
        "a/one",
        "out/masks/old",
    ]
    assert sorted(find_images([f"{pictures}/**/*.png"], out)) == ["deep/one", "one"]
    (tmp_path / "link").symlink_to(pictures)
    assert len(find_images([tmp_path / "link"], out)) == len(everything)
    predicted = pictures / "masks" / "a" / "one.png"
    predicted.parent.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(predicted)
    assert sorted(find_images([pictures], pictures)) == [*everything, "out/masks/old"]
    shutil.rmtree(pictures / "masks")
    odd = pictures / "[odd] *.png"
    Image.new("RGB", (8, 8)).save(odd)
    assert find_images([odd], out) == {"[odd] *": odd}  # a file before a pattern
    for nothing in (pictures / "*.webp", pictures / "nowhere", tmp_path / "no" / "**"):
        with pytest.raises(InputError, match=r"not there; expected an image, a folder"):
            find_images([nothing], out)
    (tmp_path / "bare").mkdir()
    with pytest.raises(InputError, match=r"bare: no image in it"):
        find_images([tmp_path / "bare"], out)
