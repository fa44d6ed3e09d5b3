"""Brush masks as Label Studio packs them."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from segpipe.errors import ReviewError
from segpipe.review.brush import decode_brush, encode_brush


def packed(*fields: tuple[int, int]) -> list[int]:
    """(value, bits) ... written by hand into bytes."""
    bits = "".join(f"{value:0{width}b}" for value, width in fields)
    bits += "0" * (-len(bits) % 8)
    return [int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)]


HEADER = ((7, 5), (2, 4), (3, 4), (7, 4), (15, 4))


def test_one_drawn_pixel_beside_an_empty_one_is_two_runs_of_four_bytes() -> None:
    by_hand = packed((8, 32), *HEADER, (1, 1), (0, 2), (3, 3), (255, 8), (1, 1), (0, 2), (3, 3), (0, 8))
    assert encode_brush(np.array([[True, False]])) == by_hand
    assert decode_brush(by_hand, 1, 2).tolist() == [[True, False]]


def test_a_brush_stroke_counts_from_half_its_opacity() -> None:
    # One run of eight different words: R G B A of two pixels, as an edited stroke has at its edge.
    words = [(1, 8), (2, 8), (3, 8), (127, 8), (1, 8), (2, 8), (3, 8), (128, 8)]
    assert decode_brush(packed((8, 32), *HEADER, (0, 1), (0, 2), (7, 3), *words), 1, 2).tolist() == [
        [False, True]
    ]


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=40)))
def test_what_is_packed_comes_back(mask: np.ndarray) -> None:
    assert np.array_equal(decode_brush(encode_brush(mask), *mask.shape), mask)


def test_runs_longer_than_the_format_knows_come_back() -> None:
    mask = np.zeros((300, 300), bool)
    mask[150:] = True  # 180,000 bytes in a row; a run has at most 65,536
    assert np.array_equal(decode_brush(encode_brush(mask), 300, 300), mask)


@given(st.lists(st.integers(0, 255), max_size=60))
def test_garbage_is_refused_in_words_or_read(garbage: list[int]) -> None:
    with suppress(ReviewError):
        assert decode_brush(garbage, 3, 2).shape == (3, 2)


@given(
    st.lists(st.integers(1, 16), min_size=4, max_size=4),
    st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.binary(min_size=1, max_size=9)), max_size=12),
    st.integers(1, 6),
    st.binary(max_size=3),
)
def test_whatever_runs_there_are_they_are_read_as_the_format_says(
    sizes: list[int], runs: list[tuple[bool, int, bytes]], pixels: int, tail: bytes
) -> None:
    bits, values = f"{pixels * 4:032b}00111" + "".join(f"{size - 1:04b}" for size in sizes), b""
    for repeated, choice, words in runs:
        words = words[: 1 << sizes[choice]]
        sent = words[:1] if repeated else words
        bits += f"{repeated:b}{choice:02b}{len(words) - 1:0{sizes[choice]}b}"
        bits += "".join(f"{word:08b}" for word in sent)
        values += sent * len(words) if repeated else sent
        if len(values) >= pixels * 4:
            break
    bits += "0" * (-len(bits) % 8)
    data = [int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)] + list(tail)
    if len(values) == pixels * 4:
        assert decode_brush(data, 1, pixels).tolist() == [[value >= 128 for value in values[3::4]]]
    elif len(values) > pixels * 4 or not tail:
        with pytest.raises(ReviewError, match="cannot be read"):
            decode_brush(data, 1, pixels)


@pytest.mark.parametrize("cut", [0, 3, 7, -1])
def test_a_cut_mask_is_refused(cut: int) -> None:
    whole = encode_brush(np.eye(9, dtype=bool))
    with pytest.raises(ReviewError, match="cannot be read"):
        decode_brush(whole[:cut], 9, 9)


def test_a_mask_of_another_size_is_refused() -> None:
    with pytest.raises(ReviewError, match="it has 324 values of 8 bits, the image 400 of 8"):
        decode_brush(encode_brush(np.eye(9, dtype=bool)), 10, 10)
