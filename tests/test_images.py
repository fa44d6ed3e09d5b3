from __future__ import annotations

import os
import struct
import subprocess
import sys
import textwrap
import time
import warnings
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
import pytest
from corpus import DECODED, Case, all_cases, formats
from deep_images import tiff_of_pages
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from PIL import Image

from segpipe.errors import ImageError
from segpipe.images import (
    class_palette,
    decode_image,
    decode_mask,
    decode_scaled,
    encode_confidence_map,
    encode_mask,
    overlay,
)

RED, GREEN, BLUE, WHITE, BLACK, GREY = (
    (255, 0, 0),
    (0, 255, 0),
    (0, 0, 255),
    (255, 255, 255),
    (0, 0, 0),
    (128, 128, 128),
)


SIGNATURES = [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0*", b"GIF89a", b"BM", b"P5 ", b"P3 "]


def failure(data: bytes, **options: int) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode_image(data, **options)
    assert "\n" not in str(caught.value)
    return caught.value


def mask_failure(data: bytes) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode_mask(data)
    return caught.value


def png(
    width: int, height: int, depth: int, colour_type: int, rows: bytes, *extra: tuple[bytes, bytes]
) -> bytes:
    """A PNG written by hand, from its specification (rows include the filter byte of each row)."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


# --- what is decoded ---


@pytest.mark.parametrize("file_type", ["PNG", "WEBP", "TIFF", "BMP", "PPM", "GIF"])
def test_lossless_formats_give_their_pixels(encoded, file_type):
    pixels = np.array([[RED, GREEN, BLUE], [WHITE, BLACK, GREY]], np.uint8)
    image = Image.fromarray(pixels)
    if file_type == "GIF":
        image = image.quantize(8)
    decoded = decode_image(encoded(image, file_type, **({"lossless": True} if file_type == "WEBP" else {})))
    assert decoded.dtype == np.uint8
    assert decoded.flags.c_contiguous
    np.testing.assert_array_equal(decoded, pixels)


def test_jpeg_gives_height_width_and_colour(encoded):
    decoded = decode_image(encoded(np.full((8, 16, 3), (200, 100, 50), np.uint8), "JPEG", quality=95))
    assert decoded.shape == (8, 16, 3)
    assert np.abs(decoded.astype(int) - (200, 100, 50)).max() <= 3


def test_multi_picture_jpeg_gives_its_first_picture(encoded):
    first = Image.fromarray(np.full((8, 8, 3), 200, np.uint8))
    second = Image.fromarray(np.full((8, 8, 3), 20, np.uint8))
    decoded = decode_image(encoded(first, "MPO", save_all=True, append_images=[second]))
    assert abs(int(decoded.mean()) - 200) <= 2


@pytest.mark.parametrize(
    ("mode", "pixel", "expected"),
    [
        ("1", 1, WHITE),
        ("L", 77, (77, 77, 77)),
        ("LA", (77, 0), (77, 77, 77)),
        ("RGB", (1, 2, 3), (1, 2, 3)),
        ("RGBA", (1, 2, 3, 0), (1, 2, 3)),
    ],
)
def test_every_8_bit_mode_becomes_rgb_without_alpha(encoded, mode, pixel, expected):
    decoded = decode_image(encoded(Image.new(mode, (3, 2), pixel)))
    np.testing.assert_array_equal(decoded, np.full((2, 3, 3), expected, np.uint8))


@pytest.mark.parametrize("transparency", [0, b"\x00\x80"])
def test_palette_with_transparency_gives_the_palette_colours(encoded, transparency):
    image = Image.fromarray(np.array([[0, 1]], np.uint8))
    image.putpalette([*RED, *GREEN])
    np.testing.assert_array_equal(decode_image(encoded(image, transparency=transparency)), [[RED, GREEN]])


def test_cmyk_and_ycbcr_become_rgb(encoded):
    cmyk = decode_image(encoded(Image.new("CMYK", (2, 2), (0, 255, 255, 0)), "TIFF"))
    np.testing.assert_array_equal(cmyk, np.full((2, 2, 3), RED, np.uint8))
    # Full-range BT.601, as in JFIF: Y=76, Cb=85, Cr=255 is red to within rounding.
    ycbcr = decode_image(encoded(Image.new("YCbCr", (2, 2), (76, 85, 255)), "TIFF"))
    assert np.abs(ycbcr.astype(int) - RED).max() <= 2


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
@pytest.mark.parametrize("file_type", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_by_its_full_range(encoded, file_type, dtype):
    # 65535 / 255 = 257: 128 rounds down, 129 rounds up, 32896 = 128 * 257.
    values = np.array([[0, 128, 129, 257, 32896, 65535]], np.uint16)
    grey = decode_image(encoded(values.astype(dtype), file_type))[0]
    np.testing.assert_array_equal(grey, np.repeat([[0], [0], [1], [1], [128], [255]], 3, axis=1))


def test_16_bit_pgm_is_scaled_by_its_full_range():
    data = b"P5 3 1 65535\n" + struct.pack(">3H", 0, 32896, 65535)
    np.testing.assert_array_equal(decode_image(data)[0, :, 0], [0, 128, 255])


def test_12_bit_and_white_is_zero_tiff(encoded):
    # 12 bits: 0x800 = 2048 of 4095 is 127.53, that is 128; 0xFFF is 255.
    plain = encoded(np.zeros((1, 2), np.uint16), "TIFF")
    twelve = bytearray(plain)
    offset = struct.unpack("<I", plain[4:8])[0]
    for entry in range(struct.unpack_from("<H", plain, offset)[0]):
        at = offset + 2 + 12 * entry
        tag = struct.unpack_from("<H", plain, at)[0]
        if tag == 258:
            struct.pack_into("<H", twelve, at + 8, 12)
        if tag == 273:
            strip = struct.unpack_from("<I", plain, at + 8)[0]
        if tag == 279:
            struct.pack_into("<I", twelve, at + 8, 3)
    twelve[strip : strip + 3] = bytes([0x80, 0x0F, 0xFF])
    np.testing.assert_array_equal(decode_image(bytes(twelve))[0, :, 0], [128, 255])
    inverted = encoded(np.array([[0, 65535]], np.uint16), "TIFF", tiffinfo={262: 0})
    np.testing.assert_array_equal(decode_image(inverted)[0, :, 0], [255, 0])


def test_16_bit_rgb_png_keeps_the_high_byte():
    row = b"\0" + struct.pack(">6H", 0xFFFF, 0x8000, 0, 0x0100, 0x00FF, 0x7F00)
    np.testing.assert_array_equal(decode_image(png(2, 1, 16, 2, row)), [[(255, 128, 0), (1, 0, 127)]])


# The picture as people see it, 2 rows of 3:   R G B / W K Y
SEEN = np.array([[RED, GREEN, BLUE], [WHITE, BLACK, GREY]], np.uint8)
R, G, B, W, K, Y = SEEN.reshape(6, 3)
# What the sensor stored, worked out by hand from where row 0 and column 0 are seen (Exif 2.32, tag 0x0112).
STORED = {
    1: [[R, G, B], [W, K, Y]],  # row 0 top, column 0 left
    2: [[B, G, R], [Y, K, W]],  # top, right
    3: [[Y, K, W], [B, G, R]],  # bottom, right
    4: [[W, K, Y], [R, G, B]],  # bottom, left
    5: [[R, W], [G, K], [B, Y]],  # left, top
    6: [[B, Y], [G, K], [R, W]],  # right, top
    7: [[Y, B], [K, G], [W, R]],  # right, bottom
    8: [[W, R], [K, G], [Y, B]],  # left, bottom
}


@pytest.mark.parametrize("file_type", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(encoded, orientation, file_type):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if file_type == "WEBP" else {}
    data = encoded(np.array(STORED[orientation], np.uint8), file_type, exif=exif, **options)
    decoded = decode_scaled(data, 6, (1, 1))
    np.testing.assert_array_equal(decoded.pixels, SEEN)
    assert (decoded.height, decoded.width) == (2, 3)


def test_exif_orientation_of_a_jpeg_and_of_16_bit_grey(encoded):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored row 0 is the right column
    stored = np.zeros((8, 16, 3), np.uint8)
    stored[:4] = 255
    decoded = decode_image(encoded(stored, "JPEG", exif=exif, quality=95))
    assert decoded.shape == (16, 8, 3)
    assert decoded[:, 4:].min() > 250
    assert decoded[:, :4].max() < 5
    deep = decode_image(encoded(np.array([[0, 65535]], np.uint16), exif=exif))
    np.testing.assert_array_equal(deep[:, :, 0], [[0], [255]])


# --- scaled-down decoding ---


def quarters(height: int, width: int) -> np.ndarray:
    """Seen: red and green above, blue and white below."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2], pixels[: height // 2, width // 2 :] = RED, GREEN
    pixels[height // 2 :, : width // 2], pixels[height // 2 :, width // 2 :] = BLUE, WHITE
    return pixels


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_large_jpeg_is_decoded_small_turned_and_keeps_its_size(encoded, orientation):
    seen = quarters(320, 640)
    stored = {
        1: seen,
        2: seen[:, ::-1],
        3: seen[::-1, ::-1],
        4: seen[::-1],
        5: seen.transpose(1, 0, 2),
        6: np.rot90(seen),
        7: np.rot90(seen, 2).transpose(1, 0, 2),
        8: np.rot90(seen, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(np.ascontiguousarray(stored), "JPEG", exif=exif, quality=95, subsampling=0)
    decoded = decode_scaled(data, 320 * 640, (80, 100))
    assert (decoded.height, decoded.width, decoded.pixels.shape) == (320, 640, (80, 160, 3))
    assert decoded.pixels.flags.c_contiguous
    corners = decoded.pixels[20::40, 40::80].astype(int)
    assert np.abs(corners - [[RED, GREEN], [BLUE, WHITE]]).max() <= 5


@pytest.mark.parametrize(
    ("smallest", "shape"),
    [
        ((101, 67), (101, 67, 3)),  # the image itself
        ((51, 33), (101, 67, 3)),  # 1/2 would be 51 x 34, but Pillow asks that twice 51 fits in 101
        ((50, 33), (51, 34, 3)),
        ((25, 16), (26, 17, 3)),
        ((1, 1), (13, 9, 3)),  # 1/8 is the least there is
        ((1, 60), (101, 67, 3)),
        ((5000, 1), (101, 67, 3)),
    ],
)
def test_a_scaled_decode_is_never_below_the_smallest_size(encoded, smallest, shape):
    data = encoded(quarters(101, 67), "JPEG")
    decoded = decode_scaled(data, 101 * 67, smallest)
    assert (decoded.height, decoded.width, decoded.pixels.shape) == (101, 67, shape)


def test_a_scaled_decode_is_the_average_of_the_full_one(encoded):
    data = encoded(np.random.default_rng(3).integers(0, 256, (64, 96), np.uint8), "JPEG", quality=95)
    full, half = decode_image(data).astype(float), decode_scaled(data, 64 * 96, (32, 48)).pixels.astype(float)
    # libjpeg scales by dropping high frequencies: near the mean of 2 x 2, and far from every other pixel.
    averaged = full.reshape(32, 2, 48, 2, 3).mean(axis=(1, 3))
    assert np.abs(half - averaged).mean() < np.abs(half - full[::2, ::2]).mean() / 4


@pytest.mark.parametrize("file_type", ["PNG", "WEBP", "TIFF", "BMP", "PPM", "GIF"])
def test_other_formats_are_decoded_at_full_size(encoded, file_type):
    decoded = decode_scaled(encoded(quarters(32, 48), file_type), 32 * 48, (4, 4))
    assert (decoded.height, decoded.width, decoded.pixels.shape) == (32, 48, (32, 48, 3))


def test_the_pixel_limit_is_on_the_image_and_not_on_its_scaled_decode(encoded):
    data = encoded(quarters(320, 640), "JPEG")
    with pytest.raises(ImageError) as caught:
        decode_scaled(data, 320 * 640 - 1, (8, 8))
    assert caught.value.reason == "too_large"


def test_damaged_exif_does_not_cost_the_picture(encoded):
    for kind in ("JPEG", "PNG", "WEBP"):
        data = encoded(np.full((4, 4, 3), 90, np.uint8), kind, exif=b"Exif\0\0garbage, no TIFF header")
        assert abs(int(decode_image(data).mean()) - 90) <= 2


# --- what is refused, and why ---


def test_float_and_32_bit_integers_are_unsupported(encoded):
    for array in (np.zeros((2, 2), np.float32), np.zeros((2, 2), np.int32)):
        error = failure(encoded(array, "TIFF"))
        assert error.reason == "unsupported"
        assert "value range" in str(error)
    assert failure(b"Pf 1 1 -1.0\n" + struct.pack("<f", 0.5)).reason == "unsupported"


@pytest.mark.parametrize("file_type", ["GIF", "WEBP", "PNG", "TIFF"])
def test_several_frames_are_unsupported(encoded, file_type):
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN, BLUE)]
    error = failure(encoded(frames[0], file_type, save_all=True, append_images=frames[1:]))
    assert error.reason == "unsupported"
    assert "several frames" in str(error)


@pytest.mark.parametrize("file_type", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "PPM", "GIF"])
def test_an_image_over_the_pixel_limit_is_too_large(encoded, file_type):
    data = encoded(Image.new("L", (11, 10)), file_type)
    error = failure(data, max_pixels=109)
    assert error.reason == "too_large"
    assert "11x10" in str(error)
    assert decode_image(data, max_pixels=110).shape == (10, 11, 3)


def test_a_declared_size_is_refused_before_any_pixel_is_decoded():
    bomb = png(60_000, 60_000, 8, 2, b"")  # 10.8 GB of pixels, none of them there
    assert failure(bomb).reason == "too_large"
    assert failure(bomb, max_pixels=60_000 * 60_000).reason == "unreadable"


def test_pillows_own_limit_does_not_get_in_the_way(monkeypatch, encoded):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
    assert decode_image(encoded(np.zeros((10, 10, 3), np.uint8))).shape == (10, 10, 3)


@pytest.mark.parametrize("file_type", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "PPM", "GIF"])
def test_a_cut_off_file_is_unreadable(encoded, file_type):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    data = encoded(noise, file_type)
    for share in (0.05, 0.5, 0.9):
        assert failure(data[: int(len(data) * share)]).reason == "unreadable"


