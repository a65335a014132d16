"""Equal and nearly equal pictures are found, and different ones are not taken for equal."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter
from scipy.ndimage import gaussian_filter

from seglab.core.errors import InputError
from seglab.core.files import write_json
from seglab.data.cache import open_cache
from seglab.data.checker import check_data
from seglab.data.datamodule import SegmentationDataModule
from seglab.data.duplicates import same_pictures, thumbnail
from seglab.data.images import read_image
from seglab.data.layouts import find_cases
from seglab.data.splits import load_split, make_split


def picture(seed: int) -> np.ndarray:
    """Smooth blotches without any symmetry, like no other seed's."""
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(90, 120, 3)), (6, 6, 0))
    return np.clip(120 + 40 * noise / noise.std(), 0, 255).astype(np.uint8)


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def reencoded(image: np.ndarray) -> np.ndarray:
    return np.asarray(jpeg(Image.fromarray(image), 30))


def halved(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((60, 45), Image.Resampling.BICUBIC))


def groups_of(images: Sequence[np.ndarray]) -> list[int]:
    return same_pictures(np.stack([thumbnail(image) for image in images]))


def test_different_pictures_are_not_the_same() -> None:
    assert groups_of([picture(seed) for seed in range(40)]) == list(range(40))


def test_similar_pictures_are_not_the_same() -> None:
    """Gradients of two lesions in the middle of the skin correlate, but below 0.9."""

    def mixed(share: float) -> np.ndarray:
        return np.clip(picture(0) + share * (picture(1) - 120.0), 0, 255).astype(np.uint8)

    assert groups_of([picture(0), mixed(0.7)]) == [0, 1]
    assert groups_of([picture(0), mixed(0.3)]) == [0, 0]


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "equal": lambda image: image.copy(),
    "re-encoded": reencoded,
    "halved": halved,
    "brightened": lambda image: np.clip(image * 1.2, 0, 255).astype(np.uint8),
    "mirrored": lambda image: image[:, ::-1],
    "upside down": lambda image: image[::-1],
    "turned by 90": lambda image: np.rot90(image),
    "turned by 180": lambda image: np.rot90(image, 2),
    "turned by 270": lambda image: np.rot90(image, 3),
    "transposed": lambda image: image.swapaxes(0, 1),
    "transposed the other way": lambda image: np.rot90(image, 2).swapaxes(0, 1),
    "much": lambda image: reencoded(halved(np.rot90(image[:, ::-1]).copy())),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_same_picture_is_found(name: str) -> None:
    images = [picture(seed) for seed in range(6)]
    images.insert(4, np.ascontiguousarray(CHANGES[name](images[1])))
    assert groups_of(images) == [0, 1, 2, 3, 1, 5, 6]


def test_groups_are_transitive() -> None:
    """Each picture equals the next, so that all are one group, in any order."""
    images = [picture(0), picture(1)]
    images += [np.rot90(images[0]).copy(), reencoded(images[1]), halved(images[0])]
    images += [np.rot90(images[2]).copy()]
    assert groups_of(images) == [0, 1, 0, 1, 0, 0]
    assert groups_of(images[::-1]) == [0, 0, 2, 0, 2, 0]


def test_the_real_pictures_all_differ(ph2: Path) -> None:
    cases = find_cases(ph2)
    images = [read_image(case.image) for case in cases]
    assert groups_of(images) == list(range(len(cases)))
    planted = [np.rot90(reencoded(image)).copy() for image in images[:5]]
    assert groups_of(images + planted) == [*range(len(cases)), *range(5)]


def test_planted_copies_are_kept_together(tmp_path: Path) -> None:
    """Under other ids: grouped by the cache, in one part of every split, refused in a file."""
    for subfolder in ("images", "masks"):
        (tmp_path / "data" / subfolder).mkdir(parents=True)
    images = {f"case{seed}": picture(seed) for seed in range(12)}
    copies = {"case0": {"case0"}, "case5": {"case5"}}
    for id in copies:
        for name in ("re-encoded", "halved", "mirrored", "turned by 90", "brightened"):
            images[f"{name} {id}"] = np.ascontiguousarray(CHANGES[name](images[id]))
            copies[id].add(f"{name} {id}")
    for id, image in images.items():
        Image.fromarray(image).save(tmp_path / "data" / "images" / f"{id}.png")
        Image.new("1", image.shape[1::-1]).save(tmp_path / "data" / "masks" / f"{id}.png")
    cases = find_cases(tmp_path / "data")
    cache = open_cache(cases, 32, tmp_path / "cache")
    settings = [{"fold": None, "seed": seed} for seed in range(20)]
    settings += [{"fold": fold, "seed": 42} for fold in range(5)]
    for options in settings:
        split = make_split(cases, cache.groups, cache.sha256, val=0.2, test=0.2, **options)
        for ids in copies.values():
            assert any(ids <= set(subset) for subset in (split.train, split.val, split.test))
    path = tmp_path / "splits.json"
    for id in copies["case0"] - {"case0"}:
        write_json(path, {"train": ["case0", "case1"], "test": [id]})
        with pytest.raises(InputError, match=f"{id} in 'test' are of the same picture"):
            load_split(path, cases, cache.groups, cache.sha256)


