"""Reading images and masks: every encoding gives one array, every bad file one clear line."""

import re
import struct
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from helpers.pictures import (
    BLACK,
    ENCODINGS,
    WHITE,
    bmp,
    grey,
    image_of,
    lesion,
    palette,
    photograph,
    png,
    with_alpha,
    write,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from seglab.core.errors import InputError
from seglab.data.images import read_image, read_orientation, to_array
from seglab.data.masks import read_mask

QUICK = settings(max_examples=15, deadline=None, derandomize=True, database=None)


def test_the_bytes_written_here_are_what_they_claim(tmp_path: Path) -> None:
    mask = lesion()
    inverted = write(tmp_path / "inverted.bmp", bmp(~mask, [WHITE, BLACK]))
    with Image.open(inverted) as image:
        assert image.mode == "P"  # by its indices it would be the mask's opposite
        assert np.array_equal(np.asarray(image) == 0, mask)
    colored = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    top_down = write(tmp_path / "top_down.bmp", bmp(colored, [], top_down=True))
    assert struct.unpack("<i", top_down.read_bytes()[22:26]) == (-5,)
    assert np.array_equal(read_image(top_down), colored)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_deep_bmp_of_two_colours_is_not_misread(bits: int, tmp_path: Path) -> None:
    """Pillow takes a black-and-white colour table for 1 bit a pixel, whatever the header says."""
    mask = lesion()[20:36, 12:28]
    whole = bytearray(bmp(mask, [BLACK, WHITE]))
    rows = mask[::-1].astype(np.uint8)
    rows = rows if bits == 8 else rows[:, ::2] << 4 | rows[:, 1::2]
    whole[28:30] = struct.pack("<H", bits)
    whole[46:50] = struct.pack("<I", 2)
    path = write(tmp_path / "mask.bmp", bytes(whole[:62]) + rows.tobytes())
    try:
        read = read_mask(path)
    except InputError as error:
        assert str(path) in str(error)
    else:
        assert np.array_equal(read, mask)


AS_STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,  # top, left
    2: lambda a: a[:, ::-1],  # top, right
    3: lambda a: a[::-1, ::-1],  # bottom, right
    4: lambda a: a[::-1],  # bottom, left
    5: lambda a: a.swapaxes(0, 1),  # left, top
    6: lambda a: a[:, ::-1].swapaxes(0, 1),  # right, top
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),  # right, bottom
    8: lambda a: a[::-1].swapaxes(0, 1),  # left, bottom
}