def test_what_is_no_image_is_unreadable():
    archive = BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.jpg", b"x")
    page = b"<!DOCTYPE html><html><body>503</body></html>"
    for data in (b"", b"\0", b"\xff\xd8\xff", b"BM", b"P6 ", page, archive.getvalue(), bytes(range(256))):
        assert failure(data).reason == "unreadable"


def test_a_format_that_is_an_image_but_not_ours_is_unsupported():
    error = failure(b"\0\0\0\x18ftypheic" + bytes(100))
    assert error.reason == "unsupported"
    assert "HEIC" in str(error)


def test_the_content_counts_and_never_the_declared_type(encoded):
    assert decode_image(encoded(np.zeros((2, 2, 3), np.uint8), "BMP")).shape == (2, 2, 3)


@pytest.mark.parametrize("chunk", [(b"zTXt", b"k\0\0"), (b"iTXt", b"k\0\1\0\0\0"), (b"iCCP", b"k\0\0")])
def test_a_text_or_profile_bomb_costs_neither_the_picture_nor_memory(chunk):
    kind, head = chunk
    bomb = kind, head + zlib.compress(bytes(20_000_000), 9)
    np.testing.assert_array_equal(decode_image(png(1, 1, 8, 0, b"\0\7", bomb)), [[[7, 7, 7]]])