def test_finding_duplicates_can_be_switched_off(tmp_path: Path) -> None:
    """Then only files of equal content are kept together; every message names the key."""
    root, size = tmp_path / "data", (64, 48)
    for subfolder in ("images", "masks"):
        (root / subfolder).mkdir(parents=True)
    for i in range(10):
        Image.new("1", size).save(root / "masks" / f"c{i}.png")
        # One picture, in nine files; c8 and c9 are equal files.
        copy = Image.fromarray(picture(0)).resize(size)
        copy.save(root / "images" / f"c{i}.jpg", quality=80 + min(i, 8))
    split = {"val": 0.2, "test": 0.3, "seed": 0, "fold": None, "folds": 5, "file": None}

    def load(**options: Any) -> SegmentationDataModule:
        data = SegmentationDataModule(
            find_cases, str(root), 32, 2, 2, str(tmp_path / "cache"), split, None, 0, 0, **options
        )
        data.setup()
        return data

    with pytest.raises(InputError, match=r"too few.*data.find_duplicates=false"):
        load()
    for split["seed"] in range(8):
        found = load(find_duplicates=False).split
        assert any({"c8", "c9"} <= set(part) for part in (found.train, found.val, found.test))
        assert (len(found.train), len(found.val), len(found.test)) in ((5, 1, 4), (6, 1, 3))
    write_json(tmp_path / "split.json", {"train": ["c0", "c8"], "test": ["c1"]})
    split["file"] = str(tmp_path / "split.json")
    with pytest.raises(InputError, match=r"same picture.*data.find_duplicates=false"):
        load()
    assert load(find_duplicates=False).split.test == ["c1"]
    (warning,) = [w for w in check_data(root).warnings if "--no-duplicates" in w]
    assert "data.find_duplicates=false" in warning and warning.startswith("c0, c1, c2")
    (warning,) = [w for w in check_data(root, find_duplicates=False).warnings if "equal" in w]
    assert warning.startswith("c8, c9: their image files are equal")


def test_blank_pictures_differ_by_brightness() -> None:
    levels = [0, 100, 255, 101, 100, 0]
    images = [np.full((9, 12, 3), level, np.uint8) for level in levels]
    assert groups_of([*images, picture(0)]) == [0, 1, 2, 3, 1, 0, 6]


def test_many_pictures_are_compared_in_parts() -> None:
    thumbnails = np.random.default_rng(0).integers(0, 256, (1030, 32, 32), np.uint8)
    thumbnails[1029] = thumbnails[3]
    thumbnails[1028] = thumbnails[1026].T
    expected = list(range(1030))
    expected[1029], expected[1028] = 3, 1026
    assert same_pictures(thumbnails) == expected


def cropped(image: Image.Image, share: float) -> Image.Image:
    x, y = round(image.width * share), round(image.height * share)
    return image.crop((x, y, image.width - x, image.height - y))


# How a picture may come into a data set twice, and at least how many of 140 copies are found.
COPIES: dict[str, tuple[Callable[[Image.Image], Image.Image], int]] = {
    "JPEG, quality 75": (lambda i: jpeg(i, 75), 140),
    "JPEG, quality 10": (lambda i: jpeg(i, 10), 140),
    "resized to 256 px": (lambda i: i.resize((256, 256)), 140),
    "resized to 128 px": (lambda i: i.resize((128, 128)), 140),
    "mirrored": (lambda i: i.transpose(Image.Transpose.FLIP_LEFT_RIGHT), 140),
    "turned by 90 degrees": (lambda i: i.transpose(Image.Transpose.ROTATE_90), 140),
    "brightened by 20 %": (lambda i: ImageEnhance.Brightness(i).enhance(1.2), 140),
    "brightened by 40 %": (lambda i: ImageEnhance.Brightness(i).enhance(1.4), 135),
    "contrast less 30 %": (lambda i: ImageEnhance.Contrast(i).enhance(0.7), 140),
    "blurred, 5 px": (lambda i: i.filter(ImageFilter.GaussianBlur(5)), 140),
    "all: q 30, 256 px, turned, brightened": (
        lambda i: ImageEnhance.Brightness(
            jpeg(i, 30).resize((256, 256)).transpose(Image.Transpose.ROTATE_90)
        ).enhance(1.2),
        140,
    ),
    "cropped by 1 % an edge": (lambda i: cropped(i, 0.01), 130),
    "cropped by 2 % an edge": (lambda i: cropped(i, 0.02), 0),
    "turned by 2 degrees": (lambda i: i.rotate(2, Image.Resampling.BILINEAR), 0),
}


@pytest.mark.long
def test_copies_of_real_pictures_are_found(ph2: Path) -> None:
    images = [Image.fromarray(read_image(case.image)) for case in find_cases(ph2)]
    n = len(images)
    thumbnails = [thumbnail(np.asarray(image)) for image in images]
    alarms = n - len(set(same_pictures(np.stack(thumbnails))))
    print(f"\n{n} pictures, {alarms} false alarms; copies found:")
    assert alarms == 0
    for what, (change, least) in COPIES.items():
        copies = [thumbnail(np.asarray(change(image).convert("RGB"))) for image in images]
        groups = same_pictures(np.stack(thumbnails + copies))
        found = sum(groups[n + i] == groups[i] for i in range(n))
        print(f"{found:4} of {n}  {what}")
        assert found >= least * n / 140, what
