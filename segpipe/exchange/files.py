"""What an export or an import writes: the files beside the data, and the images that it copies."""

from __future__ import annotations

LEFT_OUT = "left_out.csv"
UNFINISHED = "export-unfinished.txt"
# Format -> extension of the images whose files are copied; of other formats the pixels are.
COPIED = {"JPEG": ".jpg", "PNG": ".png"}
# The same where a range of values is named: all that can be read, since the range is for values as stored.
COPIED_IN_RANGE = COPIED | {"TIFF": ".tif", "PPM": ".pnm", "BMP": ".bmp", "WEBP": ".webp", "GIF": ".gif"}