def test_an_image_with_more_text_than_pillow_allows_is_read():
    texts = [(b"tEXt", b"k\0" + b"x" * 70_000_000)]
    np.testing.assert_array_equal(decode_image(png(1, 1, 8, 0, b"\0\7", *texts)), [[[7, 7, 7]]])


def test_orientation_in_a_png_text_is_applied():
    xmp = b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'
    assert decode_image(png(2, 1, 8, 0, b"\0\1\2", (b"iTXt", xmp)))[:, 0, 0].tolist() == [1, 2]


def test_a_wrong_checksum_is_unreadable(encoded):
    data = bytearray(encoded(np.zeros((4, 4, 3), np.uint8)))
    data[data.index(b"IHDR") + 6] ^= 1
    assert failure(bytes(data)).reason == "unreadable"


SECONDS_PER_CASE = 20  # far above what any takes, and far below what a bomb would


@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.name)
def test_every_case_of_the_corpus_is_decoded_right_or_refused_with_its_reason(case: Case):
    started = time.perf_counter()
    try:
        decoded = decode_image(case.data)
    except ImageError as error:
        outcome = error.reason
    else:
        outcome = DECODED
        assert (decoded.dtype, decoded.ndim, decoded.shape[2]) == (np.uint8, 3, 3)
        if case.pixels is not None:
            assert decoded.shape == case.pixels.shape
            assert np.abs(decoded.astype(int) - case.pixels).max() <= case.tolerance
    assert outcome in case.outcomes
    assert time.perf_counter() - started < SECONDS_PER_CASE


