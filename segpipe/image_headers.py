"""An image file's header, read by its content: the kind of file, its size, and what decoding it would cost.

images.py is what the project reads images with; this is its first half, up to the first pixel.
"""

from __future__ import annotations

import re
import warnings
import zlib
from collections.abc import Iterator
from io import BytesIO
from itertools import islice

from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import BITSPERSAMPLE, PLANAR_CONFIGURATION, ImageFileDirectory_v2, TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from segpipe.errors import ImageError

# By content, never by name; JpegImageFile takes the first picture of a multi-picture (MPO) file.
_READERS: tuple[tuple[re.Pattern[bytes], type[ImageFile.ImageFile]], ...] = (
    (re.compile(rb"\xff\xd8\xff"), JpegImageFile),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), PngImageFile),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), WebPImageFile),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), TiffImageFile),
    (re.compile(rb"GIF8[79]a"), GifImageFile),
    (re.compile(rb"BM"), BmpImageFile),
    (re.compile(rb"P[1-6f]\s"), PpmImageFile),
)
_OTHER_FORMATS = (
    (re.compile(rb"....ftypavi[fs]", re.DOTALL), "AVIF"),
    (re.compile(rb"....ftyphe[iv][cmsx]", re.DOTALL), "HEIC"),
    (re.compile(rb"....ftypm(?:if|sf)1", re.DOTALL), "HEIF (HEIC or AVIF)"),
    (re.compile(rb"....ftyp", re.DOTALL), "a video (MP4, QuickTime) or a camera's raw file"),
    (re.compile(rb"\0\0\0\x0cjP  "), "JPEG 2000"),
    (re.compile(rb"\0\0\0\x0cJXL |\xff\x0a"), "JPEG XL"),
    (re.compile(rb"8BPS"), "Photoshop"),
)
_QUIET_PILLOW = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
# What the decoding of a small file can take is bounded before it begins. Real JPEGs have a dozen scans.
MAX_JPEG_SCANS = 100
MAX_TIFF_TILES = 100_000
MAX_TIFF_PAGES = 64
MAX_SLOW_VALUES = 10_000_000  # pixels times channels, at up to 1 microsecond each
MAX_PNG_TEXT = 500_000  # bytes, of text that may hold an orientation; Pillow gives up at a million
_SLOW_CODECS = ("bmp_rle", "ppm", "ppm_plain")  # those that Pillow wrote in Python
_JPEG_MARKER = re.compile(
    rb"\xff+([^\x00\x01\xff\xd0-\xd8])", re.DOTALL
)  # those with a length: 0 is a stuffed byte, 1 and d0 to d8 stand alone
_JPEG_SCAN, _JPEG_END = 0xDA, 0xD9
_JPEG_SCAN_MARKER = bytes([0xFF, _JPEG_SCAN])
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Chunks, from their type on: those without which no picture is right (a capital), and where EXIF may be.
_PNG_NEEDED = re.compile(rb"[A-Z]|eXIf|acTL|[tiz]TXt(XML:com\.adobe\.xmp|Raw profile type (exif|xmp|APP1))\0")
_PNG_PACKED_TEXT = re.compile(rb"(?:zTXt[^\0]{1,79}\0\0|iTXt[^\0]{1,79}\0\x01\0[^\0]*\0[^\0]*\0)", re.DOTALL)
SEPARATE_PLANES = 2  # of a TIFF's planar configuration
_TIFF_PAGE_KIND, _TIFF_OLD_PAGE_KIND = 254, 255  # tags
_REDUCED_OR_MASK, _OLD_REDUCED = 0b101, 2


def open_header(data: bytes, max_pixels: int) -> ImageFile.ImageFile:
    """The image with its header read, of one picture and at most `max_pixels`; no pixel decoded yet.

    Raises ImageError, and whatever Pillow raises for a damaged header.
    """
    _ignore_pillow_warnings()
    image = _opened(_reader(data), data)
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(
            "too_large", f"{width}x{height} is over {max_pixels} pixels; shrink it or raise the limit"
        )
    # Not how many: Pillow counts them one by one, and a small file can hold millions.
    if getattr(image, "is_animated", False) and not _is_one_picture(image, data):
        raise ImageError("unsupported", "holds several frames, one is expected; split it into single images")
    if _is_misread(image):
        raise ImageError(
            "unsupported", "16-bit channels in separate, uncompressed planes are not read; save it as PNG"
        )
    _require_bounded_work(image, data)
    return image


def has_16_bits(image: Image.Image) -> bool:
    """Whether an image that is open and not decoded yet stores more than 8 bits a channel."""
    if not isinstance(image, PngImageFile | TiffImageFile | PpmImageFile):
        return False
    return image.mode.startswith("I") or "16" in raw_mode(image)


def raw_mode(image: Image.Image) -> str:
    """What the bytes of an image that is open and not decoded yet hold, in Pillow's words; else ""."""
    for tile in getattr(image, "tile", [])[:1]:
        return str(tile.args[0] if isinstance(tile.args, tuple) else tile.args)
    return ""


def _opened(reader: type[ImageFile.ImageFile], data: bytes) -> ImageFile.ImageFile:
    """The reader is called itself: Image.open has a size limit of its own that is one for all threads."""
    try:
        return reader(BytesIO(_pixel_chunks(data) if reader is PngImageFile else data))
    except SyntaxError as error:
        if reader is TiffImageFile and _is_unknown_kind(error):
            raise ImageError(
                "unsupported",
                "a kind of TIFF (its planes, channels or bits) that is not read; save it as 8-bit RGB",
            ) from error
        raise


