"""Label Studio's brush masks: run lengths of an image's bytes, packed into bits.

The format is rle-pack of thi.ng/umbrella, over the H x W x 4 bytes of an RGBA image, row by row: 32 bits that
count the bytes, 5 bits for the word size less one, four times 4 bits for the run sizes less one, and then the
runs: a bit that says repeated, 2 bits that choose the run size, the length less one, and one word, or where
not repeated as many words as the run is long.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numba import njit
from numpy.typing import NDArray

from segpipe.errors import ReviewError

_CHANNELS = 4
_WORD_BITS = 8
_RUN_BITS = (3, 4, 8, 16)
_HEADER_BITS = 53
_LONGEST = 1 << _RUN_BITS[-1]
_DRAWN_FROM = 128  # the edge of a brush stroke is anti-aliased: a pixel is drawn from half its opacity on


def encode_brush(drawn: np.ndarray) -> list[int]:
    """HxW bool to the bytes of a brush mask, 255 in all four channels where drawn and 0 elsewhere."""
    flat = drawn.ravel()
    starts = np.concatenate(([0], np.flatnonzero(np.diff(flat)) + 1))
    lengths = np.diff(starts, append=flat.size) * _CHANNELS
    header = f"{flat.size * _CHANNELS:032b}{_WORD_BITS - 1:05b}" + "".join(
        f"{size - 1:04b}" for size in _RUN_BITS
    )
    runs = zip(lengths.tolist(), flat[starts].tolist(), strict=True)
    bits = header + "".join(_packed_run(length, 255 if value else 0) for length, value in runs)
    bits += "0" * (-len(bits) % 8)
    return list(int(bits, 2).to_bytes(len(bits) // 8, "big"))


def _packed_run(length: int, value: int) -> str:
    return "".join(_packed_piece(piece, value) for piece in _pieces(length))


def _pieces(length: int) -> Iterator[int]:
    while length > _LONGEST:
        yield _LONGEST
        length -= _LONGEST
    yield length


def _packed_piece(length: int, value: int) -> str:
    choice = next(place for place, bits in enumerate(_RUN_BITS) if length <= 1 << bits)
    return f"1{choice:02b}{length - 1:0{_RUN_BITS[choice]}b}{value:08b}"


def decode_brush(packed: Sequence[int], height: int, width: int) -> np.ndarray:
    """Undo `encode_brush`, whoever packed it: HxW bool, drawn where the opacity is at least a half.

    Raises ReviewError for bytes that are no brush mask of this size.
    """
    try:
        data = np.frombuffer(bytes(packed), np.uint8)
        values = _unpacked(data, height * width * _CHANNELS)
    except (TypeError, ValueError) as error:
        raise ReviewError(f"a brush mask cannot be read: {error}; draw the region again") from error
    return values.reshape(height, width, _CHANNELS)[..., 3] >= _DRAWN_FROM


def _unpacked(data: np.ndarray, expected: int) -> np.ndarray:
    if len(data) * 8 < _HEADER_BITS:
        raise ValueError("it has no header")
    header = int.from_bytes(data[:7].tobytes(), "big") >> 3
    count, word = header >> 21, (header >> 16 & 31) + 1
    if count != expected or word != _WORD_BITS:
        raise ValueError(f"it has {count} values of {word} bits, the image {expected} of {_WORD_BITS}")
    sizes = np.array([(header >> place & 15) + 1 for place in (12, 8, 4, 0)])
    values = np.zeros(count, np.uint8)
    if not _fill(values, data, sizes):
        raise ValueError("it ends in the middle of a run")
    return values


# Compiled, because a mask can have as many runs as the image has pixels.
@njit(nogil=True)
def _fill(values: NDArray[np.uint8], data: NDArray[np.uint8], sizes: NDArray[np.int64]) -> bool:
    """Unpack all runs; False when they are not exactly as many values."""
    done, place, end = 0, _HEADER_BITS, data.size * 8
    while done < values.size:
        if place + 3 > end:
            return False
        repeated, size = _bits(data, place, 1), sizes[_bits(data, place + 1, 2)]
        if place + 3 + size > end:
            return False
        length = _bits(data, place + 3, size) + 1
        place += 3 + size
        words = 1 if repeated else length
        if done + length > values.size or place + words * _WORD_BITS > end:
            return False
        for at in range(length):
            values[done + at] = _bits(data, place if repeated else place + at * _WORD_BITS, _WORD_BITS)
        done, place = done + length, place + words * _WORD_BITS
    return True


@njit(nogil=True)
def _bits(data: NDArray[np.uint8], place: int, count: int) -> int:
    """So many bits from this bit on, the highest first, as a number."""
    found = 0
    for at in range(place, place + count):
        found = found * 2 + ((data[at >> 3] >> (7 - (at & 7))) & 1)
    return found
