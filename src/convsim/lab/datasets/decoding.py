"""One image file to 8-bit pixels, with one defined result for each of Pillow's modes."""

from __future__ import annotations

import io

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

MAX_PIXELS = 2**24
MAX_SCANS = 100
"""Most passes over a JPEG's pixels: each costs a few bytes, so a small file could take hours."""

FORMATS = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".bmp": "BMP", ".webp": "WEBP", ".gif": "GIF",
    ".tif": "TIFF", ".tiff": "TIFF",
}  # fmt: skip
GREY = {"1", "L", "LA", "La"}
COLOUR = {"P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"}
SIXTEEN_BITS = {"I;16", "I;16L", "I;16B", "I;16N", "I"}

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation → the turn that shows the image upright, as viewers do."""


def decode_image(content: bytes) -> Image.Image:
    """Decode a JPEG, PNG, BMP, WebP, GIF or TIFF; of several frames, the first.

    Args:
        content: The file.

    Returns:
        An image of mode "L" or "RGB", turned and mirrored as its EXIF tag says. Black and white and
        grey become "L", all else "RGB": palettes and CMYK by Pillow's formulas, without colour
        profiles, as torchvision and timm read them. Transparency is dropped: the colours stored
        beneath it count. Of 16-bit grey, v becomes the integer nearest to v / 257; of 16-bit
        colour, Pillow keeps the upper 8 bits.

    Raises:
        Exception: Of many kinds, if the file is damaged, has more than `MAX_PIXELS` pixels or
            `MAX_SCANS` scans, or is of another format or mode.
    """
    with _open(content) as image:
        _check_header(image, content)
        if image.format == "PNG":
            image.verify()  # decoding looks at some of its checksums only
            image = _open(content)  # noqa: PLW2901 - verifying uses it up
        if image.mode in SIXTEEN_BITS:
            pixels = _eight_bits(image)
        else:
            pixels = image.convert("L" if image.mode in GREY else "RGB")
        return _upright(pixels, image)


def image_header(content: bytes) -> tuple[int, int, str]:
    """Read (width, height, mode) of a file, as viewers show it, without decoding it."""
    with _open(content) as image:
        _check_header(image, content)
        width, height = image.size
        turned = _orientation(image) in (5, 6, 7, 8)
        return (height, width, image.mode) if turned else (width, height, image.mode)


def reason_of(error: Exception) -> str:
    """Say why a file was not decoded."""
    # Pillow's own text for this one holds the address of an object.
    return "no known format" if isinstance(error, UnidentifiedImageError) else str(error)


def _open(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content), formats=sorted(set(FORMATS.values())))


def _check_header(image: Image.Image, content: bytes) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise Image.DecompressionBombError(f"{width}×{height} pixels, {MAX_PIXELS} allowed")
    if image.mode not in GREY | COLOUR | SIXTEEN_BITS:
        raise OSError(f"mode {image.mode!r}, neither 8 nor 16 bits per channel")
    if image.format == "JPEG" and content.count(b"\xff\xda") > MAX_SCANS:
        raise OSError(f"more than {MAX_SCANS} scans")


def _eight_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise OSError(f"grey values from {values.min()} to {values.max()}, not of 16 bits")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _upright(pixels: Image.Image, image: Image.Image) -> Image.Image:
    turn = _TURNS.get(_orientation(image))
    return pixels if turn is None else pixels.transpose(turn)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # of many kinds; viewers show such an image as it is stored
        return 1
