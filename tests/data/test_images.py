"""Images of every kind as arrays, against what numpy makes of the same numbers."""

import os
import re
import subprocess

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, UnidentifiedImageError

from gen_jax.data import images

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (7, 5), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (7, 5, 3), dtype=np.uint8)
ALPHA = RNG.integers(0, 256, (7, 5), dtype=np.uint8)


def over_white(colour, alpha):
    a = alpha[..., None] / 255
    return a * colour + (1 - a) * 255


def luma(colour):
    return colour @ [0.299, 0.587, 0.114]


def palette():
    image = Image.fromarray(GREY % 4, "P")
    colours = RNG.integers(0, 256, (4, 3), dtype=np.uint8)
    image.putpalette(colours.tobytes())
    return image, colours[GREY % 4]


def cases():
    """A name, an image, how it is saved, and its pixels [7, 5, 1 or 3] as numbers."""
    yield "L.png", Image.fromarray(GREY), {}, GREY[..., None]
    yield "L.bmp", Image.fromarray(GREY), {}, GREY[..., None]
    yield "1.png", Image.fromarray(GREY > 99), {}, np.where(GREY[..., None] > 99, 255, 0)
    yield "1.tif", Image.fromarray(GREY > 99), {}, np.where(GREY[..., None] > 99, 255, 0)
    yield "RGB.ppm", Image.fromarray(COLOUR), {}, COLOUR
    yield "RGB.webp", Image.fromarray(COLOUR), {"lossless": True}, COLOUR
    yield "RGB.tga", Image.fromarray(COLOUR), {}, COLOUR
    image, pixels = palette()
    yield "P.png", image, {}, pixels
    yield "P.gif", image, {}, pixels
    clear = np.where((GREY % 4 == 2)[..., None], 255, pixels)
    yield "P-clear.png", image, {"transparency": 2}, clear
    yield "P-clear.gif", image, {"transparency": 2}, clear
    rgba = np.dstack([COLOUR, ALPHA])
    yield "RGBA.png", Image.fromarray(rgba), {}, over_white(COLOUR, ALPHA)
    yield "LA.png", Image.fromarray(np.dstack([GREY, ALPHA]), "LA"), {}, over_white(GREY[..., None], ALPHA)
    seen = np.where((COLOUR[2, 3] == COLOUR).all(-1, keepdims=True), 255, COLOUR)
    yield "RGB-clear.png", Image.fromarray(COLOUR), {"transparency": tuple(COLOUR[2, 3].tolist())}, seen
    cmyk = RNG.integers(0, 256, (7, 5, 4), dtype=np.uint8)
    ink = cmyk.astype(float) / 255
    yield "CMYK.tif", Image.fromarray(cmyk, "CMYK"), {}, 255 * (1 - ink[..., :3]) * (1 - ink[..., 3:])


CASES = list(cases())


@pytest.mark.filterwarnings("ignore:'mode' parameter")
@pytest.mark.parametrize(("name", "image", "options", "pixels"), CASES, ids=[case[0] for case in CASES])
def test_load_gives_the_pixels_of_every_mode(tmp_path, name, image, options, pixels):
    image.save(tmp_path / name, **options)
    colour = np.broadcast_to(pixels, (7, 5, 3)).astype(float)
    got = images.load(tmp_path / name, 3)
    assert (got.dtype, got.shape) == (np.uint8, (7, 5, 3))
    exact = name.split(".")[0] not in ("RGBA", "LA", "CMYK")
    np.testing.assert_allclose(got, colour, atol=0 if exact else 1.01)
    np.testing.assert_allclose(images.load(tmp_path / name, 1)[..., 0], luma(colour), atol=1 if exact else 2)
    height, width, mode = images.header(tmp_path / name)
    assert (height, width) == (7, 5)
    assert (mode in images.GREY) == (pixels.shape[-1] == 1)