PEAK = """
    def peak():  # bytes, of this program alone: Linux hands ru_maxrss on from the process that starts it
        with open("/proc/self/status") as status:
            return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
"""

MEASURE = """
    import sys
    from corpus import all_cases
    from segpipe.errors import ImageError
    from segpipe.images import decode_image

    cases = all_cases()
    for case in cases:
        before = peak()
        try:
            decode_image(case.data)
        except ImageError:
            pass
        if peak() - before > int(sys.argv[1]):
            print(case.name, peak() - before)
"""


def test_no_case_of_the_corpus_takes_much_memory():
    """The largest that decodes has 20,000 pixels: nothing may take 100 MB beyond what was taken before."""
    assert child(PEAK + MEASURE, 100_000_000) == ""


LARGEST = """
    import sys
    import numpy as np
    from io import BytesIO
    from PIL import Image
    from segpipe.images import decode_image

    side, kind, mode, options = int(sys.argv[1]), *map(eval, sys.argv[2:5])
    buffer = BytesIO()
    Image.new(mode, (side, side)).save(buffer, kind, **options)
    decode_image(buffer.getvalue(), side * side)
    print(peak() // side**2)
"""
BYTES_PER_PIXEL = 28  # peak of a child that decodes, encoding before included; 4 and 3 of them are the result


