"""Image files and arrays as 8-bit arrays: every mode of Pillow, 16 bits, transparency, orientation."""

import functools
import math
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

Picture = Any
"""A `PIL.Image.Image`; Pillow is imported when the first image is read."""

GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N")
"""Pillow's modes without colour."""
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's mode by the number of channels
_WIDE = ("F", "I")  # floats, and integers of 32 bits
_SIXTEEN = ("PNG", "PPM")  # formats that Pillow may read as "I" although they have 16 bits
_NO_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "PDF", "WMF"}
"""Formats of which Pillow only knows the headers, or which it gives to a program: EPS to Ghostscript."""


def open_image(file: Path | BytesIO, *, verify: bool = True) -> Picture:
    """An image of a format that has pixels, whatever the file is called; not yet decoded.

    With `verify` the checksums of a PNG are verified, which Pillow does not when it decodes one. `ValueError` for what
    is no file, since a pipe says nothing for ever; an error of Pillow for anything that is no sound image.
    """
    from PIL import Image

    if isinstance(file, Path) and file.exists() and not file.is_file():
        raise ValueError("expected a file, it is none")
    image = Image.open(file, formats=_formats())
    if not verify or image.format != "PNG":
        return image
    with image:
        image.verify()
    if not isinstance(file, Path):
        file.seek(0)
    return Image.open(file, formats=("PNG",))


@functools.cache
def _formats() -> tuple[str, ...]:
    from PIL import Image

    Image.init()
    return tuple(kind for kind in Image.ID if kind not in _NO_PICTURES)


def suffixes() -> frozenset[str]:
    """The endings of the files that Pillow reads, in small letters: ".png", ".jpg", ..."""
    from PIL import Image

    return frozenset(
        ending for ending, kind in Image.registered_extensions().items() if kind not in _NO_PICTURES
    )


def header(path: Path) -> tuple[int, int, str]:
    """Height and width as the EXIF orientation turns them, and Pillow's mode, without decoding the image.

    `ValueError` for a mode that has no 8-bit form.
    """
    from PIL import ExifTags, Image
    from PIL.TiffImagePlugin import TiffImageFile

    with open_image(path, verify=False) as image:
        _check(image)
        # Newer versions of Pillow turn the size of a TIFF themselves: take it from the tags.
        width, height = (
            (image.tag_v2[256], image.tag_v2[257]) if isinstance(image, TiffImageFile) else image.size
        )
        # Image's own method: that of PNG would decode the file.
        turned = Image.Image.getexif(image).get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        return (width, height, image.mode) if turned else (height, width, image.mode)


def load(path: Path, channels: int) -> np.ndarray:
    """An image file as uint8 [H, W, channels], `channels` 1, 3 or 4; of several frames the first.

    The EXIF orientation is applied. 16-bit grey is scaled by 255 / 65535; of 16-bit colour Pillow keeps the upper 8
    bits. CMYK is converted without a colour profile. With 1 or 3 channels what is transparent is laid over white. A
    file that can not be decoded is an error of Pillow.
    """
    from PIL import ImageOps

    with open_image(path) as image:
        _check(image)
        ImageOps.exif_transpose(image, in_place=True)
        return _to_array(image, channels)


def to_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """An array [H, W, C] with another number of channels, by the rules of `load`.

    Grey becomes colour by repetition, colour grey by ITU-R 601 luma. `ValueError` for what is not 8-bit with 1, 3 or 4
    channels.
    """
    if image.shape[-1] == channels:
        return image
    if image.dtype != np.uint8 or image.shape[-1] not in _MODES:
        raise ValueError(
            f"channels={channels} needs uint8 images with 1, 3 or 4 channels, got {image.dtype} {image.shape}: "
            "convert them beforehand."
        )
    return _to_array(_picture(image), channels)


