"""Reading images and masks: every encoding gives one array, every bad file one clear line."""

import re
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from seglab.core.errors import InputError
from seglab.data.classes import Classes
from seglab.data.images import read_image, read_orientation
from seglab.data.masks import read_mask

BLACK, WHITE = (0, 0, 0), (255, 255, 255)
QUICK = settings(max_examples=15, deadline=None, derandomize=True, database=None)


def bmp(pixels: np.ndarray, palette: list[tuple[int, int, int]], top_down: bool = False) -> bytes:
    """Any of 24-bit (H, W, 3) or 1-bit (H, W) pixels, written by the book."""
    height, width = pixels.shape[:2]
    if pixels.ndim == 3:
        bits, rows = 24, pixels[..., ::-1].reshape(height, -1).astype(np.uint8)
    else:
        bits, rows = 1, np.packbits(pixels, axis=1)
    rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 4)))
    data = (rows if top_down else rows[::-1]).tobytes()
    table = b"".join(struct.pack("<4B", *rgb[::-1], 0) for rgb in palette)
    offset = 54 + len(table)
    file = struct.pack("<2sIHHI", b"BM", offset + len(data), 0, 0, offset)
    signed = -height if top_down else height
    info = struct.pack("<IiiHHIIiiII", 40, width, signed, 1, bits, 0, len(data), 0, 0, 0, 0)
    return file + info + table + data


def png(width: int, height: int, depth: int, kind: int, data: bytes) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    parts = (chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def image_of(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels))


def grey(mask: np.ndarray) -> np.ndarray:
    return mask.astype(np.uint8) * 255


def with_alpha(mask: np.ndarray, mode: str, colors: np.ndarray, alpha: np.ndarray) -> Image.Image:
    image = image_of(colors).convert(mode)
    image.putalpha(image_of(alpha))
    return image


def palette(indices: np.ndarray, *colors: tuple[int, int, int]) -> Image.Image:
    image = image_of(indices.astype(np.uint8))
    image.putpalette([value for color in colors for value in color])
    return image


# From a mask to an image that Pillow saves under this suffix, or to the bytes of the file.
ENCODINGS: dict[str, tuple[str, Callable[[np.ndarray], Image.Image | bytes]]] = {
    "1-bit BMP": (".bmp", image_of),
    "1-bit PNG": (".png", image_of),
    "1-bit TIFF": (".tif", image_of),
    "1-bit BMP by the book": (".bmp", lambda m: bmp(m, [BLACK, WHITE])),
    "1-bit BMP, inverted colour table": (".bmp", lambda m: bmp(~m, [WHITE, BLACK])),
    "8-bit 0/255 BMP": (".bmp", lambda m: image_of(grey(m))),
    "8-bit 0/255 PNG": (".png", lambda m: image_of(grey(m))),
    "8-bit 0/1": (".png", lambda m: image_of(m.astype(np.uint8))),
    "24-bit BMP": (".bmp", lambda m: image_of(grey(m)).convert("RGB")),
    "24-bit BMP, top-down": (
        ".bmp",
        lambda m: bmp(np.repeat(grey(m)[..., None], 3, 2), [], top_down=True),
    ),
    "24-bit PNG 0/1": (".png", lambda m: image_of(np.repeat(m[..., None], 3, 2).astype(np.uint8))),
    "RGBA, opaque": (".png", lambda m: image_of(grey(m)).convert("RGBA")),
    "RGBA, transparent black": (".png", lambda m: with_alpha(m, "RGB", grey(m), grey(m))),
    "LA, opaque": (".png", lambda m: image_of(grey(m)).convert("LA")),
    "LA, transparent white": (
        ".png",
        lambda m: with_alpha(m, "L", np.full(m.shape, 255, np.uint8), grey(m)),
    ),
    "palette": (".png", lambda m: palette(m, BLACK, WHITE)),
    "palette, BMP": (".bmp", lambda m: palette(m, BLACK, WHITE, (9, 9, 9))),
    "palette, inverted": (".png", lambda m: palette(~m, WHITE, BLACK)),
    "palette, inverted, BMP": (".bmp", lambda m: palette(~m, WHITE, BLACK)),
    "palette, high indices": (".png", lambda m: palette(m * 200, BLACK, *[WHITE] * 250)),
    "palette, blue lesion": (".png", lambda m: palette(m, BLACK, (0, 0, 255))),
    "16-bit 0/65535": (".png", lambda m: image_of(m.astype(np.uint16) * 65535)),
    "16-bit 0/255": (".png", lambda m: image_of(m.astype(np.uint16) * 255)),
    "16-bit 0/1": (".png", lambda m: image_of(m.astype(np.uint16))),
    "16-bit 0/65535 TIFF": (".tif", lambda m: image_of(m.astype(np.uint16) * 65535)),
}


def write(path: Path, content: Image.Image | bytes) -> Path:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content.save(path)
    return path


def lesion(height: int = 75, width: int = 101) -> np.ndarray:
    """A mask without any symmetry that touches the frame; rows are no whole bytes."""
    rows, columns = np.ogrid[:height, :width]
    mask = np.hypot((rows - 30) / 20, (columns - 40) / 30) < 1
    mask[:16, 64:] = True
    return mask


def photograph(height: int = 48, width: int = 64) -> np.ndarray:
    """Smooth colours without any symmetry, most of them neither dark nor bright."""
    rows, columns = np.mgrid[:height, :width] / [[[height]], [[width]]]
    return np.stack([60 + 130 * rows, 190 - 120 * columns, 80 + 90 * rows * columns], 2).astype(
        np.uint8
    )


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
        assert_same_mask(read, mask)


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
    assert_same_mask(read_mask(path), mask)
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