def test_load_with_four_channels_keeps_alpha(tmp_path):
    rgba = np.dstack([COLOUR, ALPHA])
    Image.fromarray(rgba).save(tmp_path / "a.png")
    np.testing.assert_array_equal(images.load(tmp_path / "a.png", 4), rgba)
    Image.fromarray(GREY).save(tmp_path / "b.png")
    opaque = np.dstack([GREY, GREY, GREY, np.full_like(GREY, 255)])
    np.testing.assert_array_equal(images.load(tmp_path / "b.png", 4), opaque)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_load_scales_16_bits_to_8(tmp_path, name):
    """All 65,536 values, rounded to the nearest of 256."""
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    if name == "a.pgm":
        (tmp_path / name).write_bytes(b"P5 256 256 65535\n" + ramp.astype(">u2").tobytes())
    else:
        Image.fromarray(ramp).save(tmp_path / name)
    expected = np.rint(ramp * (255 / 65535))
    np.testing.assert_array_equal(images.load(tmp_path / name, 1)[..., 0], expected)
    np.testing.assert_array_equal(images.load(tmp_path / name, 3), np.stack([expected] * 3, -1))
    assert images.header(tmp_path / name)[2] in images.GREY


def test_load_takes_the_upper_bits_of_16_bit_colour(tmp_path):
    """A 48-bit PNG, written by hand: Pillow has no mode for it."""
    import struct
    import zlib

    wide = RNG.integers(0, 65536, (7, 5, 3), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in wide)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 5, 7, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    raw = b"".join(
        struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks
    )
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + raw)
    np.testing.assert_allclose(images.load(tmp_path / "a.png", 3), wide / 257, atol=1)