@pytest.mark.corpus
@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("PNG", "RGB", {}),
        ("PNG", "I;16", {}),
        ("JPEG", "RGB", {"progressive": True, "subsampling": 0}),
        ("JPEG", "CMYK", {"progressive": True}),
        ("TIFF", "RGBA", {"compression": "tiff_lzw"}),
        ("WEBP", "RGB", {}),
        ("GIF", "P", {}),
    ],
)
def test_memory_is_bounded_by_the_pixel_limit(kind, mode, options):
    assert int(child(PEAK + LARGEST, 5000, repr(kind), repr(mode), repr(options))) <= BYTES_PER_PIXEL


def child(program: str, *arguments: object) -> str:
    """What the program prints in a process of its own, whose peak of memory is its own."""
    command = [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def assert_an_image_or_an_image_error(data: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            decoded = decode_scaled(data, 10_000, (8, 8))
        except ImageError:
            pass
        else:
            pixels = decoded.pixels
            assert (pixels.dtype, pixels.ndim, pixels.shape[2]) == (np.uint8, 3, 3)
            assert 0 < decoded.height * decoded.width <= 10_000


INTACT = list(formats().values())


@st.composite
def damaged_files(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(st.sampled_from(INTACT)))
    # Headers are where most decisions fall, so half of all damage is done there.
    places = st.integers(0, min(len(data), 200) - 1) | st.integers(0, len(data) - 1)
    for at, value in draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=16)):
        data[at] = value
    return bytes(data[: draw(st.just(len(data)) | st.integers(0, len(data)))])


