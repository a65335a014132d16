"""Equal and nearly equal pictures are found, and different ones are not taken for equal."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter
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
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(180, 240, 3)), (12, 12, 0))
    return np.clip(120 + 40 * noise / noise.std(), 0, 255).astype(np.uint8)


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def reencoded(image: np.ndarray) -> np.ndarray:
    return np.asarray(jpeg(Image.fromarray(image), 30))


def halved(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((120, 90), Image.Resampling.BICUBIC))


def groups_of(images: Sequence[np.ndarray]) -> list[int]:
    return same_pictures(np.stack([thumbnail(image) for image in images]))


def test_no_pictures() -> None:
    assert same_pictures(np.array([])) == []


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
    "JPEG, quality 50": lambda image: np.asarray(jpeg(Image.fromarray(image), 50)),
    "halved": halved,
    "256 x 256": lambda image: np.asarray(Image.fromarray(image).resize((256, 256))),
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


def lesion(seed: int, contrast: float = 40, texture: float = 8) -> np.ndarray:
    """Skin with a dark ellipse, noise and a few hairs, as a dermatoscope shows it."""
    rng = np.random.default_rng(seed)
    cy, cx, ry, rx = rng.uniform((80, 100, 25, 25), (160, 220, 70, 80))
    dark = ((Y - cy) / ry) ** 2 + ((X - cx) / rx) ** 2 < 1
    coarse = gaussian_filter(rng.normal(size=(240, 320)), 12)
    skin = rng.uniform((170, 120, 100), (230, 180, 160)) + rng.normal(0, 5, (240, 320, 3))
    image = skin + (texture * coarse / coarse.std() - contrast * dark)[..., None]
    drawn = Image.fromarray(image.clip(0, 255).astype(np.uint8))
    for _ in range(rng.integers(0, 4)):
        ends = rng.uniform(0, (320, 240), (2, 2))
        ImageDraw.Draw(drawn).line([*ends.ravel()], fill=(40, 30, 25), width=2)
    return np.asarray(drawn)


def in_a_disc(
    image: np.ndarray, seed: int = 0, varied: float = 0, radius: float = 115
) -> np.ndarray:
    """In a round black frame; its middle varies by a share of the width, its radius as much."""
    y, x, r = np.random.default_rng(seed).uniform(-varied, varied, 3)
    inside = np.hypot(Y - 120 - 320 * y, X - 160 - 320 * x) < radius * (1 + r)
    return np.where(inside[..., None], image, 0).astype(np.uint8)


def shaded(image: np.ndarray) -> np.ndarray:
    distance = np.hypot((Y - 120) / 240, (X - 160) / 320)
    return (image * (1 - distance**2)[..., None]).astype(np.uint8)


def ruled(image: np.ndarray) -> np.ndarray:
    """With a ruler below and a caption above."""
    drawn = Image.fromarray(image)
    draw = ImageDraw.Draw(drawn)
    draw.rectangle((0, 200, 320, 240), fill=(245, 245, 240))
    draw.rectangle((0, 0, 320, 24), fill=(0, 0, 0))
    draw.text((8, 6), "DermCam 2000   10x   2026-01-01", fill=(255, 255, 255))
    for i in range(64):
        draw.line((5 * i, 200, 5 * i, 210 if i % 5 else 225), fill=(0, 0, 0))
    return np.asarray(drawn)


def retina(seed: int) -> np.ndarray:
    """A shaded disc with a bright spot, from which vessels spread."""
    rng = np.random.default_rng(seed)
    drawn = Image.fromarray(shaded(np.full((240, 320, 3), (190, 90, 40), np.uint8)))
    draw = ImageDraw.Draw(drawn)
    start = np.array([160 + rng.choice([-1, 1]) * rng.uniform(45, 70), rng.uniform(108, 132)])
    for direction in rng.uniform(0, 2 * np.pi, 6):
        angles = direction + rng.normal(0, 0.25, 12).cumsum()
        steps = 12 * np.stack([np.cos(angles), np.sin(angles)], 1)
        draw.line([*(start + steps.cumsum(0)).ravel()], fill=(120, 30, 20), width=3)
    draw.ellipse([*(start - 13), *(start + 13)], fill=(250, 210, 130))
    return in_a_disc((np.asarray(drawn) + rng.normal(0, 2, (240, 320, 3))).clip(0, 255))


def darkened(image: np.ndarray, share: float) -> np.ndarray:
    return (image * share).astype(np.uint8)


def fluorescent(seed: int) -> np.ndarray:
    """Dim cells on black, with a scale bar that is in the same place in all pictures."""
    rng = np.random.default_rng(seed)
    grey = rng.poisson(4, (240, 320)).astype(float)
    for y, x in rng.uniform(0, (240, 320), (25, 2)):
        grey += 30 * np.exp(-((Y - y) ** 2 + (X - x) ** 2) / 72)
    grey[220:228, 230:310] = 255
    return np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


Y, X = np.mgrid[:240, :320]
# Sets of different pictures that have much in common, by the seed of a picture.
SETS: dict[str, Callable[[int], np.ndarray]] = {
    "framed, contrast 20": lambda seed: in_a_disc(lesion(seed, 20)),
    "framed, contrast 50": lambda seed: in_a_disc(lesion(seed, 50)),
    "framed, contrast 100": lambda seed: in_a_disc(lesion(seed, 100)),
    "frame varies by 2 %": lambda seed: in_a_disc(lesion(seed, 20), seed, 0.02),
    "small frame": lambda seed: in_a_disc(lesion(seed, 20), radius=70),
    "half framed": lambda seed: in_a_disc(lesion(seed)) if seed % 2 else lesion(seed),
    "two frames": lambda seed: in_a_disc(lesion(seed), radius=115 if seed % 2 else 90),
    "framed and shaded": lambda seed: in_a_disc(shaded(lesion(seed, 20))),
    "retinas": retina,
    "rulers": lambda seed: ruled(lesion(seed)),
}
# Skin of hardly any contrast, of which JPEG at quality 30 leaves too little to be found.
PALE_SETS: dict[str, Callable[[int], np.ndarray]] = {
    "pale": lambda seed: lesion(seed, 6, 2),
    "pale, framed": lambda seed: in_a_disc(lesion(seed, 6, 2)),
    "pale, shaded": lambda seed: shaded(lesion(seed, 6, 2)),
    "pale, rulers": lambda seed: ruled(lesion(seed, 6, 2)),
}

# Dark ones, of which JPEG at quality 30 leaves little, too.
DARK_SETS: dict[str, Callable[[int], np.ndarray]] = {
    "framed, at 25 %": lambda seed: darkened(in_a_disc(lesion(seed, 50)), 0.25),
    "framed, at 15 %": lambda seed: darkened(in_a_disc(lesion(seed, 50)), 0.15),
    "framed, at 5 %": lambda seed: darkened(in_a_disc(lesion(seed, 50)), 0.05),
    "retinas, at 25 %": lambda seed: darkened(retina(seed), 0.25),
    "rulers, at 25 %": lambda seed: darkened(SETS["rulers"](seed), 0.25),
    "scale bar": fluorescent,
    "scale bar, at 50 %": lambda seed: darkened(fluorescent(seed), 0.5),
}


@pytest.mark.parametrize("name", [*SETS, *PALE_SETS, *DARK_SETS])
def test_what_all_pictures_have_in_common_makes_none_the_same(name: str) -> None:
    draw = (SETS | PALE_SETS | DARK_SETS)[name]
    images = [draw(seed) for seed in range(12)]
    assert groups_of(images) == list(range(12))


@pytest.mark.parametrize("name", SETS)
def test_copies_are_found_in_a_set_that_has_much_in_common(name: str) -> None:
    images = [SETS[name](seed) for seed in range(4)]
    changes = ("re-encoded", "256 x 256", "brightened", "turned by 90", "mirrored", "much")
    copies = [np.ascontiguousarray(CHANGES[change](images[1])) for change in changes]
    assert groups_of(images + copies) == [0, 1, 2, 3] + [1] * len(copies)


DARK_CHANGES: dict[str, tuple[str, ...]] = {
    "framed, at 25 %": ("JPEG, quality 50", "halved", "256 x 256", "brightened", "turned by 90"),
    "framed, at 15 %": ("halved", "256 x 256", "turned by 90", "mirrored"),
    "retinas, at 25 %": ("halved", "256 x 256", "brightened", "turned by 90"),
    "rulers, at 25 %": ("JPEG, quality 50", "halved", "256 x 256", "brightened", "turned by 90"),
    "scale bar": ("JPEG, quality 50", "256 x 256", "turned by 90", "mirrored"),
}


@pytest.mark.parametrize("name", DARK_CHANGES)
def test_copies_are_found_in_a_dark_set(name: str) -> None:
    images = [DARK_SETS[name](seed) for seed in range(4)]
    copies = [np.ascontiguousarray(CHANGES[change](images[1])) for change in DARK_CHANGES[name]]
    assert groups_of(images + copies) == [0, 1, 2, 3] + [1] * len(copies)


@pytest.mark.parametrize("n_others", [0, 1])
def test_copies_are_found_in_a_set_of_hardly_anything_else(n_others: int) -> None:
    """What all pictures have in common is then the picture itself."""
    copies = [in_a_disc(lesion(0)), reencoded(in_a_disc(lesion(0))), retina(0)[::-1], retina(0)]
    others = [in_a_disc(lesion(1))][:n_others]
    assert groups_of(copies + others) == [0, 0, 2, 2, 4][: 4 + n_others]


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
    thumbnails = np.random.default_rng(0).integers(0, 256, (1030, 64, 64), np.uint8)
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
