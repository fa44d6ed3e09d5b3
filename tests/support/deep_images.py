"""Images of more than 8 bits a channel, or of several pages, that Pillow does not write: made by hand."""

from __future__ import annotations

import struct
import zlib

import numpy as np

_ENDIAN = {"<": "little", ">": "big"}


def png16(values: np.ndarray, colour_type: int, *, interlaced: bool = False) -> bytes:
    """HxWxC uint16 as a PNG written by hand, of 16 bits a channel; interlaced only of one pixel."""
    height, width = values.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, interlaced)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(
    planes: list[np.ndarray],
    photometric: int,
    *,
    order: str = "<",
    sample_format: int = 1,
    extra: int = -1,
    deflated: bool = False,
) -> bytes:
    """A TIFF written by hand (TIFF 6.0): one plane HxW or HxWxC, or one HxW for each channel."""
    values, channels = planes[0], planes[0].shape[2] if planes[0].ndim == 3 else len(planes)
    content = bytearray((b"II*\0" if order == "<" else b"MM\0*") + bytes(4))

    def put(body: bytes) -> int:
        content.extend(body)
        return len(content) - len(body)

    def several(kind: str, numbers: list[int]) -> int:
        packed = struct.pack(f"{order}{len(numbers)}{kind}", *numbers)
        return put(packed) if len(packed) > 4 else int.from_bytes(packed.ljust(4, b"\0"), _ENDIAN[order])

    strips = [plane.astype(plane.dtype.newbyteorder(order)).tobytes() for plane in planes]
    strips = [zlib.compress(strip) if deflated else strip for strip in strips]
    offsets = [put(strip) for strip in strips]
    put(bytes(len(content) % 2))
    bits = 8 * values.itemsize
    entries = [
        (256, 4, 1, values.shape[1]),
        (257, 4, 1, values.shape[0]),
        (258, 3, channels, several("H", [bits] * channels)),
        (259, 3, 1, several("H", [8 if deflated else 1])),
        (262, 3, 1, several("H", [photometric])),
        (273, 4, len(planes), several("I", offsets)),
        (277, 3, 1, several("H", [channels])),
        (278, 4, 1, values.shape[0]),
        (279, 4, len(planes), several("I", [len(strip) for strip in strips])),
        (284, 3, 1, several("H", [2 if len(planes) > 1 else 1])),
        *([(338, 3, 1, several("H", [extra]))] if extra >= 0 else []),
        (339, 3, channels, several("H", [sample_format] * channels)),
    ]
    content[4:8] = struct.pack(f"{order}I", len(content))
    content += struct.pack(f"{order}H", len(entries))
    for entry in entries:
        content += struct.pack(f"{order}HHII", *entry)
    return bytes(content + bytes(4))


def tiff_of_pages(pages: list[tuple[np.ndarray, int]], photometric: int) -> bytes:
    """An uncompressed TIFF written by hand (TIFF 6.0), of pages (HxW or HxWxC, NewSubfileType)."""
    content, links = bytearray(b"II*\0\0\0\0\0"), [4]
    for values, kind in pages:
        planes = values.shape[2] if values.ndim == 3 else 1
        pixels_at = len(content)
        content += values.astype(values.dtype.newbyteorder("<")).tobytes()
        bits_at = len(content)
        content += struct.pack(f"<{planes}H", *[8 * values.itemsize] * planes)
        content += bytes(len(content) % 2)
        content[links[-1] : links[-1] + 4] = struct.pack("<I", len(content))
        short, long = 3, 4
        bits = 8 * values.itemsize if planes == 1 else bits_at if planes > 2 else 0
        entries = [
            (254, long, 1, kind),
            (256, long, 1, values.shape[1]),
            (257, long, 1, values.shape[0]),
            (258, short, planes, bits),
            (259, short, 1, 1),
            (262, short, 1, photometric),
            (273, long, 1, pixels_at),
            (277, short, 1, planes),
            (278, long, 1, values.shape[0]),
            (279, long, 1, values.nbytes),
        ]
        content += struct.pack("<H", len(entries)) + b"".join(
            struct.pack("<HHII", *entry) for entry in entries
        )
        links.append(len(content))
        content += bytes(4)
    return bytes(content)