def _is_unknown_kind(error: SyntaxError) -> bool:
    """Whether Pillow understood the file's tags and has no way to read such pixels: no damage then."""
    return str(error).startswith("unknown") or isinstance(error.__cause__, IndexError | KeyError)


def _is_misread(image: ImageFile.ImageFile) -> bool:
    """Whether it is a TIFF whose 16-bit planes Pillow would take for planes of 8 bits, without a word."""
    if not isinstance(image, TiffImageFile) or image.tag_v2.get(PLANAR_CONFIGURATION) != SEPARATE_PLANES:
        return False
    in_raw_planes = len(image.getbands()) > 1 and any(tile.codec_name == "raw" for tile in image.tile[:1])
    return in_raw_planes and max(image.tag_v2.get(BITSPERSAMPLE, (1,))) > 8


def _is_one_picture(image: ImageFile.ImageFile, data: bytes) -> bool:
    """Whether a TIFF's other pages are only smaller copies or transparency masks of its first."""
    if not isinstance(image, TiffImageFile) or _is_reduced(image.tag_v2):
        return False
    others = islice(_tiff_pages(data), 1, MAX_TIFF_PAGES + 1)
    return all(number < MAX_TIFF_PAGES and _is_reduced(page) for number, page in enumerate(others, 1))


def _tiff_pages(data: bytes) -> Iterator[ImageFileDirectory_v2]:
    """The tags of each page in turn, in one object; without a page twice."""
    directory, file = ImageFileDirectory_v2(data[: 16 if data[2:4] in (b"+\0", b"\0+") else 8]), BytesIO(data)
    seen = {0}
    while directory.next not in seen:
        seen.add(directory.next)
        file.seek(directory.next)
        directory.load(file)
        yield directory


def _is_reduced(page: ImageFileDirectory_v2) -> bool:
    return (
        bool(page.get(_TIFF_PAGE_KIND, 0) & _REDUCED_OR_MASK) or page.get(_TIFF_OLD_PAGE_KIND) == _OLD_REDUCED
    )


def _require_bounded_work(image: ImageFile.ImageFile, data: bytes) -> None:
    """Refuse what is small and takes minutes to decode: a scan, a tile or a run may cost a few bytes."""
    # At first sight only, which takes little time: every scan has this marker.
    may_be_many = isinstance(image, JpegImageFile) and data.count(_JPEG_SCAN_MARKER) > MAX_JPEG_SCANS
    if may_be_many and (scans := _jpeg_scans(data)) > MAX_JPEG_SCANS:
        raise ImageError("too_large", f"has {scans} scans, over {MAX_JPEG_SCANS} are not read; save it anew")
    if (tiles := len(image.tile)) > MAX_TIFF_TILES:
        raise ImageError("too_large", f"has {tiles} tiles, over {MAX_TIFF_TILES} are not read; save it anew")
    values = image.width * image.height * len(image.getbands())
    if values > MAX_SLOW_VALUES and any(tile.codec_name in _SLOW_CODECS for tile in image.tile):
        raise ImageError(
            "too_large", f"{values} values in a kind of {image.format} that is slow to read; save it as PNG"
        )


def _jpeg_scans(data: bytes) -> int:
    """The scans of the first picture: what follows its end, another picture or a video, is not looked at."""
    scans, at = 0, 2
    while (found := _JPEG_MARKER.search(data, at)) and found[1][0] != _JPEG_END:
        scans += found[1][0] == _JPEG_SCAN
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2])
    return scans


def _pixel_chunks(data: bytes) -> bytes:
    """A PNG without its texts and profiles, since Pillow gives up on a whole picture when these are long.

    Text is kept where it may hold the EXIF orientation.
    """
    kept, at = [_PNG_SIGNATURE], len(_PNG_SIGNATURE)
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4])
        if _PNG_NEEDED.match(data, at + 4) and not _is_long_text(data[at + 4 : end - 4]):
            kept.append(data[at:end])
        at = end
    return b"".join(kept)


def _is_long_text(chunk: bytes) -> bool:
    """Whether a chunk, from its type on, is text that Pillow would give up on."""
    if not chunk.startswith((b"tEXt", b"zTXt", b"iTXt")):
        return False
    if not (head := _PNG_PACKED_TEXT.match(chunk)):
        return len(chunk) > MAX_PNG_TEXT
    unpacking = zlib.decompressobj()
    try:
        return len(unpacking.decompress(chunk[head.end() :], MAX_PNG_TEXT)) == MAX_PNG_TEXT
    except zlib.error:
        return False  # Pillow says what is wrong with it


def _reader(data: bytes) -> type[ImageFile.ImageFile]:
    for signature, reader in _READERS:
        if signature.match(data):
            return reader
    for signature, name in _OTHER_FORMATS:
        if signature.match(data):
            raise ImageError("unsupported", f"{name} is not supported; convert it to JPEG or PNG")
    raise ImageError(
        "unreadable", "the file is empty" if not data else f"no image: it begins with {data[:8]!r}"
    )


def _ignore_pillow_warnings() -> None:
    """Keep Pillow's remarks on odd metadata quiet for good: catch_warnings is not safe with threads."""
    if _QUIET_PILLOW not in warnings.filters[:1]:
        warnings.filterwarnings("ignore", module=r"PIL\.")
