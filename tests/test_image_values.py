"""A range of stored values as 8 bits (contract C14), worked out by hand, for every kind of deep image."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from deep_images import png16, tiff, tiff_of_pages
from hypothesis import given, settings
from hypothesis import strategies as st
from labelled_sets import png, saved
from PIL import Image

from segpipe.errors import ImageError
from segpipe.image_range import checked_range, shown_range
from segpipe.image_values import to_8_bits
from segpipe.images import decode_image, decode_pillow, decode_scaled, decode_stored, open_image

TWELVE_BITS = (100.0, 1120.0)  # 1020 wide: four values a grey level
# By hand: below, at, 2/1020 * 255 = 0.5 (to even), 3/4, 1, half way 127.5 (to even), at, above.
VALUES = [0, 100, 102, 103, 104, 610, 1120, 4095]
GREYS = [0, 0, 0, 1, 1, 128, 255, 255]


COLOURS = np.random.default_rng(4).integers(0, 1 << 16, (9, 14, 3), np.uint16)
ALPHA = np.dstack([COLOURS, COLOURS[..., 0] // 2])


def test_the_formula_by_hand() -> None:
    for dtype in (np.uint16, np.int32, np.float32):
        assert to_8_bits(np.array(VALUES, dtype), TWELVE_BITS).tolist() == GREYS
    assert to_8_bits(np.array([0, 127, 128, 255], np.uint8), (0.0, 255.0)).tolist() == [0, 127, 128, 255]
    assert to_8_bits(np.array([-300, -200, 0, 200], np.int32), (-200.0, 200.0)).tolist() == [0, 0, 128, 255]


def test_what_is_no_number_is_low_and_infinity_is_cut_off() -> None:
    values = np.array([[np.nan, np.inf, -np.inf, 0.25, 3e38]], np.float32)
    assert to_8_bits(values, (0.0, 1.0)).tolist() == [[0, 255, 0, 64, 255]]


@settings(deadline=None, max_examples=50)
@given(
    st.tuples(st.integers(-(2**31), 2**31 - 2), st.integers(1, 2**32)),
    st.lists(st.integers(0, 65535), min_size=1, max_size=20),
)
def test_a_table_of_16_bits_and_plain_arithmetic_agree(span: tuple[int, int], values: list[int]) -> None:
    image_range = (float(span[0]), float(span[0] + span[1]))
    by_table = to_8_bits(np.array(values, np.uint16), image_range)
    np.testing.assert_array_equal(by_table, to_8_bits(np.array(values, np.int32), image_range))


def test_many_values_are_scaled_in_parts_as_the_whole() -> None:
    values = np.arange(3_000_000, dtype=np.int32).reshape(3, -1)
    expected = np.rint(np.clip(values / 2_999_999, 0, 1) * 255)
    np.testing.assert_array_equal(to_8_bits(values, (0.0, 2_999_999.0)), expected)


GREY16 = np.array([VALUES], np.uint16)
DEEP_GREYS = {
    "TIFF": saved(GREY16, "TIFF"),
    "compressed TIFF": saved(GREY16, "TIFF", compression="tiff_lzw"),
    "big-endian TIFF": tiff([GREY16], 1, order=">"),
    "PNG": png(GREY16),
    "PGM": b"P5 8 1 65535\n" + GREY16.astype(">u2").tobytes(),
    "12-bit PGM": b"P5 8 1 4095\n" + GREY16.astype(">u2").tobytes(),
    "plain PGM": b"P2 8 1 4095\n" + b" ".join(b"%d" % value for value in VALUES),
    "signed TIFF": tiff([GREY16.astype(np.int16)], 1, sample_format=2),
    "32-bit TIFF": tiff([GREY16.astype(np.int32)], 1, sample_format=2),
    "32-bit TIFF without sign": tiff([GREY16.astype(np.uint32)], 1),
    "float TIFF": saved(GREY16.astype(np.float32), "TIFF"),
    "compressed float TIFF": saved(GREY16.astype(np.float32), "TIFF", compression="tiff_adobe_deflate"),
    "PFM": b"Pf 8 1 -1.0\n" + GREY16.astype("<f4").tobytes(),
    "grey and alpha PNG": png16(np.dstack([GREY16, GREY16[:, ::-1]]), 4),
    "RGB PNG": png16(np.dstack([GREY16] * 3), 2),
}


@pytest.mark.parametrize("data", DEEP_GREYS.values(), ids=DEEP_GREYS.keys())
def test_every_kind_of_deep_grey_is_brought_to_the_range(data: bytes) -> None:
    decoded = decode_scaled(data, 8, (1, 1), TWELVE_BITS)
    assert decoded.pixels.dtype == np.uint8
    assert decoded.pixels.flags.c_contiguous
    np.testing.assert_array_equal(decoded.pixels, np.repeat(np.array(GREYS)[None, :, None], 3, axis=2))
    assert not decoded.nearly_black


DEEP_COLOURS = {
    "PNG": png16(COLOURS, 2),
    "PNG with alpha": png16(ALPHA, 6),
    "TIFF": tiff([COLOURS], 2),
    "big-endian TIFF": tiff([COLOURS], 2, order=">"),
    "compressed TIFF": tiff([COLOURS], 2, deflated=True),
    "big-endian compressed TIFF": tiff([COLOURS], 2, order=">", deflated=True),
    "TIFF with alpha": tiff([ALPHA], 2, extra=2),
    "TIFF with a fourth channel": tiff([ALPHA], 2, extra=0),
}


@pytest.mark.parametrize("data", DEEP_COLOURS.values(), ids=DEEP_COLOURS.keys())
def test_16_bits_of_colour_are_read_whole(data: bytes) -> None:
    np.testing.assert_array_equal(decode_stored(open_image(data, 1000)), COLOURS)
    expected = np.rint(np.clip((COLOURS.astype(float) - 300) / 40_000, 0, 1) * 255)
    np.testing.assert_array_equal(decode_image(data, 1000, (300.0, 40_300.0)), expected)
    np.testing.assert_array_equal(decode_image(data), COLOURS >> 8)  # without a range as ever


def test_interlaced_colour_is_read_whole() -> None:
    one = png16(COLOURS[:1, :1], 2, interlaced=True)  # of one pixel the first of seven passes is all
    np.testing.assert_array_equal(decode_stored(open_image(one, 1)), COLOURS[:1, :1])


def test_colour_of_16_bits_that_pillow_reads_in_part_only_is_refused_with_a_range() -> None:
    ppm = b"P6 14 9 65535\n" + COLOURS.astype(">u2").tobytes()
    inks = tiff([ALPHA], 5)
    premultiplied = tiff([ALPHA], 2, extra=1)
    planes = tiff([np.ascontiguousarray(COLOURS[..., channel]) for channel in range(3)], 2, deflated=True)
    for data in (ppm, inks, premultiplied, planes):
        assert decode_image(data).shape == (9, 14, 3)
        with pytest.raises(ImageError, match="16-bit PNG") as refused:
            decode_image(data, 1000, (0.0, 65535.0))
        assert refused.value.reason == "unsupported"


def test_uncompressed_planes_of_16_bits_are_refused_and_not_misread() -> None:
    data = tiff([np.ascontiguousarray(COLOURS[..., channel]) for channel in range(3)], 2)
    for image_range in (None, (0.0, 65535.0)):
        with pytest.raises(ImageError, match="separate") as refused:
            decode_image(data, 1000, image_range)
        assert refused.value.reason == "unsupported"
    eight = [np.ascontiguousarray((COLOURS >> 8)[..., channel].astype(np.uint8)) for channel in range(3)]
    np.testing.assert_array_equal(decode_image(tiff(eight, 2)), COLOURS >> 8)


def test_white_is_zero_stays_so() -> None:
    for values in (GREY16, GREY16.astype(np.float32)):
        data = tiff([values], 0, sample_format=3 if values.dtype == np.float32 else 1)
        assert decode_image(data, 100, TWELVE_BITS)[0, :, 0].tolist() == [255 - grey for grey in GREYS]


def test_values_of_32_bits_beyond_the_signed_ones() -> None:
    values = np.array([[0, 2**31, 2**32 - 1]], np.uint32)
    assert decode_image(tiff([values], 1), 10, (0.0, 2.0**32 - 1))[0, :, 0].tolist() == [0, 128, 255]
    negative = np.array([[-5, 0, 5]], np.int32)
    assert decode_image(tiff([negative], 1, sample_format=2), 10, (-5.0, 5.0))[0, :, 0].tolist() == [
        0,
        128,
        255,
    ]


def test_images_of_8_bits_are_in_the_same_units() -> None:
    pixels = np.array([[(0, 100, 200)]], np.uint8)
    for kind in ("PNG", "TIFF", "BMP", "PPM"):
        assert decode_image(saved(pixels, kind), 10, (0.0, 1000.0)).tolist() == [[[0, 26, 51]]]
        assert decode_image(saved(pixels, kind), 10, (100.0, 200.0)).tolist() == [[[0, 0, 255]]]


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_exif_turns_deep_images_too(kind: str, orientation: int) -> None:
    tags = Image.Exif()
    tags[0x0112] = orientation
    decoded = decode_scaled(saved(GREY16, kind, exif=tags), 8, None, TWELVE_BITS)
    assert decoded.orientation == orientation
    shown = decoded.pixels[..., 0].ravel().tolist()  # of 6 the left end comes up, of 3 it comes right
    assert shown == (GREYS if orientation == 6 else GREYS[::-1])
    assert (decoded.height, decoded.width) == ((8, 1) if orientation == 6 else (1, 8))


def test_a_jpeg_is_averaged_first_only_where_the_range_cuts_nothing_off() -> None:
    checks = np.zeros((64, 64, 3), np.uint8)
    checks[::2] = 200
    data = saved(checks, "JPEG", quality=95)
    assert decode_scaled(data, 4096, (8, 8), (0.0, 1000.0)).pixels.shape == (8, 8, 3)
    whole = decode_scaled(data, 4096, (8, 8), (0.0, 100.0))
    assert whole.pixels.shape == (64, 64, 3)
    assert (
        abs(float(whole.pixels.mean()) - 127.5) < 4
    )  # half black, half white; averaged first it is all white


def test_nothing_is_called_nearly_black_that_has_a_range() -> None:
    for data in (DEEP_GREYS["PNG"], DEEP_GREYS["TIFF"]):
        assert decode_scaled(data, 8, None).nearly_black
        assert not decode_scaled(data, 8, None, (0.0, 65535.0)).nearly_black


def test_an_open_pillow_image_is_read_as_its_file() -> None:
    for image_range in ((300.0, 40_300.0), (0.0, 65535.0)):
        with Image.open(BytesIO(DEEP_COLOURS["PNG"])) as image:
            found = decode_pillow(image, image_range)
        np.testing.assert_array_equal(found, decode_image(DEEP_COLOURS["PNG"], 1000, image_range))
    with Image.open(BytesIO(tiff_of_pages([(COLOURS[::-1], 0), (COLOURS, 0)], photometric=2))) as image:
        image.seek(1)
        np.testing.assert_array_equal(decode_stored(image), COLOURS)
    with Image.open(BytesIO(DEEP_GREYS["PGM"])) as image:
        image.load()
        assert decode_stored(image).tolist() == [VALUES]
    in_memory = Image.fromarray(GREY16)
    assert decode_pillow(in_memory, TWELVE_BITS)[0, :, 0].tolist() == GREYS


def test_a_cut_off_deep_file_is_unreadable() -> None:
    for data in (DEEP_COLOURS["PNG"], DEEP_COLOURS["TIFF"], DEEP_GREYS["float TIFF"]):
        with pytest.raises(ImageError) as refused:
            decode_image(data[: len(data) * 2 // 3], 1000, TWELVE_BITS)
        assert refused.value.reason == "unreadable"


@pytest.mark.parametrize(
    "wrong",
    [None, 5, [], [1], [1, 2, 3], "12", ["0", "1"], [True, 5], [5, 5], [5, 1], [0, float("nan")],
     [0, float("inf")], [0, 10**400], [-1.7e308, 1.7e308], {"low": 0, "high": 1}],
)  # fmt: skip
def test_what_is_no_range_is_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match="range") as refused:
        checked_range(wrong)
    assert "\n" not in str(refused.value)


def test_a_range_is_shown_as_it_is_written() -> None:
    assert checked_range([0, 4095]) == (0.0, 4095.0)
    assert shown_range((0.0, 4095.0)) == "[0, 4095]"
    assert shown_range((-0.5, 1.0)) == "[-0.5, 1]"
    assert shown_range(None) == "none"