def resize(image: np.ndarray, size: tuple[int, int], at: tuple[float, float] = (0.5, 0.5)) -> np.ndarray:
    """Resize an image [h, w, C] until it just covers `size` = (H, W), and crop it to that: [H, W, C].

    The window is cropped at whole pixels of the resized image. `at` says where, for rows and columns: at place
    `floor(at (n + 1))` of the places 0 to n, which is the centre for 0.5. The filter is Pillow's bicubic one, which is
    antialiased (Keys 1981, a = -0.5); where no resizing is needed, pixels stay as they are. Channels are resampled one
    by one, but the colours of RGBA are weighted by their alpha.
    """
    from PIL import Image

    height, width, channels = image.shape
    if (height, width) == size:
        return image
    scale = _scale((height, width), size)
    top, bottom = _window(height, size[0], scale, at[0])
    left, right = _window(width, size[1], scale, at[1])

    def resample(picture: Picture) -> np.ndarray:
        return np.asarray(
            picture.resize(size[::-1], Image.Resampling.BICUBIC, box=(left, top, right, bottom))
        )

    if image.dtype == np.uint8 and channels in _MODES:
        return resample(_picture(image)).reshape(*size, channels)
    return np.stack([resample(_picture(image[..., c : c + 1])) for c in range(channels)], -1)


def corner(
    shape: tuple[int, int], size: tuple[int, int], at: tuple[float, float] = (0.5, 0.5)
) -> tuple[int, int]:
    """Top and left of the window that `resize` crops, in whole pixels of the resized image of `shape` = (h, w)."""
    scale = _scale(shape, size)
    begins = [_window(n, s, scale, a)[0] for n, s, a in zip(shape, size, at, strict=True)]
    return round(begins[0] * scale), round(begins[1] * scale)


def _scale(shape: tuple[int, int], size: tuple[int, int]) -> float:
    return max(size[0] / shape[0], size[1] / shape[1])


def _window(length: int, size: int, scale: float, at: float) -> tuple[float, float]:
    """Begin and end of the window along an axis, in pixels of the image before it is resized."""
    places = max(0, math.floor(length * scale - size + 1e-6)) + 1
    begin = min(places - 1, math.floor(at * places)) / scale
    return begin, min(float(length), begin + size / scale)


MOST_CHANNELS = 4
"""Of a picture: red, green, blue and what covers it."""


def check_channels(where: str, shape: tuple[int | None, ...]) -> None:
    """ValueError for images [C, H, W], as torch has them: few rows, and more channels than a picture has."""
    known = [size or 0 for size in shape]
    if len(known) == 3 and 0 < known[0] <= MOST_CHANNELS < min(known[1:]):
        raise ValueError(
            f"expected images [height, width, channels] in {where}, got {tuple(shape)}, which look like {known[0]} "
            "channels first: np.moveaxis(images, -3, -1) puts them last."
        )


def to_pixels(name: str, image: np.ndarray, where: str = "") -> np.ndarray:
    """Arrays [..., H, W, C] of any type as uint8, or float32 where they are floating-point.

    Integers of another type must lie in 0..255, else it is a `ValueError`; booleans become 0 and 255.
    `where` says in the message where that can be mended.
    """
    if image.dtype == np.uint8:
        return image
    if image.dtype == np.bool_:
        return image.astype(np.uint8) * np.uint8(255)
    if np.issubdtype(image.dtype, np.floating):
        return image.astype(np.float32, copy=False)
    if image.size and (image.min() < 0 or image.max() > 255):
        raise ValueError(
            f'expected 8-bit images in "{name}", got {image.dtype} with values from {image.min()} to '
            f"{image.max()}: scale them to 0..255 and convert them to uint8{where and f' {where}'}."
        )
    return image.astype(np.uint8)


def _check(image: Picture) -> None:
    if image.mode in _WIDE and not (image.mode == "I" and image.format in _SIXTEEN):
        kind = "floating-point numbers" if image.mode == "F" else "32-bit integers"
        raise ValueError(f"{kind} have no stated white: convert it to 8 or 16 bits")


def _to_array(image: Picture, channels: int) -> np.ndarray:
    from PIL import Image

    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((wide + 128) // 257).astype(np.uint8))  # rounds 255 wide / 65535
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if channels != 4:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode != _MODES[channels]:
        image = image.convert(_MODES[channels])
    return np.asarray(image).reshape(image.height, image.width, channels)


def _picture(image: np.ndarray) -> Picture:
    from PIL import Image

    return Image.fromarray(np.ascontiguousarray(image[..., 0] if image.shape[-1] == 1 else image))