@settings(max_examples=300, deadline=None)
@given(damaged_files())
def test_damage_gives_an_image_or_an_image_error(data):
    assert_an_image_or_an_image_error(data)


@pytest.mark.corpus
@settings(max_examples=3000, deadline=None)
@given(damaged_files() | st.sampled_from(SIGNATURES).flatmap(lambda head: st.binary().map(head.__add__)))
def test_much_damage_gives_an_image_or_an_image_error(data):
    assert_an_image_or_an_image_error(data)


def test_no_warning_escapes_and_none_becomes_an_error(encoded):
    # A tag that points far behind the end: Pillow warns "Corrupt EXIF data".
    exif = b"Exif\0\0II*\0\x08\0\0\0\x02\0\x0f\x01\x02\0\xff\0\0\0\xff\xff\0\0\x12\x01\x03\0"
    data = encoded(np.full((4, 4, 3), 90, np.uint8), "JPEG", exif=exif)
    palette = Image.fromarray(np.array([[0, 1]], np.uint8))
    palette.putpalette([*RED, *GREEN])
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        Image.open(BytesIO(data)).getexif().get(0x0112)
        assert seen, "the file must be one that Pillow warns about"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode_image(data).shape == (4, 4, 3)
        assert decode_image(encoded(palette, transparency=b"\x00\x80")).shape == (1, 2, 3)


def test_threads_decode_the_same_as_one(encoded):
    files = [encoded(np.full((32, 32, 3), value, np.uint8)) for value in range(64)]
    with ThreadPoolExecutor(8) as pool:
        for value, decoded in enumerate(pool.map(decode_image, files)):
            assert (decoded == value).all()


# --- masks ---


@settings(max_examples=100, deadline=None)
@given(
    st_numpy.arrays(np.uint8, st_numpy.array_shapes(min_dims=2, max_dims=2, max_side=20)), st.integers(1, 256)
)
def test_masks_round_trip_whatever_the_palette(mask, n_classes):
    np.testing.assert_array_equal(decode_mask(encode_mask(mask, class_palette(n_classes))), mask)


def test_every_index_round_trips_and_shows_its_palette_colour():
    mask = np.arange(256, dtype=np.uint8).reshape(16, 16)
    palette = class_palette(256)
    data = encode_mask(mask, palette)
    np.testing.assert_array_equal(decode_mask(data), mask)
    np.testing.assert_array_equal(decode_image(data), palette[mask])
    assert Image.open(BytesIO(data)).mode == "P"


def test_the_same_mask_gives_the_same_bytes():
    mask = np.random.default_rng(2).integers(0, 8, (50, 40), np.uint8)
    assert encode_mask(mask, class_palette(8)) == encode_mask(mask.copy(), class_palette(8))


def test_only_height_by_width_uint8_is_a_mask():
    for mask in (np.zeros((2, 2), np.int64), np.zeros((2, 2, 1), np.uint8), np.zeros((0, 2), np.uint8)):
        with pytest.raises(ImageError, match="HxW uint8"):
            encode_mask(mask, class_palette(2))


def test_grey_masks_hold_class_indices(encoded):
    mask = np.array([[0, 1, 255]], np.uint8)
    np.testing.assert_array_equal(decode_mask(encoded(mask)), mask)
    np.testing.assert_array_equal(decode_mask(encoded(mask.astype(np.uint16))), mask)
    assert decode_mask(encoded(mask.astype(np.uint16))).dtype == np.uint8