UPRIGHT = {  # EXIF 2.32, tag 274: what turns the pixels as stored into the picture as seen
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp"])
def test_load_applies_the_orientation(tmp_path, name, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    options = {"lossless": True} if name == "a.webp" else {}
    Image.fromarray(COLOUR).save(tmp_path / name, exif=exif, **options)
    expected = UPRIGHT[orientation](COLOUR)
    np.testing.assert_array_equal(images.load(tmp_path / name, 3), expected)
    assert images.header(tmp_path / name)[:2] == expected.shape[:2]


@pytest.mark.parametrize(("kind", "said"), [(np.float32, "floating-point"), (np.int32, "32-bit integers")])
def test_load_refuses_what_has_no_white(tmp_path, kind, said):
    Image.fromarray(GREY.astype(kind)).save(tmp_path / "a.tif")
    for look in (images.header, lambda path: images.load(path, 3)):
        with pytest.raises(ValueError, match=f"{said}.*convert it to 8 or 16 bits"):
            look(tmp_path / "a.tif")


def test_load_takes_the_first_frame(tmp_path):
    frames = [Image.fromarray(np.full((4, 6), value, np.uint8)) for value in (10, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(images.load(tmp_path / "a.gif", 1), np.full((4, 6, 1), 10))


def test_suffixes_are_of_pictures():
    endings = images.suffixes()
    assert {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm"} <= endings
    assert not {".pdf", ".mpg", ".h5", ".txt", ".npz"} & endings


# Channels of arrays


@pytest.mark.parametrize("given", [1, 3, 4])
@pytest.mark.parametrize("wanted", [1, 3, 4])
def test_to_channels(given, wanted):
    image = np.dstack([COLOUR, ALPHA])[..., :given] if given > 1 else GREY[..., None]
    got = images.to_channels(image, wanted)
    colour = (
        over_white(image[..., :3], image[..., 3])
        if given == 4
        else np.broadcast_to(image, (7, 5, 3)).astype(float)
    )
    alpha = np.full((7, 5), 255)
    expected = {1: luma(colour)[..., None], 3: colour, 4: np.dstack([colour, alpha])}[wanted]
    np.testing.assert_allclose(got, image if given == wanted else expected, atol=2)


@pytest.mark.parametrize("image", [np.zeros((4, 4, 2), np.uint8), np.zeros((4, 4, 1), np.float32)])
def test_to_channels_refuses_what_it_can_not_convert(image):
    with pytest.raises(
        ValueError, match=re.escape(f"got {image.dtype} {image.shape}: convert them beforehand")
    ):
        images.to_channels(image, 3)


# Size


def keys(x):
    """The cubic kernel of Keys 1981, Eq. 15, a = -1/2."""
    x = np.abs(x)
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def weights(length, size, scale, first):
    """[size, length]: the kernel, as wide as a pixel of the result where that is larger than one of the image."""
    centre = (np.arange(first, first + size)[:, None] + 0.5) / scale
    w = keys((np.arange(length) + 0.5 - centre) * min(scale, 1))
    return w / w.sum(1, keepdims=True)


SIDE = st.integers(1, 40)


@given(SIDE, SIDE, SIDE, SIDE, st.sampled_from([1, 2, 3]), st.sampled_from([np.uint8, np.float32]))
@settings(max_examples=150, deadline=None)
def test_resize_covers_and_crops(h, w, height, width, channels, kind):
    image = np.random.default_rng(h * w).integers(80, 176, (h, w, channels)).astype(kind)
    got = images.resize(image, (height, width))
    assert (got.shape, got.dtype) == ((height, width, channels), kind)
    scale = max(height / h, width / w)
    first = [int(np.floor(n * scale - size + 1e-6) + 1) // 2 for n, size in ((h, height), (w, width))]
    rows, columns = weights(h, height, scale, first[0]), weights(w, width, scale, first[1])
    expected = np.einsum("ih,hwc,jw->ijc", rows, image, columns)
    # Pillow rounds 8-bit images after each of the two axes, and takes the box in float32.
    np.testing.assert_allclose(got, expected, atol=2.01 if kind is np.uint8 else 0.02)


@pytest.mark.parametrize(("at", "rows", "columns"), [(0.5, 2, 3), (0.0, 0, 0), (0.9999, 4, 6)])
def test_resize_only_crops_where_the_size_is_right(at, rows, columns):
    image = RNG.integers(0, 256, (12, 8, 3), dtype=np.uint8)
    np.testing.assert_array_equal(images.resize(image, (8, 8), (at, at)), image[rows : rows + 8])
    image = image.swapaxes(0, 1)[:, :11]
    image = np.concatenate([image, image], 1)[:, :14]
    np.testing.assert_array_equal(images.resize(image, (8, 8), (at, at)), image[:, columns : columns + 8])


def test_resize_keeps_the_colours_at_a_transparent_edge():
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[:, :4] = (200, 100, 50, 255)  # the rest is black, but nobody sees it
    small = images.resize(rgba, (4, 4))
    seen = small[small[..., 3] > 99]
    assert len(seen) >= 8
    np.testing.assert_allclose(seen[:, :3], np.broadcast_to([200, 100, 50], (len(seen), 3)), atol=4)


# Types


def test_to_pixels():
    np.testing.assert_array_equal(images.to_pixels("x", np.array([True, False])), [255, 0])
    assert images.to_pixels("x", np.arange(256)).dtype == np.uint8
    assert images.to_pixels("x", np.zeros(3)).dtype == np.float32
    with pytest.raises(ValueError, match='8-bit images in "x", got int64 with values from -1 to 3'):
        images.to_pixels("x", np.arange(-1, 4))


# Files of strangers


def test_what_pillow_gives_to_a_program_is_not_read_whatever_it_is_called(tmp_path, monkeypatch):
    """Pillow looks at the contents, and starts Ghostscript for EPS."""
    monkeypatch.setattr(subprocess, "Popen", None)
    Image.fromarray(COLOUR).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    for look in (images.header, lambda path: images.load(path, 3)):
        with pytest.raises(UnidentifiedImageError):
            look(tmp_path / "a.png")


@pytest.mark.parametrize("kind", ["pipe", "directory"])
def test_what_is_no_file_is_not_waited_for(tmp_path, kind):
    path = tmp_path / "a.png"
    os.mkfifo(path) if kind == "pipe" else path.mkdir()
    for look in (images.header, lambda path: images.load(path, 3)):
        with pytest.raises(ValueError, match="expected a file, it is none"):
            look(path)


def test_a_png_with_a_flipped_bit_is_an_error_and_no_other_picture(tmp_path):
    """Of each bit of the data; uncompressed, it would be a pixel."""
    Image.fromarray(GREY).save(tmp_path / "a.png", compress_level=0)
    raw = (tmp_path / "a.png").read_bytes()
    begin = raw.index(b"IDAT")
    for at in range(begin, raw.index(b"IEND") - 4):
        (tmp_path / "a.png").write_bytes(raw[:at] + bytes([raw[at] ^ 1 << at % 8]) + raw[at + 1 :])
        with pytest.raises((OSError, SyntaxError)):
            images.load(tmp_path / "a.png", 1)
