"""segpipe labels image buckets with segmentation masks that carry a statistical promise."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from segpipe.models.labeler import Labeler

__version__ = "0.1.0"
__all__ = ["__version__", "load_model"]


def load_model(url: str, device: str = "auto") -> Labeler:
    """Load a model bundle from any fsspec URL, ready to label; torch is imported only here.

    Raises ModelError when the bundle is missing or damaged.
    """
    from segpipe.models.labeler import load_model as load

    return load(url, device)