@pytest.mark.parametrize(("depth", "row"), [(1, 0b01000000), (2, 0b00011011), (4, 0b00001111)])
def test_grey_masks_of_few_bits_are_not_stretched(depth, row):
    count = 8 // depth
    expected = [(row >> (8 - depth * (i + 1))) & ((1 << depth) - 1) for i in range(count)]
    decoded = decode_mask(png(count, 1, depth, 0, bytes([0, row])))
    np.testing.assert_array_equal(decoded, [expected])


def test_masks_that_are_no_class_indices_are_refused(encoded):
    grid = np.zeros((2, 2), np.uint8)
    colour = mask_failure(encoded(np.zeros((2, 2, 3), np.uint8)))
    assert colour.reason == "unsupported"
    assert "masks must be one channel of class indices" in str(colour)
    assert "256" in str(mask_failure(encoded(np.full((2, 2), 256, np.uint16))))
    assert "must be a PNG" in str(mask_failure(encoded(grid, "JPEG")))
    assert (
        mask_failure(encoded(np.random.default_rng(0).integers(0, 9, (64, 64), np.uint8))[:-200]).reason
        == "unreadable"
    )
    assert mask_failure(b"").reason == "unreadable"
    with pytest.raises(ImageError) as caught:
        decode_mask(encoded(grid), max_pixels=3)
    assert caught.value.reason == "too_large"


# --- confidence maps ---


def grey_values(data: bytes) -> np.ndarray:
    with Image.open(BytesIO(data)) as image:
        assert (image.format, image.mode) == ("PNG", "L")
        return np.asarray(image)


def test_a_confidence_map_is_bilinear_between_the_middles_of_its_cells():
    # Four pixels over two cells: their middles lie 0.25 and 0.75 of a cell beside those of the cells.
    data = encode_confidence_map(np.array([[0.0, 1.0]], np.float32), 1, 4)
    assert grey_values(data).tolist() == [[0, 64, 191, 255]]
    column = encode_confidence_map(np.array([[0.0], [1.0]], np.float32), 4, 1)
    assert grey_values(column).tolist() == [[0], [64], [191], [255]]


def test_a_confidence_map_has_the_size_of_the_image():
    assert grey_values(encode_confidence_map(np.full((3, 5), 0.5, np.float32), 40, 7)).shape == (40, 7)
    smaller = grey_values(encode_confidence_map(np.full((30, 50), 0.2, np.float32), 4, 7))
    np.testing.assert_array_equal(smaller, np.full((4, 7), 51))


def test_what_a_confidence_map_knows_nothing_of_is_black():
    data = encode_confidence_map(np.array([[np.nan, 1.5], [-0.5, 1.0]]), 2, 2)
    assert grey_values(data).tolist() == [[0, 255], [0, 255]]


@pytest.mark.parametrize("shape", [(0, 3), (3,), (1, 2, 3)])
def test_only_height_by_width_is_a_confidence_map(shape):
    with pytest.raises(ImageError, match="confidence map"):
        encode_confidence_map(np.zeros(shape, np.float32), 4, 4)


# --- colours and overlays ---


def test_class_palette_is_the_pascal_voc_one():
    # The first entries as published with PASCAL VOC 2012 (VOClabelcolormap).
    voc = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128)]
    voc += [(128, 128, 128), (64, 0, 0)]
    np.testing.assert_array_equal(class_palette(9), voc)
    assert class_palette(9).dtype == np.uint8
    assert len({tuple(colour) for colour in class_palette(256)}) == 256
    for count in (0, 257):
        with pytest.raises(ImageError, match="1 to 256"):
            class_palette(count)


