"""Reading masks: every encoding gives one mask, and what cannot be known is refused."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import matplotlib.image
import numpy as np
import pytest
import skimage.io
import tifffile
from helpers.pictures import (
    BLACK,
    ENCODINGS,
    WHITE,
    grey,
    image_of,
    lesion,
    palette,
    photograph,
    with_alpha,
    write,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from scipy.ndimage import binary_dilation, binary_erosion, gaussian_filter

from seglab.core.errors import InputError
from seglab.data.classes import Classes
from seglab.data.masks import decode_mask, read_mask

QUICK = settings(max_examples=15, deadline=None, derandomize=True, database=None)


def assert_same_mask(read: np.ndarray, expected: np.ndarray) -> None:
    assert read.dtype == np.uint8
    assert np.array_equal(read, expected)


@pytest.mark.parametrize("name", ENCODINGS)
def test_every_encoding_gives_the_same_mask(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    suffix, encode = ENCODINGS[name]
    path = tmp_path_factory.mktemp("any") / f"mask{suffix}"

    @QUICK
    @given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=19)))
    @example(lesion())
    @example(np.zeros((9, 13), bool))
    @example(np.ones((9, 13), bool))
    def survives(mask: np.ndarray) -> None:
        assert_same_mask(read_mask(write(path, encode(mask))), mask)

    survives()


def test_an_antialiased_edge_is_cut_at_one_half(tmp_path: Path) -> None:
    rows, columns = np.mgrid[: 4 * 60, : 4 * 80]
    fine = np.hypot(rows - 113, columns - 171) < 77
    share = fine.reshape(60, 4, 80, 4).mean((1, 3))
    values = np.round(share * 255 - 0.01).astype(np.uint8)  # one half of 255 is below one half
    assert len(np.unique(values)) > 10
    for content in (image_of(values), image_of(values.astype(np.uint16) * 257)):
        assert_same_mask(read_mask(write(tmp_path / "mask.png", content)), share > 0.5)


@pytest.mark.parametrize("dtype, half", [(np.uint8, 128), (np.uint16, 32768)])
def test_above_one_half_of_white_is_lesion(dtype: type, half: int, tmp_path: Path) -> None:
    values = np.zeros((9, 9), dtype)
    values[3:6] = np.iinfo(dtype).max
    values[0, :4] = half - 20, half - 1, half, half + 20
    expected = values == np.iinfo(dtype).max
    expected[0, 2:4] = True
    assert_same_mask(read_mask(write(tmp_path / "mask.png", image_of(values))), expected)


def test_jpeg_noise_is_no_lesion(tmp_path: Path) -> None:
    mask = lesion()
    path = tmp_path / "mask.jpg"
    image_of(grey(mask)).save(path, quality=90)
    with Image.open(path) as image:
        assert len(np.unique(np.asarray(image))) > 10
    assert_same_mask(read_mask(path), mask)


# Where the first row and the first column of the file lie in the picture, by the EXIF standard.


def test_a_photograph_is_no_mask(tmp_path: Path) -> None:
    for content in (
        image_of(photograph()).convert("L"),
        image_of(photograph()),
        image_of(photograph()[..., 0].astype(np.uint16) * 257),
        image_of(np.full((5, 5), 100, np.uint8)),
        image_of(np.random.default_rng(0).integers(231, 256, (20, 30), np.uint8)),
    ):
        path = write(tmp_path / "photo.png", content)
        with pytest.raises(InputError, match=rf"\A{path}: not a mask: .*\Z"):
            read_mask(path)


def test_a_lesion_drawn_in_transparency_alone_is_read(tmp_path: Path) -> None:
    mask = lesion()
    for colour in (0, 255):  # black and white ink alike
        drawn = with_alpha(mask, "RGB", np.full(mask.shape, colour, np.uint8), grey(mask))
        assert_same_mask(read_mask(write(tmp_path / "mask.png", drawn)), mask)


NAMES = ("skin", "disc", "square")
NUMBERED = Classes(NAMES)
COLOURED = Classes(NAMES, ("#000000", "#ff0080", "#00ff00"))
CLASS_MASKS = arrays(
    np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.integers(0, 2)
)


@settings(deadline=None, max_examples=40)
@given(mask=CLASS_MASKS)
def test_class_numbers_and_colours_of_every_form(
    mask: np.ndarray, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("masks")
    plain, rgb = Image.fromarray(mask), Image.fromarray(COLOURED.palette[mask])
    indices = palette(mask, (9, 9, 9), (9, 9, 8), WHITE)  # whatever its colours are
    colours = palette(2 - mask, *map(tuple, COLOURED.palette[::-1].tolist()))  # or its indices
    forms: dict[Classes, dict[str, Image.Image]] = {
        NUMBERED: {
            "grey.png": plain,
            "palette.png": indices,
            "palette.bmp": indices,
            "deep.png": Image.fromarray(mask.astype(np.uint16)),
            "rgb.png": plain.convert("RGB"),
            "rgba.png": plain.convert("RGBA"),
            "grey.tif": plain,
        },
        COLOURED: {
            "rgb.png": rgb,
            "rgba.png": rgb.convert("RGBA"),
            "palette.png": colours,
            "rgb.bmp": rgb,
        },
    }
    for classes, pictures in forms.items():
        for name, picture in pictures.items():
            picture.save(folder / name)
            assert_same_mask(read_mask(folder / name, classes), mask)


@pytest.mark.parametrize(
    ("picture", "classes", "said"),
    [
        (np.array([[0, 3]], np.uint8), NUMBERED, "holds 3, which is no class; expected 0 to 2"),
        (np.array([[0, 255]], np.uint8), NUMBERED, "holds 255, which is no class"),
        (np.array([[0, 700]], np.uint16), NUMBERED, "holds 700, which is no class"),
        (np.array([[0, 0.5]], np.float32), NUMBERED, "holds 0.5, which is no class"),
        (np.array([[[1, 1, 2]]], np.uint8), NUMBERED, "is coloured; expected class numbers"),
        (np.array([[[255, 0, 127]]], np.uint8), COLOURED, "holds #ff007f, which is no class"),
        (np.array([[0, 1]], np.uint16), COLOURED, "has no colours"),
    ],
)
def test_what_is_of_no_class_is_refused(
    picture: np.ndarray, classes: Classes, said: str, tmp_path: Path
) -> None:
    file = tmp_path / "mask.tif"
    Image.fromarray(picture).save(file)
    with pytest.raises(InputError, match=f"mask.tif: {said}"):
        read_mask(file, classes)


def blob(height: int, width: int, seed: int, share: float) -> np.ndarray:
    """A random mask of a few smooth regions; a share of its pixels is lesion."""
    noise = np.random.default_rng(seed).normal(size=(height, width))
    smooth = gaussian_filter(noise, min(height, width) / 8)
    return smooth > np.quantile(smooth, 1 - share)


BLOBS = st.builds(
    blob,
    st.integers(5, 70),
    st.integers(5, 70),
    st.integers(0, 99),
    st.sampled_from([0.0, 0.02, 0.2, 0.5, 0.9]),
)
AWKWARD = arrays(bool, array_shapes(min_dims=2, max_dims=2, min_side=5, max_side=9))


def pixel_and_corners(mask: np.ndarray) -> np.ndarray:
    """The same mask with its four corners and one pixel of the middle."""
    marked = mask.copy()
    marked[:: max(1, len(mask) - 1), :: max(1, mask.shape[1] - 1)] = True
    marked[len(mask) // 2, mask.shape[1] // 2] = True
    return marked


def on_transparent(mask: np.ndarray, colour: tuple[int, int, int], hidden: int) -> Image.Image:
    pixels = np.full((*mask.shape, 4), (hidden, hidden, hidden, 0), np.uint8)
    pixels[mask] = (*colour, 255)
    return image_of(pixels)


def inverted_palette_tiff(path: Path, mask: np.ndarray) -> None:
    table = np.repeat(np.linspace(65535, 0, 256).astype(np.uint16)[None], 3, axis=0)
    tifffile.imwrite(path, grey(~mask), photometric="palette", colormap=table)


def save(content: Callable[[np.ndarray], Image.Image], **options: Any) -> Callable[..., None]:
    return lambda path, mask: content(mask).save(path, **options)


# The rows of the table in seglab/data/README.md, as libraries write them.
WRITERS: dict[str, tuple[str, Callable[[Path, np.ndarray], None]]] = {
    "Pillow bool": (".png", save(image_of)),
    "Pillow bool BMP": (".bmp", save(image_of)),
    "Pillow bool GIF": (".gif", save(image_of)),
    "Pillow 0/255 GIF": (".gif", save(lambda m: image_of(grey(m)))),
    "Pillow bool TIFF, group 4": (".tif", save(image_of, compression="group4")),
    "Pillow bool TIFF, group 3": (".tif", save(image_of, compression="group3")),
    "Pillow bool PBM": (".pbm", save(image_of)),
    "Pillow WebP": (".webp", save(lambda m: image_of(grey(m)), lossless=True)),
    "Pillow red": (".png", save(lambda m: palette(m, BLACK, (128, 0, 0)).convert("RGB"))),
    "Pillow 16-bit 0/1000": (".png", save(lambda m: image_of(m.astype(np.uint16) * 1000))),
    "Pillow black on transparent": (".png", save(lambda m: on_transparent(m, BLACK, 255))),
    "Pillow red on transparent": (
        ".webp",
        save(lambda m: on_transparent(m, (9, 0, 0), 0), lossless=1),
    ),
    "Pillow LA": (".png", save(lambda m: on_transparent(m, BLACK, 255).convert("LA"))),
    "Pillow alpha 0 everywhere": (
        ".png",
        save(lambda m: with_alpha(m, "RGB", grey(m), np.zeros(m.shape, np.uint8))),
    ),
    "Pillow transparent index": (".png", save(lambda m: palette(m, WHITE, BLACK), transparency=0)),
    "tifffile bool": (".tif", tifffile.imwrite),
    "tifffile bool, compressed": (".tif", partial(tifffile.imwrite, compression="zlib")),
    "tifffile 0/255": (".tif", lambda p, m: tifffile.imwrite(p, grey(m))),
    "tifffile 0/255, 0 is white": (
        ".tif",
        lambda p, m: tifffile.imwrite(p, grey(m), photometric="miniswhite"),
    ),
    "tifffile int32": (".tif", lambda p, m: tifffile.imwrite(p, m.astype(np.int32))),
    "tifffile float32": (".tif", lambda p, m: tifffile.imwrite(p, m.astype(np.float32))),
    "tifffile inverted palette": (".tif", inverted_palette_tiff),
    "ImageJ": (".tif", lambda p, m: tifffile.imwrite(p, grey(m), imagej=True)),
    "ImageJ, inverting table": (
        ".tif",
        lambda p, m: tifffile.imwrite(p, grey(m), imagej=True, photometric="miniswhite"),
    ),
    "imageio bool": (".png", imageio.imwrite),
    "imageio bool TIFF": (".tif", imageio.imwrite),
    "imageio bool BMP": (".bmp", imageio.imwrite),
    "imageio 0/255 GIF": (".gif", lambda p, m: imageio.imwrite(p, grey(m))),
    "scikit-image bool": (".png", partial(skimage.io.imsave, check_contrast=False)),
    "scikit-image bool TIFF": (".tif", partial(skimage.io.imsave, check_contrast=False)),
    "matplotlib gray": (".png", partial(matplotlib.image.imsave, cmap="gray", vmin=0, vmax=1)),
    "matplotlib gray BMP": (".bmp", partial(matplotlib.image.imsave, cmap="gray", vmin=0, vmax=1)),
}


@pytest.mark.filterwarnings("ignore:.*")
@pytest.mark.parametrize("name", WRITERS)
def test_what_libraries_write_is_read_back(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    suffix, write_mask = WRITERS[name]
    path = tmp_path_factory.mktemp("any") / f"mask{suffix}"
    # What one colour means that is everywhere cannot be known.
    may_be_full = not any(word in name for word in ("transparent", "LA", "alpha", "red", "1000"))

    @settings(QUICK, max_examples=10)
    @given(st.one_of(BLOBS, BLOBS.map(pixel_and_corners), AWKWARD))
    @example(np.zeros((9, 13), bool))
    @example(np.ones((9, 13), bool))
    def survives(mask: np.ndarray) -> None:
        if mask.all() and not may_be_full:
            mask[0, 0] = False
        write_mask(path, mask)
        read, _, note = decode_mask(path)
        assert_same_mask(read, mask)
        assert note is None

    survives()


@pytest.mark.parametrize("quality", [30, 50, 75, 95])
@pytest.mark.parametrize("colour", [(128, 0, 0), (128,) * 3, (200,) * 3, (64,) * 3, WHITE])
def test_a_jpeg_mask_is_cut_at_half_of_its_own_bright_value(
    quality: int, colour: tuple[int, int, int], tmp_path: Path
) -> None:
    for seed in range(4):
        mask = blob(120, 160, seed, 0.2)
        palette(mask, BLACK, colour).convert("RGB").save(tmp_path / "m.jpg", quality=quality)
        wrong = read_mask(tmp_path / "m.jpg") != mask
        edge = binary_dilation(mask, iterations=2) & ~binary_erosion(mask, iterations=2)
        # Chrominance has half the resolution, so that a red edge is uncertain by a pixel.
        assert not wrong[~binary_dilation(edge, iterations=2)].any()
        assert wrong.sum() < (0.2 if colour[1] == 0 else 0.04) * edge.sum()


def test_noise_of_few_values_is_no_second_class(tmp_path: Path) -> None:
    mask = np.zeros((57, 82), bool)
    mask[8:, 24:56] = True
    for bright in (64, 128, 255):
        image_of(mask.astype(np.uint8) * bright).save(tmp_path / "mask.webp", quality=75)
        assert_same_mask(read_mask(tmp_path / "mask.webp"), mask)


def test_a_resized_or_blurred_mask_of_any_bright_value_is_read(tmp_path: Path) -> None:
    fine = blob(240, 320, 3, 0.2)
    for bright in (64, 128, 200, 255, 1000, 4095, 65535):
        drawn = Image.fromarray(fine.astype(np.float32) * bright)
        for method in (Image.Resampling.BILINEAR, Image.Resampling.LANCZOS):
            for size in ((160, 120), (93, 70), (640, 480)):
                small = np.asarray(drawn.resize(size, method)).clip(0, 2**16 - 1)
                values = small.round().clip(0, 255 if bright < 256 else None)
                content = image_of(values.astype(np.uint8 if bright < 256 else np.uint16))
                read = read_mask(write(tmp_path / "mask.png", content))
                assert_same_mask(read, values > bright / 2)
        blurred = gaussian_filter(fine * float(bright), 3).round()
        content = image_of(blurred.astype(np.uint8 if bright < 256 else np.uint16))
        read = read_mask(write(tmp_path / "mask.png", content))
        assert np.mean(read != (blurred > bright / 2)) < 0.005


SECOND = blob(120, 160, 1, 0.3)
SPOT = np.zeros((120, 160), bool)
SPOT[50:57, 60:67] = True  # 0.25 % of the pixels


@pytest.mark.parametrize(
    ("low", "high"),
    [(128, 255), (128, 200), (200, 255), (1, 255), (1, 2), (85, 170), (213, 231), (255, 1000)],
)
@pytest.mark.parametrize("area", [SECOND, SPOT])
def test_a_second_class_is_refused_with_its_value(
    low: int, high: int, area: np.ndarray, tmp_path: Path
) -> None:
    values = np.where(area, low, np.where(blob(120, 160, 2, 0.3), high, 0))
    dtype = np.uint8 if high < 256 else np.uint16
    path = write(tmp_path / "mask.png", image_of(values.astype(dtype)))
    with pytest.raises(InputError, match=rf"mask\.png: not a mask: .*\b{low}\b.*lesion_values"):
        read_mask(path)
    chosen = Classes(lesion_values=(low,))
    assert_same_mask(read_mask(path, chosen), values == low)


@pytest.mark.parametrize("values", [(228, 244), (100, 200), (128,), (3,)])
def test_a_mask_without_background_is_refused(values: tuple[int, ...], tmp_path: Path) -> None:
    content = image_of(np.array(values, np.uint8)[SECOND.astype(int) * (len(values) - 1)])
    with pytest.raises(InputError, match=r"mask\.png: not a mask"):
        read_mask(write(tmp_path / "mask.png", content))


def test_small_objects_and_thin_lines_are_refused_too(tmp_path: Path) -> None:
    labels = np.zeros((300, 400), np.uint8)
    for i in range(40):  # discs of 3 pixels' radius: 1 % of the picture
        y, x = (
            np.mgrid[:300, :400] - np.array([20 + 35 * (i // 5), 30 + 75 * (i % 5)])[:, None, None]
        )
        labels[y**2 + x**2 <= 9] = i + 1
    lines = grey(blob(120, 160, 2, 0.2))
    lines[100::6, 10:150] = 128
    for name, values in (("labels", labels), ("lines", lines)):
        path = write(tmp_path / f"{name}.png", image_of(values))
        with pytest.raises(InputError, match=rf"{name}\.png: not a mask"):
            read_mask(path)
        assert_same_mask(read_mask(path, Classes(lesion_values="nonzero")), values > 0)


def test_a_second_class_in_a_jpeg_is_refused(tmp_path: Path) -> None:
    values = np.where(SECOND, 128, np.where(blob(120, 160, 2, 0.3), 255, 0)).astype(np.uint8)
    image_of(values).save(tmp_path / "mask.jpg", quality=85)
    with pytest.raises(InputError, match=r"mask\.jpg: not a mask"):
        read_mask(tmp_path / "mask.jpg")
    with pytest.raises(InputError, match=r"mask\.jpg: JPEG need not keep values"):
        read_mask(tmp_path / "mask.jpg", Classes(lesion_values="nonzero"))


RED, GREEN = (255, 0, 0), (0, 255, 0)
VIRIDIS = ((68, 1, 84), (253, 231, 36))


@pytest.mark.parametrize("colours", [(WHITE, RED), (RED, GREEN), VIRIDIS, (BLACK, RED, GREEN)])
@pytest.mark.parametrize("suffix", [".png", ".bmp", ".gif", ".jpg"])
def test_two_colours_of_which_none_is_black_are_refused(
    colours: tuple[tuple[int, int, int], ...], suffix: str, tmp_path: Path
) -> None:
    indices = SECOND.astype(int) + (blob(120, 160, 2, 0.3) if len(colours) == 3 else 0)
    content = palette(indices, *colours)
    path = write(tmp_path / f"mask{suffix}", content.convert("RGB"))
    with pytest.raises(InputError, match=rf"mask{suffix}: not a mask"):
        read_mask(path)


@pytest.mark.parametrize("labels", [range(1, 13), [3, 7, 8, 20, 41], [100, 120, 130], [1, 2]])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_label_images_are_refused_or_read_as_told(
    labels: Sequence[int], dtype: type, tmp_path: Path
) -> None:
    rows, columns = np.mgrid[:60, :80]
    objects = (rows // 10 + columns // 10) % len(labels)
    values = np.where(blob(60, 80, 5, 0.4), np.array(labels)[objects], 0).astype(dtype)
    path = tmp_path / "labels.tif"
    tifffile.imwrite(path, values)
    with pytest.raises(InputError, match=r"labels\.tif: not a mask: .*lesion_values=nonzero"):
        read_mask(path)
    assert_same_mask(read_mask(path, Classes(lesion_values="nonzero")), values > 0)
    two = (labels[0], labels[-1])
    assert_same_mask(read_mask(path, Classes(lesion_values=two)), np.isin(values, two))


def test_lesion_values_of_palettes(tmp_path: Path) -> None:
    values = np.where(SECOND, 2, SPOT)
    contents = {
        "coloured.png": (palette(values, WHITE, RED, GREEN), 2),  # the index, as of labels
        "grey.gif": (image_of((values * 100).astype(np.uint8)), 200),  # GIF numbers them anew
    }
    for name, (content, value) in contents.items():
        path = write(tmp_path / name, content)
        assert_same_mask(read_mask(path, Classes(lesion_values=(value,))), values == 2)
        assert_same_mask(read_mask(path, Classes(lesion_values="nonzero")), values > 0)
    rgb = write(tmp_path / "rgb.png", palette(values, BLACK, RED, GREEN).convert("RGB"))
    assert_same_mask(read_mask(rgb, Classes(lesion_values="nonzero")), values > 0)
    with pytest.raises(InputError, match="is coloured"):
        read_mask(rgb, Classes(lesion_values=(2,)))


@pytest.mark.parametrize("bits", [1, 8])
def test_the_corners_decide_where_an_unknown_program_stores_white_as_0(
    bits: int, tmp_path: Path
) -> None:
    mask = np.zeros((40, 60), bool)
    mask[10:30, 20:45] = True
    for stored, taken in ((mask, "background"), (~mask, "lesion")):
        values = stored if bits == 1 else grey(stored)
        tifffile.imwrite(tmp_path / "m.tif", values, photometric="miniswhite", software="Scanner")
        read, _, note = decode_mask(tmp_path / "m.tif")
        assert_same_mask(read, mask)
        assert note is not None and note.endswith(f"0 is taken for {taken}")
    # Of small lesions the corners say nothing: they are what covers less.
    spots = np.zeros((40, 60), bool)
    spots[2:4, 2:4] = spots[30, 20:24] = True
    for stored in (spots, ~spots):
        tifffile.imwrite(tmp_path / "m.tif", grey(stored), photometric="miniswhite", software="")
        assert_same_mask(read_mask(tmp_path / "m.tif"), spots)
    # Where nothing does, what the file states counts: 0 is white.
    tifffile.imwrite(tmp_path / "m.tif", grey(mask & False), photometric="miniswhite", software="")
    assert read_mask(tmp_path / "m.tif").all()


def test_class_numbers_of_a_tiff_that_stores_white_as_0(tmp_path: Path) -> None:
    numbers = SECOND.astype(np.uint8) + SPOT
    tifffile.imwrite(tmp_path / "m.tif", numbers, photometric="miniswhite")
    assert_same_mask(read_mask(tmp_path / "m.tif", NUMBERED), numbers)


def test_transparent_pixels_are_background(tmp_path: Path) -> None:
    mask = SECOND
    hidden_white = np.where(mask, 255, 90).astype(np.uint8)
    seen = np.where(np.arange(160) < 100, 255, 0).astype(np.uint8) * np.ones((120, 1), np.uint8)
    several = with_alpha(mask, "RGB", grey(mask), seen)
    assert_same_mask(read_mask(write(tmp_path / "m.png", several)), mask & (seen > 0))
    half_seen = with_alpha(mask, "RGB", grey(mask), np.where(mask, 255, 100).astype(np.uint8))
    assert_same_mask(read_mask(write(tmp_path / "m.png", half_seen)), mask)
    for alpha in (0, 128, 255):  # of one value everywhere, it says nothing
        plain = with_alpha(mask, "L", grey(mask), np.full(mask.shape, alpha, np.uint8))
        assert_same_mask(read_mask(write(tmp_path / "m.png", plain)), mask)
    nothing = with_alpha(mask, "RGB", np.full(mask.shape, 255, np.uint8), grey(mask & False))
    assert not read_mask(write(tmp_path / "m.png", nothing)).any()
    smooth = gaussian_filter(grey(mask).astype(float), 1).round().astype(np.uint8)
    black = with_alpha(mask, "RGB", np.zeros(mask.shape, np.uint8), smooth)
    assert_same_mask(read_mask(write(tmp_path / "m.png", black)), smooth > 127)
    classes = image_of(COLOURED.palette[mask.astype(int)])
    classes.putalpha(image_of(grey(mask & SPOT)))
    assert_same_mask(read_mask(write(tmp_path / "m.png", classes), COLOURED), mask & SPOT)
    numbers = with_alpha(mask, "L", hidden_white // 128, grey(SPOT))
    assert_same_mask(read_mask(write(tmp_path / "m.png", numbers), NUMBERED), mask & SPOT)
