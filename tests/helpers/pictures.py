"""Draws masks and pictures, and encodes them."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

BLACK, WHITE = (0, 0, 0), (255, 255, 255)


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
