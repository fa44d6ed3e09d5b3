"""What an export or an import writes: the files beside the data, and the images that it copies."""

from __future__ import annotations

LEFT_OUT = "left_out.csv"
UNFINISHED = "export-unfinished.txt"
# Format -> extension of the images whose files are copied; of other formats the pixels are.
COPIED = {"JPEG": ".jpg", "PNG": ".png"}
# The same of kinds that may have more than 8 bits a channel, which their pixels as PNG would not keep.
COPIED_IN_RANGE = COPIED | {"TIFF": ".tif", "PPM": ".pnm"}
