"""What a bucket may hold under an image's name: files with what must become of each, all drawn from code."""

from __future__ import annotations

import base64
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageCms

DECODED, UNREADABLE, UNSUPPORTED, TOO_LARGE = "decoded", "unreadable", "unsupported", "too_large"
RED, GREEN, BLUE, WHITE, CYAN = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 255, 255)
LOSSY = 8  # grey levels that a JPEG or WebP of plain colours may be off


@dataclass(frozen=True)
class Case:
    """A file and what may become of it: "decoded" or a failure's reason.

    pixels: what it shows, HxWx3; None where damage may have changed it. tolerance: in grey levels.
    """

    name: str
    data: bytes
    outcomes: tuple[str, ...]
    pixels: np.ndarray | None = None
    tolerance: int = 0


def quarters(height: int, width: int) -> np.ndarray:
    """Red and green above blue and white."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2], pixels[: height // 2, width // 2 :] = RED, GREEN
    pixels[height // 2 :, : width // 2], pixels[height // 2 :, width // 2 :] = BLUE, WHITE
    return pixels


def encode(image: np.ndarray | Image.Image, kind: str, **options: Any) -> bytes:
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def flat(height: int, width: int, colour: tuple[int, ...]) -> np.ndarray:
    return np.full((height, width, 3), colour, np.uint8)


# --- files written by hand, from their specifications -------------------------------------------------------


def png(width: int, height: int, rows: bytes, *extra: tuple[bytes, bytes], colour_type: int = 2) -> bytes:
    """8 bits a sample; each row begins with its filter byte."""
    return png_chunks(png_header(width, height, colour_type), *extra, (b"IDAT", zlib.compress(rows)))


def png_header(width: int, height: int, colour_type: int, interlaced: int = 0) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, interlaced)


def png_chunks(*chunks: tuple[bytes, bytes]) -> bytes:
    parts = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in (*chunks, (b"IEND", b""))
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def interlaced_png(pixels: np.ndarray) -> bytes:
    """Adam7 (PNG specification, section 8.2)."""
    passes = (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    )
    parts = [pixels[y::down, x::right] for x, y, right, down in passes]
    rows = b"".join(b"\0" + row.tobytes() for part in parts if part.size for row in part)
    return png_chunks(png_header(*pixels.shape[1::-1], 2, interlaced=1), (b"IDAT", zlib.compress(rows)))


def jpeg_segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def insert_segment(jpeg: bytes, marker: int, body: bytes) -> bytes:
    return jpeg[:2] + jpeg_segment(marker, body) + jpeg[2:]


def scan_bomb(width: int, height: int, scans: int, after_the_first: bytes = b"") -> bytes:
    """A progressive, arithmetic-coded grey JPEG whose scans are all empty: 10 bytes each."""
    frame = struct.pack(">BHHB", 8, height, width, 1) + bytes([1, 0x11, 0])
    first = jpeg_segment(0xDA, bytes([1, 1, 0, 0, 0, 0]))
    scan = jpeg_segment(0xDA, bytes([1, 1, 0, 1, 63, 0]))
    table = jpeg_segment(0xDB, b"\0" + bytes([1] * 64))
    scans_on = after_the_first + scan * (scans - 1)
    return b"\xff\xd8" + table + jpeg_segment(0xCA, frame) + first + scans_on + b"\xff\xd9"


def false_end() -> bytes:
    """Who takes a JPEG marker without a length (TEM) for one with it lands on an end of the image."""
    application = bytearray(65_531)
    application[0xFFE5 - 4 : 0xFFE5 - 2] = b"\xff\xd9"
    return b"\xff\x01" + jpeg_segment(0xE5, bytes(application))


def tiff(*tags: tuple[int, int, int, int], data: bytes = b"", following: int = 0) -> bytes:
    """Little-endian; tags are (tag, type, count, value), `data` begins at byte 8."""
    directory = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    end = 8 + len(data)
    return (
        b"II*\0" + struct.pack("<I", end) + data + struct.pack("<H", len(tags)) + directory
    ) + struct.pack("<I", following)


def grey_tiff(width: int, height: int, *tags: tuple[int, int, int, int], data: bytes = b"") -> bytes:
    usual = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(data)}
    fields = {tag: (tag, 4, 1, value) for tag, value in usual.items()} | {tag[0]: tag for tag in tags}
    if 324 in fields:  # tiles instead of strips
        del fields[273], fields[278], fields[279]
    return tiff(*fields.values(), data=data)


def gif(screen: tuple[int, int], frame: tuple[int, int, int, int], image_data: bytes) -> bytes:
    """One frame (left, top, width, height) of two colours, red and green."""
    head = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80, 0, 0) + bytes([*RED, *GREEN])
    return head + b"," + struct.pack("<HHHHB", *frame, 0) + image_data + b";"


def webp_canvas(width: int, height: int) -> bytes:
    """An extended WebP of this canvas and no picture in it."""
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4)
    body += (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", len(body)) + body


# --- the cases ----------------------------------------------------------------------------------------------


def formats() -> dict[str, bytes]:
    """A 48 x 64 picture in every format and coding that is read, the first dozen bytes of each different."""
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    return {
        "baseline.jpg": encode(noise, "JPEG"),
        "progressive.jpg": encode(noise, "JPEG", progressive=True),
        "restarts.jpg": encode(noise, "JPEG", restart_marker_blocks=1),
        "plain.png": encode(noise, "PNG"),
        "interlaced.png": interlaced_png(noise),
        "lossy.webp": encode(noise, "WEBP"),
        "lossless.webp": encode(noise, "WEBP", lossless=True),
        "raw.tif": encode(noise, "TIFF"),
        "lzw.tif": encode(noise, "TIFF", compression="tiff_lzw"),
        "jpeg.tif": encode(noise, "TIFF", compression="jpeg"),
        "plain.bmp": encode(noise, "BMP"),
        "plain.gif": encode(Image.fromarray(noise).quantize(64), "GIF"),
        "plain.ppm": encode(noise, "PPM"),
    }


def truncated() -> Iterator[Case]:
    for name, data in formats().items():
        for tenth in range(10):
            yield Case(f"cut at {tenth}0% {name}", data[: len(data) * tenth // 10], (UNREADABLE,))


def bit_flipped() -> Iterator[Case]:
    rng = np.random.default_rng(1)
    any_outcome = (DECODED, UNREADABLE, UNSUPPORTED, TOO_LARGE)
    for name, data in formats().items():
        for flips in (1, 4, 32, 256):
            damaged = np.frombuffer(data, np.uint8).copy()
            at = rng.integers(0, len(damaged), flips)
            np.bitwise_xor.at(damaged, at, (1 << rng.integers(0, 8, flips)).astype(np.uint8))
            yield Case(f"{flips} bits flipped {name}", damaged.tobytes(), any_outcome)


def turned() -> Iterator[Case]:
    seen = quarters(32, 64)
    stored = {1: seen, 2: seen[:, ::-1], 3: seen[::-1, ::-1], 4: seen[::-1], 5: seen.transpose(1, 0, 2)}
    stored |= {6: np.rot90(seen), 7: np.rot90(seen, 2).transpose(1, 0, 2), 8: np.rot90(seen, -1)}
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}}
    for orientation, pixels in stored.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        for kind, chosen in options.items():
            data = encode(np.ascontiguousarray(pixels), kind, exif=exif, **chosen)
            yield Case(f"orientation {orientation}.{kind}", data, (DECODED,), seen, LOSSY)
    for orientation in (0, 9, 65535):
        exif = Image.Exif()
        exif[0x0112] = orientation
        yield Case(
            f"orientation {orientation}, which there is not.png",
            encode(seen, "PNG", exif=exif),
            (DECODED,),
            seen,
        )


def no_images() -> Iterator[Case]:
    archive = BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.jpg", b"x")
    yield Case("empty.jpg", b"", (UNREADABLE,))
    yield Case("one byte.png", b"\x89", (UNREADABLE,))
    yield Case("page.jpg", b"<!DOCTYPE html><html><body>503</body></html>", (UNREADABLE,))
    yield Case("archive.png", archive.getvalue(), (UNREADABLE,))
    yield Case("document.jpg", b"%PDF-1.7\n" + formats()["baseline.jpg"], (UNREADABLE,))
    yield Case("text.bmp", b"BMW makes cars and motorcycles.", (UNREADABLE,))
    yield Case("text.ppm", b"P6 is the third of the portable formats", (UNREADABLE,))
    yield Case("zeros.jpg", bytes(5000), (UNREADABLE,))
    yield Case("drawing.png", b'<svg xmlns="http://www.w3.org/2000/svg"/>', (UNREADABLE,))
    yield Case("header only.gif", b"GIF89a", (UNREADABLE,))
    yield Case("no frame.gif", b"GIF89a" + struct.pack("<HHBBB", 4, 4, 0, 0, 0) + b";", (UNREADABLE,))
    yield Case("end at once.jpg", b"\xff\xd8\xff\xd9", (UNREADABLE,))
    yield Case("photo.heic", b"\0\0\0\x18ftypheic" + bytes(100), (UNSUPPORTED,))
    yield Case("photo.avif", encode(quarters(16, 16), "AVIF"), (UNSUPPORTED,))
    yield Case("photo.jp2", encode(quarters(16, 16), "JPEG2000"), (UNSUPPORTED,))
    yield Case("layers.psd", b"8BPS\0\1" + bytes(30), (UNSUPPORTED,))


def polyglots() -> Iterator[Case]:
    seen = quarters(16, 32)
    archive = BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.txt", b"x")
    jpeg = encode(seen, "JPEG", quality=95, subsampling=0)
    scans = b"\xff\xda\x00\x02" * 1000
    for name, data in {
        "archive behind it.png": encode(seen, "PNG") + archive.getvalue(),
        "script behind it.jpg": jpeg + b"<script>alert(1)</script>",
        "archive behind it.gif": encode(Image.fromarray(seen).quantize(8), "GIF") + archive.getvalue(),
        "video with scan markers behind it.jpg": jpeg + scans,
        "scan markers in a comment.jpg": insert_segment(jpeg, 0xFE, scans),
        "png under another name.jpg": encode(seen, "PNG"),
        "archive behind it.webp": encode(seen, "WEBP", lossless=True) + archive.getvalue(),
        "second picture behind it.jpg": encode(seen, "MPO", save_all=True, quality=95, subsampling=0),
    }.items():
        yield Case(name, data, (DECODED,), seen, LOSSY)


def bombs() -> Iterator[Case]:
    side = 60_000
    jpeg = bytearray(formats()["baseline.jpg"])
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", side, side)
    bmp = bytearray(formats()["plain.bmp"])
    bmp[18:26] = struct.pack("<ii", side, side)
    yield Case("60000x60000.png", png(side, side, b""), (TOO_LARGE,))
    yield Case("60000x60000.jpg", bytes(jpeg), (TOO_LARGE,))
    yield Case("60000x60000.bmp", bytes(bmp), (TOO_LARGE,))
    yield Case("60000x60000.gif", gif((side, side), (0, 0, side, side), b"\2\1\x44\0"), (TOO_LARGE,))
    yield Case("frame 60000x60000.gif", gif((4, 4), (0, 0, side, side), b"\2\1\x44\0"), (TOO_LARGE,))
    yield Case("60000x60000.webp", webp_canvas(side, side), (TOO_LARGE,))
    yield Case("60000x60000.tif", grey_tiff(side, side, data=b"\0"), (TOO_LARGE,))
    yield Case("60000x60000.ppm", b"P6 60000 60000 255\n", (TOO_LARGE,))
    yield Case("2^31 rows.png", png(2**31 - 1, 2**31 - 1, b""), (TOO_LARGE,))
    yield Case("scan bomb.jpg", scan_bomb(4000, 4000, 20_000), (TOO_LARGE,))
    yield Case("scan bomb behind a false end.jpg", scan_bomb(4000, 4000, 20_000, false_end()), (TOO_LARGE,))
    yield Case(
        "as many scans as allowed.jpg", scan_bomb(40, 30, 100), (DECODED,), flat(30, 40, (128,) * 3), LOSSY
    )
    yield Case("slow runs.bmp", run_length_bomb(9000, 9000), (TOO_LARGE,))
    yield Case("slow values.ppm", b"P6 3000 3000 254\n", (TOO_LARGE,))
    tiles = b"\0" * 8 + struct.pack("<I", 8) * 200_000
    one_by_one = [(322, 4, 1, 1), (323, 4, 1, 1), (324, 4, 200_000, 16), (325, 4, 200_000, 16)]
    yield Case("a tile a pixel.tif", grey_tiff(500, 400, *one_by_one, data=tiles), (TOO_LARGE,))
    pages = tiff((256, 4, 1, 4), (257, 4, 1, 4), following=8)
    yield Case("a page that is its own next.tif", pages, (UNREADABLE, UNSUPPORTED))
    frame = b"!\xf9\4\0\0\0\0\0," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\2\2\x44\1\0"
    head = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + bytes([*RED, *GREEN])
    yield Case("200000 frames.gif", head + frame * 200_000 + b";", (UNSUPPORTED,))


def run_length_bomb(width: int, height: int) -> bytes:
    """Rows of nothing but their end, two bytes each (RLE8)."""
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, 0, 0, 0, 2, 0)
    data = bytes([0, 0, 0, 0, 255, 255, 255, 0]) + b"\1\1\0\0" * height
    return b"BM" + struct.pack("<IHHI", 14 + len(header) + len(data), 0, 0, 14 + len(header)) + header + data


def shapes() -> Iterator[Case]:
    kinds: dict[str, dict[str, Any]] = {"PNG": {}, "JPEG": {"quality": 95}, "BMP": {}, "TIFF": {}, "PPM": {}}
    for kind, options in kinds.items():
        for height, width in ((1, 1), (1, 20_000), (20_000, 1)):
            pixels = flat(height, width, (200, 100, 50))
            yield Case(f"{width}x{height}.{kind}", encode(pixels, kind, **options), (DECODED,), pixels, LOSSY)
    for name, (width, height) in {"no width": (0, 5), "no height": (5, 0)}.items():
        yield Case(f"{name}.png", png(width, height, b""), (UNREADABLE,))
        yield Case(f"{name}.ppm", b"P6 %d %d 255\n" % (width, height), (UNREADABLE,))
        yield Case(f"{name}.tif", grey_tiff(width, height), (UNREADABLE,))


def pixel_types() -> Iterator[Case]:
    seen, high = quarters(16, 32), {"quality": 95, "subsampling": 0}
    alpha = np.dstack([seen, np.zeros((16, 32), np.uint8)])
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    deep = grey.astype(np.uint16) * 257
    palette = Image.fromarray(seen).quantize(4)
    cmyk = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    as_grey = np.repeat(grey[:, :, None], 3, axis=2)
    yield Case("rgb.png", encode(seen, "PNG"), (DECODED,), seen)
    yield Case("interlaced.png", interlaced_png(seen), (DECODED,), seen)
    yield Case("progressive.jpg", encode(seen, "JPEG", progressive=True, **high), (DECODED,), seen, LOSSY)
    for name, text in ARITHMETIC.items():
        yield Case(f"{name}.jpg", base64.b64decode(text), (DECODED,), seen, LOSSY)
    yield Case("alpha.png", encode(alpha, "PNG"), (DECODED,), seen)
    yield Case("alpha.webp", encode(alpha, "WEBP", lossless=True, exact=True), (DECODED,), seen)
    yield Case("alpha.tif", encode(alpha, "TIFF"), (DECODED,), seen)
    la = Image.merge("LA", [Image.fromarray(grey), Image.new("L", (16, 16), 0)])
    yield Case("grey and alpha.png", encode(la, "PNG"), (DECODED,), as_grey)
    yield Case("grey.jpg", encode(grey, "JPEG", quality=100), (DECODED,), as_grey, LOSSY)
    yield Case("palette.png", encode(palette, "PNG"), (DECODED,), seen)
    yield Case("palette and alpha.png", encode(palette, "PNG", transparency=0), (DECODED,), seen)
    yield Case("palette.gif", encode(palette, "GIF"), (DECODED,), seen)
    yield Case("palette.bmp", encode(palette, "BMP"), (DECODED,), seen)
    yield Case("palette.tif", encode(palette, "TIFF"), (DECODED,), seen)
    yield Case("two colours.png", encode(Image.new("1", (9, 7), 1), "PNG"), (DECODED,), flat(7, 9, WHITE))
    yield Case("two colours.tif", encode(Image.new("1", (9, 7), 1), "TIFF"), (DECODED,), flat(7, 9, WHITE))
    yield Case("16 bit.png", encode(deep, "PNG"), (DECODED,), as_grey)
    yield Case("16 bit.tif", encode(deep, "TIFF"), (DECODED,), as_grey)
    yield Case("float.tif", encode(np.zeros((4, 4), np.float32), "TIFF"), (UNSUPPORTED,))
    yield Case("32 bit.tif", encode(np.zeros((4, 4), np.int32), "TIFF"), (UNSUPPORTED,))
    yield Case("lab.tif", encode(Image.new("LAB", (4, 4)), "TIFF"), (UNSUPPORTED,))
    yield Case("cmyk.tif", encode(cmyk, "TIFF"), (DECODED,), flat(16, 16, CYAN))
    adobe = encode(cmyk, "JPEG", quality=95)  # Pillow writes CMYK as Adobe does, inverted
    yield Case("cmyk inverted.jpg", adobe, (DECODED,), flat(16, 16, CYAN), LOSSY)
    # Transform 2, YCCK (T.872): Y = 76, Cb = 85, Cr = 255 is (255, 0, 0), which Adobe's inversion makes cyan.
    ycck = encode(Image.new("CMYK", (16, 16), (255 - 76, 255 - 85, 255 - 255, 0)), "JPEG", quality=95)
    flag = ycck.index(b"Adobe") + 11
    ycck = ycck[:flag] + b"\2" + ycck[flag + 1 :]
    yield Case("ycck.jpg", ycck, (DECODED,), flat(16, 16, CYAN), LOSSY)
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN, BLUE)]
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
        yield Case(f"frames.{kind}", data, (UNSUPPORTED,))


ARITHMETIC = {  # quarters(16, 32), by jpegtran -arithmetic of libjpeg-turbo 2.1.5, in base 64
    "arithmetic": (
        "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAgGBgcGBQgHBwcJCQgKDBQNDAsLDBkSEw8UHRofHh0aHBwgJC4nICIsIxwcKDcp"
        "LDAxNDQ0Hyc5PTgyPC4zNDL/2wBDAQkJCQwLDBgNDRgyIRwhMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIy"
        "MjIyMjIyMjIyMjIyMjL/yQARCAAQACADAREAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwD/AKA668tbJ4VSeKEB"
        "5glIC73WXSvO/9k="
    ),
    "progressive arithmetic": (
        "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAgGBgcGBQgHBwcJCQgKDBQNDAsLDBkSEw8UHRofHh0aHBwgJC4nICIsIxwcKDcp"
        "LDAxNDQ0Hyc5PTgyPC4zNDL/2wBDAQkJCQwLDBgNDRgyIRwhMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIy"
        "MjIyMjIyMjIyMjIyMjL/ygARCAAQACADAREAAhEBAxEB/8wABgAQARD/2gAMAwEAAhADEAAAAf8AQHPVQlfJQKPGPt9fqYTH"
        "ASKw/8wABBAF/9oACAEBAAEFAsD/zAAEEQX/2gAIAQMBAT8BwP/MAAQRBf/aAAgBAgEBPwHA/8wABBAF/9oACAEBAAY/AsD/"
        "zAAEEAX/2gAIAQEAAT8hwP/aAAwDAQACAAMAAAAQgOz0/8wABBEF/9oACAEDAQE/EMD/zAAEEQX/2gAIAQIBAT8QwP/MAAQQ"
        "Bf/aAAgBAQABPxDA/9k="
    ),
}


def metadata() -> Iterator[Case]:
    seen = quarters(16, 32)
    rows = b"".join(b"\0" + row.tobytes() for row in seen)
    long, bomb = b"x" * 5_000_000, zlib.compress(bytes(20_000_000), 9)
    chunks = {
        "5 MB of text": [(b"tEXt", b"k\0" + long)],
        "100 texts of 1 MB": [(b"zTXt", b"k\0\0" + zlib.compress(bytes(1_000_000)))] * 100,
        "text bomb": [(b"zTXt", b"k\0\0" + bomb)],
        "international text bomb": [(b"iTXt", b"k\0\1\0\0\0" + bomb)],
        "profile bomb": [(b"iCCP", b"k\0\0" + bomb)],
        "profile that is none": [(b"iCCP", b"k\0\0" + zlib.compress(b"no profile"))],
        "profile that is not compressed": [(b"iCCP", b"k\0\0no zlib stream")],
        "20000 chunks that nobody knows": [(b"abCd", b"")] * 20_000,
        "damaged EXIF": [(b"eXIf", b"II*\0\xff\xff\xff\xff")],
    }
    for name, extra in chunks.items():
        yield Case(f"{name}.png", png(32, 16, rows, *extra), (DECODED,), seen)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for name, profile in {
        "sRGB": srgb,
        "damaged": srgb[:200],
        "none": b"\0",
        "1 MB": bytes(1_000_000),
    }.items():
        for kind in ("JPEG", "WEBP", "TIFF"):
            options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {"lossless": kind == "WEBP"}
            data = encode(seen, kind, icc_profile=profile, **options)
            yield Case(f"{name} profile.{kind}", data, (DECODED,), seen, LOSSY)
    jpeg = encode(seen, "JPEG", quality=95, subsampling=0)
    segments = {
        "half a profile": (0xE2, b"ICC_PROFILE\0\1\2" + srgb[:100]),
        "damaged EXIF": (0xE1, b"Exif\0\0no TIFF header"),
        "EXIF that points at itself": (0xE1, b"Exif\0\0" + tiff((0x8769, 4, 1, 8), following=8)),
        "damaged Photoshop block": (0xED, b"Photoshop 3.0\x008BIM" + b"\xff" * 20),
        "comment of 64 KB": (0xFE, b"x" * 65_000),
    }
    for name, segment in segments.items():
        yield Case(f"{name}.jpg", insert_segment(jpeg, *segment), (DECODED,), seen, LOSSY)
    # Nothing restarts before the picture ends, so the interval means nothing.
    restarts = insert_segment(jpeg, 0xDD, struct.pack(">H", 65535))
    yield Case("restart interval of 65535.jpg", restarts, (DECODED,), seen, LOSSY)


def absurd_structure() -> Iterator[Case]:
    plain = bytes(range(16))
    far = 2**31 - 1
    for name, tags in {
        "strip behind the end": [(273, 4, 1, far)],
        "2^32 strips": [(273, 4, 2**32 - 1, 8)],
        "strips of 2^31 bytes that are compressed": [(259, 4, 1, 8), (279, 4, 1, far)],
        "tiles of 2^30 pixels a side": [
            (322, 4, 1, 2**30),
            (323, 4, 1, 2**30),
            (324, 4, 1, 8),
            (325, 4, 1, 16),
        ],
        "compressed tiles of 2^20 pixels a side": [
            *((259, 4, 1, 8), (322, 4, 1, 2**20), (323, 4, 1, 2**20)),
            *((324, 4, 1, 8), (325, 4, 1, 16)),
        ],
        "2^31 samples a pixel": [(277, 4, 1, far)],
        "unknown compression": [(259, 4, 1, 60_000)],
        "no such type of field": [(256, 99, 1, 4)],
    }.items():
        yield Case(f"{name}.tif", grey_tiff(4, 4, *tags, data=plain), (UNREADABLE, UNSUPPORTED))
    whole = np.repeat(np.arange(16, dtype=np.uint8).reshape(4, 4, 1), 3, axis=2)
    yield Case("by hand.tif", grey_tiff(4, 4, data=plain), (DECODED,), whole)
    rows = (278, 4, 1, 2**32 - 1)
    yield Case("one strip of 2^32 rows.tif", grey_tiff(4, 4, rows, data=plain), (DECODED,), whole)
    text = (270, 2, 2**32 - 1, 8)
    yield Case("description of 4 GB.tif", grey_tiff(4, 4, text, data=plain), (DECODED, UNREADABLE), whole)
    # Colour 0 four times, then the end: codes of 3 bits 4 0 0 0 0 5 (GIF89a, appendix F), lowest bits first.
    pixels = b"\2\3\x04\x00\x05\0"
    in_screen = gif((2, 2), (0, 0, 2, 2), pixels)
    yield Case("by hand.gif", in_screen, (DECODED,), flat(2, 2, RED))
    # What the frame covers counts: a screen too small grows, as in browsers.
    yield Case("frame outside its screen.gif", gif((2, 2), (2, 2, 2, 2), pixels), (DECODED,))
    yield Case("frame far outside its screen.gif", gif((2, 2), (65535, 65535, 2, 2), pixels), (TOO_LARGE,))
    yield Case("no screen.gif", gif((0, 0), (0, 0, 2, 2), pixels), (DECODED,), flat(2, 2, RED))


def all_cases() -> list[Case]:
    """Every case; names are all different and usable as keys."""
    sources = (truncated, bit_flipped, turned, no_images, polyglots, bombs, shapes, pixel_types, metadata)
    return [case for source in (*sources, absurd_structure) for case in source()]
