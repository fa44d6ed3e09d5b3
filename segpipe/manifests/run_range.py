"""The range of pixel values that a run's model brings images to, by the run's own record."""

from __future__ import annotations

import json

from segpipe import storage
from segpipe.errors import NotFoundError, RunError
from segpipe.image_range import ImageRange, checked_range
from segpipe.redaction import redact


def range_of_run(output: str, run_id: str) -> ImageRange | None:
    """None: the model has none, the run is of a version that knew none, or its run.json is gone.

    Raises RunError for a damaged run.json, StorageError.
    """
    uri = storage.join(output, f"runs/{run_id}/run.json")
    try:
        found = json.loads(storage.read_bytes(uri)).get("image_range")
        return None if found is None else checked_range(found)
    except NotFoundError:
        return None
    except (ValueError, AttributeError, RecursionError) as error:
        raise RunError(f"{redact(uri)} is damaged ({type(error).__name__}): restore or remove it") from error