@pytest.mark.parametrize("orientation", AS_STORED)
def test_exif_turns_image_and_mask(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = AS_STORED[orientation]
    image, mask = photograph(), lesion()
    path = tmp_path / "image.jpg"
    image_of(stored(image)).save(path, quality=95, subsampling=0, exif=exif)
    read = read_image(path)
    assert read.shape == image.shape
    assert np.abs(read.astype(int) - image).max() < 10
    path = tmp_path / "mask.jpg"
    image_of(stored(grey(mask))).save(path, quality=90, exif=exif)
    assert np.array_equal(read_mask(path), mask)
    for suffix in (".jpg", ".png", ".tif", ".webp"):
        path = tmp_path / f"stored{suffix}"
        image_of(stored(grey(mask))).save(path, exif=exif)
        assert read_orientation(path) == orientation, suffix


def test_a_file_without_a_valid_orientation_is_upright(tmp_path: Path) -> None:
    assert read_orientation(write(tmp_path / "image.bmp", image_of(photograph()))) == 1
    exif = Image.Exif()
    exif[0x0112] = 9
    image_of(photograph()).save(tmp_path / "image.jpg", exif=exif)
    assert read_orientation(tmp_path / "image.jpg") == 1
    with pytest.raises(InputError, match=f"{tmp_path}/none.png: no such file"):
        read_orientation(tmp_path / "none.png")


def test_images_of_any_mode_become_rgb(tmp_path: Path) -> None:
    rgb = photograph()
    red = rgb[..., 0]
    one = red > 128
    indices = np.arange(48 * 64).reshape(48, 64) % 3
    colors = np.array([(200, 30, 40), (10, 220, 60), (255, 255, 255)], np.uint8)
    paletted = palette(indices, *map(tuple, colors.tolist()))
    half_alpha = np.where(one, 255, 0).astype(np.uint8)
    deep = np.stack([rgb, np.full_like(rgb, 77)], 3)  # big-endian, the low byte is noise
    rows = b"".join(b"\0" + row.tobytes() for row in deep)
    contents: dict[str, tuple[Image.Image | bytes, np.ndarray]] = {
        "rgb.bmp": (image_of(rgb), rgb),
        "rgb.png": (image_of(rgb), rgb),
        "grey.png": (image_of(red), np.stack([red] * 3, 2)),
        "one.png": (image_of(one), np.stack([grey(one)] * 3, 2)),
        "alpha.png": (with_alpha(one, "RGB", rgb, half_alpha), rgb),
        "grey_alpha.png": (with_alpha(one, "L", red, half_alpha), np.stack([red] * 3, 2)),
        "palette.png": (paletted, colors[indices]),
        "palette.bmp": (paletted, colors[indices]),
        "deep_grey.png": (image_of(red.astype(np.uint16) * 257), np.stack([red] * 3, 2)),
        "deep_rgb.png": (png(64, 48, 16, 2, rows), rgb),
        "cmyk.tif": (image_of(rgb).convert("CMYK"), rgb),
    }
    for name, (content, expected) in contents.items():
        read = read_image(write(tmp_path / name, content))
        assert read.dtype == np.uint8, name
        assert np.array_equal(read, expected), name
    path = tmp_path / "cmyk.jpg"
    image_of(rgb).convert("CMYK").save(path, quality=95)
    assert np.abs(read_image(path).astype(int) - rgb).max() < 10


@pytest.mark.parametrize("read", [read_image, read_mask])
def test_a_bad_file_is_named_in_one_line(
    read: Callable[[Path], np.ndarray], tmp_path: Path
) -> None:
    whole = bmp(photograph(), [])
    (tmp_path / "folder").mkdir()
    contents: dict[str, bytes | None] = {
        "no such file": None,
        "empty file": b"",
        "truncated": whole[: len(whole) // 2],
        "cannot be read as an image": whole[:20],
        "cannot identify": b"IMD003 is no picture\nand has two lines\n",
        "10000000000 pixels": png(100_000, 100_000, 8, 0, b""),
        "10000 x 10000 pixels": png(10_000, 10_000, 8, 0, b""),
    }
    for reason, content in contents.items():
        path = tmp_path / f"{reason}.bmp"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(InputError, match=rf"\A{re.escape(str(path))}: .*{reason}.*\Z"):
            read(path)
    with pytest.raises(InputError, match=f"{tmp_path}/folder: .*directory"):
        read(tmp_path / "folder")


@settings(QUICK, max_examples=300)
@given(data=st.data())
def test_a_damaged_file_is_read_or_named(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    encodings = ENCODINGS | {"JPEG": (".jpg", lambda m: image_of(grey(m)))}
    suffix, encode = encodings[data.draw(st.sampled_from(sorted(encodings)))]
    path = write(tmp_path_factory.mktemp("damaged") / f"mask{suffix}", encode(lesion(9, 13)))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        content[start : start + data.draw(st.sampled_from([0, 1, 1, 20]))] = data.draw(
            st.binary(max_size=4)
        )
    path.write_bytes(content)
    for read, n_axes in ((read_image, 3), (read_mask, 2)):
        try:
            array = read(path)
        except InputError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
        else:
            assert array.dtype == np.uint8 and array.ndim == n_axes and array.size


def test_values_beyond_16_bits_are_refused(tmp_path: Path) -> None:
    for values in (np.array([[0, 65536]], "i4"), np.array([[-1, 9]], "i4"), np.ones((2, 2), "f4")):
        path = write(tmp_path / "deep.tif", image_of(values))
        with pytest.raises(InputError, match=f"{path}: .*0 to 65535"):
            read_image(path)


def test_reading_leaves_the_warning_filters_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache reads in threads, and Python's warning filters belong to the whole process."""
    path = write(tmp_path / "image.png", image_of(photograph()))
    for name in ("catch_warnings", "filterwarnings", "simplefilter"):
        monkeypatch.setattr(warnings, name, lambda *_, **__: pytest.fail("filters changed"))
    read_image(path)


@pytest.mark.parametrize("bits", [8, 10, 12, 13])
def test_16_bit_files_of_fewer_bits_are_refused(bits: int, tmp_path: Path) -> None:
    """Scaled from 16 bits, they would be nearly black."""
    rgb = photograph().astype(np.uint16) << bits - 8
    tifffile.imwrite(tmp_path / "colours.tif", rgb)
    rows = b"".join(b"\0" + row.tobytes() for row in rgb.astype(">u2"))
    write(tmp_path / "colours.png", png(64, 48, 16, 2, rows))
    image_of(rgb[..., 0]).save(tmp_path / "grey.png")
    tifffile.imwrite(tmp_path / "grey.tif", rgb[..., 0], compression="zlib")
    for path in tmp_path.iterdir():
        with pytest.raises(InputError, match=rf"{path.name}: its highest value is .* 8 bits"):
            read_image(path)
    with pytest.raises(InputError, match=r"colours\.png: its highest value"):
        read_mask(tmp_path / "colours.png")


def test_a_16_bit_tiff_that_stores_white_as_0(tmp_path: Path) -> None:
    values = photograph()[..., 0]
    tifffile.imwrite(tmp_path / "x.tif", 65535 - values.astype("u2") * 257, photometric=0)
    assert np.array_equal(read_image(tmp_path / "x.tif")[..., 0], values)


@pytest.mark.parametrize("read", [read_image, read_mask])
def test_a_file_of_several_pages_is_refused(
    read: Callable[[Path], np.ndarray], tmp_path: Path
) -> None:
    channels = photograph().transpose(2, 0, 1)
    frames = [image_of(grey(channel > 120)) for channel in channels]
    for suffix in (".gif", ".png", ".webp", ".tif"):
        frames[0].save(tmp_path / f"pages{suffix}", save_all=True, append_images=frames[1:])
    tifffile.imwrite(tmp_path / "pages_channels.tif", channels, photometric="minisblack")
    tifffile.imwrite(tmp_path / "pages_imagej.tif", channels, imagej=True)
    tifffile.imwrite(tmp_path / "pages.ome.tif", channels, photometric="minisblack")
    tifffile.imwrite(tmp_path / "pages_two.tif", photograph()[..., :2])  # pages of 64 x 2
    for path in tmp_path.iterdir():
        with pytest.raises(InputError, match=rf"{path.name}: holds \d+ pages"):
            read(path)


def test_files_with_a_preview_and_planar_files_are_read(tmp_path: Path) -> None:
    rgb = photograph()
    with tifffile.TiffWriter(tmp_path / "preview.tif") as file:
        file.write(rgb, photometric="rgb")
        file.write(rgb[::4, ::4], photometric="rgb")
    planar = rgb.transpose(2, 0, 1)
    tifffile.imwrite(tmp_path / "planar.tif", planar, photometric="rgb", planarconfig="separate")
    image_of(rgb).save(tmp_path / "one.webp", lossless=True)
    for path in tmp_path.iterdir():
        assert np.array_equal(read_image(path), rgb), path
    image_of(rgb).save(tmp_path / "x.jpg", "MPO", save_all=True, append_images=[image_of(rgb)])
    assert read_image(tmp_path / "x.jpg").shape == rgb.shape
    tifffile.imwrite(tmp_path / "x.tif", planar.astype(np.uint16) * 257, photometric="rgb")
    with pytest.raises(InputError, match=r"x\.tif: holds channels of 16 bits one after the other"):
        read_image(tmp_path / "x.tif")


def test_an_image_in_memory_is_as_one_in_a_file(tmp_path: Path) -> None:
    pixels = photograph()
    file = tmp_path / "image.png"
    Image.fromarray(pixels).save(file)
    grey = Image.fromarray(pixels).convert("L")
    for image, expected in (
        (pixels, pixels),
        (file, pixels),
        (str(file), pixels),
        (Image.open(file), pixels),
        (Image.fromarray(pixels).convert("RGBA"), pixels),
        (grey, np.repeat(np.asarray(grey)[..., None], 3, 2)),
        (Image.fromarray(pixels[..., 0].astype(np.uint16) * 257), pixels[..., [0] * 3]),
    ):
        assert np.array_equal(to_array(image), expected)
    for image, kind in (
        (pixels / 255, "float64"),
        (pixels[..., 0], r"uint8 \(\d+, \d+\)"),
        (pixels.transpose(2, 0, 1), "uint8 "),
        (np.dstack([pixels, pixels[..., 0]]), r"uint8 .*, 4\)"),
        (pixels.tolist(), "list"),
    ):
        with pytest.raises(InputError, match=rf"expected a path, .* not {kind}"):
            to_array(image)
    with pytest.raises(InputError, match=r"nowhere\.png: no such file"):
        to_array("nowhere.png")