def test_overlay_blends_and_leaves_ignored_pixels_bare():
    image = np.array([[(100, 100, 100), (10, 20, 30)]], np.uint8)
    palette = np.array([(0, 0, 0), (200, 0, 100)], np.uint8)
    # 0.75 * 100 + 0.25 * (200, 0, 100) = (125, 75, 100); index 255 is no class.
    blended = overlay(image, np.array([[1, 255]], np.uint8), palette, opacity=0.25)
    np.testing.assert_array_equal(blended, [[(125, 75, 100), (10, 20, 30)]])
    assert blended.dtype == np.uint8
    np.testing.assert_array_equal(image[0, 0], (100, 100, 100))
    with pytest.raises(ImageError, match="differ in size"):
        overlay(image, np.zeros((2, 2), np.uint8), palette)


# --- TIFFs of several pages, and what a value means ---


COLOURS = np.random.default_rng(3).integers(0, 256, (16, 24, 3), np.uint8)


@pytest.mark.parametrize("kind", [1, 4, 5])
def test_a_tiff_with_overviews_or_transparency_masks_is_its_first_page(kind):
    data = tiff_of_pages([(COLOURS, 0), (COLOURS[::2, ::2], kind), (COLOURS[::4, ::4], kind)], photometric=2)
    np.testing.assert_array_equal(decode_image(data), COLOURS)


def test_a_tiff_of_several_pictures_is_unsupported():
    for kinds in ((0, 0), (1, 0), (0, 1, 0), (0, 2)):
        assert (
            failure(tiff_of_pages([(COLOURS, kind) for kind in kinds], photometric=2)).reason == "unsupported"
        )


def test_a_tiff_of_millions_of_overviews_is_refused_at_once():
    small = np.zeros((1, 1, 3), np.uint8)
    assert failure(tiff_of_pages([(COLOURS, 0), *[(small, 1)] * 100], photometric=2)).reason == "unsupported"


def test_a_tiff_of_a_kind_that_is_not_read_is_unsupported_and_not_damaged():
    error = failure(tiff_of_pages([(COLOURS, 0)], photometric=1))  # three channels of which none is a colour
    assert error.reason == "unsupported"
    assert "save it as 8-bit RGB" in str(error)


@pytest.mark.parametrize("values", [(0, 4095), (0, 8000)])
def test_12_bits_in_16_are_called_nearly_black(encoded, values):
    grey = np.array([values], np.uint16)
    three = np.dstack([grey] * 3)
    pgm = b"P5 2 1 65535\n" + grey.astype(">u2").tobytes()
    rgb_png = png(2, 1, 16, 2, b"\0" + three.astype(">u2").tobytes())
    for data in (
        encoded(grey, "TIFF"),
        encoded(grey, "PNG"),
        pgm,
        rgb_png,
        tiff_of_pages([(three, 0)], photometric=2),
    ):
        assert decode_scaled(data, 1000, None).nearly_black
    whole = np.array([[0, 8192]], np.uint16)
    for data in (encoded(whole, "TIFF"), encoded(whole, "PNG"), encoded((grey >> 8).astype(np.uint8), "PNG")):
        assert not decode_scaled(data, 1000, None).nearly_black


@pytest.mark.parametrize("file_type", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_the_orientation_that_turned_an_image_is_told(encoded, file_type):
    exif = Image.Exif()
    exif[0x0112] = 3
    assert decode_scaled(encoded(COLOURS, file_type, exif=exif), 1000, None).orientation == 3
    assert decode_scaled(encoded(COLOURS, file_type), 1000, None).orientation == 1


@pytest.mark.parametrize("packed", [True, False])
def test_a_long_text_that_could_hold_an_orientation_costs_no_picture(packed):
    text = b"XML:com.adobe.xmp\0" + (b"\1" if packed else b"\0") + b"\0\0\0"
    text += zlib.compress(b"x" * 3_000_000) if packed else b"x" * 3_000_000
    data = png(1, 1, 8, 2, b"\0\1\2\3", (b"iTXt", text))
    np.testing.assert_array_equal(decode_image(data), [[(1, 2, 3)]])
